//! System management mode: a second address space, with a root of its own.

use slat_memslot::{AsId, VmType};

use super::script::{Of, Script, code, slot};
use super::{Entry, Need};
use crate::live::Program;
use crate::traces::{Op, SetRegion};

pub(super) const ALL: &[Entry] = &[
    ("smm-two-roots", Need::Smm, two_roots),
    ("smm-slot-delete-all", Need::Smm, || delete(start())),
    ("smm-slot-delete-leaves", Need::Smm, || {
        delete(Script::vm(VmType::Default).without_zap_quirk().with_vcpu())
    }),
    ("smm-pre-fault", Need::Smm, pre_fault),
];

const SHARED: SetRegion = slot(1, (0x400, 0x40), Of::Small, 0);

/// The same slot as SMM sees it, over the same host memory.
fn in_smm(region: SetRegion) -> SetRegion {
    let as_id = AsId::new(1).unwrap_or(AsId::NORMAL);
    SetRegion { as_id, ..region }
}

fn start() -> Script {
    Script::vm(VmType::Default).with_vcpu()
}

/// Slots of both address spaces, and one that only SMM has.
fn slots(script: &mut Script) {
    script.set(SHARED);
    script.set(in_smm(code(AsId::NORMAL)));
    script.set(in_smm(SHARED));
    script.set(in_smm(slot(2, (0xa0, 0x10), Of::Small, 0x200)));
}

fn two_roots() -> Program {
    let mut script = start();
    slots(&mut script);
    script.write_all(0x400, 4);
    script.then(Op::SetSmm(true));
    script.write_all(0x400, 8);
    script.write(0xa0);
    script.then(Op::SetSmm(false));
    // No memory is there outside of SMM.
    script.write(0xa0);
    script.write_all(0x400, 8);
    script.end()
}

fn delete(mut script: Script) -> Program {
    slots(&mut script);
    script.write_all(0x400, 8);
    script.then(Op::SetSmm(true));
    script.write_all(0x400, 8);
    script.write(0xa0);
    script.count_leaves();
    script.delete(in_smm(SHARED));
    script.count_leaves();
    script.write(0xa0);
    script.then(Op::SetSmm(false));
    script.write_all(0x400, 8);
    script.count_leaves();
    script.end()
}

fn pre_fault() -> Program {
    let mut script = start();
    slots(&mut script);
    script.write_all(0x400, 4);
    script.then(Op::SetSmm(true));
    script.enter();
    script.pre_fault(0x400, 8);
    script.then(Op::SetSmm(false));
    script.pre_fault(0x400, 8);
    script.end()
}

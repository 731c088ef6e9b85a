//! A guest that runs guests of its own, with SVM: L1 in long mode, which executes VMRUN or writes a word, and L2, which has no
//! paging of its own and makes one access.

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs};
use kvm_ioctls::VcpuFd;
use slat_memslot::{Errno, Gpa, Hva, PAGE_SIZE};
use slat_mmu::fault::Kind;

use super::{Done, DriveError, Driver, Journal, missing};
use crate::kvm::{errno, flatten};
use crate::live::areas::Areas;
use crate::live::guest;
use crate::replay::stub;
use crate::traces::{GuestAct, Op};

/// `MSR_VM_HSAVE_PA`.
const HSAVE: (&str, u32) = ("VM_HSAVE_PA", 0xc001_0117);
/// L1's control block, in its page.
const VMCB: u64 = 0xa000;
/// L1's own tables are accessed and dirty, so that no walk writes to them.
const LINK: u64 = 0x67;
const HUGE_LEAF: u64 = 0xe7;

const CR0: u64 = 0x8000_0011;
const CR4_PAE: u64 = 1 << 5;
const EFER: u64 = 0x500;
const EFER_NX: u64 = 1 << 11;
const EFER_SVME: u64 = 1 << 12;

/// A field of the control block (AMD64 APM volume 2, appendix B): where, and how many bytes.
type Field = (u64, usize);

const INTERCEPTS: Field = (0x00c, 4);
const MORE_INTERCEPTS: Field = (0x010, 4);
const ASID: Field = (0x058, 4);
const NESTED_PAGING: Field = (0x090, 8);
const NESTED_CR3: Field = (0x0b0, 8);
const SAVED_EFER: Field = (0x4d0, 8);
const SAVED_CR0: Field = (0x558, 8);
const DR7: Field = (0x560, 8);
const DR6: Field = (0x568, 8);
const RFLAGS: Field = (0x570, 8);
const RIP: Field = (0x578, 8);

/// Halts, and whatever ends a processor.
const HALT_AND_SHUTDOWN: u64 = 1 << 24 | 1 << 31;
/// No VMRUN is one without it.
const VMRUN: u64 = 1;

/// ES, CS, SS and DS: 32-bit, flat.
const SEGMENTS: [(u64, u64); 4] = [
    (0x400, 0xc93),
    (0x410, 0xc9b),
    (0x420, 0xc93),
    (0x430, 0xc93),
];

/// What L1 gives to a new guest: its tables, if it has any, and where it begins.
fn control_block(tables: Option<Gpa>, start: u64) -> Vec<(Field, u64)> {
    let mut fields = vec![
        (INTERCEPTS, HALT_AND_SHUTDOWN),
        (MORE_INTERCEPTS, VMRUN),
        (ASID, 1),
        (NESTED_PAGING, u64::from(tables.is_some())),
        (NESTED_CR3, tables.map_or(0, Gpa::raw)),
        (SAVED_EFER, EFER_SVME),
        (SAVED_CR0, 0x11),
        (DR7, 0x400),
        (DR6, 0xffff_0ff0),
        (RFLAGS, 2),
        (RIP, start),
    ];
    for (at, attributes) in SEGMENTS {
        fields.extend([
            ((at, 2), 0x10),
            ((at + 2, 2), attributes),
            ((at + 4, 4), 0xffff_ffff),
        ]);
    }
    fields
}

impl<J: Journal> Driver<J> {
    /// `KVM_SET_MSRS` with one of them.
    pub(super) fn set_msr(&mut self, op: &Op<'_>, id: u32, (name, value): (&str, u64)) -> Done {
        let machine = self.machine.as_ref().ok_or_else(|| missing(op, "VM"))?;
        let vcpu = machine.vcpus.get(&id).ok_or_else(|| missing(op, "vCPU"))?;
        if name != HSAVE.0 {
            return Err(DriveError::Unknown { op: op.to_string() });
        }
        let entry = kvm_msr_entry {
            index: HSAVE.1,
            data: value,
            ..Default::default()
        };
        let msrs = Msrs::from_entries(&[entry]).map_err(|_| Errno::EINVAL);
        let set = msrs.and_then(|msrs| vcpu.set_msrs(&msrs).map_err(errno));
        self.ret(set.map(|count| i64::try_from(count).unwrap_or(i64::MAX)))
    }

    /// `KVM_SET_SREGS`: long mode, in which guests can be run. L1's tables and instructions are written first; from now on the
    /// pages of new slots are told at once.
    pub(super) fn set_long_mode(&mut self, op: &Op<'_>, id: u32, cr3: Gpa) -> Done {
        self.write_l1(cr3);
        let machine = self.machine.as_mut().ok_or_else(|| missing(op, "VM"))?;
        machine.runs_l2 = true;
        let vcpu = machine.vcpus.get(&id).ok_or_else(|| missing(op, "vCPU"))?;
        let result = set_long_mode(vcpu, cr3).map(|()| 0);
        self.ret(result)
    }

    /// `KVM_SET_SREGS`: whether L1 has pages that cannot be executed, and with it its nested tables.
    pub(super) fn set_no_execute(&mut self, op: &Op<'_>, id: u32, set: bool) -> Done {
        let machine = self.machine.as_ref().ok_or_else(|| missing(op, "VM"))?;
        let vcpu = machine.vcpus.get(&id).ok_or_else(|| missing(op, "vCPU"))?;
        let result = set_efer(vcpu, EFER_NX, set).map(|()| 0);
        self.ret(result)
    }

    fn write_l1(&mut self, cr3: Gpa) {
        let Some(first) = self.areas.list().first().map(|area| area.start) else {
            return;
        };
        let mut write = |at: u64, bytes: &[u8]| {
            self.areas.write(Hva::new(first.raw() + at), bytes);
        };
        let table = |number: u64| cr3.raw() + number * PAGE_SIZE;
        write(table(0), &(table(1) | LINK).to_le_bytes());
        write(table(1), &(table(2) | LINK).to_le_bytes());
        for huge in 0..512 {
            write(table(2) + huge * 8, &(huge << 21 | HUGE_LEAF).to_le_bytes());
        }
        // vmrun; hlt
        write(stub::L1_VMRUN, &[0x0f, 0x01, 0xd8, 0xf4]);
        // mov [rbx], rcx; hlt
        write(stub::L1_STORE, &[0x48, 0x89, 0x0b, 0xf4]);
    }

    /// L1 runs, and perhaps its guest.
    pub(super) fn run_l1(&mut self, op: &Op<'_>, id: u32, act: &GuestAct<'_>) -> Done {
        self.say(&format!("OP {op}"))?;
        let regs = match act {
            GuestAct::RunL2 { tables, kind, gpa } => {
                let start = match kind {
                    Kind::Read => stub::READ,
                    Kind::Write => stub::WRITE,
                    Kind::Execute => stub::JUMP,
                };
                write_control_block(&mut self.areas, &control_block(*tables, start));
                kvm_regs {
                    rip: stub::L1_VMRUN,
                    rax: VMCB,
                    rbx: gpa.raw(),
                    ..Default::default()
                }
            }
            GuestAct::StoreOfL1 { gpa, value } => kvm_regs {
                rip: stub::L1_STORE,
                rbx: gpa.raw(),
                rcx: *value,
                ..Default::default()
            },
            _ => return Err(DriveError::Unknown { op: op.to_string() }),
        };
        let machine = self.machine.as_mut().ok_or_else(|| missing(op, "VM"))?;
        let vcpu = machine.vcpus.get_mut(&id);
        let vcpu = vcpu.ok_or_else(|| missing(op, "vCPU"))?;
        machine.stale.remove(&id);
        let regs = kvm_regs { rflags: 2, ..regs };
        let journal = &mut self.journal;
        let ran = guest::run_from(vcpu, &regs, |note| journal.say(&format!("NOTE {note}")));
        match ran {
            Ok(told) => told.map_err(|error| super::io_error("the journal", error)),
            Err(errno) => self.ret(Err(errno)),
        }
    }
}

fn set_long_mode(vcpu: &VcpuFd, cr3: Gpa) -> Result<(), Errno> {
    let mut sregs = vcpu.get_sregs().map_err(errno)?;
    flatten(&mut sregs, true);
    (sregs.cr0, sregs.cr3, sregs.cr4) = (CR0, cr3.raw(), CR4_PAE);
    sregs.efer = EFER | EFER_SVME;
    vcpu.set_sregs(&sregs).map_err(errno)
}

fn set_efer(vcpu: &VcpuFd, bit: u64, set: bool) -> Result<(), Errno> {
    let mut sregs = vcpu.get_sregs().map_err(errno)?;
    sregs.efer = match set {
        true => sregs.efer | bit,
        false => sregs.efer & !bit,
    };
    vcpu.set_sregs(&sregs).map_err(errno)
}

/// The whole page is written anew: leaving L2 has changed it.
fn write_control_block(areas: &mut Areas, fields: &[(Field, u64)]) {
    let Some(first) = areas.list().first().map(|area| area.start) else {
        return;
    };
    let mut page = vec![0; 0x1000];
    for ((at, len), value) in fields {
        let at = usize::try_from(*at).unwrap_or(0);
        let bytes = value.to_le_bytes();
        for (place, byte) in page.iter_mut().skip(at).zip(bytes.iter().take(*len)) {
            *place = *byte;
        }
    }
    areas.write(Hva::new(first.raw() + VMCB), &page);
}

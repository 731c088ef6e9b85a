//! Operations are read as they were written.

use proptest::option;
use proptest::prelude::*;
use slat_memslot::Gpa;
use slat_mmu::fault::Kind;

use super::{GuestAct, Op, Sregs};
use crate::traces::{Recording, What};

fn gpa() -> impl Strategy<Value = Gpa> {
    any::<u64>().prop_map(Gpa::new)
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![Just(Kind::Read), Just(Kind::Write), Just(Kind::Execute)]
}

/// What an L1 does that runs an L2.
fn act() -> impl Strategy<Value = GuestAct<'static>> {
    let run_l2 = (option::of(gpa()), kind(), gpa());
    let store = (gpa(), any::<u64>());
    prop_oneof![
        run_l2.prop_map(|(tables, kind, gpa)| GuestAct::RunL2 { tables, kind, gpa }),
        store.prop_map(|(gpa, value)| GuestAct::StoreOfL1 { gpa, value }),
    ]
}

/// How it is set up.
fn registers() -> impl Strategy<Value = Sregs<'static>> {
    let nesting = option::of(prop_oneof![Just("EFER.SVME"), Just("CR4.VMXE")]);
    prop_oneof![
        (gpa(), nesting).prop_map(|(cr3, nesting)| Sregs::LongMode { cr3, nesting }),
        any::<bool>().prop_map(|set| Sregs::Bits {
            register: "EFER",
            bits: "NXE",
            set
        }),
    ]
}

fn op() -> impl Strategy<Value = Op<'static>> {
    let vcpu = option::of(any::<u32>());
    prop_oneof![
        3 => (any::<u32>(), act()).prop_map(|(vcpu, act)| Op::Guest { vcpu, act }),
        1 => (vcpu.clone(), registers()).prop_map(|(vcpu, sregs)| Op::SetSregs { vcpu, sregs }),
        1 => (vcpu, any::<u64>()).prop_map(|(vcpu, value)| Op::SetMsr {
            vcpu,
            msr: "VM_HSAVE_PA",
            value
        }),
    ]
}

proptest! {
    #[test]
    fn nested_operations_are_read_as_they_were_written(ops in prop::collection::vec(op(), 1..8)) {
        let text: String = ops.iter().map(|op| format!("OP {op}\n")).collect();
        let recording = Recording::parse(&text);
        let recording = recording.map_err(|error| TestCaseError::fail(format!("{text}{error}")))?;
        let read: Vec<_> = recording.items.into_iter().map(|item| item.what).collect();
        let written: Vec<_> = ops.into_iter().map(What::Op).collect();
        prop_assert_eq!(read, written);
    }
}

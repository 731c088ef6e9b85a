use crate::{
    AsId, Buffer, Call, CallResult, Memory, Outcome, Profile, Quirks, Region, SlotKey, VmType, cap,
};

const MIB: u64 = 1 << 20;

fn with_vcpu(vm_type: VmType) -> Memory {
    let mut memory = Memory::new(Profile::latest(), vm_type);
    memory.create_vcpu().unwrap();
    memory
}

fn set(memory: &mut Memory, id: u16, gpa: u64, size: u64) {
    let request = Region::new(SlotKey::normal(id), gpa, size, 0);
    let _effects = memory.set_region(&request).unwrap();
}

fn code(answer: CallResult) -> &'static str {
    answer.unwrap_err().reason.code()
}

#[test]
fn a_pre_fault_stops_where_slots_end() {
    let mut memory = with_vcpu(VmType::Default);
    let base = 16 * MIB;
    set(&mut memory, 0, base, 2 * MIB + 0x1000);
    let left = |memory: &Memory, gpa, size| memory.pre_fault(0, gpa, size, 0);
    let remaining = |gpa, size| Ok(Outcome::Remaining { gpa, size });
    let end = base + 2 * MIB + 0x1000;
    assert_eq!(left(&memory, base, 2 * MIB), remaining(base + 2 * MIB, 0));
    assert_eq!(left(&memory, end - 0x1000, 0x2000), remaining(end, 0x1000));
    assert_eq!(code(left(&memory, end, 0x1000)), "pre-fault-no-slot");
    assert_eq!(code(left(&memory, base - 0x1000, MIB)), "pre-fault-no-slot");
    // Neighbours are one range, a hole is not.
    set(&mut memory, 1, end, 0x1000);
    set(&mut memory, 2, end + 0x2000, MIB);
    let size = 4 * MIB;
    let reached = end + 0x1000;
    assert_eq!(
        left(&memory, base, size),
        remaining(reached, base + size - reached)
    );
}

#[test]
fn pre_fault_ranges_must_be_whole_and_ascending() {
    let mut memory = with_vcpu(VmType::Default);
    set(&mut memory, 0, 0, MIB);
    let refused = |gpa, size| code(memory.pre_fault(0, gpa, size, 0));
    assert_eq!(refused(0, 0), "pre-fault-range");
    assert_eq!(refused(0x1000, 0x1000u64.wrapping_neg()), "pre-fault-range");
    assert_eq!(refused(0x2000, 0x1000u64.wrapping_neg()), "pre-fault-range");
    assert_eq!(refused(1, 0x1000), "pre-fault-unaligned");
    assert_eq!(refused(0, 1), "pre-fault-unaligned");
    let all = memory.pre_fault(0, 0, 0x1000u64.wrapping_neg(), 0);
    assert!(matches!(all, Ok(Outcome::Remaining { gpa: MIB, .. })));
}

#[test]
fn a_vm_that_must_be_finalized_is_pre_faulted_afterwards() {
    for vm_type in VmType::ALL {
        let mut memory = with_vcpu(vm_type);
        set(&mut memory, 0, 0, MIB);
        let before = memory.pre_fault(0, 0, MIB, 0).is_ok();
        assert_eq!(before, !vm_type.must_be_finalized(), "{vm_type}");
        memory.set_finalized();
        assert!(memory.pre_fault(0, 0, MIB, 0).is_ok(), "{vm_type}");
    }
}

#[test]
fn disabled_quirks_are_replaced_or_added_to() {
    let disable = |name: &str| {
        let mut memory = Memory::new(Profile::named(name).unwrap(), VmType::Default);
        let born = memory.disabled_quirks();
        for quirk in [Quirks::SLOT_ZAP_ALL, Quirks::OUT_7E_INC_RIP] {
            let args = [quirk.bits(), 0, 0, 0];
            memory.enable_cap(cap::DISABLE_QUIRKS2, 0, args).unwrap();
        }
        memory.disabled_quirks() - born
    };
    assert_eq!(disable("linux-6.12"), Quirks::OUT_7E_INC_RIP);
    let both = Quirks::SLOT_ZAP_ALL | Quirks::OUT_7E_INC_RIP;
    assert_eq!(disable("debian-6.12.117"), both);
    assert_eq!(disable("linux-6.18"), both);
}

#[test]
fn kvms_own_slots_lie_in_every_address_space() {
    let mut memory = Memory::new(Profile::latest(), VmType::Default);
    memory.create_irqchip().unwrap();
    memory.create_vcpu().unwrap();
    memory.create_vcpu().unwrap();
    for as_id in [AsId::NORMAL, AsId::SMM] {
        let space = memory.space(as_id);
        assert_eq!(space.len(), 1);
        let generation = space.generation().raw();
        assert_eq!(generation, 2 + as_id.index() as u64);
    }
    let request = Region::new(SlotKey::normal(0), 0xfee0_0000, 0x1000, 0);
    let refusal = memory.set_region(&request).unwrap_err();
    assert_eq!(refusal.reason.code(), "overlap");
    assert!(refusal.to_string().contains("slot 32765"), "{refusal}");
    let own = memory.get_dirty_log(32765, Buffer::Good).unwrap_err();
    assert_eq!(own.reason.code(), "dirty-slot");
}

#[test]
fn capabilities_follow_the_vm_type() {
    let value = |vm_type, number| {
        let mut memory = Memory::new(Profile::latest(), vm_type);
        match memory.call(&Call::CheckExtension { cap: number }) {
            Ok(Outcome::Value(value)) => value,
            other => panic!("{other:?}"),
        }
    };
    for vm_type in VmType::ALL {
        let private = vm_type.has_private_memory();
        let spaces = if private { 1 } else { 2 };
        assert_eq!(value(vm_type, cap::MULTI_ADDRESS_SPACE), spaces);
        let readonly = u64::from(!vm_type.has_protected_state());
        assert_eq!(value(vm_type, cap::READONLY_MEM), readonly);
        let attributes = if private { 8 } else { 0 };
        assert_eq!(value(vm_type, cap::MEMORY_ATTRIBUTES), attributes);
        let flags = if private { 1 } else { 3 };
        assert_eq!(value(vm_type, cap::GUEST_MEMFD_FLAGS), flags);
        assert_eq!(value(vm_type, cap::NR_MEMSLOTS), 32764);
    }
}

//! The APIC access page, a slot of KVM's own (`mmu.c:kvm_mmu_faultin_pfn`).

use super::*;
use crate::role::VcpuMode;
use crate::spte::{Entry, Ept};

/// `APIC_DEFAULT_PHYS_BASE`.
const APIC: u64 = 0xfee00;

/// A VM with a local APIC in the kernel, on a host with APICv; the root of a vCPU in `mode`.
fn world(mode: VcpuMode, apicv: Apicv) -> World<Ept> {
    let mut world = World::<Ept>::new(&Host::ept(40));
    world.memory.create_irqchip().unwrap();
    let _vcpu = world.memory.create_vcpu().unwrap();
    world.settings.apicv = apicv;
    let tdp = world.tables.codec().host().tdp().unwrap();
    let vcpu = VcpuState {
        mode,
        ..VcpuState::default()
    };
    let mut locked = world.tables.shared(&mut world.reader, Unobserved);
    let root = locked.acquire_root(root_role_for_tdp(&vcpu, &tdp));
    world.root = root.unwrap().root();
    drop(locked);
    world
}

#[test]
fn it_is_mapped_while_hardware_virtualises_the_apic() {
    let mut world = world(VcpuMode::Normal, Apicv::Active);
    assert_eq!(world.fault(APIC, Kind::Write).outcome, Outcome::Fixed);
    assert!(world.is_writable(APIC));
    assert_eq!(world.prefault(APIC, 1).unwrap().done, Pages::new(1));
}

/// Neither the vCPU nor an entry remembers anything, so that nothing has to go when APICv is back.
#[test]
fn while_it_is_inhibited_accesses_are_emulated_and_leave_nothing() {
    let mut world = world(VcpuMode::Normal, Apicv::Inhibited);
    assert_eq!(world.fault(APIC, Kind::Write).outcome, Outcome::Emulate);
    assert_eq!(world.tables.totals(), crate::tdp::Totals::default());
    assert_eq!(world.mmio, MmioCache::default());
    assert_eq!(world.prefault(APIC, 1), Err(PrefaultError::NoSlot));
    world.settings.apicv = Apicv::Active;
    assert_eq!(world.fault(APIC, Kind::Write).outcome, Outcome::Fixed);
}

/// Hardware would take L2's accesses to L1's APIC.
#[test]
fn to_l2_no_slot_is_there_and_an_mmio_entry_says_so() {
    for apicv in [Apicv::Active, Apicv::Inhibited] {
        let mut world = world(VcpuMode::Guest, apicv);
        assert_eq!(world.fault(APIC, Kind::Write).outcome, Outcome::Emulate);
        let found = world.find(APIC);
        let entry = world.tables.codec().decode(found.spte, found.level);
        assert!(matches!(entry, Entry::Mmio(_)), "{entry:?}");
        let generation = world.memory.space(AsId::NORMAL).generation();
        assert!(world.mmio.has(Gfn::new(APIC), generation));
    }
}

/// KVM's own slots are in every address space.
#[test]
fn in_smm_it_is_there_as_well() {
    let mut world = world(VcpuMode::Smm, Apicv::Active);
    assert_eq!(world.fault(APIC, Kind::Read).outcome, Outcome::Fixed);
    assert!(world.is_writable(APIC));
}

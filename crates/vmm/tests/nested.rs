//! Nested guests on tables of L1's: what L1 is told, and which roots stay.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use slat_memslot::{Gpa, Hva, PageSize, Region, SlotKey, VmType};
use slat_mmu::fault::Kind;
use slat_mmu::role::VcpuMode;
use slat_mmu::spte::{Ept, Npt, NxHugePages};
use slat_vmm::paged_vm::PagedVm;
use slat_vmm::replay::Machine;
use slat_vmm::shadow_vm::ShadowVm;
use slat_vmm::tdp_vm::{Activity, Paging, SecondStageOfL2, Step, TdpVm};

/// Where L1's own tables begin, and those that it gives to L2: 16 small pages from 0, and a huge one at 4 MiB.
const L1_TABLES: Gpa = Gpa::new(0x4000);
const L2_TABLES: Gpa = Gpa::new(0xb000);
/// Write-back, four levels, no accessed and dirty bits.
const EPT_POINTER: u64 = L2_TABLES.raw() | 0x1e;

const EPT: SecondStageOfL2 = SecondStageOfL2::Ept {
    pointer: EPT_POINTER,
};
const NPT: SecondStageOfL2 = SecondStageOfL2::Npt { cr3: L2_TABLES };

/// A VM on a machine of the recordings, with one vCPU.
fn vm<V: PagedVm>(machine: &str) -> V {
    let machine = Machine::named(machine).unwrap();
    let mut vm = V::on(&machine, VmType::Default, NxHugePages::Off).unwrap();
    vm.create_vcpu(0);
    vm.set_region(&Region::new(
        SlotKey::normal(0),
        0,
        0x10000,
        0x7f00_0000_0000,
    ));
    let large = Region::new(SlotKey::normal(1), 4 << 20, 2 << 20, 0x7f10_0000_0000);
    vm.set_region(&large);
    vm
}

fn lines(vm: &mut impl PagedVm) -> Vec<String> {
    vm.take().iter().map(ToString::to_string).collect()
}

/// L1 starts L2, which makes an access; if L1 is told of it, it reads frame 9, beside nothing that was mapped before.
fn run(vm: &mut impl PagedVm, tables: SecondStageOfL2, kind: Kind, address: u64) -> Vec<String> {
    let _ = vm.take();
    let activity = Activity {
        mode_then: Some(VcpuMode::Guest),
        l2_tables: Some(tables),
        steps_then: vec![Step { kind, address }],
        steps_of_l1: vec![Step {
            kind: Kind::Read,
            address: 0x9000,
        }],
        ..Activity::halt(Gpa::new(0x1000))
    };
    vm.run_guest(0, &activity);
    lines(vm)
}

/// L2 is left, so that L1 can start it again.
fn leave(vm: &mut impl PagedVm) {
    let leave = Activity {
        mode_then: Some(VcpuMode::Normal),
        ..Activity::halt(Gpa::new(0x1000))
    };
    vm.run_guest(0, &leave);
}

const TOLD: &str = "  kvm_nested_vmexit_inject: ";

/// What L1 was told; it runs on after that.
fn told(lines: &[String]) -> &str {
    let at = lines
        .iter()
        .position(|line| line.starts_with(TOLD))
        .unwrap();
    let later = &lines[at..];
    let read = |line: &String| line.starts_with("  kvm_mmu_spte_requested: gfn 9 ");
    assert!(later.iter().any(read), "{lines:#?}");
    assert_eq!(lines.last().unwrap(), "NOTE exit HLT");
    lines[at].strip_prefix(TOLD).unwrap()
}

fn violations<V: PagedVm>(machine: &str, tables: SecondStageOfL2, wanted: [(Kind, &str); 3]) {
    for (kind, says) in wanted {
        let mut vm = vm::<V>(machine);
        if let SecondStageOfL2::Npt { .. } = tables {
            let pages = Vec::new();
            let cr3 = L1_TABLES;
            vm.set_paging(0, Paging::Long { cr3, pages });
        }
        // Between the small pages and the huge one L1 maps nothing.
        let lines = run(&mut vm, tables, kind, 0x20_0000);
        assert_eq!(told(&lines), says, "{machine}");
    }
}

#[test]
fn l1_is_told_of_ept_violations() {
    let wanted = [
        (Kind::Read, "EPT violation, qualification 0x181"),
        (Kind::Write, "EPT violation, qualification 0x182"),
        (Kind::Execute, "EPT violation, qualification 0x184"),
    ];
    violations::<TdpVm<Ept>>("ept-l4", EPT, wanted);
    violations::<ShadowVm<Ept>>("ept-l4-legacy-mmu", EPT, wanted);
}

#[test]
fn l1_is_told_of_nested_page_faults() {
    let wanted = [
        (Kind::Read, "#NPF(0x100000004 USER|GUEST_FINAL)"),
        (Kind::Write, "#NPF(0x100000006 WRITE|USER|GUEST_FINAL)"),
        // L1 has neither EFER.NX nor CR4.SMEP, so that a fetch is not told apart.
        (Kind::Execute, "#NPF(0x100000004 USER|GUEST_FINAL)"),
    ];
    violations::<TdpVm<Npt>>("npt-l4", NPT, wanted);
    violations::<ShadowVm<Npt>>("npt-l4-legacy-mmu", NPT, wanted);
}

/// All that a guest behind NPT does is done in user mode: a page without the user bit cannot be executed either, although a
/// neighbour's fault has mapped it.
fn fetches_are_of_user_mode<V: PagedVm>(machine: &str) {
    let mut vm = vm::<V>(machine);
    let tables = [0xb000_u64, 0xc000, 0xd000].map(|table| (table, (table + 0x1000) | 7));
    let pages = (0..16).map(|page| {
        let rights = if page == 3 { 0x21 } else { 0x27 };
        (0xe000 + 8 * page, page << 12 | rights)
    });
    for (gpa, entry) in tables.into_iter().chain(pages) {
        vm.poke(0x7f00_0000_0000 + gpa, entry);
    }
    let (cr3, pages) = (L1_TABLES, Vec::new());
    vm.set_paging(0, Paging::Long { cr3, pages });
    let mapped = run(&mut vm, NPT, Kind::Read, 0x2000);
    let neighbour = |line: &String| line.contains("kvm_mmu_set_spte: gfn 3 ");
    assert!(mapped.iter().any(neighbour), "{mapped:#?}");
    leave(&mut vm);
    let lines = run(&mut vm, NPT, Kind::Execute, 0x3000);
    assert_eq!(told(&lines), "#NPF(0x100000005 PRESENT|USER|GUEST_FINAL)");
}

#[test]
fn l2_executes_nothing_without_the_user_bit() {
    fetches_are_of_user_mode::<TdpVm<Npt>>("npt-l4");
    fetches_are_of_user_mode::<ShadowVm<Npt>>("npt-l4-legacy-mmu");
}

/// The root that shadows L1's tables stays with the vCPU while L1 runs, and is used again.
fn second_entry_finds_the_root<V: PagedVm>(machine: &str) {
    let mut vm = vm::<V>(machine);
    let first = run(&mut vm, EPT, Kind::Read, 0x40_0000);
    let makes_root =
        |line: &&String| line.contains("kvm_mmu_get_page") && line.contains(" gfn b l4 ");
    assert_eq!(first.iter().filter(makes_root).count(), 1, "{first:#?}");
    leave(&mut vm);
    let second = run(&mut vm, EPT, Kind::Read, 0x40_0000);
    assert_eq!(second.iter().filter(makes_root).count(), 0, "{second:#?}");
    assert_eq!(second.last().unwrap(), "NOTE exit HLT");
    // Nothing is left behind: each root goes when its vCPU does.
    vm.close();
    let closed = lines(&mut vm);
    let last = closed.iter().rfind(|line| line.contains(" gfn b l4 "));
    assert!(last.unwrap().contains("invalid"), "{closed:#?}");
    assert!(last.unwrap().contains("root 0"), "{closed:#?}");
}

#[test]
fn a_root_of_l1_s_tables_is_found_again_at_the_next_entry() {
    second_entry_finds_the_root::<TdpVm<Ept>>("ept-l4");
    second_entry_finds_the_root::<ShadowVm<Ept>>("ept-l4-legacy-mmu");
}

/// Writes of L1's to the tables that L2 runs on: above the last level KVM carries them out.
fn upper_tables_are_watched<V: PagedVm>(machine: &str) {
    let mut vm = vm::<V>(machine);
    let _ = run(&mut vm, EPT, Kind::Read, 0x40_0000);
    let write = |address| Activity {
        mode_then: Some(VcpuMode::Normal),
        steps_then: vec![Step {
            kind: Kind::Write,
            address,
        }],
        ..Activity::halt(Gpa::new(0x1000))
    };
    let _ = vm.take();
    vm.run_guest(0, &write(L2_TABLES.raw()));
    let lines = lines(&mut vm);
    let made_writable =
        |line: &String| line.contains("kvm_mmu_set_spte: gfn b") && line.contains("b77");
    assert!(!lines.iter().any(made_writable), "{lines:#?}");
    assert_eq!(lines.last().unwrap(), "NOTE exit HLT");
}

#[test]
fn l1_s_writes_to_tables_of_l2_are_seen() {
    upper_tables_are_watched::<TdpVm<Ept>>("ept-l4");
    upper_tables_are_watched::<ShadowVm<Ept>>("ept-l4-legacy-mmu");
}

/// What was split for the sake of execution becomes huge again, on either MMU.
fn recovered_pages_are_huge_again<V: PagedVm>(machine: &str) {
    let machine = Machine::named(machine).unwrap();
    let mut vm = V::on(&machine, VmType::Default, NxHugePages::On).unwrap();
    vm.create_vcpu(0);
    let hva = 0x7f00_0000_0000;
    vm.set_region(&Region::new(SlotKey::normal(0), 0, 4 << 20, hva));
    let huge = PageSize::Size2M;
    vm.host_mut().tell(Hva::new(hva), 0x8000, huge);
    vm.host_mut().tell(Hva::new(hva + (2 << 20)), 0x8200, huge);
    vm.run_guest(0, &Activity::halt(Gpa::new(0x1000)));
    assert_eq!(vm.leaves().pages_2m, 0, "it executes there");
    assert_eq!(vm.recover_nx(60), 1);
    let _ = vm.take();
    vm.run_guest(
        0,
        &Activity::halt(Gpa::new(0x20_1000)).step(Kind::Read, 0x3000),
    );
    assert_eq!(vm.leaves().pages_2m, 1, "{:#?}", lines(&mut vm));
    assert_eq!(vm.recover_nx(0), 0);
}

#[test]
fn huge_pages_come_back_when_nobody_executes_in_them() {
    recovered_pages_are_huge_again::<TdpVm<Npt>>("npt-l4");
    recovered_pages_are_huge_again::<ShadowVm<Npt>>("npt-l4-legacy-mmu");
}

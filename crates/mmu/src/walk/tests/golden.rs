//! Single cases, each with the rule that it stands for: facts of Linux 6.12, many of them seen on a running kernel.

use std::cell::Cell;

use slat_memslot::{Gfn, Gpa, Gva, Level, PageSize};

use crate::access::Access;
use crate::fault::Kind;
use crate::host::ExecuteOnly;
use crate::role::{Cr0, Cr4, Efer, VcpuState};
use crate::walk::{
    AlignmentCheck, Cause, ErrorCode, Exchange, GuestCpu, GuestEntry, GuestPaging, GuestVendor,
    LeafSize, NestedEptRoot, PagingMode, PointerError, Pointers, Privilege, ReadOnly, TableMemory,
    WalkEvent, WalkFault,
};

const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const NX: u64 = 1 << 63;
const ALL: u64 = P | W | U;

/// Four-level paging with everything on that needs no special rights.
fn long_mode() -> VcpuState {
    VcpuState {
        cr0: Cr0::PG | Cr0::PE | Cr0::WP,
        cr4: Cr4::PAE,
        efer: Efer::LME | Efer::LMA | Efer::NX,
        ..VcpuState::default()
    }
}

fn cpu() -> GuestCpu {
    GuestCpu::new(46)
}

/// Tables at 0, 0x1000, 0x2000 and 0x3000, one entry each, for address 0.
fn tables(entries: [u64; 4]) -> Vec<Cell<u64>> {
    let memory = vec![Cell::new(0); 5 * 512];
    for (table, entry) in entries.into_iter().enumerate() {
        memory[table * 512].set(entry);
    }
    memory
}

fn chain(leaf: u64) -> Vec<Cell<u64>> {
    tables([0x1000 | ALL, 0x2000 | ALL, 0x3000 | ALL, leaf])
}

fn entries(memory: &[Cell<u64>]) -> [u64; 4] {
    [0, 1, 2, 3].map(|table| memory[table * 512].get())
}

fn fault(
    paging: &GuestPaging,
    memory: &[Cell<u64>],
    address: u64,
    access: ErrorCode,
) -> (u64, Level, Cause) {
    match paging.translate(memory, Gva::new(address), access) {
        Err(WalkFault::Page(fault)) => (fault.code.bits(), fault.level, fault.cause),
        other => panic!("no page fault: {other:?}"),
    }
}

#[test]
fn a_write_marks_all_levels_and_makes_the_leaf_dirty() {
    let memory = chain(0x5000 | ALL);
    let paging = GuestPaging::new(&long_mode(), &cpu());
    let mut events = Vec::new();
    let write = ErrorCode::of(Kind::Write, Privilege::User);
    let found = paging
        .walk(
            memory.as_slice(),
            &mut crate::walk::Unnested,
            &mut events,
            Gva::new(0xabc),
            write,
        )
        .expect("mapped");
    assert_eq!(
        (found.address, found.size),
        (Gpa::new(0x5abc), LeafSize::Size4K)
    );
    assert_eq!(found.rights, Access::EXECUTE | Access::WRITE | Access::USER);
    assert_eq!(
        entries(&memory),
        [
            0x1000 | ALL | A,
            0x2000 | ALL | A,
            0x3000 | ALL | A,
            0x5000 | ALL | A | D
        ]
    );
    let marks: Vec<Level> = events
        .iter()
        .filter_map(|event| match event {
            WalkEvent::Mark(mark) => Some(mark.level),
            _ => None,
        })
        .collect();
    assert_eq!(marks, [Level::L4, Level::L3, Level::L2, Level::L1]);
}

#[test]
fn a_read_leaves_the_leaf_clean_and_its_shadow_read_only() {
    let memory = chain(0x5000 | ALL);
    let paging = GuestPaging::new(&long_mode(), &cpu());
    let found = paging
        .translate(memory.as_slice(), Gva::new(0), ErrorCode::READ)
        .expect("mapped");
    assert_eq!(entries(&memory)[3], 0x5000 | ALL | A);
    assert_eq!(found.leaf, 0x5000 | ALL | A);
    assert_eq!(found.shadow_rights(), Access::EXECUTE | Access::USER);
}

#[test]
fn a_walk_that_fails_marks_nothing() {
    let memory = chain(0x5000 | P | U);
    let paging = GuestPaging::new(&long_mode(), &cpu());
    assert_eq!(
        fault(&paging, &memory, 0, ErrorCode::WRITE | ErrorCode::USER),
        (7, Level::L1, Cause::Write)
    );
    assert_eq!(
        entries(&memory),
        [0x1000 | ALL, 0x2000 | ALL, 0x3000 | ALL, 0x5000 | P | U]
    );
}

#[test]
fn tables_in_read_only_memory_are_walked_and_not_marked() {
    let memory = chain(0x5000 | ALL);
    let paging = GuestPaging::new(&long_mode(), &cpu());
    let found = paging.translate(&ReadOnly(memory.as_slice()), Gva::new(0), ErrorCode::WRITE);
    assert_eq!(found.expect("mapped").leaf, 0x5000 | ALL);
    assert_eq!(entries(&memory)[0], 0x1000 | ALL);
}

/// Every code that a running kernel has shown, at both privilege levels.
#[test]
fn error_codes() {
    let smep = VcpuState {
        cr4: Cr4::PAE | Cr4::SMEP | Cr4::SMAP,
        ..long_mode()
    };
    let paging = GuestPaging::new(&smep, &cpu());
    let (write, user, fetch) = (ErrorCode::WRITE, ErrorCode::USER, ErrorCode::FETCH);
    for (leaf, access, code, cause) in [
        (0, ErrorCode::READ, 0, Cause::NotPresent),
        (0x5000 | ALL, ErrorCode::READ, 0x1, Cause::Smap),
        (0, write, 0x2, Cause::NotPresent),
        (0x5000 | P, write, 0x3, Cause::Write),
        (0, user, 0x4, Cause::NotPresent),
        (0x5000 | P, user, 0x5, Cause::User),
        (0, write | user, 0x6, Cause::NotPresent),
        (0x5000 | P | U, write | user, 0x7, Cause::Write),
        (
            0x5000 | P | 1 << 50,
            ErrorCode::READ,
            0x9,
            Cause::Reserved { bits: 1 << 50 },
        ),
        (
            0x5000 | P | 1 << 50,
            write,
            0xb,
            Cause::Reserved { bits: 1 << 50 },
        ),
        (
            0x5000 | P | 1 << 50,
            user,
            0xd,
            Cause::Reserved { bits: 1 << 50 },
        ),
        (
            0x5000 | P | 1 << 50,
            write | user,
            0xf,
            Cause::Reserved { bits: 1 << 50 },
        ),
        (0, fetch, 0x10, Cause::NotPresent),
        (0x5000 | ALL, fetch, 0x11, Cause::Smep),
        (0x5000 | P | NX, fetch, 0x11, Cause::Fetch),
        (0, fetch | user, 0x14, Cause::NotPresent),
        (0x5000 | ALL | NX, fetch | user, 0x15, Cause::Fetch),
        (
            0x5000 | P | 1 << 50,
            fetch,
            0x19,
            Cause::Reserved { bits: 1 << 50 },
        ),
        (
            0x5000 | P | 1 << 50,
            fetch | user,
            0x1d,
            Cause::Reserved { bits: 1 << 50 },
        ),
    ] {
        let memory = chain(leaf);
        assert_eq!(
            fault(&paging, &memory, 0, access),
            (code, Level::L1, cause),
            "{leaf:#x}"
        );
    }
}

#[test]
fn fetches_are_told_with_nx_or_smep_only() {
    let memory = chain(0);
    for (efer, cr4, code) in [
        (Efer::LMA, Cr4::PAE, 0x4),
        (Efer::LMA | Efer::NX, Cr4::PAE, 0x14),
        (Efer::LMA, Cr4::PAE | Cr4::SMEP, 0x14),
    ] {
        let paging = GuestPaging::new(
            &VcpuState {
                efer,
                cr4,
                ..long_mode()
            },
            &cpu(),
        );
        let fetch = ErrorCode::of(Kind::Execute, Privilege::User);
        assert_eq!(fault(&paging, &memory, 0, fetch).0, code);
    }
}

#[test]
fn smap_is_lifted_by_ac_for_explicit_accesses_only() {
    let memory = chain(0x5000 | ALL);
    let vcpu = VcpuState {
        cr4: Cr4::PAE | Cr4::SMAP,
        ..long_mode()
    };
    let paging = GuestPaging::new(&vcpu, &cpu());
    let lifted = paging.with_alignment_check(AlignmentCheck::of(0x4_0002));
    let implicit = ErrorCode::of(Kind::Read, Privilege::Implicit);
    assert_eq!(fault(&paging, &memory, 0, ErrorCode::READ).2, Cause::Smap);
    assert!(
        lifted
            .translate(memory.as_slice(), Gva::new(0), ErrorCode::READ)
            .is_ok()
    );
    assert_eq!(
        fault(&lifted, &memory, 0, implicit),
        (1, Level::L1, Cause::Smap)
    );
}

#[test]
fn supervisor_writes_ignore_read_only_pages_without_wp() {
    let vcpu = VcpuState {
        cr0: Cr0::PG | Cr0::PE,
        ..long_mode()
    };
    let memory = chain(0x5000 | P);
    let paging = GuestPaging::new(&vcpu, &cpu());
    assert!(
        paging
            .translate(memory.as_slice(), Gva::new(0), ErrorCode::WRITE)
            .is_ok()
    );
    assert_eq!(entries(&memory)[3], 0x5000 | P | A | D);
}

#[test]
fn protection_keys() {
    let key = |n: u64| n << 59;
    let vcpu = VcpuState {
        cr4: Cr4::PAE | Cr4::PKE,
        // Key 1 cannot be accessed, key 2 not written.
        pkru: 0b10_01_00,
        ..long_mode()
    };
    let paging = GuestPaging::new(&vcpu, &cpu());
    let (write, user, fetch) = (ErrorCode::WRITE, ErrorCode::USER, ErrorCode::FETCH);
    let memory = chain(0x5000 | ALL | key(1));
    assert_eq!(
        fault(&paging, &memory, 0, user),
        (0x25, Level::L1, Cause::ProtectionKey { key: 1 })
    );
    assert_eq!(fault(&paging, &memory, 0, ErrorCode::READ).0, 0x21);
    assert!(
        paging
            .translate(memory.as_slice(), Gva::new(0), user | fetch)
            .is_ok()
    );
    let memory = chain(0x5000 | ALL | key(2));
    assert_eq!(fault(&paging, &memory, 0, write).0, 0x23);
    assert!(
        paging
            .translate(memory.as_slice(), Gva::new(0), user)
            .is_ok()
    );
    // Supervisor pages have no key, and a rule that is broken anyway is told beside the key.
    let memory = chain(0x5000 | P | W | key(1));
    assert!(
        paging
            .translate(memory.as_slice(), Gva::new(0), write)
            .is_ok()
    );
    let memory = chain(0x5000 | P | U | key(1));
    assert_eq!(
        fault(&paging, &memory, 0, write | user),
        (0x27, Level::L1, Cause::Write)
    );
}

#[test]
fn bits_of_upper_entries() {
    let with = |vendor| GuestCpu { vendor, ..cpu() };
    let global = tables([
        0x1000 | ALL | 1 << 8,
        0x2000 | ALL,
        0x3000 | ALL,
        0x5000 | ALL,
    ]);
    let intel = GuestPaging::new(&long_mode(), &with(GuestVendor::Intel));
    let amd = GuestPaging::new(&long_mode(), &with(GuestVendor::Amd));
    assert!(
        intel
            .translate(global.as_slice(), Gva::new(0), ErrorCode::READ)
            .is_ok()
    );
    assert_eq!(
        fault(&amd, &global, 0, ErrorCode::READ),
        (9, Level::L4, Cause::Reserved { bits: 1 << 8 })
    );
    let large = tables([0x1000 | ALL | PS, 0, 0, 0]);
    assert_eq!(
        fault(&intel, &large, 0, ErrorCode::READ).2,
        Cause::Reserved { bits: PS }
    );
    // Bits 62 to 52 are ignored in long mode, as is the PAT bit of a huge page.
    let ignored = tables([
        0x1000 | ALL | 0x7ff << 52,
        0x2000 | ALL,
        0x40_0000 | ALL | PS | 1 << 12,
        0,
    ]);
    assert!(
        intel
            .translate(ignored.as_slice(), Gva::new(0), ErrorCode::READ)
            .is_ok()
    );
    let unaligned = tables([
        0x1000 | ALL,
        0x2000 | ALL,
        0x40_0000 | ALL | PS | 1 << 13,
        0,
    ]);
    assert_eq!(
        fault(&intel, &unaligned, 0, ErrorCode::READ),
        (9, Level::L2, Cause::Reserved { bits: 1 << 13 })
    );
}

#[test]
fn one_gibibyte_needs_the_cpuid_bit() {
    let memory = tables([0x1000 | ALL, 1 << 30 | ALL | PS, 0, 0]);
    let paging = GuestPaging::new(&long_mode(), &cpu());
    let found = paging
        .translate(memory.as_slice(), Gva::new(0x1234_5678), ErrorCode::READ)
        .expect("mapped");
    assert_eq!(
        (found.address, found.size),
        (Gpa::new(0x5234_5678), LeafSize::Size1G)
    );
    let small = GuestCpu {
        largest_page: PageSize::Size2M,
        ..cpu()
    };
    let paging = GuestPaging::new(&long_mode(), &small);
    assert_eq!(
        fault(&paging, &memory, 0, ErrorCode::READ),
        (9, Level::L3, Cause::Reserved { bits: PS })
    );
}

#[test]
fn addresses_that_are_not_canonical_are_no_page_faults() {
    let memory = chain(0x5000 | ALL);
    let paging = GuestPaging::new(&long_mode(), &cpu());
    for (address, canonical) in [
        (0x7fff_ffff_ffff, true),
        (0x8000_0000_0000, false),
        (0xffff_8000_0000_0000, true),
        (0xffff_7fff_ffff_ffff, false),
    ] {
        assert_eq!(
            paging.is_canonical(Gva::new(address)),
            canonical,
            "{address:#x}"
        );
    }
    let odd = Gva::new(1 << 60);
    assert_eq!(
        paging.translate(memory.as_slice(), odd, ErrorCode::READ),
        Err(WalkFault::NonCanonical { address: odd })
    );
    // KVM_TRANSLATE does not care.
    let found = paging
        .kvm_translate(memory.as_slice(), odd)
        .expect("mapped");
    assert_eq!(found.address, Gpa::new(0x5000));
    let five = VcpuState {
        cr4: Cr4::PAE | Cr4::LA57,
        ..long_mode()
    };
    let five = GuestPaging::new(&five, &cpu());
    assert_eq!(five.mode(), PagingMode::Level5);
    assert!(five.is_canonical(Gva::new(0xff_ffff_ffff_ffff)));
    assert!(!five.is_canonical(Gva::new(0x100_0000_0000_0000)));
}

#[test]
fn pages_of_4_mib_reach_beyond_4_gib() {
    let memory = vec![Cell::new(0_u64); 512];
    // Entry 1: 4 MiB at 0x9_0080_0000; entry 0 is empty.
    memory[0].set((0x0080_0000 | 9 << 13 | ALL | PS) << 32);
    let vcpu = |cr4| VcpuState {
        cr0: Cr0::PG | Cr0::PE,
        cr4,
        ..VcpuState::default()
    };
    let paging = GuestPaging::new(&vcpu(Cr4::PSE), &cpu());
    let found = paging
        .translate(memory.as_slice(), Gva::new(0x40_1234), ErrorCode::READ)
        .expect("mapped");
    assert_eq!(
        (found.address, found.size),
        (Gpa::new(0x9_0080_1234), LeafSize::Size4M)
    );
    // Without PSE bit 7 means nothing and the entry is a table, which is not in memory.
    let paging = GuestPaging::new(&vcpu(Cr4::empty()), &cpu());
    assert_eq!(
        fault(&paging, &memory, 0x40_1234, ErrorCode::READ),
        (0, Level::L1, Cause::NoMemory)
    );
    memory[0].set((1 << 17 | ALL | PS) << 32);
    let paging = GuestPaging::new(&vcpu(Cr4::PSE), &cpu());
    assert_eq!(
        fault(&paging, &memory, 0x40_1234, ErrorCode::READ),
        (9, Level::L2, Cause::Reserved { bits: 1 << 17 })
    );
}

/// SDM volume 3, tables 5-4 and 5-5 and section 5.7: what KVM's walker knows less of.
#[test]
fn hardware_has_wider_pse_and_tells_fewer_fetches() {
    let memory = vec![Cell::new(0_u64); 512];
    memory[0].set((1 << 20 | 1 << 17 | ALL | PS) << 32);
    let vcpu = VcpuState {
        cr0: Cr0::PG | Cr0::PE,
        cr4: Cr4::PSE,
        efer: Efer::NX,
        ..VcpuState::default()
    };
    let wide = GuestPaging::new(&vcpu, &cpu()).by_hardware();
    let found = wide.translate(memory.as_slice(), Gva::new(0x40_1234), ErrorCode::READ);
    assert_eq!(
        found.map(|found| found.address),
        Ok(Gpa::new(0x90_0000_1234))
    );
    for (maxphyaddr, reserved) in [(40, 0), (39, 1 << 20), (36, 1 << 20 | 1 << 17)] {
        let paging = GuestPaging::new(&vcpu, &GuestCpu::new(maxphyaddr)).by_hardware();
        let answer = paging.translate(memory.as_slice(), Gva::new(0x40_1234), ErrorCode::READ);
        let bits = match answer {
            Err(WalkFault::Page(fault)) => fault.cause,
            _ => Cause::Reserved { bits: 0 },
        };
        assert_eq!(bits, Cause::Reserved { bits: reserved }, "{maxphyaddr}");
    }
    let fetch = ErrorCode::FETCH | ErrorCode::USER;
    let kvm = GuestPaging::new(&vcpu, &cpu());
    assert_eq!(fault(&kvm, &memory, 0, fetch).0, 0x14);
    assert_eq!(fault(&kvm.by_hardware(), &memory, 0, fetch).0, 4);
    let smep = VcpuState {
        cr4: Cr4::PSE | Cr4::SMEP,
        ..vcpu
    };
    let smep = GuestPaging::new(&smep, &cpu()).by_hardware();
    assert_eq!(fault(&smep, &memory, 0, fetch).0, 0x14);
    let pae = VcpuState {
        cr4: Cr4::PAE,
        ..vcpu
    };
    let pae = GuestPaging::new(&pae, &cpu()).by_hardware();
    assert_eq!(fault(&pae, &memory, 0, fetch).0, 0x14);
}

#[test]
fn pointers_of_pae_are_registers_and_never_marked() {
    let memory = vec![Cell::new(0_u64); 2 * 512];
    memory[4].set(0x1000 | P);
    memory[5].set(0x1000 | P | 1 << 1);
    memory[512].set(0x20_0000 | ALL | PS);
    let vcpu = VcpuState {
        cr0: Cr0::PG | Cr0::PE,
        cr3: 0x20,
        cr4: Cr4::PAE,
        ..VcpuState::default()
    };
    let paging = GuestPaging::new(&vcpu, &cpu());
    assert_eq!(paging.mode(), PagingMode::Pae);
    assert_eq!(
        paging.with_loaded_pointers(memory.as_slice()),
        Err(PointerError::Reserved {
            index: 1,
            value: 0x1003,
            bits: 2
        })
    );
    memory[5].set(0);
    let paging = paging
        .with_loaded_pointers(memory.as_slice())
        .expect("loaded");
    let found = paging
        .translate(memory.as_slice(), Gva::new(0x1_2345), ErrorCode::READ)
        .expect("mapped");
    assert_eq!(found.address, Gpa::new(0x21_2345));
    assert_eq!(memory[4].get(), 0x1000 | P);
    assert_eq!(
        fault(&paging, &memory, 0x4000_0000, ErrorCode::USER),
        (4, Level::L3, Cause::NotPresent)
    );
    // What memory says later does not count.
    memory[4].set(0);
    assert!(
        paging
            .translate(memory.as_slice(), Gva::new(0), ErrorCode::READ)
            .is_ok()
    );
    let outside = Pointers::load(memory.as_slice(), 1 << 20, &cpu());
    assert_eq!(
        outside,
        Err(PointerError::NoMemory {
            at: Gpa::new(1 << 20)
        })
    );
}

#[test]
fn ept_of_a_nested_hypervisor() {
    let (rwx, write_back) = (7, 6 << 3);
    let memory = tables([
        0x1000 | rwx,
        0x2000 | rwx,
        0x3000 | rwx,
        0x5000 | 5 | write_back,
    ]);
    let root = NestedEptRoot::of(0x5e, ExecuteOnly::Unsupported);
    let paging = GuestPaging::nested_ept(&root, &cpu());
    let gpa = Gva::new(0x123);
    let read = ErrorCode::USER;
    let found = paging
        .translate(memory.as_slice(), gpa, read)
        .expect("mapped");
    assert_eq!(found.address, Gpa::new(0x5123));
    assert_eq!(found.rights, Access::USER | Access::EXECUTE);
    assert_eq!(entries(&memory)[3], 0x5000 | 5 | write_back | 1 << 8);
    assert_eq!(
        fault(&paging, &memory, 0x123, ErrorCode::WRITE),
        (3, Level::L1, Cause::Write)
    );
    // A misconfiguration: writable and not readable.
    memory[3 * 512].set(0x5000 | 2 | write_back);
    assert_eq!(
        fault(&paging, &memory, 0x123, read),
        (
            0xd,
            Level::L1,
            Cause::Reserved {
                bits: 2 | write_back
            }
        )
    );
    // Without A/D bits nothing is marked, and nothing has to be dirty.
    let plain = NestedEptRoot::of(0x1e, ExecuteOnly::Unsupported);
    memory[3 * 512].set(0x5000 | 7 | write_back);
    let paging = GuestPaging::nested_ept(&plain, &cpu());
    let found = paging
        .translate(memory.as_slice(), gpa, read)
        .expect("mapped");
    assert!(found.dirty && found.shadow_rights().contains(Access::WRITE));
    assert_eq!(entries(&memory)[3], 0x5000 | 7 | write_back);
}

/// Another vCPU changes the leaf between the walk and its mark.
struct Changing {
    memory: Vec<Cell<u64>>,
    left: Cell<u32>,
}

impl TableMemory for Changing {
    fn read_u64(&self, at: Gpa) -> Option<u64> {
        self.memory.as_slice().read_u64(at)
    }

    fn compare_exchange_u64(&self, at: Gpa, current: u64, new: u64) -> Exchange {
        if at == Gpa::new(0x3000) && self.left.get() > 0 {
            self.left.set(self.left.get() - 1);
            self.memory[3 * 512].set(0x6000 | ALL);
            return Exchange::Changed;
        }
        self.memory
            .as_slice()
            .compare_exchange_u64(at, current, new)
    }
}

#[test]
fn a_changed_entry_starts_the_walk_again() {
    let memory = Changing {
        memory: chain(0x5000 | ALL),
        left: Cell::new(3),
    };
    let paging = GuestPaging::new(&long_mode(), &cpu());
    let mut events = Vec::new();
    let found = paging.walk(
        &memory,
        &mut crate::walk::Unnested,
        &mut events,
        Gva::new(0),
        ErrorCode::READ,
    );
    assert_eq!(found.expect("mapped").address, Gpa::new(0x6000));
    let restarts = events.iter().filter(|event| **event == WalkEvent::Restart);
    assert_eq!(restarts.count(), 3);
}

#[test]
fn single_entries_read_as_in_a_walk() {
    let paging = GuestPaging::new(&long_mode(), &cpu());
    let all = Access::EXECUTE | Access::WRITE | Access::USER;
    assert_eq!(
        paging.entry(0x7000 | ALL | A, Level::L3),
        GuestEntry::Table {
            gfn: Gfn::new(7),
            rights: all,
            accessed: true
        }
    );
    assert_eq!(
        paging.entry(0x40_0000 | P | PS | NX | D, Level::L2),
        GuestEntry::Leaf {
            gfn: Gfn::new(0x400),
            size: LeafSize::Size2M,
            rights: Access::empty(),
            accessed: false,
            dirty: true
        }
    );
    assert_eq!(paging.entry(W, Level::L1), GuestEntry::Absent);
    assert_eq!(
        paging.entry(P | PS, Level::L4),
        GuestEntry::Reserved { bits: PS }
    );
}

/// A page-directory pointer has no rights of its own; bits that are reserved in it were seen to when it was loaded. Entries of four bytes
/// forbid no execution, and without paging there are none.
#[test]
fn single_entries_read_as_the_mode_has_them() {
    let long = long_mode();
    let table = |rights, accessed| GuestEntry::Table {
        gfn: Gfn::new(7),
        rights,
        accessed,
    };
    let all = Access::EXECUTE | Access::WRITE | Access::USER;
    let pae = VcpuState {
        efer: Efer::NX,
        ..long
    };
    let paging = GuestPaging::new(&pae, &cpu());
    assert_eq!(paging.entry(0x7000 | P, Level::L3), table(all, true));
    assert_eq!(paging.entry(0x7000, Level::L3), GuestEntry::Absent);
    let below = paging.entry(0x7000 | P, Level::L2);
    assert_eq!(below, table(Access::EXECUTE, false));
    let bits_32 = VcpuState {
        cr4: Cr4::PSE,
        efer: Efer::empty(),
        ..long
    };
    let paging = GuestPaging::new(&bits_32, &cpu());
    assert_eq!(
        paging.entry(0x7000 | P | W | A, Level::L2),
        table(Access::EXECUTE | Access::WRITE, true)
    );
    let leaf = paging.entry(0x40_0000 | P | PS, Level::L2);
    let expected = GuestEntry::Leaf {
        gfn: Gfn::new(0x400),
        size: LeafSize::Size4M,
        rights: Access::EXECUTE,
        accessed: false,
        dirty: false,
    };
    assert_eq!(leaf, expected);
    let unpaged = VcpuState {
        cr0: Cr0::PE,
        ..long
    };
    let paging = GuestPaging::new(&unpaged, &cpu());
    assert_eq!(paging.entry(0x7000 | ALL, Level::L1), GuestEntry::Absent);
}

//! Random tables, registers and accesses against the reference: outcome, error code, CR2, and all of memory afterwards.

use std::cell::Cell;

use proptest::prelude::*;
use slat_memslot::{Gva, PageSize};

use super::reference::{self, Answer, Cpu, Ept, Wanted};
use crate::host::ExecuteOnly;
use crate::role::{AccessDirty, Cr0, Cr4, Efer, NestedEptDepth, VcpuState};
use crate::walk::{
    AlignmentCheck, ErrorCode, GuestCpu, GuestPaging, GuestVendor, NestedEptRoot, Pointers,
    Translation, WalkFault,
};

/// Pages of memory, each of them a table of any level.
const PAGES: u64 = 8;
const WORDS: usize = PAGES as usize * 512;

/// An entry before it is put into a format.
#[derive(Clone, Copy, Debug)]
struct Raw {
    page: u64,
    flags: u64,
    large: bool,
    no_execute: bool,
    flip: Option<u32>,
}

fn any_raw() -> impl Strategy<Value = Raw> {
    let page = prop_oneof![20 => 0..PAGES, 1 => PAGES..PAGES + 4];
    let flags = prop_oneof![3 => Just(0x67_u64), 2 => Just(7), 1 => any::<u64>().prop_map(|bits| bits & 0x66 | 1)];
    let flip = prop_oneof![12 => Just(None), 1 => (0..64_u32).prop_map(Some)];
    let (large, no_execute) = (prop::bool::weighted(0.12), prop::bool::weighted(0.06));
    (page, flags, large, no_execute, flip).prop_map(|(page, flags, large, no_execute, flip)| Raw {
        page,
        flags,
        large,
        no_execute,
        flip,
    })
}

/// The places of a table that addresses use.
const INDEXES: [u64; 4] = [0, 1, 5, 511];

fn any_index() -> impl Strategy<Value = u64> {
    prop::sample::select(INDEXES.to_vec())
}

fn any_cpu() -> impl Strategy<Value = Cpu> {
    let mode = (0..7_u32, any::<[bool; 9]>(), any::<[bool; 3]>());
    let pointers = any::<[u8; 4]>().prop_map(|pages| {
        pages.map(|page| ((u64::from(page) % PAGES) << 12) | u64::from(page < 240))
    });
    let width = prop_oneof![4 => 36..=52_u32, 1 => Just(64)];
    (mode, any::<u32>(), pointers, width, 0..PAGES).prop_map(
        |((mode, on, more), pkru, pointers, maxphyaddr, root)| {
            let [pse, wp, nxe, smep, smap, pke, ac, amd, gigabyte_pages] = on;
            let [five_levels, marks, execute_only] = more;
            Cpu {
                paging: mode != 0,
                pae: mode >= 2,
                long: mode >= 3,
                la57: mode == 4,
                ept: (mode >= 5).then_some(Ept {
                    five_levels,
                    marks,
                    execute_only,
                }),
                pse,
                wp,
                nxe,
                smep,
                smap,
                pke,
                ac,
                amd,
                gigabyte_pages,
                pkru,
                pointers,
                maxphyaddr,
                root: root << 12,
            }
        },
    )
}

fn any_access() -> impl Strategy<Value = Wanted> {
    let parts = prop::collection::vec(any_index(), 5);
    let odd = prop_oneof![30 => Just(0_u64), 1 => any::<u64>()];
    (
        parts,
        0..4096_u64,
        any::<bool>(),
        0..3_u32,
        any::<bool>(),
        odd,
    )
        .prop_map(|(parts, offset, user, kind, implicit, odd)| {
            let address = parts.iter().fold(0, |address, part| address << 9 | part) << 12 | offset;
            Wanted {
                address: address ^ odd,
                user: user && !implicit,
                write: kind == 1,
                fetch: kind == 2,
                implicit,
            }
        })
}

impl Cpu {
    /// An address that the mode takes, most of the time.
    fn canonical(&self, address: u64, wild: bool) -> u64 {
        let bits = if self.la57 { 57 } else { 48 };
        match self.long && self.ept.is_none() && !wild {
            true => ((address << (64 - bits)) as i64 >> (64 - bits)) as u64,
            false => address,
        }
    }

    fn paging(&self) -> GuestPaging {
        let cpu = GuestCpu {
            maxphyaddr: u8::try_from(self.maxphyaddr).expect("small"),
            vendor: if self.amd {
                GuestVendor::Amd
            } else {
                GuestVendor::Intel
            },
            largest_page: if self.gigabyte_pages {
                PageSize::Size1G
            } else {
                PageSize::Size2M
            },
            c_bit: None,
        };
        if let Some(ept) = self.ept {
            let root = NestedEptRoot {
                pointer: self.root,
                depth: if ept.five_levels {
                    NestedEptDepth::Five
                } else {
                    NestedEptDepth::Four
                },
                access_dirty: if ept.marks {
                    AccessDirty::Hardware
                } else {
                    AccessDirty::Software
                },
                execute_only: if ept.execute_only {
                    ExecuteOnly::Supported
                } else {
                    ExecuteOnly::Unsupported
                },
            };
            return GuestPaging::nested_ept(&root, &cpu);
        }
        let cr0 = [(Cr0::PE, true), (Cr0::PG, self.paging), (Cr0::WP, self.wp)];
        let cr4 = [
            (Cr4::PAE, self.pae),
            (Cr4::PSE, self.pse),
            (Cr4::LA57, self.la57),
            (Cr4::SMEP, self.smep),
            (Cr4::SMAP, self.smap),
            (Cr4::PKE, self.pke),
        ];
        let efer = [(Efer::LME | Efer::LMA, self.long), (Efer::NX, self.nxe)];
        let vcpu = VcpuState {
            cr0: cr0
                .iter()
                .filter(|(_, on)| *on)
                .map(|(bit, _)| *bit)
                .collect(),
            cr4: cr4
                .iter()
                .filter(|(_, on)| *on)
                .map(|(bit, _)| *bit)
                .collect(),
            efer: efer
                .iter()
                .filter(|(_, on)| *on)
                .map(|(bit, _)| *bit)
                .collect(),
            cr3: self.root,
            pkru: self.pkru,
            ..VcpuState::default()
        };
        GuestPaging::new(&vcpu, &cpu)
            .with_pointers(Pointers(self.pointers))
            .with_alignment_check(if self.ac {
                AlignmentCheck::Set
            } else {
                AlignmentCheck::Clear
            })
    }

    /// An entry in this format.
    fn entry(&self, raw: Raw) -> u64 {
        let mut flags = raw.flags;
        if self.ept.is_some() {
            // Reading, writing and executing as the bits fall, write-back leaves, A and D at their places.
            flags = raw.flags & 7 | (raw.flags & 0x60) << 3;
        } else if self.pae {
            flags |= u64::from(raw.no_execute) << 63;
        }
        let large = u64::from(raw.large) << 7;
        let entry = raw.page << 12 | flags | large;
        // Large pages begin at 0, or their low address bits are reserved; those of 4 MiB have some that are not.
        let entry = match (raw.large, self.is_wide()) {
            (false, _) => entry,
            (true, true) => entry & (1 << 63 | 0xfff),
            (true, false) => entry & 0xfff | (raw.page & 3) << 13 | (raw.page >> 2) << 17,
        };
        let flip = match raw.flip {
            Some(bit) if self.is_wide() || bit < 32 => 1 << bit,
            _ => 0,
        };
        entry ^ flip
    }

    /// Whether entries have eight bytes.
    fn is_wide(&self) -> bool {
        self.pae || self.ept.is_some()
    }
}

fn memory(cpu: &Cpu, raws: &[Raw]) -> Vec<u64> {
    let mut words = vec![0_u64; WORDS];
    for (page, raws) in raws.chunks_exact(INDEXES.len()).enumerate() {
        let entries: Vec<u64> = raws.iter().map(|raw| cpu.entry(*raw)).collect();
        let page = &mut words[page * 512..][..512];
        if cpu.is_wide() {
            for (index, entry) in INDEXES.iter().zip(&entries) {
                page[*index as usize] = *entry;
            }
        } else {
            // Addresses choose any entry of four bytes: the four alternate.
            for (index, word) in page.iter_mut().enumerate() {
                let entry = |half: usize| entries[(2 * index + half) % entries.len()];
                *word = entry(0) | entry(1) << 32;
            }
        }
    }
    words
}

fn code_of(wanted: Wanted) -> ErrorCode {
    [
        (ErrorCode::WRITE, wanted.write),
        (ErrorCode::USER, wanted.user),
        (ErrorCode::FETCH, wanted.fetch),
        (ErrorCode::IMPLICIT_ACCESS, wanted.implicit),
    ]
    .iter()
    .filter(|(_, on)| *on)
    .map(|(bit, _)| *bit)
    .collect()
}

fn answer(result: Result<Translation, WalkFault>, address: u64) -> Answer {
    match result {
        Ok(found) => Answer::Gpa(found.address.raw()),
        Err(WalkFault::NonCanonical { .. }) => Answer::NotCanonical,
        Err(WalkFault::Page(fault)) => {
            assert_eq!(fault.address.raw(), address, "CR2");
            Answer::Fault(fault.code.bits())
        }
        Err(WalkFault::Second { fault, .. }) => match fault {},
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn walks_do_what_the_manuals_say(
        cpu in any_cpu(),
        raws in prop::collection::vec(any_raw(), PAGES as usize * INDEXES.len()),
        accesses in prop::collection::vec(any_access(), 4),
    ) {
        let mut expected = memory(&cpu, &raws);
        let walked: Vec<Cell<u64>> = expected.iter().map(|word| Cell::new(*word)).collect();
        let paging = cpu.paging();
        for wanted in accesses {
            let address = cpu.canonical(wanted.address, wanted.address & 15 == 3);
            let wanted = Wanted { address, ..wanted };
            let before = paging.translate(
                expected.as_slice(), Gva::new(address), code_of(wanted));
            let should = reference::access(&mut expected, &cpu, wanted);
            let result = paging.translate(walked.as_slice(), Gva::new(address), code_of(wanted));
            prop_assert_eq!(answer(result, address), should, "{:?}", wanted);
            // Without marks the answer is the same.
            prop_assert_eq!(answer(before, address), should);
            for (index, (left, right)) in walked.iter().zip(&expected).enumerate() {
                prop_assert_eq!(left.get(), *right, "entry at {:#x}, {:?}", index * 8, wanted);
            }
        }
    }
}

/// A batch answers as single walks do, and leaves memory as they do.
#[test]
fn batches_are_many_walks() {
    let config = ProptestConfig {
        cases: 1000,
        ..ProptestConfig::default()
    };
    let raws = prop::collection::vec(any_raw(), PAGES as usize * INDEXES.len());
    let accesses = prop::collection::vec(any_access(), 1..40);
    proptest!(config, |(cpu in any_cpu(), raws in raws, accesses in accesses)| {
        let single: Vec<Cell<u64>> = memory(&cpu, &raws).into_iter().map(Cell::new).collect();
        let batch = single.clone();
        let paging = cpu.paging();
        let code = code_of(accesses[0]);
        let addresses: Vec<Gva> = accesses
            .iter()
            .map(|wanted| Gva::new(cpu.canonical(wanted.address, wanted.address & 15 == 3)))
            .collect();
        // Marks are the tables' own entries here, which later walks read: both sides walk twice.
        for _ in 0..2 {
            let mut answers = Vec::new();
            paging.translate_batch(batch.as_slice(), addresses.iter().copied(), code, |address, found| {
                answers.push((address, answer(found, address.raw())));
            });
            let one_by_one: Vec<_> = addresses
                .iter()
                .map(|address| (*address, answer(paging.translate(single.as_slice(), *address, code), address.raw())))
                .collect();
            prop_assert_eq!(answers, one_by_one);
            prop_assert_eq!(&batch, &single);
        }
    });
}

/// The generator reaches deep walks and every kind of end, in every mode.
#[test]
fn random_cases_come_to_every_end() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    use std::collections::BTreeMap;

    let mut runner = TestRunner::deterministic();
    let mut ends = BTreeMap::<(&str, &str), u32>::new();
    for _ in 0..20_000 {
        let mut value =
            |strategy: BoxedStrategy<Cpu>| strategy.new_tree(&mut runner).expect("cpu").current();
        let cpu = value(any_cpu().boxed());
        let raws = prop::collection::vec(any_raw(), PAGES as usize * INDEXES.len());
        let raws = raws.new_tree(&mut runner).expect("tables").current();
        let wanted = any_access()
            .new_tree(&mut runner)
            .expect("access")
            .current();
        let address = cpu.canonical(wanted.address, false);
        let words = memory(&cpu, &raws);
        let end = match cpu
            .paging()
            .translate(words.as_slice(), Gva::new(address), code_of(wanted))
        {
            Ok(_) => "translated",
            Err(WalkFault::Page(fault)) if fault.code.contains(ErrorCode::PK) => "key",
            Err(WalkFault::Page(fault)) if fault.code.contains(ErrorCode::RSVD) => "reserved",
            Err(WalkFault::Page(fault)) if fault.code.contains(ErrorCode::PRESENT) => "forbidden",
            Err(_) => "absent",
        };
        let mode = match cpu.paging().mode() {
            crate::walk::PagingMode::Unpaged => continue,
            crate::walk::PagingMode::Bits32 | crate::walk::PagingMode::Bits32Pse => "32-bit",
            crate::walk::PagingMode::Pae => "PAE",
            crate::walk::PagingMode::Level4 => "4",
            crate::walk::PagingMode::Level5 => "5",
            crate::walk::PagingMode::Ept4 | crate::walk::PagingMode::Ept5 => "EPT",
        };
        *ends.entry((mode, end)).or_default() += 1;
    }
    for mode in ["32-bit", "PAE", "4", "5", "EPT"] {
        for end in ["translated", "absent", "reserved", "forbidden"] {
            let count = ends.get(&(mode, end)).copied().unwrap_or(0);
            assert!(count >= 40, "{mode} {end}: {count} of 20000, {ends:?}");
        }
    }
    assert!(
        ends.get(&("4", "key")).is_some_and(|count| *count >= 10),
        "{ends:?}"
    );
}

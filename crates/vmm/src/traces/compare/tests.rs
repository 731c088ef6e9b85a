//! Predictions made from the recordings themselves, right and wrong ones.

mod perfect;
mod wrong;

use std::collections::BTreeMap;

use slat_memslot::{AsId, Gfn, Gpa, Level, Pages};
use slat_mmu::host::{HardwareAd, Host};
use slat_mmu::role::{PageRole, RoleLayout};
use slat_mmu::shadow::{PageId, PageInfo, ValidGeneration};
use slat_mmu::spte::{Codec, Ept, Format, Npt, bits};

use self::perfect::Perfect;
use self::wrong::wrong;
use super::{Comparer, Difference, Kind, Kinds, Mismatch, Predicted};
use crate::traces::{Builtin, Item, Leaves, Machine, MmuCounts, Recording, What};

const EMPTY: u64 = 1 << 63;
const FROZEN: u64 = 1 << 63 | 0x5a0;

fn npt() -> Codec<Npt> {
    Codec::new(&Host::npt(40))
}

fn ept() -> Codec<Ept> {
    Codec::new(&Host::ept(40))
}

fn ept_without_ad() -> Codec<Ept> {
    Codec::new(&Host {
        hardware_ad: HardwareAd::Off,
        ..Host::ept(40)
    })
}

fn changed(gfn: u64, level: Level, old: u64, new: u64) -> Predicted {
    Predicted::SpteChanged {
        as_id: AsId::NORMAL,
        gfn: Gfn::new(gfn),
        level,
        old,
        new,
    }
}

/// The line of such a change, as recorded.
fn line(gfn: u64, level: Level, old: u64, new: u64) -> String {
    let level = level as u8;
    format!(
        "  kvm_tdp_mmu_spte_changed: as id 0 gfn {gfn:x} level {level} old_spte {old:x} new_spte {new:x}\n"
    )
}

/// Compares changes: what is predicted, and what is recorded.
fn compare<F: Format>(
    codec: Codec<F>,
    changes: &[(u64, Level, [u64; 2], [u64; 2])],
) -> Result<Vec<u64>, Mismatch> {
    let (mut predicted, mut text) = (Vec::new(), String::new());
    for (gfn, level, ours, theirs) in changes {
        predicted.push(changed(*gfn, *level, ours[0], ours[1]));
        text += &line(*gfn, *level, theirs[0], theirs[1]);
    }
    let recording = Recording::parse(&text).expect("a recording");
    match Comparer::new(codec).compare(&predicted, &recording.items) {
        Ok(agreement) => {
            assert_eq!(agreement.compared, changes.len());
            Ok(agreement.adopted.iter().map(|one| one.bits).collect())
        }
        Err(difference) => Err(difference.mismatch),
    }
}

#[test]
fn tables_are_renamed_one_to_one() {
    let link = |table: u64| table << 12 | 0x827;
    let l2 = Level::L2;
    let add = |gfn, ours, theirs| (gfn, l2, [EMPTY, link(ours)], [EMPTY, link(theirs)]);
    let drop = |gfn, ours, theirs| (gfn, l2, [link(ours), FROZEN], [link(theirs), FROZEN]);
    let agreed = compare(
        npt(),
        &[add(0, 1, 0x142), add(0x200, 2, 0x99), drop(0, 1, 0x142)],
    );
    assert_eq!(agreed, Ok(vec![]));
    // A number and a frame are free again when the table is gone, each on its own.
    let agreed = compare(
        npt(),
        &[
            add(0, 1, 0x142),
            drop(0, 1, 0x142),
            add(0, 1, 0x99),
            add(0x200, 7, 0x142),
        ],
    );
    assert_eq!(agreed, Ok(vec![]));
    let differs = compare(npt(), &[add(0, 1, 0x142), drop(0, 1, 0x99)]);
    assert_eq!(
        differs,
        Err(Mismatch::OtherTable {
            number: 1,
            known: 0x142,
            frame: 0x99
        })
    );
    let differs = compare(npt(), &[add(0, 1, 0x142), add(0x200, 2, 0x142)]);
    assert_eq!(
        differs,
        Err(Mismatch::TableTaken {
            frame: 0x142,
            known: 1,
            number: 2
        })
    );
    // The other bits of a link are exact.
    let differs = compare(npt(), &[(0, l2, [EMPTY, 0x1827], [EMPTY, 0x142_807])]);
    assert_eq!(differs, Err(Mismatch::Field("new_spte")));
    let differs = compare(npt(), &[(0, l2, [EMPTY, 0x1827], [EMPTY, 0x20_0ee7])]);
    assert_eq!(differs, Err(Mismatch::Shape("new_spte")));
}

#[test]
fn leaves_and_absent_entries_are_exact() {
    let l1 = Level::L1;
    let both = |value| [EMPTY, value];
    let mmio = 0x8_0000_0040_0017;
    for value in [0x1_43d3_3e67, mmio, FROZEN, EMPTY, 0] {
        assert_eq!(
            compare(npt(), &[(0x400, l1, both(value), both(value))]),
            Ok(vec![])
        );
        for other in [value ^ 1 << 12, value ^ 2, value ^ 0x20, value ^ 1 << 63] {
            let differs = compare(npt(), &[(0x400, l1, both(value), both(other))]);
            assert_eq!(
                differs,
                Err(Mismatch::Field("new_spte")),
                "{value:x} {other:x}"
            );
        }
    }
    // Nobody sets accessed bits in what is not present.
    for value in [mmio, FROZEN, EMPTY] {
        let differs = compare(npt(), &[(0x400, l1, [value, 0], [value | 0x20, 0])]);
        assert!(
            value & 0x20 != 0 || differs == Err(Mismatch::Field("old_spte")),
            "{value:x}"
        );
    }
}

#[test]
fn hardware_may_set_accessed_and_dirty() {
    let l1 = Level::L1;
    let npt_leaf = 0x1_43d3_3e07;
    let zap = |old, recorded| (0x400, l1, [old, EMPTY], [recorded, EMPTY]);
    assert_eq!(
        compare(npt(), &[zap(npt_leaf, npt_leaf | 0x60)]),
        Ok(vec![0x60])
    );
    // Never the other way: what is predicted is there.
    assert!(compare(npt(), &[zap(npt_leaf | 0x60, npt_leaf)]).is_err());
    // Dirty only where the guest may write.
    let read_only = npt_leaf & !bits::WRITABLE;
    assert_eq!(
        compare(npt(), &[zap(read_only, read_only | 0x20)]),
        Ok(vec![0x20])
    );
    assert!(compare(npt(), &[zap(read_only, read_only | 0x40)]).is_err());
    // No other bit.
    assert!(compare(npt(), &[zap(npt_leaf, npt_leaf | 0x100)]).is_err());
    assert!(compare(npt(), &[zap(npt_leaf, npt_leaf ^ 0x1000)]).is_err());

    let ept_leaf = 0x8600_0001_43d3_3877;
    assert_eq!(
        compare(ept(), &[zap(ept_leaf, ept_leaf | 0x300)]),
        Ok(vec![0x300])
    );
    // Entries that say that hardware does not.
    let disabled = ept_leaf | 0x0010_0000_0000_0000;
    let without = ept_without_ad();
    assert_eq!(compare(without, &[zap(disabled, disabled)]), Ok(vec![]));
    assert!(compare(without, &[zap(disabled, disabled | 0x100)]).is_err());
}

#[test]
fn bits_from_hardware_may_stay() {
    let l1 = Level::L1;
    let clean = 0x1_43d3_3e27;
    let dirty = clean | 0x40;
    let protect = |spte: u64| spte & !bits::WRITABLE;
    let keep = (0x400, l1, [clean, protect(clean)], [dirty, protect(dirty)]);
    let zap = (0x400, l1, [protect(clean), EMPTY], [protect(dirty), EMPTY]);
    // Reported once, though both values after it have the bit.
    assert_eq!(compare(npt(), &[keep, zap]), Ok(vec![0x40]));
    // A value may not have a bit that the one before it had not.
    let grown = (0x400, l1, [clean, protect(clean)], [clean, protect(dirty)]);
    assert_eq!(compare(npt(), &[grown]), Err(Mismatch::Field("new_spte")));
    // The bit is gone with the entry.
    let gone = (0x400, l1, [clean, EMPTY], [dirty, EMPTY]);
    let anew = (0x400, l1, [EMPTY, protect(clean)], [EMPTY, protect(clean)]);
    assert_eq!(
        compare(npt(), &[gone, anew, zap]),
        Err(Mismatch::NotByHardware { bits: 0x40 })
    );
}

#[test]
fn a_difference_says_where_it_is() {
    let leaf = 0x1_43d3_3e67;
    let mut text = String::from("OP guest vcpu=0 WRITE gpa=0x400000\n");
    text += "  kvm_page_fault: vcpu 0 rip 0x1020 address 0x400000 error_code 0x100000006\n";
    text += &line(0x400, Level::L2, EMPTY, 0x1_42a7_6827);
    text += &line(0x400, Level::L1, EMPTY, leaf);
    text += "NOTE exit HLT\n";
    let recording = Recording::parse(&text).expect("a recording");
    let predicted = [
        changed(0x400, Level::L2, EMPTY, 0x3827),
        changed(0x400, Level::L1, EMPTY, leaf | 0x8000_0000_0000_0000),
    ];
    let mut comparer = Comparer::new(npt());
    let difference = comparer
        .compare(&predicted, &recording.items)
        .expect_err("a difference");
    assert_eq!(
        difference.to_string(),
        "line 4: another new_spte\n\
         in          1  OP guest vcpu=0 WRITE gpa=0x400000\n\
         agreed      3    kvm_tdp_mmu_spte_changed: as id 0 gfn 400 level 2 old_spte 8000000000000000 new_spte 142a76827\n\
         recorded         kvm_tdp_mmu_spte_changed: as id 0 gfn 400 level 1 old_spte 8000000000000000 new_spte 143d33e67\n\
         predicted        kvm_tdp_mmu_spte_changed: as id 0 gfn 400 level 1 old_spte 8000000000000000 new_spte 8000000143d33e67"
    );
    assert_eq!(difference.renaming.frame(3), Some(0x14_2a76));
    let [link, _] = predicted;
    assert!(link.to_string().ends_with("new_spte 827+table 3"), "{link}");
}

#[test]
fn one_side_may_not_end_early() {
    let text = line(0, Level::L1, EMPTY, FROZEN) + "RET 0\n";
    let recording = Recording::parse(&text).expect("a recording");
    let all = [
        changed(0, Level::L1, EMPTY, FROZEN),
        Predicted::Returned(Ok(Some(0))),
    ];
    let compare = |predicted: &[Predicted]| {
        let compared = Comparer::new(npt()).compare(predicted, &recording.items);
        compared
            .map(|agreement| agreement.compared)
            .map_err(|difference| difference.mismatch)
    };
    assert_eq!(compare(&all), Ok(2));
    assert_eq!(compare(&all[..1]), Err(Mismatch::PredictionEnds));
    let more = [all.as_slice(), &all[1..]].concat();
    assert_eq!(compare(&more), Err(Mismatch::RecordingEnds));
    // Kinds that are left out are left out on both sides.
    let kinds = Kinds::ALL.without(Kind::Returned);
    let mut comparer = Comparer::new(npt()).with_kinds(kinds);
    let agreement = comparer
        .compare(&all[..1], &recording.items)
        .expect("agreement");
    assert_eq!(agreement.compared, 1);
}

/// Compares with the codec of the machine.
fn on_machine(
    machine: &str,
    predicted: &[Predicted],
    items: &[Item<'_>],
) -> Result<usize, Box<Difference>> {
    let compared = if machine.starts_with("npt") {
        Comparer::new(npt()).compare(predicted, items)
    } else if machine.contains("noad") {
        Comparer::new(ept_without_ad()).compare(predicted, items)
    } else {
        Comparer::new(ept()).compare(predicted, items)
    };
    compared
        .map(|agreement| agreement.compared)
        .map_err(Box::new)
}

const TDP: [&str; 8] = [
    "npt-l4",
    "npt-l5",
    "ept-l4",
    "ept-l4-l1tf",
    "ept-l4-noad",
    "ept-l4-nopml",
    "ept-l5",
    "ept-l5-noad",
];

fn recorded(machine: &str) -> Vec<Builtin> {
    let found = Machine::named(machine).unwrap_or_else(|| panic!("{machine}"));
    let scenarios = found.recordings();
    // Where L2 has its own second stage, that is shadowed: pages are found again, and changes make no event.
    scenarios
        .into_iter()
        .filter(|one| !one.scenario.contains("l2-with-"))
        .collect()
}

#[test]
fn a_perfect_prediction_agrees() {
    let mut compared = 0;
    for machine in TDP {
        for one in recorded(machine) {
            let recording = Recording::parse(one.text()).expect("a recording");
            let predicted = Perfect::of(&recording.items);
            match on_machine(machine, &predicted, &recording.items) {
                Ok(count) => {
                    assert_eq!(count, predicted.len());
                    compared += count;
                }
                Err(difference) => panic!("{machine}/{}\n{difference}", one.scenario),
            }
        }
    }
    println!("{compared} events and results compared");
    assert!(compared > 100_000);
}

#[test]
fn operations_may_be_compared_one_by_one() {
    for one in recorded("npt-l4") {
        let recording = Recording::parse(one.text()).expect("a recording");
        let whole = Perfect::of(&recording.items);
        let (mut comparer, mut perfect) = (Comparer::new(npt()), Perfect::default());
        let mut compared = 0;
        for part in recording
            .items
            .chunk_by(|_, next| !matches!(next.what, What::Op(_)))
        {
            let agreement = comparer.compare(&perfect.predict(part), part);
            compared += agreement.unwrap_or_else(|e| panic!("{e}")).compared;
        }
        assert_eq!(compared, whole.len(), "{}", one.scenario);
    }
}

#[test]
fn every_planted_difference_is_found() {
    let mut planted: BTreeMap<Kind, u32> = BTreeMap::new();
    for machine in ["npt-l4", "ept-l4-noad"] {
        for one in recorded(machine)
            .into_iter()
            .filter(|one| one.text().len() < 200_000)
        {
            let recording = Recording::parse(one.text()).expect("a recording");
            let predicted = Perfect::of(&recording.items);
            let mut seen: BTreeMap<Kind, u32> = BTreeMap::new();
            for (at, event) in predicted.iter().enumerate() {
                let times = seen.entry(event.kind()).or_default();
                *times += 1;
                if *times > 3 {
                    continue;
                }
                let mut others: Vec<Vec<Predicted>> = Vec::new();
                for copy in wrong(event) {
                    others.push(vec![copy]);
                }
                others.push(vec![]);
                for other in others {
                    let mut changed = predicted.clone();
                    changed.splice(at..=at, other.iter().cloned());
                    let found = on_machine(machine, &changed, &recording.items);
                    assert!(
                        found.is_err(),
                        "{machine}/{}: {event} as {other:?}",
                        one.scenario
                    );
                    *planted.entry(event.kind()).or_default() += 1;
                }
            }
        }
    }
    for (kind, count) in &planted {
        println!("{count:5} {kind:?}");
    }
    // Where no table is shadowed, no walk of KVM's marks the guest's, and none is out of step; and statistics and rings are
    // read on live kernels only.
    assert_eq!(planted.len(), Kind::ALL.len() - 5);
}

#[test]
fn statistics_are_compared() {
    let text = "NOTE pages 4k=12 2m=1 1g=0\n";
    let recording = Recording::parse(text).expect("a recording");
    let leaves = Leaves {
        pages_4k: 12,
        pages_2m: 1,
        pages_1g: 0,
    };
    let compare = |leaves| on_machine("npt-l4", &[Predicted::Leaves(leaves)], &recording.items);
    assert!(compare(leaves).is_ok());
    for other in [
        Leaves {
            pages_4k: 11,
            ..leaves
        },
        Leaves {
            pages_2m: 0,
            ..leaves
        },
        Leaves {
            pages_1g: 1,
            ..leaves
        },
    ] {
        assert!(compare(other).is_err(), "{other:?}");
    }
}

const SHADOW: &str = "# scenario shadow status 0
  kvm_mmu_get_page: sp gen 1 gfn 4 l4 8-byte q0 wux nxe ad root 0 sync new
  fn sp_role: gfn=0x4 role=0x3704 created=1
  kvm_mmu_set_accessed_bit: gpa 4000
  kvm_mmu_set_dirty_bit: gpa 6010
  kvm_mmu_zap_all_fast: kvm-mmu-valid-gen 1 used_pages 6
  kvm_mmu_prepare_zap_page: sp gen 1 gfn 4 l4 8-byte q0 wux nxe ad root 1 sync
  kvm_mmu_unsync_page: sp gen 1 gfn 4 l4 8-byte q0 wux nxe ad root 1 sync
  kvm_mmu_sync_page: sp gen 1 gfn 4 l4 8-byte q0 wux nxe ad root 1 sync
NOTE mmu shadow_zapped=1 pte_write=2 pde_zapped=3 flooded=4 recycled=5 cache_miss=6 unsync=7
";

/// Events of shadow pages have numbers that those of the TDP MMU leave out.
#[test]
fn differences_of_shadow_pages_are_found() {
    let role = PageRole::from_word(RoleLayout::Baseline, 0x3704).expect("a role");
    let page = |root_count| PageInfo {
        page: PageId::new(3),
        generation: ValidGeneration::Odd,
        gfn: Gfn::new(4),
        role,
        root_count,
        unsync: false,
    };
    let predicted = [
        Predicted::ShadowPage {
            page: page(0),
            created: true,
        },
        Predicted::AccessedBitSet {
            gpa: Gpa::new(0x4000),
        },
        Predicted::DirtyBitSet {
            gpa: Gpa::new(0x6010),
        },
        Predicted::ShadowZapAllFast {
            generation: ValidGeneration::Odd,
            used: Pages::new(6),
        },
        Predicted::ShadowPageZapped { page: page(1) },
        Predicted::PageUnsync { page: page(1) },
        Predicted::PageSync { page: page(1) },
        Predicted::Counts(MmuCounts {
            shadow_zapped: 1,
            pte_write: 2,
            pde_zapped: 3,
            flooded: 4,
            recycled: 5,
            cache_miss: 6,
            unsync: 7,
        }),
    ];
    let recording = Recording::parse(SHADOW).expect("a recording");
    let compare = |predicted: &[Predicted]| {
        let compared = Comparer::new(npt()).compare(predicted, &recording.items);
        compared.map(|agreed| agreed.compared).ok()
    };
    assert_eq!(compare(&predicted), Some(8));
    for (at, one) in predicted.iter().enumerate() {
        for copy in wrong(one) {
            let shown = copy.to_string();
            let mut changed = predicted.to_vec();
            changed.splice(at..=at, [copy]);
            assert_eq!(compare(&changed), None, "{shown}");
        }
    }
}

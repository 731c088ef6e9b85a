//! Every instruction with every operand that matters, in every state of a small table, against the reference.

use super::reference::{FRAMES, Reference};
use super::*;

/// What a head or a page can be.
fn states(gfn: u64, head: bool) -> Vec<RmpEntry> {
    let guest = RmpEntry::guest(asid(5), Gfn::new(gfn), RmpSize::Size4K);
    let valid = RmpEntry {
        validated: true,
        ..guest
    };
    let lower = RmpEntry {
        permissions: VmplPermissions::RESET
            .with(Vmpl::Vmpl1, Permissions::READ | Permissions::WRITE)
            .with(Vmpl::Vmpl2, Permissions::EXECUTE_USER),
        ..valid
    };
    let vmsa = RmpEntry {
        vmsa: true,
        ..valid
    };
    let immutable = |entry| RmpEntry {
        immutable: true,
        ..entry
    };
    let firmware = RmpEntry {
        assigned: true,
        immutable: true,
        ..RmpEntry::HYPERVISOR
    };
    let used_for = |firmware_use| RmpEntry {
        firmware: firmware_use,
        ..firmware
    };
    let mut states = vec![
        RmpEntry::HYPERVISOR,
        RmpEntry {
            firmware: FirmwareUse::HvFixed,
            ..RmpEntry::HYPERVISOR
        },
        guest,
        valid,
        lower,
        vmsa,
        RmpEntry {
            in_use: true,
            ..vmsa
        },
        immutable(guest),
        immutable(valid),
        firmware,
        used_for(FirmwareUse::Context),
        used_for(FirmwareUse::Metadata),
        RmpEntry {
            immutable: false,
            ..firmware
        },
    ];
    if head {
        let huge = |entry| RmpEntry {
            size: RmpSize::Size2M,
            ..entry
        };
        states.extend([guest, valid, lower, immutable(guest), firmware].map(huge));
    }
    states
}

/// Tables with one head and one page beside it in every pair of states that can be.
fn tables(rules: Rules) -> Vec<(Rmp, Reference, u64)> {
    let mut tables = Vec::new();
    for head in states(GFN, true) {
        for tail in [1, 511] {
            for beside in states(GFN + tail, false) {
                let huge = head.assigned && head.size == RmpSize::Size2M;
                if huge && beside != RmpEntry::HYPERVISOR {
                    continue;
                }
                let rmp = Rmp::with_rules(FRAMES, rules);
                let mut reference = Reference::new(rules);
                for (pfn, entry) in [(0, head), (tail, beside)] {
                    rmp.plant(Pfn::new(pfn), entry);
                    reference.entries[pfn as usize] = entry;
                }
                tables.push((rmp, reference, tail));
            }
        }
    }
    tables
}

/// The other value of every switch.
const OTHER: Rules = Rules {
    odd_operand: OddOperand::Taken,
    same_update: SameUpdate::Keeps,
    unaligned_psmash: UnalignedPsmash::RoundedDown,
    nothing_to_smash: NothingToSmash::BadAddress,
    smaller_nested: SmallerNested::NestedFault,
    adjust_self: AdjustSelf::Refused,
    shared_read: SharedRead::Faults,
};

fn copy(reference: &Reference, rules: Rules) -> Rmp {
    let rmp = Rmp::with_rules(FRAMES, rules);
    for (pfn, entry) in (0..).zip(&reference.entries) {
        if *entry != RmpEntry::HYPERVISOR {
            rmp.plant(Pfn::new(pfn), *entry);
        }
    }
    rmp
}

fn assert_equal(rmp: &Rmp, reference: &Reference, what: &dyn core::fmt::Debug) {
    for (pfn, entry) in (0..).zip(&reference.entries) {
        assert_eq!(
            rmp.own_entry(Pfn::new(pfn)),
            *entry,
            "frame {pfn} after {what:?}"
        );
    }
}

/// Runs `both` on each table of each set of rules; `both` says whether something changed. Returns how often it ran.
fn each<T: Copy + core::fmt::Debug>(
    name: &str,
    operands: impl Fn(u64) -> Vec<T>,
    both: impl Fn(&Rmp, &mut Reference, T) -> bool,
) {
    let (mut runs, mut changes, mut states) = (0u64, 0u64, 0u64);
    for rules in [Rules::default(), OTHER] {
        for (mut rmp, before, tail) in tables(rules) {
            states += 1;
            for operand in operands(tail) {
                let mut after = before.clone();
                runs += 1;
                if both(&rmp, &mut after, operand) {
                    changes += 1;
                    assert_equal(&rmp, &after, &operand);
                    rmp = copy(&before, rules);
                }
            }
            // Whatever was refused has left no trace.
            assert_equal(&rmp, &before, &"refusals");
        }
    }
    println!("{name}: {runs} runs in {states} states, {changes} of them succeeded");
    assert!(changes > 0 && changes < runs);
}

#[test]
fn rmpupdate_in_every_state() {
    let operands = |tail| {
        let mut operands = Vec::new();
        for pfn in [0, tail, 2, 512, FRAMES] {
            for bits in 0..8 {
                for owner in [0, 5, 6, 0x400] {
                    for gpa in [
                        (GFN + pfn) << 12,
                        (GFN + 512) << 12,
                        GFN << 12 | 0x800,
                        1 << 51,
                        0,
                    ] {
                        let state = RmpState {
                            gpa,
                            assigned: bits & 1 != 0,
                            size: RmpSize::ALL[bits >> 1 & 1],
                            immutable: bits & 4 != 0,
                            asid: owner,
                        };
                        operands.push((pfn, state));
                    }
                }
            }
        }
        operands
    };
    each("RMPUPDATE", operands, |rmp, reference, (pfn, state)| {
        let code = match rmp.rmpupdate(Pfn::new(pfn), &state) {
            Ok(()) => 0,
            Err(error) => error.code(),
        };
        assert_eq!(code, reference.rmpupdate(pfn, &state), "{pfn} {state:?}");
        code == 0
    });
}

#[test]
fn psmash_in_every_state() {
    let operands = |tail| vec![0, tail, 2, 512, 513, FRAMES, FRAMES + 1];
    each("PSMASH", operands, |rmp, reference, pfn| {
        let code = match rmp.psmash(Pfn::new(pfn)) {
            Ok(()) => 0,
            Err(error) => error.code(),
        };
        assert_eq!(code, reference.psmash(pfn), "{pfn}");
        code == 0
    });
}

/// All CPUs that matter at all pages, as all tables may translate them.
fn guests(tail: u64) -> Vec<(GuestCpu, GuestPage)> {
    let mut guests = Vec::new();
    for pfn in [0, tail, 2, 512, FRAMES] {
        for gfn in [GFN + pfn, GFN, GFN + 512] {
            for nested in [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G] {
                for (owner, vmpl) in [(5, 0), (5, 1), (5, 3), (6, 0)] {
                    let cpu = GuestCpu {
                        asid: asid(owner),
                        vmpl: Vmpl::ALL[vmpl],
                    };
                    let page = GuestPage {
                        gfn: Gfn::new(gfn),
                        pfn: Pfn::new(pfn),
                        nested,
                    };
                    guests.push((cpu, page));
                }
            }
        }
    }
    guests
}

fn with<T: Copy, U: Copy>(all: &[T], more: &[U]) -> Vec<(T, U)> {
    let pairs = all
        .iter()
        .flat_map(|one| more.iter().map(|two| (*one, *two)));
    pairs.collect()
}

#[test]
fn pvalidate_in_every_state() {
    let how = with(&RmpSize::ALL, &[false, true]);
    let operands = |tail| with(&guests(tail), &how);
    each(
        "PVALIDATE",
        operands,
        |rmp, reference, ((cpu, page), (size, validate))| {
            let done = rmp.pvalidate(cpu, page, size, validate);
            let expected = reference.pvalidate(cpu, page, size, validate);
            assert_eq!(done, expected, "{cpu:?} {page:?} {size} {validate}");
            done == Ok(Validation::Changed)
        },
    );
}

#[test]
fn rmpadjust_in_every_state() {
    let permissions = [
        Permissions::empty(),
        Permissions::READ,
        Permissions::EXECUTE_USER,
        Permissions::all(),
    ];
    let to = with(&with(&Vmpl::ALL, &permissions), &[false, true]);
    let how = with(&RmpSize::ALL, &to);
    let operands = |tail| with(&guests(tail), &how);
    each(
        "RMPADJUST",
        operands,
        |rmp, reference, ((cpu, page), (size, to))| {
            let ((target, permissions), vmsa) = to;
            let to = Adjustment {
                target,
                permissions,
                vmsa,
            };
            let done = rmp.rmpadjust(cpu, page, size, to);
            let expected = reference.rmpadjust(cpu, page, size, to);
            assert_eq!(done, expected, "{cpu:?} {page:?} {size} {to:?}");
            done.is_ok()
        },
    );
}

#[test]
fn questions_in_every_state() {
    let (mut runs, mut answers) = (0u64, 0u64);
    for (rmp, reference, tail) in tables(Rules::default()) {
        for ((cpu, page), target) in with(&guests(tail), &Vmpl::ALL) {
            let answer = rmp.rmpquery(cpu, page, target);
            assert_eq!(answer, reference.rmpquery(cpu, page, target));
            runs += 1;
            answers += u64::from(answer.is_ok());
        }
        for pfn in [0, tail, 2, 512] {
            let own = reference.at(pfn);
            let read = rmp.rmpread(Asid::HOST, Pfn::new(pfn)).unwrap();
            let told = (
                read.gfn,
                read.assigned,
                read.size,
                read.immutable,
                read.asid,
            );
            assert_eq!(
                told,
                (own.gfn, own.assigned, own.size, own.immutable, own.asid)
            );
            let tails = &reference.entries[1..512];
            let others = pfn == 0 && tails.iter().any(|entry| entry.assigned);
            assert_eq!(read.region_in_use, others);
            let lookup = rmp.lookup(Pfn::new(pfn)).unwrap();
            let head = reference.at(pfn / 512 * 512);
            assert_eq!((lookup.assigned, lookup.size), (own.assigned, head.size));
            runs += 2;
        }
    }
    println!("RMPQUERY, RMPREAD, lookup: {runs} questions, {answers} answers to RMPQUERY");
    assert!(answers > 0);
}

/// Firmware's commands: which state each takes and gives.
#[test]
fn firmware_takes_pages_in_their_state_only() {
    type Command = fn(&Rmp, Pfn) -> Result<(), FirmwareError>;
    let update: Command =
        |rmp, pfn| rmp.launch_update(asid(5), Gfn::new(GFN), pfn, LaunchPage::Normal);
    let vmsa: Command = |rmp, pfn| rmp.launch_update(asid(5), Gfn::new(GFN), pfn, LaunchPage::Vmsa);
    let vmrun: Command = |rmp, pfn| rmp.vmrun(asid(5), pfn);
    use PageState as S;
    let commands: [(&str, Command, &[S], S); 8] = [
        ("launch update", update, &[S::PreGuest], S::GuestValid),
        ("launch VMSA", vmsa, &[S::PreGuest], S::GuestValidVmsa),
        ("context", Rmp::context_create, &[S::Firmware], S::Context),
        (
            "metadata",
            Rmp::metadata_create,
            &[S::Firmware],
            S::Metadata,
        ),
        (
            "swap out",
            Rmp::swap_out_prepare,
            &[S::GuestValid],
            S::PreSwap,
        ),
        (
            "reclaim",
            Rmp::page_reclaim,
            &[
                S::PreGuest,
                S::PreSwap,
                S::Firmware,
                S::Context,
                S::Metadata,
            ],
            S::Reclaim,
        ),
        ("fix", Rmp::fix_to_hypervisor, &[S::Hypervisor], S::HvFixed),
        ("VMRUN", vmrun, &[S::GuestValidVmsa], S::GuestValidVmsa),
    ];
    let mut seen = std::collections::BTreeSet::new();
    for entry in states(GFN, true) {
        for (name, command, takes, gives) in &commands {
            let rmp = Rmp::new(FRAMES);
            rmp.plant(Pfn::new(0), entry);
            seen.insert(entry.state());
            let done = command(&rmp, Pfn::new(0));
            let huge = entry.size == RmpSize::Size2M;
            let running = *name == "VMRUN" && entry.in_use;
            let expected = takes.contains(&entry.state()) && !huge && !running;
            assert_eq!(done.is_ok(), expected, "{name} of {entry:?}: {done:?}");
            let after = if expected { *gives } else { entry.state() };
            assert_eq!(rmp.entry(Pfn::new(0)).state(), after, "{name} of {entry:?}");
        }
    }
    assert_eq!(seen.len(), PageState::ALL.len());
}

//! Every access by everybody to every state, against the reference.

use slat_memslot::Level;
use slat_mmu::spte::Access;
use slat_mmu::tdp::{AccessCheck, Translated};

use super::reference::{FRAMES, Reference};
use super::*;

fn accessors() -> Vec<Accessor> {
    let mut all = vec![
        Accessor::Host { user: false },
        Accessor::Host { user: true },
        Accessor::Device,
    ];
    for visibility in [Visibility::Shared, Visibility::Private] {
        all.push(Accessor::Guest(visibility));
        for owner in [5, 6] {
            for vmpl in Vmpl::ALL {
                let cpu = GuestCpu {
                    asid: asid(owner),
                    vmpl,
                };
                all.push(Accessor::Snp(cpu, visibility));
            }
        }
    }
    all
}

fn entries(gfn: u64, size: RmpSize) -> Vec<RmpEntry> {
    let guest = RmpEntry::guest(asid(5), Gfn::new(gfn), size);
    let valid = RmpEntry {
        validated: true,
        ..guest
    };
    let all_but_write = Permissions::all() - Permissions::WRITE;
    vec![
        RmpEntry::HYPERVISOR,
        guest,
        valid,
        RmpEntry {
            permissions: VmplPermissions::RESET
                .with(Vmpl::Vmpl1, all_but_write)
                .with(Vmpl::Vmpl2, Permissions::WRITE),
            ..valid
        },
        RmpEntry {
            immutable: true,
            ..valid
        },
        RmpEntry {
            assigned: true,
            immutable: true,
            ..RmpEntry::HYPERVISOR
        },
    ]
}

#[test]
fn every_access_in_every_state() {
    let sizes = [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G];
    let (mut runs, mut faults) = (0u64, std::collections::BTreeMap::<String, u64>::new());
    for shared_read in [SharedRead::Allowed, SharedRead::Faults] {
        let rules = Rules {
            shared_read,
            ..Rules::default()
        };
        for (at, size) in [
            (0, RmpSize::Size4K),
            (0, RmpSize::Size2M),
            (3, RmpSize::Size4K),
        ] {
            for entry in entries(GFN + at, size) {
                let rmp = Rmp::with_rules(FRAMES, rules);
                let mut reference = Reference::new(rules);
                rmp.plant(Pfn::new(at), entry);
                reference.entries[at as usize] = entry;
                for pfn in [0, 3, 4, 512, FRAMES] {
                    for gfn in [GFN + pfn, GFN + 9] {
                        for reached_size in sizes {
                            let page = Reached {
                                gfn: Gfn::new(gfn),
                                pfn: Pfn::new(pfn),
                                size: reached_size,
                            };
                            for by in accessors() {
                                for touch in Touch::ALL {
                                    let fault = rmp.check_access(by, touch, &page).err();
                                    let expected = reference.access(by, touch, &page);
                                    assert_eq!(
                                        fault, expected,
                                        "{by:?} {touch:?} {page:?} {entry:?}"
                                    );
                                    runs += 1;
                                    let kind =
                                        fault.map_or("none".into(), |fault| fault.to_string());
                                    *faults.entry(kind).or_default() += 1;
                                }
                            }
                        }
                    }
                }
            }
        }
    }
    println!("{runs} accesses");
    for (fault, count) in &faults {
        println!("{count:>8} {fault}");
    }
    assert!(faults.len() > 15);
}

/// The check of a vCPU's walks says what [`Rmp::check_access`] says, wherever it was asked before.
#[test]
fn a_guard_says_what_the_check_says() {
    let (mut runs, mut allowed) = (0, 0);
    for by in accessors() {
        let Accessor::Snp(cpu, visibility) = by else {
            continue;
        };
        let rmp = Rmp::new(FRAMES);
        let guard = rmp.guard(cpu, visibility);
        let accesses = [
            (Access::USER, Touch::Read),
            (Access::WRITE | Access::USER, Touch::Write),
            (Access::EXECUTE, Touch::Fetch { user: false }),
        ];
        for (at, size) in [
            (0, RmpSize::Size4K),
            (3, RmpSize::Size4K),
            (0, RmpSize::Size2M),
            (515, RmpSize::Size4K),
        ] {
            for entry in entries(GFN + at, size) {
                rmp.plant(Pfn::new(at), entry);
                // Also of a frame that is not at the same place in its 2 MiB.
                let moved = RmpEntry {
                    gfn: Gfn::new(GFN + 7),
                    ..entry
                };
                rmp.plant(Pfn::new(at + 1), moved);
                for (pfn, gfn) in [0, 1, 3, 4, 512, 515, 516, FRAMES]
                    .into_iter()
                    .flat_map(|pfn| [pfn, 7, pfn | 1 << 39].map(|gfn| (pfn, GFN + gfn)))
                {
                    for level in [Level::L1, Level::L2, Level::L3] {
                        for (access, touch) in accesses {
                            let translated = Translated {
                                gfn: Gfn::new(gfn),
                                pfn: Pfn::new(pfn),
                                level,
                                access,
                            };
                            let expected = rmp.check(by, touch).check(&translated);
                            // Twice: the second time it is where the guard thinks.
                            for _ in 0..2 {
                                let said = guard.check(&translated);
                                assert_eq!(said, expected, "{by:?} {translated:?} {entry:?}");
                            }
                            runs += 1;
                            allowed += u32::from(expected.is_ok());
                        }
                    }
                }
                rmp.plant(Pfn::new(at), RmpEntry::HYPERVISOR);
                rmp.plant(Pfn::new(at + 1), RmpEntry::HYPERVISOR);
            }
        }
    }
    println!("{allowed} of {runs} accesses are allowed");
    assert!(allowed > 1000 && runs - allowed > 1000);
}

/// The same check at the end of a walk of real tables: denied, then allowed once the map agrees.
#[test]
fn a_walk_asks_the_reverse_map() {
    use slat_mmu::host::Host;
    use slat_mmu::role::{TdpDepth, TdpHost, VcpuState, root_role_for_tdp};
    use slat_mmu::spte::Npt;
    use slat_mmu::tdp::{MapRequest, Tables, Unobserved, Violation};

    let rmp = Rmp::new(0x1000);
    let tables = Tables::<Npt>::new(&Host::npt(48));
    let mut reader = tables.reader().unwrap();
    let role = root_role_for_tdp(&VcpuState::default(), &TdpHost::new(TdpDepth::Npt4));
    let mut shared = tables.shared(&mut reader, Unobserved);
    let root = shared.acquire_root(role).unwrap().root();
    let table = shared.root_table(root).unwrap();
    let gfn = Gfn::new(GFN + 1);
    let request = MapRequest::page(gfn, PageSize::Size4K, Pfn::new(PFN + 1));
    let _ = shared.map(table, &request).unwrap();

    let check = rmp.check(Accessor::Snp(guest(), Visibility::Private), Touch::Write);
    let denied = shared.translate_checked(table, gfn, Access::WRITE, &check);
    let code = 1 << 34 | 1 << 32 | 1 << 31 | 0b111;
    let fault = Fault::Nested(ErrorCode::from_bits_retain(code));
    assert_eq!(denied, Err(Violation::Denied(fault)));
    rmp.rmpupdate(Pfn::new(PFN + 1), &private(1, RmpSize::Size4K))
        .unwrap();
    let one = page(1, PageSize::Size4K);
    let _ = rmp.pvalidate(guest(), one, RmpSize::Size4K, true);
    let allowed = shared.translate_checked(table, gfn, Access::WRITE, &check);
    assert_eq!(allowed.map(|page| page.pfn), Ok(Pfn::new(PFN + 1)));
    // Without a check of its own the walk asks nobody.
    assert!(shared.translate(table, gfn, Access::WRITE).is_ok());
}

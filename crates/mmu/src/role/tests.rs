use std::collections::BTreeSet;

use proptest::prelude::*;
use slat_memslot::{AsId, Level};

use super::*;

const BASELINE: RoleLayout = RoleLayout::Baseline;

/// Words and texts of page-table tracepoints of Linux 6.12 with NPT, EPT and shadow paging, every pair seen.
const RECORDED: [(u32, &str); 55] = [
    (0x100_1781, "l1 8-byte q0 direct wux nxe ad"),
    (0x100_1782, "l2 8-byte q0 direct wux nxe ad"),
    (0x100_3781, "l1 8-byte q0 direct wux nxe ad"),
    (0x100_3782, "l2 8-byte q0 direct wux nxe ad"),
    (0x100_3783, "l3 8-byte q0 direct wux nxe ad"),
    (0x100_3784, "l4 8-byte q0 direct wux nxe ad"),
    (0x100_3785, "l5 8-byte q0 direct wux nxe ad"),
    (0x101_3781, "l1 8-byte q0 direct wux nxe !ad"),
    (0x101_3782, "l2 8-byte q0 direct wux nxe !ad"),
    (0x101_3783, "l3 8-byte q0 direct wux nxe !ad"),
    (0x101_3784, "l4 8-byte q0 direct wux nxe !ad"),
    (0x101_3785, "l5 8-byte q0 direct wux nxe !ad"),
    (0x1_3781, "l1 8-byte q0 direct wux nxe !ad"),
    (0x1_3782, "l2 8-byte q0 direct wux nxe !ad"),
    (0x1_3783, "l3 8-byte q0 direct wux nxe !ad"),
    (0x1_3784, "l4 8-byte q0 direct wux nxe !ad"),
    (0x1_3785, "l5 8-byte q0 direct wux nxe !ad"),
    (0x1581, "l1 8-byte q0 direct -ux nxe ad"),
    (0x1702, "l2 8-byte q0 wux nxe ad"),
    (0x1703, "l3 8-byte q0 wux nxe ad"),
    (0x1704, "l4 8-byte q0 wux nxe ad"),
    (0x1781, "l1 8-byte q0 direct wux nxe ad"),
    (0x1782, "l2 8-byte q0 direct wux nxe ad"),
    (0x2_0581, "l1 8-byte q0 direct -ux !nxe ad"),
    (0x2_0701, "l1 8-byte q0 wux !nxe ad"),
    (0x2_0702, "l2 8-byte q0 wux !nxe ad"),
    (0x2_0703, "l3 8-byte q0 wux !nxe ad"),
    (0x2_0704, "l4 8-byte q0 wux !nxe ad"),
    (0x2_0781, "l1 8-byte q0 direct wux !nxe ad"),
    (0x2_1781, "l1 8-byte q0 direct wux nxe ad"),
    (0x2_1782, "l2 8-byte q0 direct wux nxe ad"),
    (0x2_3781, "l1 8-byte q0 direct wux nxe ad"),
    (0x2_3782, "l2 8-byte q0 direct wux nxe ad"),
    (0x2_3783, "l3 8-byte q0 direct wux nxe ad"),
    (0x2_3784, "l4 8-byte q0 direct wux nxe ad"),
    (0x2_3785, "l5 8-byte q0 direct wux nxe ad"),
    (0x3_0701, "l1 8-byte q0 wux !nxe !ad"),
    (0x3_0702, "l2 8-byte q0 wux !nxe !ad"),
    (0x3_0703, "l3 8-byte q0 wux !nxe !ad"),
    (0x3_0704, "l4 8-byte q0 wux !nxe !ad"),
    (0x3_0781, "l1 8-byte q0 direct wux !nxe !ad"),
    (0x3_3781, "l1 8-byte q0 direct wux nxe !ad"),
    (0x3_3782, "l2 8-byte q0 direct wux nxe !ad"),
    (0x3_3783, "l3 8-byte q0 direct wux nxe !ad"),
    (0x3_3784, "l4 8-byte q0 direct wux nxe !ad"),
    (0x3581, "l1 8-byte q0 direct -ux nxe ad"),
    (0x3702, "l2 8-byte q0 wux nxe ad"),
    (0x3703, "l3 8-byte q0 wux nxe ad"),
    (0x3704, "l4 8-byte q0 wux nxe ad"),
    (0x3781, "l1 8-byte q0 direct wux nxe ad"),
    (0x3782, "l2 8-byte q0 direct wux nxe ad"),
    (0x3783, "l3 8-byte q0 direct wux nxe ad"),
    (0x3784, "l4 8-byte q0 direct wux nxe ad"),
    (0x3785, "l5 8-byte q0 direct wux nxe ad"),
    (0x6_0705, "l5 8-byte q0 wux !nxe ad"),
];

/// The roots of the four- and five-level second stage, in the order of the list that Linux developers gave.
const SIX_ROOTS: [(Level, VcpuMode, u32); 6] = [
    (Level::L4, VcpuMode::Normal, 0x3784),
    (Level::L4, VcpuMode::Smm, 0x100_3784),
    (Level::L5, VcpuMode::Normal, 0x3785),
    (Level::L5, VcpuMode::Smm, 0x100_3785),
    (Level::L4, VcpuMode::Guest, 0x2_3784),
    (Level::L5, VcpuMode::Guest, 0x2_3785),
];

const AD_DISABLED: u32 = 0x1_0000;

fn host(depth: TdpDepth, access_dirty: AccessDirty) -> TdpHost {
    TdpHost {
        access_dirty,
        ..TdpHost::new(depth)
    }
}

fn widths(bits: u8) -> PhysBits {
    PhysBits::from_leaf(Some(bits.into()))
}

/// Registers that matter to the role of a vCPU's own paging, in every combination.
fn all_registers() -> impl Iterator<Item = (Cr0, Cr4, Efer)> {
    let cr0 = subsets(Cr0::all().bits() & (Cr0::PG | Cr0::WP | Cr0::CD).bits());
    cr0.flat_map(|cr0| {
        let bits = Cr4::PSE | Cr4::PAE | Cr4::LA57 | Cr4::SMEP | Cr4::SMAP | Cr4::PKE;
        subsets(bits.bits()).flat_map(move |cr4| {
            subsets((Efer::NX | Efer::LMA | Efer::LME).bits()).map(move |efer| {
                (
                    Cr0::from_bits_retain(cr0),
                    Cr4::from_bits_retain(cr4),
                    Efer::from_bits_retain(efer),
                )
            })
        })
    })
}

/// All subsets of a mask.
fn subsets(mask: u64) -> impl Iterator<Item = u64> {
    let next = move |subset: &u64| Some(subset.wrapping_sub(mask) & mask).filter(|next| *next != 0);
    std::iter::successors(Some(0), next)
}

fn any_vcpu() -> impl Strategy<Value = VcpuState> {
    let registers = (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>());
    let mode = proptest::sample::select(VcpuMode::ALL.as_slice());
    (registers, any::<u32>(), any::<Option<u32>>(), mode).prop_map(
        |((cr0, cr3, cr4, efer), pkru, leaf, mode)| VcpuState {
            cr0: Cr0::from_bits_retain(cr0),
            cr3,
            cr4: Cr4::from_bits_retain(cr4),
            efer: Efer::from_bits_retain(efer),
            pkru,
            phys_bits: PhysBits::from_leaf(leaf),
            mode,
        },
    )
}

fn any_host() -> impl Strategy<Value = TdpHost> {
    (
        proptest::sample::select(RoleLayout::ALL.as_slice()),
        proptest::sample::select(TdpDepth::ALL.as_slice()),
        proptest::sample::select([AccessDirty::Hardware, AccessDirty::Software].as_slice()),
        proptest::sample::select([WidthSource::Physical, WidthSource::GuestPhysical].as_slice()),
    )
        .prop_map(|(layout, depth, access_dirty, width)| TdpHost {
            layout,
            depth,
            access_dirty,
            width,
        })
}

#[test]
fn recorded_words_print_as_recorded() {
    for (word, text) in RECORDED {
        let role = PageRole::from_word(BASELINE, word).unwrap();
        assert_eq!(role.to_string(), text, "{word:#x}");
        assert_eq!(role.word(BASELINE), word);
        assert!(RoleLayout::ALL.into_iter().all(|layout| role.fits(layout)));
    }
}

#[test]
fn an_invalid_page_prints_as_recorded() {
    let role = PageRole::from_word(BASELINE, 0x2_0705).unwrap();
    let invalid = role.with(RoleFlag::Invalid);
    assert_eq!(invalid.to_string(), "l5 8-byte q0 wux invalid !nxe ad");
    assert_eq!(invalid.word(BASELINE), 0x2_0f05);
}

#[test]
fn the_six_roots_have_the_recorded_words() {
    for (access_dirty, extra) in [
        (AccessDirty::Hardware, 0),
        (AccessDirty::Software, AD_DISABLED),
    ] {
        for (level, mode, word) in SIX_ROOTS {
            let vcpu = VcpuState {
                mode,
                phys_bits: widths(if level == Level::L4 { 48 } else { 49 }),
                ..VcpuState::default()
            };
            let role = root_role_for_tdp(&vcpu, &host(TdpDepth::Ept5, access_dirty));
            assert_eq!(role.word(BASELINE), word | extra);
            assert_eq!(role.level(), level);
            let as_id = [AsId::NORMAL, AsId::SMM][usize::from(mode == VcpuMode::Smm)];
            assert_eq!(role.as_id(), as_id);
        }
    }
}

/// Enumerates every combination of registers that role computation could look at, all widths, and all modes.
#[test]
fn no_other_root_can_be_reached() {
    for (access_dirty, extra) in [
        (AccessDirty::Hardware, 0),
        (AccessDirty::Software, AD_DISABLED),
    ] {
        let host = host(TdpDepth::Ept5, access_dirty);
        let mut seen = BTreeSet::new();
        for (cr0, cr4, efer) in all_registers() {
            for bits in 0..=u8::MAX {
                let roots = VcpuMode::ALL.map(|mode| {
                    let phys_bits = widths(bits);
                    let vcpu = VcpuState {
                        cr0,
                        cr4,
                        efer,
                        mode,
                        phys_bits,
                        ..VcpuState::default()
                    };
                    root_role_for_tdp(&vcpu, &host).word(BASELINE)
                });
                seen.extend(roots);
            }
        }
        assert_eq!(seen, SIX_ROOTS.map(|(_, _, word)| word | extra).into());
        let reachable = reachable_tdp_roots(host).map(|role| role.word(BASELINE));
        assert_eq!(reachable.collect::<BTreeSet<_>>(), seen);
    }
}

#[test]
fn hosts_with_one_level_have_three_roots() {
    for depth in [
        TdpDepth::Ept4,
        TdpDepth::NptPae,
        TdpDepth::Npt4,
        TdpDepth::Npt5,
    ] {
        let roots: BTreeSet<_> = reachable_tdp_roots(TdpHost::new(depth)).collect();
        assert_eq!(roots.len(), 3);
    }
}

#[test]
fn the_guest_s_width_chooses_the_level_of_ept_only() {
    for (bits, level) in [
        (36, Level::L4),
        (39, Level::L4),
        (48, Level::L4),
        (49, Level::L5),
        (52, Level::L5),
    ] {
        assert_eq!(
            tdp_level(&TdpHost::new(TdpDepth::Ept5), widths(bits)),
            level
        );
        assert_eq!(
            tdp_level(&TdpHost::new(TdpDepth::Ept4), widths(bits)),
            Level::L4
        );
        assert_eq!(
            tdp_level(&TdpHost::new(TdpDepth::Npt5), widths(bits)),
            Level::L5
        );
        assert_eq!(
            tdp_level(&TdpHost::new(TdpDepth::Npt4), widths(bits)),
            Level::L4
        );
        assert_eq!(
            tdp_level(&TdpHost::new(TdpDepth::NptPae), widths(bits)),
            Level::L3
        );
    }
    let tdx = TdpHost {
        width: WidthSource::GuestPhysical,
        ..TdpHost::new(TdpDepth::Ept5)
    };
    assert_eq!(
        tdp_level(&tdx, PhysBits::from_leaf(Some(0x30_0034))),
        Level::L4
    );
    assert_eq!(
        tdp_level(&tdx, PhysBits::from_leaf(Some(0x34_0034))),
        Level::L5
    );
}

proptest! {
    /// Two vCPUs with any registers need the same root if mode and level are the same, and only then.
    #[test]
    fn only_mode_and_level_choose_a_tdp_root(one in any_vcpu(), other in any_vcpu(), host in any_host()) {
        let roles = [one, other].map(|vcpu| root_role_for_tdp(&vcpu, &host));
        let keys = [one, other].map(|vcpu| (vcpu.mode, tdp_level(&host, vcpu.phys_bits)));
        prop_assert_eq!(roles[0] == roles[1], keys[0] == keys[1]);
        for role in roles {
            prop_assert!(reachable_tdp_roots(host).any(|reachable| reachable == role));
            prop_assert!(role.fits(host.layout));
            prop_assert_eq!(PageRole::from_word(host.layout, role.word(host.layout)), Ok(role));
        }
    }

    #[test]
    fn words_and_roles_are_one_to_one(word in any::<u32>()) {
        for layout in RoleLayout::ALL {
            if let Ok(role) = PageRole::from_word(layout, word) {
                prop_assert_eq!(role.word(layout), word);
                prop_assert!(role.fits(layout));
            }
        }
    }

    /// Words of valid shape, which random integers rarely are.
    #[test]
    fn known_fields_make_a_word(level in 1_u32..=5, fields in any::<u32>()) {
        for (layout, known) in [
            (RoleLayout::Baseline, 0x0107_fff0),
            (RoleLayout::Mirror, 0x010f_fff0),
            (RoleLayout::Mbec, 0x011f_fff0),
        ] {
            let word = fields & known | level;
            let role = PageRole::from_word(layout, word);
            prop_assert_eq!(role.map(|role| role.word(layout)), Ok(word));
        }
    }

    #[test]
    fn a_shadow_role_is_the_cpu_role_of_the_registers(vcpu in any_vcpu()) {
        let role = CpuRole::of(&vcpu, BASELINE);
        let root = role.shadow_root_role();
        prop_assert!(root.level() >= Level::L3 && root.has(RoleFlag::EferNx));
        prop_assert_eq!(root.is_direct(), !vcpu.cr0.contains(Cr0::PG));
        prop_assert_eq!(role.level().is_none(), root.is_direct());
        prop_assert!(root.has(RoleFlag::FourByteGpte) == (role.level() == Some(Level::L2)));
    }
}

#[test]
fn unknown_bits_and_levels_are_no_role() {
    let read = |word| PageRole::from_word(BASELINE, word);
    for (word, level) in [(0x3780, 0), (0x3786, 6), (0x378f, 15)] {
        assert_eq!(read(word), Err(WordError::Level { word, level }));
    }
    for (layout, unknown) in [
        (BASELINE, 1 << 19),
        (RoleLayout::Mirror, 1 << 20),
        (RoleLayout::Mbec, 1 << 25),
    ] {
        let word = 0x784 | unknown;
        assert_eq!(
            PageRole::from_word(layout, word),
            Err(WordError::Unknown { word, unknown })
        );
    }
}

/// Paging modes of a guest without TDP, with their recorded roots.
#[test]
fn shadow_roots_have_the_known_words() {
    let wp = Cr0::PG | Cr0::PE | Cr0::WP;
    let long = Efer::LME | Efer::LMA;
    for (cr0, cr4, efer, word) in [
        (wp, Cr4::PAE, long | Efer::NX, 0x3704),
        (wp, Cr4::PAE | Cr4::LA57, long | Efer::NX, 0x3705),
        (wp, Cr4::PAE | Cr4::SMEP | Cr4::SMAP, long, 0x3704),
        (wp, Cr4::PAE, Efer::NX, 0x3703),
        (wp, Cr4::PSE, Efer::empty(), 0x3713),
        (Cr0::PE, Cr4::PAE, Efer::NX, 0x1783),
        (Cr0::PG | Cr0::PE, Cr4::PAE, long, 0x1704),
        (Cr0::PG | Cr0::PE, Cr4::PAE | Cr4::SMEP, long, 0x5704),
        (Cr0::PG | Cr0::PE, Cr4::PAE | Cr4::SMAP, long, 0x9704),
    ] {
        let vcpu = VcpuState {
            cr0,
            cr4,
            efer,
            ..VcpuState::default()
        };
        let root = CpuRole::of(&vcpu, BASELINE).shadow_root_role();
        assert_eq!(root.word(BASELINE), word, "{cr0:?} {cr4:?} {efer:?}");
    }
}

#[test]
fn nested_roots_have_the_recorded_words() {
    let ept = |depth, access_dirty| {
        nested_ept_root_role(
            NestedEpt {
                depth,
                access_dirty,
            },
            BASELINE,
        )
        .word(BASELINE)
    };
    assert_eq!(ept(NestedEptDepth::Four, AccessDirty::Hardware), 0x2_0704);
    assert_eq!(ept(NestedEptDepth::Four, AccessDirty::Software), 0x3_0704);
    assert_eq!(ept(NestedEptDepth::Five, AccessDirty::Hardware), 0x2_0705);

    let l1 = VcpuState {
        cr0: Cr0::PG | Cr0::PE,
        cr4: Cr4::PAE,
        efer: Efer::LME | Efer::LMA,
        mode: VcpuMode::Guest,
        ..VcpuState::default()
    };
    let npt = |vcpu: &VcpuState, level| {
        nested_npt_root_role(CpuRole::of(vcpu, BASELINE), level).map(|role| role.word(BASELINE))
    };
    assert_eq!(npt(&l1, Level::L4), Ok(0x2_0704));
    assert_eq!(npt(&l1, Level::L5), Ok(0x6_0705));
    let five = VcpuState {
        cr4: l1.cr4 | Cr4::LA57,
        ..l1
    };
    assert_eq!(npt(&five, Level::L5), Ok(0x2_0705));
    let unpaged = VcpuState { cr0: Cr0::PE, ..l1 };
    assert_eq!(npt(&unpaged, Level::L4), Err(NestedNptError::NoPaging));
    let outside = VcpuState {
        mode: VcpuMode::Normal,
        ..l1
    };
    assert_eq!(npt(&outside, Level::L4), Err(NestedNptError::NotGuestMode));
}

#[test]
fn mirror_roots_have_their_own_words() {
    let roots = reachable_tdp_roots(TdpHost {
        layout: RoleLayout::Mirror,
        ..TdpHost::new(TdpDepth::Ept5)
    });
    let mirrors = roots
        .filter(|root| !root.is_guest_mode() && root.as_id() == AsId::NORMAL)
        .map(|root| mirror_root_role(root).word(RoleLayout::Mirror));
    assert!(mirrors.eq([0x8_3784, 0x8_3785]));
}

/// Follows from the layout; no kernel of this kind has been recorded.
#[test]
fn the_layout_with_mbec_moves_fields() {
    let layout = RoleLayout::Mbec;
    let root = PageRole::new(Level::L4)
        .with_access(Access::all_in(layout))
        .with(RoleFlag::Direct);
    assert_eq!(root.word(layout), 0xf84);
    for (flag, bit) in [
        (RoleFlag::FourByteGpte, 4),
        (RoleFlag::Invalid, 12),
        (RoleFlag::EferNx, 13),
        (RoleFlag::Cr0Wp, 14),
        (RoleFlag::SmapAndNotWp, 15),
        (RoleFlag::AdDisabled, 16),
        (RoleFlag::GuestMode, 17),
        (RoleFlag::Passthrough, 18),
        (RoleFlag::IsMirror, 19),
        (RoleFlag::Cr4Smep, 20),
        (RoleFlag::Smm, 24),
    ] {
        assert_eq!(root.with(flag).word(layout), 0xf84 | 1 << bit, "{flag:?}");
    }
    assert_eq!(root.with(RoleFlag::SmepAndNotWp).word(layout), 0xf84);
    assert!(!root.with(RoleFlag::SmepAndNotWp).fits(layout));
    for (access, bits) in [
        (Access::READ, 1),
        (Access::WRITE, 2),
        (Access::USER, 4),
        (Access::EXECUTE, 8),
    ] {
        assert_eq!(root.with_access(access).word(layout), 0x84 | bits << 8);
    }
}

#[test]
fn extended_roles_follow_the_layout() {
    let everything = ExtendedRole::all();
    assert_eq!(everything.word(BASELINE), 0xff);
    assert_eq!(everything.word(RoleLayout::Mbec), 0xff);
    assert_eq!(ExtendedRole::CR4_SMEP.word(RoleLayout::Mbec), 0);
    assert_eq!(ExtendedRole::EFER_LMA.word(BASELINE), 1 << 7);
    assert_eq!(ExtendedRole::EFER_LMA.word(RoleLayout::Mbec), 1 << 6);
    assert_eq!(ExtendedRole::HAS_PFERR_FETCH.word(RoleLayout::Mbec), 1 << 7);
    assert_eq!(ExtendedRole::HAS_PFERR_FETCH.word(BASELINE), 0);
}

#[test]
fn cpu_roles_hold_what_roots_leave_out() {
    let cr4 = Cr4::PAE | Cr4::PKE | Cr4::LA57 | Cr4::SMAP | Cr4::SMEP | Cr4::PSE;
    let long = VcpuState {
        cr0: Cr0::PG | Cr0::PE | Cr0::WP,
        cr4,
        efer: Efer::LME | Efer::LMA | Efer::NX,
        ..VcpuState::default()
    };
    assert_eq!(CpuRole::of(&long, BASELINE).word(BASELINE), 0xfd_0000_3705);
    // Outside long mode neither protection keys nor the fifth level count.
    let pae = VcpuState {
        efer: Efer::NX,
        ..long
    };
    assert_eq!(CpuRole::of(&pae, BASELINE).word(BASELINE), 0x35_0000_3703);
    // KVM takes long mode without PAE for a bug, and goes on without long mode.
    let bug = VcpuState {
        cr4: cr4 - Cr4::PAE,
        ..long
    };
    assert_eq!(CpuRole::of(&bug, BASELINE).word(BASELINE), 0x35_0000_3712);
    let unpaged = VcpuState {
        cr0: Cr0::PE | Cr0::WP,
        ..long
    };
    assert_eq!(
        CpuRole::of(&unpaged, BASELINE).word(BASELINE),
        0x1_0000_0780
    );
}

#[test]
fn a_mismatch_names_its_fields() {
    let [four, five] = [0x3784, 0x1_3785].map(|word| PageRole::from_word(BASELINE, word).unwrap());
    let mismatch = check_mmu_role(four, five).unwrap_err();
    assert!(mismatch.fields().eq(["level", "ad_disabled"]));
    assert_eq!(
        mismatch.to_string(),
        "the MMU wants l4 8-byte q0 direct wux nxe ad cr0_wp, the root is l5 8-byte q0 direct wux nxe !ad cr0_wp: \
         level, ad_disabled differ"
    );
    assert!(
        check_mirror_role(four, four)
            .unwrap_err()
            .fields()
            .eq(["is_mirror"])
    );
    assert_eq!(check_mirror_role(four, mirror_root_role(four)), Ok(()));
}

#[test]
fn fields_do_not_overlap() {
    let mut seen = PageRole::new(Level::L1)
        .with_quadrant(Quadrant::Q3)
        .with_access(Access::all())
        .bits()
        | 0xf;
    for flag in RoleFlag::ALL {
        assert_eq!(seen & flag.bit(), 0, "{flag:?}");
        seen |= flag.bit();
    }
    let role = PageRole::new(Level::L2)
        .with_quadrant(Quadrant::Q2)
        .with_access(Access::READ);
    assert_eq!(
        (role.level(), role.quadrant(), role.access()),
        (Level::L2, Quadrant::Q2, Access::READ)
    );
}

//! Probes on functions that have no tracepoint.

use slat_memslot::{Gfn, Level, Pages};
use winnow::combinator::seq;
use winnow::prelude::*;
use winnow::token::rest;

use super::lex::{Input, bit, gfn, hex, hex32, level, pages};

/// The entry of one of KVM's functions.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "fields have the kernel's names and meanings")]
#[non_exhaustive]
pub enum Probe<'a> {
    /// The role word of the `kvm_mmu_get_page` before it, of which that event's text leaves out a part.
    SpRole { gfn: Gfn, role: u32, created: bool },
    /// `init_kvm_mmu`.
    InitMmu,
    /// `kvm_mmu_reset_context`.
    ResetContext,
    /// `kvm_mmu_load`.
    Load,
    /// `kvm_mmu_unload`.
    Unload,
    /// `kvm_mmu_uninit_vm`.
    Uninit,
    /// `kvm_mmu_new_pgd`.
    NewPgd { pgd: u64 },
    /// `kvm_tdp_mmu_alloc_root`.
    AllocRoot,
    /// `kvm_mmu_free_roots`: which, the current one as bit 0.
    FreeRoots { roots: u64 },
    /// `kvm_mmu_free_obsolete_roots`.
    FreeObsoleteRoots,
    /// `kvm_flush_remote_tlbs`.
    FlushRemoteTlbs,
    /// `kvm_flush_remote_tlbs_range`.
    FlushRemoteTlbsRange { gfn: Gfn, pages: Pages },
    /// `kvm_arch_flush_shadow_memslot`.
    FlushShadowMemslot,
    /// `kvm_tdp_mmu_zap_all`.
    ZapAll,
    /// `kvm_tdp_mmu_zap_invalidated_roots`.
    ZapInvalidatedRoots,
    /// `kvm_tdp_mmu_zap_collapsible_sptes`.
    ZapCollapsible,
    /// `kvm_tdp_mmu_unmap_gfn_range`.
    UnmapGfnRange,
    /// `kvm_tdp_mmu_wrprot_slot`.
    WriteProtectSlot { min_level: Level },
    /// `kvm_tdp_mmu_clear_dirty_pt_masked`.
    ClearDirty {
        gfn: Gfn,
        mask: u64,
        write_protect: bool,
    },
    /// `kvm_tdp_mmu_try_split_huge_pages`.
    TrySplitHugePages { start: Gfn, end: Gfn, target: Level },
    /// Any other function.
    Other {
        /// The name.
        function: &'a str,
        /// What stands behind it.
        args: &'a str,
    },
}

/// Reads the arguments of a function; one that nobody knows is [`Probe::Other`].
pub(super) fn args<'a>(function: &'a str, input: &mut Input<'a>) -> ModalResult<Probe<'a>> {
    match function {
        "sp_role" => sp_role(input),
        "init_mmu" => Ok(Probe::InitMmu),
        "mmu_reset_context" => Ok(Probe::ResetContext),
        "mmu_load" => Ok(Probe::Load),
        "mmu_unload" => Ok(Probe::Unload),
        "mmu_uninit" => Ok(Probe::Uninit),
        "mmu_new_pgd" => seq!(Probe::NewPgd { _: "pgd=", pgd: hex }).parse_next(input),
        "tdp_mmu_alloc_root" => Ok(Probe::AllocRoot),
        "mmu_free_roots" => seq!(Probe::FreeRoots { _: "roots=", roots: hex }).parse_next(input),
        "mmu_free_obsolete_roots" => Ok(Probe::FreeObsoleteRoots),
        "flush_remote_tlbs" => Ok(Probe::FlushRemoteTlbs),
        "flush_remote_tlbs_range" => flush_remote_tlbs_range(input),
        "flush_shadow_memslot" => Ok(Probe::FlushShadowMemslot),
        "tdp_mmu_zap_all" => Ok(Probe::ZapAll),
        "tdp_mmu_zap_invalidated_roots" => Ok(Probe::ZapInvalidatedRoots),
        "tdp_mmu_zap_collapsible" => Ok(Probe::ZapCollapsible),
        "tdp_mmu_unmap_gfn_range" => Ok(Probe::UnmapGfnRange),
        "tdp_mmu_wrprot_slot" => write_protect_slot(input),
        "tdp_mmu_clear_dirty_pt_masked" => clear_dirty(input),
        "tdp_mmu_try_split_huge_pages" => try_split_huge_pages(input),
        _ => rest
            .map(|args| Probe::Other { function, args })
            .parse_next(input),
    }
}

fn sp_role<'a>(input: &mut Input<'a>) -> ModalResult<Probe<'a>> {
    seq!(Probe::SpRole {
        _: "gfn=", gfn: gfn,
        _: " role=", role: hex32,
        _: " created=", created: bit,
    })
    .parse_next(input)
}

fn flush_remote_tlbs_range<'a>(input: &mut Input<'a>) -> ModalResult<Probe<'a>> {
    seq!(Probe::FlushRemoteTlbsRange {
        _: "gfn=", gfn: gfn,
        _: " nr=", pages: pages,
    })
    .parse_next(input)
}

fn write_protect_slot<'a>(input: &mut Input<'a>) -> ModalResult<Probe<'a>> {
    seq!(Probe::WriteProtectSlot { _: "min_level=", min_level: level }).parse_next(input)
}

fn clear_dirty<'a>(input: &mut Input<'a>) -> ModalResult<Probe<'a>> {
    seq!(Probe::ClearDirty {
        _: "gfn=", gfn: gfn,
        _: " mask=", mask: hex,
        _: " wrprot=", write_protect: bit,
    })
    .parse_next(input)
}

fn try_split_huge_pages<'a>(input: &mut Input<'a>) -> ModalResult<Probe<'a>> {
    seq!(Probe::TrySplitHugePages {
        _: "start=", start: gfn,
        _: " end=", end: gfn,
        _: " target=", target: level,
    })
    .parse_next(input)
}

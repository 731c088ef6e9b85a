//! Which facts of a profile decide.

use slat_memslot::{Change, Profile, ZapRule};

use super::answer::Fact;

/// The facts without which the refusal would be another one, or none.
pub(super) fn behind_reason(code: &str) -> &'static [&'static str] {
    match code {
        "no-region2" => &["region2"],
        "unknown-flags" => &["guest_memfd", "slot_zap"],
        "gmem-unsupported" => &["guest_memfd", "gmem_needs_private_memory"],
        "log-with-gmem" | "readonly-with-gmem" => &["guest_memfd"],
        "hva-not-user" => &["user_end"],
        "address-space" => &["smm"],
        "gmem-beyond-file" => &["gmem_signed_offsets"],
        "gmem-bound" => &["gmem_bind_conflict"],
        "gfn-too-high" => &["tdp", "maxphyaddr"],
        "zap-leafs-changed" | "zap-leafs-required" => &["slot_zap"],
        "zap-leafs-needs-tdp-mmu" => &["slot_zap", "tdp_mmu"],
        "no-guest-memfd" => &["guest_memfd"],
        "gmem-flags" | "mmap-unsupported" => &["gmem_flags"],
        "no-attributes" | "attribute-unsupported" => &["attributes"],
        "no-dirty-ring" | "ring-with-bitmap" => &["dirty_ring"],
        "ring-too-small" => &["pml"],
        "unknown-cap" => &["quirks", "dirty_ring"],
        "quirk-unsupported" => &["quirks"],
        "no-pre-fault" => &["pre_fault"],
        "pre-fault-no-tdp" => &["tdp"],
        "no-shadow-pages" => &["tdp", "tdp_mmu"],
        "vm-type" => &["vm_types"],
        _ => &[],
    }
}

/// The facts that decide what is zapped.
pub(super) fn behind_plan(plan: &Change) -> &'static [&'static str] {
    match plan.zap.map(|zap| zap.rule) {
        Some(ZapRule::DefaultVm | ZapRule::QuirkDisabled) => &["slot_zap", "quirks"],
        Some(_) => &["slot_zap"],
        None => &[],
    }
}

/// These facts with their values and evidence.
pub(super) fn of(profile: &Profile, names: &[&str]) -> Vec<Fact> {
    let all = profile.facts().into_iter();
    all.filter(|(name, ..)| names.contains(name))
        .map(|(name, value, evidence)| (name, value, evidence.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_behind_reasons_exist() {
        let profile = Profile::latest();
        let mut deciding = 0;
        for (_, info) in slat_memslot::catalogue() {
            let names = behind_reason(info.code);
            assert_eq!(of(&profile, names).len(), names.len(), "{}", info.code);
            deciding += usize::from(!names.is_empty());
        }
        assert_eq!(deciding, 27, "each code of the table names a reason");
    }
}

//! `docs/kernels.md` says what the named profiles say, by kernel. `SLAT_BLESS=1` writes it anew.

mod generated;

use std::fmt::Write;

use slat_memslot::Profile;

const HEAD: &str = "\
# How KVM does it, by kernel

What KVM has changed about memory from one kernel to the next, as the named profiles of `slat-memslot` have it. Trees of
distributions carry later work: a profile is of a tree, not of a version, and the kernel at hand is probed
(`Profile::probed`). `slat explain profiles NAME` prints one profile with what its host has; where a fact was found wrong, see
[corrections.md](corrections.md).

How a fact is known: *observed* on a running kernel, *read* in a tree, *inferred* from when a change was merged.

This file is generated from the profiles; `SLAT_BLESS=1 cargo test -p slat-memslot` rewrites it.
";

/// Kernels in columns, oldest first. The others are the same trees on other hosts.
const KERNELS: [&str; 8] = [
    "linux-6.1",
    "linux-6.8",
    "linux-6.12",
    "debian-6.12.117-sw-protected",
    "linux-6.18",
    "linux-7.1",
    "linux-7.2",
    "linux-7.3-rc1",
];

/// Facts of the kernel, by topic, with what each says. Facts of hosts are not here.
const TOPICS: [(&str, &[(&str, &str)]); 5] = [
    (
        "Slots",
        &[
            ("region2", "`KVM_SET_USER_MEMORY_REGION2` exists"),
            (
                "slot_zap",
                "what deleting or moving a slot zaps ([zap.md](zap.md)): `AlwaysAll` roots; `ByTypeAndQuirk` the slot's leaves where the quirk `SLOT_ZAP_ALL` is off, or in VMs that are not default ones",
            ),
            (
                "mmio_generation_bits",
                "bits of a slot generation in an MMIO entry; when they are all zero, everything is zapped",
            ),
        ],
    ),
    (
        "Private memory",
        &[
            ("guest_memfd", "`KVM_CREATE_GUEST_MEMFD` exists"),
            (
                "gmem_needs_private_memory",
                "slots with a guest_memfd are for VMs with private memory only",
            ),
            (
                "gmem_flags",
                "flags of `KVM_CREATE_GUEST_MEMFD` that some VM takes",
            ),
            (
                "gmem_bind_conflict",
                "what binding a range of a file twice gives",
            ),
            (
                "gmem_signed_offsets",
                "offsets into a file are signed when they are bound, so that a range across 2^63 passes",
            ),
            (
                "gmem_noexec",
                "files lie on a file system that is mounted noexec",
            ),
            (
                "attributes",
                "`KVM_SET_MEMORY_ATTRIBUTES` exists, where VMs with private memory are built in",
            ),
            (
                "map_gpa_answers",
                "userspace answers `KVM_HC_MAP_GPA_RANGE` with 0, `EAGAIN` or `EINVAL` and nothing else",
            ),
        ],
    ),
    (
        "Dirty logs",
        &[
            (
                "log_off",
                "small pages of a slot whose log is switched off: `Zap`ped where they could be huge, or `Recover`ed in place",
            ),
            (
                "pml_order",
                "order in which pages that hardware has logged enter a dirty ring",
            ),
            (
                "replaced_leaf_is_clean",
                "a leaf that replaces a writable entry starts clean",
            ),
        ],
    ),
    (
        "Pre-faults",
        &[
            ("pre_fault", "`KVM_PRE_FAULT_MEMORY` exists"),
            (
                "pre_fault_spins",
                "after all roots were zapped it spins until the vCPU has run, or a signal comes",
            ),
            (
                "pre_fault_waits_for_slot",
                "on a slot that goes it tries until a signal comes, while the deletion waits for it; later `EAGAIN`",
            ),
            (
                "pre_fault_remakes_leaf",
                "a page that is mapped gets a new leaf, without the accessed bit",
            ),
        ],
    ),
    (
        "Quirks",
        &[
            ("quirks", "those that can be disabled"),
            ("quirks_off_at_birth", "those that are off in every new VM"),
            (
                "quirk_update",
                "a second `KVM_CAP_DISABLE_QUIRKS2`: takes the place of the first (`Replace`), or adds to it (`Accumulate`)",
            ),
        ],
    ),
];

/// A value in words: yes and no, and the number of quirks' highest bit.
fn words(name: &str, value: &str) -> String {
    match (name, value) {
        (_, "true") => "yes".to_owned(),
        (_, "false") => "no".to_owned(),
        (_, value) if value.ends_with("(0x0)") => "none".to_owned(),
        ("quirks", value) => {
            let last = value.rsplit(['|', '(']).next().unwrap_or(value);
            format!("to `{}`", last.trim().trim_end_matches(')'))
        }
        (_, value) => {
            let inner = value.split_once('(').map_or(value, |(_, inner)| inner);
            format!("`{}`", inner.trim_end_matches(')').replace(" | ", "`, `"))
        }
    }
}

fn document() -> String {
    let profiles = KERNELS.map(|name| Profile::named(name).expect("a profile that is named"));
    let mut text = HEAD.to_owned();
    for (topic, facts) in TOPICS {
        write!(text, "\n## {topic}\n").expect("a string takes any text");
        for (name, meaning) in facts {
            write!(
                text,
                "\n**{name}**: {meaning}.\n\n| since | value | how it is known |\n|---|---|---|\n"
            )
            .expect("a string takes any text");
            let mut before = None;
            for profile in &profiles {
                let facts = profile.facts();
                let fact = facts.iter().find(|(fact, ..)| fact == name);
                let (_, value, evidence) = fact.expect("a fact of profiles");
                let value = words(name, value);
                if before.as_ref() != Some(&value) {
                    writeln!(text, "| {} | {value} | {evidence} |", profile.name)
                        .expect("a string takes any text");
                }
                before = Some(value);
            }
        }
    }
    text
}

#[test]
fn the_document_is_what_profiles_say() {
    generated::assert_is("kernels.md", &document(), "the profiles say");
}

/// A fact that is added to profiles is either of the kernel, and in the document, or of the host.
#[test]
fn every_fact_is_of_a_kernel_or_of_a_host() {
    const HOST: [&str; 11] = [
        "dirty_ring",
        "vm_types",
        "smm",
        "vendor",
        "tdp",
        "tdp_mmu",
        "maxphyaddr",
        "pml",
        "user_end",
        "apic_access_slot",
        "tss_slot",
    ];
    for (name, ..) in Profile::latest().facts() {
        let told = TOPICS.iter().flat_map(|(_, facts)| facts.iter());
        let told = told.filter(|(fact, _)| *fact == name).count();
        let of_host = HOST.contains(&name);
        assert_eq!(told + usize::from(of_host), 1, "{name}");
    }
}

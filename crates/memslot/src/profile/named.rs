//! The named profiles. Kernel facts come from the tree named; host facts are those of the machine a recording was
//! made on, or of a common server.

use std::borrow::Cow;

use super::{Evidence, Fact, LogOff, PmlOrder, Profile, SlotZap, Vendor};
use crate::{Errno, GmemFlags, QuirkUpdate, Quirks, VmType};

type Make = fn() -> Profile;

pub(super) const BY_NAME: &[(&str, Make)] = &[
    ("linux-6.1", linux_6_1),
    ("linux-6.8", linux_6_8),
    ("linux-6.12", linux_6_12),
    ("debian-6.12.117", debian_6_12_117),
    ("debian-6.12.117-sw-protected", debian_6_12_117_sw_protected),
    ("linux-6.18", linux_6_18),
    ("linux-6.18.44-pvm", linux_6_18_44_pvm),
    ("linux-7.1", linux_7_1),
    ("linux-7.2", linux_7_2),
    ("linux-7.3-rc1", linux_7_3_rc1),
    ("linux-6.18-tdx", linux_6_18_tdx),
    ("linux-7.3-rc1-tdx", linux_7_3_rc1_tdx),
];

const DEB: &str = "Debian 6.12.117";
const PVM: &str = "6.18.44 with a paravirtual shadow-paging backend";

fn read<T: Copy>(value: T, source: &'static str) -> Fact<T> {
    Fact::new(value, Evidence::Read(Cow::Borrowed(source)))
}

fn observed<T: Copy>(value: T, on: &'static str) -> Fact<T> {
    Fact::new(value, Evidence::Observed(Cow::Borrowed(on)))
}

fn inferred<T: Copy>(value: T, from: &'static str) -> Fact<T> {
    Fact::new(value, Evidence::Inferred(Cow::Borrowed(from)))
}

/// Bits 0 to `last`.
const fn quirks_up_to(last: u32) -> Quirks {
    Quirks::from_bits_truncate((2 << last) - 1)
}

/// Debian's stable tree, cloud configuration, on an AMD host with NPT, as recorded in an emulated machine.
fn debian_6_12_117() -> Profile {
    Profile {
        name: "debian-6.12.117".into(),
        region2: observed(true, DEB),
        guest_memfd: observed(true, DEB),
        gmem_needs_private_memory: observed(true, DEB),
        gmem_flags: read(GmemFlags::empty(), DEB),
        gmem_bind_conflict: read(Errno::EINVAL, DEB),
        gmem_noexec: observed(false, DEB),
        gmem_signed_offsets: read(false, DEB),
        attributes: inferred(
            false,
            "the cloud configuration has no VM type with private memory",
        ),
        slot_zap: observed(SlotZap::ByTypeAndQuirk, DEB),
        log_off: observed(LogOff::Zap, DEB),
        quirk_update: read(QuirkUpdate::Accumulate, DEB),
        quirks: observed(quirks_up_to(10), DEB),
        quirks_off_at_birth: read(Quirks::IGNORE_GUEST_PAT, DEB),
        dirty_ring: observed(true, DEB),
        pre_fault: observed(true, DEB),
        pre_fault_spins: observed(true, DEB),
        pre_fault_waits_for_slot: read(true, DEB),
        pre_fault_remakes_leaf: observed(true, DEB),
        replaced_leaf_is_clean: observed(true, DEB),
        map_gpa_answers: inferred(false, "the contract came in May 2026"),
        vm_types: observed(0b1, DEB),
        smm: observed(true, DEB),
        vendor: observed(Vendor::Amd, DEB),
        tdp: observed(true, DEB),
        tdp_mmu: observed(true, DEB),
        maxphyaddr: observed(40, DEB),
        mmio_generation_bits: read(19, DEB),
        pml: observed(false, DEB),
        pml_order: read(PmlOrder::NewestFirst, DEB),
        user_end: observed(0x7fff_ffff_f000, PVM),
        apic_access_slot: inferred(false, "the emulated CPU has no AVIC"),
        tss_slot: read(false, DEB),
    }
}

/// The same tree built with `CONFIG_KVM_SW_PROTECTED_VM`.
fn debian_6_12_117_sw_protected() -> Profile {
    let mut p = debian_6_12_117();
    p.name = "debian-6.12.117-sw-protected".into();
    p.attributes = observed(true, DEB);
    p.vm_types = observed(0b11, DEB);
    p
}

/// The 6.12 release itself, generic configuration, on an Intel server.
fn linux_6_12() -> Profile {
    let mut p = debian_6_12_117_sw_protected();
    p.name = "linux-6.12".into();
    p.gmem_signed_offsets = inferred(
        true,
        "the unsigned offset is later work that the stable tree took",
    );
    p.quirk_update = inferred(QuirkUpdate::Replace, "the OR came with 6.15");
    p.quirks = inferred(
        quirks_up_to(7),
        "bits 8 to 10 are later work that the stable tree took",
    );
    p.quirks_off_at_birth = inferred(Quirks::empty(), "inapplicable quirks came with 6.15");
    on_intel_server(p)
}

/// Host facts of a common Intel server.
fn on_intel_server(mut p: Profile) -> Profile {
    const WHY: &str = "a common Intel server";
    p.vendor = inferred(Vendor::Intel, WHY);
    p.maxphyaddr = inferred(46, WHY);
    p.pml = inferred(true, WHY);
    p.apic_access_slot = inferred(true, WHY);
    p.tss_slot = inferred(false, "unrestricted guests need no TSS slot");
    p
}

fn linux_6_8() -> Profile {
    let mut p = linux_6_12();
    p.name = "linux-6.8".into();
    p.slot_zap = inferred(SlotZap::AlwaysAll, "the quirk came with 6.12");
    p.quirks = inferred(quirks_up_to(6), "the quirk came with 6.12");
    p.pre_fault = inferred(false, "KVM_PRE_FAULT_MEMORY came with 6.11");
    p
}

fn linux_6_1() -> Profile {
    let mut p = linux_6_8();
    p.name = "linux-6.1".into();
    const WHY: &str = "guest_memfd and attributes came with 6.8";
    p.region2 = inferred(false, WHY);
    p.guest_memfd = inferred(false, WHY);
    p.attributes = inferred(false, WHY);
    p.vm_types = inferred(0b1, WHY);
    p
}

/// The 6.18 release, on an Intel server with every VM type built in that runs there.
pub(super) fn linux_6_18() -> Profile {
    let mut p = linux_6_12();
    p.name = "linux-6.18".into();
    p.gmem_needs_private_memory = observed(false, PVM);
    p.gmem_flags = observed(GmemFlags::all(), PVM);
    p.gmem_bind_conflict = observed(Errno::EINVAL, PVM);
    p.gmem_signed_offsets = observed(true, PVM);
    p.gmem_noexec = observed(true, PVM);
    p.pre_fault_spins = inferred(false, "mended in March 2025, commit 20a6cff3b283");
    p.pre_fault_waits_for_slot = inferred(false, "EAGAIN came with 6.18");
    p.pre_fault_remakes_leaf = inferred(false, "prefaults keep leaves since 6.13");
    p.replaced_leaf_is_clean = inferred(false, "writable leaves start dirty since 6.13");
    p.log_off = inferred(LogOff::Recover, "recovery in place came with 6.13");
    p.pml_order = inferred(
        PmlOrder::OldestFirst,
        "the order of writing came with 6.14, commit 37c3ddfe5238",
    );
    p.quirk_update = observed(QuirkUpdate::Accumulate, PVM);
    p.quirks = inferred(quirks_up_to(9), "bit 9 came with 6.16, bit 10 with 7.0");
    p.quirks_off_at_birth = read(Quirks::CD_NW_CLEARED, DEB);
    p.vm_types = inferred(0b11, "TDX needs a host that has it switched on");
    p
}

/// The kernel that the recorded slot cases come from: 6.18.44 with shadow paging, no SMM.
fn linux_6_18_44_pvm() -> Profile {
    let mut p = linux_6_18();
    p.name = "linux-6.18.44-pvm".into();
    p.region2 = observed(true, PVM);
    p.guest_memfd = observed(true, PVM);
    p.attributes = observed(false, PVM);
    p.quirks = observed(Quirks::from_bits_truncate(0x5ff), PVM);
    p.dirty_ring = observed(true, PVM);
    p.vm_types = observed(0b1, PVM);
    p.smm = observed(false, PVM);
    p.vendor = observed(Vendor::Paravirtual, PVM);
    p.tdp = observed(false, PVM);
    p.tdp_mmu = observed(false, PVM);
    p.maxphyaddr = observed(48, PVM);
    p.pml = observed(false, PVM);
    p.apic_access_slot = observed(false, PVM);
    p.tss_slot = observed(false, PVM);
    p.quirks_off_at_birth = inferred(Quirks::empty(), "no vendor module that names any");
    p
}

fn linux_7_1() -> Profile {
    const TREE: &str = "torvalds/linux 01f492e1817e, between 7.0 and 7.1";
    let mut p = linux_6_18();
    p.name = "linux-7.1".into();
    p.gmem_bind_conflict = read(Errno::EINVAL, TREE);
    p.gmem_signed_offsets = read(true, TREE);
    p.gmem_flags = read(GmemFlags::all(), TREE);
    p.quirks = inferred(quirks_up_to(10), "bit 10 came with 7.0");
    p
}

fn linux_7_2() -> Profile {
    const TREE: &str = "torvalds/linux f8479adb280a, before 7.3-rc1";
    let mut p = linux_7_1();
    p.name = "linux-7.2".into();
    p.gmem_bind_conflict = read(Errno::EEXIST, TREE);
    p.gmem_signed_offsets = read(false, TREE);
    p.mmio_generation_bits = inferred(
        18,
        "mode-based execution took a bit, and was merged for the release after 7.1",
    );
    p
}

/// The same hosts with TDX switched on.
fn with_tdx(mut p: Profile, name: &'static str) -> Profile {
    p.name = name.into();
    let types = p.vm_types.get() | VmType::Tdx.mask();
    p.vm_types = inferred(types, "a host with TDX switched on");
    p
}

fn linux_6_18_tdx() -> Profile {
    with_tdx(linux_6_18(), "linux-6.18-tdx")
}

fn linux_7_3_rc1_tdx() -> Profile {
    with_tdx(linux_7_3_rc1(), "linux-7.3-rc1-tdx")
}

fn linux_7_3_rc1() -> Profile {
    const TREE: &str = "torvalds/linux 67f8bc848ee3, 7.3-rc1";
    let mut p = linux_7_2();
    p.name = "linux-7.3-rc1".into();
    p.map_gpa_answers = inferred(true, "merged with the patches of May 2026");
    p.gmem_bind_conflict = read(Errno::EEXIST, TREE);
    p
}

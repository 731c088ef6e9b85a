//! A profile filled from a live kernel's answers.

use std::borrow::Cow;

use super::{Evidence, Fact, LogOff, PmlOrder, Profile, SlotZap, Vendor};
use crate::{GmemFlags, QuirkUpdate, Quirks, cap};

/// What a kernel answers to side-effect-free queries; the raw material of [`Profile::probed`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Capabilities {
    /// The release, as `uname -r` prints it; a label, never a decision.
    pub release: String,
    /// `KVM_CHECK_EXTENSION` on `/dev/kvm`: number and value, for every capability in [`cap::ALL`].
    pub system: Vec<(u32, u32)>,
    /// `KVM_CHECK_EXTENSION` on a VM of type 0.
    pub vm: Vec<(u32, u32)>,
    /// How many bits the highest guest-physical address of a slot can have, found by trying.
    pub address_bits: u8,
    /// Where user space ends for slots, found by trying.
    pub user_end: u64,
    /// The vendor module in use.
    pub vendor: Vendor,
    /// The module parameter `tdp_mmu`.
    pub tdp_mmu: bool,
    /// The module parameter `pml` of kvm_intel.
    pub pml: bool,
    /// The CPU virtualises the APIC with an access page (APICv or AVIC).
    pub apic_access_page: bool,
    /// A guest_memfd slot on a default VM with a descriptor that is not open gave EBADF rather than EINVAL: the
    /// flag itself is allowed.
    pub gmem_on_default_vm: bool,
    /// Mapping a guest_memfd executable gave `EPERM`, if it could be tried.
    pub gmem_noexec: Option<bool>,
    /// Binding a range of a guest_memfd across 2^63 worked, if it could be tried.
    pub gmem_signed_offsets: Option<bool>,
    /// Binding a guest_memfd's range twice gave this error, if it could be tried.
    pub gmem_bind_conflict: Option<crate::Errno>,
}

impl Capabilities {
    /// The value on `/dev/kvm`; 0 when not asked.
    pub fn system(&self, cap: u32) -> u32 {
        lookup(&self.system, cap)
    }

    /// The value on a VM; 0 when not asked.
    pub fn vm(&self, cap: u32) -> u32 {
        lookup(&self.vm, cap)
    }
}

fn lookup(values: &[(u32, u32)], cap: u32) -> u32 {
    values
        .iter()
        .find(|(number, _)| *number == cap)
        .map_or(0, |(_, value)| *value)
}

fn probed<T: Copy>(value: T, query: &'static str) -> Fact<T> {
    Fact::new(value, Evidence::Probed(Cow::Borrowed(query)))
}

impl Profile {
    /// The kernel and host that gave these answers. What cannot be asked is taken from the newest profile whose
    /// capabilities match, and its evidence says so.
    pub fn probed(caps: &Capabilities) -> Self {
        let mut p = super::named::linux_6_18();
        p.name = format!("probed {}", caps.release).into();
        probe_interface(&mut p, caps);
        probe_quirks(&mut p, caps);
        probe_host(&mut p, caps);
        p
    }
}

fn probe_interface(p: &mut Profile, caps: &Capabilities) {
    p.region2 = probed(caps.system(cap::USER_MEMORY2) != 0, "KVM_CAP_USER_MEMORY2");
    p.guest_memfd = probed(caps.system(cap::GUEST_MEMFD) != 0, "KVM_CAP_GUEST_MEMFD");
    p.gmem_needs_private_memory = probed(
        !caps.gmem_on_default_vm,
        "KVM_MEM_GUEST_MEMFD with a closed descriptor on a default VM",
    );
    let flags = GmemFlags::from_bits_truncate(u64::from(caps.vm(cap::GUEST_MEMFD_FLAGS)));
    p.gmem_flags = probed(flags, "KVM_CAP_GUEST_MEMFD_FLAGS");
    if let Some(noexec) = caps.gmem_noexec {
        p.gmem_noexec = probed(noexec, "a guest_memfd mapped executable");
    }
    if let Some(signed) = caps.gmem_signed_offsets {
        p.gmem_signed_offsets = probed(signed, "a range bound across 2^63");
    }
    if let Some(errno) = caps.gmem_bind_conflict {
        p.gmem_bind_conflict = probed(errno, "one range bound twice");
    }
    p.attributes = probed(
        caps.system(cap::MEMORY_ATTRIBUTES) != 0,
        "KVM_CAP_MEMORY_ATTRIBUTES",
    );
    p.dirty_ring = probed(
        caps.system(cap::DIRTY_LOG_RING) != 0,
        "KVM_CAP_DIRTY_LOG_RING",
    );
    let release = || Evidence::Inferred(format!("the release string {}", caps.release).into());
    p.pre_fault = match caps.system(cap::PRE_FAULT_MEMORY) {
        0 => Fact::new(at_least(&caps.release, 6, 11), release()),
        _ => probed(true, "KVM_CAP_PRE_FAULT_MEMORY"),
    };
    p.pre_fault_spins = Fact::new(!at_least(&caps.release, 6, 15), release());
    p.pre_fault_waits_for_slot = Fact::new(!at_least(&caps.release, 6, 18), release());
    let before_6_13 = !at_least(&caps.release, 6, 13);
    p.pre_fault_remakes_leaf = Fact::new(before_6_13, release());
    p.replaced_leaf_is_clean = Fact::new(before_6_13, release());
    p.log_off = Fact::new(
        if at_least(&caps.release, 6, 13) {
            LogOff::Recover
        } else {
            LogOff::Zap
        },
        release(),
    );
    p.pml_order = Fact::new(
        if at_least(&caps.release, 6, 14) {
            PmlOrder::OldestFirst
        } else {
            PmlOrder::NewestFirst
        },
        release(),
    );
    p.vm_types = probed(caps.system(cap::VM_TYPES).max(1), "KVM_CAP_VM_TYPES");
    p.smm = probed(
        caps.system(cap::MULTI_ADDRESS_SPACE) == 2,
        "KVM_CAP_MULTI_ADDRESS_SPACE",
    );
}

fn probe_quirks(p: &mut Profile, caps: &Capabilities) {
    let mask = Quirks::from_bits_retain(u64::from(caps.system(cap::DISABLE_QUIRKS2)));
    p.quirks = probed(mask, "KVM_CAP_DISABLE_QUIRKS2");
    let zap = if mask.contains(Quirks::SLOT_ZAP_ALL) {
        SlotZap::ByTypeAndQuirk
    } else {
        SlotZap::AlwaysAll
    };
    p.slot_zap = probed(zap, "KVM_CAP_DISABLE_QUIRKS2");
    // Supported-quirk masks that leave a defined bit out, or know bit 9 or 10, came together with accumulation.
    let accumulates = mask
        .intersects(Quirks::IGNORE_GUEST_PAT | Quirks::VMCS12_ALLOW_FREEZE_IN_SMM)
        || at_least(&caps.release, 6, 15);
    let update = if accumulates {
        QuirkUpdate::Accumulate
    } else {
        QuirkUpdate::Replace
    };
    p.quirk_update = Fact::new(
        update,
        Evidence::Inferred("the quirks that the kernel knows, and its release".into()),
    );
    // What a vendor's hosts have no use for is off since the same patches.
    let off = match caps.vendor {
        Vendor::Intel if accumulates => Quirks::CD_NW_CLEARED,
        Vendor::Amd if accumulates => Quirks::IGNORE_GUEST_PAT,
        _ => Quirks::empty(),
    };
    p.quirks_off_at_birth = Fact::new(
        off,
        Evidence::Inferred("the vendor module, and how quirks are disabled".into()),
    );
}

fn probe_host(p: &mut Profile, caps: &Capabilities) {
    p.vendor = probed(caps.vendor, "the loaded modules");
    // Before 6.11 the capability does not exist; every host that is not a paravirtual one then has EPT or NPT.
    let tdp = match caps.vendor {
        Vendor::Paravirtual => caps.system(cap::PRE_FAULT_MEMORY) != 0,
        Vendor::Intel | Vendor::Amd => {
            caps.system(cap::PRE_FAULT_MEMORY) != 0 || !p.pre_fault.get()
        }
    };
    p.tdp = probed(tdp, "KVM_CAP_PRE_FAULT_MEMORY");
    p.tdp_mmu = probed(tdp && caps.tdp_mmu, "the module parameter tdp_mmu");
    p.maxphyaddr = probed(caps.address_bits, "slots tried at rising addresses");
    p.user_end = probed(caps.user_end, "slots tried at the ends of user space");
    p.pml = probed(caps.pml, "the module parameter pml");
    p.apic_access_slot = probed(
        caps.apic_access_page,
        "the module parameters enable_apicv, avic",
    );
}

/// Whether a release string is at least `major.minor`; a string without numbers is taken as new.
fn at_least(release: &str, major: u32, minor: u32) -> bool {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|n| n.parse::<u32>());
    match (numbers.next(), numbers.next()) {
        (Some(Ok(a)), Some(Ok(b))) => (a, b) >= (major, minor),
        _ => true,
    }
}

#[cfg(test)]
mod tests;

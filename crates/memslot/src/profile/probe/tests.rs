use super::*;
use crate::{Errno, Memory, VmType};

/// What a kernel and a host of this profile answer, by the model of the kernel's own answers.
fn answers(p: &Profile, release: &str) -> Capabilities {
    let vm = Memory::new(p.clone(), VmType::Default);
    let asked = |of: &dyn Fn(u32) -> u64| {
        let all = cap::ALL.iter().map(|(number, _)| *number);
        all.map(|number| (number, u32::try_from(of(number)).unwrap()))
            .collect()
    };
    // On /dev/kvm there is no VM whose type or limits would count.
    let system = |number| match number {
        cap::GUEST_MEMFD => u64::from(p.guest_memfd.get()),
        cap::MEMORY_ATTRIBUTES => 8 * u64::from(p.attributes.get()),
        number => vm.check_extension(number).unwrap(),
    };
    Capabilities {
        release: release.to_owned(),
        system: asked(&system),
        vm: asked(&|number| vm.check_extension(number).unwrap()),
        address_bits: p.maxphyaddr.get(),
        user_end: p.user_end.get(),
        vendor: p.vendor.get(),
        tdp_mmu: p.tdp_mmu.get(),
        pml: p.pml.get(),
        apic_access_page: p.apic_access_slot.get(),
        gmem_on_default_vm: !p.gmem_needs_private_memory.get(),
        gmem_noexec: Some(p.gmem_noexec.get()),
        gmem_signed_offsets: Some(p.gmem_signed_offsets.get()),
        gmem_bind_conflict: Some(p.gmem_bind_conflict.get()),
    }
}

/// The facts that differ, but for those that nothing asks for.
fn differences(a: &Profile, b: &Profile) -> Vec<&'static str> {
    const UNASKED: [&str; 3] = ["mmio_generation_bits", "map_gpa_answers", "tss_slot"];
    let (a, b) = (a.facts(), b.facts());
    let pairs = a.into_iter().zip(b);
    let differ = pairs.filter(|((_, a, _), (_, b, _))| a != b);
    let names = differ.map(|((name, ..), _)| name);
    names.filter(|name| !UNASKED.contains(name)).collect()
}

/// The named profiles are the oracle: a host that answers as one of them says is found to be that one.
#[test]
fn a_named_kernel_is_recognised_by_its_answers() {
    for (name, release) in [
        ("linux-6.12", "6.12.0"),
        ("linux-6.18", "6.18.0"),
        ("linux-6.18.44-pvm", "6.18.44"),
        ("linux-7.1", "7.1.0-rc3+"),
        ("linux-7.2", "7.2"),
    ] {
        let named = Profile::named(name).unwrap();
        let found = Profile::probed(&answers(&named, release));
        assert_eq!(differences(&found, &named), [""; 0], "{name}");
        assert_eq!(found.name, format!("probed {release}"));
    }
}

/// It took later work, which no capability shows: only what its version number hides differs.
#[test]
fn a_stable_tree_is_taken_by_its_capabilities_first() {
    let named = Profile::named("debian-6.12.117").unwrap();
    let found = Profile::probed(&answers(&named, "6.12.117+deb13-cloud-amd64"));
    assert_eq!(differences(&found, &named), [""; 0]);
    // Not one of the quirks that tell.
    let mut older = named;
    older.quirks.set(Quirks::from_bits_truncate(0xff));
    let found = Profile::probed(&answers(&older, "6.12.8"));
    assert_eq!(found.quirk_update.get(), QuirkUpdate::Replace);
}

#[test]
fn what_could_not_be_tried_is_that_of_the_newest() {
    let newest = Profile::latest();
    let mut caps = answers(&newest, "6.18.0");
    caps.gmem_noexec = None;
    caps.gmem_signed_offsets = None;
    caps.gmem_bind_conflict = None;
    let found = Profile::probed(&caps);
    assert_eq!(found.gmem_noexec, newest.gmem_noexec);
    assert_eq!(found.gmem_signed_offsets, newest.gmem_signed_offsets);
    assert_eq!(found.gmem_bind_conflict, newest.gmem_bind_conflict);
    caps.gmem_noexec = Some(!newest.gmem_noexec.get());
    caps.gmem_signed_offsets = Some(!newest.gmem_signed_offsets.get());
    caps.gmem_bind_conflict = Some(Errno::EEXIST);
    let found = Profile::probed(&caps);
    assert_ne!(found.gmem_noexec.get(), newest.gmem_noexec.get());
    assert_ne!(
        found.gmem_signed_offsets.get(),
        newest.gmem_signed_offsets.get()
    );
    assert_eq!(found.gmem_bind_conflict.get(), Errno::EEXIST);
}

/// Without `KVM_CAP_PRE_FAULT_MEMORY`, a host of 6.11 or later has no second stage; an older one has, and cannot say so.
#[test]
fn two_dimensional_paging_is_seen_by_prefaults() {
    let found = |vendor, prefaults: bool, release: &str| {
        let mut caps = answers(&Profile::latest(), release);
        let asked = caps.system.iter_mut();
        for (_, value) in asked.filter(|(number, _)| *number == cap::PRE_FAULT_MEMORY) {
            *value = u32::from(prefaults);
        }
        caps.vendor = vendor;
        let p = Profile::probed(&caps);
        assert_eq!(p.tdp_mmu.get(), p.tdp.get());
        (p.tdp.get(), p.pre_fault.get())
    };
    for vendor in [Vendor::Intel, Vendor::Amd] {
        assert_eq!(found(vendor, true, "6.12"), (true, true));
        assert_eq!(found(vendor, false, "6.12"), (false, true));
        assert_eq!(found(vendor, false, "6.10"), (true, false));
    }
    assert_eq!(found(Vendor::Paravirtual, true, "6.12"), (true, true));
    assert_eq!(found(Vendor::Paravirtual, false, "6.10"), (false, false));
    let mut caps = answers(&Profile::latest(), "6.18");
    caps.tdp_mmu = false;
    assert!(!Profile::probed(&caps).tdp_mmu.get());
}

#[test]
fn releases_compare_by_their_first_two_numbers() {
    for (release, expected) in [
        ("6.11", true),
        ("6.12.3-generic", true),
        ("7.0-rc1", true),
        ("6.10.99", false),
        ("5.19", false),
        ("6", true),
        ("", true),
        ("kernel", true),
    ] {
        assert_eq!(at_least(release, 6, 11), expected, "{release:?}");
    }
}

#[test]
fn what_was_not_asked_is_zero() {
    let mut caps = answers(&Profile::latest(), "6.18");
    assert_eq!(caps.vm(cap::NR_MEMSLOTS), 32764);
    assert_eq!(caps.system(cap::SYNC_MMU), 1);
    caps.system.clear();
    caps.vm.clear();
    assert_eq!(
        (caps.system(cap::SYNC_MMU), caps.vm(cap::NR_MEMSLOTS)),
        (0, 0)
    );
    // A kernel that does not know KVM_CAP_VM_TYPES makes default VMs.
    assert_eq!(Profile::probed(&caps).vm_types.get(), 1);
}

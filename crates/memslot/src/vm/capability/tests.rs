use super::*;
use crate::{Profile, VmType};

/// What `kvm_vm_ioctl_check_extension` and `kvm_vm_ioctl_check_extension_generic` answer for a VM.
#[test]
fn a_vm_answers_for_its_type_and_its_kernel() {
    let answers = |name: &str, vm_type| {
        let memory = Memory::new(Profile::named(name).unwrap(), vm_type);
        move |number| memory.check_extension(number)
    };
    let of_6_12 = answers("linux-6.12", VmType::SwProtected);
    let expected = [
        (cap::USER_MEMORY, 1),
        (cap::NR_MEMSLOTS, 32764),
        (cap::SYNC_MMU, 1),
        (cap::READONLY_MEM, 1),
        // A VM with private memory has no SMM.
        (cap::MULTI_ADDRESS_SPACE, 1),
        (cap::MANUAL_DIRTY_LOG_PROTECT2, 3),
        // 65536 entries of 16 bytes.
        (cap::DIRTY_LOG_RING, 1 << 20),
        (cap::DIRTY_LOG_RING_ACQ_REL, 1 << 20),
        (cap::DIRTY_LOG_RING_WITH_BITMAP, 0),
        (cap::EXIT_HYPERCALL, 1 << 12),
        (cap::DISABLE_QUIRKS2, 0xff),
        (cap::USER_MEMORY2, 1),
        (cap::MEMORY_FAULT_INFO, 1),
        // KVM_MEMORY_ATTRIBUTE_PRIVATE.
        (cap::MEMORY_ATTRIBUTES, 8),
        (cap::GUEST_MEMFD, 1),
        (cap::VM_TYPES, 0b11),
        (cap::PRE_FAULT_MEMORY, 1),
        (cap::GUEST_MEMFD_FLAGS, 0),
    ];
    for (number, value) in expected {
        assert_eq!(of_6_12(number), Some(value), "{:?}", cap::name(number));
    }
    assert_eq!(of_6_12(1), None);
    let default = answers("linux-6.12", VmType::Default);
    assert_eq!(default(cap::MULTI_ADDRESS_SPACE), Some(2));
    assert_eq!(default(cap::MEMORY_ATTRIBUTES), Some(0));
    assert_eq!(default(cap::GUEST_MEMFD), Some(0));
    let snp = answers("linux-6.18", VmType::Snp);
    assert_eq!(snp(cap::READONLY_MEM), Some(0));
    let mmapable = answers("linux-6.18", VmType::Default);
    assert_eq!(mmapable(cap::GUEST_MEMFD), Some(1));
    assert_eq!(mmapable(cap::GUEST_MEMFD_FLAGS), Some(3));
}

#[test]
fn an_older_kernel_answers_nothing_for_what_came_later() {
    let old = Memory::new(Profile::named("linux-6.1").unwrap(), VmType::Default);
    for number in [
        cap::USER_MEMORY2,
        cap::MEMORY_FAULT_INFO,
        cap::MEMORY_ATTRIBUTES,
        cap::GUEST_MEMFD,
        cap::VM_TYPES,
        cap::PRE_FAULT_MEMORY,
    ] {
        assert_eq!(
            old.check_extension(number),
            Some(0),
            "{:?}",
            cap::name(number)
        );
    }
    let mut profile = Profile::latest();
    profile.smm.set(false);
    profile.dirty_ring.set(false);
    profile.tdp.set(false);
    profile.attributes.set(false);
    let poor = Memory::new(profile, VmType::SwProtected);
    for number in [
        cap::MULTI_ADDRESS_SPACE,
        cap::DIRTY_LOG_RING,
        cap::DIRTY_LOG_RING_ACQ_REL,
        cap::PRE_FAULT_MEMORY,
        cap::MEMORY_ATTRIBUTES,
    ] {
        assert_eq!(
            poor.check_extension(number),
            Some(0),
            "{:?}",
            cap::name(number)
        );
    }
}

#[test]
fn types_are_supported_by_their_bit() {
    for (name, types) in [
        ("linux-6.1", 1),
        ("linux-6.18", 3),
        ("linux-6.18-tdx", 0x23),
    ] {
        let profile = Profile::named(name).unwrap();
        for vm_type in VmType::ALL {
            let expected = types & 1 << vm_type.raw() != 0;
            assert_eq!(profile.supports(vm_type), expected, "{name} {vm_type}");
        }
        assert_eq!(profile.name, name);
        assert!(Profile::names().any(|known| known == name));
    }
    assert!(Profile::names().eq(Profile::names().filter(|name| Profile::named(name).is_some())));
}

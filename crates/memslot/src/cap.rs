//! Capability numbers of the memory interface (`KVM_CAP_*`).

macro_rules! caps {
    ($($(#[$doc:meta])* $name:ident = $number:literal),* $(,)?) => {
        $($(#[$doc])* #[doc = concat!("\n\n`KVM_CAP_", stringify!($name), "`.")]
        pub const $name: u32 = $number;)*

        /// Every capability that the model knows: number and name without `KVM_CAP_`.
        pub const ALL: &[(u32, &str)] = &[$(($number, stringify!($name))),*];
    };
}

caps! {
    /// `KVM_SET_USER_MEMORY_REGION` exists.
    USER_MEMORY = 3,
    /// How many user slots an address space has.
    NR_MEMSLOTS = 10,
    /// Host memory follows the process's mappings.
    SYNC_MMU = 16,
    /// Deleting a slot works.
    DESTROY_MEMORY_REGION_WORKS = 21,
    /// Adjacent slots can be joined.
    JOIN_MEMORY_REGIONS_WORKS = 30,
    /// Read-only slots.
    READONLY_MEM = 81,
    /// The first, unchecked way to disable quirks.
    DISABLE_QUIRKS = 116,
    /// How many address spaces a VM has.
    MULTI_ADDRESS_SPACE = 118,
    /// Manual dirty-log protection.
    MANUAL_DIRTY_LOG_PROTECT2 = 168,
    /// Dirty rings.
    DIRTY_LOG_RING = 192,
    /// Hypercalls that exit to user space.
    EXIT_HYPERCALL = 201,
    /// The second way to disable quirks.
    DISABLE_QUIRKS2 = 213,
    /// Dirty rings with acquire-release semantics.
    DIRTY_LOG_RING_ACQ_REL = 223,
    /// Dirty rings beside a bitmap; not on x86.
    DIRTY_LOG_RING_WITH_BITMAP = 225,
    /// `KVM_SET_USER_MEMORY_REGION2` exists.
    USER_MEMORY2 = 231,
    /// `KVM_EXIT_MEMORY_FAULT` exists.
    MEMORY_FAULT_INFO = 232,
    /// Attributes that the VM supports.
    MEMORY_ATTRIBUTES = 233,
    /// `KVM_CREATE_GUEST_MEMFD` exists.
    GUEST_MEMFD = 234,
    /// VM types that can be made.
    VM_TYPES = 235,
    /// `KVM_PRE_FAULT_MEMORY` works.
    PRE_FAULT_MEMORY = 236,
    /// Flags of `KVM_CREATE_GUEST_MEMFD`.
    GUEST_MEMFD_FLAGS = 244,
}

/// The capability's name without `KVM_CAP_`, if the model knows it.
pub fn name(cap: u32) -> Option<&'static str> {
    ALL.iter()
        .find(|(number, _)| *number == cap)
        .map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three numbers of the kernel's header.
    #[test]
    fn capabilities_are_named() {
        assert_eq!(name(3), Some("USER_MEMORY"));
        assert_eq!(name(192), Some("DIRTY_LOG_RING"));
        assert_eq!(name(236), Some("PRE_FAULT_MEMORY"));
        assert_eq!(name(0), None);
        assert_eq!(name(237), None);
    }
}

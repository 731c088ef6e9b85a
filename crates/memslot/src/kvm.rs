//! Conversions from and to the structs of kvm-bindings.

use kvm_bindings::{kvm_userspace_memory_region, kvm_userspace_memory_region2};

use crate::{FileRef, Region, RegionVersion};

impl From<kvm_userspace_memory_region> for Region {
    fn from(raw: kvm_userspace_memory_region) -> Self {
        Self {
            version: RegionVersion::V1,
            slot: raw.slot,
            flags: raw.flags,
            gpa: raw.guest_phys_addr,
            size: raw.memory_size,
            hva: raw.userspace_addr,
            ..Self::default()
        }
    }
}

impl From<&Region> for kvm_userspace_memory_region {
    /// Drops what the older struct has no room for.
    fn from(region: &Region) -> Self {
        Self {
            slot: region.slot,
            flags: region.flags,
            guest_phys_addr: region.gpa,
            memory_size: region.size,
            userspace_addr: region.hva,
        }
    }
}

impl Region {
    /// A request of the newer struct; `resolve` says what its `guest_memfd` number names.
    pub fn from_region2(
        raw: &kvm_userspace_memory_region2,
        resolve: impl FnOnce(i32) -> FileRef,
    ) -> Self {
        Self {
            version: RegionVersion::V2,
            slot: raw.slot,
            flags: raw.flags,
            gpa: raw.guest_phys_addr,
            size: raw.memory_size,
            hva: raw.userspace_addr,
            gmem: resolve(i32::from_ne_bytes(raw.guest_memfd.to_ne_bytes())),
            gmem_offset: raw.guest_memfd_offset,
            padding: raw.pad1,
        }
    }

    /// The newer struct; `descriptor` gives the number of the file that the request names.
    pub fn to_region2(
        &self,
        descriptor: impl FnOnce(FileRef) -> i32,
    ) -> kvm_userspace_memory_region2 {
        kvm_userspace_memory_region2 {
            slot: self.slot,
            flags: self.flags,
            guest_phys_addr: self.gpa,
            memory_size: self.size,
            userspace_addr: self.hva,
            guest_memfd_offset: self.gmem_offset,
            guest_memfd: u32::from_ne_bytes(descriptor(self.gmem).to_ne_bytes()),
            pad1: self.padding,
            pad2: [u64::from(self.padding); 14],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GmemId;

    /// `struct kvm_userspace_memory_region` of `linux/kvm.h`, with another value in each field.
    #[test]
    fn the_older_struct_keeps_its_fields() {
        let raw = kvm_userspace_memory_region {
            slot: 1,
            flags: 2,
            guest_phys_addr: 3,
            memory_size: 4,
            userspace_addr: 5,
        };
        let region = Region::from(raw);
        let expected = Region {
            version: RegionVersion::V1,
            slot: 1,
            flags: 2,
            gpa: 3,
            size: 4,
            hva: 5,
            ..Region::default()
        };
        assert_eq!(region, expected);
        assert_eq!(kvm_userspace_memory_region::from(&region), raw);
    }

    /// `struct kvm_userspace_memory_region2`, the same.
    #[test]
    fn the_newer_struct_keeps_its_fields_and_its_file() {
        let raw = kvm_userspace_memory_region2 {
            slot: 1,
            flags: 2,
            guest_phys_addr: 3,
            memory_size: 4,
            userspace_addr: 5,
            guest_memfd_offset: 6,
            guest_memfd: 7,
            pad1: 8,
            pad2: [8; 14],
        };
        let file = FileRef::Gmem(GmemId::new(9));
        let region = Region::from_region2(&raw, |descriptor| {
            assert_eq!(descriptor, 7);
            file
        });
        let expected = Region {
            version: RegionVersion::V2,
            slot: 1,
            flags: 2,
            gpa: 3,
            size: 4,
            hva: 5,
            gmem: file,
            gmem_offset: 6,
            padding: 8,
        };
        assert_eq!(region, expected);
        let back = region.to_region2(|named| {
            assert_eq!(named, file);
            7
        });
        assert_eq!(back, raw);
    }
}

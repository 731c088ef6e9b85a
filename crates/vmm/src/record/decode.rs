//! Turns an ioctl's request number and the bytes of its argument into a [`Call`].

use slat_memslot::{Buffer, Call, ClearBits, FileRef, Region, RegionVersion, SlotFlags};

/// Request numbers, as x86-64 encodes them.
pub(super) mod request {
    macro_rules! requests {
        ($($name:ident = $value:literal),* $(,)?) => {
            $(#[doc = concat!("`KVM_", stringify!($name), "`.")]
            pub(in crate::record) const $name: u32 = $value;)*

            /// Every request that a recording can hold.
            pub(in crate::record) const ALL: &[u32] = &[$($name),*];
        };
    }

    requests! {
        CREATE_VM = 0xae01,
        CHECK_EXTENSION = 0xae03,
        CREATE_VCPU = 0xae41,
        GET_DIRTY_LOG = 0x4010_ae42,
        SET_NR_MMU_PAGES = 0xae44,
        SET_USER_MEMORY_REGION = 0x4020_ae46,
        SET_TSS_ADDR = 0xae47,
        SET_IDENTITY_MAP_ADDR = 0x4008_ae48,
        SET_USER_MEMORY_REGION2 = 0x40a0_ae49,
        CREATE_IRQCHIP = 0xae60,
        ENABLE_CAP = 0x4068_aea3,
        CLEAR_DIRTY_LOG = 0xc018_aec0,
        RESET_DIRTY_RINGS = 0xaec7,
        SET_MEMORY_ATTRIBUTES = 0x4020_aed2,
        CREATE_GUEST_MEMFD = 0xc040_aed4,
        PRE_FAULT_MEMORY = 0xc040_aed5,
    }
}

/// The most words of a `KVM_CLEAR_DIRTY_LOG` bitmap that are read: enough for a slot of 256 GiB.
const MOST_WORDS: u32 = 1 << 20;

/// What an ioctl turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Decoded {
    /// A call of the memory interface.
    Call(Call),
    /// A call of the memory interface whose argument cannot be read, or does not fit a [`Call`].
    Unreadable,
    /// Some other ioctl.
    Unrelated,
}

impl From<Option<Call>> for Decoded {
    fn from(call: Option<Call>) -> Self {
        call.map_or(Self::Unreadable, Self::Call)
    }
}

/// The third argument of an ioctl, and the way to what it points to.
pub(super) struct Argument<'a> {
    /// The register.
    pub(super) value: u64,
    /// Reads so many bytes at an address, if they can be read.
    pub(super) memory: &'a dyn Fn(u64, usize) -> Option<Vec<u8>>,
    /// What a descriptor number names.
    pub(super) file: &'a dyn Fn(i32) -> FileRef,
}

/// Decodes an ioctl on a VM, other than `KVM_CREATE_VCPU`'s number, which a call does not hold.
pub(super) fn on_vm(number: u32, argument: &Argument<'_>) -> Decoded {
    match number {
        request::SET_USER_MEMORY_REGION => argument.region(RegionVersion::V1).into(),
        request::SET_USER_MEMORY_REGION2 => argument.region(RegionVersion::V2).into(),
        request::GET_DIRTY_LOG => argument.get_dirty_log().into(),
        request::CLEAR_DIRTY_LOG => argument.clear_dirty_log().into(),
        request::SET_MEMORY_ATTRIBUTES => argument.set_attributes().into(),
        request::CREATE_GUEST_MEMFD => argument.create_gmem().into(),
        request::ENABLE_CAP => argument.enable_cap().into(),
        request::SET_IDENTITY_MAP_ADDR => argument.set_identity_map().into(),
        request::CHECK_EXTENSION => u32::try_from(argument.value)
            .ok()
            .map(|cap| Call::CheckExtension { cap })
            .into(),
        other => by_value(other, argument.value),
    }
}

/// Decodes the ioctls on a VM that point to nothing.
fn by_value(number: u32, value: u64) -> Decoded {
    let call = match number {
        request::SET_NR_MMU_PAGES => Call::SetNrMmuPages { pages: value },
        request::SET_TSS_ADDR => Call::SetTssAddr { gpa: value },
        request::RESET_DIRTY_RINGS => Call::ResetDirtyRings,
        request::CREATE_IRQCHIP => Call::CreateIrqchip,
        request::CREATE_VCPU => Call::CreateVcpu,
        _ => return Decoded::Unrelated,
    };
    Decoded::Call(call)
}

/// Decodes an ioctl on the vCPU with index `vcpu`.
pub(super) fn on_vcpu(number: u32, vcpu: u32, argument: &Argument<'_>) -> Decoded {
    match number {
        request::PRE_FAULT_MEMORY => argument.pre_fault(vcpu).into(),
        _ => Decoded::Unrelated,
    }
}

impl Argument<'_> {
    /// The struct of `length` bytes that the argument points to.
    fn bytes(&self, length: usize) -> Option<Vec<u8>> {
        (self.memory)(self.value, length)
    }

    fn region(&self, version: RegionVersion) -> Option<Call> {
        let bytes = self.bytes(match version {
            RegionVersion::V1 => 32,
            RegionVersion::V2 => 160,
        })?;
        let mut fields = Fields(&bytes);
        let mut region = Region {
            version,
            slot: fields.u32()?,
            flags: fields.u32()?,
            gpa: fields.u64()?,
            size: fields.u64()?,
            hva: fields.u64()?,
            ..Region::default()
        };
        if version == RegionVersion::V2 {
            region.gmem_offset = fields.u64()?;
            region.gmem = self.gmem(&region, fields.i32()?);
            region.padding = fields.u32()?;
        }
        Some(Call::SetRegion(region))
    }

    /// What the `guest_memfd` number names, if the kernel is to look at it.
    fn gmem(&self, region: &Region, number: i32) -> FileRef {
        if region.has(SlotFlags::GUEST_MEMFD) {
            (self.file)(number)
        } else {
            FileRef::NotOpen(number)
        }
    }

    fn get_dirty_log(&self) -> Option<Call> {
        let bytes = self.bytes(16)?;
        let mut fields = Fields(&bytes);
        let slot = fields.u32()?;
        let _padding = fields.u32()?;
        let buffer = match (self.memory)(fields.u64()?, 1) {
            Some(_) => Buffer::Good,
            None => Buffer::Null,
        };
        Some(Call::GetDirtyLog { slot, buffer })
    }

    fn clear_dirty_log(&self) -> Option<Call> {
        let bytes = self.bytes(24)?;
        let mut fields = Fields(&bytes);
        let slot = fields.u32()?;
        let num_pages = fields.u32()?;
        let first_page = fields.u64()?;
        let bits = self.clear_bits(fields.u64()?, num_pages);
        Some(Call::ClearDirtyLog {
            slot,
            first_page,
            num_pages,
            bits,
        })
    }

    /// The bitmap at `address`, which may not be there.
    fn clear_bits(&self, address: u64, num_pages: u32) -> ClearBits {
        let count = num_pages.div_ceil(64).clamp(1, MOST_WORDS);
        let length = usize::try_from(count).unwrap_or(usize::MAX / 8) * 8;
        let Some(bytes) = (self.memory)(address, length) else {
            return ClearBits::Null;
        };
        let mut fields = Fields(&bytes);
        let words: Vec<u64> = std::iter::from_fn(|| fields.u64()).collect();
        if words.iter().all(|word| *word == u64::MAX) {
            ClearBits::All
        } else {
            ClearBits::Words(words)
        }
    }

    fn set_attributes(&self) -> Option<Call> {
        let bytes = self.bytes(32)?;
        let mut fields = Fields(&bytes);
        Some(Call::SetAttributes {
            address: fields.u64()?,
            size: fields.u64()?,
            attributes: fields.u64()?,
            flags: fields.u64()?,
        })
    }

    fn create_gmem(&self) -> Option<Call> {
        let bytes = self.bytes(64)?;
        let mut fields = Fields(&bytes);
        Some(Call::CreateGmem {
            size: fields.u64()?,
            flags: fields.u64()?,
            reserved: fields.u64()?,
        })
    }

    fn enable_cap(&self) -> Option<Call> {
        let bytes = self.bytes(104)?;
        let mut fields = Fields(&bytes);
        Some(Call::EnableCap {
            cap: fields.u32()?,
            flags: fields.u32()?,
            args: [fields.u64()?, fields.u64()?, fields.u64()?, fields.u64()?],
        })
    }

    fn set_identity_map(&self) -> Option<Call> {
        let gpa = Fields(&self.bytes(8)?).u64()?;
        Some(Call::SetIdentityMapAddr { gpa })
    }

    fn pre_fault(&self, vcpu: u32) -> Option<Call> {
        let bytes = self.bytes(64)?;
        let mut fields = Fields(&bytes);
        Some(Call::PreFault {
            vcpu,
            gpa: fields.u64()?,
            size: fields.u64()?,
            flags: fields.u64()?,
        })
    }
}

/// The fields of a struct, first to last.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*field)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_ne_bytes)
    }

    fn i32(&mut self) -> Option<i32> {
        self.take().map(i32::from_ne_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_ne_bytes)
    }
}

#[cfg(test)]
mod tests {
    use slat_memslot::GmemId;

    use super::*;

    /// Where the tests' memory begins.
    const BASE: u64 = 0x1000;

    /// Decodes `number` with its struct, made of 64-bit words, at [`BASE`].
    fn decode(number: u32, words: &[u64]) -> Decoded {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
        let memory = |address: u64, length: usize| {
            let start = usize::try_from(address.checked_sub(BASE)?).ok()?;
            bytes
                .get(start..start.checked_add(length)?)
                .map(<[u8]>::to_vec)
        };
        let argument = Argument {
            value: BASE,
            memory: &memory,
            file: &|number| match number {
                7 => FileRef::Gmem(GmemId::new(3)),
                other => FileRef::NotOpen(other),
            },
        };
        match on_vm(number, &argument) {
            Decoded::Unrelated => on_vcpu(number, 5, &argument),
            other => other,
        }
    }

    const fn pair(low: u64, high: u64) -> u64 {
        low | high << 32
    }

    #[test]
    fn the_older_region() {
        let words = [pair(0x1_0007, 3), 0x10_0000, 0x20_0000, 0x7f00_0000_0000];
        let region = Region {
            slot: 0x1_0007,
            flags: 3,
            gpa: 0x10_0000,
            size: 0x20_0000,
            hva: 0x7f00_0000_0000,
            ..Region::default()
        };
        let number = request::SET_USER_MEMORY_REGION;
        assert_eq!(
            decode(number, &words),
            Decoded::Call(Call::SetRegion(region))
        );
        assert_eq!(decode(number, &words[..3]), Decoded::Unreadable);
    }

    #[test]
    fn the_newer_region_names_a_file_only_with_the_flag() {
        let region = |flags, fd| {
            let mut words = [0; 20];
            words[0] = pair(1, flags);
            words[4] = 0x4000;
            words[5] = pair(fd, 9);
            match decode(request::SET_USER_MEMORY_REGION2, &words) {
                Decoded::Call(Call::SetRegion(region)) => region,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(region(4, 7).gmem, FileRef::Gmem(GmemId::new(3)));
        assert_eq!(region(4, 0xffff_ffff).gmem, FileRef::NotOpen(-1));
        assert_eq!(region(0, 7).gmem, FileRef::NotOpen(7));
        assert_eq!(
            (region(4, 7).gmem_offset, region(4, 7).padding),
            (0x4000, 9)
        );
    }

    #[test]
    fn dirty_logs() {
        let get = |buffer| Decoded::Call(Call::GetDirtyLog { slot: 2, buffer });
        let number = request::GET_DIRTY_LOG;
        assert_eq!(decode(number, &[2, BASE]), get(Buffer::Good));
        assert_eq!(decode(number, &[2, 0]), get(Buffer::Null));

        let clear = |bits| {
            Decoded::Call(Call::ClearDirtyLog {
                slot: 2,
                first_page: 64,
                num_pages: 65,
                bits,
            })
        };
        let decode = |address, words: [u64; 2]| {
            let head = [pair(2, 65), 64, address];
            decode(request::CLEAR_DIRTY_LOG, &[&head[..], &words].concat())
        };
        assert_eq!(
            decode(BASE + 24, [5, 1]),
            clear(ClearBits::Words(vec![5, 1]))
        );
        assert_eq!(decode(BASE + 24, [u64::MAX; 2]), clear(ClearBits::All));
        assert_eq!(decode(BASE + 32, [5, 1]), clear(ClearBits::Null));
        assert_eq!(decode(0, [5, 1]), clear(ClearBits::Null));
    }

    #[test]
    fn structs_in_memory() {
        let mut words = [0; 13];
        words[..5].copy_from_slice(&[pair(168, 1), 10, 11, 12, 13]);
        let cases = [
            (
                request::ENABLE_CAP,
                Call::EnableCap {
                    cap: 168,
                    flags: 1,
                    args: [10, 11, 12, 13],
                },
            ),
            (
                request::SET_MEMORY_ATTRIBUTES,
                Call::SetAttributes {
                    address: words[0],
                    size: 10,
                    attributes: 11,
                    flags: 12,
                },
            ),
            (
                request::CREATE_GUEST_MEMFD,
                Call::CreateGmem {
                    size: words[0],
                    flags: 10,
                    reserved: 11,
                },
            ),
            (
                request::PRE_FAULT_MEMORY,
                Call::PreFault {
                    vcpu: 5,
                    gpa: words[0],
                    size: 10,
                    flags: 11,
                },
            ),
            (
                request::SET_IDENTITY_MAP_ADDR,
                Call::SetIdentityMapAddr { gpa: words[0] },
            ),
        ];
        for (number, call) in cases {
            assert_eq!(decode(number, &words), Decoded::Call(call));
            assert_eq!(decode(number, &[]), Decoded::Unreadable);
        }
    }

    #[test]
    fn arguments_in_the_register() {
        let cases = [
            (
                request::SET_NR_MMU_PAGES,
                Call::SetNrMmuPages { pages: BASE },
            ),
            (request::SET_TSS_ADDR, Call::SetTssAddr { gpa: BASE }),
            (
                request::CHECK_EXTENSION,
                Call::CheckExtension { cap: 0x1000 },
            ),
            (request::RESET_DIRTY_RINGS, Call::ResetDirtyRings),
            (request::CREATE_IRQCHIP, Call::CreateIrqchip),
            (request::CREATE_VCPU, Call::CreateVcpu),
        ];
        for (number, call) in cases {
            assert_eq!(decode(number, &[]), Decoded::Call(call));
        }
        assert_eq!(decode(0xae80, &[]), Decoded::Unrelated);
    }
}

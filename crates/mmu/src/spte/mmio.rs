//! MMIO entries: guest frames without a slot, remembered with the generation of slots.
//!
//! No such entry is zapped when a slot appears. It is found stale by its generation, of which it has room for the low
//! 19 bits (18 in layout P3): [`Codec::mmio_generation_bits`].

use slat_memslot::{Generation, Gfn};

use super::bits::{GEN_HIGH_BITS, GEN_HIGH_MASK, GEN_HIGH_START, GEN_LOW_START, L1TF_MOVED_BITS};
use super::{Access, Codec, Format, Mmio, Spte};

/// As much of a slot generation as an MMIO entry can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MmioGeneration(u64);

impl MmioGeneration {
    /// The value.
    #[inline]
    pub const fn raw(self) -> u64 {
        self.0
    }
}

impl<F: Format> Codec<F> {
    /// Whether MMIO is remembered in entries at all (`enable_mmio_caching`).
    #[inline]
    pub const fn caches_mmio(&self) -> bool {
        self.masks.caches_mmio()
    }

    /// With another value for the MMIO entries of one VM (`spte.c:kvm_mmu_set_mmio_spte_value`): 0 for TDX, where the
    /// guest has to see a #VE. Nothing changes if MMIO is not remembered.
    #[must_use]
    pub const fn with_mmio_value(mut self, value: u64) -> Self {
        if self.masks.caches_mmio() {
            self.masks.mmio_value = value;
        }
        self
    }

    /// How many bits of a generation an entry can hold. A VM's profile has to say the same
    /// ([`Profile::mmio_generation_bits`](slat_memslot::Profile::mmio_generation_bits)), since KVM zaps everything when
    /// they are used up.
    #[inline]
    pub const fn mmio_generation_bits(&self) -> u8 {
        self.masks.gen_low_bits + GEN_HIGH_BITS
    }

    /// The part of `generation` that an entry can hold (`MMIO_SPTE_GEN_MASK`).
    #[inline]
    pub const fn mmio_generation(&self, generation: Generation) -> MmioGeneration {
        MmioGeneration(generation.low_bits(self.mmio_generation_bits()))
    }

    /// Whether the entry is one for MMIO (`spte.h:is_mmio_spte`).
    #[inline]
    pub const fn is_mmio(&self, spte: Spte<F>) -> bool {
        spte.raw() & self.masks.mmio_mask == self.masks.mmio_value
    }

    /// An MMIO entry for `gfn` (`spte.c:make_mmio_spte`), or `None` where MMIO is not remembered.
    ///
    /// ```
    /// use slat_memslot::{Generation, Gfn};
    /// use slat_mmu::{host::Host, spte::{Access, Codec, Ept}};
    /// let codec = Codec::<Ept>::new(&Host::ept(40));
    /// let spte = codec.make_mmio(Gfn::new(0xfed00), Access::all(), Generation::new(0x12)).unwrap();
    /// assert_eq!(spte.raw(), 0xfed0_0096);
    /// ```
    pub fn make_mmio(&self, gfn: Gfn, access: Access, generation: Generation) -> Option<Spte<F>> {
        self.caches_mmio().then(|| {
            self.encode_mmio(&Mmio {
                gfn,
                access,
                generation: self.mmio_generation(generation),
            })
        })
    }

    /// What an MMIO entry says; `None` if it is none.
    pub fn decode_mmio(&self, spte: Spte<F>) -> Option<Mmio> {
        self.is_mmio(spte).then(|| Mmio {
            gfn: self.mmio_gfn(spte),
            access: Access::from_bits_truncate(low_access(spte.raw() & self.masks.mmio_access)),
            generation: self.generation_of(spte),
        })
    }

    /// Whether an MMIO entry made in the past still holds in `current` (`mmu.c:check_mmio_spte`). None does while
    /// slots are being exchanged.
    pub const fn is_mmio_current(&self, mmio: &Mmio, current: Generation) -> bool {
        current.raw() & Generation::UPDATE_IN_PROGRESS == 0
            && self.mmio_generation(current).0 == mmio.generation.0
    }

    pub(super) fn encode_mmio(&self, mmio: &Mmio) -> Spte<F> {
        let gpa = mmio.gfn.gpa().raw();
        Spte::from_raw(
            self.generation_bits(mmio.generation)
                | self.masks.mmio_value
                | u64::from(mmio.access.bits()) & self.masks.mmio_access
                | gpa
                | self.masks.l1tf
                | (gpa & self.masks.l1tf) << L1TF_MOVED_BITS,
        )
    }

    const fn mmio_gfn(&self, spte: Spte<F>) -> Gfn {
        let low = spte.raw() & self.masks.lower_gfn;
        let moved = (spte.raw() >> L1TF_MOVED_BITS) & self.masks.l1tf;
        Gfn::new((low | moved) >> 12)
    }

    const fn low_mask(&self) -> u64 {
        ((1 << self.masks.gen_low_bits) - 1) << GEN_LOW_START
    }

    const fn generation_bits(&self, generation: MmioGeneration) -> u64 {
        let low = (generation.0 << GEN_LOW_START) & self.low_mask();
        let high = (generation.0 << (GEN_HIGH_START - self.masks.gen_low_bits)) & GEN_HIGH_MASK;
        low | high
    }

    const fn generation_of(&self, spte: Spte<F>) -> MmioGeneration {
        let low = (spte.raw() & self.low_mask()) >> GEN_LOW_START;
        let high = (spte.raw() & GEN_HIGH_MASK) >> (GEN_HIGH_START - self.masks.gen_low_bits);
        MmioGeneration(low | high)
    }
}

const fn low_access(raw: u64) -> u8 {
    raw.to_le_bytes()[0]
}

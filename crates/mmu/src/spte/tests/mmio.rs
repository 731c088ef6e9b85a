//! MMIO entries: generations, L1TF, and the hosts that have none.

use slat_memslot::{Generation, Gfn, Profile};

use super::super::bits::{ADDRESS, LayoutBits};
use super::super::format::MmioMarks;
use super::*;

fn every_generation<F: Format>(host: &Host, bits: u32) {
    let codec = Codec::<F>::new(host);
    let gfn = Gfn::new(0xf_ed00);
    for raw in 0..1 << bits {
        let generation = Generation::new(raw);
        let spte = codec.make_mmio(gfn, Access::WRITE, generation).unwrap();
        assert!(!spte.is_present() && codec.is_mmio(spte));
        let mmio = codec.decode_mmio(spte).unwrap();
        assert_eq!((mmio.gfn, mmio.generation.raw()), (gfn, raw));
    }
    let beyond = codec.mmio_generation(Generation::new(1 << bits));
    assert_eq!(beyond.raw(), 0);
}

#[test]
fn every_generation_comes_back() {
    every_generation::<Ept>(&EPT, 19);
    every_generation::<Ept>(&EPT_L1TF, 19);
    every_generation::<Npt>(&NPT, 19);
    every_generation::<Ept>(&EPT.with_layout(Layout::P1), 19);
    every_generation::<Ept>(&EPT.with_layout(Layout::P3), 18);
    every_generation::<Npt>(&NPT.with_layout(Layout::P3), 18);
}

#[test]
fn generations_go_into_their_fields() {
    let raw = |layout, generation| {
        Codec::<Ept>::new(&EPT.with_layout(layout))
            .make_mmio(Gfn::new(0), Access::all(), Generation::new(generation))
            .unwrap()
            .raw()
    };
    assert_eq!(raw(Layout::P2, 0x7_ffff), 0x7ff0_0000_0000_07fe);
    assert_eq!(raw(Layout::P3, 0x3_ffff), 0x7ff0_0000_0000_03fe);
    assert_eq!(raw(Layout::P2, 0x80), 0x406);
    assert_eq!(raw(Layout::P3, 0x80), 0x0010_0000_0000_0006);
}

#[test]
fn nothing_is_current_during_an_update() {
    let codec = Codec::<Ept>::new(&EPT);
    let generation = Generation::new(4);
    let spte = codec.make_mmio(Gfn::new(1), Access::all(), generation);
    let mmio = codec.decode_mmio(spte.unwrap()).unwrap();
    assert!(codec.is_mmio_current(&mmio, generation));
    let updating = Generation::new(4 | Generation::UPDATE_IN_PROGRESS);
    assert!(!codec.is_mmio_current(&mmio, updating));
}

#[test]
fn access_is_kept_by_npt_only() {
    let access = Access::EXECUTE | Access::WRITE;
    let mmio = Mmio {
        gfn: Gfn::new(5),
        access,
        generation: MmioGeneration::default(),
    };
    let ept = Codec::<Ept>::new(&EPT);
    let kept = ept.decode_mmio(ept.encode(&Entry::Mmio(mmio))).unwrap();
    assert_eq!(kept.access, Access::empty());
    let npt = Codec::<Npt>::new(&NPT);
    let kept = npt.decode_mmio(npt.encode(&Entry::Mmio(mmio))).unwrap();
    assert_eq!(kept.access, Access::WRITE);
}

#[test]
fn hosts_without_spare_address_bits_have_no_mmio_entries() {
    let caches = |host: &Host| Codec::<Npt>::new(host).caches_mmio();
    assert!(caches(&Host::npt(51)));
    assert!(!caches(&Host::npt(52)));
    assert!(!caches(&NPT.without_mmio_caching()));
    // EPT has a misconfiguration for it.
    assert!(Codec::<Ept>::new(&Host::ept(52)).caches_mmio());

    let codec = Codec::<Npt>::new(&Host::npt(52));
    let none = codec.make_mmio(Gfn::new(1), Access::all(), Generation::new(2));
    assert_eq!(none, None);
    let mmio = Mmio {
        gfn: Gfn::new(1),
        access: Access::empty(),
        generation: MmioGeneration::default(),
    };
    assert_eq!(codec.encode(&Entry::Mmio(mmio)), codec.nonpresent());
    for raw in [0, 1, 0x8_0000_0040_0017, !bits::MMU_PRESENT] {
        assert!(!codec.is_mmio(Spte::from_raw(raw)));
    }
}

#[test]
fn memory_encryption_takes_the_bit() {
    let value = |host: Host| {
        Codec::<Npt>::new(&host)
            .make_mmio(Gfn::new(0), Access::empty(), Generation::new(0))
            .map(Spte::raw)
    };
    // 43 bits are left of 48; the C-bit is 47, so all from 43 on are reserved.
    let available = Encryption::Available { c_bit: 47 };
    let host = Host::npt(48).with_encryption(available, 43);
    assert_eq!(value(host), Some(0x000f_f800_0000_0001));
    // The C-bit is the first bit above: the next one is.
    let host = Host::npt(48).with_encryption(Encryption::Active { c_bit: 47 }, 47);
    assert_eq!(value(host), Some(0x000f_0000_0000_0001));
    let host = Host::npt(52).with_encryption(Encryption::Active { c_bit: 51 }, 51);
    assert_eq!(value(host), None);
}

#[test]
fn l1tf_moves_the_bits_that_a_cache_could_match() {
    let codec = Codec::<Ept>::new(&EPT_L1TF);
    // All 28 bits of a frame come back, and the entry points where the cache has nothing.
    for gfn in [0, 1, 0xfff_ffff, 0x800_0000, 0x555_5555, 0xaaa_aaaa] {
        let spte = codec.make_mmio(Gfn::new(gfn), Access::all(), Generation::new(2));
        let spte = spte.unwrap();
        assert_eq!(spte.raw() >> 35 & 0x1f, 0x1f);
        assert_eq!(codec.decode_mmio(spte).unwrap().gfn, Gfn::new(gfn));
    }
    // A cache that reaches too far up leaves no room.
    let codec = Codec::<Ept>::new(&Host::ept(46).with_l1tf(47));
    let spte = codec.make_mmio(Gfn::new(1), Access::all(), Generation::new(0));
    assert_eq!(spte.unwrap().raw(), 0x1006);
}

#[test]
fn a_vm_may_have_its_own_value() {
    let codec = Codec::<Ept>::new(&EPT).with_mmio_value(0);
    let spte = codec.make_mmio(Gfn::new(1), Access::all(), Generation::new(2));
    assert_eq!(spte.unwrap().raw(), 0x1010);
    assert!(!codec.is_mmio(codec.nonpresent()) && !codec.is_mmio(codec.frozen()));
    assert!(!codec.is_mmio(Spte::from_raw(0xfed0_0096)));
}

#[test]
fn marks_that_could_be_mistaken_are_refused() {
    let masks = Ept::masks(&Host::ept(46).with_l1tf(44));
    let accepts = |value, mask| {
        let marks = MmioMarks {
            value,
            mask,
            access: 0,
        };
        masks.accepts_mmio(&LayoutBits::of(Layout::P2), &marks)
    };
    assert!(accepts(6, 7));
    assert!(!accepts(0, 7), "no value");
    assert!(!accepts(6, 4), "more than the mask");
    assert!(!accepts(6, 0xf), "the mask has a bit of the generation");
    assert!(!accepts(1 << 44, ADDRESS), "where L1TF moves bits to");
    assert!(!accepts(1 << 63, 1 << 63), "the frozen entry");
}

#[test]
fn frames_beyond_what_encryption_leaves_are_cut() {
    let codec = Codec::<Ept>::new(&Host::ept(46).with_key_ids(40));
    let spte = codec.make_mmio(Gfn::new(1 << 28 | 1), Access::all(), Generation::new(0));
    let mmio = codec.decode_mmio(spte.unwrap()).unwrap();
    assert_eq!(mmio.gfn, Gfn::new(1));
}

/// Slots and entries have to agree on when the generation wraps.
#[test]
fn profiles_say_how_much_of_a_generation_is_kept() {
    for (kernel, layout) in [
        ("debian-6.12.117", Layout::P2),
        ("linux-6.18", Layout::P2),
        ("linux-7.3-rc1", Layout::P3),
    ] {
        let bits = Profile::named(kernel).unwrap().mmio_generation_bits.get();
        let codec = Codec::<Ept>::new(&EPT.with_layout(layout));
        assert_eq!(codec.mmio_generation_bits(), bits, "{kernel}");
        let [last, wrapped] = [(1 << bits) - 2, 1 << bits].map(Generation::new);
        assert!(!last.wraps_mmio(bits, 2) && wrapped.wraps_mmio(bits, 2));
        assert_eq!(codec.mmio_generation(wrapped), MmioGeneration::default());
        assert_eq!(codec.mmio_generation(last).raw(), last.raw());
    }
}

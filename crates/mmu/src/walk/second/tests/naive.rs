//! The naive composition: each stage by its entries alone, one after the other.

use std::cell::Cell;
use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{Backing, Fault, World, frame_of_host};
use crate::spte::Format;
use crate::tdp::SecondCause;
use crate::walk::{ErrorCode, PageFault, WalkFault};

/// A failed access in words: the stages it came through, outermost first.
pub(in crate::walk) type Story = String;

/// The second stage by its map alone.
pub(in crate::walk) fn second(
    world: &BTreeMap<u64, Backing>,
    gpa: u64,
    write: bool,
) -> Result<u64, Story> {
    match world.get(&(gpa >> 12)) {
        Some(Backing::Ordinary) => {}
        Some(Backing::ReadOnly) if !write => {}
        Some(Backing::ReadOnly) => return Err("read-only".into()),
        Some(Backing::Mmio) => return Err("MMIO".into()),
        Some(Backing::Absent) | None => return Err("absent".into()),
    }
    Ok(frame_of_host(gpa >> 12) << 12 | gpa & 0xfff)
}

/// One stage of four levels whose entries have nothing but permissions and frames, read through the next stage.
pub(in crate::walk) struct Naive<'w> {
    pub(in crate::walk) root: u64,
    /// The bits that an entry needs, and those that are set in it when it is used, and when it is written through.
    pub(in crate::walk) present: u64,
    pub(in crate::walk) write: u64,
    pub(in crate::walk) accessed: u64,
    pub(in crate::walk) dirty: u64,
    pub(in crate::walk) memory: &'w [Cell<u64>],
}

impl Naive<'_> {
    pub(in crate::walk) fn translate(
        &self,
        address: u64,
        write: bool,
        next: &dyn Fn(u64, bool) -> Result<u64, Story>,
    ) -> Result<u64, Story> {
        let mut table = self.root;
        let mut places = Vec::new();
        let mut writable = true;
        let mut leaf = (0, 0);
        for level in (1..=4_u32).rev() {
            let index = address >> (12 + 9 * (level - 1)) & 511;
            let gpa = table << 12 | index << 3;
            let hpa = next(gpa, true).map_err(|why| format!("table {level} at {gpa:#x}: {why}"))?;
            let place = &self.memory[usize::try_from(hpa >> 3).unwrap()];
            let entry = place.get();
            if entry & self.present == 0 {
                return Err(format!("entry {level} absent"));
            }
            let span = 1 << (12 + 9 * (level - 1));
            let large = level > 1 && entry & 1 << 7 != 0;
            // Address bits of a leaf below its size; bit 12 is one of its memory type.
            if large && (level == 4 || entry & (span - 1) >> 13 << 13 != 0) {
                return Err(format!("entry {level} reserved"));
            }
            writable &= entry & self.write != 0;
            places.push(place);
            table = entry >> 12 & 0xff_ffff;
            if large || level == 1 {
                leaf = (level, (table << 12 & !(span - 1)) | address & (span - 1));
                break;
            }
        }
        let (level, gpa) = leaf;
        if write && !writable {
            return Err(format!("entry {level} read-only"));
        }
        let hpa = next(gpa, write).map_err(|why| format!("page at {gpa:#x}: {why}"))?;
        for place in &places {
            place.set(place.get() | self.accessed);
        }
        if write {
            let leaf = places.last().unwrap();
            leaf.set(leaf.get() | self.dirty);
        }
        Ok(hpa)
    }
}

pub(in crate::walk) fn tell_page(fault: &PageFault) -> Story {
    let what = if fault.code.contains(ErrorCode::RSVD) {
        "reserved"
    } else if fault.code.contains(ErrorCode::PRESENT) {
        "read-only"
    } else {
        "absent"
    };
    format!("entry {} {what}", fault.level as u8)
}

pub(in crate::walk) fn tell_second(fault: &Fault) -> Story {
    match fault.cause {
        SecondCause::NotPresent => "absent".into(),
        SecondCause::NotAllowed { .. } => "read-only".into(),
        SecondCause::Misconfigured { mmio: Some(_), .. } => "MMIO".into(),
        other => format!("{other:?}"),
    }
}

pub(in crate::walk) fn tell<S>(fault: &WalkFault<S>, inner: impl Fn(&S) -> Story) -> Story {
    match fault {
        WalkFault::Page(fault) => tell_page(fault),
        WalkFault::NonCanonical { address } => format!("{address}"),
        WalkFault::Second {
            fault,
            gpa,
            table: Some(level),
        } => {
            format!("table {} at {gpa:#x}: {}", *level as u8, inner(fault))
        }
        WalkFault::Second {
            fault,
            gpa,
            table: None,
        } => format!("page at {gpa:#x}: {}", inner(fault)),
    }
}

pub(in crate::walk) fn any_backing() -> impl Strategy<Value = Backing> {
    prop_oneof![
        30 => Just(Backing::Ordinary),
        2 => Just(Backing::ReadOnly),
        1 => Just(Backing::Absent),
        1 => Just(Backing::Mmio),
    ]
}

/// Frames that tables are in; entries 0, 1 and 511 of each are used.
pub(in crate::walk) const INDEXES: [u64; 3] = [0, 1, 511];

/// An entry: which frame, and what it allows: nothing (0), reading (1), everything (3), everything as a large leaf (4).
pub(in crate::walk) type Raw = (u64, u8);

pub(in crate::walk) fn any_raws() -> impl Strategy<Value = Vec<Raw>> {
    let flags = prop_oneof![40 => Just(3_u8), 4 => Just(1), 2 => Just(0), 2 => Just(4)];
    let frame = prop_oneof![8 => 0..16_u64, 1 => 0..2_u64];
    prop::collection::vec((frame, flags), 16 * INDEXES.len())
}

pub(in crate::walk) fn any_address() -> impl Strategy<Value = (u64, bool)> {
    let index = || prop::sample::select(INDEXES[..2].to_vec());
    let parts = (index(), index(), index(), index(), 0..4096_u64);
    (parts, any::<bool>()).prop_map(|((a, b, c, d, offset), write)| {
        (((a << 9 | b) << 9 | c) << 21 | d << 12 | offset, write)
    })
}

/// Fills sixteen frames from `first` on with entries that link to frames from `target` on.
pub(in crate::walk) fn fill<F: Format>(
    world: &World<F>,
    first: u64,
    target: u64,
    raws: &[Raw],
    bits: [u64; 5],
) {
    for (place, (frame, flags)) in raws.iter().enumerate() {
        let table = first + place as u64 / 3;
        let index = INDEXES[place % 3];
        let entry = (target + frame) << 12 | bits[usize::from(*flags)];
        world.word(table << 12 | index << 3).set(entry);
    }
}

pub(in crate::walk) const GUEST_BITS: [u64; 5] = [0, 5, 0, 7, 0x87];

pub(in crate::walk) fn naive_guest<'w>(root: u64, memory: &'w [Cell<u64>]) -> Naive<'w> {
    Naive {
        root,
        present: 1,
        write: 2,
        accessed: 1 << 5,
        dirty: 1 << 6,
        memory,
    }
}

//! What is private now, to be read.

use core::fmt;

use slat_memslot::{AsId, Attributes, GfnRange, Memory, PAGE_SHIFT, Pages};

use crate::migration::Status;

/// The frames of all slots, and those that are private without a slot, cut where slots end or attributes change.
///
/// KVM keeps attributes and has no call that gives them back. Whoever sets them by [`Memory`] can ask.
///
/// ```
/// use slat_coco::convert::PrivateMap;
/// use slat_memslot::{Memory, Profile, Region, SlotKey, VmType};
/// let mut memory = Memory::new(Profile::latest(), VmType::SwProtected);
/// let file = memory.create_gmem(1 << 30, 0).unwrap();
/// let _effects = memory.set_region(&Region::new(SlotKey::normal(2), 0, 1 << 30, 0x7f00_0000_0000).with_gmem(file, 0)).unwrap();
/// memory.set_attributes(0x1000, 0x3000, 8, 0).unwrap();
/// memory.set_attributes(8 << 30, 0x1000, 8, 0).unwrap();
/// assert_eq!(
///     PrivateMap::of(&memory).to_string(),
///     "[0x0, 0x1) shared, slot 2\n\
///      [0x1, 0x4) private, slot 2, file 0 from 0x1000\n\
///      [0x4, 0x40000) shared, slot 2\n\
///      [0x200000, 0x200001) private, no slot\n\
///      3 pages private in slots, 262141 shared\n"
/// );
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrivateMap {
    parts: Vec<MapPart>,
}

/// A part of a [`PrivateMap`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapPart {
    /// The frames.
    pub range: GfnRange,
    /// What they are.
    pub status: Status,
    /// Their slot.
    pub slot: Option<slat_memslot::SlotKey>,
    /// The guest_memfd behind them and the offset there in bytes, if they are private and have one.
    pub file: Option<(slat_memslot::GmemId, u64)>,
}

const fn status(attributes: Attributes) -> Status {
    match attributes.contains(Attributes::PRIVATE) {
        true => Status::Private,
        false => Status::Shared,
    }
}

impl PrivateMap {
    /// The map of a VM as it is now.
    pub fn of(memory: &Memory) -> Self {
        let attributes = memory.attributes();
        let mut parts = Vec::new();
        for slot in memory.space(AsId::NORMAL).iter() {
            parts.extend(attributes.ranges(slot.range()).map(|(range, kind)| {
                let status = status(kind);
                let binding = slot.binding().filter(|_| status == Status::Private);
                let offset = (range.start() - slot.range().start()).raw();
                let file =
                    binding.and_then(|at| Some((at.file?, (at.first_page + offset) << PAGE_SHIFT)));
                let slot = Some(slot.key());
                MapPart {
                    range,
                    status,
                    slot,
                    file,
                }
            }));
        }
        for (range, kind) in attributes.iter() {
            parts.extend(
                outside_slots(memory, range)
                    .into_iter()
                    .map(|range| MapPart {
                        range,
                        status: status(kind),
                        slot: None,
                        file: None,
                    }),
            );
        }
        parts.sort_by_key(|part| part.range.start());
        Self { parts }
    }

    /// The parts, ascending.
    pub fn parts(&self) -> &[MapPart] {
        &self.parts
    }

    /// How many pages of slots are private, or shared.
    pub fn pages(&self, status: Status) -> Pages {
        let parts = self.parts.iter();
        let these = parts.filter(|part| part.slot.is_some() && part.status == status);
        these
            .map(|part| part.range.pages())
            .fold(Pages::new(0), |sum, pages| sum + pages)
    }
}

/// The parts of a range that no slot holds.
fn outside_slots(memory: &Memory, range: GfnRange) -> Vec<GfnRange> {
    let mut at = range.start();
    let mut parts = Vec::new();
    for slot in memory.space(AsId::NORMAL).in_range(range) {
        parts.extend(GfnRange::between(at, slot.range().start()));
        at = slot.range().end();
    }
    parts.extend(GfnRange::between(at, range.end()));
    parts
}

impl fmt::Display for PrivateMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in &self.parts {
            write!(f, "{} {}", part.range, part.status)?;
            match part.slot {
                Some(slot) => write!(f, ", slot {slot}")?,
                None => write!(f, ", no slot")?,
            }
            if let Some((file, offset)) = part.file {
                write!(f, ", file {} from {offset:#x}", file.index())?;
            }
            writeln!(f)?;
        }
        let (private, shared) = (self.pages(Status::Private), self.pages(Status::Shared));
        let (private, shared) = (private.raw(), shared.raw());
        writeln!(f, "{private} pages private in slots, {shared} shared")
    }
}

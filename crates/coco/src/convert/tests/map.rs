//! The map of what is private, frame by frame.

use std::collections::BTreeMap;

use proptest::prelude::*;
use slat_memslot::{
    AsId, Attributes, Gfn, GmemId, Memory, PAGE_SIZE, Profile, Region, SlotKey, VmType,
};

use crate::convert::PrivateMap;
use crate::migration::Status;

const FRAMES: u64 = 48;

/// What is said of a frame: private or not, the slot, the file and the page there.
type Frame = (Status, Option<SlotKey>, Option<(GmemId, u64)>);

/// One question for each frame.
fn frame(memory: &Memory, gfn: Gfn) -> Option<Frame> {
    let private = memory.attributes_of(gfn).contains(Attributes::PRIVATE);
    let status = if private {
        Status::Private
    } else {
        Status::Shared
    };
    let slot = memory.space(AsId::NORMAL).by_gfn(gfn);
    if slot.is_none() && !private {
        return None;
    }
    let file = slot.filter(|_| private).and_then(|slot| {
        let binding = slot.binding()?;
        let page = binding.first_page + (gfn - slot.range().start()).raw();
        Some((binding.file?, page * PAGE_SIZE))
    });
    Some((status, slot.map(|slot| slot.key()), file))
}

proptest! {
    #[test]
    fn a_map_says_what_each_frame_is(
        slots in prop::collection::vec((0..FRAMES - 8, 1..8_u64, prop::option::of(0..4_u64)), 0..5),
        private in prop::collection::vec((0..FRAMES - 8, 1..8_u64), 0..6),
    ) {
        let mut memory = Memory::new(Profile::latest(), VmType::SwProtected);
        let file = memory.create_gmem(64 * PAGE_SIZE, 0).unwrap();
        for (id, (gfn, pages, at)) in (0..).zip(slots) {
            let region = Region::new(SlotKey::normal(id), gfn * PAGE_SIZE, pages * PAGE_SIZE, 0);
            // Slots that overlap, or bind a page twice, are refused.
            let _effects = match at {
                Some(at) => memory.set_region(&region.with_gmem(file, 8 * at * PAGE_SIZE)),
                None => memory.set_region(&region),
            };
        }
        for (gfn, pages) in private {
            let bits = Attributes::PRIVATE.bits();
            memory.set_attributes(gfn * PAGE_SIZE, pages * PAGE_SIZE, bits, 0).unwrap();
        }
        let map = PrivateMap::of(&memory);
        let mut said = BTreeMap::new();
        let mut counts = [0; 2];
        let mut end = 0;
        for part in map.parts() {
            prop_assert!(part.range.start().raw() >= end);
            end = part.range.end().raw();
            for gfn in part.range.start().raw()..end {
                let within = (gfn - part.range.start().raw()) * PAGE_SIZE;
                let file = part.file.map(|(file, at)| (file, at + within));
                said.insert(gfn, (part.status, part.slot, file));
                counts[usize::from(part.status == Status::Private)] += u64::from(part.slot.is_some());
            }
        }
        for gfn in 0..FRAMES {
            let said = said.get(&gfn).copied();
            prop_assert_eq!(said, frame(&memory, Gfn::new(gfn)), "frame {:#x}", gfn);
        }
        let counted = [Status::Shared, Status::Private].map(|status| map.pages(status).raw());
        prop_assert_eq!(counted, counts);
        let text = map.to_string();
        prop_assert_eq!(text.lines().count(), map.parts().len() + 1);
        let total = format!("{} pages private in slots, {} shared", counts[1], counts[0]);
        prop_assert_eq!(text.lines().last(), Some(total.as_str()));
    }
}

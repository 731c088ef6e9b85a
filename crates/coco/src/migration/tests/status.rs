//! The list against one entry for each frame, and what a VMM offers.

use proptest::prelude::*;
use slat_memslot::{Gfn, GfnRange, Pages};

use super::super::{Hearing, Offer, Status, StatusList};

const FRAMES: u32 = 64;

fn range(start: u32, pages: u32) -> GfnRange {
    GfnRange::new(Gfn::new(start.into()), Pages::new(pages.into())).expect("not empty")
}

proptest! {
    #[test]
    fn like_one_entry_for_each_frame(
        calls in prop::collection::vec((0..FRAMES, 1..FRAMES, prop::sample::select(&Status::ALL)), 0..40),
    ) {
        let (mut list, mut frames) = (StatusList::new(), [Status::Private; 2 * FRAMES as usize]);
        for (start, pages, status) in calls {
            let part = &mut frames[start as usize..][..pages as usize];
            let news = part.iter().any(|known| *known != status);
            part.fill(status);
            prop_assert_eq!(list.set(range(start, pages), status), news);
        }
        for (frame, status) in frames.into_iter().enumerate() {
            prop_assert_eq!(list.get(Gfn::new(frame as u64)), status);
        }
        // Borders are where neighbours differ, and nowhere else.
        let cut: Vec<_> = list.cut(range(0, 2 * FRAMES)).collect();
        let borders = frames.windows(2).filter(|pair| pair[0] != pair[1]).count();
        prop_assert_eq!(cut.len(), borders + 1);
        let pages: u64 = cut.iter().map(|(part, _)| part.pages().raw()).sum();
        prop_assert_eq!(pages, 2 * u64::from(FRAMES));
        let shared = cut.iter().filter(|(_, status)| *status == Status::Shared);
        prop_assert!(shared.map(|(part, _)| *part).eq(list.shared()));
        prop_assert_eq!(StatusList::from_shared(list.shared()), list);
    }
}

#[test]
fn what_a_guest_makes_of_an_offer() {
    let offer = |hypercall_bit, control_bit, exit_enabled| Offer {
        hypercall_bit,
        control_bit,
        exit_enabled,
    };
    assert_eq!(offer(true, true, true).hearing(), Hearing::Complete);
    assert_eq!(offer(true, false, true).hearing(), Hearing::NeverReady);
    assert_eq!(offer(true, true, false).hearing(), Hearing::Lost);
    assert_eq!(offer(false, true, true).hearing(), Hearing::Silent);
}

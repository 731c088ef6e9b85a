//! Any trace is read, refused or passed over.

use proptest::prelude::*;

use super::super::Events;
use super::TOUR;

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_walked_to_its_end(text in "\\PC*|[ -~\n]{0,120}|ioctl\\([ -~]{0,60}") {
        let lines = text.split('\n').count();
        prop_assert!(Events::new(&text).count() <= 2 * lines);
    }

    #[test]
    fn damaged_traces_are_walked_to_their_end(
        damage in prop::collection::vec(
            (any::<prop::sample::Index>(), 0..9usize, "[-a-zA-Z0-9=,|{}()<>\"/* \n.é]{0,6}"),
            1..8,
        ),
    ) {
        let mut text: Vec<char> = TOUR.chars().collect();
        for (at, take, put) in damage {
            let start = at.index(text.len());
            let end = text.len().min(start + take);
            text.splice(start..end, put.chars());
        }
        let text: String = text.into_iter().collect();
        let lines = u32::try_from(text.split('\n').count()).unwrap_or(u32::MAX);
        for found in Events::new(&text) {
            let line = found.map_or_else(|e| e.line, |event| event.line);
            prop_assert!((1..=lines).contains(&line));
        }
    }
}

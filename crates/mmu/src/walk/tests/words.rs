//! The words that `slat walk` and failed comparisons print.

use crate::walk::guest::LeafSize;
use crate::walk::{Dimension, PagingMode};

#[test]
fn sizes_modes_and_dimensions_have_words() {
    let sizes = LeafSize::ALL.map(|size| (size.to_string(), size.bytes()));
    let expected = [
        ("4K", Some(0x1000)),
        ("2M", Some(0x20_0000)),
        ("4M", Some(0x40_0000)),
        ("1G", Some(0x4000_0000)),
        ("unpaged", None),
    ];
    assert_eq!(
        sizes,
        expected.map(|(word, bytes)| (word.to_owned(), bytes))
    );
    assert_eq!(
        PagingMode::ALL.map(|mode| mode.to_string()),
        [
            "no paging",
            "32-bit",
            "32-bit with PSE",
            "PAE",
            "4-level",
            "5-level",
            "4-level EPT",
            "5-level EPT"
        ]
    );
    let dimensions = [Dimension::Guest, Dimension::Nested, Dimension::Second];
    assert_eq!(
        dimensions.map(|each| each.to_string()),
        ["guest", "nested", "second"]
    );
}

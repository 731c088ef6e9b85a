//! The files of `scenarios/tdx`: every line has its answer, and the text form keeps them.

use super::{parsed, play};

const FILES: [(&str, &str); 8] = [
    (
        "lifecycle",
        include_str!("../../scenarios/tdx/lifecycle.slat"),
    ),
    (
        "commands",
        include_str!("../../scenarios/tdx/commands.slat"),
    ),
    ("convert", include_str!("../../scenarios/tdx/convert.slat")),
    ("faults", include_str!("../../scenarios/tdx/faults.slat")),
    ("slots", include_str!("../../scenarios/tdx/slots.slat")),
    ("answers", include_str!("../../scenarios/tdx/answers.slat")),
    (
        "answers-errno",
        include_str!("../../scenarios/tdx/answers-errno.slat"),
    ),
    (
        "mistakes",
        include_str!("../../scenarios/tdx/mistakes.slat"),
    ),
];

#[test]
fn every_line_has_its_answer() {
    let mut agreed = 0;
    for (name, text) in FILES {
        let answers = play(&parsed(text));
        println!("{name}: {answers} answers");
        agreed += answers;
    }
    println!("{agreed} answers");
}

#[test]
fn the_text_form_keeps_every_line() {
    for (name, text) in FILES {
        let scenario = parsed(text).renumbered();
        let again = parsed(&scenario.to_string());
        assert_eq!(again, scenario, "{name}");
    }
}

//! `slat races`, as a user runs it.

mod command;

use command::slat;
use serde_json::Value;

fn races(args: &[&str]) -> (i32, String, String) {
    slat(&[&["races"][..], args].concat())
}

/// What the documentation shows between `$ slat races ARGUMENTS` and the next command or the end of the block.
fn documented(arguments: &str) -> &'static str {
    const PAGE: &str = include_str!("../../../docs/migration.md");
    let start = format!("$ slat races{arguments}\n");
    let (_, after) = PAGE.split_once(&start).expect("the page shows the command");
    let end = after.find("\n$ ").or_else(|| after.find("\n```"));
    &after[..end.expect("the block ends")]
}

#[test]
fn the_documentation_shows_what_is_printed() {
    for (arguments, safe) in [("", true), (" --without dirty-before-list", false)] {
        let words: Vec<&str> = arguments.split_whitespace().collect();
        let (code, out, err) = races(&words);
        assert_eq!((code, err.as_str()), (i32::from(!safe), ""), "{out}");
        assert_eq!(out.trim_end(), documented(arguments));
    }
}

#[test]
fn each_rule_is_left_out_in_turn() {
    let (code, out, _) = races(&["--each", "--json"]);
    assert_eq!(code, 1);
    let answers: Vec<Value> = serde_json::from_str(&out).expect("JSON");
    let safe: Vec<bool> = answers
        .iter()
        .map(|answer| answer["safe"].as_bool().expect("told"))
        .collect();
    assert_eq!(
        safe,
        [true, false, false, false, false, false, false, false, false]
    );
    for answer in &answers[1..] {
        let last = answer["schedule"].as_array().and_then(|steps| steps.last());
        assert!(last.is_some(), "{answer}");
    }
}

#[test]
fn hardware_makes_the_order_of_reading_harmless() {
    for on in ["snp", "tdx"] {
        let (code, out, _) = races(&["--on", on, "--without", "dirty-before-list"]);
        assert_eq!(code, 0, "{out}");
    }
}

#[test]
fn counts_are_those_of_the_documentation() {
    let (code, out, _) = races(&["--count", "--json"]);
    assert_eq!(code, 0);
    let cells: Vec<Value> = serde_json::from_str(&out).expect("JSON");
    let page = include_str!("../../../docs/migration.md");
    for row in cells.chunks(5) {
        let cells = row.iter().map(|cell| {
            let text = |name: &str| cell[name].as_str().expect("text").to_owned();
            format!("{} of {}", text("bad"), text("interleavings"))
        });
        let name = row[0]["vmm"].as_str().expect("text").to_owned();
        let line: Vec<String> = [name].into_iter().chain(cells).collect();
        assert!(
            page.contains(&format!("| {} |", line.join(" | "))),
            "{line:?}"
        );
    }
}

#[test]
fn wrong_questions_are_refused() {
    for (words, said) in [
        (
            &["--without", "nonsense"][..],
            "no such rule; there are announce-first",
        ),
        (&["--pages", "9"], "9 pages: a search takes 1 or 2"),
        (&["--states", "10"], "more than 10 states can be reached"),
        (&["--rounds", "3"], "--count"),
    ] {
        let (code, out, err) = races(words);
        assert_eq!((code, out.as_str()), (2, ""), "{words:?}");
        assert!(err.contains(said), "{err}");
    }
}

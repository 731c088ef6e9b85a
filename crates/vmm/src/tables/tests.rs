//! Scripts that are refused, scripts that are played, and texts that are neither.
#![expect(clippy::indexing_slicing, reason = "a test may fail anywhere")]

use proptest::prelude::*;
use slat_mmu::tdp::dump::Dump;

use super::*;

const SMALL: Options = Options {
    tables: 512,
    detail: slat_mmu::tdp::dump::Detail::Entries,
};

/// A script that gives what it expects; what its tables hold in the end.
fn play(text: &str) -> Dump {
    let script = parse(text).unwrap_or_else(|error| panic!("{error}"));
    let report = run(&script, &SMALL);
    if let Some(step) = report.failures().next() {
        panic!("line {}: {} gave {}", step.line, step.text, step.outcome);
    }
    let text = report.dump.to_string();
    assert_eq!(text.parse::<Dump>(), Ok(report.dump.clone()), "{text}");
    report.dump
}

/// Every operation, in both formats, with what it gives.
#[test]
fn a_script_plays_every_operation() {
    for host in [
        "ept 46",
        "ept 46 noad p1",
        "ept 52 la57 software-ad",
        "ept 48 p3",
        "npt 48",
        "npt 48 la57",
    ] {
        let dump = play(&format!(
            "host {host}
             root a             # the ordinary root
             expect new
             root again
             expect shared
             root s smm
             root g guest
             map a 0x7 0x1007
             expect fixed
             map a 0x8 0x2000 ro read
             expect fixed
             map a 0x8 0x2000 ro read
             expect spurious
             map a 0x7 0x9999
             expect error pfn-changed
             map a 0x200 0x5201 2m
             expect error unaligned
             map a 0x200 0x5200 2m tracked
             expect write-protected
             map a 0x400..0x800 0x6400 2m log nx-huge
             expect mapped 1024
             map s 0x40000 0x80000 1g
             map a 0xfffffffffff 1
             expect error beyond-last-gfn
             map a 1 0xfffffffffff
             expect error beyond-last-pfn
             mmio a 0xfee00 gen 6
             expect emulate
             zap 0x7..0x9
             expect zapped 2
             split 0x400..0x600 4k
             collapse a 0x400 2m recover
             expect done
             collapse a 0x400 2m zap
             expect no-table
             zap-page a 0 1
             expect done
             zap-page a 0 1
             expect no-table
             put again
             fast-zap worker
             zap-invalidated
             put a
             root a
             expect new
             map a 0..0x200 0x1000
             fast-zap discard
             expect discarded {freed}
             put s
             put g
             put a",
            freed = if host == "npt 48 la57" { 4 } else { 3 },
        ));
        assert!(dump.roots.is_empty(), "{dump}");
    }
}

#[test]
fn a_full_arena_is_an_error_that_can_be_expected() {
    play("root a\nmap a 0..0x10000000 0 1g\nsplit 0..0x10000000 4k\nexpect error out-of-tables");
    play("root a\nmap a 0..0x100000 0\nexpect error out-of-tables");
}

/// An unexpected error fails the script.
#[test]
fn an_unexpected_result_is_told() {
    let script = parse("root a\nmap a 7 7\nmap a 7 8\nmap a 7 7\nexpect spurious\nput a").unwrap();
    let report = run(&script, &SMALL);
    let told: Vec<_> = report
        .failures()
        .map(|step| (step.line, step.outcome.to_string()))
        .collect();
    assert_eq!(
        told,
        [
            (3, "error pfn-changed (0x7 is mapped to pfn 0x7 and cannot be mapped to pfn 0x8 without a zap)".to_owned()),
            (4, "fixed".to_owned()),
        ]
    );
}

#[test]
fn events_come_step_by_step() {
    let script = parse("root a\nmap a 7 0x777").unwrap();
    let mut told = Vec::new();
    let report = run_traced(&script, &SMALL, &mut |step, event| {
        told.push(event.map_or(step.text.clone(), ToString::to_string));
    });
    assert_eq!(report, run(&script, &SMALL));
    let names: Vec<&str> = told
        .iter()
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    assert_eq!(names[..3], ["root", "kvm_mmu_get_page:", "map"]);
    assert_eq!(
        names
            .iter()
            .filter(|name| **name == "kvm_tdp_mmu_spte_changed:")
            .count(),
        4
    );
    assert_eq!(
        told.last().unwrap(),
        "kvm_mmu_set_spte: gfn 7 spte 777e67 level 1"
    );
}

#[test]
fn an_error_names_line_and_value() {
    for (text, error) in [
        ("host vax 48", "line 1, column 6: vax: neither ept nor npt"),
        ("host npt 53", "line 1, column 10: 53: not from 36 to 52"),
        (
            "host npt 48 noad",
            "line 1, column 13: noad: a fact about hosts with EPT",
        ),
        (
            "root a\nhost npt 48",
            "line 2, column 1: host: there is one host, before",
        ),
        ("root 1a", "line 1, column 6: 1a: not a name"),
        (
            "root a smm guest",
            "line 1, column 12: guest: SMM ends guest mode",
        ),
        (
            "root a level 5",
            "line 1, column 14: 5: no root of this host",
        ),
        ("root a\nroot a", "line 2, column 6: a: held already"),
        ("map b 0 0", "line 1, column 5: b: no root of this name"),
        (
            "root a\nfast-zap\nmap a 0 0",
            "line 3, column 5: a: line 2 has made this root invalid",
        ),
        (
            "root a\nput a\nput a",
            "line 3, column 5: a: no root of this name",
        ),
        (
            "root a\nmap a 0x10..0x10 0",
            "line 2, column 7: 0x10..0x10: an empty or reversed",
        ),
        (
            "root a\nmap a 0x10..0x8 0",
            "line 2, column 7: 0x10..0x8: an empty or reversed",
        ),
        (
            "root a\nmap a 0..0x1ffffffffffffffff 0",
            "line 2, column 7: 0..0x1ffffffffffffffff: \"0x1ffffffffffffffff\" is larger",
        ),
        (
            "root a\nmap a 0..0x1000000000 0",
            "line 2, column 7: 0..0x1000000000: a script may take 65536 tables",
        ),
        (
            "host ept 52 la57\nroot a\nmap a 0x1000000000 0",
            "line 3, column 7: 0x1000000000: a root of 4 levels",
        ),
        (
            "host ept 52 la57\nroot a\nzap 0x1000000000..0x1000000001",
            "line 3, column 5: 0x1000000000..0x1000000001: a root of 4 levels",
        ),
        (
            "zap 0..0x1000000001",
            "line 1, column 5: 0..0x1000000001: the host's last frame is",
        ),
        ("root a\nmap a 0 0 8k", "line 2, column 11: 8k: none of 4k"),
        (
            "root a\nmmio a 0 gen x",
            "line 2, column 14: x: not a number",
        ),
        (
            "root a\nzap-page a 0 4",
            "line 2, column 14: 4: not below the root",
        ),
        ("split 0..1 1g", "line 1, column 12: 1g: nothing is split"),
        (
            "root a\ncollapse a 0 2m now",
            "line 2, column 17: now: neither zap nor recover",
        ),
        (
            "fast-zap slowly",
            "line 1, column 10: slowly: none of smallest",
        ),
        (
            "expect ok",
            "line 1, column 1: expect: no operation before it",
        ),
        (
            "zap 0..1\nexpect fixed",
            "line 2, column 1: expect: `fixed` is nothing that `zap 0..1`",
        ),
        (
            "zap 0..1\nexpect zapped 0\nexpect ok",
            "line 3, column 1: expect: a second one",
        ),
        (
            "zap 0..1\nexpect error nonsense",
            "line 2, column 14: nonsense: none of out-of-tables",
        ),
        ("zap 0..1 2", "line 1, column 10: 2: one word too many"),
        ("dance", "line 1, column 1: dance: no such operation"),
        (
            "zap 0..1 => ok",
            "line 1, column 10: =>: use a line `expect`",
        ),
        ("zap \"0..1\"", "line 1, column 5: "),
    ] {
        let said = parse(text).unwrap_err().to_string();
        assert!(said.starts_with(error), "{said}\n{text}");
    }
}

/// A line made of words that belong somewhere.
fn line() -> impl Strategy<Value = String> {
    let words = prop::sample::select(
        &[
            "root",
            "map",
            "mmio",
            "zap",
            "zap-page",
            "split",
            "collapse",
            "fast-zap",
            "zap-invalidated",
            "put",
            "expect",
            "a",
            "b",
            "smm",
            "guest",
            "0",
            "7",
            "0x200",
            "0x40000",
            "0..0x200",
            "0x100..0x700",
            "0x40000..0x80000",
            "2m",
            "4k",
            "1g",
            "ro",
            "prefetch",
            "log",
            "gen",
            "recover",
            "worker",
            "discard",
            "largest",
            "level",
            "5",
            "1",
            "2",
            "ok",
            "error",
            "0..0x1000000",
        ][..],
    );
    prop::collection::vec(words, 1..6).prop_map(|words| words.join(" "))
}

proptest! {
    /// Whatever can be read can be played, twice with the same result, and the dump is read back.
    #[test]
    fn any_script_is_played_or_refused(lines in prop::collection::vec(line(), 1..200)) {
        // Lines that cannot be read where they stand are left out, so that something is played.
        let mut text = String::from("host ept 48 noad\nroot a\nmap a 0x40000 0 1g\nroot b smm\n");
        for line in lines {
            let longer = format!("{text}{line}\n");
            if parse(&longer).is_ok() {
                text = longer;
            }
        }
        let script = parse(&text).unwrap();
        let report = run(&script, &SMALL);
        prop_assert_eq!(&report, &run(&script, &SMALL));
        prop_assert_eq!(report.dump.to_string().parse::<Dump>(), Ok(report.dump));
    }

    #[test]
    fn garbage_does_no_harm(text in "(root a\n)?\\PC{0,100}") {
        let _ = parse(&text);
    }
}

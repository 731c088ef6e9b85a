//! The three races of the kvm list (March 2021), found as shortest schedules, and what the other rules prevent.

use super::super::{Rule, Rules, Setting, Verdict, check};

/// The shortest schedule that breaks a page where one rule is not kept: the vCPU's steps, and after `|` those of the VMM.
fn without(rule: Rule) -> Vec<String> {
    let setting = Setting {
        rules: Rules::default().with(rule, false),
        ..Setting::default()
    };
    let Verdict::Broken(broken) = check(&setting).expect("within the limit") else {
        panic!("{rule}: nothing breaks");
    };
    let steps = broken.schedule.steps().iter();
    steps
        .map(|step| match step.host_op() {
            Some(_) => format!("| {}", step.text(1)),
            None => step.text(1),
        })
        .collect()
}

/// Scenario #1: the guest tells after it has written, and moves in between.
#[test]
fn a_guest_that_tells_too_late() {
    assert_eq!(
        without(Rule::AnnounceFirst),
        [
            "| get_dirty",
            "| get_list",
            "| transfer as private",
            "map as shared",
            "write first half as shared",
            "| stop vCPU",
            "| get_dirty",
            "| get_list",
            "| transfer as private",
            "| migrate vCPU",
            "read as shared (dest)",
        ]
    );
}

/// Scenario #2: the list is older than the dirty log.
#[test]
fn a_list_that_is_older_than_the_log() {
    assert_eq!(
        without(Rule::DirtyBeforeList),
        [
            "| get_list",
            "set_shared",
            "write first half as shared",
            "| get_dirty",
            "| transfer as private",
            "| stop vCPU",
            "| get_list",
            "| get_dirty",
            "| transfer: nothing",
            "| migrate vCPU",
            "read as shared (dest)",
        ]
    );
}

/// Scenario #3: the guest thinks better of a conversion and counts on what was there before.
#[test]
fn a_guest_that_goes_back() {
    assert_eq!(
        without(Rule::DataLost),
        [
            "| get_dirty",
            "set_shared",
            "| get_list",
            "| transfer as shared",
            "| stop vCPU",
            "| get_dirty",
            "| get_list",
            "| transfer: nothing",
            "| migrate vCPU",
            "set_private (dest)",
            "read as private (dest)",
        ]
    );
}

/// A list that was read for the last round before the guest was stopped.
#[test]
fn a_list_that_is_used_twice() {
    assert_eq!(
        without(Rule::FreshList),
        [
            "| get_dirty",
            "| get_list",
            "| transfer as private",
            "| get_list",
            "set_shared",
            "write first half as shared",
            "| stop vCPU",
            "| get_dirty",
            "| transfer as private",
            "| migrate vCPU",
            "read as shared (dest)",
        ]
    );
}

/// An announcement that the VMM has not heard of when the guest goes on.
#[test]
fn an_announcement_on_its_way() {
    assert_eq!(
        without(Rule::Synchronous),
        [
            "| get_dirty",
            "| get_list",
            "| transfer as private",
            "set_shared",
            "write first half as shared",
            "| stop vCPU",
            "| get_dirty",
            "| get_list",
            "| transfer as private",
            "| migrate vCPU",
            "read as shared (dest)",
        ]
    );
}

/// Each of the other rules has a schedule too, and each schedule ends with the guest at the destination.
#[test]
fn the_other_rules() {
    for rule in [Rule::FinalRound, Rule::ListMoves, Rule::PrivateByDefault] {
        let steps = without(rule);
        assert!(
            steps.contains(&"| migrate vCPU".to_owned()),
            "{rule}: {steps:?}"
        );
    }
}

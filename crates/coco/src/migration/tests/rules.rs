//! The rules together are enough, and each of them is needed.

use super::super::{Damage, Rule, Rules, Setting, Technology, TooLarge, Verdict, check};

fn setting(technology: Technology, rules: Rules) -> Setting {
    Setting {
        rules,
        technology,
        ..Setting::default()
    }
}

fn is_safe(setting: &Setting) -> bool {
    matches!(check(setting).expect("within the limit"), Verdict::Safe(_))
}

/// All ways to keep some of the rules and not others.
fn all_rules() -> impl Iterator<Item = Rules> {
    (0..1_u32 << Rule::ALL.len()).map(|kept| {
        let keep = |rules: Rules, (bit, rule)| rules.with(rule, kept >> bit & 1 != 0);
        Rule::ALL
            .into_iter()
            .enumerate()
            .fold(Rules::default(), keep)
    })
}

#[test]
fn all_rules_are_enough() {
    for pages in 1..=2 {
        let setting = Setting {
            pages,
            ..Setting::default()
        };
        assert!(is_safe(&setting), "{pages} pages");
    }
}

/// On SEV whoever leaves out any rule breaks a page, whatever else is kept; only the mark of announcements is no rule.
#[test]
fn each_rule_is_needed() {
    for rules in all_rules() {
        let complete = Rule::ALL
            .into_iter()
            .all(|rule| rule == Rule::AnnouncementDirties || rules.has(rule));
        let safe = is_safe(&setting(Technology::Sev, rules));
        assert_eq!(safe, complete, "{rules:?}");
    }
}

/// Where hardware decides what a page is, only a guest that goes on while its memory is sent is harmed.
#[test]
fn hardware_sees_to_most_rules() {
    for technology in [Technology::Snp, Technology::Tdx] {
        for rules in all_rules() {
            let safe = is_safe(&setting(technology, rules));
            assert_eq!(safe, rules.final_round, "{technology:?} {rules:?}");
        }
    }
}

/// A list that stays behind harms at the next migration.
#[test]
fn a_list_that_stays_behind() {
    let rules = Rules::default().with(Rule::ListMoves, false);
    let Ok(Verdict::Broken(broken)) = check(&setting(Technology::Sev, rules)) else {
        panic!("a list that stays behind does no harm");
    };
    assert_eq!(broken.damage, Damage::Listed { page: 0 });
}

#[test]
fn limits() {
    let few = Setting {
        states: 10,
        ..Setting::default()
    };
    assert_eq!(check(&few), Err(TooLarge::States(10)));
    for pages in [0, Setting::MAX_PAGES + 1] {
        let setting = Setting {
            pages,
            ..Setting::default()
        };
        assert_eq!(check(&setting), Err(TooLarge::Pages(pages)));
    }
}

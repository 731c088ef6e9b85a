//! What holds for any text as a scenario; called by the fuzz target and by the replay of its corpus.

use slat_memslot::Profile;
use slat_vmm::{model, run, scenario};

/// Kernels that differ most: the newest, one without guest_memfd, one with private memory, one with shadow paging.
const PROFILES: [&str; 4] = [
    "linux-7.3-rc1",
    "linux-6.1",
    "debian-6.12.117-sw-protected",
    "linux-6.18.44-pvm",
];

/// Reads `bytes`; what can be read is written, read back, and run on model machines.
pub(crate) fn check(bytes: &[u8]) {
    let Ok(text) = core::str::from_utf8(bytes) else {
        return;
    };
    let lines = text.split('\n').count();
    let scenario = match scenario::parse(text) {
        Ok(scenario) => scenario,
        Err(error) => {
            assert!((1..=lines).contains(&(error.line as usize)), "{error}");
            assert!(error.column >= 1, "{error}");
            return;
        }
    };
    let written = scenario.to_string();
    let again = scenario::parse(&written).unwrap_or_else(|e| panic!("{e} in\n{written}"));
    assert_eq!(again, scenario.clone().renumbered(), "{written}");
    assert_eq!(again.to_string(), written);
    for profile in PROFILES {
        let profile = Profile::named(profile).expect("a profile of that name");
        on(&scenario, profile);
    }
    let experiment = Profile::latest().with_zap_leafs_flag();
    on(&scenario, experiment);
}

/// Runs the scenario twice: a model gives the same answers each time.
fn on(scenario: &scenario::Scenario, profile: Profile) {
    let mut machine = model::Machine::new(profile);
    let (first, second) = (run(scenario, &mut machine), run(scenario, &mut machine));
    match (first, second) {
        (Ok(first), Ok(second)) => {
            assert!(first.steps.len() <= 2 * scenario.steps.len());
            let pairs = first.steps.iter().zip(&second.steps);
            assert!(
                pairs
                    .clone()
                    .all(|(a, b)| a.verdict == b.verdict && a.result == b.result)
            );
        }
        (first, second) => assert_eq!(first.err(), second.err()),
    }
}

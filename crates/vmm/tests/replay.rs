//! Recordings of kernels with the TDP MMU, predicted from their operations.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use slat_vmm::replay::{Machine, Verdict, predict};
use slat_vmm::traces::{self, Builtin, Recording, What};

/// Scenarios that are not predicted, and why. One that is predicted must go from this list.
const NOT_YET: &[(&str, &str)] = &[
    ("npt-l4/41-nested-l2-without-npt", "runs L2"),
    ("npt-l4/42-nested-l2-with-npt", "runs L2"),
    ("npt-l5/41-nested-l2-without-npt", "runs L2"),
    ("npt-l5/42-nested-l2-with-npt", "runs L2"),
    ("ept-l4/65-vmx-l2-without-ept", "runs L2"),
    ("ept-l4/67-vmx-l2-with-ept-noad", "runs L2"),
    ("ept-l4-noad/65-vmx-l2-without-ept", "runs L2"),
    ("ept-l4-noad/67-vmx-l2-with-ept-noad", "runs L2"),
    ("ept-l4-nopml/65-vmx-l2-without-ept", "runs L2"),
    ("ept-l4-nopml/67-vmx-l2-with-ept-noad", "runs L2"),
    ("ept-l5/65-vmx-l2-without-ept", "runs L2"),
    ("ept-l5/67-vmx-l2-with-ept-noad", "runs L2"),
    ("ept-l4-l1tf/65-vmx-l2-without-ept", "runs L2"),
    ("ept-l4-l1tf/67-vmx-l2-with-ept-noad", "runs L2"),
    (
        "ept-l4-noad/36-pre-fault-obsolete-root",
        "its operations were lost: it begins in a loop that a signal ended",
    ),
];

fn recordings() -> impl Iterator<Item = (Machine, Builtin)> {
    Machine::NAMES.into_iter().flat_map(|name| {
        let machine = Machine::named(name).unwrap();
        let all = traces::Machine::named(name).unwrap().recordings();
        all.into_iter().map(move |one| (machine.clone(), one))
    })
}

fn predict_one(machine: &Machine, one: &Builtin) -> Verdict {
    predict(&Recording::parse(one.text()).unwrap(), machine)
}

fn is_listed(name: &str) -> bool {
    NOT_YET.iter().any(|(listed, _)| *listed == name)
}

/// What is wrong with a verdict, and how many events were compared.
fn judge(name: &str, verdict: &Verdict) -> Result<usize, String> {
    match verdict {
        Verdict::Agrees { .. } if is_listed(name) => Err(format!("{name} agrees by now")),
        Verdict::Agrees { adopted: 1.., .. } => Err(format!(
            "{name}: hardware marked other leaves than predicted"
        )),
        Verdict::Agrees { compared, .. } => Ok(*compared),
        Verdict::Differs { .. } | Verdict::NotModelled(_) if is_listed(name) => Ok(0),
        Verdict::Differs { difference, .. } => Err(format!("{name}: {difference}")),
        Verdict::NotModelled(what) => Err(format!("{name}: {what}")),
    }
}

#[test]
fn every_recording_of_the_tdp_mmu_is_predicted() {
    let (mut scenarios, mut events) = (0, 0);
    let mut wrong = Vec::new();
    for (machine, one) in recordings() {
        let name = format!("{}/{}", one.machine, one.scenario);
        match judge(&name, &predict_one(&machine, &one)) {
            Ok(0) => {}
            Ok(compared) => {
                scenarios += 1;
                events += compared;
            }
            Err(what) => wrong.push(what),
        }
    }
    println!("{scenarios} recordings, {events} events and results as predicted");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(scenarios > 200 && events > 100_000);
}

/// Another machine does other things, and each time some recording shows it.
#[test]
fn a_wrong_machine_is_found_out() {
    let all: Vec<(Machine, Builtin)> = recordings().collect();
    let host = |name| Machine::named(name).unwrap().host;
    for (name, wrong) in [
        ("npt-l4", host("npt-l5")),
        ("npt-l5", host("npt-l4")),
        ("ept-l4", host("ept-l4-noad")),
        ("ept-l4", host("ept-l4-nopml")),
        ("ept-l4-nopml", host("ept-l4")),
        ("ept-l5", host("ept-l4")),
        ("ept-l4-l1tf", host("ept-l4")),
    ] {
        let found_out = all.iter().any(|(machine, one)| {
            let machine = Machine {
                host: wrong,
                ..machine.clone()
            };
            let verdict = || predict_one(&machine, one);
            one.machine == name && matches!(verdict(), Verdict::Differs { .. })
        });
        assert!(found_out, "{name} on another machine");
    }
}

/// A recording without any one of its lines that are compared is another one.
#[test]
fn a_missing_line_is_found_out() {
    let machine = Machine::named("npt-l4").unwrap();
    let all = traces::Machine::named("npt-l4").unwrap().recordings();
    let one = all
        .iter()
        .find(|one| one.scenario == "07-dirty-log-4k")
        .unwrap();
    let recording = Recording::parse(one.text()).unwrap();
    let compared = |at: &usize| {
        let what = &recording.items[*at].what;
        // The second half of an allocation may be missing.
        traces::Kind::of(what).is_some() && !matches!(what, What::Probe(_))
    };
    for at in (0..recording.items.len()).filter(compared) {
        let mut cut = recording.clone();
        let line = cut.items.remove(at);
        let verdict = predict(&cut, &machine);
        assert!(
            matches!(verdict, Verdict::Differs { .. }),
            "without {line:?}: {verdict:?}"
        );
    }
}

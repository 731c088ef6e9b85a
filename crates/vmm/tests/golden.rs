//! The slot cases recorded on a real kernel, on the model and again on the live kernel.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use slat_memslot::Profile;
use slat_vmm::{Machine, Report, model, recordings, run, scenario};

fn run_golden(machine: &mut impl Machine) -> (usize, Vec<String>, usize) {
    let (mut agreed, mut failures, mut not_tried) = (0, Vec::new(), 0);
    for (name, text) in recordings::GOLDEN {
        let scenario = scenario::parse(text).unwrap();
        let report: Report = run(&scenario, machine).unwrap();
        agreed += report.agreed();
        not_tried += report.not_tried().count();
        failures.extend(
            report
                .failures()
                .map(|s| format!("{name}:{}: {} got {:?}", s.line, s.text, s.result)),
        );
    }
    (agreed, failures, not_tried)
}

#[test]
fn model_gives_every_recorded_result() {
    let profile = Profile::named("linux-6.18.44-pvm").unwrap();
    let (agreed, failures, not_tried) = run_golden(&mut model::Machine::new(profile));
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert_eq!(not_tried, 0);
    println!("{agreed} results agree");
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[test]
fn live_kernel_gives_every_recorded_result() {
    let mut machine = match slat_vmm::kvm::Machine::open() {
        Ok(machine) => machine,
        Err(error) => return println!("skipped: {error}"),
    };
    for (name, value, evidence) in machine.profile().facts() {
        println!("{name} = {value} ({evidence})");
    }
    let (agreed, failures, not_tried) = run_golden(&mut machine);
    println!("{agreed} results agree, {not_tried} not tried");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

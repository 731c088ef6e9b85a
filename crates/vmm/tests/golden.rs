//! The slot cases recorded on a real kernel, on the model and again on the live kernel.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use slat_memslot::Profile;
use slat_vmm::{
    CheckedMachine, Machine, OnDivergence, Report, StepReport, Verdict, model, recordings, run,
    scenario,
};

/// How many results are the recorded ones, the steps whose are not, and how many could not be tried.
fn run_golden(machine: &mut impl Machine) -> (usize, Vec<StepReport>, usize) {
    let (mut agreed, mut failures, mut not_tried) = (0, Vec::new(), 0);
    for (name, text) in recordings::GOLDEN {
        let scenario = scenario::parse(text).unwrap();
        let report: Report = run(&scenario, machine).unwrap();
        agreed += report.agreed();
        not_tried += report.not_tried().count();
        failures.extend(report.failures().map(|step| StepReport {
            text: format!("{name}: {}", step.text),
            ..step.clone()
        }));
    }
    (agreed, failures, not_tried)
}

fn texts(steps: &[StepReport]) -> String {
    let text = |s: &StepReport| {
        let StepReport {
            line,
            text,
            result,
            verdict,
            ..
        } = s;
        format!("line {line} of {text} got {result:?}: {verdict:?}\n")
    };
    steps.iter().map(text).collect()
}

#[test]
fn model_gives_every_recorded_result() {
    let profile = Profile::named("linux-6.18.44-pvm").unwrap();
    let (agreed, failures, not_tried) = run_golden(&mut model::Machine::new(profile));
    assert!(failures.is_empty(), "{}", texts(&failures));
    assert_eq!(not_tried, 0);
    println!("{agreed} results agree");
}

/// Whether a kernel answers as the recorded one did: the facts that differ between kernels of today.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn is_recorded(profile: &Profile) -> bool {
    let recorded = Profile::named("linux-6.18.44-pvm").unwrap();
    profile.vendor.get() == recorded.vendor.get()
        && profile.quirks.get() == recorded.quirks.get()
        && profile.gmem_flags.get() == recorded.gmem_flags.get()
        && profile.attributes.get() == recorded.attributes.get()
}

/// On the kernel of the recordings every result is the recorded one; on any other it is what the model of that kernel
/// says.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[test]
fn live_kernel_gives_every_recorded_result() {
    let kernel = match slat_vmm::kvm::Machine::open() {
        Ok(machine) => machine,
        Err(error) => return println!("skipped: {error}"),
    };
    for (name, value, evidence) in kernel.profile().facts() {
        println!("{name} = {value} ({evidence})");
    }
    let recorded = is_recorded(kernel.profile());
    let model = model::Machine::new(kernel.shared_profile());
    let mut both = CheckedMachine::new(kernel, model).on_divergence(OnDivergence::Keep);
    let (agreed, failures, not_tried) = run_golden(&mut both);
    let (diverging, other): (Vec<_>, Vec<_>) = failures
        .into_iter()
        .partition(|step| matches!(step.verdict, Verdict::Diverges { .. }));
    println!("this is the kernel of the recordings: {recorded}");
    println!(
        "{agreed} results as recorded, {} others as the model says, {not_tried} not tried",
        other.len()
    );
    assert!(diverging.is_empty(), "{}", texts(&diverging));
    assert!(!recorded || other.is_empty(), "{}", texts(&other));
    assert!(agreed > 100);
}

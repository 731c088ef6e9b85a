//! Every reason that the local kind of kernel can give, on the model and on the live kernel.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;

use slat_memslot::{Profile, catalogue};
use slat_vmm::scenario::{Scenario, StepKind};
use slat_vmm::{
    CheckedMachine, Machine, OnDivergence, StepReport, Verdict, model, recordings, run, scenario,
};

/// Reasons that need another host, another kernel, or a VM in a state that no call brings about.
const ELSEWHERE: [(&str, &str); 23] = [
    (
        "other-process",
        "needs a second process; see other_process.rs",
    ),
    ("vm-dead", "needs a bug in KVM"),
    ("no-region2", "Linux before 6.8"),
    ("gmem-unsupported", "Linux before 6.18"),
    ("readonly-protected", "SEV-ES, SNP, TDX"),
    ("zap-leafs-changed", "an experiment that was not merged"),
    ("zap-leafs-required", "an experiment that was not merged"),
    (
        "zap-leafs-needs-tdp-mmu",
        "an experiment that was not merged",
    ),
    ("move-tracked", "KVMGT"),
    ("gfn-shared", "TDX"),
    ("no-guest-memfd", "Linux before 6.8"),
    ("attribute-flags", "a VM type with private memory built in"),
    (
        "attribute-unsupported",
        "a VM type with private memory built in",
    ),
    ("attribute-range", "a VM type with private memory built in"),
    (
        "attribute-unaligned",
        "a VM type with private memory built in",
    ),
    ("no-dirty-ring", "Linux before 5.11"),
    ("no-pre-fault", "Linux before 6.11"),
    ("pre-fault-not-allowed", "SNP, TDX"),
    (
        "pre-fault-no-private-memory",
        "EPT or NPT, and a VM type with private memory",
    ),
    ("pre-fault-no-slot", "EPT or NPT"),
    ("too-many-vcpus", "thousands of vCPUs"),
    (
        "not-td",
        "a real kernel is not asked for what only a TD has",
    ),
    (
        "not-sev",
        "a real kernel is not asked for what only a SEV guest has",
    ),
];

fn reasons() -> Scenario {
    scenario::parse(recordings::REASONS).unwrap()
}

fn check(machine: &mut impl Machine) {
    let report = run(&reasons(), machine).unwrap();
    let failures: Vec<String> = report
        .failures()
        .map(|s| format!("{}: {} gave {:?}", s.line, s.text, s.result))
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert_eq!(report.not_tried().count(), 0);
    println!("{} results agree", report.agreed());
}

#[test]
fn model_names_every_reason() {
    check(&mut model::Machine::new(
        Profile::named("linux-6.18.44-pvm").unwrap(),
    ));
}

#[test]
fn every_reason_of_the_catalogue_has_a_case_or_an_excuse() {
    let cases: BTreeSet<String> = reasons()
        .steps
        .into_iter()
        .filter_map(|step| match step.kind {
            StepKind::Case(title) => Some(title),
            _ => None,
        })
        .collect();
    let excused: BTreeSet<&str> = ELSEWHERE.iter().map(|(code, _)| *code).collect();
    for (_, reason) in catalogue() {
        assert_ne!(
            cases.contains(reason.code),
            excused.contains(reason.code),
            "{}",
            reason.code
        );
    }
}

/// On a host of the cases' kind the results are those of the file; on one with EPT or NPT they are what the model of that
/// host says.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[test]
fn live_kernel_refuses_for_every_reason() {
    match slat_vmm::kvm::Machine::open() {
        Ok(machine) if machine.profile().tdp.get() => agree_with_model(machine),
        Ok(mut machine) => check(&mut machine),
        Err(error) => println!("skipped: {error}"),
    }
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn agree_with_model(kernel: slat_vmm::kvm::Machine) {
    let model = model::Machine::new(kernel.shared_profile());
    let mut both = CheckedMachine::new(kernel, model).on_divergence(OnDivergence::Keep);
    let report = run(&reasons(), &mut both).unwrap();
    let diverging: Vec<&StepReport> = report
        .steps
        .iter()
        .filter(|step| matches!(step.verdict, Verdict::Diverges { .. }))
        .collect();
    assert!(diverging.is_empty(), "{diverging:#?}");
    println!(
        "{} results as on the kernel of the cases, {} others as the model says, {} not tried",
        report.agreed(),
        report.failures().count(),
        report.not_tried().count()
    );
    assert!(report.agreed() > 50);
}

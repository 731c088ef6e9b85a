//! What VMMs and guests got wrong in the field, each by the name of its case in `scenarios/tdx/mistakes.slat`.

use slat_vmm::scenario::{Scenario, StepKind};

use super::{parsed, play};

const TEXT: &str = include_str!("../../scenarios/tdx/mistakes.slat");

/// The lines before the first case, and those of one case.
fn only(title: &str) -> Scenario {
    let (mut inside, mut steps) = (true, Vec::new());
    for step in parsed(TEXT).steps {
        if let StepKind::Case(each) = &step.kind {
            inside = each == title;
        }
        if inside {
            steps.push(step);
        }
    }
    Scenario { steps }
}

macro_rules! mistakes {
    ($($(#[$doc:meta])* $name:ident = $title:literal;)*) => {
        $(
            $(#[$doc])*
            #[test]
            fn $name() {
                assert!(play(&only($title)) > 3);
            }
        )*

        const TITLES: &[&str] = &[$($title),*];
    };
}

mistakes! {
    /// gramineproject/gramine-tdx, PR 34.
    r11_compared_without_the_shared_bit = "a guest looks for R11 in a range without the SHARED bit";
    /// coconut-svsm/svsm, PRs 506 and 515.
    already_accepted_taken_for_mine = "accepted before is taken for mine";
    /// Cloud Hypervisor's bring-up, July 2026.
    never_made_private = "memory is added that was never made private";
    /// The same: the handler was for SNP only.
    memory_faults_unhandled = "nobody handles memory faults";
    /// The same: firmware converts an MMIO aperture.
    aperture_converted = "an aperture is converted";
    /// The same: `KVM_CAP_EXIT_HYPERCALL` is not enabled.
    hypercalls_do_not_exit = "hypercalls do not exit";
    /// The same: a guest MAXPHYADDR of 46.
    shared_bit_beyond_maxphyaddr = "the SHARED bit is beyond the guest's addresses";
    /// The same: `EINTR` of INIT_MEM_REGION.
    interrupted_region = "an interrupted region is not gone on with";
    /// Cloud Hypervisor: the implicit path does not punch.
    conversion_by_fault_without_hole = "a conversion by fault leaves the page in the file";
    /// Cloud Hypervisor, PR 8167.
    pages_never_given_back = "pages are never given back";
    /// Cloud Hypervisor: a conversion that failed is only logged.
    failure_told_as_success = "a conversion that failed is a success";
    /// Cloud Hypervisor, PR 8501; QEMU's RamDiscardManager.
    static_device_mappings = "all memory is mapped for devices";
    /// OpenVMM, PR 3970.
    error_with_effect = "attributes have changed, and an error is told";
    /// libkrun, PRs 296 and 243.
    flag_misread = "the flag of the exit is misread";
    /// libkrun, PR 479; Kata Containers, PR 13066.
    slot_without_file = "a slot without a file is made private";
    /// OpenVMM, PR 257.
    shared_bit_dropped = "the SHARED bit is dropped";
    /// OpenVMM, PRs 1340 and 1764.
    wrong_visibility_is_no_crash = "an access of the other kind is no crash";
    /// QEMU up to 9.2.
    ret_never_written = "nobody writes hypercall.ret";
    /// QEMU's `kvm_convert_memory`, November 2024.
    minus_one_forwarded = "minus one is no answer";
    /// QEMU with hugetlb.
    shared_side_cannot_be_discarded = "what is shared cannot be discarded";
    /// Dstack, PR 1220.
    large_accept_in_pieces = "a large page is accepted in 512 pieces";
}

#[test]
fn every_case_has_a_name() {
    let scenario = parsed(TEXT);
    let cases: Vec<&str> = scenario.cases().collect();
    assert_eq!(cases, TITLES);
}

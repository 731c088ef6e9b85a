//! What KVM's selftests `private_mem_conversions_test` and `private_mem_kvm_exits_test` assert, property by property, on the model
//! (without page tables, with NPT, with EPT) and on the kernel that this runs on, if it has software-protected VMs. One property more:
//! single odd pages of a private range become shared, a case that those tests hold and never reach.
//!
//! Conversions go the way that a VMM should go: exit, request, plan, steps, answer.
#![expect(clippy::unwrap_used, reason = "a test may fail anywhere")]

mod private_mem {
    pub(crate) mod conversions;
    pub(crate) mod exits;
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    pub(crate) mod kernel;
    pub(crate) mod setting;
}

use private_mem::setting::on_each_machine;
use private_mem::{conversions, exits};

#[test]
fn private_mem_conversions() {
    on_each_machine(conversions::shared_by_default);
    on_each_machine(conversions::explicit_conversions);
    on_each_machine(conversions::odd_pages);
    on_each_machine(conversions::attribute_words);
    on_each_machine(conversions::punch_hole);
    on_each_machine(conversions::several_vcpus_and_slots);
}

#[test]
fn private_mem_kvm_exits() {
    on_each_machine(exits::slot_deleted);
    on_each_machine(exits::slot_without_file);
}

#[test]
fn a_file_outlives_its_vm() {
    conversions::file_of_a_dead_vm();
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    private_mem::kernel::file_of_a_closed_vm();
}

/// The guest runs while its slot goes, as in the selftest.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[test]
fn a_slot_is_deleted_under_a_running_guest() {
    private_mem::kernel::slot_deleted_under_a_running_guest();
}

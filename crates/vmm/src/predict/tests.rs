use slat_memslot::Profile;

use super::*;

fn region(line: &str, result: &str) -> String {
    format!("ioctl(4, KVM_SET_USER_MEMORY_REGION, {{{line}}}) = {result}\n")
}

fn plain(slot: u32, gpa: u64, size: u64, result: &str) -> String {
    let fields = format!(
        "slot={slot}, flags=0, guest_phys_addr={gpa:#x}, memory_size={size}, userspace_addr=0x7f0000000000"
    );
    region(&fields, result)
}

const VM: &str = "ioctl(3, KVM_CREATE_VM, 0) = 4\n";

fn predict(log: &str) -> Predictions {
    strace(log, Profile::latest())
}

#[test]
fn a_wrong_prediction_names_line_and_reason() {
    let log = [VM, &plain(0, 0, 4096, "0"), &plain(1, 0, 4096, "0")].concat();
    let done = predict(&log);
    assert_eq!((done.right(), done.wrong.len()), (2, 1));
    let wrong = &done.wrong[0];
    assert_eq!((wrong.at, wrong.vm, wrong.actual), (3, Some(0), Ok(0)));
    assert_eq!(wrong.reason().map(Reason::code), Some("overlap"));
    assert_eq!(
        wrong.text,
        "set_user_memory_region slot=1 gpa=0 size=0x1000 hva=0x7f0000000000"
    );
}

#[test]
fn the_model_follows_the_log() {
    let log = [
        VM,
        &plain(0, 0, 4096, "0"),
        &plain(1, 0, 4096, "0"),
        &plain(0, 0, 0, "-1 EINVAL (Invalid argument)"),
        &plain(2, 0x10000, 4096, "-1 ENOMEM (Cannot allocate memory)"),
        &plain(3, 0x10000, 4096, "0"),
    ]
    .concat();
    let done = predict(&log);
    let lines: Vec<u32> = done.wrong.iter().map(|w| w.at).collect();
    assert_eq!(
        lines,
        [3, 5],
        "slot 1 took the place of slot 0, slot 2 does not exist"
    );
}

#[test]
fn hidden_arguments_count_apart_and_leave_a_gap() {
    let hidden =
        "ioctl(4, KVM_ENABLE_CAP, 0x7ffe0000) = 0\nioctl(4, KVM_GET_DIRTY_LOG, 0x7ffe0000) = 0\n";
    let log = [VM, "ioctl(4, KVM_GET_DIRTY_LOG, 0x7ffe0000) = 0\n", hidden].concat();
    let done = predict(&log);
    assert_eq!((done.right(), done.undecoded(), done.open()), (1, 3, 0));
    let gap = done.gap.map(|gap| (gap.at, gap.what));
    assert_eq!(gap, Some((3, "the arguments of KVM_ENABLE_CAP".to_owned())));
}

#[test]
fn a_log_without_the_birth_of_the_vm_has_a_gap() {
    let done = predict(&plain(0, 0, 4096, "0"));
    assert_eq!((done.right(), done.gap.map(|gap| gap.at)), (1, Some(1)));
}

#[test]
fn what_has_no_result_is_not_compared() {
    let log = [VM, &plain(0, 0, 4096, "?")].concat();
    let done = predict(&log);
    assert_eq!((done.right(), done.open()), (1, 1));
    assert_eq!(done.gap.map(|gap| gap.at), Some(2));
}

#[test]
fn a_vm_type_that_the_profile_lacks_is_refused() {
    let done =
        predict("ioctl(3, KVM_CREATE_VM, 0x4 /* KVM_VM_??? */) = -1 EINVAL (Invalid argument)\n");
    assert_eq!((done.right(), done.refusals.len()), (1, 1));
    assert_eq!(done.refusals[0].reason().map(Reason::code), Some("vm-type"));
}

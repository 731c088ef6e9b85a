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

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod recorded {
    use std::collections::BTreeMap;

    use slat_memslot::{FileRef, GmemId, Region, SlotFlags, SlotKey};

    use super::*;
    use crate::record::{Exit, Recorded, RecordedCall, Recording};

    fn recording_of(calls: Vec<(RecordedCall, Result<i64, Errno>)>) -> Recording {
        let event = |(call, result)| Recorded {
            vm: 0,
            call,
            result,
        };
        Recording {
            events: calls.into_iter().map(event).collect(),
            exit: Exit::Code(0),
            undecoded: BTreeMap::new(),
        }
    }

    fn bind(file: u16) -> RecordedCall {
        let region = Region::new(SlotKey::normal(file), u64::from(file) << 20, 0x1000, 0x7000)
            .with_flags(SlotFlags::GUEST_MEMFD)
            .with_gmem(GmemId::new(u32::from(file)), 0);
        assert_eq!(region.gmem, FileRef::Gmem(GmemId::new(u32::from(file))));
        RecordedCall::Call(Call::SetRegion(region))
    }

    /// A file that the model would not have made does not shift the numbers of the others.
    #[test]
    fn files_keep_their_numbers() {
        let create = |size| {
            RecordedCall::Call(Call::CreateGmem {
                size,
                flags: 0,
                reserved: 0,
            })
        };
        let done = recording(
            &recording_of(vec![
                (RecordedCall::CreateVm { vm_type: 0 }, Ok(4)),
                (create(0x1000), Err(Errno::ENOMEM)),
                (create(0x1001), Ok(5)),
                (create(0x1000), Ok(6)),
                (bind(1), Ok(0)),
                (bind(0), Ok(0)),
                (
                    RecordedCall::Unknown {
                        request: 0x4068_aea3,
                    },
                    Ok(0),
                ),
            ]),
            Profile::latest(),
        );
        let wrong: Vec<u32> = done.wrong.iter().map(|wrong| wrong.at).collect();
        assert_eq!(wrong, [2, 3]);
        let regions = done.calls["KVM_SET_USER_MEMORY_REGION2"];
        assert_eq!((regions.right, regions.open), (1, 1));
        assert_eq!(done.undecoded(), 1);
        assert_eq!(done.gap.map(|gap| gap.at), Some(7));
    }
}

use std::fs;

use super::instance::{Instance, find};
use super::{CaptureError, Lost};

#[test]
fn losses_are_summed() {
    let mut lost = Lost::default();
    let stats = "entries: 217\noverrun: 274\ncommit overrun: 1\nbytes: 6492\noldest event ts: 23100.885356\n\
                 now ts: 23100.897421\ndropped events: 2\nread events: 0\n";
    lost.add(stats);
    lost.add(stats);
    let expected = Lost {
        overrun: 548,
        commit_overrun: 2,
        dropped: 4,
    };
    assert_eq!((lost, lost.events()), (expected, 554));
}

#[test]
fn instances_go_with_their_owner() {
    let tracefs = match find() {
        Ok(tracefs) => tracefs,
        Err(error) => return println!("skipped: {error}"),
    };
    // No process has this number: it is above the kernel's limit.
    let orphan = tracefs.join("instances/slat-4194305-0");
    if let Err(error) = fs::create_dir(&orphan) {
        return println!("skipped: {}: {error}", orphan.display());
    }
    let made = Instance::make(&tracefs);
    assert!(!orphan.exists());
    let path = match made {
        Ok(made) => made.path(""),
        Err(error) => panic!("{error}"),
    };
    assert!(!path.exists());
}

#[test]
fn errors_name_the_file() {
    let error = CaptureError::at("/none/trace".as_ref())(std::io::ErrorKind::NotFound.into());
    assert_eq!(error.to_string(), "/none/trace: entity not found");
    let advice = CaptureError::NotMounted.to_string();
    assert!(advice.contains("mount -t tracefs"), "{advice}");
}

//! slat from the outside: a tiny VMM that depends on it by path, with the crates that a VMM has anyway, is built in
//! a directory of its own and run.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

/// A copy of `tests/scratch-vmm` under target/tmp, with the workspace's lock file for the versions of what both use.
fn copy() -> io::Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let from = root.join("tests/scratch-vmm");
    let to = Path::new(env!("CARGO_TARGET_TMPDIR")).join("scratch-vmm");
    fs::create_dir_all(to.join("src"))?;
    fs::copy(from.join("src/main.rs"), to.join("src/main.rs"))?;
    fs::copy(root.join("Cargo.lock"), to.join("Cargo.lock"))?;
    let manifest = fs::read_to_string(from.join("Cargo.toml"))?;
    assert!(manifest.contains(r#"path = "../..""#));
    let manifest = manifest.replace(r#""../..""#, &format!("{root:?}"));
    fs::write(to.join("Cargo.toml"), manifest)?;
    Ok(to)
}

/// Builds the copy, runs it and gives what it prints.
fn run(arguments: &[&str]) -> io::Result<String> {
    let crate_dir = copy()?;
    let output = Command::new(env!("CARGO"))
        .args(["run", "--quiet", "--"])
        .args(arguments)
        .env("CARGO_TARGET_DIR", crate_dir.join("target"))
        .current_dir(&crate_dir)
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
    Ok(text.into_owned())
}

/// The lines of `text` hold these pieces, in this order, each in a line of its own.
fn assert_lines(text: &str, pieces: &[&str]) {
    let mut lines = text.lines();
    for piece in pieces {
        let found = lines.any(|line| line.contains(piece));
        assert!(found, "no (further) line with {piece:?} in:\n{text}");
    }
}

#[test]
fn a_vmm_plans_its_memory_and_learns_of_an_overlap() {
    let plan = run(&[]).unwrap();
    assert_lines(
        &plan,
        &[
            "plan: create slot 0: guest frames [0x0, 0x4000)",
            "would call KVM_SET_USER_MEMORY_REGION(slot 0, 0x0 + 0x4000000)",
            "plan: create slot 1: guest frames [0x100000, 0x102000)",
            "would call KVM_SET_USER_MEMORY_REGION(slot 1, 0x100000000 + 0x2000000)",
            "refused: slot 2 would overlap slot 0",
            "overlap (EEXIST), by kvm_main.c:kvm_check_memslot_overlap",
            "repair: guest_phys_addr 0x102000000",
            "plan: create slot 2: guest frames [0x102000, 0x102400)",
            "would call KVM_SET_USER_MEMORY_REGION(slot 2, 0x102000000 + 0x400000)",
        ],
    );

    match fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
    {
        Ok(_) => {
            let done = run(&["--run"]).unwrap();
            assert_lines(&done, &["plan: create slot 0", "plan: create slot 2"]);
            assert!(!done.contains("would call"), "{done}");
        }
        Err(error) => println!("skipped the real calls: /dev/kvm: {error}"),
    }
}

//! Records this test binary itself, run once more as a small VMM.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![expect(
    unsafe_code,
    reason = "the recorded program makes raw system calls on raw memory"
)]
#![expect(
    clippy::unwrap_used,
    reason = "the recorded program's functions are tests too, without the attribute"
)]

use std::ffi::OsString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::{Duration, Instant};

use kvm_bindings::{
    kvm_create_guest_memfd, kvm_enable_cap, kvm_userspace_memory_region,
    kvm_userspace_memory_region2,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use slat_memslot::{
    Buffer, Call, ClearBits, Errno, FileCall, FileRef, GmemId, MapCall, MapId, OtherFile, Region,
    RegionVersion,
};
use slat_vmm::record::{Exit, RecordOptions, Recorded, RecordedCall, Recording, record};

/// Set in the environment of the run that is recorded.
const ROLE: &str = "SLAT_RECORDED_ROLE";

/// Says so, and gives true, if there is no device to test with.
fn skipped() -> bool {
    let missing = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_err();
    if missing {
        println!("skipped: no /dev/kvm");
    }
    missing
}

/// Whether this run is the recorded one, in this role.
fn plays(role: &str) -> bool {
    std::env::var(ROLE).is_ok_and(|value| value == role)
}

/// The command that runs the test `role` of this binary as the recorded program.
///
/// It goes through a shell that forks, so that the recorder has a process tree to follow.
fn command(role: &str) -> Vec<OsString> {
    let exe = std::env::current_exe().unwrap();
    let script = format!("{ROLE}={role} \"$0\" --exact {role} --nocapture >&2; exit $?");
    let mut command: Vec<OsString> = ["sh", "-c"].map(OsString::from).into();
    command.extend([script.into(), exe.into()]);
    command
}

fn record_role(role: &str) -> Recording {
    record(&command(role), RecordOptions::default()).unwrap()
}

fn calls(recording: &Recording) -> Vec<(u32, Call, Result<i64, Errno>)> {
    let call = |event: &Recorded| match &event.call {
        RecordedCall::Call(call) => Some((event.vm, call.clone(), event.result)),
        _ => None,
    };
    recording.events.iter().filter_map(call).collect()
}

/// Anonymous memory that is never unmapped.
fn memory(len: usize) -> u64 {
    let (prot, flags) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
    );
    // SAFETY: a new mapping at an address of the kernel's choice.
    let address = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0) };
    assert_ne!(address, libc::MAP_FAILED);
    address as u64
}

const fn region(slot: u32, flags: u32, gpa: u64, hva: u64) -> kvm_userspace_memory_region {
    kvm_userspace_memory_region {
        slot,
        flags,
        guest_phys_addr: gpa,
        memory_size: 0x4000,
        userspace_addr: hva,
    }
}

fn expected(slot: u32, flags: u32, gpa: u64, hva: u64) -> Call {
    Call::SetRegion(Region {
        slot,
        flags,
        gpa,
        size: 0x4000,
        hva,
        ..Region::default()
    })
}

fn ioctl(fd: RawFd, request: u32, argument: usize) -> i32 {
    // SAFETY: the tests pass numbers, null, or pointers to structs of the right size.
    unsafe { libc::ioctl(fd, request.into(), argument) }
}

const HVA: u64 = 0x7000_0000_0000;

/// Slots, logs and numbers.
fn run_slots() {
    let kvm = Kvm::new().unwrap();
    let vm = kvm.create_vm().unwrap();
    let log = |hva| vm.get_dirty_log(hva, 0x4000).map(drop);
    // SAFETY: the guest never runs.
    unsafe {
        vm.set_user_memory_region(region(0, 1, 0, HVA)).unwrap();
        assert!(
            vm.set_user_memory_region(region(1, 0, 0x1000, HVA))
                .is_err()
        );
    }
    log(0).unwrap();
    assert_eq!(ioctl(vm.as_raw_fd(), 0x4020_ae46, 0), -1);
    vm.set_tss_address(0xfffb_d000).unwrap();
    vm.set_identity_map_address(0xfeff_c000).unwrap();
    vm.create_irq_chip().unwrap();
    assert_eq!(vm.check_extension_int(Cap::NrMemslots), 32764);
    let _vcpu = vm.create_vcpu(0).unwrap();
    let second = kvm.create_vm().unwrap();
    clear_log(&second);
    drop(second);
    forget(vm);
}

fn clear_log(vm: &VmFd) {
    let mut cap = kvm_enable_cap {
        cap: 168,
        ..Default::default()
    };
    cap.args[0] = 1;
    vm.enable_cap(&cap).unwrap();
    // SAFETY: the guest never runs.
    unsafe { vm.set_user_memory_region(region(3, 1, 0, HVA)).unwrap() };
    let bitmap = [5_u64];
    let log = [4 << 32 | 3_u64, 0, bitmap.as_ptr() as u64];
    assert_eq!(ioctl(vm.as_raw_fd(), 0xc018_aec0, log.as_ptr() as usize), 0);
}

/// Closes a VM through a duplicate, made before its first descriptor goes.
fn forget(vm: VmFd) {
    // SAFETY: duplicates a descriptor that is open.
    let copy = unsafe { OwnedFd::from_raw_fd(libc::dup(vm.as_raw_fd())) };
    drop(vm);
    let done = ioctl(copy.as_raw_fd(), 0xae44, 100);
    assert_eq!(done, 0);
}

#[test]
fn slots() {
    if plays("slots") {
        return run_slots();
    }
    if skipped() {
        return;
    }
    let recording = record_role("slots");
    assert_eq!(recording.exit, Exit::Code(0));
    let done = |call| (0, call, Ok(0));
    let seen = calls(&recording);
    let seen: Vec<_> = seen
        .into_iter()
        .map(|(vm, call, result)| match call {
            Call::CreateVcpu => (vm, call, result.map(|_| 0)),
            // kvm-ioctls asks for a few extensions on its own.
            other => (vm, other, result),
        })
        .filter(|(_, call, _)| !matches!(call, Call::CheckExtension { cap } if *cap != 10))
        .collect();
    let unreadable = Recorded {
        vm: 0,
        call: RecordedCall::Unknown {
            request: 0x4020_ae46,
        },
        result: Err(Errno::EFAULT),
    };
    assert!(recording.events.contains(&unreadable));
    let cap = Call::EnableCap {
        cap: 168,
        flags: 0,
        args: [1, 0, 0, 0],
    };
    let clear = Call::ClearDirtyLog {
        slot: 3,
        first_page: 0,
        num_pages: 4,
        bits: ClearBits::Words(vec![5]),
    };
    let get = Call::GetDirtyLog {
        slot: 0,
        buffer: Buffer::Good,
    };
    let expected = [
        done(expected(0, 1, 0, HVA)),
        (0, expected(1, 0, 0x1000, HVA), Err(Errno::EEXIST)),
        done(get),
        done(Call::SetTssAddr { gpa: 0xfffb_d000 }),
        done(Call::SetIdentityMapAddr { gpa: 0xfeff_c000 }),
        done(Call::CreateIrqchip),
        (0, Call::CheckExtension { cap: 10 }, Ok(32764)),
        done(Call::CreateVcpu),
        (1, cap, Ok(0)),
        (1, expected(3, 1, 0, HVA), Ok(0)),
        (1, clear, Ok(0)),
        done(Call::SetNrMmuPages { pages: 100 }),
    ];
    assert_eq!(seen, expected);
    let closed: Vec<u32> = recording
        .events
        .iter()
        .filter(|event| event.call == RecordedCall::CloseVm)
        .map(|event| event.vm)
        .collect();
    assert_eq!(closed, [1, 0]);
}

/// Makes a guest_memfd that may be mapped, if the kernel has such files.
fn gmem(vm: &VmFd) -> Option<OwnedFd> {
    let made = vm.create_guest_memfd(kvm_create_guest_memfd {
        size: 0x4000,
        flags: 1,
        ..Default::default()
    });
    // SAFETY: the descriptor is new and nobody else's.
    made.ok().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Binds slot 0 to `fd`, in whatever way it ends.
fn bind(vm: &VmFd, fd: RawFd) {
    let region = kvm_userspace_memory_region2 {
        flags: 4,
        memory_size: 0x4000,
        userspace_addr: HVA,
        guest_memfd: u32::try_from(fd).unwrap(),
        ..Default::default()
    };
    // SAFETY: the guest never runs.
    let _ends = unsafe { vm.set_user_memory_region2(region) };
}

/// guest_memfd files; the calls come from a second thread.
fn run_files() {
    let kvm = Kvm::new().unwrap();
    let (vm, other) = (kvm.create_vm().unwrap(), kvm.create_vm().unwrap());
    let (Some(file), Some(foreign)) = (gmem(&vm), gmem(&other)) else {
        return;
    };
    let work = move || {
        let null = std::fs::File::open("/dev/null").unwrap();
        for fd in [999, null.as_raw_fd(), foreign.as_raw_fd(), file.as_raw_fd()] {
            bind(&vm, fd);
        }
        let fd = file.as_raw_fd();
        // SAFETY: system calls on a file that is open; the mapping is not touched.
        unsafe {
            libc::fallocate(fd, 3, 0x1000, 0x2000);
            libc::ftruncate(fd, 0x1000);
            let address = libc::mmap(std::ptr::null_mut(), 0x4000, 3, 1, fd, 0);
            if address != libc::MAP_FAILED {
                libc::munmap(address, 0x4000);
            }
        }
        bind(&vm, fd);
        drop(file);
    };
    std::thread::spawn(work).join().unwrap();
}

#[test]
fn gmem_files() {
    if plays("gmem_files") {
        return run_files();
    }
    if skipped() {
        return;
    }
    let recording = record_role("gmem_files");
    assert_eq!(recording.exit, Exit::Code(0));
    let seen = calls(&recording);
    let first = GmemId::new(0);
    let references: Vec<FileRef> = seen
        .iter()
        .filter_map(|(vm, call, _)| match call {
            Call::SetRegion(region) if *vm == 0 && region.version == RegionVersion::V2 => {
                Some(region.gmem)
            }
            _ => None,
        })
        .collect();
    if references.is_empty() {
        println!("skipped: no guest_memfd in this kernel");
        return;
    }
    let gmem = FileRef::Gmem(first);
    let null = FileRef::Other(OtherFile::Null);
    assert_eq!(
        references,
        [FileRef::NotOpen(999), null, FileRef::Foreign, gmem, gmem]
    );
    let files: Vec<&Call> = seen
        .iter()
        .map(|(_, call, _)| call)
        .filter(|call| matches!(call, Call::File(..) | Call::Map(..)))
        .collect();
    let mmap = FileCall::Mmap {
        len: 0x4000,
        prot: 3,
        flags: 1,
        offset: 0,
    };
    let fallocate = FileCall::Fallocate {
        mode: 3,
        offset: 0x1000,
        len: 0x2000,
    };
    let file = |call| Call::File(first, call);
    let mut expected = vec![
        file(fallocate),
        file(FileCall::Truncate { len: 0x1000 }),
        file(mmap),
        Call::Map(MapId::new(0), MapCall::Unmap),
        file(FileCall::Close),
        file(FileCall::Close),
    ];
    let mapped = seen
        .iter()
        .any(|(_, call, result)| *call == file(mmap) && result.is_ok());
    if !mapped {
        expected.remove(3);
    }
    assert_eq!(files, expected.iter().collect::<Vec<_>>());
}

#[test]
fn a_real_vm_runs_under_the_recorder() {
    const ROLE: &str = "a_real_vm_runs_under_the_recorder";
    if plays(ROLE) {
        return run_guest();
    }
    if skipped() {
        return;
    }
    let recording = record_role(ROLE);
    assert_eq!(recording.exit, Exit::Code(0));
    assert_eq!(calls(&recording).len(), 2);
}

/// A guest that halts at once.
fn run_guest() {
    let kvm = Kvm::new().unwrap();
    let vm = kvm.create_vm().unwrap();
    let hva = memory(0x4000);
    // SAFETY: the memory is mapped and never unmapped; its first byte holds `hlt`.
    unsafe {
        vm.set_user_memory_region(region(0, 0, 0, hva)).unwrap();
        (hva as *mut u8).write(0xf4);
    }
    let mut vcpu = vm.create_vcpu(0).unwrap();
    let mut sregs = vcpu.get_sregs().unwrap();
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    vcpu.set_sregs(&sregs).unwrap();
    let mut regs = vcpu.get_regs().unwrap();
    (regs.rip, regs.rflags) = (0, 2);
    vcpu.set_regs(&regs).unwrap();
    let _exit = vcpu.run();
}

#[test]
fn time_runs_out() {
    let options = RecordOptions {
        timeout: Some(Duration::from_millis(300)),
    };
    let begin = Instant::now();
    let script = "sleep 100 & sleep 100";
    let recording = record(&["sh".into(), "-c".into(), script.into()], options).unwrap();
    assert_eq!(recording.exit, Exit::TimedOut);
    assert!(begin.elapsed() < Duration::from_secs(50));
}

#[test]
fn ends_are_told_apart() {
    let run = |script: &str| {
        let command = ["sh".into(), "-c".into(), script.into()];
        record(&command, RecordOptions::default()).unwrap().exit
    };
    assert_eq!(run("exit 7"), Exit::Code(7));
    assert_eq!(run("kill -9 $$"), Exit::Signal(9));
    assert_eq!(run("trap 'exit 4' TERM; kill -TERM $$"), Exit::Code(4));
    assert_eq!(run("kill -64 $$"), Exit::Signal(64));
}

#[test]
fn a_missing_program_is_an_error() {
    let missing = Path::new("/nonexistent/program").as_os_str().to_owned();
    let error = record(&[missing], RecordOptions::default()).unwrap_err();
    assert!(
        error.to_string().contains("/nonexistent/program"),
        "{error}"
    );
    let error = record(&[], RecordOptions::default()).unwrap_err();
    assert_eq!(error.to_string(), "no command to record");
}

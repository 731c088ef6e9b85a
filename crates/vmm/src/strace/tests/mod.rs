mod property;

use slat_memslot::{Call, Errno, Region};

use super::*;

/// A real trace (`strace -f -tt -yy`) of a program that makes each memory ioctl once, then races three threads.
const TOUR: &str = include_str!("tour.strace");

fn events(trace: &str) -> Vec<Event> {
    let all: Result<Vec<Event>, ParseError> = Events::new(trace).collect();
    all.unwrap_or_else(|e| panic!("{e}"))
}

fn one(line: &str) -> Event {
    let mut all = events(line);
    assert_eq!(all.len(), 1, "{line}: {all:?}");
    all.remove(0)
}

fn error(line: &str) -> String {
    let first = Events::new(line).next();
    match first {
        Some(Err(error)) => error.to_string(),
        other => panic!("{line}: {other:?}"),
    }
}

const REGION: &str = "ioctl(4, KVM_SET_USER_MEMORY_REGION, {slot=65537, flags=KVM_MEM_LOG_DIRTY_PAGES|\
                      KVM_MEM_READONLY|0x4, guest_phys_addr=0x800, memory_size=65536, userspace_addr=0x7f0000001000})";

const READ: Region = Region {
    slot: 0x1_0001,
    flags: 7,
    gpa: 0x800,
    size: 65536,
    hva: 0x7f00_0000_1000,
    version: slat_memslot::RegionVersion::V1,
    gmem: slat_memslot::FileRef::NotOpen(0),
    gmem_offset: 0,
    padding: 0,
};

#[test]
fn tour_of_all_memory_ioctls() {
    let all = events(TOUR);
    let decoded = all.iter().filter(|e| e.call().is_some()).count();
    let hidden: Vec<&str> = all
        .iter()
        .filter_map(|e| match &e.kind {
            EventKind::Undecoded { memory, .. } => memory.map(MemoryIoctl::name),
            _ => None,
        })
        .collect();
    let expected = [
        "KVM_SET_USER_MEMORY_REGION",
        "KVM_SET_USER_MEMORY_REGION",
        "KVM_SET_USER_MEMORY_REGION2",
        "KVM_CREATE_GUEST_MEMFD",
        "KVM_SET_USER_MEMORY_REGION2",
        "KVM_ENABLE_CAP",
        "KVM_SET_MEMORY_ATTRIBUTES",
        "KVM_GET_DIRTY_LOG",
        "KVM_CLEAR_DIRTY_LOG",
        "KVM_PRE_FAULT_MEMORY",
        "KVM_SET_IDENTITY_MAP_ADDR",
    ];
    assert_eq!(hidden, expected);
    let memory = all.iter().filter(|e| e.memory().is_some()).count();
    assert_eq!(
        memory,
        decoded + hidden.len() + 4,
        "and KVM_CREATE_VM, and three checks on /dev/kvm"
    );
    let regions = TOUR.matches("KVM_SET_USER_MEMORY_REGION, {").count();
    assert_eq!(decoded, regions + 6);
    let foreign = |e: &&Event| e.vm.is_some_and(|vm| vm != 0);
    assert_eq!(all.iter().find(foreign), None);
}

#[test]
fn every_prefix_gives_the_same_region() {
    let prefixes = [
        ("", None),
        ("[pid 14532] ", Some(14532)),
        ("[pid   332]      0.000083 ", Some(332)),
        ("14403 07:29:53.983842 ", Some(14403)),
        ("7   1700000000.123456 ", Some(7)),
        ("     0.000202 [00007f923bac2d6b] ", None),
        ("07:29:53 (+     0.000012) ", None),
    ];
    for (prefix, pid) in prefixes {
        let event = one(&format!(
            "{prefix}{REGION} = -1 EINVAL (Invalid argument) <0.000004>"
        ));
        assert_eq!(event.pid, pid, "{prefix}");
        assert_eq!(event.call(), Some(&Call::SetRegion(READ)), "{prefix}");
        assert_eq!(event.returned.result(), Some(Err(Errno::EINVAL)));
    }
}

#[test]
fn verbose_and_raw_numbers_are_read() {
    let verbose = "ioctl(4<anon_inode:kvm-vm>, 0x4020ae46 /* KVM_SET_USER_MEMORY_REGION */, {slot=65537, \
                   flags=0x7 /* KVM_MEM_LOG_DIRTY_PAGES|KVM_MEM_READONLY|0x4 */, guest_phys_addr=0x800, \
                   memory_size=65536, userspace_addr=0x7f0000001000}) = 0";
    assert_eq!(one(verbose).call(), Some(&Call::SetRegion(READ)));
    let raw = one("ioctl(4, 0xae44, 0x40) = 0");
    assert_eq!(raw.call(), Some(&Call::SetNrMmuPages { pages: 64 }));
    let named = one("ioctl(4, _IOC(_IOC_NONE, 0xae, 0xc7, 0), 0) = 3");
    assert_eq!(named.call(), Some(&Call::ResetDirtyRings));
    assert_eq!(named.returned, Returned::Value(3));
    let either = one("ioctl(4, KVM_GET_DIRTY_LOG or SOMETHING_ELSE, 0x7ffd) = 0");
    let EventKind::Undecoded { memory, .. } = either.kind else {
        panic!("{either:?}");
    };
    assert_eq!(memory, Some(MemoryIoctl::GetDirtyLog));
}

#[test]
fn interrupted_calls_are_joined_per_thread() {
    let begun = REGION.trim_end_matches(')');
    let trace = format!(
        "1 {begun} <unfinished ...>\n\
         2 ioctl(4, KVM_SET_NR_MMU_PAGES, 0x40 <unfinished ...>\n\
         1 <... ioctl resumed>) = 0\n\
         2 <... ioctl resumed>) = -1 EINVAL (Invalid argument)\n\
         3 ioctl(4, KVM_RUN <unfinished ...>) = ?\n\
         4 ioctl(4, KVM_CREATE_IRQCHIP, 0 <unfinished ...>\n\
         1 close(4) = 0\n"
    );
    let all = events(&trace);
    let seen: Vec<(u32, Returned)> = all.iter().map(|e| (e.line, e.returned)).collect();
    let expected = [
        (1, Returned::Value(0)),
        (2, Returned::Failed(Errno::EINVAL)),
        (5, Returned::Unknown),
        (7, Returned::Value(0)),
        (6, Returned::Unknown),
    ];
    assert_eq!(seen, expected);
    assert_eq!(
        all.first().and_then(Event::call),
        Some(&Call::SetRegion(READ))
    );
}

#[test]
fn descriptors_are_followed() {
    let trace = "\
        openat(AT_FDCWD, \"/dev/kvm\", O_RDWR) = 3\n\
        ioctl(3, KVM_CHECK_EXTENSION, KVM_CAP_SYNC_MMU) = 1\n\
        ioctl(3, KVM_CREATE_VM, 0) = 4\n\
        ioctl(3, KVM_CREATE_VM, 0x4) = 5\n\
        dup(4) = 7\n\
        close(4) = 0\n\
        ioctl(7, KVM_CREATE_VCPU, 0) = 8\n\
        ioctl(8, KVM_RUN, 0) = -1 EINTR (Interrupted system call)\n\
        ioctl(5, KVM_CREATE_IRQCHIP, 0) = 0\n\
        dup2(1, 5) = 5\n\
        ioctl(5, TCGETS, 0x7ffd) = 0\n\
        close(9) = 0\n";
    let seen: Vec<(u32, i32, Option<u32>)> =
        events(trace).iter().map(|e| (e.line, e.fd, e.vm)).collect();
    let expected = [
        (2, 3, None),
        (3, 3, Some(0)),
        (4, 3, Some(1)),
        (5, 4, Some(0)),
        (6, 4, Some(0)),
        (7, 7, Some(0)),
        (8, 8, Some(0)),
        (9, 5, Some(1)),
        (10, 5, Some(1)),
    ];
    assert_eq!(seen, expected);
}

#[test]
fn forked_processes_close_only_their_own_copies() {
    let trace = "\
        1 ioctl(3, KVM_CREATE_VM, 0) = 4\n\
        1 clone(child_stack=NULL, flags=CLONE_CHILD_SETTID|SIGCHLD, child_tidptr=0x7f) = 2\n\
        1 clone3({flags=CLONE_VM|CLONE_FILES|CLONE_THREAD, stack_size=0x7ff} => {parent_tid=[3]}, 88) = 3\n\
        2 close(4) = 0\n\
        3 ioctl(4, KVM_CREATE_IRQCHIP, 0) = 0\n\
        3 close(4) = 0\n\
        1 close(4) = 0\n";
    let seen: Vec<(u32, Option<u32>)> = events(trace).iter().map(|e| (e.line, e.vm)).collect();
    assert_eq!(
        seen,
        [(1, Some(0)), (4, Some(0)), (5, Some(0)), (6, Some(0))]
    );
}

#[test]
fn vms_from_before_the_trace_are_told_apart() {
    let trace = "ioctl(9, KVM_CREATE_IRQCHIP, 0) = 0\n\
                 ioctl(8<anon_inode:kvm-vm>, KVM_CHECK_EXTENSION, KVM_CAP_SYNC_MMU) = 1\n\
                 ioctl(9, KVM_SET_TSS_ADDR, 0xfffbd000) = 0\n\
                 ioctl(-1, KVM_CREATE_IRQCHIP, 0) = -1 EBADF (Bad file descriptor)\n";
    let seen: Vec<Option<u32>> = events(trace).iter().map(|e| e.vm).collect();
    assert_eq!(seen, [Some(0), Some(1), Some(0), None]);
}

#[test]
fn other_lines_are_passed_over() {
    let trace = "+++ exited with 0 +++\n\
                 --- SIGCHLD {si_signo=SIGCHLD} ---\n\
                 strace: Process 14533 attached\n\
                 ioctl(1, TCGETS, 0x7ffd) = -1 ENOTTY (Inappropriate ioctl for device)\n\
                 write(2, \"ioctl(4, KVM_RUN, 0) = 0\", 24) = 24\n\
                 clone(child_stack=NULL, flags=CLONE_CHILDstrace: Process 14533 attached\n\
                 <... ioctl resumed>) = 0\n\
                 not strace at all\n";
    assert_eq!(events(trace), []);
}

#[test]
fn broken_kvm_lines_are_errors_and_the_walk_goes_on() {
    let cases = [
        (
            "ioctl(4, KVM_SET_USER_MEMORY_REGION, {slot=0, flags=0}) = 0",
            "line 1, column 38: {slot=0, flags=0}: no guest_phys_addr=",
        ),
        (
            "7 ioctl(4, KVM_SET_NR_MMU_PAGES, many) = 0",
            "line 1, column 34: many: not a number",
        ),
        (
            "ioctl(four, KVM_CREATE_VM, 0) = 4",
            "line 1, column 7: not a descriptor",
        ),
        (
            "ioctl(4, KVM_SET_USER_MEMORY_REGION, {slot=0, flags=",
            "line 1, column 53: the call has no end",
        ),
        (
            "ioctl(4, KVM_CHECK_EXTENSION) = 0",
            "line 1, column 34: no third argument",
        ),
    ];
    for (line, message) in cases {
        assert_eq!(error(line), message);
        let both = format!("{line}\nioctl(4, KVM_CREATE_IRQCHIP, 0) = 0");
        assert!(matches!(Events::new(&both).nth(1), Some(Ok(_))), "{line}");
    }
    let bad = REGION.replace("0x4,", "KVM_MEM_WHAT,");
    assert!(error(&format!("{bad} = 0")).ends_with("KVM_MEM_WHAT: not a number"));
}

#[test]
fn many_unfinished_calls_come_out_in_the_order_of_their_lines() {
    let lines = (1..=50_000)
        .rev()
        .map(|pid| format!("{pid} ioctl(4, KVM_CREATE_IRQCHIP, 0 <unfinished ...>\n"));
    let trace: String = lines.collect();
    let seen = events(&trace);
    assert!(seen.iter().map(|e| e.line).eq(1..=50_000));
    assert!(seen.iter().all(|e| e.returned == Returned::Unknown));
}

//! The examples run, and say what they are there to say.
#![expect(
    clippy::duplicate_mod,
    reason = "each example has its own `mod on`, as a program of its own"
)]

use std::error::Error;

#[path = "../examples/convert.rs"]
#[expect(dead_code, reason = "its `main` is not called here")]
mod convert;
#[path = "../examples/dirty_log.rs"]
#[expect(dead_code, reason = "its `main` is not called here")]
mod dirty_log;
#[path = "../examples/dump_tables.rs"]
#[expect(dead_code, reason = "its `main` is not called here")]
mod dump_tables;
#[path = "../examples/explain_fault.rs"]
#[expect(dead_code, reason = "its `main` is not called here")]
mod explain_fault;
#[path = "../examples/explain_region.rs"]
#[expect(dead_code, reason = "its `main` is not called here")]
mod explain_region;
#[path = "../examples/guest_memfd.rs"]
#[expect(dead_code, reason = "its `main` is not called here")]
mod guest_memfd;
#[path = "../examples/memory_manager.rs"]
#[expect(dead_code, reason = "its `main` is not called here")]
mod memory_manager;
#[path = "../examples/migration_races.rs"]
#[expect(dead_code, reason = "its `main` is not called here")]
mod migration_races;
#[path = "../examples/prefault.rs"]
#[expect(dead_code, reason = "its `main` is not called here")]
mod prefault;
#[path = "../examples/root_role_audit.rs"]
#[expect(dead_code, reason = "its `main` is not called here")]
mod root_role_audit;
#[path = "../examples/shadow_roots.rs"]
#[expect(dead_code, reason = "its `main` is not called here")]
mod shadow_roots;
#[path = "../examples/slot_zap.rs"]
#[expect(dead_code, reason = "its `main` is not called here")]
mod slot_zap;
#[path = "../examples/slots_on.rs"]
#[expect(dead_code, reason = "its `main` is not called here")]
mod slots_on;
#[path = "../examples/snp_page_state.rs"]
#[expect(dead_code, reason = "its `main` is not called here")]
mod snp_page_state;
#[path = "../examples/tdp_roots.rs"]
#[expect(dead_code, reason = "its `main` is not called here")]
mod tdp_roots;
#[path = "../examples/tdx_lifecycle.rs"]
#[expect(dead_code, reason = "its `main` is not called here")]
mod tdx_lifecycle;
#[path = "../examples/translate.rs"]
#[expect(dead_code, reason = "its `main` is not called here")]
mod translate;
#[path = "../examples/vfio.rs"]
#[expect(dead_code, reason = "its `main` is not called here")]
mod vfio;
#[path = "../examples/zap_cost.rs"]
#[expect(dead_code, reason = "its `main` is not called here")]
mod zap_cost;

type Run = fn(&[&str], &mut Vec<u8>) -> Result<(), Box<dyn Error>>;

/// What an example writes.
fn output(run: Run, arguments: &[&str]) -> String {
    let mut out = Vec::new();
    let result = run(arguments, &mut out);
    let text = String::from_utf8(out).expect("text");
    result.unwrap_or_else(|error| panic!("{text}\n{error}"));
    text
}

/// Asserts that the parts come in this order.
fn assert_tells(text: &str, parts: &[&str]) {
    let mut rest = text;
    for part in parts {
        let at = rest.find(part);
        let at = at.unwrap_or_else(|| panic!("`{part}` is missing or out of order in\n{text}"));
        rest = &rest[at + part.len()..];
    }
}

#[test]
fn explain_region_names_the_reasons_and_mends_the_dirty_log() {
    let text = output(|_, out| explain_region::run(out), &[]);
    assert_tells(
        &text,
        &[
            "plan: create slot 0",
            "EEXIST",
            "repair: set slot 1",
            "log-with-gmem in kvm_main.c:check_memory_region_flags",
            "repair",
            "slot 0: KVM cannot log private memory",
            "plan: flags only slot 1",
            "dirty log on",
        ],
    );
}

#[test]
fn dirty_log_keeps_what_a_failed_transfer_did_not_send() {
    let text = output(|_, out| dirty_log::run(out), &[]);
    assert_tells(
        &text,
        &[
            "KVM: pages 3-5,8,100; with VMM and device: pages 3-5,8-9,100,255",
            "7 dirty pages in 3 transfers",
            "sent 3..10",
            "broken pipe",
            "kept: pages 100,255",
            "KVM: pages 101",
            "sent 100..102",
            "sent 255..256",
            "kept: pages none",
            "3 words",
        ],
    );
}

#[test]
fn slots_on_runs_on_the_model_and_beside_the_kernel() {
    on_each_machine(
        slots_on::run,
        &[
            "plan: create slot 0",
            "plan: none",
            "EEXIST",
            "plan: move slot 2",
            "result: ok",
            "dirty log on",
            "EINVAL",
            "plan: delete slot 2",
            "2 slots at the end",
        ],
        &[],
    );
}

#[test]
fn guest_memfd_runs_on_the_model_and_beside_the_kernel() {
    on_each_machine(
        guest_memfd::run,
        &["create a file"],
        &["foreseen: Gmem", "kvm_gmem_bind", "file None"],
    );
}

#[test]
fn memory_manager_catches_the_bugs_of_others() {
    on_each_machine(
        memory_manager::run,
        &[
            "plugged slots",
            "would overlap slot 1",
            "the naive book has 3 slots, slat's 2",
            "EINVAL (",
            "plugged elsewhere, as slot 2",
            "after 1000 times the id is Some(3)",
            "zip would look at 128 of 256 words",
            "has 128 words where the slot's pages need 256",
            "to be sent: 16383",
        ],
        &[
            "foreseen: EINVAL (log-with-gmem)",
            "private: 0x200000+0x200000 is private",
            "shared, 2M: shared, ",
        ],
    );
}

/// Runs an example on the model, and on model and kernel where there is one; `parts` come in the text of both,
/// `model_parts` in that of the model, which has every feature.
fn on_each_machine(run: Run, parts: &[&str], model_parts: &[&str]) {
    let model = output(run, &[]);
    assert_eq!(model, output(run, &["--on", "model"]));
    assert_tells(&model, parts);
    assert_tells(&model, model_parts);
    match kernel() {
        Ok(()) => assert_tells(&output(run, &["--on", "both"]), parts),
        Err(why) => println!("skipped beside the kernel: {why}"),
    }
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn kernel() -> Result<(), Box<dyn Error>> {
    slat::vmm::kvm::Machine::open()?;
    Ok(())
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn kernel() -> Result<(), Box<dyn Error>> {
    Err("/dev/kvm is for Linux on x86-64".into())
}

#[test]
fn tdp_roots_names_the_six() {
    let text = output(|_, out| tdp_roots::run(out), &[]);
    assert_tells(
        &text,
        &[
            "0x3784",
            "0x1003784",
            "0x23784",
            "0x3785",
            "0x1003785",
            "0x23785",
            "0x13784",
            "0x1013784",
            "0x33784",
            "MAXPHYADDR 39, Normal: 0x3784",
            "MAXPHYADDR 48, Smm: 0x1003784",
            "MAXPHYADDR 49, Normal: 0x3785",
            "MAXPHYADDR 52, Guest: 0x23785",
        ],
    );
}

#[test]
fn root_role_audit_objects_to_the_wrong_order() {
    let text = output(|_, out| root_role_audit::run(out), &[]);
    assert_tells(
        &text,
        &[
            "role first, then CR3: the audit is content",
            "CR3 first, then role: the audit objects to guest_mode",
        ],
    );
}

#[test]
fn shadow_roots_shows_which_policy_breaks_and_what_a_guest_can_do_then() {
    let text = output(|_, out| shadow_roots::run(out), &[]);
    let sound = "a cached root is found; the audit is content; L1's write faults";
    let broken = "the audit: S18 root-role-mismatch: vCPU 0; L1 writes to its read-only page";
    assert_tells(
        &text,
        &[
            &format!("the MMU's role, role first, then CR3: {sound}"),
            &format!("the MMU's role, CR3 first, then role: a cached root is found; {broken}"),
            &format!("the caller's role, role first, then CR3: {sound}"),
            &format!("the caller's role, CR3 first, then role: {sound}"),
        ],
    );
}

#[test]
fn zap_cost_tells_both_kinds_of_zap() {
    let text = output(zap_cost::run, &["--gib", "1"]);
    assert_tells(
        &text,
        &[
            "memory",
            "zap its leaves",
            "fast zap: invalidate the roots",
            "fast zap: zap them before return",
        ],
    );
    let wrong = zap_cost::run(&["--gib", "0"], &mut Vec::new());
    assert!(wrong.unwrap_err().to_string().contains("1 to 4096"));
}

#[test]
fn dump_tables_tells_what_goes() {
    let text = output(|_, out| dump_tables::run(out), &[]);
    assert_tells(
        &text,
        &[
            "slat-dump 1 npt p2 maxphyaddr 48",
            "role baseline 0x3784 ",
            "0x0..0x400 l2 rwx pfn 0x4000 hw mw ad pat",
            "0xc0000..0xc0010 l1 rwx pfn 0x70000 hw mw ad pat",
            "leaf by leaf",
            " root 0.0 valid refs 2",
            "-  0xc0000..0xc0010 l1 rwx pfn 0x70000 hw mw ad pat",
            "fast zap",
            "-root 0.0 valid refs 2",
            "+root 0.0 invalid refs 1",
            "-  tables l4 1 l3 1 l2 2 l1 1",
            "+  tables l4 1 l3 0 l2 0 l1 0",
            "-  0x0..0x400 l2",
            "read back: the same",
        ],
    );
}

#[test]
fn prefault_shows_the_roots_and_the_policies() {
    let plans = [
        "# AMD",
        "in 32 faults, into root l4 8-byte q0 direct",
        "# Intel, MAXPHYADDR 46",
        "into root l4 ",
        "# Intel, MAXPHYADDR 52",
        "into root l5 ",
        "# Intel without EPT A/D bits",
        "the first access to each page still faults",
        "# in SMM, as merged",
        "stops: no slot holds 0x0",
        "# in SMM, an error outside it",
        "refused: ",
        "as merged: 4 pages are left: no slot is there; 1 faults",
        "always for the base mode: everything is mapped; 0 faults",
        "an error outside it: refused: ",
        "debian-6.12.117: 4 pages are left: the kernel would try for ever: the root was thrown away",
        "linux-6.18: everything is mapped",
        "# KVM_PRE_FAULT_MEMORY",
    ];
    on_each_machine(prefault::run, &plans, &["0x3c00000, 0x800000 bytes: "]);
}

#[test]
fn slot_zap_tells_leaves_from_roots() {
    let costs = [
        "default VM, quirk on: ",
        "5 tables gone, 65 faults to touch the other slot again",
        "default VM, quirk off: 64 entries changed, 0 tables gone, 0 faults to touch",
        "protected VM, quirk on: 64 entries changed, 0 tables gone, 0 faults to touch",
        "# The calls, on ",
        "delete: zaps ",
        "deleted ",
    ];
    on_each_machine(
        slot_zap::run,
        &costs,
        &["all roots of the VM", "leaves of guest frames"],
    );
}

#[test]
fn translate_says_where_any_access_goes_and_the_kernel_where_a_read_goes() {
    let model = output(translate::run, &[]);
    assert_tells(
        &model,
        &[
            "Supervisor Read 0x1234: 0x4234, 4K page",
            "Supervisor Write 0x1234: #PF(0x3 PRESENT|WRITE) at 0x1234, level 1: the page is read-only",
            "User Read 0x2234: #PF(0x5 PRESENT|USER)",
            "Supervisor Read 0x5234: #PF(0x0 -)",
            "User Execute 0x200234: #PF(0x15 PRESENT|USER|FETCH)",
        ],
    );
    on_kernel_walks(
        translate::run,
        &[
            "KVM_TRANSLATE 0x1234: 0x4234",
            "KVM_TRANSLATE 0x2234: 0x5234",
            "KVM_TRANSLATE 0x5234: not valid",
            "KVM_TRANSLATE 0x200234: 0x200234",
        ],
    );
}

#[test]
fn explain_fault_names_the_first_check_and_the_dimension() {
    let model = output(explain_fault::run, &[]);
    assert_tells(
        &model,
        &[
            "guest level 4: 0x1007, rights wux",
            "the page is read-only",
            "user mode may not use the page",
            "the entry is not present",
            "reserved bits: 0x4000000000000",
            "the page is not executable",
            "second stage at 0x0, a table of level 4: #PF(",
        ],
    );
    on_kernel_walks(
        explain_fault::run,
        &[
            "KVM_TRANSLATE 0x3000: valid false",
            "KVM_TRANSLATE 0x4000: valid false",
        ],
    );
}

/// Runs an example beside the kernel where there is one.
fn on_kernel_walks(run: Run, parts: &[&str]) {
    match kernel() {
        Ok(()) => {
            assert_tells(&output(run, &["--on", "both"]), parts);
            assert_tells(&output(run, &["--on", "kvm"]), parts);
        }
        Err(why) => println!("skipped beside the kernel: {why}"),
    }
}

#[test]
fn snp_page_state_tells_the_policies_apart() {
    let text = output(snp_page_state::run, &["--on", "model"]);
    assert_tells(
        &text,
        &[
            "private write: done",
            "the host reads Some(Scrambled)",
            "violations: 0",
            "Upstream: exit to userspace, the access was Shared; its owner: reads Value(Tag(1))",
            "Rfc2021: done; its owner: #VC 0x404",
            "Strict: an error for the guest; its owner: reads Value(Tag(1))",
            "Punched: reads Scrambled",
            "Kept: reads Value(Tag(1))",
            "KVM: Success, stops at entry 3",
            "strict: InvalidEntry, stops at entry 1",
            "snp_read gpa=0 c=1: tag 7",
            "snp_psc entries=0x2:private,0x3:private: psc 0 cur=2 exits=0x2000+2:private:4K",
            "snp_write gpa=0x2000 c=1 tag=1: vc 0x404",
            "snp_host_peek gpa=0x2000: noise",
            "snp_write gpa=0x2000 c=0 tag=2: memory-fault flags=0 gpa=0x2000 size=0x1000",
            "snp_audit: clean",
        ],
    );
    match kernel() {
        // A host with SEV-SNP makes the VM; without firmware in between nothing can be launched from here.
        Ok(()) => assert_tells(
            &output(snp_page_state::run, &["--on", "kvm"]),
            &["not tried:"],
        ),
        Err(why) => println!("skipped on the kernel: {why}"),
    }
}

#[test]
fn migration_races_finds_all_three() {
    let text = output(|_, out| migration_races::run(out), &[]);
    assert_eq!(text.matches("kaboom!").count(), 3);
    for name in ["sev", "snp", "tdx"] {
        assert_tells(
            &text,
            &[&format!("{name}, all rules kept: no page is lost")],
        );
    }
}

#[test]
fn convert_answers_each_exit() {
    on_private_machines(
        convert::run,
        &[
            "# 2 MiB shall be private",
            "make [0x400, 0x600) private",
            "discard the shared side of [0x400, 0x600)",
            "becomes private: what was there is gone",
            "the guest hears: Done",
            "# what was there is gone\nValue(1)",
            "# and asks for what it has\nthe guest hears: Done\nValue(0)",
            "# the range ends in a hole\nrefused: [0x600, 0x700) cannot be private: no slot holds them\nValue(4294967274)",
            "# a hole that is shared already\nthe guest hears: Done",
            "# attributes that mean nothing\nrefused: attributes 0x30",
            "make [0x400, 0x600) shared",
            "discard the private side of [0x400, 0x600), at 0x200000 of file 0",
            "# step 1 fails",
            "the guest hears: TryAgain\nleft over: 0",
            "# step 2 fails",
            "the guest hears: Done\nleft over: 1",
            "[0x800, 0x810) private, slot 2, file 0 from 0x400000",
        ],
    );
}

/// The same for examples that need private memory: a kernel that has it says all that the model says.
fn on_private_machines(run: Run, parts: &[&str]) {
    assert_tells(&output(run, &[]), parts);
    if let Err(why) = kernel() {
        return println!("skipped beside the kernel: {why}");
    }
    let both = output(run, &["--on", "both"]);
    if both.contains("this kernel has no private memory to show") {
        return println!("skipped beside the kernel: it has no private memory");
    }
    assert_tells(&both, parts);
    let (name, lines) = (both.lines().next().unwrap_or(""), both.lines().count());
    println!("{lines} lines as beside the kernel: {name}");
}

#[test]
fn vfio_maps_what_is_shared_and_nothing_else() {
    on_private_machines(
        vfio::run,
        &[
            "# 2 MiB shall be private\nunmap [0x400, 0x600) from devices\nmake [0x400, 0x600) private\ndiscard the shared side",
            "returns 0\ndevices: 6144 KiB in 96 mappings, 0 pages wrong",
            "# a part of it shared again\nmake [0x400, 0x500) shared\nmap [0x400, 0x500) for devices\ndiscard the private side",
            "returns 0\ndevices: 7168 KiB in 112 mappings, 0 pages wrong",
            "unmap [0x800, 0x801) from devices: EINVAL\ntaken back: EINVAL\nthe hypercall returns -22\ndevices: 7168 KiB",
            "make [0x800, 0x900) private: ENOMEM\nmap [0x800, 0x900) for devices\ntaken back: ENOMEM\nthe hypercall returns -11\ndevices: 7168 KiB in 112 mappings, 0 pages wrong",
            "map [0x500, 0x600) for devices: ENOMEM\nmake [0x500, 0x600) private\ntaken back: ENOMEM\nthe hypercall returns -11",
            "map [0x800, 0x900) for devices: ENOMEM\nno vCPU runs: map [0x800, 0x900) for devices: ENOMEM; room is made\nmap [0x800, 0x900) for devices\ntaken back",
            "[0x500, 0x600) private, slot 0, file 0 from 0x300000",
        ],
    );
}

#[test]
fn tdx_lifecycle_ends_with_nothing_left() {
    let text = output(tdx_lifecycle::run, &["--on", "model"]);
    assert_tells(
        &text,
        &[
            "measured: 16 pages",
            "4 MiB accepted ahead: 1024 accepted, 2 too large",
            "what is needed, when it is needed: 1034 accepted",
            "2 MiB shared for I/O: 1034 accepted, 2 too large, 1 conversions",
            "pages there and back: 1066 accepted",
            "memory plugged and unplugged",
            "violations: 0",
            "left: Value(0)",
            "its leaves: what stays is there, 0 faults",
            "all shared tables: what stays is there, 1 faults",
            "all tables: EIO (KVM gives the VM up: the table of level",
        ],
    );
    let text = output(tdx_lifecycle::run, &["--on", "kvm"]);
    assert_tells(&text, &["not "]);
}

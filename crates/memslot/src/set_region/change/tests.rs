use crate::{Effects, Memory, Profile, Quirks, Region, Requests, SlotFlags, SlotKey, VmType, cap};

const HVA: u64 = 0x7000_0000_0000;

fn region(gpa: u64) -> Region {
    Region::new(SlotKey::normal(2), gpa, 0x4000, HVA)
}

fn vm() -> Memory {
    Memory::new(Profile::latest(), VmType::Default)
}

fn set(memory: &mut Memory, request: Region) -> Effects {
    memory.set_region(&request).unwrap()
}

/// What users read before they commit.
#[test]
fn a_plan_says_what_will_change() {
    let mut memory = vm();
    let says = |memory: &Memory, request: Region| {
        let text = memory.check_region(&request).unwrap().to_string();
        text.lines()
            .map(|line| line.trim().to_owned())
            .collect::<Vec<_>>()
    };
    let created = says(&memory, region(0x1000));
    assert_eq!(created[0], "create slot 2: guest frames [0x1, 0x5)");
    assert!(
        created[1].starts_with("1 exchange(s) of the slots"),
        "{created:?}"
    );
    let _effects = set(&mut memory, region(0x1000));
    assert_eq!(
        says(&memory, region(0x1000)),
        ["no change slot 2: guest frames [0x1, 0x5)"]
    );
    let moved = says(&memory, region(0x9000));
    assert_eq!(
        moved[0],
        "move slot 2: guest frames [0x1, 0x5) -> [0x9, 0xd)"
    );
    assert_eq!(
        moved[1],
        "zaps all roots of the VM (a default VM with the quirk SLOT_ZAP_ALL on)"
    );
    let logged = says(
        &memory,
        region(0x1000).with_flags(SlotFlags::LOG_DIRTY_PAGES),
    );
    let expected = [
        "flags only slot 2: guest frames [0x1, 0x5)",
        "dirty log on: mappings are split and write-protected now",
        "flushes the slot's frames from all TLBs",
        "switches page-modification logging on all vCPUs",
    ];
    assert_eq!(logged[..4], expected);
    let deleted = says(&memory, Region::delete(SlotKey::normal(2)));
    assert_eq!(deleted[0], "delete slot 2: guest frames [0x1, 0x5)");
    let args = [Quirks::SLOT_ZAP_ALL.bits(), 0, 0, 0];
    memory.enable_cap(cap::DISABLE_QUIRKS2, 0, args).unwrap();
    let deleted = says(&memory, Region::delete(SlotKey::normal(2)));
    assert_eq!(
        deleted[1],
        "zaps leaves of guest frames [0x1, 0x5) in the roots of as 0 (the quirk SLOT_ZAP_ALL is disabled)"
    );
}

#[test]
fn each_rule_of_a_zap_is_said() {
    let deletion = |mut memory: Memory| {
        let _effects = set(&mut memory, region(0));
        let delete = Region::delete(SlotKey::normal(2));
        let plan = memory.check_region(&delete).unwrap();
        plan.zap.unwrap().rule.to_string()
    };
    let of = |name, vm_type| Memory::new(Profile::named(name).unwrap(), vm_type);
    let old = deletion(of("linux-6.8", VmType::Default));
    assert_eq!(old, "this kernel is older than the quirk SLOT_ZAP_ALL");
    let protected = deletion(of("linux-6.18", VmType::SwProtected));
    assert_eq!(
        protected,
        "VM type sw-protected, to which the quirk does not apply"
    );
    let experiment = Memory::new(Profile::latest().with_zap_leafs_flag(), VmType::Default);
    let unflagged = deletion(experiment);
    assert_eq!(
        unflagged,
        "the slot lacks KVM_MEM_ZAP_LEAFS_ONLY (experiment)"
    );
}

#[test]
fn effects_say_the_generation_and_the_zap() {
    let mut memory = vm();
    let created = set(&mut memory, region(0));
    let generation = memory.space(crate::AsId::NORMAL).generation();
    assert_eq!(created.to_string(), format!("as 0 is now {generation:?}"));
    let deleted = set(&mut memory, Region::delete(SlotKey::normal(2)));
    let text = deleted.to_string();
    assert!(text.contains("; zapped: all roots of the VM ("), "{text}");
}

#[test]
fn requests_are_those_that_are_made() {
    let all = [
        "flushes the slot's frames from all TLBs",
        "writes all CPUs' caches back",
        "switches page-modification logging on all vCPUs",
    ];
    for mask in 0..8u8 {
        let requests = Requests {
            flush_slot: mask & 1 != 0,
            write_back_caches: mask & 2 != 0,
            update_dirty_logging: mask & 4 != 0,
        };
        let made = (0..3)
            .filter(|bit| mask & 1 << bit != 0)
            .map(|bit| all[bit]);
        assert!(requests.iter().eq(made), "{requests:?}");
    }
}

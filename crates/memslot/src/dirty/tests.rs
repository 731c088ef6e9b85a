use crate::{
    AsId, Buffer, Call, ClearBits, Gfn, GuestAccess, Memory, Outcome, Profile, Region, SlotFlags,
    SlotKey, VmType, cap,
};

const LOG: SlotFlags = SlotFlags::LOG_DIRTY_PAGES;

fn vm() -> Memory {
    Memory::new(Profile::latest(), VmType::Default)
}

/// Slot 1: 100 pages.
fn region(gpa: u64, flags: SlotFlags) -> Region {
    Region::new(SlotKey::normal(1), gpa, 100 << 12, 0).with_flags(flags)
}

fn set(memory: &mut Memory, region: Region) {
    let _effects = memory.set_region(&region).unwrap();
}

fn write(memory: &mut Memory, gfn: u64) {
    let _ = memory.mark_dirty(0, AsId::NORMAL, Gfn::new(gfn));
}

fn get(memory: &mut Memory) -> String {
    memory.get_dirty_log(1, Buffer::Good).unwrap().to_string()
}

fn manual(memory: &mut Memory, mode: u64) {
    let args = [mode, 0, 0, 0];
    memory
        .enable_cap(cap::MANUAL_DIRTY_LOG_PROTECT2, 0, args)
        .unwrap();
}

fn clear(memory: &mut Memory, first_page: u64, num_pages: u32, bits: ClearBits) {
    let call = Call::ClearDirtyLog {
        slot: 1,
        first_page,
        num_pages,
        bits,
    };
    assert_eq!(memory.call(&call).unwrap(), Outcome::Done);
}

#[test]
fn a_bitmap_survives_a_move() {
    let mut memory = vm();
    set(&mut memory, region(0, LOG));
    write(&mut memory, 7);
    set(&mut memory, region(1 << 20, LOG));
    write(&mut memory, 0x100 + 99);
    write(&mut memory, 7);
    assert_eq!(get(&mut memory), "7,99");
    assert_eq!(get(&mut memory), "none");
}

#[test]
fn a_bitmap_does_not_survive_a_log_that_ends() {
    let mut memory = vm();
    set(&mut memory, region(0, LOG));
    write(&mut memory, 7);
    set(&mut memory, region(0, SlotFlags::empty()));
    write(&mut memory, 8);
    set(&mut memory, region(0, LOG));
    assert_eq!(get(&mut memory), "none");
    // Also when the slot moves in the same call.
    write(&mut memory, 9);
    set(&mut memory, region(1 << 20, SlotFlags::empty()));
    set(&mut memory, region(0, LOG));
    assert_eq!(get(&mut memory), "none");
    assert_eq!(memory.logged_slots(), 1);
}

#[test]
fn without_manual_protection_a_null_buffer_loses_the_bits() {
    let mut memory = vm();
    set(&mut memory, region(0, LOG));
    write(&mut memory, 7);
    let refusal = memory.get_dirty_log(1, Buffer::Null).unwrap_err();
    assert_eq!(refusal.reason.code(), "dirty-buffer");
    assert_eq!(get(&mut memory), "none");

    manual(&mut memory, 1);
    write(&mut memory, 8);
    memory.get_dirty_log(1, Buffer::Null).unwrap_err();
    assert_eq!(get(&mut memory), "8");
    assert_eq!(get(&mut memory), "8");
    clear(&mut memory, 0, 64, ClearBits::Words(vec![1 << 8]));
    assert_eq!(get(&mut memory), "none");
    // Manual protection can be switched off again, at once.
    manual(&mut memory, 0);
    write(&mut memory, 9);
    assert_eq!(
        (get(&mut memory), get(&mut memory)),
        ("9".into(), "none".into())
    );
}

#[test]
fn initially_set_bitmaps_start_full() {
    let mut memory = vm();
    set(&mut memory, region(0, LOG));
    manual(&mut memory, 3);
    assert_eq!(get(&mut memory), "none");
    set(&mut memory, region(0, SlotFlags::empty()));
    set(&mut memory, region(0, LOG));
    assert_eq!(get(&mut memory), "0-99");
    clear(&mut memory, 64, 36, ClearBits::All);
    clear(&mut memory, 0, 64, ClearBits::Words(vec![!1]));
    assert_eq!(get(&mut memory), "0");
    let refused = memory.enable_cap(cap::MANUAL_DIRTY_LOG_PROTECT2, 0, [2, 0, 0, 0]);
    assert_eq!(refused.unwrap_err().reason.code(), "manual-protect-bits");
}

#[test]
fn a_clear_with_a_null_buffer_changes_nothing() {
    let mut memory = vm();
    set(&mut memory, region(0, LOG));
    write(&mut memory, 7);
    let call = |num_pages| Call::ClearDirtyLog {
        slot: 1,
        first_page: 0,
        num_pages,
        bits: ClearBits::Null,
    };
    let refusal = memory.call(&call(64)).unwrap_err();
    assert_eq!(refusal.reason.code(), "dirty-buffer");
    // Nothing to read, nothing to fail.
    assert_eq!(memory.call(&call(0)).unwrap(), Outcome::Done);
    assert_eq!(get(&mut memory), "7");
}

#[test]
fn the_ring_comes_before_a_bitmap_that_is_left_over() {
    let mut memory = vm();
    set(&mut memory, region(0, LOG));
    write(&mut memory, 5);
    let args = [0x4000, 0, 0, 0];
    memory.enable_cap(cap::DIRTY_LOG_RING, 0, args).unwrap();
    memory.call(&Call::CreateVcpu).unwrap();
    memory
        .call(&Call::Guest(GuestAccess::write(7 << 12)))
        .unwrap();
    assert_eq!(memory.harvest_dirty_ring(0).unwrap(), [(1, 7)]);
    let refusal = memory.get_dirty_log(1, Buffer::Good).unwrap_err();
    assert_eq!(refusal.reason.code(), "dirty-ring-mode");
    assert_eq!(memory.reset_dirty_rings().unwrap(), Outcome::Value(1));
    // A slot that is logged from now on has no bitmap at all.
    let other = Region::new(SlotKey::normal(2), 1 << 20, 1 << 12, 0).with_flags(LOG);
    set(&mut memory, other);
    assert!(
        memory
            .space(AsId::NORMAL)
            .iter()
            .last()
            .unwrap()
            .dirty()
            .is_none()
    );
    write(&mut memory, 0x100);
    assert_eq!(memory.harvest_dirty_ring(0).unwrap(), [(2, 0)]);
}

#[test]
fn of_a_guest_s_accesses_only_writes_are_noted() {
    let mut memory = vm();
    set(&mut memory, region(0, LOG));
    memory.call(&Call::CreateVcpu).unwrap();
    for (access, noted) in [
        (GuestAccess::read(5 << 12), "none"),
        (GuestAccess::write(7 << 12), "7"),
        (GuestAccess::execute(9 << 12), "none"),
    ] {
        let access = access.by_code_at(11 << 12);
        memory.call(&Call::Guest(access)).unwrap();
        assert_eq!(get(&mut memory), noted, "{access:?}");
    }
}

/// A ring takes a page at least, and more than its reserve: with PML that is 576 entries of 16 bytes.
#[test]
fn the_smallest_ring_is_enabled() {
    for (pml, smallest) in [(false, 0x1000), (true, 0x4000)] {
        let mut profile = Profile::latest();
        profile.pml.set(pml);
        let enable = |size| {
            let mut memory = Memory::new(profile.clone(), VmType::Default);
            let enabled = memory.enable_cap(cap::DIRTY_LOG_RING, 0, [size, 0, 0, 0]);
            enabled.map_err(|refusal| refusal.reason.code())
        };
        assert_eq!(enable(smallest / 2), Err("ring-too-small"));
        assert_eq!(enable(smallest), Ok(()));
        assert_eq!(enable(0x10_0000), Ok(()));
        assert_eq!(enable(0x20_0000), Err("ring-too-big"));
    }
}

#[test]
fn only_logged_slots_note_writes() {
    let mut memory = vm();
    set(&mut memory, region(0, SlotFlags::empty()));
    write(&mut memory, 1);
    write(&mut memory, 1000);
    set(&mut memory, region(0, LOG));
    assert_eq!(get(&mut memory), "none");
}

//! `private_mem_kvm_exits_test`.

use slat_memslot::{GuestContents, Outcome, Region, SlotKey};

use super::setting::{DATA, PAGE, World};

const READ: GuestContents = GuestContents::Check {
    gpa: DATA,
    size: PAGE,
    byte: 0,
};

/// Property 12: the slot of a private page is deleted.
pub(crate) fn slot_deleted(world: &mut dyn FnMut() -> World) {
    let mut world = world().with_data(1, 1);
    world.ask(0, DATA, PAGE, true);
    assert_eq!(world.guest(0, READ), Outcome::Value(1));
    let gone = Region::delete(SlotKey::normal(10));
    world.vm.set_user_memory_region(&gone).unwrap();
    assert_eq!(world.guest(0, READ), World::private_fault(DATA));
}

/// Property 13: the page is private, and its slot has no file.
pub(crate) fn slot_without_file(world: &mut dyn FnMut() -> World) {
    let mut world = world();
    let slot = Region::new(SlotKey::normal(10), DATA, PAGE, world.host_of(DATA));
    world.vm.set_user_memory_region(&slot).unwrap();
    world.vm.set_memory_attributes(DATA, PAGE, 8).unwrap();
    assert_eq!(world.guest(0, READ), World::private_fault(DATA));
}

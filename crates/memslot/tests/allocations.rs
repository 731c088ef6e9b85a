//! Slots cost by their number, not by their size.
#![expect(unsafe_code, reason = "a counting allocator implements GlobalAlloc")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use slat_memslot::{
    Buffer, Call, ClearBits, GuestAccess, Memory, Profile, Region, SlotFlags, SlotKey, VmType, cap,
};

thread_local! {
    /// Bytes that this thread has asked for so far.
    static ASKED: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call goes to the system's allocator as it is; counting touches a thread-local integer that needs no
// allocation and no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ASKED.set(ASKED.get() + layout.size());
        // SAFETY: the caller keeps the contract of the same function.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of the same function, and `alloc` is the system's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes asked for while a slot of this size is made, logged, moved and deleted.
fn cost(size: u64, vm_type: VmType, initially_set: bool) -> usize {
    let mut memory = Memory::new(Profile::latest(), vm_type);
    if initially_set {
        let args = [3, 0, 0, 0];
        memory
            .enable_cap(cap::MANUAL_DIRTY_LOG_PROTECT2, 0, args)
            .expect("a mode of manual protection");
    }
    let slot = SlotKey::normal(0);
    let region = Region::new(slot, 1 << 40, size, 0x10_0000_0000);
    let logged = region.with_flags(SlotFlags::LOG_DIRTY_PAGES);
    let before = ASKED.get();
    for request in [
        logged,
        Region {
            gpa: 1 << 42,
            ..logged
        },
        Region {
            gpa: 1 << 42,
            ..region
        },
        Region {
            gpa: 1 << 42,
            ..logged
        },
        Region::delete(slot),
    ] {
        let _effects = memory.set_region(&request).expect("an accepted request");
    }
    if vm_type.has_private_memory() {
        memory
            .set_attributes(1 << 40, size, 8, 0)
            .expect("attributes of a private VM");
    }
    ASKED.get() - before
}

#[test]
fn a_tebibyte_costs_what_a_mebibyte_costs() {
    for vm_type in [VmType::Default, VmType::SwProtected] {
        for initially_set in [false, true] {
            let small = cost(1 << 20, vm_type, initially_set);
            let large = cost(1 << 40, vm_type, initially_set);
            assert!(small > 0 && small < 16 << 10, "{small} bytes");
            assert!(large <= small + (2 << 10), "{small}, {large} bytes");
        }
    }
}

#[test]
fn a_written_page_costs_no_bit_per_page() {
    let mut memory = Memory::new(Profile::latest(), VmType::Default);
    let region = Region::new(SlotKey::normal(0), 0, 1 << 40, 0);
    let logged = region.with_flags(SlotFlags::LOG_DIRTY_PAGES);
    let _effects = memory.set_region(&logged).expect("an accepted request");
    memory.create_vcpu().expect("a first vCPU");
    let before = ASKED.get();
    let write = Call::Guest(GuestAccess::write((1 << 40) - 0x1000));
    memory.call(&write).expect("a write by vCPU 0");
    let clear = Call::ClearDirtyLog {
        slot: 0,
        first_page: 0,
        num_pages: 1 << 28,
        bits: ClearBits::All,
    };
    memory.call(&clear).expect("a clear of the whole slot");
    let bytes = ASKED.get() - before;
    assert!(
        bytes < 256 << 10,
        "{bytes} bytes, where 32 MiB hold a bit per page"
    );
}

#[test]
fn reading_the_log_of_the_largest_slot_costs_no_bit_per_page() {
    let mut memory = Memory::new(Profile::latest(), VmType::Default);
    let manual = memory.enable_cap(cap::MANUAL_DIRTY_LOG_PROTECT2, 0, [3, 0, 0, 0]);
    manual.expect("a mode of manual protection");
    let pages = (1 << 31) - 1;
    let region = Region::new(SlotKey::normal(0), 0, pages << 12, 0);
    let logged = region.with_flags(SlotFlags::LOG_DIRTY_PAGES);
    let _effects = memory.set_region(&logged).expect("an accepted request");
    let before = ASKED.get();
    let get = Call::GetDirtyLog {
        slot: 0,
        buffer: Buffer::Good,
    };
    let clear = |first_page, words| Call::ClearDirtyLog {
        slot: 0,
        first_page,
        num_pages: u32::try_from(pages - first_page).expect("at most 31 bits"),
        bits: words,
    };
    let one = ClearBits::Words(vec![1]);
    for call in [&get, &clear(0, one), &get, &clear(64, ClearBits::All), &get] {
        memory.call(call).expect("a call on a logged slot");
    }
    let bytes = ASKED.get() - before;
    assert!(
        bytes < 16 << 20,
        "{bytes} bytes, where 256 MiB hold a bit per page"
    );
}

#[test]
fn a_dirty_ring_costs_nothing_until_its_vcpu_writes() {
    let mut memory = Memory::new(Profile::latest(), VmType::Default);
    let ring = memory.enable_cap(cap::DIRTY_LOG_RING_ACQ_REL, 0, [1 << 20, 0, 0, 0]);
    ring.expect("the largest ring");
    let before = ASKED.get();
    for _ in 0..4096 {
        memory.create_vcpu().expect("at most 4096 vCPUs");
    }
    memory.reset_dirty_rings().expect("a VM with rings");
    let taken = memory.harvest_dirty_ring(4095).expect("a ring");
    let bytes = ASKED.get() - before;
    assert!(
        taken.is_empty() && bytes < 1 << 20,
        "{bytes} bytes, where the rings have 4 GiB"
    );
}

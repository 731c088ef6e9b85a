//! `private_mem_conversions_test`.

use slat_memslot::{Call, FileCall, Gate, GmemId, GuestContents, Memory, Outcome, Profile, VmType};

use super::setting::{DATA, MIB2, PAGE, PER_VCPU, World};

/// Offsets and sizes, as in the selftest: within huge pages, whole ones, across their borders.
const RANGES: [(u64, u64); 5] = [
    (0, PAGE),
    (0, MIB2),
    (PAGE, PAGE),
    (PAGE, MIB2),
    (MIB2, PAGE),
];

/// Property 1: before any conversion guest and host see what the other writes.
pub(crate) fn shared_by_default(world: &mut dyn FnMut() -> World) {
    let mut world = world().with_data(1, 1);
    world.guest_fills(0, DATA, PER_VCPU, 0xaa);
    world.host_finds(DATA, PER_VCPU, 0xaa);
    world.host_fills(DATA, PER_VCPU, 0xbb);
    world.guest_finds(0, DATA, PER_VCPU, 0xbb);
}

/// Properties 2, 3, 5, 6 and 7.
pub(crate) fn explicit_conversions(world: &mut dyn FnMut() -> World) {
    for fallocate in [false, true] {
        let mut world = world().with_data(1, 1);
        world.fallocate = fallocate;
        for (offset, size) in RANGES {
            conversion(&mut world, 0, DATA, (offset, size));
        }
    }
}

/// One range there and back. What is not in it keeps its pattern on both sides.
fn conversion(world: &mut World, vcpu: u32, base: u64, (offset, size): (u64, u64)) {
    let gpa = base + offset;
    let (behind, rest) = (gpa + size, PER_VCPU - offset - size);
    world.guest_fills(vcpu, base, PER_VCPU, 0x11);
    world.host_finds(base, PER_VCPU, 0x11);
    world.host_fills(gpa, size, 0x22);
    world.guest_finds(vcpu, gpa, size, 0x22);

    world.ask(vcpu, gpa, size, true);
    world.guest_fills(vcpu, gpa, size, 0x33);
    world.guest_finds(vcpu, gpa, size, 0x33);
    world.host_finds(gpa, size, 0x22);
    world.guest_finds(vcpu, base, offset, 0x11);
    world.guest_finds(vcpu, behind, rest, 0x11);
    world.host_finds(base, offset, 0x11);
    world.host_finds(behind, rest, 0x11);

    // What the host writes meanwhile is there when the guest comes back.
    world.host_fills(gpa, size, 0x44);
    world.guest_finds(vcpu, gpa, size, 0x33);
    world.ask(vcpu, gpa, size, false);
    world.guest_finds(vcpu, gpa, size, 0x44);
    world.guest_fills(vcpu, gpa, size, 0x55);
    world.host_finds(gpa, size, 0x55);
    world.guest_finds(vcpu, base, offset, 0x11);
    world.guest_finds(vcpu, behind, rest, 0x11);

    // Private once more: what was left there, unless a hole was punched.
    world.ask(vcpu, gpa, size, true);
    let left = if world.fallocate { 0 } else { 0x33 };
    world.guest_finds(vcpu, gpa, size, left);
    world.ask(vcpu, gpa, size, false);
}

/// Property 4, which no run of the selftest shows: odd pages of a private range become shared, one by one. They have what the host has,
/// the even ones stay private.
pub(crate) fn odd_pages(world: &mut dyn FnMut() -> World) {
    for fallocate in [false, true] {
        let mut world = world().with_data(1, 1);
        world.fallocate = fallocate;
        for (offset, size) in RANGES.into_iter().filter(|(_, size)| *size > PAGE) {
            let (gpa, pages) = (DATA + offset, size / PAGE);
            world.host_fills(DATA, PER_VCPU, 0x22);
            world.ask(0, gpa, size, true);
            world.guest_fills(0, gpa, size, 0x33);
            for page in (1..pages).step_by(2) {
                world.ask(0, gpa + page * PAGE, PAGE, false);
            }
            for page in 0..pages {
                let (at, odd) = (gpa + page * PAGE, page % 2 == 1);
                world.guest_finds(0, at, PAGE, if odd { 0x22 } else { 0x33 });
                world.guest_fills(0, at, PAGE, if odd { 0x66 } else { 0x77 });
                world.host_finds(at, PAGE, if odd { 0x66 } else { 0x22 });
            }
            world.ask(0, gpa, size, false);
            for page in 0..pages {
                let byte = if page % 2 == 1 { 0x66 } else { 0x22 };
                world.guest_finds(0, gpa + page * PAGE, PAGE, byte);
            }
        }
    }
}

/// Property 8: requests come as hypercall 12 and nothing else, with the attributes as the guest gave them, also those that mean nothing:
/// it is the VMM that refuses, and the guest goes on.
pub(crate) fn attribute_words(world: &mut dyn FnMut() -> World) {
    let mut world = world().with_data(1, 1);
    let ask = |attributes| GuestContents::MapGpaRange {
        gpa: DATA,
        pages: 1,
        attributes,
    };
    let refused = Outcome::Value(0xffff_ffea);
    for attributes in 0..0x40 {
        let understood = matches!(attributes & 0x2f, 0..3);
        let answer = if understood {
            Outcome::Value(0)
        } else {
            refused.clone()
        };
        assert_eq!(world.guest(0, ask(attributes)), answer, "{attributes:#x}");
    }
    assert_eq!(world.guest(0, ask(0xdead_0000)), refused);
    world.ask(0, DATA, PAGE, false);
    world.guest_fills(0, DATA, PAGE, 0x12);
    world.host_finds(DATA, PAGE, 0x12);
}

/// Property 9: a hole in private memory, without any change of attributes, reads as zeros: where all was touched before, and where
/// some was.
pub(crate) fn punch_hole(world: &mut dyn FnMut() -> World) {
    let mut world = world().with_data(1, 1);
    world.host_fills(DATA, PER_VCPU, 0x22);
    world.ask(0, DATA, PER_VCPU, true);
    for touched in [PER_VCPU, MIB2 / 2, PAGE] {
        world.guest_fills(0, DATA, touched, 0x33);
        world.punch_hole(DATA, PER_VCPU);
        world.guest_finds(0, DATA, PER_VCPU, 0);
        world.guest_fills(0, DATA, PER_VCPU, 0x44);
        world.punch_hole(DATA + PAGE, MIB2 / 2);
        world.guest_finds(0, DATA, PAGE, 0x44);
        world.guest_finds(0, DATA + PAGE, MIB2 / 2, 0);
        world.guest_finds(0, DATA + PAGE + MIB2 / 2, MIB2 / 2, 0x44);
        world.punch_hole(DATA, PER_VCPU);
    }
    world.host_finds(DATA, PER_VCPU, 0x22);
}

/// Property 10: several vCPUs, each with data of its own, in several slots of one file; ranges cross from slot to slot.
pub(crate) fn several_vcpus_and_slots(world: &mut dyn FnMut() -> World) {
    const VCPUS: u32 = 3;
    for slots in [1, 5] {
        let mut world = world().with_data(VCPUS.into(), slots);
        for (offset, size) in [(0, MIB2), (PAGE, PAGE), (PAGE, MIB2)] {
            for vcpu in 0..VCPUS {
                let base = DATA + u64::from(vcpu) * PER_VCPU;
                conversion(&mut world, vcpu, base, (offset, size));
                world.ask(vcpu, base, PER_VCPU, true);
                world.guest_fills(vcpu, base, PER_VCPU, 0x50 + u8::try_from(vcpu).unwrap());
            }
            for vcpu in 0..VCPUS {
                let base = DATA + u64::from(vcpu) * PER_VCPU;
                world.guest_finds(vcpu, base, PER_VCPU, 0x50 + u8::try_from(vcpu).unwrap());
                world.ask(vcpu, base, PER_VCPU, false);
                world.punch_hole(base, PER_VCPU);
            }
        }
    }
}

/// Property 11 on the model: a VM that answers nothing any more; its file does.
pub(crate) fn file_of_a_dead_vm() {
    let mut memory = Memory::new(Profile::latest(), VmType::SwProtected);
    let file = memory.create_gmem(PER_VCPU, 0).unwrap();
    memory.set_gate(Gate::Dead);
    memory.set_attributes(DATA, PAGE, 8, 0).unwrap_err();
    for mode in [3, 1] {
        let (offset, len) = (0, PER_VCPU);
        let call = FileCall::Fallocate { mode, offset, len };
        assert_eq!(
            memory.call(&Call::File(GmemId::new(0), call)),
            Ok(Outcome::Done)
        );
    }
    assert_eq!(file, GmemId::new(0));
}

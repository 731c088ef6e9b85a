use super::*;
use crate::{FileCall, GuestAccess, Profile, Region, SlotFlags, SlotKey, VmType, cap};

const CODE: u64 = 0x8000;
const HVA: u64 = 0x7000_0000;

fn set(memory: &mut Memory, region: Region) {
    let _effects = memory.set_region(&region).unwrap();
}

/// One vCPU, whose code lies in slot 0; 16 pages of memory in slot 1 at 1 MiB.
fn vm() -> Memory {
    let mut memory = Memory::new(Profile::latest(), VmType::Default);
    memory.create_vcpu().unwrap();
    let code = Region::new(SlotKey::normal(0), CODE, 0x1000, HVA);
    set(&mut memory, code);
    let data = Region::new(SlotKey::normal(1), 0x10_0000, 0x1_0000, HVA + 0x1000);
    set(&mut memory, data);
    memory
}

/// The same with private memory: a file stands behind slot 1 from its second page on.
fn private_vm() -> (Memory, GmemId) {
    let mut memory = Memory::new(Profile::latest(), VmType::SwProtected);
    memory.create_vcpu().unwrap();
    let file = memory.create_gmem(0x2_0000, 0).unwrap();
    let code = Region::new(SlotKey::normal(0), CODE, 0x1000, HVA);
    set(&mut memory, code);
    let data = Region::new(SlotKey::normal(1), 0x10_0000, 0x1_0000, HVA + 0x1000);
    set(&mut memory, data.with_gmem(file, 0x1000));
    (memory, file)
}

fn guest(memory: &mut Memory, act: GuestContents) -> Outcome {
    let call = ContentsCall::Guest {
        vcpu: 0,
        code: CODE,
        act,
    };
    memory.contents_call(&call).unwrap()
}

fn fill(memory: &mut Memory, gpa: u64, size: u64, byte: u8) -> Outcome {
    guest(memory, GuestContents::Fill { gpa, size, byte })
}

fn holds(memory: &mut Memory, gpa: u64, size: u64, byte: u8) -> bool {
    guest(memory, GuestContents::Check { gpa, size, byte }) == Outcome::Value(1)
}

fn host_holds(memory: &mut Memory, hva: u64, size: u64, byte: u8) -> bool {
    memory.without_guest(&ContentsCall::HostCheck { hva, size, byte }) == Outcome::Value(1)
}

#[test]
fn what_a_guest_fills_its_userspace_reads() {
    let mut memory = vm();
    assert_eq!(fill(&mut memory, 0x10_2000, 0x3000, 7), Outcome::Done);
    assert!(holds(&mut memory, 0x10_2000, 0x3000, 7));
    assert!(!holds(&mut memory, 0x10_1000, 0x3000, 7));
    assert!(!holds(&mut memory, 0x10_2000, 0x4000, 7));
    assert!(holds(&mut memory, 0x10_5000, 0x1000, 0));
    let hva = HVA + 0x3000;
    assert!(host_holds(&mut memory, hva, 0x3000, 7));
    assert!(!host_holds(&mut memory, hva - 0x1000, 0x1000, 7));
    assert!(!host_holds(&mut memory, hva, 0x4000, 7));
    assert_eq!(memory.host_byte(Hva::new(hva + 0x2fff)), 7);
    assert_eq!(memory.host_byte(Hva::new(hva + 0x3000)), 0);
}

#[test]
fn what_userspace_fills_and_gives_back_its_guest_sees() {
    let mut memory = vm();
    let (hva, size) = (HVA + 0x2000, 0x4000);
    let filled = memory.without_guest(&ContentsCall::HostFill { hva, size, byte: 9 });
    assert_eq!(filled, Outcome::Done);
    assert!(holds(&mut memory, 0x10_1000, size, 9));
    let middle = ContentsCall::Discard {
        hva: hva + 0x1000,
        size: 0x2000,
    };
    assert_eq!(memory.without_guest(&middle), Outcome::Done);
    for (page, byte) in [9, 0, 0, 9].into_iter().enumerate() {
        let gpa = 0x10_1000 + 0x1000 * (page as u64);
        assert!(holds(&mut memory, gpa, 0x1000, byte), "page {page}");
        let gfn = Gpa::new(gpa).gfn();
        let place = memory.place_of(gfn).unwrap();
        assert_eq!(memory.contents().get(place), byte, "page {page}");
    }
}

#[test]
fn a_guest_goes_as_far_as_there_is_memory() {
    let mut memory = vm();
    assert_eq!(
        fill(&mut memory, 0x10_e000, 0x4000, 3),
        Outcome::Access(Access::Mmio)
    );
    assert!(holds(&mut memory, 0x10_e000, 0x2000, 3));
    let code = ContentsCall::Guest {
        vcpu: 0,
        code: 0x20_0000,
        act: GuestContents::Fill {
            gpa: 0x10_0000,
            size: 0x1000,
            byte: 4,
        },
    };
    let nowhere = memory.contents_call(&code);
    assert_eq!(nowhere, Ok(Outcome::Access(Access::NoMemory)));
    assert!(holds(&mut memory, 0x10_0000, 0x1000, 0));
    assert_eq!(memory.place_of(Gfn::new(0x200)), None);
}

#[test]
fn private_pages_are_those_of_the_file() {
    let (mut memory, file) = private_vm();
    let private = crate::Attributes::PRIVATE.bits();
    memory
        .set_attributes(0x10_2000, 0x2000, private, 0)
        .unwrap();
    let place = |memory: &Memory, gfn| memory.place_of(Gfn::new(gfn));
    assert_eq!(place(&memory, 0x102), Some(Place::File(file, 3)));
    assert_eq!(place(&memory, 0x103), Some(Place::File(file, 4)));
    let shared = Place::host(Hva::new(HVA + 0x2000));
    assert_eq!(place(&memory, 0x101), Some(shared));
    fill(&mut memory, 0x10_1000, 0x4000, 5);
    // Userspace's own memory behind the private pages is another.
    let hva = HVA + 0x2000;
    for (page, byte) in [5, 0, 0, 5].into_iter().enumerate() {
        let hva = hva + 0x1000 * (page as u64);
        assert!(host_holds(&mut memory, hva, 0x1000, byte), "page {page}");
    }
    let punch = FileCall::Fallocate {
        mode: 3,
        offset: 0x3000,
        len: 0x1000,
    };
    memory.file_call(file, punch).unwrap();
    assert!(holds(&mut memory, 0x10_2000, 0x1000, 0));
    assert!(holds(&mut memory, 0x10_3000, 0x1000, 5));
    // Private where there is no file: no page at all.
    memory.set_attributes(CODE, 0x1000, private, 0).unwrap();
    assert_eq!(place(&memory, CODE >> 12), None);
}

#[test]
fn acts_access_each_page_once_by_code_elsewhere() {
    let accesses = |act: GuestContents| act.accesses(2, CODE).collect::<Vec<_>>();
    let (gpa, size, byte) = (0x10_0000, 0x3000, 1);
    let access = |kind: fn(u64) -> GuestAccess, page: u64| GuestAccess {
        vcpu: 2,
        code: Some(CODE),
        ..kind(gpa + page * 0x1000)
    };
    let written = accesses(GuestContents::Fill { gpa, size, byte });
    assert_eq!(
        written,
        [0, 1, 2].map(|page| access(GuestAccess::write, page))
    );
    let read = accesses(GuestContents::Check { gpa, size, byte });
    assert_eq!(read, [0, 1, 2].map(|page| access(GuestAccess::read, page)));
    let called = accesses(GuestContents::MapGpaRange {
        gpa,
        pages: 1,
        attributes: 0,
    });
    let fetch = GuestAccess {
        vcpu: 2,
        code: Some(CODE),
        ..GuestAccess::execute(CODE)
    };
    assert_eq!(called, [fetch]);
}

/// `x86.c:__kvm_emulate_hypercall` for a guest in 32-bit mode.
#[test]
fn a_hypercall_exits_when_it_was_enabled_and_names_a_range() {
    let mut memory = vm();
    let ask = |memory: &mut Memory, gpa, pages| {
        let attributes = 0x1_0000_0010;
        guest(
            memory,
            GuestContents::MapGpaRange {
                gpa,
                pages,
                attributes,
            },
        )
    };
    let no_such_call = Outcome::Value(0xffff_ffff - 999);
    let no_such_range = Outcome::Value(0xffff_ffff - 21);
    assert_eq!(ask(&mut memory, 0x1000, 1), no_such_call);
    memory
        .enable_cap(cap::EXIT_HYPERCALL, 0, [1 << 12, 0, 0, 0])
        .unwrap();
    assert_eq!(memory.hypercall_exits(), 1 << 12);
    let exit = |gpa, pages| Outcome::MapGpaRange {
        gpa,
        pages,
        attributes: 0x10,
    };
    assert_eq!(ask(&mut memory, 0x1000, 1), exit(0x1000, 1));
    assert_eq!(
        ask(&mut memory, 0x5_0000_3000, 0x7_0000_0002),
        exit(0x3000, 2)
    );
    assert_eq!(ask(&mut memory, 0x1800, 1), no_such_range);
    assert_eq!(ask(&mut memory, 0x1000, 0), no_such_range);
    // Its answer comes back with 32 bits.
    let back = ContentsCall::ReturnHypercall {
        vcpu: 0,
        ret: 0x12_8000_0001,
    };
    assert_eq!(memory.without_guest(&back), Outcome::Value(0x8000_0001));
}

#[test]
fn a_page_behind_a_readonly_slot_is_not_written() {
    let mut memory = vm();
    let rom = Region::new(SlotKey::normal(2), 0x40_0000, 0x1000, HVA + 0x10_0000);
    set(&mut memory, rom.with_flags(SlotFlags::READONLY));
    let refused = Outcome::Access(Access::Mmio);
    assert_eq!(fill(&mut memory, 0x40_0000, 0x1000, 8), refused);
    assert!(holds(&mut memory, 0x40_0000, 0x1000, 0));
}

use super::*;
use crate::{AsId, Call, FileCall, MapCall, MapId, Outcome, Profile, Region, SlotId, VmType};

const MIB: u64 = 1 << 20;

fn vm() -> Memory {
    Memory::new(Profile::latest(), VmType::Default)
}

fn bound(id: u16, file: GmemId, offset: u64, size: u64) -> Region {
    let gpa = u64::from(id) << 30;
    Region::new(SlotKey::normal(id), gpa, size, 0).with_gmem(file, offset)
}

fn set(memory: &mut Memory, region: Region) {
    let _effects = memory.set_region(&region).unwrap();
}

fn code(memory: &mut Memory, region: Region) -> &'static str {
    memory.set_region(&region).unwrap_err().reason.code()
}

fn file_of(memory: &Memory, id: u16) -> Option<GmemId> {
    let slot = memory.space(AsId::NORMAL).by_id(SlotId::new(id)).unwrap();
    slot.binding().unwrap().file
}

fn map(memory: &mut Memory, file: GmemId) -> MapId {
    let call = FileCall::Mmap {
        len: MIB,
        prot: 3,
        flags: 1,
        offset: 0,
    };
    match memory.file_call(file, call).unwrap() {
        Outcome::Mapped(map, _) => map,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_last_descriptor_takes_the_file_from_its_slots() {
    let mut memory = vm();
    let file = memory.create_gmem(2 * MIB, 0).unwrap();
    set(&mut memory, bound(1, file, 0, MIB));
    set(&mut memory, bound(2, file, MIB, MIB));
    memory.file_call(file, FileCall::Close).unwrap();
    assert_eq!((file_of(&memory, 1), file_of(&memory, 2)), (None, None));
    assert_eq!(memory.gmem_file(file).unwrap().bindings().count(), 0);
    assert_eq!(code(&mut memory, bound(3, file, 0, MIB)), "gmem-not-open");
    // The slots stay what they are, and go like any other.
    let plain = Region::new(SlotKey::normal(1), 1 << 30, MIB, 0);
    assert_eq!(code(&mut memory, plain), "gmem-slot-immutable");
    set(&mut memory, Region::delete(SlotKey::normal(1)));
    let other = memory.create_gmem(MIB, 0).unwrap();
    set(&mut memory, bound(1, other, 0, MIB));
    assert_eq!(file_of(&memory, 1), Some(other));
}

/// Seen on Linux 6.12.117 with five levels: there is no room for 2^47 bytes, though user space ends at 2^56.
#[test]
fn mappings_find_room_in_47_bits_only() {
    for user_end in [(1 << 47) - PAGE_SIZE, (1 << 56) - PAGE_SIZE] {
        let mut profile = Profile::latest();
        profile.user_end.set(user_end);
        let mut memory = Memory::new(profile, VmType::Default);
        let file = memory.create_gmem(MIB, 0).unwrap();
        for (len, code) in [(1 << 47, "mmap-too-big"), (1 << 46, "mmap-unsupported")] {
            let (prot, flags, offset) = (3, 1, 0);
            let call = FileCall::Mmap {
                len,
                prot,
                flags,
                offset,
            };
            let refusal = memory.file_call(file, call).unwrap_err();
            assert_eq!(refusal.reason.code(), code, "{len:#x} below {user_end:#x}");
        }
    }
}

#[test]
fn a_mapping_keeps_the_file() {
    let mut memory = vm();
    let file = memory.create_gmem(MIB, 3).unwrap();
    let (first, second) = (map(&mut memory, file), map(&mut memory, file));
    set(&mut memory, bound(1, file, 0, MIB));
    let slot = memory.space(AsId::NORMAL).by_id(SlotId::new(1)).unwrap();
    assert!(slot.binding().unwrap().gmem_only);
    memory.file_call(file, FileCall::Close).unwrap();
    assert_eq!(file_of(&memory, 1), Some(file));
    assert!(memory.file_call(file, FileCall::Size).is_err());
    assert_eq!(code(&mut memory, bound(2, file, 0, MIB)), "gmem-not-open");
    let touch = MapCall::Touch { offset: 0 };
    assert_eq!(memory.map_call(first, touch).unwrap(), Outcome::Value(0));
    memory.map_call(first, MapCall::Unmap).unwrap();
    assert_eq!(file_of(&memory, 1), Some(file));
    memory.map_call(second, MapCall::Unmap).unwrap();
    assert_eq!(file_of(&memory, 1), None);
    assert!(memory.map_call(second, MapCall::Unmap).is_err());
}

#[test]
fn a_slot_may_go_while_a_mapping_keeps_the_file() {
    let mut memory = vm();
    let file = memory.create_gmem(MIB, 3).unwrap();
    let mapping = map(&mut memory, file);
    set(&mut memory, bound(1, file, 0, MIB));
    memory.file_call(file, FileCall::Close).unwrap();
    set(&mut memory, Region::delete(SlotKey::normal(1)));
    let other = memory.create_gmem(MIB, 0).unwrap();
    set(&mut memory, bound(1, other, 0, MIB));
    memory.map_call(mapping, MapCall::Unmap).unwrap();
    assert_eq!(file_of(&memory, 1), Some(other));
}

#[test]
fn a_deleted_slot_frees_its_range_at_once() {
    let mut memory = vm();
    let file = memory.create_gmem(2 * MIB, 0).unwrap();
    set(&mut memory, bound(1, file, 0, MIB));
    let across = bound(2, file, MIB - PAGE_SIZE, MIB);
    assert_eq!(code(&mut memory, across), "gmem-bound");
    set(&mut memory, bound(3, file, MIB, MIB));
    set(&mut memory, Region::delete(SlotKey::normal(1)));
    set(&mut memory, bound(4, file, 0, MIB));
    set(&mut memory, Region::delete(SlotKey::normal(3)));
    set(&mut memory, Region::delete(SlotKey::normal(4)));
    set(&mut memory, across);
    let bindings: Vec<_> = memory.gmem_file(file).unwrap().bindings().collect();
    assert_eq!(bindings, [(255, 511, SlotKey::normal(2))]);
}

#[test]
fn a_slot_that_is_refused_late_binds_nothing() {
    let mut memory = vm();
    let file = memory.create_gmem(MIB, 0).unwrap();
    let high = Region {
        gpa: 1 << 46,
        ..bound(1, file, 0, MIB)
    };
    assert_eq!(code(&mut memory, high), "gfn-too-high");
    assert_eq!(memory.gmem_file(file).unwrap().bindings().count(), 0);
    // The binding is tried first, and the overlap before that.
    let both = Region {
        gmem_offset: PAGE_SIZE,
        ..high
    };
    assert_eq!(code(&mut memory, both), "gmem-beyond-file");
    set(
        &mut memory,
        Region::new(SlotKey::normal(9), 1 << 30, MIB, 0),
    );
    let all = Region {
        gmem_offset: PAGE_SIZE,
        ..bound(1, file, 0, MIB)
    };
    assert_eq!(code(&mut memory, all), "overlap");
}

#[test]
fn touching_a_mapping() {
    let touch = |flags: u64, offset: u64| {
        let mut memory = vm();
        let file = memory.create_gmem(MIB / 2, flags).unwrap();
        let mapping = map(&mut memory, file);
        let call = Call::Map(mapping, MapCall::Touch { offset });
        memory.call(&call).unwrap()
    };
    const SIGBUS: u64 = 7;
    const SIGSEGV: u64 = 11;
    assert_eq!(touch(3, MIB / 2 - 1), Outcome::Value(0));
    assert_eq!(touch(3, MIB / 2), Outcome::Value(SIGBUS));
    assert_eq!(touch(1, 0), Outcome::Value(SIGBUS));
    assert_eq!(touch(3, MIB), Outcome::Value(SIGSEGV));
}

#[test]
fn flags_follow_kernel_and_vm_type() {
    let accepts = |profile: &str, vm_type, flags| {
        let memory = Memory::new(Profile::named(profile).unwrap(), vm_type);
        memory.check_create_gmem(MIB, flags).is_ok()
    };
    assert!(accepts("linux-6.12", VmType::Default, 0));
    assert!(!accepts("linux-6.12", VmType::SwProtected, 1));
    for flags in 0..4 {
        assert!(accepts("linux-6.18", VmType::Default, flags));
        let private = accepts("linux-6.18", VmType::SwProtected, flags);
        assert_eq!(private, flags & 2 == 0);
    }
}

/// First `vfs_fallocate`, which knows nine modes, then `kvm_gmem_fallocate`, which keeps the size and may punch holes.
#[test]
fn of_all_modes_two_reach_the_file() {
    const VFS: [u32; 9] = [0, 1, 0x10, 0x11, 0x40, 0x41, 3, 8, 0x20];
    let mut memory = vm();
    let file = memory.create_gmem(MIB, 0).unwrap();
    for mode in 0..0x200 {
        let call = FileCall::Fallocate {
            mode,
            offset: 0,
            len: 0x1000,
        };
        let answer = memory.file_call(file, call);
        let found = answer.map_or_else(|refusal| refusal.reason.code(), |_| "done");
        let expected = match mode {
            1 | 3 => "done",
            _ if !VFS.contains(&mode) => "fallocate-mode",
            _ if mode % 2 == 0 => "fallocate-keep-size",
            _ => "fallocate-other",
        };
        assert_eq!(found, expected, "mode {mode:#x}");
    }
}

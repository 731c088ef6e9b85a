//! One refused call for every reason: the smallest VM and the call that meet it.

mod dirty;
mod files;
mod ioctls;
mod region;

use slat_memslot::{
    Buffer, Call, ClearBits, Errno, FileCall, FileRef, GmemId, MapId, Memory, Profile, Region,
    SlotFlags, SlotKey, VmType, cap,
};

/// A VM and a call that it refuses.
pub(crate) struct Trigger {
    /// The reason's code.
    pub(crate) code: &'static str,
    /// What the kernel answers.
    pub(crate) errno: Errno,
    /// The offending value, as the message has to name it.
    pub(crate) shows: &'static str,
    pub(crate) memory: Memory,
    pub(crate) call: Call,
}

const MIB: u64 = 1 << 20;
const HVA: u64 = 0x7f00_0000_0000;
const KEEP: u32 = 1;
const PUNCH: u32 = 2;

fn trigger(
    code: &'static str,
    errno: Errno,
    shows: &'static str,
    memory: Memory,
    call: Call,
) -> Trigger {
    Trigger {
        code,
        errno,
        shows,
        memory,
        call,
    }
}

fn vm(vm_type: VmType) -> Memory {
    Memory::new(Profile::latest(), vm_type)
}

fn default_vm() -> Memory {
    vm(VmType::Default)
}

fn on(profile: &str) -> Memory {
    Memory::new(
        Profile::named(profile).expect("a profile of that name"),
        VmType::Default,
    )
}

/// The VM after calls that it accepts.
fn after(mut memory: Memory, calls: &[Call]) -> Memory {
    for call in calls {
        memory.call(call).expect("a call that sets the VM up");
    }
    memory
}

/// A default VM with slot 1: 1 MiB at guest address 1 MiB.
fn with_slot(flags: SlotFlags) -> Memory {
    after(default_vm(), &[slot(1, MIB).with_flags(flags).into_call()])
}

/// A default VM with a guest_memfd of 1 MiB.
fn with_file(flags: u64) -> Memory {
    after(default_vm(), &[gmem(MIB, flags)])
}

/// The same, mapped.
fn with_mapping() -> Memory {
    after(with_file(3), &[mmap(MIB, 3, 1, 0)])
}

/// A default VM with a guest_memfd of 1 MiB that slot 1 is bound to.
fn with_bound_file() -> Memory {
    after(with_file(0), &[slot(1, MIB).with_gmem(FILE, 0).into_call()])
}

const FILE: GmemId = GmemId::new(0);
const MAP: MapId = MapId::new(0);

trait IntoCall {
    fn into_call(self) -> Call;
}

impl IntoCall for Region {
    fn into_call(self) -> Call {
        Call::SetRegion(self)
    }
}

/// 1 MiB of slot `id`.
fn slot(id: u16, gpa: u64) -> Region {
    Region::new(SlotKey::normal(id), gpa, MIB, HVA)
}

/// The same through the newer struct, bound to what `file` names.
fn bound(file: FileRef, offset: u64) -> Region {
    Region {
        gmem: file,
        ..slot(2, 16 * MIB).with_gmem(FILE, offset)
    }
}

fn gmem(size: u64, flags: u64) -> Call {
    Call::CreateGmem {
        size,
        flags,
        reserved: 0,
    }
}

fn mmap(len: u64, prot: u32, flags: u32, offset: u64) -> Call {
    let call = FileCall::Mmap {
        len,
        prot,
        flags,
        offset,
    };
    Call::File(FILE, call)
}

fn fallocate(mode: u32, offset: u64, len: u64) -> Call {
    Call::File(FILE, FileCall::Fallocate { mode, offset, len })
}

fn set_attributes(address: u64, size: u64, attributes: u64, flags: u64) -> Call {
    Call::SetAttributes {
        address,
        size,
        attributes,
        flags,
    }
}

fn get_log(slot: u32) -> Call {
    Call::GetDirtyLog {
        slot,
        buffer: Buffer::Good,
    }
}

fn clear_log(first_page: u64, num_pages: u32) -> Call {
    Call::ClearDirtyLog {
        slot: 1,
        first_page,
        num_pages,
        bits: ClearBits::All,
    }
}

fn enable(cap: u32, arg: u64) -> Call {
    Call::EnableCap {
        cap,
        flags: 0,
        args: [arg, 0, 0, 0],
    }
}

fn ring(bytes: u64) -> Call {
    enable(cap::DIRTY_LOG_RING_ACQ_REL, bytes)
}

fn pre_fault(gpa: u64, size: u64, flags: u64) -> Call {
    Call::PreFault {
        vcpu: 0,
        gpa,
        size,
        flags,
    }
}

fn with_vcpu(memory: Memory) -> Memory {
    after(memory, &[Call::CreateVcpu])
}

/// A VM of any type on a kernel with the proposed slot flag.
fn experiment(vm_type: VmType) -> Memory {
    Memory::new(Profile::latest().with_zap_leafs_flag(), vm_type)
}

/// Every reason that a call on a VM can meet, in the order of the catalogue.
pub(crate) fn triggers() -> Vec<Trigger> {
    let mut all = region::gate();
    all.extend(region::region_arguments());
    all.extend(region::region_against_slots());
    all.extend(region::region_new_range());
    all.extend(files::gmem_creation());
    all.extend(files::gmem_file());
    all.extend(files::gmem_fallocate());
    all.extend(files::gmem_mmap());
    all.extend(files::gmem_map());
    all.extend(ioctls::attributes());
    all.extend(dirty::dirty_log());
    all.extend(dirty::dirty_ring());
    all.extend(ioctls::capabilities());
    all.extend(ioctls::pre_faults());
    all.extend(ioctls::vm_calls());
    all
}

//! Operations: what the program that was recorded asked for, or let its guest do.

use slat_memslot::{AsId, Gfn, Gpa, Hva, Pages};
use slat_mmu::fault::Kind;
use slat_mmu::walk::Privilege;

mod parse;
#[cfg(test)]
mod tests;
mod write;

pub(super) use parse::op;

/// `KVM_SET_USER_MEMORY_REGION` or its second version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetRegion {
    /// The slot's id.
    pub slot: u16,
    /// Its address space.
    pub as_id: AsId,
    /// The flags, in raw bits.
    pub flags: u32,
    /// The first frame.
    pub gfn: Gfn,
    /// The size; 0 deletes.
    pub pages: Pages,
    /// The offset in the guest_memfd, in bytes; only in the second version.
    pub gmem_offset: Option<u64>,
    /// The address in the host, where it is said.
    pub hva: Option<Hva>,
}

/// How the guest's registers are set.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Sregs<'a> {
    /// 32-bit protected mode, flat, no paging.
    Flat,
    /// One bit, or a few, of a register.
    Bits {
        /// `CR0`, `CR4` or `EFER`.
        register: &'a str,
        /// The names of the bits, with `|` between them.
        bits: &'a str,
        /// Whether they are set.
        set: bool,
    },
    /// Long mode, with pages of 2 MiB that map the guest's memory one to one.
    LongMode {
        /// Where the guest's tables begin.
        cr3: Gpa,
        /// The bit that allows to run nested guests, if it is set: `EFER.SVME` or `CR4.VMXE`.
        nesting: Option<&'a str>,
    },
    /// Long mode, with pages of 2 MiB at these addresses, virtual and physical.
    LongModeWith {
        /// The pages.
        pages: Vec<(u64, Gpa)>,
    },
    /// The control registers of a guest in long mode, raw. Nothing happens to roots where they are what they were.
    Control(Control),
    /// Anything else.
    Other(&'a str),
}

/// Control registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "they have the manual's names")]
pub struct Control {
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
}

/// An instruction that a guest in long mode executes, with a trap or a halt behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Instruction {
    /// It reads eight bytes.
    Load {
        /// Where.
        gva: u64,
    },
    /// It writes.
    Store {
        /// Where.
        gva: u64,
        /// How many bytes: 1, 2, 4 or 8.
        len: u8,
        /// What, of which the low bytes count.
        value: u64,
    },
    /// It writes eight zero bytes to the begin of each of some pages.
    Touch {
        /// The first.
        gva: u64,
        /// How many.
        pages: u64,
    },
    /// It jumps.
    Jump {
        /// Where to.
        gva: u64,
    },
    /// It loads CR0, CR3 or CR4, by the number.
    MoveToCr {
        /// The number.
        number: u8,
        /// The value.
        value: u64,
    },
    /// `invlpg`.
    Invlpg {
        /// The address.
        gva: u64,
    },
}

/// What a guest does before it halts.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GuestAct<'a> {
    /// It halts where it is, or at an address.
    Halt {
        /// The address of the instruction, if the vCPU is put there first.
        at: Option<Gpa>,
    },
    /// It reads.
    Read(Gpa),
    /// It writes.
    Write(Gpa),
    /// It executes.
    Execute(Gpa),
    /// It writes to pages in a row.
    WritePages {
        /// How many.
        pages: u64,
        /// The first.
        from: Gpa,
    },
    /// It takes the SMI that is pending: its handler is at this address and halts.
    EnterSmm {
        /// The handler.
        handler: Gpa,
    },
    /// In SMM it reads.
    SmmRead(Gpa),
    /// In SMM it writes.
    SmmWrite(Gpa),
    /// It leaves SMM, for where it was before.
    LeaveSmm,
    /// It starts a nested guest, which reads.
    Launch {
        /// Whether with VMX instead of SVM.
        vmx: bool,
        /// Whether the nested guest has a second stage of its own.
        nested_paging: bool,
        /// What is read.
        read: Gpa,
    },
    /// The nested guest writes.
    NestedWrite(Gpa),
    /// The nested guest executes CPUID and so leaves for L1, which halts.
    NestedCpuid,
    /// L1 executes VMRUN, its guest makes one access and halts, which L1 is told, as it is of an access that its tables do not
    /// allow. Then L1 halts.
    RunL2 {
        /// The tables that L1 gives to its guest, if it does.
        tables: Option<Gpa>,
        /// The access.
        kind: Kind,
        /// Where, in L2's addresses.
        gpa: Gpa,
    },
    /// L1, in long mode, writes eight bytes.
    StoreOfL1 {
        /// Where.
        gpa: Gpa,
        /// What.
        value: u64,
    },
    /// L1 writes, without a change, to one of its own page tables that KVM shadows.
    OrInto(Gpa),
    /// A guest whose registers are [`Sregs::Control`] executes an instruction.
    Execution {
        /// In user mode, or as supervisor.
        privilege: Privilege,
        /// What.
        instruction: Instruction,
    },
    /// Anything else.
    Other(&'a str),
}

/// What the host's memory management does by itself, when it is told to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HostWork {
    /// `khugepaged` goes over all memory once: small pages become huge ones.
    Collapse,
    /// `ksmd` goes over all memory: pages with the same bytes become one (KSM).
    Merge,
    /// What was merged becomes pages of its own again (`/sys/kernel/mm/ksm/run` is 2).
    Unmerge,
    /// Memory is compacted: pages move (`/proc/sys/vm/compact_memory`).
    Compact,
}

impl HostWork {
    /// All of it.
    pub const ALL: [Self; 4] = [Self::Collapse, Self::Merge, Self::Unmerge, Self::Compact];

    /// Its name in recordings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Collapse => "khugepaged",
            Self::Merge => "ksm",
            Self::Unmerge => "ksm unmerge",
            Self::Compact => "compaction",
        }
    }
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Op<'a> {
    /// `KVM_CREATE_VM`.
    CreateVm {
        /// `KVM_X86_*_VM`.
        vm_type: u64,
    },
    /// The VM's descriptor is closed.
    CloseVm,
    /// `KVM_CREATE_VCPU`.
    CreateVcpu {
        /// Its id.
        id: u32,
    },
    /// The vCPU's descriptor is closed.
    CloseVcpu {
        /// Its id.
        id: u32,
    },
    /// `KVM_SET_CPUID2` with what `KVM_GET_SUPPORTED_CPUID` gave.
    SetCpuid {
        /// The vCPU.
        vcpu: u32,
        /// The guest's MAXPHYADDR, if it is another than the supported one.
        max_phys_addr: Option<u8>,
    },
    /// `KVM_SET_SREGS`.
    SetSregs {
        /// The vCPU, where it is said; else the only one.
        vcpu: Option<u32>,
        /// What is set.
        sregs: Sregs<'a>,
    },
    /// `KVM_SET_MSRS` with one of them.
    SetMsr {
        /// The vCPU, where it is said; else the only one.
        vcpu: Option<u32>,
        /// The name.
        msr: &'a str,
        /// The value.
        value: u64,
    },
    /// `KVM_SET_VCPU_EVENTS`, to put the vCPU into SMM or take it out.
    SetSmm(bool),
    /// `KVM_SMI`.
    Smi,
    /// `KVM_ENABLE_CAP`.
    EnableCap {
        /// The name, without `KVM_CAP_`.
        cap: &'a str,
        /// The bits of the argument by name, where they are said.
        bits: Option<&'a str>,
        /// The first argument.
        arg: u64,
    },
    /// `KVM_SET_USER_MEMORY_REGION`, `KVM_SET_USER_MEMORY_REGION2`.
    SetRegion(SetRegion),
    /// `KVM_SET_NR_MMU_PAGES`.
    SetMmuPages {
        /// The limit.
        pages: u64,
    },
    /// The program writes eight bytes into memory behind a slot, past KVM.
    Poke {
        /// Where, in the host.
        hva: Hva,
        /// What.
        value: u64,
    },
    /// `KVM_CREATE_GUEST_MEMFD`.
    CreateGmem {
        /// The size, in bytes.
        size: u64,
    },
    /// The guest_memfd's descriptor is closed.
    CloseGmem,
    /// A hole is punched into the guest_memfd.
    PunchHole {
        /// Where, in bytes.
        offset: u64,
        /// How much, in bytes.
        len: u64,
    },
    /// `KVM_SET_MEMORY_ATTRIBUTES`.
    SetAttributes {
        /// The first frame.
        gfn: Gfn,
        /// How many.
        pages: Pages,
        /// The attributes, in raw bits.
        attributes: u64,
    },
    /// `KVM_PRE_FAULT_MEMORY`.
    PreFault {
        /// The vCPU.
        vcpu: u32,
        /// The first frame.
        gfn: Gfn,
        /// How many.
        pages: Pages,
        /// The flags, where they are said.
        flags: Option<u64>,
    },
    /// `KVM_GET_DIRTY_LOG`.
    GetDirtyLog {
        /// The slot.
        slot: u16,
    },
    /// `KVM_CLEAR_DIRTY_LOG` with all bits set.
    ClearDirtyLog {
        /// The slot.
        slot: u16,
        /// The first page, in the slot.
        first: u64,
        /// How many.
        pages: Pages,
    },
    /// A parameter of the module `kvm`.
    ModuleParameter {
        /// The name.
        name: &'a str,
        /// The value.
        value: &'a str,
    },
    /// `madvise` on the host's memory behind frames.
    Madvise {
        /// Without `MADV_`.
        advice: &'a str,
        /// The first frame.
        gfn: Gfn,
        /// How many.
        pages: Pages,
    },
    /// `mprotect` on the host's memory behind frames.
    Mprotect {
        /// Whether it may be written to.
        writable: bool,
        /// The frames; none where it is the range of the call before.
        range: Option<(Gfn, Pages)>,
    },
    /// The program forks: private memory becomes copy-on-write.
    Fork,
    /// The child ends.
    ChildEnds,
    /// The host's memory management works.
    HostWork(HostWork),
    /// Missing pages of the host's memory behind frames are filled by the program from now on (`userfaultfd`).
    Userfault {
        /// The first frame.
        gfn: Gfn,
        /// How many.
        pages: Pages,
    },
    /// `/sys/kernel/mm/page_idle`: a page is marked as idle.
    MarkIdle {
        /// The page.
        pfn: u64,
    },
    /// `/sys/kernel/mm/page_idle`: is the page still idle?
    ReadIdle,
    /// `/sys/kernel/mm/page_idle`: the pages behind frames are marked as idle.
    MarkFramesIdle {
        /// The first frame.
        gfn: Gfn,
        /// How many.
        pages: Pages,
    },
    /// `/sys/kernel/mm/page_idle`: are the pages behind frames still idle?
    ReadFramesIdle {
        /// The first frame.
        gfn: Gfn,
        /// How many.
        pages: Pages,
    },
    /// The entries of a vCPU's dirty ring are taken out and marked as harvested.
    HarvestRing {
        /// The vCPU.
        vcpu: u32,
    },
    /// `KVM_RESET_DIRTY_RINGS`.
    ResetRings,
    /// The guest runs.
    Guest {
        /// The vCPU.
        vcpu: u32,
        /// What it does.
        act: GuestAct<'a>,
    },
    /// L1 reads one of its own page tables that KVM shadows.
    TouchShadowed,
    /// An operation that nobody knows.
    Other(&'a str),
}

//! Operations: what the program that was recorded asked for, or let its guest do.

use slat_memslot::{AsId, Gfn, Gpa, Pages};
use winnow::combinator::{alt, delimited, eof, not, opt, preceded, separated, seq, terminated};
use winnow::error::ContextError;
use winnow::prelude::*;
use winnow::token::{rest as anything, take_till, take_until};

use super::lex::{Input, as_id, bit, dec, gfn, gpa, hex, hex32, name, number, pages, remark, vcpu};

/// `KVM_SET_USER_MEMORY_REGION` or its second version. The address in the host is not recorded.
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
    /// Anything else.
    Other(&'a str),
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
    /// L1 writes, without a change, to one of its own page tables that KVM shadows.
    OrInto(Gpa),
    /// Anything else.
    Other(&'a str),
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
    /// `/sys/kernel/mm/page_idle`: a page is marked as idle.
    MarkIdle {
        /// The page.
        pfn: u64,
    },
    /// `/sys/kernel/mm/page_idle`: is the page still idle?
    ReadIdle,
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

/// Reads an operation. One that nobody knows is [`Op::Other`]; a known one has to be complete.
pub(super) fn op<'a>(input: &mut Input<'a>) -> ModalResult<Op<'a>> {
    let word = input.split([' ', ':']).next().unwrap_or_default();
    match word {
        "KVM_CREATE_VM" => create_vm(input),
        "KVM_CREATE_VCPU" => {
            seq!(Op::CreateVcpu { _: "KVM_CREATE_VCPU id=", id: dec }).parse_next(input)
        }
        "KVM_SET_CPUID2" => set_cpuid(input),
        "KVM_SET_SREGS" => set_sregs(input),
        "KVM_SET_MSRS" => set_msr(input),
        "KVM_SET_VCPU_EVENTS" => set_smm(input),
        "KVM_SMI" => "KVM_SMI".value(Op::Smi).parse_next(input),
        "KVM_ENABLE_CAP" => enable_cap(input),
        "KVM_SET_USER_MEMORY_REGION" | "KVM_SET_USER_MEMORY_REGION2" => {
            set_region.map(Op::SetRegion).parse_next(input)
        }
        "KVM_CREATE_GUEST_MEMFD" => {
            seq!(Op::CreateGmem { _: "KVM_CREATE_GUEST_MEMFD size=", size: hex }).parse_next(input)
        }
        "KVM_SET_MEMORY_ATTRIBUTES" => set_attributes(input),
        "KVM_PRE_FAULT_MEMORY" => pre_fault(input),
        "KVM_GET_DIRTY_LOG" => {
            seq!(Op::GetDirtyLog { _: "KVM_GET_DIRTY_LOG slot=", slot: dec }).parse_next(input)
        }
        "KVM_CLEAR_DIRTY_LOG" => clear_dirty_log(input),
        "module" => module_parameter(input),
        "close" => close(input),
        "fallocate" => punch_hole(input),
        "madvise" => madvise(input),
        "mprotect" => mprotect(input),
        "page_idle" => page_idle(input),
        "guest" => guest(input),
        _ => unsaid(input),
    }
}

fn create_vm<'a>(input: &mut Input<'a>) -> ModalResult<Op<'a>> {
    seq!(Op::CreateVm { _: "KVM_CREATE_VM type=", vm_type: number }).parse_next(input)
}

fn set_cpuid<'a>(input: &mut Input<'a>) -> ModalResult<Op<'a>> {
    seq!(Op::SetCpuid {
        _: "KVM_SET_CPUID2 ", vcpu: vcpu,
        _: ' ', max_phys_addr: max_phys_addr,
    })
    .parse_next(input)
}

fn max_phys_addr(input: &mut Input<'_>) -> ModalResult<Option<u8>> {
    let supported = "(KVM_GET_SUPPORTED_CPUID as is)".value(None);
    let width = delimited("(supported, MAXPHYADDR=", dec, ')').map(Some);
    alt((supported, width)).parse_next(input)
}

fn set_sregs<'a>(input: &mut Input<'a>) -> ModalResult<Op<'a>> {
    seq!(Op::SetSregs {
        _: "KVM_SET_SREGS ",
        vcpu: opt(terminated(vcpu, ' ')),
        sregs: sregs,
    })
    .parse_next(input)
}

fn sregs<'a>(input: &mut Input<'a>) -> ModalResult<Sregs<'a>> {
    let flat = "32-bit protected mode, flat, paging off".value(Sregs::Flat);
    alt((
        terminated(flat, eof),
        terminated(long_mode, eof),
        terminated(long_mode_with, eof),
        terminated(bits, eof),
        anything.map(Sregs::Other),
    ))
    .parse_next(input)
}

fn bits<'a>(input: &mut Input<'a>) -> ModalResult<Sregs<'a>> {
    let mut names = take_till(1.., |c: char| matches!(c, '=' | ' ' | ','));
    seq!(Sregs::Bits {
        register: name,
        _: '.', bits: names,
        _: '=', set: bit,
    })
    .parse_next(input)
}

fn long_mode<'a>(input: &mut Input<'a>) -> ModalResult<Sregs<'a>> {
    let nesting = alt(("EFER.SVME", "CR4.VMXE"));
    let (nesting, cr3) = (
        opt(terminated(nesting, "=1, ")),
        ("long mode, CR3=", gpa, ", 2M guest pages", remark).map(|found| found.1),
    )
        .parse_next(input)?;
    Ok(Sregs::LongMode { cr3, nesting })
}

fn long_mode_with<'a>(input: &mut Input<'a>) -> ModalResult<Sregs<'a>> {
    seq!(Sregs::LongModeWith {
        _: "long mode; ",
        pages: separated(1.., (preceded("gva ", hex), preceded(" -> gpa ", gpa)), ", "),
    })
    .parse_next(input)
}

fn set_msr<'a>(input: &mut Input<'a>) -> ModalResult<Op<'a>> {
    seq!(Op::SetMsr { _: "KVM_SET_MSRS ", msr: name, _: '=', value: hex }).parse_next(input)
}

fn set_smm<'a>(input: &mut Input<'a>) -> ModalResult<Op<'a>> {
    let inside = preceded(("KVM_SET_VCPU_EVENTS ", opt("smi."), "smm="), bit);
    inside.map(Op::SetSmm).parse_next(input)
}

fn enable_cap<'a>(input: &mut Input<'a>) -> ModalResult<Op<'a>> {
    seq!(Op::EnableCap {
        _: "KVM_ENABLE_CAP ", cap: name,
        _: ' ', bits: opt(terminated(preceded(not("args0="), take_till(1.., ' ')), ' ')),
        _: "args0=", arg: hex,
    })
    .parse_next(input)
}

fn set_region(input: &mut Input<'_>) -> ModalResult<SetRegion> {
    let second = preceded("KVM_SET_USER_MEMORY_REGION", opt('2')).parse_next(input)?;
    let mut gmem_offset = |input: &mut Input<'_>| match second {
        Some(_) => preceded(" gmem_off=", hex).map(Some).parse_next(input),
        None => Ok(None),
    };
    seq!(SetRegion {
        _: " slot=", slot: dec,
        _: " as=", as_id: as_id,
        _: " flags=", flags: hex32,
        _: " gfn=", gfn: gfn,
        _: " npages=", pages: pages,
        gmem_offset: gmem_offset,
    })
    .parse_next(input)
}

fn set_attributes<'a>(input: &mut Input<'a>) -> ModalResult<Op<'a>> {
    seq!(Op::SetAttributes {
        _: "KVM_SET_MEMORY_ATTRIBUTES gfn=", gfn: gfn,
        _: " npages=", pages: pages,
        _: " attributes=", attributes: hex,
    })
    .parse_next(input)
}

fn pre_fault<'a>(input: &mut Input<'a>) -> ModalResult<Op<'a>> {
    seq!(Op::PreFault {
        _: "KVM_PRE_FAULT_MEMORY ", vcpu: vcpu,
        _: " gfn=", gfn: gfn,
        _: " npages=", pages: pages,
    })
    .parse_next(input)
}

fn clear_dirty_log<'a>(input: &mut Input<'a>) -> ModalResult<Op<'a>> {
    seq!(Op::ClearDirtyLog {
        _: "KVM_CLEAR_DIRTY_LOG slot=", slot: dec,
        _: " first=", first: hex,
        _: " num=", pages: pages,
        _: " bitmap=all-ones",
    })
    .parse_next(input)
}

fn module_parameter<'a>(input: &mut Input<'a>) -> ModalResult<Op<'a>> {
    seq!(Op::ModuleParameter {
        _: "module parameter ", name: name,
        _: '=', value: take_till(1.., ' '),
    })
    .parse_next(input)
}

fn close<'a>(input: &mut Input<'a>) -> ModalResult<Op<'a>> {
    let vcpu = vcpu.map(|id| Op::CloseVcpu { id });
    let vm = "vm".value(Op::CloseVm);
    let gmem = "guest_memfd".value(Op::CloseGmem);
    preceded("close ", alt((vcpu, vm, gmem))).parse_next(input)
}

fn punch_hole<'a>(input: &mut Input<'a>) -> ModalResult<Op<'a>> {
    seq!(Op::PunchHole {
        _: "fallocate PUNCH_HOLE guest_memfd off=", offset: hex,
        _: " len=", len: hex,
    })
    .parse_next(input)
}

/// ` gfn=400 npages=2`.
fn range(input: &mut Input<'_>) -> ModalResult<(Gfn, Pages)> {
    (preceded(" gfn=", gfn), preceded(" npages=", pages)).parse_next(input)
}

fn madvise<'a>(input: &mut Input<'a>) -> ModalResult<Op<'a>> {
    let (advice, (gfn, pages)) =
        preceded("madvise ", (name, terminated(range, remark))).parse_next(input)?;
    Ok(Op::Madvise { advice, gfn, pages })
}

fn mprotect<'a>(input: &mut Input<'a>) -> ModalResult<Op<'a>> {
    let mut protection = alt(("PROT_READ|PROT_WRITE".value(true), "PROT_READ".value(false)));
    seq!(Op::Mprotect {
        _: "mprotect ", writable: protection,
        range: opt(range),
        _: remark,
    })
    .parse_next(input)
}

fn page_idle<'a>(input: &mut Input<'a>) -> ModalResult<Op<'a>> {
    let mark = ("mark pfn=", hex, " idle").map(|(_, pfn, _)| Op::MarkIdle { pfn });
    let read = "read".value(Op::ReadIdle);
    preceded("page_idle: ", alt((mark, read))).parse_next(input)
}

fn guest<'a>(input: &mut Input<'a>) -> ModalResult<Op<'a>> {
    seq!(Op::Guest { _: "guest ", vcpu: vcpu, _: opt(':'), _: ' ', act: act }).parse_next(input)
}

fn act<'a>(input: &mut Input<'a>) -> ModalResult<GuestAct<'a>> {
    let word = input.split(' ').next().unwrap_or_default();
    match word {
        "HLT" => halt(input),
        "READ" => target("READ gpa=").map(GuestAct::Read).parse_next(input),
        "WRITE" => target("WRITE gpa=").map(GuestAct::Write).parse_next(input),
        "EXEC" => target("EXEC gpa=").map(GuestAct::Execute).parse_next(input),
        _ => alt((terminated(rarer, eof), anything.map(GuestAct::Other))).parse_next(input),
    }
}

fn target<'a>(before: &'static str) -> impl ModalParser<Input<'a>, Gpa, ContextError> {
    preceded(before, terminated(gpa, remark))
}

fn halt<'a>(input: &mut Input<'a>) -> ModalResult<GuestAct<'a>> {
    seq!(GuestAct::Halt {
        _: "HLT", at: opt(preceded(" at gpa ", gpa)),
        _: remark,
    })
    .parse_next(input)
}

fn rarer<'a>(input: &mut Input<'a>) -> ModalResult<GuestAct<'a>> {
    let enter = ("runs: enters SMM at ", gpa, ", HLT");
    let smm_read = ("in SMM: READ gpa=", gpa, " then HLT");
    let cpuid = "L2 CPUID: exit to L1, L1 HLT";
    let or_into = ("L1 OR [", gpa, "],0", remark);
    alt((
        enter.map(|(_, handler, _)| GuestAct::EnterSmm { handler }),
        smm_read.map(|(_, gpa, _)| GuestAct::SmmRead(gpa)),
        "RSM, back to the stub".value(GuestAct::LeaveSmm),
        write_pages,
        launch_svm,
        launch_vmx,
        target("L2 WRITE gpa=").map(GuestAct::NestedWrite),
        cpuid.value(GuestAct::NestedCpuid),
        or_into.map(|(_, gpa, ..)| GuestAct::OrInto(gpa)),
    ))
    .parse_next(input)
}

fn write_pages<'a>(input: &mut Input<'a>) -> ModalResult<GuestAct<'a>> {
    seq!(GuestAct::WritePages {
        _: "writes ", pages: dec,
        _: " pages from gpa=", from: gpa,
        _: remark,
    })
    .parse_next(input)
}

fn on_or_off(input: &mut Input<'_>) -> ModalResult<bool> {
    alt(("on".value(true), "off".value(false))).parse_next(input)
}

fn launch_svm<'a>(input: &mut Input<'a>) -> ModalResult<GuestAct<'a>> {
    let (read, _, nested_paging, _) = (
        preceded("L1 executes VMRUN, L2 READ gpa=", gpa),
        " then HLT (nested paging ",
        on_or_off,
        ')',
    )
        .parse_next(input)?;
    Ok(GuestAct::Launch {
        vmx: false,
        nested_paging,
        read,
    })
}

fn launch_vmx<'a>(input: &mut Input<'a>) -> ModalResult<GuestAct<'a>> {
    let (_, _, read, _, nested_paging, _) = (
        ("L1: VMXON, ", take_until(1.., "; L2 ")),
        "; L2 READ gva=gpa=",
        gpa,
        " then HLT (EPT12 ",
        on_or_off,
        ')',
    )
        .parse_next(input)?;
    Ok(GuestAct::Launch {
        vmx: true,
        nested_paging,
        read,
    })
}

fn unsaid<'a>(input: &mut Input<'a>) -> ModalResult<Op<'a>> {
    let touch = "L1 touches a page of EPT12 that KVM shadows".value(Op::TouchShadowed);
    alt((
        terminated(("fork", remark).value(Op::Fork), eof),
        terminated(touch, eof),
        anything.map(Op::Other),
    ))
    .parse_next(input)
}

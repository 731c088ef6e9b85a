//! Operations, read from their text.

use slat_memslot::{Gfn, Gpa, Hva, Pages};
use slat_mmu::fault::Kind;
use slat_mmu::walk::Privilege;
use winnow::combinator::{alt, delimited, eof, not, opt, preceded, separated, seq, terminated};
use winnow::error::ContextError;
use winnow::prelude::*;
use winnow::token::{rest as anything, take_till, take_until};

use super::{Control, GuestAct, HostWork, Instruction, Op, SetRegion, Sregs};
use crate::traces::lex::{
    Input, as_id, bit, dec, gfn, gpa, hex, hex32, name, number, pages, remark, vcpu,
};

/// Reads an operation. One that nobody knows is [`Op::Other`]; a known one has to be complete.
pub(in crate::traces) fn op<'a>(input: &mut Input<'a>) -> ModalResult<Op<'a>> {
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
        "KVM_SET_NR_MMU_PAGES" => {
            seq!(Op::SetMmuPages { _: "KVM_SET_NR_MMU_PAGES ", pages: dec }).parse_next(input)
        }
        "poke" => poke(input),
        "module" => module_parameter(input),
        "close" => close(input),
        "fallocate" => punch_hole(input),
        "madvise" => madvise(input),
        "mprotect" => mprotect(input),
        "page_idle" => page_idle(input),
        "userfaultfd" => userfault(input),
        "host" => host_work(input),
        "dirty" => {
            seq!(Op::HarvestRing { _: "dirty ring: harvest ", vcpu: vcpu }).parse_next(input)
        }
        "KVM_RESET_DIRTY_RINGS" => "KVM_RESET_DIRTY_RINGS"
            .value(Op::ResetRings)
            .parse_next(input),
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
        terminated(control.map(Sregs::Control), eof),
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

fn control(input: &mut Input<'_>) -> ModalResult<Control> {
    seq!(Control {
        _: "CR0=", cr0: hex,
        _: " CR3=", cr3: hex,
        _: " CR4=", cr4: hex,
        _: " EFER=", efer: hex,
    })
    .parse_next(input)
}

fn poke<'a>(input: &mut Input<'a>) -> ModalResult<Op<'a>> {
    seq!(Op::Poke {
        _: "poke hva=", hva: hex.map(Hva::new),
        _: " value=", value: hex,
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
    seq!(Op::SetMsr {
        _: "KVM_SET_MSRS ", vcpu: opt(terminated(vcpu, ' ')),
        msr: name, _: '=', value: hex,
    })
    .parse_next(input)
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
        hva: opt(preceded(" hva=", hex.map(Hva::new))),
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
        flags: opt(preceded(" flags=", hex)),
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
    let mark_frames = preceded("mark", range);
    let mark_frames = mark_frames.map(|(gfn, pages)| Op::MarkFramesIdle { gfn, pages });
    let read_frames = preceded("read", range);
    let read_frames = read_frames.map(|(gfn, pages)| Op::ReadFramesIdle { gfn, pages });
    let read = "read".value(Op::ReadIdle);
    let any = alt((mark_frames, mark, read_frames, read));
    preceded("page_idle: ", any).parse_next(input)
}

fn userfault<'a>(input: &mut Input<'a>) -> ModalResult<Op<'a>> {
    let frames = preceded("userfaultfd: missing", range);
    frames
        .map(|(gfn, pages)| Op::Userfault { gfn, pages })
        .parse_next(input)
}

fn host_work<'a>(input: &mut Input<'a>) -> ModalResult<Op<'a>> {
    let work = preceded("host: ", anything).verify_map(|name| {
        let mut all = HostWork::ALL.into_iter();
        all.find(|work| work.name() == name)
    });
    work.map(Op::HostWork).parse_next(input)
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
    let smm_write = ("in SMM: WRITE gpa=", gpa, " then HLT");
    let cpuid = "L2 CPUID: exit to L1, L1 HLT";
    let or_into = ("L1 OR [", gpa, "],0", remark);
    alt((
        enter.map(|(_, handler, _)| GuestAct::EnterSmm { handler }),
        alt((
            smm_read.map(|(_, gpa, _)| GuestAct::SmmRead(gpa)),
            smm_write.map(|(_, gpa, _)| GuestAct::SmmWrite(gpa)),
        )),
        "RSM, back to the stub".value(GuestAct::LeaveSmm),
        write_pages,
        launch_svm,
        launch_vmx,
        target("L2 WRITE gpa=").map(GuestAct::NestedWrite),
        cpuid.value(GuestAct::NestedCpuid),
        alt((
            or_into.map(|(_, gpa, ..)| GuestAct::OrInto(gpa)),
            execution,
            run_l2,
            seq!(GuestAct::StoreOfL1 { _: "L1 STORE gpa=", gpa: gpa, _: " value=", value: hex }),
        )),
    ))
    .parse_next(input)
}

fn run_l2<'a>(input: &mut Input<'a>) -> ModalResult<GuestAct<'a>> {
    let mut kind = alt((
        "READ".value(Kind::Read),
        "WRITE".value(Kind::Write),
        "EXEC".value(Kind::Execute),
    ));
    seq!(GuestAct::RunL2 {
        _: "L1 VMRUN", tables: opt(preceded(" nCR3=", gpa)),
        _: ", L2 ", kind: kind,
        _: " gpa=", gpa: gpa,
        _: ", exit to L1",
    })
    .parse_next(input)
}

fn execution<'a>(input: &mut Input<'a>) -> ModalResult<GuestAct<'a>> {
    let user = "CPL3 ".value(Privilege::User);
    let supervisor = "CPL0 ".value(Privilege::Supervisor);
    let (privilege, instruction) = (alt((user, supervisor)), instruction).parse_next(input)?;
    Ok(GuestAct::Execution {
        privilege,
        instruction,
    })
}

fn instruction(input: &mut Input<'_>) -> ModalResult<Instruction> {
    alt((
        seq!(Instruction::Load { _: "LOAD gva=", gva: hex }),
        seq!(Instruction::Store {
            _: "STORE gva=", gva: hex,
            _: " len=", len: dec,
            _: " value=", value: hex,
        }),
        seq!(Instruction::Touch {
            _: "TOUCH gva=", gva: hex,
            _: " pages=", pages: hex,
        }),
        seq!(Instruction::Jump { _: "JUMP gva=", gva: hex }),
        seq!(Instruction::MoveToCr {
            _: "MOV CR", number: dec,
            _: " value=", value: hex,
        }),
        seq!(Instruction::Invlpg { _: "INVLPG gva=", gva: hex }),
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
        terminated("the child ends".value(Op::ChildEnds), eof),
        terminated(touch, eof),
        anything.map(Op::Other),
    ))
    .parse_next(input)
}

//! Operations, written as recordings have them behind `OP`.

use core::fmt::{Display, Formatter, Result};

use slat_mmu::fault::Kind;
use slat_mmu::walk::Privilege;

use super::{Control, GuestAct, Instruction, Op, SetRegion, Sregs};

impl Display for Op<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::CreateVm { .. }
            | Self::CreateVcpu { .. }
            | Self::SetCpuid { .. }
            | Self::SetSregs { .. }
            | Self::SetMsr { .. }
            | Self::SetSmm(_)
            | Self::Smi
            | Self::EnableCap { .. } => self.machine(f),
            Self::SetRegion(region) => region.fmt(f),
            Self::Madvise { .. }
            | Self::Mprotect { .. }
            | Self::Fork
            | Self::ChildEnds
            | Self::HostWork(_)
            | Self::Userfault { .. }
            | Self::MarkIdle { .. }
            | Self::ReadIdle
            | Self::Poke { .. }
            | Self::MarkFramesIdle { .. }
            | Self::ReadFramesIdle { .. }
            | Self::ModuleParameter { .. } => self.host(f),
            Self::Guest { vcpu, act } => write!(f, "guest vcpu={vcpu}{act}"),
            Self::TouchShadowed => write!(f, "L1 touches a page of EPT12 that KVM shadows"),
            Self::Other(text) => write!(f, "{text}"),
            _ => self.memory(f),
        }
    }
}

/// The vCPU, where it is said.
fn said(f: &mut Formatter<'_>, vcpu: Option<u32>) -> Result {
    vcpu.map_or(Ok(()), |vcpu| write!(f, "vcpu={vcpu} "))
}

impl Op<'_> {
    /// VMs, vCPUs and their state.
    fn machine(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::CreateVm { vm_type } => write!(f, "KVM_CREATE_VM type={vm_type}"),
            Self::CreateVcpu { id } => write!(f, "KVM_CREATE_VCPU id={id}"),
            Self::SetCpuid {
                vcpu,
                max_phys_addr: None,
            } => write!(
                f,
                "KVM_SET_CPUID2 vcpu={vcpu} (KVM_GET_SUPPORTED_CPUID as is)"
            ),
            Self::SetCpuid {
                vcpu,
                max_phys_addr: Some(bits),
            } => write!(
                f,
                "KVM_SET_CPUID2 vcpu={vcpu} (supported, MAXPHYADDR={bits})"
            ),
            Self::SetSregs { vcpu, sregs } => {
                write!(f, "KVM_SET_SREGS ")?;
                said(f, *vcpu)?;
                sregs.fmt(f)
            }
            Self::SetMsr { vcpu, msr, value } => {
                write!(f, "KVM_SET_MSRS ")?;
                said(f, *vcpu)?;
                write!(f, "{msr}={value:#x}")
            }
            Self::SetSmm(inside) => write!(f, "KVM_SET_VCPU_EVENTS smi.smm={}", u8::from(*inside)),
            Self::Smi => write!(f, "KVM_SMI"),
            Self::EnableCap { cap, bits, arg } => {
                write!(f, "KVM_ENABLE_CAP {cap} ")?;
                if let Some(bits) = bits {
                    write!(f, "{bits} ")?;
                }
                write!(f, "args0={arg:#x}")
            }
            _ => Ok(()),
        }
    }

    /// The VM's memory.
    fn memory(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::CloseVm => write!(f, "close vm"),
            Self::SetMmuPages { pages } => write!(f, "KVM_SET_NR_MMU_PAGES {pages}"),
            Self::CloseVcpu { id } => write!(f, "close vcpu={id}"),
            Self::CreateGmem { size } => write!(f, "KVM_CREATE_GUEST_MEMFD size={size:#x}"),
            Self::CloseGmem => write!(f, "close guest_memfd"),
            Self::PunchHole { offset, len } => {
                write!(
                    f,
                    "fallocate PUNCH_HOLE guest_memfd off={offset:#x} len={len:#x}"
                )
            }
            Self::SetAttributes {
                gfn,
                pages,
                attributes,
            } => write!(
                f,
                "KVM_SET_MEMORY_ATTRIBUTES gfn={:x} npages={:x} attributes={attributes:#x}",
                gfn.raw(),
                pages.raw()
            ),
            Self::PreFault {
                vcpu,
                gfn,
                pages,
                flags,
            } => {
                let (gfn, pages) = (gfn.raw(), pages.raw());
                write!(
                    f,
                    "KVM_PRE_FAULT_MEMORY vcpu={vcpu} gfn={gfn:x} npages={pages:x}"
                )?;
                flags.map_or(Ok(()), |flags| write!(f, " flags={flags:#x}"))
            }
            Self::GetDirtyLog { slot } => write!(f, "KVM_GET_DIRTY_LOG slot={slot}"),
            Self::ClearDirtyLog { slot, first, pages } => write!(
                f,
                "KVM_CLEAR_DIRTY_LOG slot={slot} first={first:x} num={:x} bitmap=all-ones",
                pages.raw()
            ),
            Self::HarvestRing { vcpu } => write!(f, "dirty ring: harvest vcpu={vcpu}"),
            Self::ResetRings => write!(f, "KVM_RESET_DIRTY_RINGS"),
            _ => Ok(()),
        }
    }

    /// The host's own memory management.
    fn host(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::Madvise { advice, gfn, pages } => {
                let (gfn, pages) = (gfn.raw(), pages.raw());
                write!(f, "madvise {advice} gfn={gfn:x} npages={pages:x}")
            }
            Self::Mprotect { writable, range } => {
                let rights = if *writable {
                    "PROT_READ|PROT_WRITE"
                } else {
                    "PROT_READ"
                };
                write!(f, "mprotect {rights}")?;
                range.map_or(Ok(()), |(gfn, pages)| {
                    write!(f, " gfn={:x} npages={:x}", gfn.raw(), pages.raw())
                })
            }
            Self::Fork => write!(f, "fork"),
            Self::ChildEnds => write!(f, "the child ends"),
            Self::HostWork(work) => write!(f, "host: {}", work.name()),
            Self::Userfault { gfn, pages } => {
                let (gfn, pages) = (gfn.raw(), pages.raw());
                write!(f, "userfaultfd: missing gfn={gfn:x} npages={pages:x}")
            }
            Self::MarkFramesIdle { gfn, pages } => {
                let (gfn, pages) = (gfn.raw(), pages.raw());
                write!(f, "page_idle: mark gfn={gfn:x} npages={pages:x}")
            }
            Self::ReadFramesIdle { gfn, pages } => {
                let (gfn, pages) = (gfn.raw(), pages.raw());
                write!(f, "page_idle: read gfn={gfn:x} npages={pages:x}")
            }
            Self::MarkIdle { pfn } => write!(f, "page_idle: mark pfn={pfn:x} idle"),
            Self::ReadIdle => write!(f, "page_idle: read"),
            Self::Poke { hva, value } => write!(f, "poke hva={:x} value={value:#x}", hva.raw()),
            Self::ModuleParameter { name, value } => write!(f, "module parameter {name}={value}"),
            _ => Ok(()),
        }
    }
}

impl Display for SetRegion {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let second = if self.gmem_offset.is_some() { "2" } else { "" };
        write!(
            f,
            "KVM_SET_USER_MEMORY_REGION{second} slot={} as={} flags={:#x} gfn={:x} npages={:x}",
            self.slot,
            self.as_id.index(),
            self.flags,
            self.gfn.raw(),
            self.pages.raw()
        )?;
        if let Some(offset) = self.gmem_offset {
            write!(f, " gmem_off={offset:#x}")?;
        }
        self.hva
            .map_or(Ok(()), |hva| write!(f, " hva={:x}", hva.raw()))
    }
}

impl Display for Sregs<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::Flat => write!(f, "32-bit protected mode, flat, paging off"),
            Self::Bits {
                register,
                bits,
                set,
            } => write!(f, "{register}.{bits}={}", u8::from(*set)),
            Self::LongMode { cr3, nesting } => {
                if let Some(bit) = nesting {
                    write!(f, "{bit}=1, ")?;
                }
                write!(f, "long mode, CR3={:#x}, 2M guest pages", cr3.raw())
            }
            Self::LongModeWith { pages } => {
                write!(f, "long mode; ")?;
                for (at, (gva, gpa)) in pages.iter().enumerate() {
                    let comma = if at == 0 { "" } else { ", " };
                    write!(f, "{comma}gva {gva:#x} -> gpa {:#x}", gpa.raw())?;
                }
                Ok(())
            }
            Self::Control(control) => control.fmt(f),
            Self::Other(text) => write!(f, "{text}"),
        }
    }
}

impl Display for Control {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let Self {
            cr0,
            cr3,
            cr4,
            efer,
        } = self;
        write!(f, "CR0={cr0:#x} CR3={cr3:#x} CR4={cr4:#x} EFER={efer:#x}")
    }
}

impl Display for Instruction {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::Load { gva } => write!(f, "LOAD gva={gva:#x}"),
            Self::Store { gva, len, value } => {
                write!(f, "STORE gva={gva:#x} len={len} value={value:#x}")
            }
            Self::Touch { gva, pages } => write!(f, "TOUCH gva={gva:#x} pages={pages:x}"),
            Self::Jump { gva } => write!(f, "JUMP gva={gva:#x}"),
            Self::MoveToCr { number, value } => write!(f, "MOV CR{number} value={value:#x}"),
            Self::Invlpg { gva } => write!(f, "INVLPG gva={gva:#x}"),
        }
    }
}

/// With what stands between it and the vCPU.
impl Display for GuestAct<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::Halt { at: None } => write!(f, " HLT"),
            Self::Halt { at: Some(at) } => write!(f, " HLT at gpa {:#x}", at.raw()),
            Self::Read(gpa) => write!(f, " READ gpa={:#x}", gpa.raw()),
            Self::Write(gpa) => write!(f, " WRITE gpa={:#x}", gpa.raw()),
            Self::Execute(gpa) => write!(f, " EXEC gpa={:#x}", gpa.raw()),
            Self::WritePages { pages, from } => {
                write!(f, " writes {pages} pages from gpa={:#x}", from.raw())
            }
            Self::EnterSmm { handler } => {
                write!(f, " runs: enters SMM at {:#x}, HLT", handler.raw())
            }
            Self::SmmRead(gpa) => write!(f, " in SMM: READ gpa={:#x} then HLT", gpa.raw()),
            Self::SmmWrite(gpa) => write!(f, " in SMM: WRITE gpa={:#x} then HLT", gpa.raw()),
            Self::LeaveSmm => write!(f, ": RSM, back to the stub"),
            Self::Launch {
                vmx: false,
                nested_paging,
                read,
            } => write!(
                f,
                " L1 executes VMRUN, L2 READ gpa={:#x} then HLT (nested paging {})",
                read.raw(),
                on_or_off(*nested_paging)
            ),
            Self::Launch {
                vmx: true,
                nested_paging,
                read,
            } => write!(
                f,
                " L1: VMXON, VMPTRLD, VMLAUNCH; L2 READ gva=gpa={:#x} then HLT (EPT12 {})",
                read.raw(),
                on_or_off(*nested_paging)
            ),
            Self::RunL2 { tables, kind, gpa } => {
                match tables {
                    Some(tables) => write!(f, " L1 VMRUN nCR3={:#x}", tables.raw())?,
                    None => write!(f, " L1 VMRUN")?,
                }
                let access = match kind {
                    Kind::Read => "READ",
                    Kind::Write => "WRITE",
                    Kind::Execute => "EXEC",
                };
                write!(f, ", L2 {access} gpa={:#x}, exit to L1", gpa.raw())
            }
            Self::StoreOfL1 { gpa, value } => {
                write!(f, " L1 STORE gpa={:#x} value={value:#x}", gpa.raw())
            }
            Self::NestedWrite(gpa) => write!(f, " L2 WRITE gpa={:#x}", gpa.raw()),
            Self::NestedCpuid => write!(f, " L2 CPUID: exit to L1, L1 HLT"),
            Self::OrInto(gpa) => write!(f, " L1 OR [{:#x}],0", gpa.raw()),
            Self::Execution {
                privilege,
                instruction,
            } => {
                let cpl = match privilege {
                    Privilege::User => 3,
                    Privilege::Supervisor | Privilege::Implicit => 0,
                };
                write!(f, " CPL{cpl} {instruction}")
            }
            Self::Other(text) => write!(f, " {text}"),
        }
    }
}

const fn on_or_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

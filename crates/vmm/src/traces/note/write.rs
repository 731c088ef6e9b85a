//! Results and notes, written as recordings have them behind `RET` and `NOTE`.

use core::fmt::{Display, Formatter, Result};

use super::{Exit, Leaves, Note, Ret};

impl Display for Ret {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::Value(value) => write!(f, "{value}"),
            Self::Failed(errno) => write!(f, "-1 {errno}"),
        }
    }
}

impl Display for Note<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::Exit(exit) => write!(f, "exit {exit}"),
            Self::RunFailed { errno, exit_reason } => {
                write!(f, "KVM_RUN -1 {errno} exit_reason={exit_reason}")
            }
            Self::Backing { gfn, pfn, level } => {
                write!(f, "backing gfn={:x} pfn={pfn:x}", gfn.raw())?;
                level.map_or(Ok(()), |level| write!(f, " level={}", level as u8))
            }
            Self::BackingOf(as_id) => write!(f, "as{} page:", as_id.index()),
            Self::Dirty { count, first } => {
                write!(f, "dirty count={count} first=")?;
                first.iter().try_for_each(|page| write!(f, " {page:x}"))
            }
            Self::Ring(entries) => {
                write!(f, "ring")?;
                entries
                    .iter()
                    .try_for_each(|(slot, page)| write!(f, " {slot:x}:{page:x}"))
            }
            Self::Filled { hva, pages } => {
                write!(f, "filled hva={:x} npages={:x}", hva.raw(), pages.raw())
            }
            Self::Collapsed { hva, pfn } => write!(f, "collapsed hva={:x} pfn={pfn:x}", hva.raw()),
            Self::PreFaultLeft { gfn, pages } => {
                write!(
                    f,
                    "pre_fault left gfn={:x} npages={:x}",
                    gfn.raw(),
                    pages.raw()
                )
            }
            Self::Idle(idle) => write!(f, "idle={}", u8::from(*idle)),
            Self::Leaves(leaves) => leaves.fmt(f),
            Self::Fatal(text) => write!(f, "FATAL {text}"),
            Self::Remark(text) => write!(f, "{text}"),
            _ => self.fmt_machine(f),
        }
    }
}

impl Display for Leaves {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let Self {
            pages_4k,
            pages_2m,
            pages_1g,
        } = self;
        write!(f, "pages 4k={pages_4k} 2m={pages_2m} 1g={pages_1g}")
    }
}

impl Note<'_> {
    /// What is said about the machine.
    fn fmt_machine(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::Registers { rip, rdx } => {
                write!(f, "rip={rip:#x}")?;
                rdx.map_or(Ok(()), |rdx| write!(f, " rdx={rdx:#x}"))
            }
            Self::NestedState { flags } => write!(f, "nested flags={flags:#x}"),
            Self::Capability { cap, system, vm } => {
                write!(f, "KVM_CAP_{cap} system={system} vm={vm}")
            }
            Self::Created { vm_type, returned } => {
                write!(f, "KVM_CREATE_VM type {vm_type}: {returned}")
            }
            Self::SupportedCpuid { leaf, eax } => {
                write!(f, "supported CPUID {leaf:#x} eax={eax:#x}")
            }
            Self::SlotsAdded { count, generation } => write!(
                f,
                "{count} slot additions: memslot generation {generation:x}"
            ),
            Self::Alarm { seconds } => write!(f, "SIGALRM armed, {seconds} s"),
            _ => Ok(()),
        }
    }
}

/// With what stands behind `exit`.
impl Display for Exit {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::Halt => write!(f, "HLT"),
            Self::Mmio { gpa, len, write } => {
                write!(f, "MMIO gpa={gpa} len={len} write={}", u8::from(*write))
            }
            Self::MemoryFault { flags, gpa, size } => {
                write!(f, "MEMORY_FAULT flags={flags:#x} gpa={gpa} size={size:#x}")
            }
            Self::Other { reason } => write!(f, "reason={reason}"),
        }
    }
}

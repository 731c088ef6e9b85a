//! What a guest does between an entry and the exit, as data.

use slat_memslot::Gpa;
use slat_mmu::fault::Kind;
use slat_mmu::role::{Cr0, Cr4, Efer, VcpuMode, VcpuState};

use crate::traces::Exit;

/// How the guest translates its own addresses.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Paging {
    /// It does not.
    #[default]
    Off,
    /// By four levels of tables with pages of 2 MiB. The tables follow each other: the first level at `cr3`, the second,
    /// then one for each GiB.
    Long {
        /// Where the tables begin.
        cr3: Gpa,
        /// Pages that are not where their own address says.
        pages: Vec<(u64, Gpa)>,
    },
}

/// 2 MiB.
const HUGE: u64 = 1 << 21;

impl Paging {
    /// The entries that a walk reads, top down.
    pub(crate) fn walk(&self, address: u64) -> Vec<Gpa> {
        let Self::Long { cr3, .. } = self else {
            return Vec::new();
        };
        let entry = |table: u64, shift: u32| {
            let index = address >> shift & 0x1ff;
            Gpa::new(cr3.raw().wrapping_add((table << 12) + index * 8))
        };
        let gib = address >> 30 & 0x1ff;
        vec![entry(0, 39), entry(1, 30), entry(2 + gib, 21)]
    }

    /// A vCPU's registers with those that this paging needs.
    pub(super) fn registers(&self, state: &VcpuState) -> VcpuState {
        match self {
            Self::Off => *state,
            Self::Long { cr3, .. } => VcpuState {
                cr0: state.cr0 | Cr0::PG | Cr0::PE,
                cr3: cr3.raw(),
                cr4: state.cr4 | Cr4::PAE,
                efer: state.efer | Efer::LME | Efer::LMA,
                ..*state
            },
        }
    }

    pub(crate) fn translate(&self, address: u64) -> Gpa {
        if let Self::Long { pages, .. } = self {
            let page = pages.iter().find(|(gva, _)| *gva == address & !(HUGE - 1));
            if let Some((gva, gpa)) = page {
                return Gpa::new(gpa.raw().wrapping_add(address - gva));
            }
        }
        Gpa::new(address)
    }
}

/// The tables that L1 gives to L2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecondStageOfL2 {
    /// Nested page tables.
    Npt {
        /// `nCR3`.
        cr3: Gpa,
    },
    /// Extended page tables.
    Ept {
        /// `EPTP12`.
        pointer: u64,
    },
}

/// One access, to an address of the guest's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// What it does.
    pub kind: Kind,
    /// Where.
    pub address: u64,
}

/// How the guest stops when it has done everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Ending {
    /// It halts.
    #[default]
    Halt,
    /// An exception that it cannot handle, nor what comes of that (`KVM_EXIT_SHUTDOWN`).
    TripleFault,
}

impl Ending {
    pub(crate) const fn exit(self) -> Exit {
        match self {
            Self::Halt => Exit::Halt,
            Self::TripleFault => Exit::Other { reason: 8 },
        }
    }
}

/// What the guest does from one entry to the exit.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Activity {
    /// A change of mode when it is entered.
    pub mode_first: Option<VcpuMode>,
    /// The accesses, instruction fetches among them.
    pub steps: Vec<Step>,
    /// A change of mode after them.
    pub mode_then: Option<VcpuMode>,
    /// The tables that L2 has of L1's, if the change starts such an L2.
    pub l2_tables: Option<SecondStageOfL2>,
    /// The accesses after that.
    pub steps_then: Vec<Step>,
    /// What L1 does when it is told of an access of L2's that its tables do not allow. L2 does not go on.
    pub steps_of_l1: Vec<Step>,
    /// Whether L1 is told when L2 has made its accesses, and then does the same.
    pub back_in_l1: bool,
    /// Whether L2 goes on with what memory has at the address that it reached last: a halt, or zeros, which are an
    /// instruction that reads the byte at address 0.
    pub memory_runs: bool,
    /// What its writes leave in memory: how many bytes, and their value. Nothing that anybody reads as a table where it is not
    /// said.
    pub written: Option<(u8, u64)>,
    /// How it stops.
    pub ending: Ending,
}

impl Activity {
    /// It fetches a halt at an address.
    pub fn halt(at: Gpa) -> Self {
        Self::default().step(Kind::Execute, at.raw())
    }

    /// With one more access.
    #[must_use]
    pub fn step(mut self, kind: Kind, address: u64) -> Self {
        self.steps.push(Step { kind, address });
        self
    }
}

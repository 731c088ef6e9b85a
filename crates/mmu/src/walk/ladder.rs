//! All references of a walk in order, whatever dimension they are in.

use core::cell::RefCell;
use core::fmt;

use slat_memslot::{Gpa, Level};

use crate::access::Access;
use crate::tdp::{SecondObserver, SecondStep};

use super::log::{Mark, Step, WalkObserver};

/// Whose table an entry is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dimension {
    /// The guest's own.
    Guest,
    /// A hypervisor's in the guest.
    Nested,
    /// The host's second stage.
    Second,
}

impl fmt::Display for Dimension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Guest => "guest",
            Self::Nested => "nested",
            Self::Second => "second",
        })
    }
}

/// One reference to memory that a walk makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    /// Whose table it is.
    pub dimension: Dimension,
    /// The level of the table; 3 for a pointer of PAE paging.
    pub level: Level,
    /// Where the entry is: for the guest and the hypervisor in it an address as they count, for tables of the TDP MMU the
    /// table's number and the entry's place as an address. Nothing for a pointer of PAE paging.
    pub place: Option<Gpa>,
    /// The entry as it was read.
    pub entry: u64,
    /// What the entries of this dimension allow together so far; in EPT `u` is reading.
    pub rights: Access,
    /// What it was marked to, if it was.
    pub marked: Option<u64>,
}

/// Collects the references of a walk. Each dimension is observed on its own, and the order is kept.
///
/// ```
/// use slat_memslot::Gva;
/// use slat_mmu::host::ExecuteOnly;
/// use slat_mmu::role::{Cr0, Cr4, Efer, VcpuState};
/// use slat_mmu::walk::second::NestedStage;
/// use slat_mmu::walk::{Dimension, ErrorCode, GuestCpu, GuestPaging, Ladder, NestedEptRoot, Unnested};
///
/// // Tables in pages 0 to 3 that lead to page 0 again; the same for EPT in pages 4 to 7, for the first 8 pages.
/// let mut memory = vec![0_u64; 8 * 512];
/// for level in 0..4 {
///     let next = (level as u64 + 1) << 12;
///     memory[level * 512] = if level == 3 { 0x67 } else { next | 0x67 };
///     memory[(4 + level) * 512] = (next + 0x4000) | 0x107;
/// }
/// for page in 0..8 {
///     memory[7 * 512 + page] = (page as u64) << 12 | 0x337;
/// }
/// let vcpu = VcpuState {
///     cr0: Cr0::PG | Cr0::PE,
///     cr4: Cr4::PAE,
///     efer: Efer::LME | Efer::LMA,
///     ..VcpuState::default()
/// };
/// let cpu = GuestCpu::new(46);
/// let ept = GuestPaging::nested_ept(&NestedEptRoot::of(0x405e, ExecuteOnly::Unsupported), &cpu);
/// let ladder = Ladder::default();
/// let mut stage = NestedStage::new(ept, memory.as_slice(), Unnested).observed(ladder.observer(Dimension::Nested));
/// let guest = &mut ladder.observer(Dimension::Guest);
/// GuestPaging::new(&vcpu, &cpu).walk(memory.as_slice(), &mut stage, guest, Gva::new(8), ErrorCode::READ).unwrap();
/// assert_eq!(ladder.references().len(), 24);
/// ```
#[derive(Clone, Debug, Default)]
pub struct Ladder {
    references: RefCell<Vec<Reference>>,
}

impl Ladder {
    /// An observer of one dimension.
    pub const fn observer(&self, dimension: Dimension) -> LadderObserver<'_> {
        LadderObserver {
            ladder: self,
            dimension,
        }
    }

    /// The references so far.
    pub fn references(&self) -> Vec<Reference> {
        self.references.borrow().clone()
    }
}

/// Writes the references of one dimension down.
#[derive(Clone, Copy, Debug)]
pub struct LadderObserver<'l> {
    ladder: &'l Ladder,
    dimension: Dimension,
}

impl LadderObserver<'_> {
    fn push(&self, reference: Reference) {
        self.ladder.references.borrow_mut().push(reference);
    }
}

impl WalkObserver for LadderObserver<'_> {
    fn step(&mut self, step: &Step) {
        self.push(Reference {
            dimension: self.dimension,
            level: step.level,
            place: step.place,
            entry: step.entry,
            rights: step.rights,
            marked: None,
        });
    }

    fn mark(&mut self, mark: &Mark) {
        let mut references = self.ladder.references.borrow_mut();
        let marked = references.iter_mut().rev().find(|reference| {
            reference.dimension == self.dimension && reference.place == Some(mark.place)
        });
        if let Some(reference) = marked.filter(|_| mark.written) {
            reference.marked = Some(mark.new);
        }
    }
}

impl SecondObserver for LadderObserver<'_> {
    fn step(&mut self, step: &SecondStep) {
        let table = u64::from(step.table.raw()) << 12;
        self.push(Reference {
            dimension: self.dimension,
            level: step.level,
            place: Some(Gpa::new(table | (step.index as u64) << 3)),
            entry: step.entry,
            rights: step.rights,
            marked: None,
        });
    }
}

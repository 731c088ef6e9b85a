//! What page tables went through, counted.

use core::fmt;

use slat_memslot::{Gfn, Level};
use slat_mmu::host::{Host, SecondStage};
use slat_mmu::spte::{Codec, Entry, Ept, Format, Npt, Spte};

use crate::traces::{Leaves, Note, Op, Recording, Traced, What};

/// One operation of a recording, and what it did to the tables of the TDP MMU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// The operation, as it is written.
    pub operation: String,
    /// Times that all roots were invalidated (`kvm_mmu_zap_all_fast`).
    pub fast_zaps: u64,
    /// Roots and tables that went (`kvm_mmu_prepare_zap_page`).
    pub tables_zapped: u64,
    /// Leaves that went without another in their place.
    pub leaves_zapped: u64,
    /// Of them, those of these frames, lowest and highest.
    pub zapped: Option<(Gfn, Gfn)>,
    /// Faults that found a page (`kvm_mmu_spte_requested`).
    pub faults: u64,
    /// Leaves that were stored where none was.
    pub leaves_made: u64,
    /// Times that the guest left for a fault (`kvm_page_fault`).
    pub exits: u64,
    /// How many leaves there were before the operation, where the program looked.
    pub leaves_before: Option<Leaves>,
}

impl Tally {
    /// Of each operation of a recording that was made on this host.
    pub fn of(recording: &Recording<'_>, host: &Host) -> Vec<Self> {
        match host.second_stage {
            SecondStage::Ept => count(recording, &Codec::<Ept>::new(host)),
            SecondStage::Npt | SecondStage::Off => count(recording, &Codec::<Npt>::new(host)),
        }
    }
}

fn count<F: Format>(recording: &Recording<'_>, codec: &Codec<F>) -> Vec<Tally> {
    let mut all: Vec<Tally> = Vec::new();
    let mut leaves = None;
    for item in &recording.items {
        match &item.what {
            What::Op(op) => all.push(Tally {
                operation: op.to_string(),
                leaves_before: leaves.take().filter(|_| looks(op)),
                ..Tally::default()
            }),
            What::Note(Note::Leaves(seen)) => leaves = Some(*seen),
            What::Event(event) => {
                if let Some(tally) = all.last_mut() {
                    tally.add(event, codec);
                }
            }
            _ => {}
        }
    }
    all
}

/// Whether statistics that stand before an operation were read for it.
fn looks(op: &Op<'_>) -> bool {
    matches!(op, Op::SetRegion(_) | Op::CloseVm)
}

impl Tally {
    fn add<F: Format>(&mut self, event: &Traced<'_>, codec: &Codec<F>) {
        match event {
            Traced::ZapAllFast { .. } => self.fast_zaps += 1,
            Traced::PrepareZapPage { .. } => self.tables_zapped += 1,
            Traced::SpteRequested { .. } => self.faults += 1,
            Traced::PageFault { .. } => self.exits += 1,
            Traced::SpteChanged {
                gfn,
                level,
                old,
                new,
                ..
            } => {
                let is_leaf = |raw: u64| is_leaf(codec, raw, *level);
                match (is_leaf(*old), is_leaf(*new)) {
                    (true, false) => self.zap(*gfn),
                    (false, true) => self.leaves_made += 1,
                    _ => {}
                }
            }
            _ => {}
        }
    }

    fn zap(&mut self, gfn: Gfn) {
        self.leaves_zapped += 1;
        let (low, high) = self.zapped.unwrap_or((gfn, gfn));
        self.zapped = Some((low.min(gfn), high.max(gfn)));
    }
}

/// What is not zero.
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = [
            (self.fast_zaps, "invalidations of all roots"),
            (self.tables_zapped, "tables zapped"),
            (self.leaves_zapped, "leaves zapped"),
            (self.exits, "exits for faults"),
            (self.faults, "faults with a page"),
            (self.leaves_made, "leaves made"),
        ];
        let mut some = counts.iter().filter(|(count, _)| *count > 0);
        let Some((count, what)) = some.next() else {
            return f.write_str("nothing");
        };
        write!(f, "{what} {count}")?;
        some.try_for_each(|(count, what)| write!(f, ", {what} {count}"))
    }
}

fn is_leaf<F: Format>(codec: &Codec<F>, raw: u64, level: Level) -> bool {
    matches!(codec.decode(Spte::from_raw(raw), level), Entry::Leaf(_))
}

//! The prediction that a perfect model would make of a recording.

use std::collections::BTreeMap;

use slat_memslot::Level;
use slat_mmu::role::{PageRole, RoleLayout};
use slat_mmu::spte::{Npt, Spte, bits};

use crate::traces::compare::Predicted;
use crate::traces::compare::event::frame;
use crate::traces::{Item, Note, Probe, Ret, Traced, What};

/// Makes the prediction that a perfect model would make of a recording, with its own numbers for tables.
#[derive(Default)]
pub(super) struct Perfect {
    numbers: BTreeMap<u64, u64>,
    made: u64,
}

impl Perfect {
    /// The same entry with a table's number.
    fn renamed(&mut self, raw: u64, level: Level) -> u64 {
        if !Spte::<Npt>::from_raw(raw).is_link(level) {
            return raw;
        }
        let made = &mut self.made;
        let number = *self.numbers.entry(frame(raw)).or_insert_with(|| {
            *made += 1;
            *made
        });
        raw & !bits::ADDRESS | number << 12
    }

    fn changed(&mut self, event: &Traced<'_>) -> Option<Predicted> {
        let Traced::SpteChanged {
            as_id,
            gfn,
            level,
            old,
            new,
        } = *event
        else {
            return None;
        };
        let predicted = Predicted::SpteChanged {
            as_id,
            gfn,
            level,
            old: self.renamed(old, level),
            new: self.renamed(new, level),
        };
        // The number is never used again, though the frame may be.
        if Spte::<Npt>::from_raw(old).is_link(level) && old != new {
            self.numbers.remove(&frame(old));
        }
        Some(predicted)
    }

    fn event(&mut self, event: &Traced<'_>, word: Option<u32>) -> Option<Predicted> {
        Some(match *event {
            Traced::GetPage { page, .. } => Predicted::PageAllocated {
                gfn: page.gfn,
                role: PageRole::from_word(RoleLayout::Baseline, word?).expect("a role"),
            },
            Traced::PrepareZapPage { page } => Predicted::PageZapped {
                gfn: page.gfn,
                role: page.role,
            },
            Traced::SetSpte {
                gfn,
                spte,
                level,
                at,
                ..
            } => Predicted::SpteSet {
                gfn,
                level,
                spte,
                table: self.numbers.get(&(at >> 12)).copied(),
            },
            Traced::SpteRequested { gfn, pfn, level } => {
                Predicted::SpteRequested { gfn, pfn, level }
            }
            Traced::FastPageFault {
                vcpu,
                gva,
                old,
                new,
                spurious,
                fixed,
                ..
            } => Predicted::FastPageFault {
                vcpu,
                gva,
                old,
                new,
                spurious,
                fixed,
            },
            Traced::MarkMmio {
                gfn,
                access,
                generation,
            } => Predicted::MmioMarked {
                gfn,
                access,
                generation,
            },
            Traced::CheckMmio {
                spte,
                current,
                generation,
                valid,
            } => Predicted::MmioChecked {
                spte,
                current,
                generation,
                valid,
            },
            Traced::SplitHugePage {
                gfn,
                spte,
                level,
                errno,
            } => Predicted::HugePageSplit {
                gfn,
                spte,
                level,
                errno,
            },
            Traced::ZapAllFast { .. } => Predicted::ZapAllFast,
            Traced::SetAccessedBit { gpa } => Predicted::AccessedBitSet { gpa },
            Traced::SetDirtyBit { gpa } => Predicted::DirtyBitSet { gpa },
            _ => return self.changed(event),
        })
    }

    pub(super) fn of(items: &[Item<'_>]) -> Vec<Predicted> {
        Self::default().predict(items)
    }

    pub(super) fn predict(&mut self, items: &[Item<'_>]) -> Vec<Predicted> {
        let mut predicted = Vec::new();
        for (at, item) in items.iter().enumerate() {
            let word = match items.get(at + 1).map(|next| &next.what) {
                Some(What::Probe(Probe::SpRole { role, .. })) => Some(*role),
                _ => None,
            };
            predicted.extend(match &item.what {
                What::Event(event) => self.event(event, word),
                What::Ret(Ret::Value(value)) => Some(Predicted::Returned(Ok(Some(*value)))),
                What::Ret(Ret::Failed(errno)) => Some(Predicted::Returned(Err(*errno))),
                What::Note(Note::Exit(exit)) => Some(Predicted::Exit(*exit)),
                What::Note(Note::RunFailed { errno, .. }) => {
                    Some(Predicted::RunFailed { errno: *errno })
                }
                What::Note(Note::Dirty { count, first }) => {
                    let more = (first.len() as u64..*count).map(|_| u64::MAX);
                    Some(Predicted::Dirty(
                        first.iter().copied().chain(more).collect(),
                    ))
                }
                What::Note(Note::PreFaultLeft { gfn, pages }) => Some(Predicted::PreFaultLeft {
                    gfn: *gfn,
                    pages: *pages,
                }),
                What::Note(Note::Idle(idle)) => Some(Predicted::Idle(*idle)),
                What::Note(Note::Leaves(leaves)) => Some(Predicted::Leaves(*leaves)),
                _ => None,
            });
        }
        predicted
    }
}

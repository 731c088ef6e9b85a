//! The marks that a walk leaves in the entries on its way.

use slat_memslot::{Gpa, Level};

use super::{Walk, level_of};
use crate::walk::ErrorCode;
use crate::walk::fault::WalkFault;
use crate::walk::format::GuestFormat;
use crate::walk::log::{Mark, WalkObserver};
use crate::walk::memory::{Exchange, TableMemory};
use crate::walk::stage::Stage;

/// The entries on the way, by level from 0, for those that have to be marked.
pub(in crate::walk) struct Trail<A> {
    pub(super) entries: [u64; 5],
    /// Where they are, as the guest counts and where the memory is.
    pub(super) places: [(Gpa, A); 5],
}

impl<A: Copy + Default> Trail<A> {
    #[inline]
    pub(in crate::walk) fn new() -> Self {
        Self {
            entries: [0; 5],
            places: [(Gpa::new(0), A::default()); 5],
        }
    }
}

/// What became of the marks.
pub(super) enum Marked {
    /// All entries have them, or need none; this is the leaf.
    Done { leaf: u64 },
    /// An entry has changed meanwhile.
    Restart,
    /// The memory is gone.
    Failed { level: Level },
}

impl<M, S, O> Walk<'_, M, S, O>
where
    M: TableMemory<S::Address> + ?Sized,
    S: Stage,
    O: WalkObserver,
{
    /// Marks the entries on the way as accessed and, for a write, the leaf as dirty: from the top down.
    #[cold]
    pub(super) fn mark<F: GuestFormat>(
        &mut self,
        top: u8,
        leaf: u8,
        trail: &mut Trail<S::Address>,
    ) -> Result<Marked, WalkFault<S::Fault>> {
        for number in (leaf..=top).rev() {
            let old = trail.entries[usize::from(number)];
            let mut new = old | F::ACCESSED;
            if number == leaf && self.access.contains(ErrorCode::WRITE) {
                new |= F::DIRTY;
            }
            if new == old {
                continue;
            }
            let (place, real) = trail.places[usize::from(number)];
            let allowed = self.stage.before_mark(place);
            allowed.map_err(|fault| WalkFault::Second {
                fault,
                gpa: place,
                table: Some(level_of(number)),
            })?;
            let mut mark = Mark {
                level: level_of(number),
                place,
                old,
                new,
                written: false,
            };
            mark.written = match F::exchange(self.memory, real, old, new) {
                Exchange::Done => true,
                Exchange::ReadOnly => false,
                Exchange::Changed => {
                    self.observer.changed(&mark);
                    return Ok(Marked::Restart);
                }
                Exchange::Failed => {
                    return Ok(Marked::Failed {
                        level: level_of(number),
                    });
                }
            };
            self.observer.mark(&mark);
            if mark.written {
                trail.entries[usize::from(number)] = new;
            }
        }
        Ok(Marked::Done {
            leaf: trail.entries[usize::from(leaf)],
        })
    }
}

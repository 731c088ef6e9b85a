//! A prediction held against a recording.
//!
//! Two sequences are the same if they have the same events in the same order, and the same values in them, up to
//!
//! - page tables: their addresses are the kernel's choice, so that they are compared up to a one-to-one [`Renaming`];
//! - accessed and dirty bits, which hardware sets without an event: an `old` value may have more of them than predicted,
//!   if the predicted entry is one in which hardware sets them, and a `new` value may keep those. They are reported, for
//!   the model to adopt ([`Agreement::adopted`]).
//!
//! A leaf's page, an MMIO entry, and the empty and the frozen value are compared bit for bit.

mod difference;
mod event;
mod predicted;
mod renaming;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

use slat_memslot::{Gfn, Level, PAGE_SHIFT};
use slat_mmu::role::{PageRole, RoleLayout};
use slat_mmu::spte::{Codec, Format};

use super::{Item, Note, Probe, Ret, Traced, What};
pub use difference::{Adopted, Agreement, Difference, Mismatch};
pub use predicted::{Kind, Kinds, Predicted};
pub use renaming::Renaming;

/// How many events a [`Difference`] shows before the one that differs.
const SHOWN_BEFORE: usize = 5;

/// Compares predictions with recordings, all at once or an operation at a time.
///
/// ```
/// use slat_memslot::{AsId, Gfn, Level};
/// use slat_mmu::host::Host;
/// use slat_mmu::spte::{Codec, Npt};
/// use slat_vmm::traces::{Comparer, Predicted, Recording};
///
/// let text = "RET 0
///   kvm_tdp_mmu_spte_changed: as id 0 gfn 0 level 2 old_spte 8000000000000000 new_spte 142a77827
///   kvm_tdp_mmu_spte_changed: as id 0 gfn 0 level 2 old_spte 142a77827 new_spte 8000000000000000
/// ";
/// let recording = Recording::parse(text)?;
/// // The model's table has number 7.
/// let change = |old, new| {
///     Predicted::SpteChanged { as_id: AsId::NORMAL, gfn: Gfn::new(0), level: Level::L2, old, new }
/// };
/// let predicted = [Predicted::Returned(Ok(None)), change(1 << 63, 0x7827), change(0x7827, 1 << 63)];
/// let codec = Codec::<Npt>::new(&Host::npt(40));
/// let agreement = Comparer::new(codec).compare(&predicted, &recording.items)?;
/// assert_eq!(agreement.compared, 3);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Comparer<F> {
    codec: Codec<F>,
    kinds: Kinds,
    roles: RoleLayout,
    renaming: Renaming,
    /// Accessed and dirty bits that recorded leaves have and predicted ones have not.
    ahead: BTreeMap<(Gfn, Level), u64>,
    /// The same of the last entry that gave way to a link: a split reports it again.
    replaced: Option<((Gfn, Level), u64)>,
    /// The page that was compared last, its role, whose word may follow, and whether it was made.
    allocated: Option<(Gfn, PageRole, bool)>,
    operation: Option<(u32, String)>,
    before: VecDeque<(u32, String)>,
    /// The line that was compared last.
    line: u32,
}

/// What one comparison of entries found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Taken {
    /// Accessed and dirty bits of the recorded entry that the predicted one has not.
    bits: u64,
}

type Compared<T = ()> = Result<T, Mismatch>;

/// `Ok` if the two are the same.
fn same<T: PartialEq>(field: &'static str, predicted: &T, recorded: &T) -> Compared {
    if predicted == recorded {
        Ok(())
    } else {
        Err(Mismatch::Field(field))
    }
}

impl<F: Format> Comparer<F> {
    /// Compares everything, for a host with this codec and the role words of 6.12.
    pub fn new(codec: Codec<F>) -> Self {
        Self {
            codec,
            kinds: Kinds::ALL,
            roles: RoleLayout::Baseline,
            renaming: Renaming::default(),
            ahead: BTreeMap::new(),
            replaced: None,
            allocated: None,
            operation: None,
            before: VecDeque::new(),
            line: 0,
        }
    }

    /// Compares these kinds only: others are passed over on both sides.
    #[must_use]
    pub fn with_kinds(self, kinds: Kinds) -> Self {
        Self { kinds, ..self }
    }

    /// Takes role words to be of this layout.
    #[must_use]
    pub fn with_roles(self, roles: RoleLayout) -> Self {
        Self { roles, ..self }
    }

    /// The tables that are known now.
    pub fn renaming(&self) -> &Renaming {
        &self.renaming
    }

    /// Compares `predicted` with the events and results in `recorded`.
    ///
    /// Tables and bits are remembered: the parts of a recording may be compared one after the other, cut before an
    /// operation.
    ///
    /// Of a truncated recording the prediction has to be cut as well.
    ///
    /// # Errors
    /// The first difference. The comparer is of no use after it.
    #[expect(clippy::result_large_err, reason = "it happens once, and is printed")]
    pub fn compare(
        &mut self,
        predicted: &[Predicted],
        recorded: &[Item<'_>],
    ) -> Result<Agreement, Difference> {
        let kinds = self.kinds;
        let mut agreement = Agreement::default();
        let mut next = predicted.iter().filter(|one| kinds.contains(one.kind()));
        for item in recorded {
            if let What::Op(_) = item.what {
                self.operation = Some((item.line, item.text.to_owned()));
            }
            if !Kind::of(&item.what).is_some_and(|kind| kinds.contains(kind)) {
                continue;
            }
            let word = self.role_word(&item.what);
            let compared = match word {
                Some(compared) => (None, compared.map(|()| 0)),
                None => match next.next() {
                    Some(one) => (Some(one), self.pair(one, item, &mut agreement).map(|()| 1)),
                    None => (None, Err(Mismatch::PredictionEnds)),
                },
            };
            match compared {
                (_, Ok(count)) => agreement.compared += count,
                (one, Err(mismatch)) => return Err(self.difference(Some(item), one, mismatch)),
            }
            self.agreed(item);
        }
        match next.next() {
            Some(one) => Err(self.difference(None, Some(one), Mismatch::RecordingEnds)),
            None => Ok(agreement),
        }
    }

    fn agreed(&mut self, item: &Item<'_>) {
        if self.before.len() == SHOWN_BEFORE {
            self.before.pop_front();
        }
        self.line = item.line;
        self.before.push_back((item.line, item.text.to_owned()));
    }

    fn difference(
        &self,
        item: Option<&Item<'_>>,
        predicted: Option<&Predicted>,
        mismatch: Mismatch,
    ) -> Difference {
        let of_word = match (item.map(|item| &item.what), self.allocated) {
            (Some(What::Probe(Probe::SpRole { .. })), Some((gfn, role, created))) => {
                let created = u8::from(created);
                let word = role.word(self.roles);
                Some(format!(
                    "  fn sp_role: gfn={gfn:#x} role={word:#x} created={created}"
                ))
            }
            _ => None,
        };
        Difference {
            line: item.map_or(self.line, |item| item.line),
            operation: self.operation.clone(),
            recorded: item.map(|item| item.text.to_owned()),
            predicted: predicted.map(Predicted::to_string).or(of_word),
            mismatch,
            before: self.before.iter().cloned().collect(),
            renaming: self.renaming.clone(),
        }
    }

    /// Compares the role word behind an allocation; `None` for all other lines.
    fn role_word(&mut self, what: &What<'_>) -> Option<Compared> {
        let What::Probe(Probe::SpRole { gfn, role, created }) = what else {
            self.allocated = None;
            return None;
        };
        let Some((predicted, page, made)) = self.allocated else {
            return Some(Err(Mismatch::Kind));
        };
        let compared = same("gfn", &predicted, gfn)
            .and_then(|()| same("role word", &page.word(self.roles), role))
            .and_then(|()| same("created", &made, created));
        Some(compared)
    }

    fn pair(
        &mut self,
        predicted: &Predicted,
        item: &Item<'_>,
        agreement: &mut Agreement,
    ) -> Compared {
        match &item.what {
            What::Event(event) => {
                let taken = self.event(predicted, event)?;
                if let Some((gfn, level)) = place(event).filter(|_| taken.bits != 0) {
                    let (line, bits) = (item.line, taken.bits);
                    agreement.adopted.push(Adopted {
                        line,
                        gfn,
                        level,
                        bits,
                    });
                }
                Ok(())
            }
            What::Ret(ret) => returned(predicted, *ret),
            What::Note(note) => noted(predicted, note),
            What::Op(_) | What::Probe(_) => Err(Mismatch::Kind),
        }
    }
}

/// Where an event's entry is.
fn place(event: &Traced<'_>) -> Option<(Gfn, Option<Level>)> {
    match event {
        Traced::SpteChanged { gfn, level, .. } | Traced::SplitHugePage { gfn, level, .. } => {
            Some((*gfn, Some(*level)))
        }
        Traced::FastPageFault { gva, .. } => Some((Gfn::new(gva >> PAGE_SHIFT), None)),
        _ => None,
    }
}

fn returned(predicted: &Predicted, recorded: Ret) -> Compared {
    match (predicted, recorded) {
        (Predicted::Returned(Ok(Some(predicted))), Ret::Value(recorded)) => {
            same("result", predicted, &recorded)
        }
        (Predicted::Returned(Ok(None)), Ret::Value(_)) => Ok(()),
        (Predicted::Returned(Err(predicted)), Ret::Failed(recorded)) => {
            same("error", predicted, &recorded)
        }
        (Predicted::Returned(_), _) => Err(Mismatch::Field("result")),
        _ => Err(Mismatch::Kind),
    }
}

fn noted(predicted: &Predicted, recorded: &Note<'_>) -> Compared {
    match (predicted, recorded) {
        (Predicted::Exit(predicted), Note::Exit(recorded)) => same("exit", predicted, recorded),
        (
            Predicted::RunFailed { errno },
            Note::RunFailed {
                errno: recorded, ..
            },
        ) => same("error", errno, recorded),
        (Predicted::Dirty(pages), Note::Dirty { count, first }) => {
            same("number of dirty pages", &(pages.len() as u64), count)?;
            let begin = pages.get(..first.len()).unwrap_or(pages);
            same("dirty page", &begin, &first.as_slice())
        }
        (Predicted::Ring(predicted), Note::Ring(recorded)) => {
            same("entries of the ring", predicted, recorded)
        }
        (
            Predicted::PreFaultLeft { gfn, pages },
            Note::PreFaultLeft {
                gfn: recorded_gfn,
                pages: recorded_pages,
            },
        ) => {
            same("gfn", gfn, recorded_gfn)?;
            same("number of pages", pages, recorded_pages)
        }
        (Predicted::Idle(predicted), Note::Idle(recorded)) => same("idle", predicted, recorded),
        (Predicted::Leaves(predicted), Note::Leaves(recorded)) => {
            same("pages", predicted, recorded)
        }
        _ => Err(Mismatch::Kind),
    }
}

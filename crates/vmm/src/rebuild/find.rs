//! Which table an event is about: it tells the frame, the level and the address space, but not the root.

use slat_memslot::{AsId, Level, PageSize};
use slat_mmu::spte::{Access, Format, NxHugePages, Spte, TableRole};

use super::table::{Standing, State, TableNo, VmNo, index_of};
use super::world::World;

/// What an event says about an entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Told {
    pub(super) thread: u32,
    /// `None` where the event leaves it out.
    pub(super) as_id: Option<AsId>,
    pub(super) gfn: u64,
    pub(super) level: Level,
    pub(super) old: u64,
    /// Whether the entry is taken apart with its table.
    pub(super) freezes: bool,
}

/// How an old entry fits the rebuilt one; the best comes last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fit {
    /// It is another.
    Differs,
    /// Events were lost since that was known.
    Doubtful,
    /// Nothing was known.
    Unknown,
    /// It has execution back that only its size forbade when it was split.
    Regained,
    /// Hardware has set accessed or dirty.
    Marked,
    /// It is the same.
    Same,
}

impl Fit {
    /// Whether nothing has to be learned.
    pub(super) const fn agrees(self) -> bool {
        matches!(self, Self::Same | Self::Marked | Self::Regained)
    }
}

/// What speaks for a table, the most telling first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    present_and_agrees: bool,
    not_of_another_vm: bool,
    own_vm: bool,
    fit: Fit,
    linked_last: bool,
    /// The root is valid, and the one that the thread was at last. Nothing new comes into an invalid one; but what goes
    /// goes where the thread was.
    root: (bool, bool),
    as_id: bool,
    newest: u32,
}

/// The table that was chosen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice {
    pub(super) table: TableNo,
    pub(super) index: usize,
    pub(super) fit: Fit,
    /// Whether another fits as well.
    pub(super) ambiguous: bool,
    pub(super) vm: VmNo,
}

impl<F: Format> World<F> {
    /// The table that an event is about.
    pub(super) fn find(&self, told: &Told) -> Option<Choice> {
        let vm = self.vm_of(told.thread);
        let thread = self.threads.get(&told.thread);
        let in_use = thread.and_then(|thread| thread.root);
        let linked = thread.and_then(|thread| thread.linked);
        let mut best: Option<(Rank, Choice)> = None;
        for &no in self.at(told.level, told.gfn) {
            let Some(table) = self.table(no) else {
                continue;
            };
            let removed = table.standing == Standing::Removed;
            let as_id = told.as_id.is_none() || table.as_id.is_none() || table.as_id == told.as_id;
            if removed != told.freezes || !as_id {
                continue;
            }
            let index = index_of(told.gfn, told.level);
            let fit = self.fit(no, index, told.old);
            let of = self.resolve(table.vm);
            let root = self.root_of(no);
            let valid = root.and_then(|no| self.table(no));
            let valid = valid.is_some_and(|root| root.is_valid_root());
            let at_last = in_use.is_some() && in_use == root;
            let empty = self.is_empty_value(told.old);
            let rank = Rank {
                present_and_agrees: fit.agrees() && !empty,
                not_of_another_vm: vm.is_none_or(|vm| vm == of),
                own_vm: vm == Some(of),
                fit,
                linked_last: linked == Some(no),
                root: if empty {
                    (valid, at_last)
                } else {
                    (at_last, valid)
                },
                as_id: table.as_id.is_some(),
                newest: table.since,
            };
            let same_rank = |other: &Rank| {
                let plain = |rank: Rank| Rank { newest: 0, ..rank };
                plain(*other) == plain(rank)
            };
            let ambiguous = best.as_ref().is_some_and(|(other, _)| same_rank(other));
            let choice = Choice {
                table: no,
                index,
                fit,
                ambiguous,
                vm: of,
            };
            match &mut best {
                Some((other, chosen)) if *other >= rank => chosen.ambiguous |= ambiguous,
                _ => best = Some((rank, choice)),
            }
        }
        best.map(|(_, choice)| choice)
    }

    /// How an old entry fits a rebuilt one.
    pub(super) fn fit(&self, no: TableNo, index: usize, told: u64) -> Fit {
        let Some(table) = self.table(no) else {
            return Fit::Differs;
        };
        let (value, state) = table.get(index);
        let same = match state {
            State::Unknown => return Fit::Unknown,
            State::Linked => {
                let link = self.is_link(told, table.level);
                return if link { Fit::Unknown } else { Fit::Differs };
            }
            State::Doubtful | State::Split | State::Known => self.compare(value, told),
        };
        match same {
            Some(fit) => fit,
            None if state == State::Doubtful => Fit::Doubtful,
            None if state == State::Split && self.regains(value, told) => Fit::Regained,
            None => Fit::Differs,
        }
    }

    /// Whether an entry is what was rebuilt, but for bits that hardware sets.
    pub(super) fn compare(&self, rebuilt: u64, told: u64) -> Option<Fit> {
        if rebuilt == told {
            return Some(Fit::Same);
        }
        let set = told & !rebuilt;
        let only_sets = rebuilt & !told == 0;
        (only_sets && set & !self.hardware_sets(rebuilt) == 0).then_some(Fit::Marked)
    }

    /// The bits that hardware may set in an entry without an event.
    fn hardware_sets(&self, value: u64) -> u64 {
        let spte = Spte::<F>::from_raw(value);
        if !spte.is_present() || self.codec.is_ad_disabled(spte) || !self.codec.host().ad_enabled()
        {
            return 0;
        }
        let dirty = if spte.is_writable() { F::DIRTY } else { 0 };
        F::ACCESSED | dirty
    }

    /// A small leaf may be executable again where the huge one was not (`spte.c:make_small_spte`).
    fn regains(&self, small: u64, told: u64) -> bool {
        let execute = F::EXECUTE | F::NO_EXECUTE;
        self.compare(small & !execute, told & !execute).is_some()
            && self.codec.is_executable(Spte::from_raw(told))
    }

    /// The entries of the table that a huge leaf is split into.
    pub(super) fn split(&self, huge: u64, level: Level) -> Option<Vec<u64>> {
        let size = match level {
            Level::L2 => PageSize::Size4K,
            Level::L3 => PageSize::Size2M,
            Level::L1 | Level::L4 | Level::L5 => return None,
        };
        let child = TableRole {
            size,
            access: Access::all(),
            ad: self.codec.ad_type(Spte::from_raw(huge)),
        };
        let huge = Spte::from_raw(huge);
        let small = |index| self.codec.make_small(huge, &child, index, NxHugePages::Off);
        let small = (0..512).map(|index| small(index).map(Spte::raw));
        small.collect()
    }
}

//! Which host address a slot is at: where recordings do not say, some operations give it away.

use std::collections::BTreeMap;

use slat_memslot::{Gfn, Level, Pages, SlotId, SlotKey};

use crate::tdp_vm::HvaRange;
use crate::traces::{GuestAct, Item, Note, Op, SetRegion, Traced, What};

/// Where the model puts slots, and where the recorded program had them.
#[derive(Clone, Debug, Default)]
pub(super) struct Addresses {
    /// By slot: where it was, and its size in bytes.
    recorded: BTreeMap<SlotKey, (u64, u64)>,
    /// How far behind the begin of a huge page slots are, in bytes, where that is not 0.
    inside: BTreeMap<SlotKey, u64>,
    /// Whether slots are where the recording says.
    said: bool,
}

/// The model's slots are 64 GiB apart, each at the begin of a huge page of any size.
const APART: u64 = 1 << 36;

fn place_of(key: SlotKey) -> u64 {
    let number = u64::from(key.id.raw() & 0x1ff) + (key.as_id.index() as u64) * 0x200;
    (number + 1) * APART
}

pub(super) fn key_of(region: &SetRegion) -> SlotKey {
    SlotKey {
        as_id: region.as_id,
        id: SlotId::new(region.slot),
    }
}

/// A slot, while the recording is read ahead.
#[derive(Clone, Copy)]
struct Seen {
    key: SlotKey,
    gfn: Gfn,
    pages: Pages,
}

impl Seen {
    fn holds(&self, gfn: Gfn) -> bool {
        gfn.raw().wrapping_sub(self.gfn.raw()) < self.pages.raw()
    }
}

impl Addresses {
    /// Those of a recording that says them.
    pub(super) fn as_said() -> Self {
        Self {
            said: true,
            ..Self::default()
        }
    }

    /// Whether the recording says them, and with them everything else that the program can see.
    pub(super) fn are_said(&self) -> bool {
        self.said
    }

    /// Reads a recording ahead.
    pub(super) fn learn(chunks: &[&[Item<'_>]]) -> Self {
        let mut addresses = Self::default();
        let mut slots: Vec<Seen> = Vec::new();
        for (at, chunk) in chunks.iter().enumerate() {
            let Some(What::Op(op)) = chunk.first().map(|item| &item.what) else {
                continue;
            };
            if let Op::SetRegion(region) = op {
                note_slot(&mut slots, region);
            }
            addresses.learn_parts(&slots, chunk);
            let before = chunks.get(..=at).unwrap_or_default();
            if let Some((gfn, hva)) = named_address(op, chunk, before) {
                addresses.set(&slots, gfn, hva);
            }
        }
        addresses.learn_forks(chunks);
        addresses
    }

    /// Where the model puts a slot that is set.
    pub(super) fn address_for(&self, region: &SetRegion) -> u64 {
        match region.hva {
            Some(hva) => hva.raw(),
            None => self.address_of(key_of(region)),
        }
    }

    fn address_of(&self, key: SlotKey) -> u64 {
        place_of(key) + self.inside.get(&key).copied().unwrap_or(0)
    }

    /// A slot that begins inside a huge page and has one all the same is as far inside in the host.
    fn learn_parts(&mut self, slots: &[Seen], chunk: &[Item<'_>]) {
        for item in chunk {
            let What::Event(Traced::SpteRequested { gfn, level, .. }) = item.what else {
                continue;
            };
            let huge = slots
                .iter()
                .filter(|slot| level > Level::L1 && slot.holds(gfn));
            for slot in huge {
                let part = slot.gfn.raw() & (Level::L3.pages().raw() - 1);
                if slot.gfn.raw() % Level::L2.pages().raw() != 0 {
                    self.inside.insert(slot.key, part << 12);
                }
            }
        }
    }

    fn set(&mut self, slots: &[Seen], gfn: Gfn, hva: u64) {
        for slot in slots.iter().filter(|slot| slot.holds(gfn)) {
            let part = (gfn.raw() - slot.gfn.raw()) << 12;
            let place = (hva.wrapping_sub(part), slot.pages.raw() << 12);
            // The normal address space comes first, and an address is one slot's.
            let known = self.recorded.values().any(|other| *other == place);
            if !known {
                self.recorded.entry(slot.key).or_insert(place);
            }
        }
    }

    /// A fork names all memory by its size.
    fn learn_forks(&mut self, chunks: &[&[Item<'_>]]) {
        let mut slots: Vec<Seen> = Vec::new();
        for chunk in chunks {
            match chunk.first().map(|item| &item.what) {
                Some(What::Op(Op::SetRegion(region))) => note_slot(&mut slots, region),
                Some(What::Op(Op::Fork)) => {
                    for range in unmapped(chunk) {
                        let bytes = range.end - range.start;
                        let fits = |slot: &&Seen| {
                            slot.pages.raw() << 12 == bytes
                                && !self.recorded.contains_key(&slot.key)
                                && self.to_model(&range).is_empty()
                        };
                        let slot = slots.iter().find(fits).map(|slot| slot.key);
                        if let Some(key) = slot {
                            self.recorded.insert(key, (range.start, bytes));
                        }
                    }
                }
                _ => {}
            }
        }
    }

    /// The model's addresses of recorded ones; what belongs to no slot has none.
    pub(super) fn to_model(&self, range: &HvaRange) -> Vec<HvaRange> {
        if self.said {
            return vec![range.clone()];
        }
        let places = self.recorded.iter();
        let parts = places.filter_map(|(key, (start, bytes))| {
            let from = range.start.max(*start);
            let to = range.end.min(start.saturating_add(*bytes));
            let base = self.address_of(*key);
            (from < to).then(|| base + (from - start)..base + (to - start))
        });
        parts.collect()
    }
}

fn note_slot(slots: &mut Vec<Seen>, region: &SetRegion) {
    let key = key_of(region);
    if region.pages.raw() > 0 {
        slots.retain(|slot| slot.key != key);
        slots.push(Seen {
            key,
            gfn: region.gfn,
            pages: region.pages,
        });
    }
}

/// The ranges that a part of a recording unmaps.
pub(super) fn unmapped(chunk: &[Item<'_>]) -> impl Iterator<Item = HvaRange> {
    chunk.iter().filter_map(|item| match item.what {
        What::Event(Traced::UnmapHvaRange { start, end }) if start < end => Some(start..end),
        _ => None,
    })
}

/// A frame and its host address, where an operation with its notifications gives both away.
fn named_address(op: &Op<'_>, chunk: &[Item<'_>], before: &[&[Item<'_>]]) -> Option<(Gfn, u64)> {
    match op {
        Op::Madvise { gfn, .. } => Some((*gfn, unmapped(chunk).next()?.start)),
        Op::Mprotect {
            range: Some((gfn, _)),
            ..
        } => Some((*gfn, unmapped(chunk).next()?.start)),
        Op::Guest {
            act: GuestAct::Write(gpa),
            ..
        } => {
            let copy = unmapped(until_exit(chunk)).find(|range| range.end - range.start == 0x1000);
            Some((gpa.gfn(), copy?.start))
        }
        Op::MarkIdle { pfn } => {
            let aged = chunk.iter().find_map(|item| match item.what {
                What::Event(Traced::AgeHva { start, .. }) => Some(start),
                _ => None,
            });
            Some((frame_of(*pfn, before)?, aged?))
        }
        _ => None,
    }
}

/// What happens before the guest stops for good; what follows is the recorded program's own.
pub(super) fn until_exit<'c, 'a>(chunk: &'c [Item<'a>]) -> &'c [Item<'a>] {
    let is_exit = |item: &Item<'_>| matches!(item.what, What::Note(Note::Exit(_)));
    let exit = chunk.iter().rposition(is_exit).unwrap_or(chunk.len());
    chunk.split_at(exit).0
}

/// The frame that was last seen to have a page.
fn frame_of(pfn: u64, before: &[&[Item<'_>]]) -> Option<Gfn> {
    let items = before.iter().rev().flat_map(|chunk| chunk.iter().rev());
    let mut pages = items.filter_map(|item| match item.what {
        What::Note(Note::Backing { gfn, pfn, .. }) => Some((gfn, pfn)),
        What::Event(Traced::SpteRequested { gfn, pfn, .. }) => Some((gfn, pfn)),
        _ => None,
    });
    pages.find(|(_, of)| *of == pfn).map(|(gfn, _)| gfn)
}

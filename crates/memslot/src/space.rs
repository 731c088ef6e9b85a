//! The slots of one address space, found by id, by guest frame and by host address.

use crate::ordered::{Entry, Ordered};
use crate::{AsId, Generation, Gfn, GfnRange, Hva, Slot, SlotId};

/// Index of a slot in the arena of its address space.
pub(crate) type SlotIndex = u32;

/// The slots of one address space (`struct kvm_memslots`).
///
/// Slots never share a guest frame; host ranges may alias. All three ways to find a slot cost a binary search or
/// less, whatever the number of slots.
#[derive(Clone, Debug)]
pub struct AddressSpace {
    as_id: AsId,
    pub(crate) generation: Generation,
    /// Live slots, and at the indices in `free` what the last deletion left there, which no index leads to.
    slots: Vec<Slot>,
    free: Vec<SlotIndex>,
    /// Index + 1 by slot id, 0 where the id is free; grows to the largest id in use.
    by_id: Vec<SlotIndex>,
    by_gfn: Ordered,
    /// Of slots at the same address the one that was set last comes last, as in KVM's interval tree.
    by_hva: Ordered,
    /// When each slot was set, by index.
    set_at: Vec<u32>,
    /// How often a slot was set.
    sets: u32,
}

impl AddressSpace {
    pub(crate) fn new(as_id: AsId) -> Self {
        Self {
            as_id,
            generation: Generation::initial(as_id),
            slots: Vec::new(),
            free: Vec::new(),
            by_id: Vec::new(),
            by_gfn: Ordered::new(),
            by_hva: Ordered::new(),
            set_at: Vec::new(),
            sets: 0,
        }
    }

    /// Which address space this is.
    pub fn as_id(&self) -> AsId {
        self.as_id
    }

    /// The generation of its slots.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// How many slots there are.
    pub fn len(&self) -> usize {
        self.by_gfn.len()
    }

    /// Whether there is no slot.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The slots by ascending guest frame.
    pub fn iter(&self) -> impl Iterator<Item = &Slot> + '_ {
        self.by_gfn.iter().filter_map(|entry| self.at(entry.value))
    }

    /// The slot that holds the highest frames.
    pub fn last(&self) -> Option<&Slot> {
        self.by_gfn
            .predecessor(u64::MAX)
            .and_then(|entry| self.at(entry.value))
    }

    /// The slot with this id (`id_to_memslot`).
    #[inline]
    pub fn by_id(&self, id: SlotId) -> Option<&Slot> {
        self.index_of(id).and_then(|index| self.at(index))
    }

    /// The slot that holds a guest frame (`gfn_to_memslot`).
    #[inline]
    pub fn by_gfn(&self, gfn: Gfn) -> Option<&Slot> {
        let entry = self.by_gfn.predecessor(gfn.raw())?;
        // Written so that no branch depends on hit or miss, which nothing predicts.
        self.at(entry.value).filter(|_| gfn.raw() < entry.end)
    }

    /// The slots that hold a frame of `range`, by ascending frame (`kvm_for_each_memslot_in_gfn_range`).
    pub fn in_range(&self, range: GfnRange) -> impl Iterator<Item = &Slot> + '_ {
        self.by_gfn
            .overlapping(range.start().raw(), range.end().raw())
            .filter_map(|entry| self.at(entry.value))
    }

    /// The slots that map a byte of `[start, end)` of host addresses, with the frames that do
    /// (`kvm_for_each_memslot_in_hva_range`), by ascending address, and of slots at the same address the one that was set
    /// last comes last. One host page may be in several slots.
    pub fn by_hva(&self, start: Hva, end: Hva) -> impl Iterator<Item = (&Slot, GfnRange)> + '_ {
        self.by_hva
            .overlapping(start.raw(), end.raw())
            .filter_map(|entry| self.at(entry.value))
            .filter_map(move |slot| Some((slot, frames_in(slot, start, end)?)))
    }

    /// The lowest slot other than `except` that shares a frame with `range`.
    #[inline]
    pub(crate) fn overlap(&self, range: GfnRange, except: Option<SlotIndex>) -> Option<&Slot> {
        let (start, end) = (range.start().raw(), range.end().raw());
        let entry = self.by_gfn.disjoint_overlap(start, end, except)?;
        self.at(entry.value)
    }

    #[inline]
    pub(crate) fn index_of(&self, id: SlotId) -> Option<SlotIndex> {
        self.by_id
            .get(usize::from(id.raw()))
            .copied()?
            .checked_sub(1)
    }

    #[inline]
    fn at(&self, index: SlotIndex) -> Option<&Slot> {
        self.slots.get(index as usize)
    }

    pub(crate) fn by_id_mut(&mut self, id: SlotId) -> Option<&mut Slot> {
        let index = self.index_of(id)?;
        self.slots.get_mut(index as usize)
    }

    pub(crate) fn by_gfn_mut(&mut self, gfn: Gfn) -> Option<&mut Slot> {
        let entry = self.by_gfn.predecessor(gfn.raw())?;
        if gfn.raw() >= entry.end {
            return None;
        }
        self.slots.get_mut(entry.value as usize)
    }

    /// Adds a slot whose id is free and whose frames are free.
    pub(crate) fn insert(&mut self, slot: Slot) {
        let (range, id) = (slot.range(), usize::from(slot.key.id.raw()));
        let index = match self.free.pop() {
            Some(index) => {
                self.slots[index as usize] = slot;
                index
            }
            None => {
                self.slots.push(slot);
                self.set_at.push(0);
                u32::try_from(self.slots.len() - 1).expect("there are fewer than 2^16 slots")
            }
        };
        if self.by_id.len() <= id {
            self.by_id.resize(id + 1, 0);
        }
        self.by_id[id] = index + 1;
        self.by_gfn.insert(Entry {
            start: range.start().raw(),
            end: range.end().raw(),
            order: index,
            value: index,
        });
        self.list_by_hva(index);
    }

    /// Lists a slot behind those that were set before.
    fn list_by_hva(&mut self, index: SlotIndex) {
        let (start, end) = self.slots[index as usize].hva_range();
        self.sets = self.sets.wrapping_add(1);
        self.set_at[index as usize] = self.sets;
        self.by_hva.insert(Entry {
            start,
            end,
            order: self.sets,
            value: index,
        });
    }

    /// A slot was set anew without moving (`kvm_replace_memslot`).
    pub(crate) fn set_anew(&mut self, id: SlotId) {
        if let Some(index) = self.index_of(id) {
            self.unlist_by_hva(index);
            self.list_by_hva(index);
        }
    }

    fn unlist_by_hva(&mut self, index: SlotIndex) {
        let (start, _) = self.slots[index as usize].hva_range();
        self.by_hva.remove(start, self.set_at[index as usize]);
    }

    /// Takes a slot out.
    pub(crate) fn remove(&mut self, id: SlotId) -> Option<Slot> {
        let index = self.index_of(id)?;
        self.unlist_by_hva(index);
        let slot = self.slots.get_mut(index as usize)?.take();
        self.by_id[usize::from(id.raw())] = 0;
        self.by_gfn.remove(slot.range().start().raw(), index);
        self.free.push(index);
        Some(slot)
    }
}

/// The frames of `slot` that some byte of `[start, end)` backs.
fn frames_in(slot: &Slot, start: Hva, end: Hva) -> Option<GfnRange> {
    let (first, last) = slot.hva_range();
    let from = start.raw().max(first) - first;
    let to = end.raw().min(last).checked_sub(first)?;
    let base = slot.range().start().raw();
    let begin = base + (from >> crate::PAGE_SHIFT);
    GfnRange::between(
        Gfn::new(begin),
        Gfn::new(base + to.div_ceil(crate::PAGE_SIZE)),
    )
}

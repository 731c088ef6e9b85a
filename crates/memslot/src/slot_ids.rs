//! Slot ids for a VMM: the lowest free one, used again after it is given back.
//!
//! KVM takes any id below `KVM_CAP_NR_MEMSLOTS` and leaves the choice to userspace. A counter that only goes up runs
//! out after enough hotplug; this allocator does not, and never hands out an id that KVM would refuse
//! (`kvm_main.c:kvm_vm_ioctl_set_memory_region`).

use crate::{SlotId, USER_SLOTS};

/// Hands out slot ids of one address space.
///
/// ```
/// use slat_memslot::{SlotId, SlotIdAllocator};
/// let mut ids = SlotIdAllocator::new();
/// assert_eq!(ids.allocate(), Some(SlotId::new(0)));
/// assert_eq!(ids.allocate(), Some(SlotId::new(1)));
/// assert!(ids.free(SlotId::new(0)));
/// assert_eq!(ids.allocate(), Some(SlotId::new(0)));
/// ```
#[derive(Clone, Debug)]
pub struct SlotIdAllocator {
    /// One bit per id, set while it is in use. Bits from the limit on are set for good.
    words: Vec<u64>,
    /// No word below this one has a free id.
    hint: usize,
    limit: u16,
    used: u16,
}

impl Default for SlotIdAllocator {
    fn default() -> Self {
        Self::new()
    }
}

/// Word and bit of an id.
fn place(id: SlotId) -> (usize, u64) {
    (usize::from(id.raw() / 64), 1 << (id.raw() % 64))
}

impl SlotIdAllocator {
    /// All of KVM's user slots, free.
    pub fn new() -> Self {
        Self::with_limit(USER_SLOTS)
    }

    /// The ids below `limit`, free: what `KVM_CAP_NR_MEMSLOTS` reported.
    pub fn with_limit(limit: u16) -> Self {
        let mut words = vec![0; usize::from(limit.div_ceil(64))];
        if let (Some(last), 1..) = (words.last_mut(), limit % 64) {
            *last = u64::MAX << (limit % 64);
        }
        Self {
            words,
            hint: 0,
            limit,
            used: 0,
        }
    }

    /// The number of ids, free or not.
    pub const fn limit(&self) -> u16 {
        self.limit
    }

    /// How many ids are in use.
    pub const fn count(&self) -> u16 {
        self.used
    }

    /// Takes the lowest free id; `None` when all are in use.
    pub fn allocate(&mut self) -> Option<SlotId> {
        let tail = self.words.get(self.hint..)?;
        let skipped = tail.iter().position(|word| *word != u64::MAX);
        self.hint = skipped.map_or(self.words.len(), |skipped| self.hint + skipped);
        let bit = self.words.get(self.hint)?.trailing_ones();
        let id = SlotId::new(u16::try_from(self.hint * 64).ok()? + u16::try_from(bit).ok()?);
        self.reserve(id).then_some(id)
    }

    /// Takes this very id, for slots whose ids are given from outside; `false` when it is in use or not below the
    /// limit.
    pub fn reserve(&mut self, id: SlotId) -> bool {
        let free = self.is_free(id);
        if free {
            let (word, bit) = place(id);
            self.words[word] |= bit;
            self.used += 1;
        }
        free
    }

    /// Gives an id back, after KVM has deleted the slot; `false` when it was not in use.
    pub fn free(&mut self, id: SlotId) -> bool {
        let used = id.raw() < self.limit && !self.is_free(id);
        if used {
            let (word, bit) = place(id);
            self.words[word] &= !bit;
            self.hint = self.hint.min(word);
            self.used -= 1;
        }
        used
    }

    /// Whether the id can be reserved; ids from the limit on never are free.
    pub fn is_free(&self, id: SlotId) -> bool {
        let (word, bit) = place(id);
        self.words.get(word).is_some_and(|word| word & bit == 0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_user_slot_once_and_no_more() {
        let mut ids = SlotIdAllocator::new();
        for raw in 0..USER_SLOTS {
            assert_eq!(ids.allocate(), Some(SlotId::new(raw)));
        }
        assert_eq!((ids.allocate(), ids.count()), (None, USER_SLOTS));
        assert!(!ids.reserve(SlotId::TSS) && !ids.free(SlotId::TSS));
        assert!(ids.free(SlotId::new(17)));
        assert_eq!(ids.allocate(), Some(SlotId::new(17)));
        assert_eq!(ids.allocate(), None);
    }

    #[test]
    fn limits_at_word_borders() {
        for limit in [0, 1, 63, 64, 65, 128, u16::MAX] {
            let mut ids = SlotIdAllocator::with_limit(limit);
            assert!(!ids.is_free(SlotId::new(limit)));
            for raw in 0..limit {
                assert_eq!(ids.allocate(), Some(SlotId::new(raw)));
            }
            assert_eq!(ids.allocate(), None);
        }
    }

    #[derive(Clone, Debug)]
    enum Op {
        Allocate,
        Reserve(u16),
        Free(u16),
    }

    fn operation() -> impl Strategy<Value = Op> {
        prop_oneof![
            Just(Op::Allocate),
            (0u16..220).prop_map(Op::Reserve),
            (0u16..220).prop_map(Op::Free),
        ]
    }

    proptest! {
        #[test]
        fn agrees_with_a_set_of_free_ids(
            limit in 0u16..200,
            ops in prop::collection::vec(operation(), 0..300),
        ) {
            let mut ids = SlotIdAllocator::with_limit(limit);
            let mut free: BTreeSet<u16> = (0..limit).collect();
            for op in ops {
                match op {
                    Op::Allocate => {
                        prop_assert_eq!(ids.allocate().map(SlotId::raw), free.pop_first());
                    }
                    Op::Reserve(raw) => {
                        prop_assert_eq!(ids.reserve(SlotId::new(raw)), free.remove(&raw));
                    }
                    Op::Free(raw) => {
                        let given = raw < limit && free.insert(raw);
                        prop_assert_eq!(ids.free(SlotId::new(raw)), given);
                    }
                }
                prop_assert_eq!(usize::from(limit - ids.count()), free.len());
            }
            for raw in 0..u16::MAX {
                prop_assert_eq!(ids.is_free(SlotId::new(raw)), free.contains(&raw));
            }
        }
    }
}

//! Model and reference, side by side.

use std::collections::BTreeSet;

use slat_memslot::{
    AsId, Call, CallResult, Change, Gfn, GmemId, Gpa, Hva, Memory, Profile, Repair, SlotId, VmType,
};

use super::generate::{Op, decode};
use super::{LOG, OP_BYTES, PAGE, Reference};

pub(super) fn run(bytes: &[u8]) -> BTreeSet<&'static str> {
    let (kernel, bytes) = bytes.split_first().unwrap_or((&0, &[]));
    let mut pair = Pair::new(kernel & 1 != 0);
    let mut met = BTreeSet::new();
    for (at, op) in bytes.chunks(OP_BYTES).enumerate() {
        match decode(op, &pair.reference) {
            Op::TogglePageTrack => pair.toggle_page_track(),
            Op::Call(call) => met.extend(pair.call(&call)),
        }
        pair.compare();
        if at % 32 == 0 {
            pair.compare_all_edges();
        }
    }
    pair.compare_all_edges();
    met
}

struct Pair {
    model: Memory,
    reference: Reference,
}

impl Pair {
    fn new(newer: bool) -> Self {
        let name = if newer { "linux-7.2" } else { "linux-6.18" };
        let mut profile = Profile::named(name).expect("a profile of that name");
        profile.smm.set(false);
        let (max, end) = ((1 << (46 - 12)) - 1, 0x7fff_ffff_f000);
        let conflict = if newer { super::EEXIST } else { super::EINVAL };
        let signed = !newer;
        Self {
            model: Memory::new(profile, VmType::Default),
            reference: Reference::new(conflict, max, end, signed),
        }
    }

    fn toggle_page_track(&mut self) {
        self.reference.page_track_user ^= true;
        self.model
            .set_page_track_user(self.reference.page_track_user);
    }

    /// Makes a call on both; gives the code of the model's reason.
    fn call(&mut self, call: &Call) -> Option<&'static str> {
        let foreseen = self.model.check(call);
        let plan = self.plan(call);
        let expected = self.reference.call(call);
        let answer: CallResult = self.model.call(call);
        let errno = answer.as_ref().map(drop).map_err(|r| r.errno().raw());
        assert_eq!(errno, expected, "{call:?}: {answer:?}");
        let refusal = answer.err();
        assert_eq!(foreseen.err(), refusal, "{call:?}");
        if let Some(plan) = plan {
            assert_eq!(plan.after.raw(), self.reference.generation, "{plan:?}");
        }
        if let Call::SetRegion(region) = call {
            self.compare_around(region.gpa / PAGE, region.size / PAGE, region.hva);
        }
        let reason = refusal?.reason;
        if self.reference.generation % 4 == 0 {
            self.follow_repairs(call);
        }
        Some(reason.code())
    }

    fn plan(&self, call: &Call) -> Option<Change> {
        match call {
            Call::SetRegion(region) => self.model.check_region(region).ok(),
            _ => None,
        }
    }

    /// A refused call is repaired to one that is accepted, or found hopeless.
    fn follow_repairs(&self, call: &Call) {
        let mut memory = self.model.clone();
        let chain = memory.repairs(call);
        let mut current = call;
        for step in &chain {
            let Repair::Calls { first, call: next } = &step.repair else {
                return;
            };
            for first in first {
                let answer = memory.call(first);
                assert!(answer.is_ok(), "{call:?}: {chain:?}: {first:?} {answer:?}");
            }
            current = next;
        }
        let answer = memory.call(current);
        assert!(answer.is_ok(), "{call:?}: {chain:?}: {answer:?}");
    }

    /// Everything but lookups by frame and host address.
    fn compare(&self) {
        let (space, reference) = (self.model.space(AsId::NORMAL), &self.reference);
        assert_eq!(space.len(), reference.slots.len());
        assert_eq!(space.generation().raw(), reference.generation);
        assert_eq!(self.model.total_pages().raw(), reference.total_pages());
        assert_eq!(self.model.logged_slots() as usize, reference.logged());
        for (id, slot) in &reference.slots {
            let id = SlotId::new(u16::try_from(*id).expect("one address space"));
            let found = space.by_id(id).expect("a slot that the reference has");
            let range = found.range();
            assert_eq!(
                (range.start().raw(), range.end().raw()),
                (slot.gfn, slot.end())
            );
            assert_eq!(
                (found.hva().raw(), found.flags().bits()),
                (slot.hva, slot.flags)
            );
            assert_eq!(found.dirty().is_some(), slot.flags & LOG != 0);
            let binding = found.binding();
            let binding = binding.and_then(|b| b.file.map(|file| (file.index(), b.first_page)));
            assert_eq!(binding, slot.binding);
        }
        self.compare_order();
        self.compare_files();
    }

    fn compare_order(&self) {
        let space = self.model.space(AsId::NORMAL);
        let mut expected: Vec<u64> = self.reference.slots.values().map(|s| s.gfn).collect();
        expected.sort_unstable();
        let starts = space.iter().map(|slot| slot.range().start().raw());
        assert!(starts.eq(expected.iter().copied()));
        let last = space.last().map(|slot| slot.range().start().raw());
        assert_eq!(last, expected.last().copied());
    }

    fn compare_files(&self) {
        for (index, file) in self.reference.files.iter().enumerate() {
            let id = GmemId::new(u32::try_from(index).expect("few files"));
            let found = self.model.gmem_file(id).expect("a file of the reference");
            assert_eq!((found.size(), found.is_open()), (file.size, file.open));
            let bindings: BTreeSet<(u64, u64, u32)> = found
                .bindings()
                .map(|(first, end, slot)| (first, end, slot.raw()))
                .collect();
            assert_eq!(bindings, file.bindings.iter().copied().collect());
        }
    }

    fn compare_all_edges(&self) {
        for slot in self.reference.slots.values() {
            self.compare_around(slot.gfn, slot.pages, slot.hva);
        }
    }

    /// Lookups on both sides of a range's borders.
    fn compare_around(&self, gfn: u64, pages: u64, hva: u64) {
        let end = gfn.wrapping_add(pages);
        for at in [gfn.wrapping_sub(1), gfn, end.wrapping_sub(1), end] {
            self.compare_gfn(at);
        }
        let end = hva.wrapping_add(pages.wrapping_mul(PAGE));
        for (from, to) in [
            (hva.wrapping_sub(1), hva),
            (hva, hva.wrapping_add(1)),
            (hva, end),
            (end.wrapping_sub(1), end),
            (end, end.wrapping_add(PAGE)),
            (hva.wrapping_sub(1), end.wrapping_add(1)),
        ] {
            if from < to {
                self.compare_hva(from, to);
            }
        }
    }

    fn compare_gfn(&self, gfn: u64) {
        let space = self.model.space(AsId::NORMAL);
        let found = space.by_gfn(Gfn::new(gfn));
        let expected = self.reference.at_gfn(gfn);
        assert_eq!(found.map(|slot| slot.key().raw()), expected, "gfn {gfn:#x}");
        let Some(slot) = expected.and_then(|id| self.reference.slots.get(&id)) else {
            return;
        };
        let (_, hva) = self
            .model
            .hva_of(AsId::NORMAL, Gpa::new(gfn * PAGE + 5))
            .expect("a frame of a slot");
        assert_eq!(hva.raw(), slot.hva + (gfn - slot.gfn) * PAGE + 5);
    }

    fn compare_hva(&self, from: u64, to: u64) {
        let space = self.model.space(AsId::NORMAL);
        let found: Vec<(u32, u64, u64)> = space
            .by_hva(Hva::new(from), Hva::new(to))
            .map(|(slot, range)| (slot.key().raw(), range.start().raw(), range.end().raw()))
            .collect();
        let as_set: BTreeSet<_> = found.iter().copied().collect();
        assert_eq!(as_set.len(), found.len(), "a slot twice");
        assert_eq!(
            as_set,
            self.reference.at_hva(from, to),
            "{from:#x}..{to:#x}"
        );
    }
}

//! The rules of set-region once more, as simple as they can be written: one address space, a map of slots, checks in
//! a straight line, error numbers only. Shares nothing with the crate but the plain data of a call.

use std::collections::{BTreeMap, BTreeSet};

use slat_memslot::{Call, FileCall, FileRef, Region, RegionVersion};

mod compare;
mod generate;

const EBADF: i32 = 9;
const EEXIST: i32 = 17;
const EINVAL: i32 = 22;

const LOG: u32 = 1;
const READONLY: u32 = 2;
const GMEM: u32 = 4;

const PAGE: u64 = 4096;
/// Bytes of one operation in [`run`]'s input.
pub(crate) const OP_BYTES: usize = generate::OP_BYTES;

/// Decodes bytes into calls, makes them on the model and on the reference, and compares answers and state after
/// each. The first byte chooses the kernel. Gives the codes of the reasons that the model named.
///
/// # Panics
/// The two disagree.
pub(crate) fn run(bytes: &[u8]) -> BTreeSet<&'static str> {
    compare::run(bytes)
}

#[derive(Clone, Debug)]
struct Slot {
    gfn: u64,
    pages: u64,
    hva: u64,
    flags: u32,
    /// File and first page.
    binding: Option<(usize, u64)>,
}

impl Slot {
    fn end(&self) -> u64 {
        self.gfn + self.pages
    }

    fn hva_end(&self) -> u64 {
        self.hva + self.pages * PAGE
    }
}

#[derive(Clone, Debug)]
struct File {
    size: u64,
    open: bool,
    /// First page, page behind the end, slot.
    bindings: Vec<(u64, u64, u32)>,
}

#[derive(Clone, Debug)]
struct Reference {
    slots: BTreeMap<u32, Slot>,
    files: Vec<File>,
    generation: u64,
    page_track_user: bool,
    /// What binding a range twice gives.
    conflict: i32,
    max_gfn: u64,
    user_end: u64,
    /// Ends of bound ranges are compared as signed numbers.
    signed_offsets: bool,
}

impl Reference {
    fn new(conflict: i32, max_gfn: u64, user_end: u64, signed_offsets: bool) -> Self {
        Self {
            slots: BTreeMap::new(),
            files: Vec::new(),
            generation: 0,
            page_track_user: false,
            conflict,
            max_gfn,
            user_end,
            signed_offsets,
        }
    }

    fn call(&mut self, call: &Call) -> Result<(), i32> {
        match call {
            Call::SetRegion(region) => self.set_region(region),
            Call::CreateGmem { size, flags, .. } => self.create_gmem(*size, *flags),
            Call::File(file, FileCall::Close) => self.close(file.index()),
            other => unreachable!("the generator does not make {other:?}"),
        }
    }

    fn create_gmem(&mut self, size: u64, flags: u64) -> Result<(), i32> {
        let signed = i64::from_ne_bytes(size.to_ne_bytes());
        if flags & !3 != 0 || signed <= 0 || size % PAGE != 0 {
            return Err(EINVAL);
        }
        self.files.push(File {
            size,
            open: true,
            bindings: Vec::new(),
        });
        Ok(())
    }

    fn close(&mut self, index: usize) -> Result<(), i32> {
        let file = self.files.get_mut(index).filter(|f| f.open).ok_or(EBADF)?;
        file.open = false;
        for (_, _, slot) in std::mem::take(&mut file.bindings) {
            if let Some(slot) = self.slots.get_mut(&slot) {
                slot.binding = None;
            }
        }
        Ok(())
    }

    /// The checks in the kernel's order, then the change.
    fn set_region(&mut self, r: &Region) -> Result<(), i32> {
        if r.version == RegionVersion::V1 && r.flags & !(LOG | READONLY) != 0 {
            return Err(EINVAL);
        }
        if r.slot % 0x1_0000 >= 32764 {
            return Err(EINVAL);
        }
        let gmem = r.flags & GMEM != 0;
        let allowed = if gmem { GMEM } else { LOG | READONLY };
        if r.flags & !allowed != 0 {
            return Err(EINVAL);
        }
        if r.size % PAGE != 0 || r.gpa % PAGE != 0 || r.hva % PAGE != 0 {
            return Err(EINVAL);
        }
        let sum = |a: u64, b: u64| u128::from(a) + u128::from(b);
        if sum(r.hva, r.size) > u128::from(self.user_end) {
            return Err(EINVAL);
        }
        if gmem && (r.gmem_offset % PAGE != 0 || sum(r.gmem_offset, r.size) >= 1 << 64) {
            return Err(EINVAL);
        }
        if r.slot >= 0x1_0000 {
            return Err(EINVAL);
        }
        if sum(r.gpa, r.size) >= 1 << 64 {
            return Err(EINVAL);
        }
        let (gfn, pages) = (r.gpa / PAGE, r.size / PAGE);
        if pages >= 1 << 31 {
            return Err(EINVAL);
        }
        let old = self.slots.get(&r.slot).cloned();
        let Some(old) = old else {
            if pages == 0 {
                return Err(EINVAL);
            }
            return self.create(r, gfn, pages);
        };
        if pages == 0 {
            self.delete(r.slot);
            return Ok(());
        }
        if gmem || old.hva != r.hva || old.pages != pages {
            return Err(EINVAL);
        }
        if (old.flags ^ r.flags) & (READONLY | GMEM) != 0 {
            return Err(EINVAL);
        }
        if old.gfn != gfn {
            return self.move_to(r, gfn);
        }
        if old.flags != r.flags {
            self.generation += 1;
            self.slots.insert(
                r.slot,
                Slot {
                    flags: r.flags,
                    ..old
                },
            );
        }
        Ok(())
    }

    fn create(&mut self, r: &Region, gfn: u64, pages: u64) -> Result<(), i32> {
        self.check_overlap(r.slot, gfn, pages)?;
        let mut binding = None;
        if r.flags & GMEM != 0 {
            binding = Some(self.check_binding(r)?);
        }
        if gfn + pages - 1 > self.max_gfn {
            return Err(EINVAL);
        }
        if let Some((file, first)) = binding {
            self.files[file]
                .bindings
                .push((first, first + pages, r.slot));
        }
        self.generation += 1;
        self.slots.insert(
            r.slot,
            Slot {
                gfn,
                pages,
                hva: r.hva,
                flags: r.flags,
                binding,
            },
        );
        Ok(())
    }

    fn move_to(&mut self, r: &Region, gfn: u64) -> Result<(), i32> {
        let pages = r.size / PAGE;
        self.check_overlap(r.slot, gfn, pages)?;
        // From here on the old slot is zapped and back again, whatever comes.
        self.generation += 2;
        if self.page_track_user || gfn + pages - 1 > self.max_gfn {
            return Err(EINVAL);
        }
        if let Some(slot) = self.slots.get_mut(&r.slot) {
            slot.gfn = gfn;
            slot.flags = r.flags;
        }
        Ok(())
    }

    fn delete(&mut self, id: u32) {
        self.generation += 2;
        self.slots.remove(&id);
        for file in &mut self.files {
            file.bindings.retain(|(_, _, slot)| *slot != id);
        }
    }

    fn check_overlap(&self, id: u32, gfn: u64, pages: u64) -> Result<(), i32> {
        for (other, slot) in &self.slots {
            if *other != id && slot.gfn < gfn + pages && gfn < slot.end() {
                return Err(EEXIST);
            }
        }
        Ok(())
    }

    fn check_binding(&self, r: &Region) -> Result<(usize, u64), i32> {
        let index = match r.gmem {
            FileRef::NotOpen(_) => return Err(EBADF),
            FileRef::Other(_) | FileRef::Foreign => return Err(EINVAL),
            FileRef::Gmem(id) => id.index(),
        };
        let file = self.files.get(index).filter(|f| f.open).ok_or(EBADF)?;
        let end = r.gmem_offset + r.size;
        let signed = |n: u64| i64::from_ne_bytes(n.to_ne_bytes());
        let beyond = match self.signed_offsets {
            true => signed(r.gmem_offset) < 0 || signed(end) > signed(file.size),
            false => end > file.size,
        };
        if beyond {
            return Err(EINVAL);
        }
        let (first, end) = (r.gmem_offset / PAGE, (r.gmem_offset + r.size) / PAGE);
        for (other_first, other_end, _) in &file.bindings {
            if *other_first < end && first < *other_end {
                return Err(self.conflict);
            }
        }
        Ok((index, first))
    }

    fn total_pages(&self) -> u64 {
        self.slots.values().map(|slot| slot.pages).sum()
    }

    fn logged(&self) -> usize {
        self.slots.values().filter(|s| s.flags & LOG != 0).count()
    }

    fn at_gfn(&self, gfn: u64) -> Option<u32> {
        let mut holders = self.slots.iter();
        let holder = holders.find(|(_, slot)| slot.gfn <= gfn && gfn < slot.end());
        holder.map(|(id, _)| *id)
    }

    /// Slots and frames that back a byte of `[start, end)`.
    fn at_hva(&self, start: u64, end: u64) -> BTreeSet<(u32, u64, u64)> {
        let mut found = BTreeSet::new();
        for (id, slot) in &self.slots {
            let (from, to) = (start.max(slot.hva), end.min(slot.hva_end()));
            if from < to {
                let first = slot.gfn + (from - slot.hva) / PAGE;
                let last = slot.gfn + (to - 1 - slot.hva) / PAGE;
                found.insert((*id, first, last + 1));
            }
        }
        found
    }
}

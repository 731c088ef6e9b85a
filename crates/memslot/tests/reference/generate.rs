//! Calls out of bytes, with a taste for edges: one page too far, one byte off, the last frame, a wrap.

use slat_memslot::{Call, FileCall, FileRef, GmemId, OtherFile, Region, RegionVersion};

use super::{GMEM, PAGE, Reference, Slot};

/// Every operation takes as many bytes, so that cutting one out leaves the others as they are.
pub(crate) const OP_BYTES: usize = 12;

/// One operation.
pub(super) enum Op {
    Call(Call),
    /// An external page-track user comes or goes.
    TogglePageTrack,
}

/// The bytes of one operation, taken one by one.
struct Bytes<'a>(std::slice::Iter<'a, u8>);

impl Bytes<'_> {
    fn next(&mut self) -> u8 {
        self.0.next().copied().unwrap_or(0)
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::from(self.next()) % choices.len()]
    }
}

/// The operation that these bytes mean in this state.
pub(super) fn decode(bytes: &[u8], state: &Reference) -> Op {
    let mut b = Bytes(bytes.iter());
    Op::Call(match b.next() % 32 {
        0..=3 => create_gmem(&mut b),
        4 => match u32::from(b.next()) {
            n @ 0..8 => Call::File(GmemId::new(n), FileCall::Close),
            _ => create_gmem(&mut b),
        },
        5 => return Op::TogglePageTrack,
        6..=9 => Call::SetRegion(delete(&mut b, state)),
        10..=18 => Call::SetRegion(modify(&mut b, state)),
        _ => Call::SetRegion(fresh(&mut b, state)),
    })
}

fn create_gmem(b: &mut Bytes<'_>) -> Call {
    let pages = u64::from(b.next() % 32 + 1) * PAGE;
    let size = match b.next() {
        0 => 0,
        1 => pages + 1,
        2 => pages - 1,
        3 => 1 << 63,
        4 => (1 << 63) - PAGE,
        5 => u64::MAX,
        _ => pages,
    };
    let flags = match b.next() {
        n @ 0..64 => u64::from(n % 4),
        64 => 4,
        65 => 1 << 63,
        _ => 0,
    };
    Call::CreateGmem {
        size,
        flags,
        reserved: u64::from(b.next()),
    }
}

/// A live slot, if there is any.
fn live<'a>(b: &mut Bytes<'_>, state: &'a Reference) -> Option<(u32, &'a Slot)> {
    let at = usize::from(b.next()) % state.slots.len().max(1);
    state.slots.iter().nth(at).map(|(id, slot)| (*id, slot))
}

fn as_it_is(id: u32, slot: &Slot) -> Region {
    Region {
        version: RegionVersion::V2,
        slot: id,
        flags: slot.flags & !GMEM,
        gpa: slot.gfn * PAGE,
        size: slot.pages * PAGE,
        hva: slot.hva,
        ..Region::default()
    }
}

fn delete(b: &mut Bytes<'_>, state: &Reference) -> Region {
    let Some((id, slot)) = live(b, state) else {
        return fresh(b, state);
    };
    let plain = Region {
        version: RegionVersion::V1,
        size: 0,
        ..as_it_is(id, slot)
    };
    // Deletes pass the checks of every argument.
    match b.next() % 16 {
        0 => Region {
            gpa: plain.gpa + 1,
            ..plain
        },
        1 => Region {
            hva: plain.hva + 1,
            ..plain
        },
        2 => Region {
            hva: state.user_end,
            ..plain
        },
        3 => Region {
            hva: state.user_end + PAGE,
            ..plain
        },
        4 => Region { flags: 8, ..plain },
        5 => Region {
            flags: 5,
            version: RegionVersion::V2,
            ..plain
        },
        6 => Region {
            flags: 4,
            version: RegionVersion::V2,
            gmem_offset: u64::from(b.next()),
            ..plain
        },
        7 => Region {
            slot: plain.slot + 1,
            ..plain
        },
        8 => Region {
            gpa: PAGE.wrapping_neg(),
            ..plain
        },
        _ => plain,
    }
}

fn modify(b: &mut Bytes<'_>, state: &Reference) -> Region {
    let Some((id, slot)) = live(b, state) else {
        return fresh(b, state);
    };
    let mut region = as_it_is(id, slot);
    let what = b.next();
    region.flags ^= b.pick(&[0, 0, 0, 1, 1, 1, 2, 3, 4, 8]);
    if what & 1 != 0 {
        region.version = RegionVersion::V1;
    }
    if what & 2 != 0 {
        region.gpa = guest_address(b, state, region.size);
    }
    if what & 0x14 == 0x14 {
        region.hva = host_address(b, state, region.size);
    }
    if what & 0x28 == 0x28 {
        region.size = region
            .size
            .wrapping_add(b.pick(&[PAGE, PAGE.wrapping_neg(), 1, 0]));
    }
    if what & 0xc0 == 0xc0 {
        region.gmem = file(b, state);
    }
    region
}

fn fresh(b: &mut Bytes<'_>, state: &Reference) -> Region {
    let slot = slot_number(b.next());
    let flags = b.pick(&[0, 0, 0, 0, 1, 1, 2, 3, 4, 4, 4, 4, 4, 5, 6, 8, 1 << 16, 7]);
    let kind = b.next();
    let older = kind % 16 == 0 || flags & GMEM == 0 && kind & 1 == 0;
    let size = length(b);
    let gpa = guest_address(b, state, size);
    let hva = host_address(b, state, size);
    let gmem = file(b, state);
    Region {
        version: match older {
            true => RegionVersion::V1,
            false => RegionVersion::V2,
        },
        slot,
        flags,
        gpa,
        size,
        hva,
        gmem,
        gmem_offset: file_offset(b, state, gmem, size),
        padding: 0,
    }
}

fn slot_number(byte: u8) -> u32 {
    match byte {
        250 => 32763,
        251 => 32764,
        252 => 32767,
        253 => 0xffff,
        254 => 1 << 16 | 1,
        255 => 2 << 16,
        n => u32::from(n % 14),
    }
}

/// Mostly nothing, else off a page's border.
fn off(byte: u8) -> u64 {
    match byte % 64 {
        0 => 1,
        1 => PAGE - 1,
        2 => PAGE / 2,
        _ => 0,
    }
}

fn length(b: &mut Bytes<'_>) -> u64 {
    let byte = b.next();
    let pages = match byte {
        240 => 0,
        241 => (1 << 31) - 1,
        242 => 1 << 31,
        243 => 1 << 34,
        244 => (1 << 52) - 1,
        245 => 1 << 28,
        n => u64::from(n % 12 + 1),
    };
    (pages * PAGE).wrapping_add(if byte >= 246 { off(byte) } else { 0 })
}

fn guest_address(b: &mut Bytes<'_>, state: &Reference, size: u64) -> u64 {
    let how = b.next();
    let highest = (state.max_gfn + 1) * PAGE;
    match how {
        0..128 => u64::from(how % 64) * 4 * PAGE,
        128..208 => {
            let Some((_, slot)) = live(b, state) else {
                return 0;
            };
            let (start, end) = (slot.gfn * PAGE, slot.end() * PAGE);
            match how % 6 {
                0 => end,
                1 => end - PAGE,
                2 => start.wrapping_sub(size),
                3 => start.wrapping_sub(size).wrapping_add(PAGE),
                4 => start,
                _ => end.wrapping_add(PAGE),
            }
        }
        208..216 => highest.wrapping_sub(size),
        216..224 => highest.wrapping_sub(size).wrapping_add(PAGE),
        224..228 => 0u64.wrapping_sub(size),
        228..232 => 0u64.wrapping_sub(size).wrapping_sub(PAGE),
        232..236 => 0u64.wrapping_sub(size).wrapping_add(PAGE),
        _ => u64::from(how) * PAGE + off(how.wrapping_sub(236)),
    }
}

fn host_address(b: &mut Bytes<'_>, state: &Reference, size: u64) -> u64 {
    let how = b.next();
    let base = 0x7000_0000_0000;
    match how {
        0..160 => base + u64::from(how % 40) * 2 * PAGE,
        160..220 => match live(b, state) {
            None => base,
            Some((_, slot)) => match how % 4 {
                0 => slot.hva,
                1 => slot.hva_end(),
                2 => slot.hva_end() - PAGE,
                _ => slot.hva.wrapping_sub(size).wrapping_add(PAGE),
            },
        },
        220..228 => state.user_end.wrapping_sub(size),
        228..232 => state.user_end.wrapping_sub(size).wrapping_add(PAGE),
        232..236 => 0,
        236 => 1 << 63,
        237 => 0u64.wrapping_sub(size),
        238 => PAGE.wrapping_neg(),
        239 => state.user_end,
        _ => base + off(how.wrapping_sub(240)),
    }
}

fn file(b: &mut Bytes<'_>, state: &Reference) -> FileRef {
    let count = u8::try_from(state.files.len().min(200)).unwrap_or(0);
    match b.next() {
        250 => FileRef::NotOpen(-1),
        251 => FileRef::Other(OtherFile::Null),
        252 => FileRef::Other(OtherFile::Vm),
        253 => FileRef::Foreign,
        254 => FileRef::Gmem(GmemId::new(u32::from(count))),
        _ if count == 0 => FileRef::NotOpen(3),
        n => FileRef::Gmem(GmemId::new(u32::from(n % count))),
    }
}

fn file_offset(b: &mut Bytes<'_>, state: &Reference, file: FileRef, size: u64) -> u64 {
    let known = match file {
        FileRef::Gmem(id) => state.files.get(id.index()),
        _ => None,
    };
    let how = b.next();
    let grid = u64::from(how % 16) * PAGE;
    let Some(known) = known else {
        return grid + off(how);
    };
    let bound = known.bindings.get(usize::from(how % 4));
    match how {
        0..96 => grid,
        96..160 => bound.map_or(0, |(_, end, _)| end * PAGE),
        160..192 => bound.map_or(0, |(_, end, _)| (end - 1) * PAGE),
        192..208 => bound.map_or(0, |(first, ..)| (first * PAGE).wrapping_sub(size)),
        208..216 => bound.map_or(0, |(first, ..)| {
            (first * PAGE).wrapping_sub(size).wrapping_add(PAGE)
        }),
        216..228 => known.size.wrapping_sub(size),
        228..236 => known.size.wrapping_sub(size).wrapping_add(PAGE),
        236..240 => 0u64.wrapping_sub(size),
        240..243 => 0u64.wrapping_sub(size).wrapping_sub(PAGE),
        _ => grid + off(how.wrapping_sub(243)),
    }
}

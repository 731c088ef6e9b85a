//! A VMM's memory manager on slat: slots, hotplug, dirty logs and conversions as Cloud Hypervisor and Firecracker have them, and
//! four bugs that such managers have had, each caught before it does harm.
//!
//! Every call is made on the model, on `/dev/kvm`, or on both with the answers compared:
//! `cargo run --example memory_manager -- --on both`.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{self, Write};

use slat::coco::convert::{MapGpaRangeExit, Request};
use slat::coco::migration::Status;
use slat::memslot::{
    Attributes, Call, DirtyBacklog, DirtyPages, DirtySource, FileCall, GmemId, Memory, PAGE_SIZE,
    Pages, Region, SlotFlags, SlotIdAllocator, SlotKey, USER_SLOTS, VmType, merge_dirty,
};
use slat::vmm::MemoryVm;

mod on;

type Result<T> = core::result::Result<T, Box<dyn Error>>;

/// What takes Cloud Hypervisor two maps beside the kernel's state, a free list of slot ids, and a bitmap for each slot.
struct MemoryManager {
    vm: Box<dyn MemoryVm>,
    /// The slots that the kernel has; it changes only when the kernel has.
    book: Memory,
    ids: SlotIdAllocator,
    backlogs: BTreeMap<SlotKey, DirtyBacklog>,
}

impl MemoryManager {
    /// Slots: planned with a reason for every refusal, then made, then written down.
    fn set(&mut self, region: &Region) -> Result<()> {
        let _plan = self.book.check_region(region)?;
        self.vm.set_user_memory_region(region)?;
        let _effects = self.book.set_region(region)?;
        Ok(())
    }

    /// Memory is plugged in, with a guest_memfd or without. An id is taken only if it succeeds.
    fn plug(&mut self, gpa: u64, size: u64, hva: u64, file: Option<GmemId>) -> Result<SlotKey> {
        let id = self.ids.allocate().ok_or("all slots are in use")?;
        let region = Region::new(SlotKey::normal(id.raw()), gpa, size, hva);
        let region = file.map_or(region, |file| region.with_gmem(file, 0));
        let plugged = self.set(&region);
        if plugged.is_err() {
            self.ids.free(id);
        }
        plugged.map(|()| SlotKey::normal(id.raw()))
    }

    fn unplug(&mut self, key: SlotKey) -> Result<()> {
        self.set(&Region::delete(key))?;
        self.ids.free(key.id);
        self.backlogs.remove(&key);
        Ok(())
    }

    /// Logs are switched on where they can be; the slots with files are given back, for another way.
    fn start_dirty_log(&mut self) -> Result<Vec<SlotKey>> {
        let logged = |slot: &slat::memslot::Slot| {
            let (gpa, size) = (slot.range().start().gpa().raw(), slot.pages().bytes());
            let region = Region::new(slot.key(), gpa, size, slot.hva().raw());
            region.with_flags(SlotFlags::LOG_DIRTY_PAGES)
        };
        let slots = self.book.space(Default::default());
        let (files, plain): (Vec<_>, Vec<_>) = slots.iter().partition(|s| s.binding().is_some());
        let skipped = files.iter().map(|slot| slot.key()).collect();
        let regions: Vec<(SlotKey, Region)> = plain.iter().map(|s| (s.key(), logged(s))).collect();
        for (key, region) in regions {
            self.set(&region)?;
            let backlog = DirtyBacklog::new(Pages::in_bytes(region.size));
            self.backlogs.insert(key, backlog);
        }
        Ok(skipped)
    }

    /// A slot's dirty pages: KVM's and the VMM's own. They stay until they have been sent.
    fn dirty_log(&mut self, key: SlotKey, vmm: &[u64]) -> Result<DirtyPages> {
        let backlog = self.backlogs.get_mut(&key).ok_or("no log")?;
        let kvm = self.vm.get_dirty_log(key.raw())?;
        let sources = [DirtySource::from(&kvm), DirtySource::from(vmm)];
        backlog.add(&merge_dirty(backlog.pages().pages(), sources)?)?;
        Ok(backlog.pages().clone())
    }

    /// The guest asks for a conversion; what it leaves behind on the other side is given back.
    fn convert(&mut self, exit: &MapGpaRangeExit) -> Result<String> {
        let request = Request::from_hypercall(exit)?;
        let (gpa, size) = (
            request.range.start().gpa().raw(),
            request.range.pages().bytes(),
        );
        let attributes = match request.to {
            Status::Private => Attributes::PRIVATE,
            Status::Shared => Attributes::empty(),
        };
        self.vm
            .set_memory_attributes(gpa, size, attributes.bits())?;
        let _changed = self.book.set_attributes(gpa, size, attributes.bits(), 0)?;
        match request.to {
            Status::Private => Ok(format!("{gpa:#x}+{size:#x} is private")),
            Status::Shared => Ok(format!("shared, {} freed", self.punch(gpa, size)?)),
        }
    }

    /// Frees a range's pages in the files of all slots that it touches.
    fn punch(&mut self, gpa: u64, size: u64) -> Result<Pages> {
        const PUNCH_HOLE_KEEP_SIZE: u32 = 3;
        let mut freed = 0;
        let mut holes = Vec::new();
        for slot in self.book.space(Default::default()).iter() {
            let file = slot
                .binding()
                .and_then(|b| b.file.map(|f| (f, b.first_page)));
            let Some((file, first)) = file else { continue };
            let (start, end) = (
                slot.range().start().gpa().raw(),
                slot.range().end().gpa().raw(),
            );
            let (from, to) = (gpa.max(start), (gpa + size).min(end));
            if from < to {
                let offset = first * PAGE_SIZE + (from - start);
                holes.push((file, offset, to - from));
            }
        }
        for (file, offset, len) in holes {
            let call = FileCall::Fallocate {
                mode: PUNCH_HOLE_KEEP_SIZE,
                offset,
                len,
            };
            self.vm.call(&Call::File(file, call))?;
            let _done = self.book.file_call(file, call)?;
            freed += len;
        }
        Ok(Pages::in_bytes(freed))
    }
}

const MIB: u64 = 1 << 20;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    run(&arguments, &mut io::stdout().lock())
}

/// The whole example, written to `out`.
pub(crate) fn run(arguments: &[&str], out: &mut impl Write) -> Result<()> {
    let chosen = on::chosen(arguments, &[VmType::SwProtected, VmType::Default])?;
    writeln!(out, "{}", chosen.title())?;
    let hva = chosen.areas.writable.raw();
    let mut manager = MemoryManager {
        vm: chosen.vm,
        book: chosen.memory,
        ids: SlotIdAllocator::new(),
        backlogs: BTreeMap::new(),
    };
    let file = boot(&mut manager, hva, out)?;
    logs_on_files(&mut manager, file, out)?;
    rollback(&mut manager, hva, out)?;
    ids(&mut manager, hva, out)?;
    bitmaps(&mut manager, out)?;
    conversions(&mut manager, out)
}

/// The VMM boots: RAM below the hole, with private pages if there can be any, and above it.
fn boot(manager: &mut MemoryManager, hva: u64, out: &mut impl Write) -> Result<Option<GmemId>> {
    let file = manager.vm.create_guest_memfd(64 * MIB, 0).ok();
    if file.is_some() {
        let _made = manager.book.create_gmem(64 * MIB, 0)?;
    }
    let low = manager.plug(0, 64 * MIB, hva, file)?;
    let high = manager.plug(1 << 32, 64 * MIB, hva + 64 * MIB, None)?;
    writeln!(
        out,
        "plugged slots {low} and {high}, a file for slot 0: {}",
        file.is_some()
    )?;
    Ok(file)
}

/// Migration begins: flags of a slot with a file cannot change, and no flag allows a log on one.
fn logs_on_files(
    manager: &mut MemoryManager,
    file: Option<GmemId>,
    out: &mut impl Write,
) -> Result<()> {
    writeln!(
        out,
        "\n# A dirty log on every slot, those with a guest_memfd too"
    )?;
    let skipped = manager.start_dirty_log()?;
    if let Some(file) = file {
        let slots = manager.book.space(Default::default());
        let slot = slots.iter().find(|slot| slot.binding().is_some());
        let slot = slot.ok_or("the slot with the file")?;
        let naive = Region::new(slot.key(), 0, slot.pages().bytes(), slot.hva().raw())
            .with_gmem(file, 0)
            .with_flags(SlotFlags::LOG_DIRTY_PAGES | SlotFlags::GUEST_MEMFD);
        refused(manager, &naive, out)?;
    }
    writeln!(out, "logs are on; without one: {skipped:?}")?;
    Ok(())
}

/// The call is foreseen to fail, with a reason, and fails.
fn refused(manager: &mut MemoryManager, region: &Region, out: &mut impl Write) -> Result<()> {
    let Err(refusal) = manager.book.check_region(region) else {
        return Err("it should be refused".into());
    };
    writeln!(
        out,
        "foreseen: {} ({})",
        refusal.errno(),
        refusal.reason.code()
    )?;
    match manager.vm.set_user_memory_region(region) {
        Ok(()) => Err("the machine took it".into()),
        Err(error) => Ok(writeln!(out, "result: {error}")?),
    }
}

/// A slot that cannot be made is in no book: the next one gets its id, and nothing has to be undone.
fn rollback(manager: &mut MemoryManager, hva: u64, out: &mut impl Write) -> Result<()> {
    writeln!(out, "\n# Memory is plugged onto other memory")?;
    // The book of a VMM that writes down first.
    let mut naive = BTreeMap::from([(0_u16, 0_u64), (1, 1 << 32)]);
    naive.insert(2, (1 << 32) + 32 * MIB);
    let Err(error) = manager.plug((1 << 32) + 32 * MIB, 64 * MIB, hva + 128 * MIB, None) else {
        return Err("it should overlap".into());
    };
    writeln!(out, "refused: {error}")?;
    let slots = manager.book.space(Default::default()).len();
    writeln!(
        out,
        "the naive book has {} slots, slat's {slots}",
        naive.len()
    )?;
    refused(manager, &Region::delete(SlotKey::normal(2)), out)?;
    let key = manager.plug(2 << 32, 64 * MIB, hva + 128 * MIB, None)?;
    writeln!(out, "plugged elsewhere, as slot {key}")?;
    Ok(())
}

/// A counter that only goes up ends at the last slot; ids that are given back do not.
fn ids(manager: &mut MemoryManager, hva: u64, out: &mut impl Write) -> Result<()> {
    writeln!(out, "\n# Hotplug, again and again")?;
    let late = Region::new(SlotKey::normal(USER_SLOTS), 3 << 32, MIB, hva + 192 * MIB);
    refused(manager, &late, out)?;
    let mut last = None;
    for _ in 0..1000 {
        let key = manager.plug(3 << 32, MIB, hva + 192 * MIB, None)?;
        manager.unplug(key)?;
        last = Some(key.id.raw());
    }
    writeln!(out, "after 1000 times the id is {last:?}")?;
    Ok(())
}

/// KVM's bitmap and the VMM's own are walked together; one of them is short.
fn bitmaps(manager: &mut MemoryManager, out: &mut impl Write) -> Result<()> {
    writeln!(out, "\n# Two bitmaps of a slot, one of another length")?;
    let key = SlotKey::normal(1);
    let words = usize::try_from(64 * MIB / PAGE_SIZE / 64)?;
    let mut own = vec![0_u64; words];
    own[words - 1] = 1 << 63;
    let short = &own[..words / 2];
    let zipped = vec![0; words].into_iter().zip(short).count();
    writeln!(
        out,
        "zip would look at {zipped} of {words} words, and lose page {}",
        words * 64 - 1
    )?;
    let Err(error) = manager.dirty_log(key, short) else {
        return Err("it should be refused".into());
    };
    writeln!(out, "refused: {error}")?;
    let dirty = manager.dirty_log(key, &own)?;
    writeln!(out, "to be sent: {dirty}")?;
    Ok(())
}

/// What the guest asks for by `KVM_HC_MAP_GPA_RANGE`.
fn conversions(manager: &mut MemoryManager, out: &mut impl Write) -> Result<()> {
    writeln!(out, "\n# The guest converts memory")?;
    const PRIVATE: u64 = 1 << 4;
    const LARGE: u64 = 1;
    let exit = |attributes| MapGpaRangeExit {
        nr: 12,
        args: [2 * MIB, 512, attributes],
    };
    for (title, attributes) in [("private", PRIVATE), ("shared, 2M", LARGE), ("odd", 1 << 9)] {
        match manager.convert(&exit(attributes)) {
            Ok(done) => writeln!(out, "{title}: {done}")?,
            Err(error) => writeln!(out, "{title}: {error}")?,
        }
    }
    Ok(())
}

//! The host's memory: what the program does to it, and what it lets the host do.
#![expect(unsafe_code, reason = "fork, and signals to a child")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use slat_memslot::{AsId, Errno, Gfn, Hva, Level, PAGE_SHIFT, PAGE_SIZE, PageSize};

use super::{Done, DriveError, Driver, FaultFiller, Journal, io_error, missing};
use crate::live::areas::{Area, Kind};
use crate::traces::{HostWork, Note, Op};

/// A child that has all memory, and does nothing. It ends with this value.
#[derive(Debug)]
pub(super) struct Child(libc::pid_t);

impl Child {
    /// Returns when the child has closed what it has inherited.
    fn start() -> io::Result<Self> {
        let (mut closed, open) = UnixStream::pair()?;
        // SAFETY: the child makes system calls only, and never returns.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => loop {
                // SAFETY: a child that nobody ends ends with its parent. Descriptors would keep VMs open.
                unsafe {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                    libc::close_range(0, libc::c_uint::MAX, 0);
                    libc::pause();
                }
            },
            child => {
                let child = Self(child);
                drop(open);
                closed.read_to_end(&mut Vec::new())?;
                Ok(child)
            }
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: it is this process's child, and nobody has waited for it.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, std::ptr::null_mut(), 0);
        }
    }
}

impl<J: Journal> Driver<J> {
    /// A call on host memory; told only where there is any.
    pub(super) fn host_call(&mut self, op: &Op<'_>) -> Done {
        let (gfn, pages) = match op {
            Op::Madvise { gfn, pages, .. } | Op::Userfault { gfn, pages } => (*gfn, *pages),
            Op::Mprotect { range, .. } => {
                self.protected = range.or(self.protected);
                self.protected.ok_or_else(|| missing(op, "range"))?
            }
            _ => return Err(DriveError::Unknown { op: op.to_string() }),
        };
        let hva = self.host_address(op, gfn)?;
        let bytes = pages.raw() << PAGE_SHIFT;
        let Some(area) = self.areas.holding(hva, bytes) else {
            return Err(missing(op, "area that holds the range"));
        };
        if !area.takes(op, hva, bytes) {
            return Err(missing(op, "memory that takes the call"));
        }
        let huge = self.huge_addresses(op)?;
        self.say(&format!("OP {op}"))?;
        let result = match op {
            Op::Mprotect { writable, .. } => self.areas.protect(hva, bytes, *writable),
            Op::Madvise { advice, .. } => match advice_of(advice) {
                Some(advice) => self.areas.advise(hva, bytes, advice),
                None => return Err(DriveError::Unknown { op: op.to_string() }),
            },
            _ => self.fill_missing(hva, bytes),
        };
        // The page may be another one from now on.
        self.told.clear();
        let failed = |error: io::Error| Errno::new(error.raw_os_error().unwrap_or(0));
        self.ret(result.map(|()| 0).map_err(failed))?;
        self.collapsed(op, &huge)
    }

    fn host_address(&self, op: &Op<'_>, gfn: Gfn) -> Result<Hva, DriveError> {
        let slots = self.machine.iter().flat_map(|machine| &machine.slots);
        let mut normal = slots.filter(|((as_id, _), _)| *as_id == AsId::NORMAL);
        let hva = normal.find_map(|(_, slot)| slot.hva_of(gfn));
        hva.ok_or_else(|| missing(op, "slot with this frame"))
    }

    fn fill_missing(&mut self, hva: Hva, bytes: u64) -> io::Result<()> {
        let filler = match self.filler.take() {
            Some(filler) => filler,
            None => FaultFiller::start()?,
        };
        let done = filler.register(hva, bytes);
        self.filler = Some(filler);
        done
    }

    // --- Work that the host does by itself ---------------------------------------------------------------------------

    pub(super) fn host_work(&mut self, op: &Op<'_>) -> Done {
        let huge = self.huge_addresses(op)?;
        self.say(&format!("OP {op}"))?;
        let result = match op {
            Op::Fork => Child::start().map(|child| self.children.push(child)),
            Op::ChildEnds => {
                self.children.clear();
                Ok(())
            }
            Op::HostWork(work) => self.work(*work),
            _ => return Err(DriveError::Unknown { op: op.to_string() }),
        };
        self.told.clear();
        let failed = |error: io::Error| Errno::new(error.raw_os_error().unwrap_or(0));
        self.ret(result.map(|()| 0).map_err(failed))?;
        if *op == Op::Fork {
            // The guest's instructions are this program's own again: KVM writes beside them.
            self.areas.touch_first();
        }
        self.collapsed(op, &huge)
    }

    fn work(&mut self, work: HostWork) -> io::Result<()> {
        const KHUGEPAGED: &str = "/sys/kernel/mm/transparent_hugepage/khugepaged";
        const KSM: &str = "/sys/kernel/mm/ksm";
        let write =
            |folder: &str, name: &str, value: &str| fs::write(format!("{folder}/{name}"), value);
        match work {
            HostWork::Collapse => {
                write(KHUGEPAGED, "pages_to_scan", "1000000")?;
                write(KHUGEPAGED, "scan_sleep_millisecs", "0")?;
                let scanned = scans(KHUGEPAGED, 2);
                write(KHUGEPAGED, "scan_sleep_millisecs", "100000000")?;
                scanned.and_then(|()| sleeps("khugepaged"))
            }
            HostWork::Merge => {
                self.areas.advise_kind(Kind::Small, libc::MADV_MERGEABLE)?;
                write(KSM, "pages_to_scan", "1000000")?;
                write(KSM, "sleep_millisecs", "0")?;
                write(KSM, "run", "1")?;
                let scanned = scans(KSM, 3);
                write(KSM, "run", "0")?;
                scanned
            }
            HostWork::Unmerge => {
                write(KSM, "run", "2")?;
                write(KSM, "run", "0")
            }
            HostWork::Compact => fs::write("/proc/sys/vm/compact_memory", "1"),
        }
    }

    /// Where pages are huge, if an operation may make more of them so.
    fn huge_addresses(&self, op: &Op<'_>) -> Result<BTreeSet<u64>, DriveError> {
        let mut found = BTreeSet::new();
        let collapses = match op {
            Op::Madvise { advice, .. } => *advice == "COLLAPSE",
            Op::HostWork(work) => *work == HostWork::Collapse,
            _ => false,
        };
        let areas = self.areas.list().iter();
        for area in areas.filter(|area| collapses && area.kind == Kind::Transparent) {
            let huge = PageSize::Size2M.pages().raw();
            for page in (0..area.pages.raw()).step_by(HUGE) {
                let hva = Hva::new(area.start.raw() + page * PAGE_SIZE);
                let at = self.page(hva)?.filter(|_| page + huge <= area.pages.raw());
                if at.is_some_and(|page| page.level == Level::L2) {
                    found.insert(hva.raw());
                }
            }
        }
        Ok(found)
    }

    /// Tells which pages have become huge.
    fn collapsed(&mut self, op: &Op<'_>, before: &BTreeSet<u64>) -> Done {
        for hva in self.huge_addresses(op)?.difference(before) {
            let hva = Hva::new(*hva);
            if let Some(page) = self.page(hva)? {
                let pfn = page.pfn;
                self.note(&Note::Collapsed { hva, pfn })?;
            }
        }
        Ok(())
    }

    // --- Which pages are used ----------------------------------------------------------------------------------------

    /// Marks pages as idle, or asks whether they are.
    pub(super) fn page_idle(&mut self, op: &Op<'_>) -> Done {
        const BITMAP: &str = "/sys/kernel/mm/page_idle/bitmap";
        let (gfn, pages, mark) = match op {
            Op::MarkFramesIdle { gfn, pages } => (*gfn, *pages, true),
            Op::ReadFramesIdle { gfn, pages } => (*gfn, *pages, false),
            _ => return Err(DriveError::Unknown { op: op.to_string() }),
        };
        let failed = |error| io_error(BITMAP, error);
        let file = File::options().read(true).write(true).open(BITMAP);
        let file = file.map_err(failed)?;
        list_new_pages().map_err(|error| io_error("madvise", error))?;
        self.say(&format!("OP {op}"))?;
        for at in gfn.raw()..gfn.raw() + pages.raw() {
            let hva = self.host_address(op, Gfn::new(at)).ok();
            let page = hva.map(|hva| self.pagemap.page_alone(hva)).transpose();
            let page = page.map_err(|error| io_error("/proc/self/pagemap", error))?;
            let page = page.flatten();
            let place = page.map(|page| (page.pfn / 64 * 8, 1u64 << (page.pfn % 64)));
            match (place, mark) {
                (Some((word, bit)), true) => {
                    file.write_at(&bit.to_le_bytes(), word).map_err(failed)?;
                }
                (Some((word, bit)), false) => {
                    let mut bytes = [0; 8];
                    file.read_exact_at(&mut bytes, word).map_err(failed)?;
                    self.note(&Note::Idle(u64::from_le_bytes(bytes) & bit != 0))?;
                }
                (None, true) => {}
                (None, false) => self.note(&Note::Idle(false))?,
            }
        }
        match mark {
            true => self.ret(Ok(8 * i64::try_from(pages.raw()).unwrap_or(0))),
            false => Ok(()),
        }
    }
}

impl Area {
    /// Pages of a pool are given back and protected as a whole, and nothing else can be done to them.
    fn takes(&self, op: &Op<'_>, hva: Hva, bytes: u64) -> bool {
        let unit = self.kind.unit() * PAGE_SIZE;
        let whole = hva.raw() % unit == 0 && bytes % unit == 0;
        let known = matches!(
            op,
            Op::Mprotect { .. }
                | Op::Madvise {
                    advice: "DONTNEED",
                    ..
                }
        );
        whole && (known || !self.kind.is_file())
    }
}

/// Frames of a huge page.
const HUGE: usize = 0x200;

/// `MADV_*`.
fn advice_of(name: &str) -> Option<i32> {
    /// Not in every C library.
    const SOFT_OFFLINE: i32 = 101;
    Some(match name {
        "DONTNEED" => libc::MADV_DONTNEED,
        "FREE" => libc::MADV_FREE,
        "COLLAPSE" => libc::MADV_COLLAPSE,
        "SOFT_OFFLINE" => SOFT_OFFLINE,
        _ => return None,
    })
}

/// Makes the kernel put new pages on its lists: nothing is told or known of others. It does when anything is given back.
fn list_new_pages() -> io::Result<()> {
    let page = usize::try_from(PAGE_SIZE).unwrap_or(0);
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping, which nobody else knows and which ends here.
    unsafe {
        let at = libc::mmap(std::ptr::null_mut(), page, prot, flags, -1, 0);
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        libc::madvise(at, page, libc::MADV_DONTNEED);
        libc::munmap(at, page);
    }
    Ok(())
}

/// Waits until a thread of the kernel has nothing to do.
fn sleeps(name: &str) -> io::Result<()> {
    let threads = fs::read_dir("/proc")?.filter_map(Result::ok);
    let is_it =
        |path: &Path| fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name);
    let mut threads = threads.map(|entry| entry.path());
    let Some(thread) = threads.find(|path| is_it(path)) else {
        return Ok(());
    };
    let state = || -> io::Result<bool> {
        let text = fs::read_to_string(thread.join("stat"))?;
        Ok(text.contains(") S "))
    };
    let mut seen = 0;
    while seen < 2 {
        std::thread::sleep(Duration::from_millis(1));
        seen = if state()? { seen + 1 } else { 0 };
    }
    Ok(())
}

/// Waits until a thread of the kernel has gone over all memory so often.
fn scans(folder: &str, times: u64) -> io::Result<()> {
    const LIMIT: Duration = Duration::from_secs(20);
    let count = || -> io::Result<u64> {
        let text = fs::read_to_string(format!("{folder}/full_scans"))?;
        text.trim().parse().map_err(io::Error::other)
    };
    let (begin, first) = (Instant::now(), count()?);
    while count()? < first + times {
        if begin.elapsed() > LIMIT {
            return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

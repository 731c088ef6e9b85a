//! Operations, one after the other.

mod fault_filler;
mod host;
mod nested;
mod tables;
mod vcpu;
mod vm;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;

use kvm_ioctls::Kvm;
use slat_memslot::{AsId, Errno, Gfn, Hva, Level, PAGE_SHIFT, PAGE_SIZE, PageSize, Pages};
use thiserror::Error;

use self::fault_filler::FaultFiller;
use self::host::Child;
use self::vm::Machine;
use super::areas::{Areas, Kind};
use super::execute::{self, Stop};
use super::guest;
use super::pagemap::{Page, Pagemap};
use crate::traces::{GuestAct, Leaves, Note, Op, Ret, SetRegion};

/// Where a driver writes what it does.
pub trait Journal {
    /// Adds a line.
    ///
    /// # Errors
    /// It cannot be written.
    fn say(&mut self, line: &str) -> io::Result<()>;
}

/// Lines in memory, for whoever wants no events.
impl Journal for Vec<String> {
    fn say(&mut self, line: &str) -> io::Result<()> {
        self.push(line.to_owned());
        Ok(())
    }
}

/// A file that takes a line with each write, as `trace_marker` does.
impl Journal for File {
    fn say(&mut self, line: &str) -> io::Result<()> {
        self.write_all(line.as_bytes())
    }
}

/// An operation could not be made, or not be told. What the kernel refuses is no error: it is told.
#[derive(Debug, Error)]
pub enum DriveError {
    /// `/dev/kvm` cannot be opened.
    #[error("/dev/kvm: {0}")]
    Kvm(kvm_ioctls::Error),
    /// The driver does not know how.
    #[error("{op}: the driver cannot do that")]
    Unknown {
        /// The operation.
        op: String,
    },
    /// There is nothing that the operation could be made on.
    #[error("{op}: there is no {missing}")]
    Missing {
        /// The operation.
        op: String,
        /// What it needs.
        missing: &'static str,
    },
    /// Something beside KVM failed.
    #[error("{what}: {error}")]
    Io {
        /// What.
        what: String,
        /// Why.
        error: io::Error,
    },
}

/// Makes operations on `/dev/kvm`, and tells of them.
///
/// The first area holds the guest's instructions: the slot that has frame 0 has to begin there.
#[derive(Debug)]
pub struct Driver<J> {
    kvm: Kvm,
    journal: J,
    areas: Areas,
    /// What stops guests with tables of their own.
    stop: Stop,
    pagemap: Pagemap,
    machine: Option<Machine>,
    /// Those that share the memory.
    children: Vec<Child>,
    /// Who fills missing pages, if somebody does.
    filler: Option<FaultFiller>,
    /// By host address, the page that was told last.
    told: BTreeMap<u64, Page>,
    /// The address space that backing notes speak of.
    notes_of: AsId,
    /// What was protected last.
    protected: Option<(Gfn, Pages)>,
}

type Done = Result<(), DriveError>;

impl<J: Journal> Driver<J> {
    /// A driver with no VM yet.
    ///
    /// # Errors
    /// `/dev/kvm` or the page map cannot be opened.
    pub fn new(mut areas: Areas, journal: J) -> Result<Self, DriveError> {
        let stop = Stop::here();
        if let Some(first) = areas.list().first().map(|area| area.start) {
            for (at, code) in guest::CODE {
                areas.write(Hva::new(first.raw() + at), code);
            }
            execute::write_code(&mut areas, first, stop);
        }
        Ok(Self {
            kvm: Kvm::new().map_err(DriveError::Kvm)?,
            journal,
            areas,
            stop,
            pagemap: Pagemap::open().map_err(|error| io_error("/proc/self/pagemap", error))?,
            machine: None,
            children: Vec::new(),
            filler: None,
            told: BTreeMap::new(),
            notes_of: AsId::NORMAL,
            protected: None,
        })
    }

    /// What it tells.
    pub fn journal(&self) -> &J {
        &self.journal
    }

    /// The same, to be used after it.
    pub fn into_journal(self) -> J {
        self.journal
    }

    /// The memory for slots.
    pub fn areas(&self) -> &Areas {
        &self.areas
    }

    /// Tells of an operation, makes it, and tells what came of it.
    ///
    /// # Errors
    /// It cannot be made at all, or not be told.
    pub fn run(&mut self, op: &Op<'_>) -> Done {
        self.look_for(op)?;
        if self.is_counted() {
            return self.run_counted(op);
        }
        if !matches!(op, Op::Guest { .. } | Op::Poke { .. }) {
            self.statistics()?;
        }
        if let Op::SetRegion(region) = op {
            self.huge_pages(region)?;
        }
        self.operation(op)?;
        match op {
            // L2 reaches frames that only its tables tell.
            Op::SetRegion(region) if self.runs_l2() => {
                self.backing_in(region.as_id, region.gfn, region.pages.raw())
            }
            _ => Ok(()),
        }
    }

    fn runs_l2(&self) -> bool {
        self.machine.as_ref().is_some_and(|machine| machine.runs_l2)
    }

    fn operation(&mut self, op: &Op<'_>) -> Done {
        match op {
            Op::Poke { hva, value } => self.poke(op, *hva, *value),
            Op::Guest {
                vcpu,
                act:
                    GuestAct::Execution {
                        privilege,
                        instruction,
                    },
            } => self.execute(op, (*vcpu, instruction, *privilege)),
            Op::Madvise { .. } | Op::Mprotect { .. } | Op::Userfault { .. } => self.host_call(op),
            Op::Fork | Op::ChildEnds | Op::HostWork(_) => self.host_work(op),
            Op::MarkFramesIdle { .. } | Op::ReadFramesIdle { .. } => self.page_idle(op),
            Op::ModuleParameter { name, value } => {
                self.say(&format!("OP {op}"))?;
                self.machine.iter_mut().for_each(Machine::roots_go);
                set_parameter(name, value)
            }
            Op::Guest {
                vcpu,
                act: act @ (GuestAct::RunL2 { .. } | GuestAct::StoreOfL1 { .. }),
            } => self.run_l1(op, *vcpu, act),
            Op::Guest { vcpu, act } => self.guest(op, *vcpu, act),
            Op::CreateVcpu { .. }
            | Op::CloseVcpu { .. }
            | Op::SetCpuid { .. }
            | Op::SetSregs { .. }
            | Op::SetMsr { .. }
            | Op::SetSmm(_)
            | Op::HarvestRing { .. }
            | Op::PreFault { .. } => self.vcpu_call(op),
            _ => self.vm_call(op),
        }
    }

    /// Whether there is what an operation needs: it is told only then.
    fn look_for(&self, op: &Op<'_>) -> Done {
        let vcpu = match op {
            Op::CreateVm { .. } | Op::ModuleParameter { .. } => return Ok(()),
            Op::CloseVcpu { id } | Op::HarvestRing { vcpu: id } => Some(*id),
            Op::SetCpuid { vcpu, .. } | Op::PreFault { vcpu, .. } | Op::Guest { vcpu, .. } => {
                Some(*vcpu)
            }
            Op::SetSregs { vcpu, .. } | Op::SetMsr { vcpu, .. } => Some(vcpu.unwrap_or(0)),
            Op::SetSmm(_) | Op::Smi => Some(0),
            _ => None,
        };
        let machine = self.machine.as_ref().ok_or_else(|| missing(op, "VM"))?;
        let Some(id) = vcpu else { return Ok(()) };
        match op {
            _ if !machine.vcpus.contains_key(&id) => Err(missing(op, "vCPU")),
            // Some kernels never come back from pre-faulting through an obsolete root.
            Op::PreFault { .. } if machine.stale.contains(&id) => {
                Err(missing(op, "vCPU whose root is there"))
            }
            _ => Ok(()),
        }
    }

    // --- Telling -----------------------------------------------------------------------------------------------------

    fn say(&mut self, line: &str) -> Done {
        let said = self.journal.say(line);
        said.map_err(|error| io_error("the journal", error))
    }

    fn note(&mut self, note: &Note<'_>) -> Done {
        self.say(&format!("NOTE {note}"))
    }

    fn ret(&mut self, result: Result<i64, Errno>) -> Done {
        let ret = match result {
            Ok(value) => Ret::Value(value),
            Err(errno) => Ret::Failed(errno),
        };
        self.say(&format!("RET {ret}"))
    }

    /// Tells which pages are behind frames of the guest's address space, as far as that is not told yet.
    fn backing(&mut self, first: Gfn, pages: u64) -> Done {
        let as_id = self.machine.as_ref().map(|machine| machine.as_id);
        self.backing_in(as_id.unwrap_or(AsId::NORMAL), first, pages)
    }

    fn backing_in(&mut self, as_id: AsId, first: Gfn, pages: u64) -> Done {
        let Some(machine) = &self.machine else {
            return Ok(());
        };
        let (mut found, mut at) = (Vec::new(), first.raw());
        while at < first.raw().saturating_add(pages) {
            let gfn = Gfn::new(at);
            at += 1;
            let slots = machine.slots.iter().filter(|((of, _), _)| *of == as_id);
            let hva = slots.filter_map(|(_, slot)| slot.hva_of(gfn)).next();
            let Some(hva) = hva else { continue };
            if let Some(page) = self.page(hva)? {
                // A huge page is told once.
                let inside = (hva.raw() >> PAGE_SHIFT) & (page.level.pages().raw() - 1);
                at += page.level.pages().raw() - inside - 1;
                found.push((gfn, hva, page));
            }
        }
        for (gfn, hva, page) in found {
            if self.told.insert(hva.raw(), page) == Some(page) {
                continue;
            }
            if core::mem::replace(&mut self.notes_of, as_id) != as_id {
                self.note(&Note::BackingOf(as_id))?;
            }
            self.note(&Note::Backing {
                gfn,
                pfn: page.pfn,
                level: Some(page.level),
            })?;
        }
        Ok(())
    }

    /// The page at an address, if it lies in the areas and has one.
    fn page(&self, hva: Hva) -> Result<Option<Page>, DriveError> {
        let Some(area) = self.areas.holding(hva, PAGE_SIZE) else {
            return Ok(None);
        };
        let page = self.pagemap.page(hva);
        let page = page.map_err(|error| io_error("/proc/self/pagemap", error))?;
        Ok(page.map(|page| match area.kind {
            Kind::Gigantic => Page {
                level: Level::L3,
                ..page
            },
            _ => page,
        }))
    }

    /// Tells how many leaves there are, where debugfs shows it.
    fn statistics(&mut self) -> Done {
        let vm = self.machine.as_ref().map(|machine| machine.vm.as_raw_fd());
        let Some(vm) = vm else { return Ok(()) };
        // The folder is named after the thread that made the VM.
        let Ok(thread) = std::fs::read_link("/proc/thread-self") else {
            return Ok(());
        };
        let thread = thread.file_name().unwrap_or_default().to_string_lossy();
        let place = format!("/sys/kernel/debug/kvm/{thread}-{vm}");
        let read = |name| -> Option<u64> {
            let text = std::fs::read_to_string(format!("{place}/{name}")).ok()?;
            text.trim().parse().ok()
        };
        let leaves = (read("pages_4k"), read("pages_2m"), read("pages_1g"));
        if let (Some(pages_4k), Some(pages_2m), Some(pages_1g)) = leaves {
            self.note(&Note::Leaves(Leaves {
                pages_4k,
                pages_2m,
                pages_1g,
            }))?;
        }
        Ok(())
    }

    /// Tells where huge pages of a slot are, since what its log leaves behind may become huge again.
    fn huge_pages(&mut self, region: &SetRegion) -> Done {
        let slots = self.machine.as_ref().map(|machine| &machine.slots);
        let slot = slots.and_then(|slots| slots.get(&(region.as_id, region.slot)));
        let Some(slot) = slot.copied() else {
            return Ok(());
        };
        let huge = PageSize::Size2M.pages().raw();
        let inside = (slot.hva.raw() >> PAGE_SHIFT) % huge;
        let gigantic = self
            .areas
            .holding(slot.hva, PAGE_SIZE)
            .is_some_and(|area| area.kind == Kind::Gigantic);
        let step = if gigantic { 0x4_0000 } else { 0x200 };
        let begins = (0..slot.pages.raw() + inside).step_by(step);
        for begin in begins {
            let gfn = Gfn::new(slot.gfn.raw() + begin.saturating_sub(inside));
            self.backing_in(region.as_id, gfn, 1)?;
        }
        Ok(())
    }
}

/// As many pages are told of after an operation.
const MOST_TOLD: u64 = 1 << 12;

fn set_parameter(name: &str, value: &str) -> Done {
    let path = format!("/sys/module/kvm/parameters/{name}");
    std::fs::write(&path, value).map_err(|error| io_error(&path, error))
}

fn io_error(what: &str, error: io::Error) -> DriveError {
    let what = what.to_owned();
    DriveError::Io { what, error }
}

fn missing(op: &Op<'_>, missing: &'static str) -> DriveError {
    let op = op.to_string();
    DriveError::Missing { op, missing }
}

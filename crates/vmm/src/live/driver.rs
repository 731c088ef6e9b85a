//! Operations, one after the other.
#![expect(unsafe_code, reason = "slots give the kernel host addresses")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};

use kvm_bindings::{
    kvm_enable_cap, kvm_memory_attributes, kvm_pre_fault_memory, kvm_userspace_memory_region,
    kvm_userspace_memory_region2,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use slat_memslot::{
    AsId, Errno, Gfn, Hva, PAGE_SHIFT, PAGE_SIZE, PageSize, Pages, SlotId, SlotKey, cap,
};
use thiserror::Error;

use super::areas::Areas;
use super::execute::{self, Stop};
use super::guest;
use super::pagemap::{Page, Pagemap};
use crate::kvm::{Stats, create_gmem, errno, ioctl, make_flat};
use crate::traces::{
    Control, GuestAct, Instruction, Leaves, MmuCounts, Note, Op, Ret, SetRegion, Sregs,
};
use slat_mmu::walk::Privilege;

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

/// A slot, as far as the driver has to know it.
#[derive(Clone, Copy, Debug)]
struct Slot {
    gfn: Gfn,
    pages: Pages,
    hva: Hva,
}

impl Slot {
    fn hva_of(&self, gfn: Gfn) -> Option<Hva> {
        let offset = gfn.raw().wrapping_sub(self.gfn.raw());
        (offset < self.pages.raw()).then(|| Hva::new(self.hva.raw() + (offset << PAGE_SHIFT)))
    }
}

/// A VM and everything in it. Dropped in this order: what is in it first.
#[derive(Debug)]
struct Machine {
    vcpus: BTreeMap<u32, VcpuFd>,
    gmem: Vec<OwnedFd>,
    slots: BTreeMap<(AsId, u16), Slot>,
    /// The address space that the guest is in.
    as_id: AsId,
    /// Read after each operation, where guests have tables of their own.
    stats: Option<Stats>,
    vm: VmFd,
}

/// Makes operations on `/dev/kvm`, and tells of them.
///
/// The first area holds the guest's instructions: the slot that has frame 0 has to begin there.
#[derive(Debug)]
pub struct Driver<J> {
    kvm: Kvm,
    journal: J,
    areas: Areas,
    stop: Stop,
    pagemap: Pagemap,
    machine: Option<Machine>,
    /// By host address, the page that was told last.
    told: BTreeMap<u64, Page>,
    /// The address space that backing notes speak of.
    notes_of: AsId,
    /// What was protected last.
    protected: Option<(Gfn, Pages)>,
}

type Done = Result<(), DriveError>;

/// The second version of the call takes a descriptor; without a file there is none.
const NO_FILE: i32 = -1;

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
        match op {
            Op::Madvise { .. } | Op::Mprotect { .. } => return self.host_call(op),
            Op::Poke { hva, value } => return self.poke(op, *hva, *value),
            _ => self.look_for(op)?,
        }
        let counted = self
            .machine
            .as_ref()
            .is_some_and(|machine| machine.stats.is_some());
        if counted {
            if let Op::CloseVm = op {
                self.counts()?;
            }
            self.operation(op)?;
            if let Op::SetRegion(region) = op {
                self.backing_in(region.as_id, region.gfn, region.pages.raw())?;
            }
            return self.counts();
        }
        match op {
            Op::SetRegion(region) => {
                self.statistics()?;
                self.huge_pages(region)?;
            }
            Op::CloseVm => self.statistics()?,
            _ => {}
        }
        self.operation(op)
    }

    fn operation(&mut self, op: &Op<'_>) -> Done {
        self.say(&format!("OP {op}"))?;
        match op {
            Op::CreateVm { vm_type } => self.create_vm(*vm_type),
            Op::CloseVm => {
                self.machine = None;
                self.told.clear();
                Ok(())
            }
            Op::ModuleParameter { name, value } => set_parameter(name, value),
            Op::Guest {
                vcpu,
                act:
                    GuestAct::Execution {
                        privilege,
                        instruction,
                    },
            } => self.execute(*vcpu, instruction, *privilege),
            Op::Guest { vcpu, act } => self.guest(op, *vcpu, act),
            Op::CreateVcpu { .. }
            | Op::CloseVcpu { .. }
            | Op::SetCpuid { .. }
            | Op::SetSregs { .. }
            | Op::SetSmm(_)
            | Op::PreFault { .. } => self.vcpu_call(op),
            _ => self.vm_call(op),
        }
    }

    /// Whether there is what an operation needs: it is told only then.
    fn look_for(&self, op: &Op<'_>) -> Done {
        let vcpu = match op {
            Op::CreateVm { .. } | Op::ModuleParameter { .. } => return Ok(()),
            Op::CloseVcpu { id } => Some(*id),
            Op::SetCpuid { vcpu, .. } | Op::PreFault { vcpu, .. } | Op::Guest { vcpu, .. } => {
                Some(*vcpu)
            }
            Op::SetSregs { vcpu, .. } => Some(vcpu.unwrap_or(0)),
            Op::SetSmm(_) | Op::Smi => Some(0),
            _ => None,
        };
        let machine = self.machine.as_ref().ok_or_else(|| missing(op, "VM"))?;
        match vcpu {
            Some(id) if !machine.vcpus.contains_key(&id) => Err(missing(op, "vCPU")),
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
            let Some(hva) = hva.filter(|hva| self.areas.holding(*hva, PAGE_SIZE).is_some()) else {
                continue;
            };
            let page = self.pagemap.page(hva);
            let page = page.map_err(|error| io_error("/proc/self/pagemap", error))?;
            if let Some(page) = page {
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

    /// Tells how many leaves there are, and what was done to shadow pages.
    fn counts(&mut self) -> Done {
        let stats = self
            .machine
            .as_ref()
            .and_then(|machine| machine.stats.as_ref());
        let Some(stats) = stats else { return Ok(()) };
        let read = |name| stats.read(name).unwrap_or(0);
        let leaves = Leaves {
            pages_4k: read("pages_4k"),
            pages_2m: read("pages_2m"),
            pages_1g: read("pages_1g"),
        };
        let counts = MmuCounts {
            shadow_zapped: read("mmu_shadow_zapped"),
            pte_write: read("mmu_pte_write"),
            pde_zapped: read("mmu_pde_zapped"),
            flooded: read("mmu_flooded"),
            recycled: read("mmu_recycled"),
            cache_miss: read("mmu_cache_miss"),
            unsync: read("mmu_unsync"),
        };
        self.note(&Note::Leaves(leaves))?;
        self.note(&Note::Counts(counts))
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
        let begins = (0..slot.pages.raw() + inside).step_by(0x200);
        for begin in begins {
            let gfn = Gfn::new(slot.gfn.raw() + begin.saturating_sub(inside));
            self.backing_in(region.as_id, gfn, 1)?;
        }
        Ok(())
    }

    // --- VMs ---------------------------------------------------------------------------------------------------------

    fn create_vm(&mut self, vm_type: u64) -> Done {
        let made = self.kvm.create_vm_with_type(vm_type);
        let result = made.map_err(errno).map(|vm| {
            let descriptor = i64::from(vm.as_raw_fd());
            self.machine = Some(Machine {
                vcpus: BTreeMap::new(),
                gmem: Vec::new(),
                slots: BTreeMap::new(),
                as_id: AsId::NORMAL,
                stats: None,
                vm,
            });
            descriptor
        });
        self.notes_of = AsId::NORMAL;
        self.told.clear();
        self.ret(result)
    }

    fn vm_call(&mut self, op: &Op<'_>) -> Done {
        let machine = self.machine.as_mut().ok_or_else(|| missing(op, "VM"))?;
        let result = match op {
            Op::EnableCap { cap, arg, .. } => enable_cap(&machine.vm, cap, *arg),
            Op::SetRegion(region) => machine.set_region(region),
            Op::CreateGmem { size } => machine.create_gmem(*size),
            Op::CloseGmem => {
                machine.gmem.pop();
                return Ok(());
            }
            Op::PunchHole { offset, len } => machine.punch_hole(*offset, *len),
            Op::SetAttributes {
                gfn,
                pages,
                attributes,
            } => {
                let request = kvm_memory_attributes {
                    address: gfn.raw() << PAGE_SHIFT,
                    size: pages.raw() << PAGE_SHIFT,
                    attributes: *attributes,
                    flags: 0,
                };
                let set = machine.vm.set_memory_attributes(request);
                set.map(|()| 0).map_err(errno)
            }
            Op::SetMmuPages { pages } => {
                ioctl::set_nr_mmu_pages(machine.vm.as_raw_fd(), *pages).map(i64::from)
            }
            Op::GetDirtyLog { slot } => return self.get_dirty_log(*slot),
            Op::ClearDirtyLog { slot, first, pages } => {
                machine.clear_dirty_log(*slot, *first, *pages)
            }
            Op::Smi => match machine.vcpus.values().next() {
                Some(vcpu) => vcpu.smi().map(|()| 0).map_err(errno),
                None => return Err(missing(op, "vCPU")),
            },
            _ => return Err(DriveError::Unknown { op: op.to_string() }),
        };
        self.ret(result)
    }

    fn get_dirty_log(&mut self, slot: u16) -> Done {
        let Some(machine) = &self.machine else {
            return Ok(());
        };
        let pages = machine.pages_of(slot);
        let mut words = vec![0; words_for(pages)];
        let id = u32::from(slot);
        let result = ioctl::get_dirty_log(machine.vm.as_raw_fd(), id, Some(&mut words));
        self.ret(result.map(i64::from))?;
        if result.is_err() {
            return Ok(());
        }
        let bits = (0..pages).filter(|page| {
            let word = usize::try_from(page / 64).ok().and_then(|at| words.get(at));
            word.is_some_and(|word| word >> (page % 64) & 1 != 0)
        });
        let dirty: Vec<u64> = bits.collect();
        self.note(&Note::Dirty {
            count: dirty.len() as u64,
            first: dirty.into_iter().take(MOST_DIRTY).collect(),
        })
    }

    // --- vCPUs -------------------------------------------------------------------------------------------------------

    fn vcpu_call(&mut self, op: &Op<'_>) -> Done {
        let machine = self.machine.as_mut().ok_or_else(|| missing(op, "VM"))?;
        let vcpu = |id: &u32| machine.vcpus.get(id).ok_or_else(|| missing(op, "vCPU"));
        let result = match op {
            Op::CreateVcpu { id } => {
                let made = machine.vm.create_vcpu(u64::from(*id)).map_err(errno);
                made.map(|vcpu| {
                    let descriptor = i64::from(vcpu.as_raw_fd());
                    machine.vcpus.insert(*id, vcpu);
                    descriptor
                })
            }
            Op::CloseVcpu { id } => {
                machine.vcpus.remove(id);
                return Ok(());
            }
            Op::SetCpuid {
                vcpu: id,
                max_phys_addr,
            } => guest::set_cpuid(&self.kvm, vcpu(id)?, *max_phys_addr).map(|()| 0),
            Op::SetSregs {
                vcpu: id,
                sregs: Sregs::Flat,
            } => make_flat(vcpu(&id.unwrap_or(0))?).map(|()| 0),
            Op::SetSregs {
                vcpu: id,
                sregs: Sregs::Control(control),
            } => {
                if machine.stats.is_none() {
                    machine.stats = Stats::of(&machine.vm).ok();
                }
                execute::set_control(vcpu(&id.unwrap_or(0))?, control).map(|()| 0)
            }
            Op::SetSmm(inside) => {
                let result = guest::set_smm(vcpu(&0)?, *inside).map(|()| 0);
                let space = u8::from(*inside && result.is_ok());
                machine.as_id = AsId::new(space).unwrap_or(AsId::NORMAL);
                result
            }
            Op::PreFault {
                vcpu: id,
                gfn,
                pages,
                flags,
            } => {
                let mut range = kvm_pre_fault_memory {
                    gpa: gfn.raw() << PAGE_SHIFT,
                    size: pages.raw() << PAGE_SHIFT,
                    flags: flags.unwrap_or(0),
                    ..Default::default()
                };
                let done = ioctl::pre_fault(vcpu(id)?.as_raw_fd(), &mut range);
                let left = Note::PreFaultLeft {
                    gfn: Gfn::new(range.gpa >> PAGE_SHIFT),
                    pages: Pages::new(range.size >> PAGE_SHIFT),
                };
                self.ret(done.map(i64::from))?;
                self.note(&left)?;
                return self.backing(*gfn, pages.raw().min(MOST_TOLD));
            }
            _ => return Err(DriveError::Unknown { op: op.to_string() }),
        };
        self.ret(result)
    }

    fn execute(&mut self, id: u32, instruction: &Instruction, privilege: Privilege) -> Done {
        let journal = &mut self.journal;
        let vcpu = self
            .machine
            .as_mut()
            .and_then(|machine| machine.vcpus.get_mut(&id));
        let Some(vcpu) = vcpu else { return Ok(()) };
        let ran = execute::run(vcpu, (instruction, privilege, self.stop), |note| {
            journal.say(&format!("NOTE {note}"))
        });
        match ran {
            Ok((told, lost)) => {
                told.map_err(|error| io_error("the journal", error))?;
                lost.map_or(Ok(()), |control| self.restore(id, control))
            }
            Err(errno) => self.ret(Err(errno)),
        }
    }

    /// A vCPU that has lost its registers gets them again.
    fn restore(&mut self, id: u32, control: Control) -> Done {
        self.counts()?;
        self.operation(&Op::SetSregs {
            vcpu: Some(id),
            sregs: Sregs::Control(control),
        })
    }

    fn guest(&mut self, op: &Op<'_>, id: u32, act: &GuestAct<'_>) -> Done {
        let start =
            guest::Start::of(act).ok_or_else(|| DriveError::Unknown { op: op.to_string() })?;
        let machine = self.machine.as_mut().ok_or_else(|| missing(op, "VM"))?;
        let vcpu = machine.vcpus.get_mut(&id);
        let vcpu = vcpu.ok_or_else(|| missing(op, "vCPU"))?;
        let journal = &mut self.journal;
        let ran = guest::run(vcpu, &start, |note| journal.say(&format!("NOTE {note}")));
        match ran {
            Ok(told) => told.map_err(|error| io_error("the journal", error))?,
            Err(errno) => return self.ret(Err(errno)),
        }
        let (first, pages) = start.reaches();
        self.backing(Gfn::new(1), 1)?;
        self.backing(first.gfn(), pages.min(MOST_TOLD))
    }

    // --- The host ----------------------------------------------------------------------------------------------------

    fn poke(&mut self, op: &Op<'_>, hva: Hva, value: u64) -> Done {
        self.say(&format!("OP {op}"))?;
        match self.areas.write(hva, &value.to_le_bytes()) {
            true => Ok(()),
            false => Err(missing(op, "area that holds the address")),
        }
    }

    /// A call on host memory; told only where there is any.
    fn host_call(&mut self, op: &Op<'_>) -> Done {
        let (gfn, pages) = match op {
            Op::Madvise { gfn, pages, .. } => (*gfn, *pages),
            Op::Mprotect { range, .. } => {
                self.protected = range.or(self.protected);
                self.protected.ok_or_else(|| missing(op, "range"))?
            }
            _ => return Err(DriveError::Unknown { op: op.to_string() }),
        };
        let hva = self.host_address(op, gfn)?;
        let bytes = pages.raw() << PAGE_SHIFT;
        if self.areas.holding(hva, bytes).is_none() {
            return Err(missing(op, "area that holds the range"));
        }
        self.say(&format!("OP {op}"))?;
        let result = match op {
            Op::Mprotect { writable, .. } => self.areas.protect(hva, bytes, *writable),
            Op::Madvise {
                advice: "COLLAPSE", ..
            } => self.areas.advise(hva, bytes, libc::MADV_COLLAPSE),
            _ => self.areas.advise(hva, bytes, libc::MADV_DONTNEED),
        };
        // The page may be another one from now on.
        self.told.clear();
        let failed = |error: io::Error| Errno::new(error.raw_os_error().unwrap_or(0));
        self.ret(result.map(|()| 0).map_err(failed))
    }

    fn host_address(&self, op: &Op<'_>, gfn: Gfn) -> Result<Hva, DriveError> {
        let slots = self.machine.iter().flat_map(|machine| &machine.slots);
        let mut normal = slots.filter(|((as_id, _), _)| *as_id == AsId::NORMAL);
        let hva = normal.find_map(|(_, slot)| slot.hva_of(gfn));
        hva.ok_or_else(|| missing(op, "slot with this frame"))
    }
}

/// As many dirty pages are named.
const MOST_DIRTY: usize = 40;
/// As many pages are told of after an operation.
const MOST_TOLD: u64 = 1 << 12;

impl Machine {
    fn pages_of(&self, slot: u16) -> u64 {
        let slot = self.slots.get(&(AsId::NORMAL, slot));
        slot.map_or(0, |slot| slot.pages.raw())
    }

    fn set_region(&mut self, region: &SetRegion) -> Result<i64, Errno> {
        let hva = region.hva.unwrap_or(Hva::new(0));
        let key = SlotKey {
            as_id: region.as_id,
            id: SlotId::new(region.slot),
        };
        let slot = key.raw();
        let (guest_phys_addr, memory_size) = (
            region.gfn.raw() << PAGE_SHIFT,
            region.pages.raw() << PAGE_SHIFT,
        );
        let set = match region.gmem_offset {
            None => {
                let request = kvm_userspace_memory_region {
                    slot,
                    flags: region.flags,
                    guest_phys_addr,
                    memory_size,
                    userspace_addr: hva.raw(),
                };
                // SAFETY: the guest runs only while `Areas` are mapped; an address outside of them is never mapped by
                // this process while a VM of the driver lives, since areas are far from everything else.
                unsafe { self.vm.set_user_memory_region(request) }
            }
            Some(guest_memfd_offset) => {
                let file = self.gmem.last().map(AsRawFd::as_raw_fd);
                let request = kvm_userspace_memory_region2 {
                    slot,
                    flags: region.flags,
                    guest_phys_addr,
                    memory_size,
                    userspace_addr: hva.raw(),
                    guest_memfd_offset,
                    guest_memfd: u32::from_ne_bytes(file.unwrap_or(NO_FILE).to_ne_bytes()),
                    ..Default::default()
                };
                // SAFETY: as above.
                unsafe { self.vm.set_user_memory_region2(request) }
            }
        };
        set.map_err(errno)?;
        let key = (region.as_id, region.slot);
        if region.pages.raw() == 0 {
            self.slots.remove(&key);
        } else {
            let (gfn, pages) = (region.gfn, region.pages);
            self.slots.insert(key, Slot { gfn, pages, hva });
        }
        Ok(0)
    }

    fn create_gmem(&mut self, size: u64) -> Result<i64, Errno> {
        let file = create_gmem(&self.vm, size, 0, 0)?;
        let descriptor = i64::from(file.as_raw_fd());
        self.gmem.push(file);
        Ok(descriptor)
    }

    fn punch_hole(&mut self, offset: u64, len: u64) -> Result<i64, Errno> {
        let mode = libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE;
        let file = self.gmem.last().ok_or(Errno::EBADF)?;
        let signed = |value: u64| i64::try_from(value).map_err(|_| Errno::EINVAL);
        let (offset, len) = (signed(offset)?, signed(len)?);
        // SAFETY: the call takes no pointers.
        ioctl::result(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) })
            .map(i64::from)
    }

    fn clear_dirty_log(&self, slot: u16, first: u64, pages: Pages) -> Result<i64, Errno> {
        let count = u32::try_from(pages.raw()).map_err(|_| Errno::EINVAL)?;
        // The kernel reads no more than the slot has.
        let words = vec![u64::MAX; words_for(pages.raw().min(self.pages_of(slot) + 64))];
        let vm = self.vm.as_raw_fd();
        ioctl::clear_dirty_log(vm, u32::from(slot), first, count, Some(&words)).map(i64::from)
    }
}

fn words_for(pages: u64) -> usize {
    usize::try_from(pages.div_ceil(64)).unwrap_or(1).max(1)
}

fn enable_cap(vm: &VmFd, name: &str, arg: u64) -> Result<i64, Errno> {
    let known = cap::ALL.iter().find(|(_, known)| *known == name);
    let request = kvm_enable_cap {
        cap: known.map_or(u32::MAX, |(cap, _)| *cap),
        args: [arg, 0, 0, 0],
        ..Default::default()
    };
    vm.enable_cap(&request).map(|()| 0).map_err(errno)
}

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

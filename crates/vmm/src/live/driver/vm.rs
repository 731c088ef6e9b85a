//! Calls about a VM.
#![expect(unsafe_code, reason = "slots give the kernel host addresses")]

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsRawFd, OwnedFd};

use kvm_bindings::{
    kvm_enable_cap, kvm_memory_attributes, kvm_userspace_memory_region,
    kvm_userspace_memory_region2,
};
use kvm_ioctls::{VcpuFd, VmFd};
use slat_memslot::{AsId, Errno, Gfn, Hva, PAGE_SHIFT, Pages, SlotId, SlotKey, cap};

use super::{Done, DriveError, Driver, Journal, missing};
use crate::kvm::{Ring, Stats, create_gmem, errno, ioctl};
use crate::traces::{MOST_IN_A_NOTE, Note, Op, SetRegion};

/// A slot, as far as the driver has to know it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub(super) gfn: Gfn,
    pub(super) pages: Pages,
    pub(super) hva: Hva,
}

impl Slot {
    pub(super) fn hva_of(&self, gfn: Gfn) -> Option<Hva> {
        let offset = gfn.raw().wrapping_sub(self.gfn.raw());
        (offset < self.pages.raw()).then(|| Hva::new(self.hva.raw() + (offset << PAGE_SHIFT)))
    }
}

/// A VM and everything in it. Dropped in this order: what is in it first.
#[derive(Debug)]
pub(super) struct Machine {
    /// The dirty rings of vCPUs.
    pub(super) rings: BTreeMap<u32, Ring>,
    pub(super) vcpus: BTreeMap<u32, VcpuFd>,
    /// vCPUs that have not run since their roots may have become obsolete.
    pub(super) stale: BTreeSet<u32>,
    gmem: Vec<OwnedFd>,
    pub(super) slots: BTreeMap<(AsId, u16), Slot>,
    /// The address space that the guest is in.
    pub(super) as_id: AsId,
    /// The size of each ring; 0 where there are none.
    pub(super) ring_bytes: u64,
    /// Told after each operation, where guests have tables of their own.
    pub(super) stats: Option<Stats>,
    /// Whether its guests run guests of their own.
    pub(super) runs_l2: bool,
    pub(super) vm: VmFd,
}

/// The second version of the call takes a descriptor; without a file there is none.
const NO_FILE: i32 = -1;

impl<J: Journal> Driver<J> {
    fn create_vm(&mut self, vm_type: u64) -> Done {
        let made = self.kvm.create_vm_with_type(vm_type);
        let result = made.map_err(errno).map(|vm| {
            let descriptor = i64::from(vm.as_raw_fd());
            self.machine = Some(Machine {
                vcpus: BTreeMap::new(),
                stale: BTreeSet::new(),
                gmem: Vec::new(),
                slots: BTreeMap::new(),
                rings: BTreeMap::new(),
                ring_bytes: 0,
                stats: None,
                runs_l2: false,
                as_id: AsId::NORMAL,
                vm,
            });
            descriptor
        });
        self.notes_of = AsId::NORMAL;
        self.told.clear();
        self.ret(result)?;
        self.filled()
    }

    /// Tells of memory that has pages before anybody reads it.
    fn filled(&mut self) -> Done {
        let list = self.areas.list().to_vec();
        for area in list.into_iter().filter(|area| area.kind.is_file()) {
            self.note(&Note::Filled {
                hva: area.start,
                pages: area.pages,
            })?;
        }
        Ok(())
    }

    pub(super) fn vm_call(&mut self, op: &Op<'_>) -> Done {
        self.say(&format!("OP {op}"))?;
        match op {
            Op::CreateVm { vm_type } => return self.create_vm(*vm_type),
            Op::CloseVm => {
                self.machine = None;
                self.told.clear();
                return Ok(());
            }
            _ => {}
        }
        let machine = self.machine.as_mut().ok_or_else(|| missing(op, "VM"))?;
        let result = match op {
            Op::EnableCap { cap, arg, .. } => machine.enable_cap(cap, *arg),
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
            Op::ResetRings => ioctl::reset_dirty_rings(machine.vm.as_raw_fd()).map(i64::from),
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
            first: dirty.into_iter().take(MOST_IN_A_NOTE).collect(),
        })
    }
}

impl Machine {
    fn enable_cap(&mut self, name: &str, arg: u64) -> Result<i64, Errno> {
        let known = cap::ALL.iter().find(|(_, known)| *known == name);
        let cap = known.map_or(u32::MAX, |(cap, _)| *cap);
        let request = kvm_enable_cap {
            cap,
            args: [arg, 0, 0, 0],
            ..Default::default()
        };
        self.vm.enable_cap(&request).map_err(errno)?;
        if [cap::DIRTY_LOG_RING, cap::DIRTY_LOG_RING_ACQ_REL].contains(&cap) {
            self.ring_bytes = arg;
        }
        Ok(0)
    }

    fn pages_of(&self, slot: u16) -> u64 {
        let slot = self.slots.get(&(AsId::NORMAL, slot));
        slot.map_or(0, |slot| slot.pages.raw())
    }

    /// vCPUs may have obsolete roots until they run.
    pub(super) fn roots_go(&mut self) {
        self.stale = self.vcpus.keys().copied().collect();
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
        if self.slots.contains_key(&key) {
            self.roots_go();
        }
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

//! A VM of the real kernel.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use kvm_bindings::{kvm_enable_cap, kvm_memory_attributes, kvm_pre_fault_memory};
use kvm_ioctls::{Kvm, VmFd};
use slat_memslot::{
    AttributeMap, Attributes, Buffer, Call, ClearBits, DirtyPages, Errno, GfnRange, Gpa, Memory,
    Outcome, Pages, Profile, VmType,
};

use super::file::FileMapping;
use super::guest::Vcpu;
use super::ioctl::errno;
use super::region::{OtherFiles, Placed};
use super::{HostMemory, ioctl};
use crate::{CallError, CallResult, MemoryVm};

/// A VM made through `/dev/kvm`.
///
/// Slots may name any host address, as KVM allows; the guest only ever runs ([`Call::Guest`]) in pages of
/// [`HostMemory`].
#[derive(Debug)]
pub struct Vm {
    pub(super) kvm: Arc<Kvm>,
    pub(super) vm: VmFd,
    pub(super) host: Arc<HostMemory>,
    pub(super) profile: Arc<Profile>,
    /// A vCPU has a root, and a slot was deleted or moved since: on some kernels that root can never be loaded again.
    pub(super) stale_root: bool,
    pub(super) has_root: bool,
    pub(super) files: Vec<Option<OwnedFd>>,
    pub(super) maps: Vec<Option<FileMapping>>,
    pub(super) others: OtherFiles,
    /// What was set successfully, by the ioctls' slot number: the size of dirty bitmaps, and where the guest runs.
    pub(super) placed: BTreeMap<u32, Placed>,
    /// What was set successfully: which frames are private.
    pub(super) attributes: AttributeMap,
    pub(super) vcpus: Vec<Vcpu>,
    pub(super) ring_bytes: u64,
    pub(super) irqchip: bool,
    /// Guests run although the host maps pages for them.
    pub(super) maps_for_guests: bool,
    /// What was set successfully, as a whole.
    known: Memory,
}

impl Vm {
    pub(super) fn new(
        kvm: Arc<Kvm>,
        vm: VmFd,
        host: Arc<HostMemory>,
        (profile, vm_type): (Arc<Profile>, VmType),
    ) -> Self {
        Self {
            known: Memory::new(profile.clone(), vm_type),
            kvm,
            vm,
            host,
            profile,
            stale_root: false,
            has_root: false,
            files: Vec::new(),
            maps: Vec::new(),
            others: OtherFiles::default(),
            placed: BTreeMap::new(),
            attributes: AttributeMap::new(),
            vcpus: Vec::new(),
            ring_bytes: 0,
            irqchip: false,
            maps_for_guests: false,
        }
    }

    pub(super) fn fd(&self) -> RawFd {
        self.vm.as_raw_fd()
    }

    /// The pages of a slot that exists.
    fn slot_pages(&self, slot: u32) -> Pages {
        self.placed
            .get(&slot)
            .map_or(Pages::new(0), |placed| Pages::in_bytes(placed.size))
    }

    fn dirty_log(&self, slot: u32, buffer: Buffer) -> Result<Outcome, Errno> {
        let pages = self.slot_pages(slot);
        let mut words = vec![0; word_count(pages.raw())];
        let target = match buffer {
            Buffer::Good => Some(words.as_mut_slice()),
            Buffer::Null => None,
        };
        ioctl::get_dirty_log(self.fd(), slot, target)?;
        Ok(Outcome::Dirty(DirtyPages::from_words(pages, words)))
    }

    fn clear_log(
        &self,
        slot: u32,
        first_page: u64,
        num_pages: u32,
        bits: &ClearBits,
    ) -> Result<Outcome, Errno> {
        // The kernel refuses ranges that leave the slot before it reads a word.
        let count =
            word_count(u64::from(num_pages).min(self.slot_pages(slot).raw().next_multiple_of(64)));
        let words = match bits {
            ClearBits::All => Some(vec![u64::MAX; count]),
            ClearBits::Words(words) => {
                let mut words = words.clone();
                words.resize(count, 0);
                Some(words)
            }
            ClearBits::Null => None,
        };
        ioctl::clear_dirty_log(self.fd(), slot, first_page, num_pages, words.as_deref())?;
        Ok(Outcome::Done)
    }

    fn create_gmem(&mut self, size: u64, flags: u64, reserved: u64) -> Result<Outcome, Errno> {
        let file = super::file::create(&self.vm, size, flags, reserved)?;
        self.files.push(Some(file));
        let index = u32::try_from(self.files.len() - 1).map_err(|_| Errno::EMFILE)?;
        Ok(Outcome::Gmem(slat_memslot::GmemId::new(index)))
    }

    fn enable_cap(&mut self, cap: u32, flags: u32, args: [u64; 4]) -> Result<Outcome, Errno> {
        let request = kvm_enable_cap {
            cap,
            flags,
            args,
            ..Default::default()
        };
        self.vm.enable_cap(&request).map_err(errno)?;
        if let (
            slat_memslot::cap::DIRTY_LOG_RING | slat_memslot::cap::DIRTY_LOG_RING_ACQ_REL,
            [size, ..],
        ) = (cap, args)
        {
            // The kernel keeps the lower 32 bits.
            self.ring_bytes = size & u64::from(u32::MAX);
        }
        Ok(Outcome::Done)
    }

    fn check_extension(&self, cap: u32) -> Result<Outcome, Errno> {
        let value = self.vm.check_extension_raw(u64::from(cap));
        let value = ioctl::result(value)?;
        Ok(Outcome::Value(u64::try_from(value).unwrap_or(0)))
    }

    fn set_attributes(
        &mut self,
        address: u64,
        size: u64,
        attributes: u64,
        flags: u64,
    ) -> Result<Outcome, Errno> {
        let request = kvm_memory_attributes {
            address,
            size,
            attributes,
            flags,
        };
        self.vm.set_memory_attributes(request).map_err(errno)?;
        let range = GfnRange::new(Gpa::new(address).gfn(), Pages::in_bytes(size));
        if let Some(range) = range {
            let attributes = Attributes::from_bits_truncate(attributes);
            self.attributes.set(range, attributes);
        }
        Ok(Outcome::Done)
    }

    fn pre_fault(&mut self, vcpu: u32, gpa: u64, size: u64, flags: u64) -> Result<Outcome, Errno> {
        let vcpu = usize::try_from(vcpu)
            .ok()
            .and_then(|index| self.vcpus.get(index))
            .ok_or(Errno::EBADF)?;
        let mut range = kvm_pre_fault_memory {
            gpa,
            size,
            flags,
            ..Default::default()
        };
        let fd = vcpu.raw_fd();
        self.has_root = true;
        ioctl::pre_fault(fd, &mut range)?;
        Ok(Outcome::Remaining {
            gpa: range.gpa,
            size: range.size,
        })
    }

    /// Whether all slots that hold some of a guest-physical range have host memory that can be read.
    fn is_reachable(&self, gpa: u64, size: u64) -> bool {
        let end = gpa.saturating_add(size);
        let [writable, _, readonly] = self.host.areas().list();
        let readable = |placed: &Placed| {
            let inside = |area: &crate::scenario::Area| {
                area.offset_of(placed.hva)
                    .is_some_and(|offset| placed.size <= area.len - offset)
            };
            inside(&writable) || inside(&readonly)
        };
        self.placed
            .values()
            .filter(|p| p.gpa < end && gpa < p.gpa.saturating_add(p.size))
            .all(readable)
    }

    fn set_tss_addr(&self, gpa: u64) -> Result<Outcome, Errno> {
        let gpa = usize::try_from(gpa).map_err(|_| Errno::EINVAL)?;
        self.vm
            .set_tss_address(gpa)
            .map(|()| Outcome::Done)
            .map_err(errno)
    }
}

fn count(value: i32) -> Outcome {
    Outcome::Value(u64::try_from(value).unwrap_or(0))
}

fn word_count(pages: u64) -> usize {
    usize::try_from(pages.div_ceil(64))
        .unwrap_or(usize::MAX)
        .max(1)
}

impl MemoryVm for Vm {
    fn known_memory(&self) -> Option<&Memory> {
        Some(&self.known)
    }

    fn call(&mut self, call: &Call) -> CallResult {
        let result = self.make(call);
        if result.is_ok() && lays_out(call) {
            // What the kernel took, the model takes; where it does not, conversions are planned from less.
            let _taken = self.known.call(call);
        }
        result
    }
}

/// Whether a call changes what conversions are planned from.
const fn lays_out(call: &Call) -> bool {
    matches!(
        call,
        Call::SetRegion(_)
            | Call::CreateGmem { .. }
            | Call::File(..)
            | Call::Map(..)
            | Call::SetAttributes { .. }
    )
}

impl Vm {
    fn make(&mut self, call: &Call) -> CallResult {
        let outcome = match call {
            Call::SetRegion(request) => self.set_region(request),
            Call::CreateGmem {
                size,
                flags,
                reserved,
            } => self.create_gmem(*size, *flags, *reserved),
            Call::File(file, call) => self.file_call(*file, *call),
            Call::Map(map, call) => self.map_call(*map, *call),
            Call::SetAttributes {
                address,
                size,
                attributes,
                flags,
            } => self.set_attributes(*address, *size, *attributes, *flags),
            Call::GetDirtyLog { slot, buffer } => self.dirty_log(*slot, *buffer),
            Call::ClearDirtyLog {
                slot,
                first_page,
                num_pages,
                bits,
            } => self.clear_log(*slot, *first_page, *num_pages, bits),
            Call::ResetDirtyRings => ioctl::reset_dirty_rings(self.fd()).map(count),
            Call::HarvestDirtyRing { vcpu } => self.harvest(*vcpu),
            Call::EnableCap { cap, flags, args } => self.enable_cap(*cap, *flags, *args),
            Call::CheckExtension { cap } => self.check_extension(*cap),
            Call::CreateVcpu => self.create_vcpu(),
            Call::PreFault { .. } if self.stale_root && self.profile.pre_fault_spins.get() => {
                return Err(CallError::NotTried {
                    why: "this kernel spins when it pre-faults after a slot was deleted or moved",
                });
            }
            Call::PreFault { gpa, size, .. } if !self.is_reachable(*gpa, *size) => {
                return Err(CallError::NotTried {
                    why: "a slot's host memory is not in the host areas A and RO",
                });
            }
            Call::PreFault {
                vcpu,
                gpa,
                size,
                flags,
            } => self.pre_fault(*vcpu, *gpa, *size, *flags),
            Call::SetNrMmuPages { pages } => {
                ioctl::set_nr_mmu_pages(self.fd(), *pages).map(|_| Outcome::Done)
            }
            Call::SetTssAddr { gpa } => self.set_tss_addr(*gpa),
            Call::SetIdentityMapAddr { gpa } => self
                .vm
                .set_identity_map_address(*gpa)
                .map(|()| Outcome::Done)
                .map_err(errno),
            Call::CreateIrqchip => {
                let made = self.vm.create_irq_chip();
                self.irqchip |= made.is_ok();
                made.map(|()| Outcome::Done).map_err(errno)
            }
            Call::Guest(access) => return self.guest_access(access),
            Call::Contents(call) => return self.contents_call(call),
            Call::Sev(_) => {
                return Err(CallError::NotTried {
                    why: "a SEV guest is modelled only",
                });
            }
            Call::Tdx(_) => {
                return Err(CallError::NotTried {
                    why: "a TD and its guest are modelled only",
                });
            }
        };
        outcome.map_err(CallError::errno)
    }
}

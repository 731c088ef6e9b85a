//! vCPUs: a few bytes of guest code, and dirty rings.
#![expect(unsafe_code, reason = "the dirty ring is shared with the kernel")]

use std::os::fd::{AsRawFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use kvm_bindings::{kvm_regs, kvm_segment};
use kvm_ioctls::{VcpuExit, VcpuFd};
use slat_memslot::{Access, Errno, Hva, Outcome, PAGE_SIZE, Vendor};

use super::Vm;
use super::ioctl::errno;
use crate::{CallError, CallResult};

/// `mov [ebx], eax; hlt`.
const STORE: [u8; 3] = [0x89, 0x03, 0xf4];
/// Where a vCPU's mapping holds its dirty ring, in pages (`KVM_DIRTY_LOG_PAGE_OFFSET`).
const RING_PAGE: i64 = 64;
/// Where every vCPU has its local APIC at first.
const APIC_PAGE: u64 = 0xfee0_0000;
/// `KVM_EXIT_DIRTY_RING_FULL`.
const EXIT_RING_FULL: u32 = 31;
/// `KVM_DIRTY_GFN_F_DIRTY` and `KVM_DIRTY_GFN_F_RESET`.
const DIRTY: u32 = 1;
const RESET: u32 = 2;

/// One entry of a dirty ring (`struct kvm_dirty_gfn`).
#[repr(C)]
struct RingEntry {
    flags: AtomicU32,
    slot: AtomicU32,
    offset: std::sync::atomic::AtomicU64,
}

/// A vCPU's dirty ring, mapped.
#[derive(Debug)]
struct Ring {
    entries: NonNull<RingEntry>,
    count: usize,
    next: usize,
}

// SAFETY: the entries are atomics in memory that this value owns a mapping of.
unsafe impl Send for Ring {}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the range was mapped for this value and nothing else unmaps it.
        unsafe {
            libc::munmap(
                self.entries.as_ptr().cast(),
                self.count * size_of::<RingEntry>(),
            )
        };
    }
}

/// A vCPU.
#[derive(Debug)]
pub(super) struct Vcpu {
    // Declared before the descriptor: the ring is unmapped first.
    ring: Option<Ring>,
    fd: VcpuFd,
    flat: bool,
}

impl Vcpu {
    pub(super) fn raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Protected mode without paging, all segments flat: guest-physical addresses are what instructions see.
    fn make_flat(&mut self) -> Result<(), Errno> {
        if std::mem::replace(&mut self.flat, true) {
            return Ok(());
        }
        let mut sregs = self.fd.get_sregs().map_err(errno)?;
        let data = kvm_segment {
            limit: u32::MAX,
            type_: 3,
            present: 1,
            s: 1,
            db: 1,
            g: 1,
            selector: 16,
            ..Default::default()
        };
        sregs.cs = kvm_segment {
            type_: 11,
            selector: 8,
            ..data
        };
        (sregs.ds, sregs.es, sregs.ss, sregs.fs, sregs.gs) = (data, data, data, data, data);
        sregs.cr0 |= 1;
        self.fd.set_sregs(&sregs).map_err(errno)
    }

    /// Runs the store at `code`, which writes to `target`.
    fn store(&mut self, code: u64, target: u64) -> CallResult {
        self.make_flat().map_err(CallError::errno)?;
        let regs = kvm_regs {
            rip: code,
            rbx: target,
            rax: 0x5_1a7,
            rflags: 2,
            ..Default::default()
        };
        self.fd
            .set_regs(&regs)
            .map_err(|e| CallError::errno(errno(e)))?;
        let access = match self.fd.run() {
            Ok(VcpuExit::Hlt) => Access::Done,
            Ok(VcpuExit::MmioWrite(..)) => Access::Mmio,
            Ok(VcpuExit::InternalError | VcpuExit::MmioRead(..)) => Access::NoMemory,
            Ok(VcpuExit::Unsupported(EXIT_RING_FULL)) => Access::RingFull,
            Ok(_) => {
                return Err(CallError::NotTried {
                    why: "the guest stopped for another reason",
                });
            }
            Err(e) => return Err(CallError::errno(errno(e))),
        };
        if access == Access::Mmio {
            self.finish_mmio();
        }
        Ok(Outcome::Access(access))
    }

    /// Lets KVM complete an access that exited, so that it does not resume later.
    fn finish_mmio(&mut self) {
        self.fd.set_kvm_immediate_exit(1);
        // Gives EINTR at once, which is what was asked for.
        let _interrupted = self.fd.run();
        self.fd.set_kvm_immediate_exit(0);
    }
}

impl Ring {
    fn map(vcpu: RawFd, bytes: u64) -> Result<Self, Errno> {
        let len = usize::try_from(bytes).map_err(|_| Errno::ENOMEM)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let page = i64::try_from(PAGE_SIZE).map_err(|_| Errno::EINVAL)?;
        // SAFETY: a new shared mapping of the vCPU's file at an address of the kernel's choice.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                protection,
                libc::MAP_SHARED,
                vcpu,
                RING_PAGE * page,
            )
        };
        match NonNull::new(address).filter(|p| p.as_ptr() != libc::MAP_FAILED) {
            Some(address) => Ok(Self {
                entries: address.cast(),
                count: len / size_of::<RingEntry>(),
                next: 0,
            }),
            None => Err(super::ioctl::last_errno()),
        }
    }

    fn entry(&self, index: usize) -> &RingEntry {
        // SAFETY: the index is taken modulo the number of entries in the mapping, and all fields are atomics.
        unsafe { self.entries.add(index % self.count).as_ref() }
    }

    /// Takes the published entries and marks them harvested.
    fn harvest(&mut self) -> Vec<(u32, u64)> {
        let mut taken = Vec::new();
        while self.entry(self.next).flags.load(Ordering::Acquire) & (DIRTY | RESET) == DIRTY {
            let entry = self.entry(self.next);
            taken.push((
                entry.slot.load(Ordering::Relaxed),
                entry.offset.load(Ordering::Relaxed),
            ));
            entry.flags.store(RESET, Ordering::Release);
            self.next = (self.next + 1) % self.count;
        }
        taken
    }
}

impl Vm {
    pub(super) fn create_vcpu(&mut self) -> Result<Outcome, Errno> {
        let fd = self
            .vm
            .create_vcpu(self.vcpus.len() as u64)
            .map_err(errno)?;
        let ring = match self.ring_bytes {
            0 => None,
            bytes => Some(Ring::map(fd.as_raw_fd(), bytes)?),
        };
        self.vcpus.push(Vcpu {
            ring,
            fd,
            flat: false,
        });
        Ok(Outcome::Done)
    }

    pub(super) fn harvest(&mut self, vcpu: u32) -> Result<Outcome, Errno> {
        let vcpu = usize::try_from(vcpu)
            .ok()
            .and_then(|index| self.vcpus.get_mut(index));
        let ring = vcpu
            .and_then(|vcpu| vcpu.ring.as_mut())
            .ok_or(Errno::EINVAL)?;
        Ok(Outcome::Ring(ring.harvest()))
    }

    /// A write by vCPU 0, by code that is put into the same page.
    pub(super) fn guest_write(&mut self, gpa: u64) -> CallResult {
        if self.vcpus.is_empty() {
            return Err(CallError::errno(Errno::EBADF));
        }
        if self.profile.vendor.get() != Vendor::Paravirtual {
            return Err(CallError::NotTried {
                why: "guest writes are emulated on a paravirtual host only",
            });
        }
        let page = gpa & !(PAGE_SIZE - 1);
        if gpa > u64::from(u32::MAX) - 4 || gpa - page > PAGE_SIZE - 4 {
            return Err(CallError::NotTried {
                why: "guest writes lie below 4 GiB and inside a page",
            });
        }
        if page == APIC_PAGE {
            return Err(CallError::NotTried {
                why: "the local APIC's page is MMIO whatever slot holds it",
            });
        }
        let code = if gpa - page < PAGE_SIZE / 2 {
            page + PAGE_SIZE / 2
        } else {
            page
        };
        let slot = self
            .placed
            .iter()
            .find(|(slot, p)| **slot >> 16 == 0 && p.gpa <= code && code - p.gpa < p.size)
            .map(|(_, placed)| *placed);
        if let Some(slot) = slot {
            if !self
                .host
                .write(Hva::new(slot.hva + (code - slot.gpa)), &STORE)
            {
                return Err(CallError::NotTried {
                    why: "the page is not in the host area A",
                });
            }
        }
        match self.vcpus.first_mut() {
            Some(vcpu) => vcpu.store(code, gpa),
            None => Err(CallError::errno(Errno::EBADF)),
        }
    }
}

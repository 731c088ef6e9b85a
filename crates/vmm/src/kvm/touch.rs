//! A guest that writes to page after page: much is mapped in one run.

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs};
use kvm_ioctls::VcpuExit;
use slat_memslot::{Errno, Gfn, Hva, PAGE_SHIFT, PAGE_SIZE, Pages};

use super::guest::{HALT, flatten, make_flat};
use super::ioctl::errno;
use super::stats::Stats;
use super::{Vm, guest::Vcpu};

/// Where such a guest has its instructions and its tables, in guest-physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TouchLayout {
    /// The page of the instructions.
    pub(crate) code: u64,
    /// The tables of a guest in long mode, which map the first GiB to itself by pages of 2 MiB; `None` for one that does not
    /// page.
    pub(crate) tables: Option<u64>,
    /// An address below 1 GiB where no slot is.
    pub(crate) nowhere: u64,
}

/// `mov [rbx], rax; add rbx, 0x1000; dec rcx; jnz` to the first, then `mov [rdx], al`, which leaves the guest.
const LONG: [u8; 17] = [
    0x48, 0x89, 0x03, 0x48, 0x81, 0xc3, 0x00, 0x10, 0x00, 0x00, 0x48, 0xff, 0xc9, 0x75, 0xf1, 0x88,
    0x02,
];
/// `mov [ebx], eax; add ebx, 0x1000; dec ecx; jnz` to the first, then `hlt`.
const FLAT: [u8; 12] = [
    0x89, 0x03, 0x81, 0xc3, 0x00, 0x10, 0x00, 0x00, 0x49, 0x75, 0xf5, HALT,
];

/// Present, writable, for user mode, accessed and dirty.
const LINK: u64 = 0x67;
const HUGE_LEAF: u64 = 0xe7;

impl Vm {
    /// What the kernel counts of this VM.
    ///
    /// # Errors
    /// It does not tell.
    pub(crate) fn stats(&self) -> std::io::Result<Stats> {
        Stats::of(&self.vm)
    }

    /// What the kernel counts of each vCPU.
    ///
    /// # Errors
    /// It does not tell.
    pub(crate) fn vcpu_stats(&self) -> std::io::Result<Vec<Stats>> {
        self.vcpus.iter().map(|vcpu| Stats::of(vcpu.fd())).collect()
    }

    /// Writes instructions and tables into host memory that slots of guest frames from 0 have behind them at `base`, and to
    /// `pages` pages from there, so that the host has them.
    ///
    /// # Errors
    /// `ENOMEM` if it is not in the host area A.
    pub(crate) fn prepare_touching(
        &self,
        layout: &TouchLayout,
        base: Hva,
        pages: Pages,
    ) -> Result<(), Errno> {
        let write =
            |gpa: u64, bytes: &[u8]| match self.host.write(Hva::new(base.raw() + gpa), bytes) {
                true => Ok(()),
                false => Err(Errno::ENOMEM),
            };
        for page in 0..pages.raw() {
            write(page * PAGE_SIZE, &[0])?;
        }
        let Some(top) = layout.tables else {
            return write(layout.code, &FLAT);
        };
        let (middle, last) = (top + PAGE_SIZE, top + 2 * PAGE_SIZE);
        write(top, &(middle | LINK).to_le_bytes())?;
        write(middle, &(last | LINK).to_le_bytes())?;
        for huge in 0..512 {
            let entry = huge << 21 | HUGE_LEAF;
            write(last + huge * 8, &entry.to_le_bytes())?;
        }
        write(layout.code, &LONG)
    }

    /// Makes a vCPU that touches pages.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn create_toucher(&mut self, layout: &TouchLayout) -> Result<u32, Errno> {
        let index = u32::try_from(self.vcpus.len()).map_err(|_| Errno::EINVAL)?;
        self.create_vcpu()?;
        let cpuid = self.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
        let vcpu = self.vcpus.last().ok_or(Errno::EBADF)?;
        vcpu.fd()
            .set_cpuid2(&cpuid.map_err(errno)?)
            .map_err(errno)?;
        match layout.tables {
            None => make_flat(vcpu.fd())?,
            Some(top) => vcpu.make_long(top)?,
        }
        Ok(index)
    }

    /// A vCPU writes to a word of each of `pages` pages that follow each other.
    ///
    /// # Errors
    /// The kernel's; `EIO` if the guest stops for another reason than its end.
    pub(crate) fn touch(
        &mut self,
        vcpu: u32,
        layout: &TouchLayout,
        first: Gfn,
        pages: Pages,
    ) -> Result<(), Errno> {
        let index = usize::try_from(vcpu).map_err(|_| Errno::EBADF)?;
        let vcpu = self.vcpus.get_mut(index).ok_or(Errno::EBADF)?;
        let regs = kvm_regs {
            rip: layout.code,
            rax: 0x5_1a7,
            rbx: first.raw() << PAGE_SHIFT,
            rcx: pages.raw(),
            rdx: layout.nowhere,
            rflags: 2,
            ..Default::default()
        };
        let fd = vcpu.fd_mut();
        fd.set_regs(&regs).map_err(errno)?;
        match fd.run().map_err(errno)? {
            VcpuExit::Hlt => Ok(()),
            VcpuExit::MmioWrite(at, _) if at == layout.nowhere => {
                vcpu.finish_mmio();
                Ok(())
            }
            _ => Err(Errno::EIO),
        }
    }
}

impl Vcpu {
    /// `KVM_SET_SREGS`: long mode with these tables, in user mode.
    fn make_long(&self, tables: u64) -> Result<(), Errno> {
        let mut sregs = self.fd().get_sregs().map_err(errno)?;
        flatten(&mut sregs, true);
        for segment in [
            &mut sregs.cs,
            &mut sregs.ds,
            &mut sregs.es,
            &mut sregs.ss,
            &mut sregs.fs,
            &mut sregs.gs,
        ] {
            segment.dpl = 3;
            segment.selector |= 3;
        }
        (sregs.cr0, sregs.cr3, sregs.cr4) = (0x8001_0011, tables, 0x20);
        sregs.efer = 0xd01;
        (sregs.idt.base, sregs.idt.limit) = (0, 0);
        self.fd().set_sregs(&sregs).map_err(errno)
    }
}

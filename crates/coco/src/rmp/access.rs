//! The check of every access: by host, devices, guests; private and shared; of data, code and page tables.
//!
//! | who | access | checks | else |
//! |---|---|---|---|
//! | host | read, fetch | none: it reads ciphertext | |
//! | host | write | the page is the hypervisor's | #PF, RMP |
//! | device | write | the page is the hypervisor's | IOMMU fault |
//! | a guest without SNP | write, page table | the page is the hypervisor's | #NPF, RMP |
//! | SNP guest, C-bit clear | write | the page is the hypervisor's | #NPF, RMP |
//! | SNP guest, C-bit set; fetch and page tables always | any | it is this guest's, this frame, this size | #NPF, RMP and ENC |
//! | | any | it is validated | #VC `0x404`, no exit |
//! | | any | the privilege level is permitted | #NPF, RMP, ENC and VMPL |
//! | | write | it is not immutable | #NPF, RMP and ENC |
//!
//! A translation of 2 MiB or 1 GiB touches no assigned page in the 2 MiB around the address, or counts as not the
//! hypervisor's.
//!
//! Manual: AMD64 APM volume 2, 15.36.10 and 15.36.11.

use slat_memslot::{Gfn, Level, PageSize};
use slat_mmu::spte::Pfn;
use slat_mmu::tdp::{AccessCheck, Translated};

use super::entry::{RmpEntry, RmpSize};
use super::fault::{ErrorCode, Fault, VC_NOT_VALIDATED};
use super::guest::GuestCpu;
use super::id::{Permissions, Vmpl};
use super::raw::Wanted;
use super::rules::SharedRead;
use super::table::Rmp;

/// Whether an SNP guest's own page tables have the C-bit set for a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Visibility {
    /// C-bit clear.
    Shared,
    /// C-bit set.
    Private,
}

/// Who makes an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Accessor {
    /// The host: kernel or a process.
    Host {
        /// Whether it is a process.
        user: bool,
    },
    /// A device behind the IOMMU.
    Device,
    /// A guest without SNP: ordinary, SEV, or SEV-ES. Such hardware tells the C-bit of its accesses too.
    Guest(Visibility),
    /// An SNP guest.
    Snp(GuestCpu, Visibility),
}

/// What is done to a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Touch {
    /// Data is read.
    Read,
    /// Data is written.
    Write,
    /// Code is fetched.
    Fetch {
        /// In user mode.
        user: bool,
    },
    /// A page table is read.
    Table,
    /// An accessed or dirty bit is set in a page table.
    TableWrite,
}

impl Touch {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Read,
        Self::Write,
        Self::Fetch { user: false },
        Self::Fetch { user: true },
        Self::Table,
        Self::TableWrite,
    ];

    #[inline]
    const fn writes(self) -> bool {
        matches!(self, Self::Write | Self::TableWrite)
    }

    #[inline]
    const fn is_table(self) -> bool {
        matches!(self, Self::Table | Self::TableWrite)
    }

    #[inline]
    pub(super) const fn needs(self) -> Permissions {
        match self {
            Self::Read | Self::Table => Permissions::READ,
            Self::Write | Self::TableWrite => Permissions::WRITE,
            Self::Fetch { user: true } => Permissions::EXECUTE_USER,
            Self::Fetch { user: false } => Permissions::EXECUTE_SUPERVISOR,
        }
    }

    const fn error_code(self) -> ErrorCode {
        let code = ErrorCode::PRESENT.union(ErrorCode::RMP);
        match self {
            Self::Write | Self::TableWrite => code.union(ErrorCode::WRITE),
            Self::Fetch { .. } => code.union(ErrorCode::FETCH),
            Self::Read | Self::Table => code,
        }
    }

    const fn nested_code(self, more: ErrorCode) -> Fault {
        let stage = if self.is_table() {
            ErrorCode::GUEST_TABLE
        } else {
            ErrorCode::FINAL
        };
        let code = self.error_code().union(ErrorCode::USER).union(stage);
        Fault::Nested(code.union(more))
    }
}

/// A page as an access reaches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Reached {
    /// The guest frame; for the host and devices it does not count.
    pub gfn: Gfn,
    /// The frame of the host.
    pub pfn: Pfn,
    /// The size of the translation.
    pub size: PageSize,
}

impl Reached {
    /// A page of 4 KiB that no guest's tables have translated.
    pub const fn by_host(pfn: Pfn) -> Self {
        Self {
            gfn: Gfn::new(0),
            pfn,
            size: PageSize::Size4K,
        }
    }
}

impl Rmp {
    /// Checks an access whose translation has succeeded.
    ///
    /// ```
    /// use slat_coco::rmp::{Accessor, Asid, Fault, Reached, Rmp, RmpSize, RmpState, Touch};
    /// use slat_memslot::Gfn;
    /// use slat_mmu::spte::Pfn;
    /// let rmp = Rmp::new(1 << 18);
    /// let page = Pfn::new(0x200);
    /// let state = RmpState::private(Asid::new(5).unwrap(), Gfn::new(7), RmpSize::Size4K);
    /// rmp.rmpupdate(page, &state).unwrap();
    /// let kernel = Accessor::Host { user: false };
    /// assert!(rmp.check_access(kernel, Touch::Read, &Reached::by_host(page)).is_ok());
    /// let fault = rmp.check_access(kernel, Touch::Write, &Reached::by_host(page)).unwrap_err();
    /// assert_eq!(fault.to_string(), "#PF 0x80000003");
    /// ```
    ///
    /// # Errors
    /// What hardware raises.
    #[inline]
    pub fn check_access(&self, by: Accessor, touch: Touch, page: &Reached) -> Result<(), Fault> {
        match by {
            Accessor::Host { user } if touch.writes() => {
                let mode = if user {
                    ErrorCode::USER
                } else {
                    ErrorCode::empty()
                };
                let fault = Fault::Host(touch.error_code().union(mode));
                self.hypervisor_owned(page, fault)
            }
            Accessor::Device if touch.writes() => self.hypervisor_owned(page, Fault::Device),
            Accessor::Host { .. } | Accessor::Device => Ok(()),
            Accessor::Guest(visibility) if touch.writes() || touch.is_table() => {
                self.hypervisor_owned(page, touch.nested_code(encrypted(visibility)))
            }
            Accessor::Guest(_) => Ok(()),
            Accessor::Snp(cpu, visibility) => self.check_snp(cpu, visibility, touch, page),
        }
    }

    #[inline]
    fn check_snp(
        &self,
        cpu: GuestCpu,
        visibility: Visibility,
        touch: Touch,
        page: &Reached,
    ) -> Result<(), Fault> {
        let always_private = touch.is_table() || matches!(touch, Touch::Fetch { .. });
        if visibility == Visibility::Private || always_private {
            return self.check_private(cpu, touch, page);
        }
        if touch.writes() || self.rules().shared_read == SharedRead::Faults {
            return self.hypervisor_owned(page, touch.nested_code(ErrorCode::empty()));
        }
        Ok(())
    }

    #[inline]
    fn check_private(&self, cpu: GuestCpu, touch: Touch, page: &Reached) -> Result<(), Fault> {
        if self.is_plainly_allowed(cpu, touch, page) {
            return Ok(());
        }
        self.check_closely(cpu, touch, page)
    }

    /// Whether the page's own entry is in force, of 4 KiB, and grants all that the access needs, as most do.
    #[inline]
    fn is_plainly_allowed(&self, cpu: GuestCpu, touch: Touch, page: &Reached) -> bool {
        let wanted = Wanted::new(cpu.asid, page.gfn, cpu.vmpl, touch.needs());
        page.size == PageSize::Size4K && self.own_has(page.pfn, &wanted)
    }

    #[inline(never)]
    fn check_closely(&self, cpu: GuestCpu, touch: Touch, page: &Reached) -> Result<(), Fault> {
        let (entry, size) = self.deciding_entry(page.pfn);
        if !is_mapped_right(cpu, page, &entry, size) {
            return Err(touch.nested_code(ErrorCode::ENCRYPTED));
        }
        if !entry.validated {
            return Err(Fault::Vc(VC_NOT_VALIDATED));
        }
        if !is_permitted(cpu.vmpl, touch, &entry) {
            return Err(touch.nested_code(ErrorCode::ENCRYPTED.union(ErrorCode::VMPL)));
        }
        if touch.writes() && entry.immutable {
            return Err(touch.nested_code(ErrorCode::ENCRYPTED));
        }
        Ok(())
    }

    fn hypervisor_owned(&self, page: &Reached, fault: Fault) -> Result<(), Fault> {
        let owned = match page.size {
            PageSize::Size4K => !self.deciding_entry(page.pfn).0.assigned,
            PageSize::Size2M | PageSize::Size1G => !self.any_assigned(page.pfn),
        };
        if owned { Ok(()) } else { Err(fault) }
    }

    /// The check behind a walk of nested tables, for one access by one accessor.
    pub const fn check(&self, by: Accessor, touch: Touch) -> RmpCheck<'_> {
        RmpCheck {
            rmp: self,
            by,
            touch,
        }
    }
}

const fn encrypted(visibility: Visibility) -> ErrorCode {
    match visibility {
        Visibility::Private => ErrorCode::ENCRYPTED,
        Visibility::Shared => ErrorCode::empty(),
    }
}

#[inline]
fn is_mapped_right(cpu: GuestCpu, page: &Reached, entry: &RmpEntry, size: RmpSize) -> bool {
    let offset = page.pfn.raw() & (size.pages() - 1);
    entry.assigned
        && entry.asid == cpu.asid
        && entry.gfn.raw() + offset == page.gfn.raw()
        && RmpSize::of(page.size) == size
}

#[inline]
fn is_permitted(vmpl: Vmpl, touch: Touch, entry: &RmpEntry) -> bool {
    entry.permissions.of(vmpl).contains(touch.needs())
}

/// [`Rmp::check_access`] as the hook of `slat-mmu`'s walk.
///
/// The tables know neither who makes an access nor whether the guest's own tables have the C-bit set, so the check of one
/// access is a value: [`Rmp::check`], for [`Locked::translate_checked`](slat_mmu::tdp::Locked::translate_checked).
#[derive(Clone, Copy, Debug)]
pub struct RmpCheck<'r> {
    rmp: &'r Rmp,
    by: Accessor,
    touch: Touch,
}

impl AccessCheck for RmpCheck<'_> {
    type Denied = Fault;

    #[inline]
    fn check(&self, access: &Translated) -> Result<(), Fault> {
        let reached = reached(access);
        self.rmp.check_access(self.by, self.touch, &reached)
    }
}

#[inline]
pub(super) const fn reached(access: &Translated) -> Reached {
    Reached {
        gfn: access.gfn,
        pfn: access.pfn,
        size: match access.level {
            Level::L1 => PageSize::Size4K,
            Level::L2 => PageSize::Size2M,
            Level::L3 | Level::L4 | Level::L5 => PageSize::Size1G,
        },
    }
}

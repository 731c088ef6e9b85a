//! A guest's paging, as its registers and CPUID say: what stays the same from walk to walk.

use slat_memslot::Gva;

use crate::access::Access;
use crate::host::ExecuteOnly;
use crate::role::{AccessDirty, CpuRole, Cr4, NestedEptDepth, RoleFlag, RoleLayout, VcpuState};

use super::mode::PagingMode;
use super::permission::{AlignmentCheck, Permissions};
use super::pointers::Pointers;
use super::reserved::{Bit63, Reserved};
use super::{ErrorCode, GuestCpu, TableMemory};

/// How a guest's tables are walked: mode, root, reserved bits and permissions, computed once
/// (`struct kvm_mmu` as far as walks need it).
///
/// ```
/// use slat_memslot::{Gpa, Gva};
/// use slat_mmu::role::{Cr0, Cr4, Efer, VcpuState};
/// use slat_mmu::walk::{ErrorCode, GuestCpu, GuestPaging, PagingMode};
///
/// let vcpu = VcpuState {
///     cr0: Cr0::PG | Cr0::PE | Cr0::WP,
///     cr3: 0x1000,
///     cr4: Cr4::PAE,
///     efer: Efer::LME | Efer::LMA | Efer::NX,
///     ..VcpuState::default()
/// };
/// let paging = GuestPaging::new(&vcpu, &GuestCpu::new(46));
/// assert_eq!(paging.mode(), PagingMode::Level4);
/// let memory = [0_u64; 1024];
/// let fault = paging.translate(memory.as_slice(), Gva::new(0x7000), ErrorCode::WRITE | ErrorCode::USER).unwrap_err();
/// assert_eq!(fault.to_string(), "#PF(0x6 WRITE|USER) at 0x7000, level 4: the entry is not present");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestPaging {
    pub(super) mode: PagingMode,
    /// CR3, or the pointer to EPT.
    pub(super) root: u64,
    pub(super) pointers: Pointers,
    pub(super) reserved: Reserved,
    pub(super) permissions: Permissions,
    pub(super) access_dirty: AccessDirty,
    /// How many low bits of an address are not copies of one; 0 if that is not checked.
    canonical_bits: u32,
    /// CR4.PGE.
    global_pages: bool,
    cpu: GuestCpu,
}

impl GuestPaging {
    /// The paging of a vCPU.
    ///
    /// With PAE paging the page-directory pointers have to be set as well: [`GuestPaging::with_pointers`]. RFLAGS.AC counts
    /// as clear.
    pub fn new(vcpu: &VcpuState, cpu: &GuestCpu) -> Self {
        let role = CpuRole::of(vcpu, RoleLayout::Baseline);
        let mode = PagingMode::of(role);
        let bit_63 = if role.has(RoleFlag::EferNx) {
            Bit63::NoExecute
        } else {
            Bit63::Reserved
        };
        let mut permissions = Permissions::of(role);
        permissions.set_pkru(vcpu.pkru);
        Self {
            mode,
            root: vcpu.cr3,
            pointers: Pointers::default(),
            reserved: Reserved::of(mode, cpu, bit_63),
            permissions,
            access_dirty: AccessDirty::Hardware,
            canonical_bits: mode.canonical_bits(),
            global_pages: vcpu.cr4.contains(Cr4::PGE),
            cpu: *cpu,
        }
    }

    /// The EPT that a hypervisor in the guest has made for its own guest (`mmu.c:kvm_init_shadow_ept_mmu`).
    pub fn nested_ept(ept: &NestedEptRoot, cpu: &GuestCpu) -> Self {
        Self {
            mode: match ept.depth {
                NestedEptDepth::Four => PagingMode::Ept4,
                NestedEptDepth::Five => PagingMode::Ept5,
            },
            root: ept.pointer,
            pointers: Pointers::default(),
            reserved: Reserved::ept(cpu, ept.execute_only),
            permissions: Permissions::ept(),
            access_dirty: ept.access_dirty,
            canonical_bits: 0,
            global_pages: false,
            cpu: *cpu,
        }
    }

    /// With the page-directory pointers that the CPU has loaded (`KVM_GET_SREGS2`, [`Pointers::load`]).
    #[must_use]
    pub const fn with_pointers(self, pointers: Pointers) -> Self {
        Self { pointers, ..self }
    }

    /// With the pointers that `mov cr3` loads, if the mode has any.
    ///
    /// # Errors
    /// They cannot be loaded: the instruction faults.
    pub fn with_loaded_pointers<M: TableMemory + ?Sized>(
        self,
        memory: &M,
    ) -> Result<Self, super::PointerError> {
        match self.mode {
            PagingMode::Pae => {
                let pointers = Pointers::load(memory, self.root, &self.cpu)?;
                Ok(self.with_pointers(pointers))
            }
            _ => Ok(self),
        }
    }

    /// With RFLAGS.AC.
    #[must_use]
    pub const fn with_alignment_check(mut self, ac: AlignmentCheck) -> Self {
        self.permissions.set_alignment_check(ac);
        self
    }

    /// With PKRU.
    #[must_use]
    pub const fn with_pkru(mut self, pkru: u32) -> Self {
        self.permissions.set_pkru(pkru);
        self
    }

    /// With CR3.
    #[must_use]
    pub const fn with_cr3(self, cr3: u64) -> Self {
        Self { root: cr3, ..self }
    }

    /// As a CPU walks, where that is not what KVM's own walker does: in 32-bit paging without PAE an error code tells
    /// fetches with CR4.SMEP only, and leaves of 4 MiB lie anywhere below MAXPHYADDR and 2^40, not 2^36
    /// (SDM volume 3, 5.3 and 5.7).
    ///
    /// The walk still marks entries at its end, after the last check. A CPU may mark those on the way at once, so that
    /// they stay marked if it then faults.
    ///
    /// ```
    /// use slat_memslot::{Gpa, Gva};
    /// use slat_mmu::role::{Cr0, Cr4, VcpuState};
    /// use slat_mmu::walk::{ErrorCode, GuestCpu, GuestPaging};
    /// let vcpu = VcpuState { cr0: Cr0::PG | Cr0::PE, cr4: Cr4::PSE, ..VcpuState::default() };
    /// let paging = GuestPaging::new(&vcpu, &GuestCpu::new(40));
    /// // One leaf of 4 MiB, whose bit 20 is bit 39 of the address.
    /// let memory = [0x10_0083_u64];
    /// let translate = |paging: GuestPaging| paging.translate(memory.as_slice(), Gva::new(8), ErrorCode::READ);
    /// assert!(translate(paging).is_err());
    /// assert_eq!(translate(paging.by_hardware()).unwrap().address, Gpa::new((1 << 39) + 8));
    /// ```
    #[must_use]
    pub fn by_hardware(mut self) -> Self {
        if matches!(self.mode, PagingMode::Bits32 | PagingMode::Bits32Pse) {
            self.permissions = self.permissions.without_nx();
        }
        if self.mode == PagingMode::Bits32Pse {
            self.reserved = Reserved::wide_pse(&self.cpu);
        }
        self
    }

    /// Without the check that addresses are canonical, which KVM's walker leaves to whoever calls it.
    #[must_use]
    pub const fn without_canonical_check(self) -> Self {
        Self {
            canonical_bits: 0,
            ..self
        }
    }

    /// Whether an access is allowed with the rights that entries leave it, and the leaf's key
    /// (`mmu.h:permission_fault`).
    #[inline]
    pub fn allows(&self, access: ErrorCode, rights: Access, key: u8) -> bool {
        self.permissions.allows(access, rights, key)
    }

    /// Whether leaves can be global (CR4.PGE).
    #[inline]
    pub const fn has_global_pages(&self) -> bool {
        self.global_pages
    }

    /// The mode.
    pub const fn mode(&self) -> PagingMode {
        self.mode
    }

    /// CR3, or the pointer to EPT.
    pub const fn root(&self) -> u64 {
        self.root
    }

    /// Whether hardware takes the address at all (`is_noncanonical_address`); always outside long mode.
    #[inline]
    pub const fn is_canonical(&self, address: Gva) -> bool {
        match self.canonical_bits {
            0 => true,
            bits => {
                let upper = address.raw() >> (bits - 1);
                upper == 0 || upper == u64::MAX >> (bits - 1)
            }
        }
    }
}

/// A pointer to EPT (EPTP12) and what the guest's CPU lets it say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NestedEptRoot {
    /// The pointer: bits 51 to 12 are the address of the top table.
    pub pointer: u64,
    /// The length of the walk.
    pub depth: NestedEptDepth,
    /// Whether the CPU marks entries (bit 6 of the pointer).
    pub access_dirty: AccessDirty,
    /// Whether entries can allow execution alone.
    pub execute_only: ExecuteOnly,
}

impl NestedEptRoot {
    /// What a pointer says, for a CPU with or without execute-only entries.
    ///
    /// ```
    /// use slat_mmu::host::ExecuteOnly;
    /// use slat_mmu::role::{AccessDirty, NestedEptDepth};
    /// use slat_mmu::walk::NestedEptRoot;
    /// let root = NestedEptRoot::of(0x1000_005e, ExecuteOnly::Supported);
    /// assert_eq!((root.depth, root.access_dirty), (NestedEptDepth::Four, AccessDirty::Hardware));
    /// ```
    pub const fn of(pointer: u64, execute_only: ExecuteOnly) -> Self {
        Self {
            pointer,
            depth: match pointer >> 3 & 7 {
                4 => NestedEptDepth::Five,
                _ => NestedEptDepth::Four,
            },
            access_dirty: match pointer & 1 << 6 {
                0 => AccessDirty::Software,
                _ => AccessDirty::Hardware,
            },
            execute_only,
        }
    }
}

//! What the module knows of one TD.

use slat_memslot::{Gpa, Level};
use slat_mmu::spte::Pfn;

use super::epoch::Epochs;
use super::locks::Locks;
use super::measure::{Measurement, Mrtd};
use super::op_state::{Lifecycle, OpState};
use super::sept::Sept;
use super::vp::Vp;

/// A TD, by its root page (`TDR`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tdr(Pfn);

impl Tdr {
    /// The TD whose root page is this.
    pub const fn new(page: Pfn) -> Self {
        Self(page)
    }

    /// Its root page.
    pub const fn page(self) -> Pfn {
        self.0
    }
}

/// A vCPU of a TD, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VpId(pub u16);

/// The width of guest-physical addresses (`GPAW`), and with it the place of the SHARED bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Gpaw {
    /// 48 bits: SHARED is bit 47, and the S-EPT has four levels.
    #[default]
    Bits48,
    /// 52 bits: SHARED is bit 51, and the S-EPT has five levels.
    Bits52,
}

impl Gpaw {
    /// The SHARED bit of an address. It is set for shared memory; SEV's C-bit is set for private memory.
    ///
    /// ```
    /// use slat_coco::tdx::Gpaw;
    /// assert_eq!(Gpaw::Bits48.shared_bit(), 1 << 47);
    /// assert_eq!(Gpaw::Bits52.shared_bit(), 1 << 51);
    /// ```
    pub const fn shared_bit(self) -> u64 {
        match self {
            Self::Bits48 => 1 << 47,
            Self::Bits52 => 1 << 51,
        }
    }

    /// The level of the tables' root.
    pub const fn root_level(self) -> Level {
        match self {
            Self::Bits48 => Level::L4,
            Self::Bits52 => Level::L5,
        }
    }

    /// Whether an address is one of private memory: SHARED and everything above it are clear.
    pub const fn is_private(self, gpa: Gpa) -> bool {
        gpa.raw() < self.shared_bit()
    }

    /// Whether an address has the SHARED bit and nothing above it.
    pub const fn is_shared(self, gpa: Gpa) -> bool {
        gpa.raw() & self.shared_bit() != 0 && gpa.raw() < self.shared_bit() << 1
    }

    /// The address without the SHARED bit.
    pub const fn without_shared(self, gpa: Gpa) -> Gpa {
        Gpa::new(gpa.raw() & !self.shared_bit())
    }
}

/// What happens when the guest touches a page that it has not accepted (`ATTRIBUTES.SEPT_VE_DISABLE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum PendingAccess {
    /// The guest gets a #VE.
    Ve,
    /// The TD exits; the host cannot help it. What Linux guests ask for.
    #[default]
    Exit,
}

/// Who may look at a TD's memory (`ATTRIBUTES.DEBUG`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Debug {
    /// The TD alone.
    #[default]
    Off,
    /// The host too.
    On,
}

/// What a TD is to be (`TD_PARAMS`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TdParams {
    /// The width of its addresses.
    pub gpaw: Gpaw,
    /// What an access to a page that was not accepted comes to.
    pub pending_access: PendingAccess,
    /// Whether the host may look at its memory.
    pub debug: Debug,
    /// How many vCPUs it may have.
    pub max_vcpus: u16,
}

impl Default for TdParams {
    fn default() -> Self {
        Self {
            gpaw: Gpaw::default(),
            pending_access: PendingAccess::default(),
            debug: Debug::default(),
            max_vcpus: 8,
        }
    }
}

/// Pages of the control structure that a TD needs; the S-EPT's root is one of them.
pub const TDCS_PAGES: usize = 4;
/// Which of them the S-EPT's root is (`SEPT_ROOT_PAGE_INDEX`).
pub(crate) const SEPT_ROOT_PAGE: usize = 3;

/// A TD.
#[derive(Clone, Debug)]
pub(crate) struct Td {
    pub(crate) hkid: u16,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) op_state: OpState,
    pub(crate) tdcs: Vec<Pfn>,
    pub(crate) params: TdParams,
    /// How many pages of 4 KiB belong to it, its root page not counted (`CHLDCNT`).
    pub(crate) children: u64,
    pub(crate) locks: Locks,
    pub(crate) epochs: Epochs,
    pub(crate) sept: Option<Sept>,
    pub(crate) measurement: Measurement,
    pub(crate) mrtd: Option<Mrtd>,
    pub(crate) vps: Vec<Vp>,
    pub(crate) written_back: bool,
}

impl Td {
    pub(crate) fn new(hkid: u16) -> Self {
        Self {
            hkid,
            lifecycle: Lifecycle::HkidAssigned,
            op_state: OpState::Uninitialized,
            tdcs: Vec::new(),
            params: TdParams::default(),
            children: 0,
            locks: Locks::default(),
            epochs: Epochs::new(),
            sept: None,
            measurement: Measurement::default(),
            mrtd: None,
            vps: Vec::new(),
            written_back: false,
        }
    }

    /// The S-EPT of a TD that has been initialised.
    ///
    /// # Panics
    /// It has not: every call has checked the op-state before.
    pub(crate) const fn sept(&self) -> &Sept {
        self.sept.as_ref().expect("the op-state was checked")
    }

    pub(crate) const fn sept_mut(&mut self) -> &mut Sept {
        self.sept.as_mut().expect("the op-state was checked")
    }
}

//! A TD's memory as KVM manages it.

use std::collections::BTreeMap;
use std::sync::Arc;

use slat_memslot::{AttributeMap, Attributes, Gfn, GfnRange, Gpa, Level};
use slat_mmu::host::Host;
use slat_mmu::role::{PageRole, VcpuState, mirror_root_role, root_role_for_tdp};
use slat_mmu::roots::RootId;
use slat_mmu::spte::{Ept, Pfn};
use slat_mmu::table::TableId;
use slat_mmu::tdp::{ExistingLeaf, Limits, Locked, NoCheck, Side, Tables, Unobserved};

use super::backend::{Backend, Bug, HookGen, Owner, Stage};
use super::gmem::{FileId, Files};
use super::pages::FreePages;
use crate::sync::{Mutex, RwLock, lock, read, write};
use crate::tdx::{
    Answer, Content, GpaMapping, Gpaw, Module, PAGE_CHUNKS, SeptState, TDCS_PAGES, TdParams, Tdr,
    build,
};

/// What a TD is made with.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// What it is to be.
    pub params: TdParams,
    /// How many vCPUs it has.
    pub vcpus: u16,
    /// How KVM tells its TDX code of changes.
    pub hooks: HookGen,
    /// How many pages of 4 KiB the host has.
    pub host_pages: u64,
    /// How many tables KVM can have.
    pub tables: u32,
    /// Whether other threads can call in while a call into the module is under way.
    pub pauses: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            params: TdParams::default(),
            vcpus: 2,
            hooks: HookGen::default(),
            host_pages: 0x4000,
            tables: 0x1000,
            pauses: false,
        }
    }
}

/// Where the pages that a TD itself is made of begin: its root page, its control structure, its vCPUs.
const FIRST_OWN: Pfn = Pfn::new(0x10);

/// A slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its frames.
    pub range: GfnRange,
    /// The guest_memfd behind it, and the page of it where the slot begins. Without one it has no private side.
    pub file: Option<(FileId, u64)>,
    /// It is being deleted (`KVM_MEMSLOT_INVALID`): faults wait until it is gone.
    pub deleting: bool,
}

/// The TD's page tables.
pub(super) type TdxTables = Tables<Ept, Owner>;

/// A TD's memory: tables under their lock, slots, attributes, pages of guest_memfd.
///
/// ```
/// use slat_coco::tdx::mirror::{Config, PrivateFault, TdxMmu};
/// use slat_coco::tdx::Content;
/// use slat_memslot::{Gfn, GfnRange, Pages};
///
/// let vm = TdxMmu::new(&Config::default())?;
/// let range = GfnRange::new(Gfn::new(0x100), Pages::new(0x100)).unwrap();
/// vm.add_slot(1, range);
/// vm.set_private(range);
/// vm.add_measured(Gfn::new(0x100), Content::Value(7)).unwrap();
/// vm.finalize()?;
/// let mut vcpu = vm.vcpu(0).unwrap();
/// assert_eq!(vm.fault_private(&mut vcpu, Gfn::new(0x101)), PrivateFault::Fixed);
/// assert_eq!(vm.audit(), []);
/// # Ok::<(), slat_coco::tdx::Refusal>(())
/// ```
#[derive(Debug)]
pub struct TdxMmu {
    /// `mmu_lock`.
    pub(super) tables: RwLock<TdxTables>,
    pub(super) backend: Arc<Backend>,
    pub(super) gpaw: Gpaw,
    /// The root of private memory (`mirror_root_hpa`), as long as the VM.
    pub(super) mirror: TableId,
    /// The root of shared memory, until it is thrown away.
    direct: Mutex<Direct>,
    pub(super) kvm: Mutex<Kvm>,
    first_page: Pfn,
}

/// A root that is held.
#[derive(Clone, Copy, Debug)]
struct Direct {
    root: RootId,
    table: TableId,
    role: PageRole,
}

/// Takes a reference to a root.
///
/// # Panics
/// There is no table left: the limit is far above what a model needs.
fn acquire<S: Side<Format = Ept>>(locked: &mut Locked<S, Unobserved>, role: PageRole) -> Direct {
    let acquired = locked.acquire_root(role).expect("a table is left");
    let root = acquired.root();
    let table = locked.root_table(root).expect("the root is held");
    Direct { root, table, role }
}

/// What userspace has said.
#[derive(Debug)]
pub(super) struct Kvm {
    pub(super) slots: BTreeMap<u16, Slot>,
    /// Frames with `KVM_MEMORY_ATTRIBUTE_PRIVATE`: per VM, whatever slots there are.
    pub(super) private: AttributeMap,
    /// The pages of guest_memfds.
    pub(super) files: Files,
    /// `mmu_invalidate_seq`.
    pub(super) sequence: u64,
    /// What is being invalidated.
    pub(super) invalidating: Option<GfnRange>,
}

impl Kvm {
    pub(super) fn is_private(&self, gfn: Gfn) -> bool {
        self.private.get(gfn).contains(Attributes::PRIVATE)
    }

    pub(super) fn slot_at(&self, gfn: Gfn) -> Option<&Slot> {
        self.slots.values().find(|slot| slot.range.contains(gfn))
    }
}

impl TdxMmu {
    /// Makes a TD with vCPUs and roots, whose memory can be added.
    ///
    /// # Errors
    /// What the module says, of too many vCPUs for example.
    pub fn new(config: &Config) -> Answer<Self> {
        let end = Pfn::new(config.host_pages.max(0x1000));
        let module = Module::new(end);
        let module = if config.pauses {
            module.with_pauses()
        } else {
            module
        };
        let module = Arc::new(module);
        let td = build(&module, FIRST_OWN, config.params, config.vcpus)?;
        let first_page = Pfn::new(0x800);
        let pages = FreePages::new(first_page, end);
        let backend = Backend::new(module, td, config.hooks, pages);
        Ok(Self::with_backend(config, Arc::new(backend), first_page))
    }

    fn with_backend(config: &Config, backend: Arc<Backend>, first_page: Pfn) -> Self {
        let host = match config.params.gpaw {
            Gpaw::Bits48 => Host::ept(48),
            Gpaw::Bits52 => Host::ept(52).with_five_levels(),
        };
        let limits = Limits {
            tables: config.tables,
            readers: 16,
        };
        let tables = Tables::with(&host, limits, Owner(Arc::clone(&backend)), NoCheck);
        let mut tables = tables.with_existing_leaf(ExistingLeaf::Kept);
        let role = host.tdp().map(|tdp| {
            let role = root_role_for_tdp(&VcpuState::default(), &tdp);
            role.with_level(config.params.gpaw.root_level())
        });
        let role = role.unwrap_or_else(|| PageRole::new(Level::L4));
        let mut locked = tables.exclusive(Unobserved);
        let mirror = acquire(&mut locked, mirror_root_role(role)).table;
        let direct = acquire(&mut locked, role);
        Self {
            tables: RwLock::new(tables),
            backend,
            gpaw: config.params.gpaw,
            mirror,
            direct: Mutex::new(direct),
            kvm: Mutex::new(Kvm {
                slots: BTreeMap::new(),
                private: AttributeMap::new(),
                files: Files::default(),
                sequence: 0,
                invalidating: None,
            }),
            first_page,
        }
    }

    /// Makes a vCPU while the TD is built (`KVM_TDX_INIT_VCPU`), and gives its number.
    ///
    /// # Errors
    /// What the module says: of too many, or that the TD can run already.
    pub fn add_vcpu(&self) -> Answer<u16> {
        let number = self.module().vcpus(self.td());
        let page = FIRST_OWN.raw() + 1 + TDCS_PAGES as u64 + u64::from(number);
        let vp = self.module().tdh_vp_create(self.td(), Pfn::new(page))?;
        self.module().tdh_vp_init(self.td(), vp)?;
        Ok(vp.0)
    }

    /// The module.
    pub fn module(&self) -> &Module {
        self.backend.module()
    }

    /// The TD.
    pub fn td(&self) -> Tdr {
        self.backend.td()
    }

    /// The width of its addresses, and with it the place of the SHARED bit.
    pub const fn gpaw(&self) -> Gpaw {
        self.gpaw
    }

    /// The state of an entry of the S-EPT, without a call; `None` where a table is missing above it.
    pub fn sept_entry(&self, at: GpaMapping) -> Option<SeptState> {
        self.module().entry_state(self.td(), at)
    }

    /// Why KVM has given the VM up, if it has.
    pub fn bug(&self) -> Option<Bug> {
        self.backend.bug()
    }

    /// How far the TD has come.
    pub fn stage(&self) -> Stage {
        self.backend.stage()
    }

    /// How many pages of the host are in use for tables and memory.
    pub fn pages_in_use(&self) -> u64 {
        self.backend.state().pages.used(self.first_page)
    }

    /// How many tables KVM's own two roots link, a page of the host each.
    pub fn linked_tables(&self) -> u64 {
        read(&self.tables).totals().tables
    }

    /// Leaves a rule of the protocol out.
    #[doc(hidden)]
    pub fn omit(&self, omit: super::backend::Omit) {
        self.backend.omit(omit);
    }

    /// A slot.
    pub fn slot(&self, id: u16) -> Option<Slot> {
        lock(&self.kvm).slots.get(&id).copied()
    }

    /// Whether a frame is private.
    pub fn is_private(&self, gfn: Gfn) -> bool {
        lock(&self.kvm).is_private(gfn)
    }

    /// Adds a page with content while the TD is built, and measures it (`KVM_TDX_INIT_MEM_REGION` for a page).
    ///
    /// # Errors
    /// What the fault came to, if the page is not there.
    pub fn add_measured(&self, gfn: Gfn, source: Content) -> Result<(), super::PrivateFault> {
        self.add_unmeasured(gfn, source)?;
        for chunk in 0..PAGE_CHUNKS {
            let gpa = Gpa::new(gfn.gpa().raw() + chunk * 256);
            let extended = self.module().tdh_mr_extend(self.td(), gpa);
            extended.map_err(super::PrivateFault::Module)?;
        }
        Ok(())
    }

    /// Adds a page with content, of which only the address is measured.
    ///
    /// # Errors
    /// What the fault came to, if the page is not there.
    pub fn add_unmeasured(&self, gfn: Gfn, source: Content) -> Result<(), super::PrivateFault> {
        let tables = read(&self.tables);
        self.backend.state().source = Some(source);
        let fault = self.place_private(&tables, gfn);
        self.backend.state().source = None;
        match fault {
            super::PrivateFault::Fixed => Ok(()),
            other => Err(other),
        }
    }

    /// Ends the building (`KVM_TDX_FINALIZE_VM`).
    ///
    /// # Errors
    /// What the module says.
    pub fn finalize(&self) -> Answer {
        self.module().tdh_mr_finalize(self.td())?;
        self.backend.state().stage = Stage::Runnable;
        Ok(())
    }

    /// KVM's TDX code for this TD.
    pub fn backend(&self) -> &Backend {
        &self.backend
    }

    /// With the tables to oneself.
    pub(super) fn exclusively<T>(&self, act: impl FnOnce(&mut TdxTables) -> T) -> T {
        act(&mut write(&self.tables))
    }

    /// The table of the direct root.
    pub(super) fn direct_table(&self) -> TableId {
        lock(&self.direct).table
    }

    /// Gives the direct root up, which has been made unusable, for a new one.
    pub(super) fn replace_direct<S: Side<Format = Ept>>(&self, locked: &mut Locked<S, Unobserved>) {
        let mut direct = lock(&self.direct);
        locked.put_root(direct.root);
        *direct = acquire(locked, direct.role);
    }

    /// The frame by which the direct root is indexed: with the SHARED bit.
    pub(super) fn shared_gfn(&self, gfn: Gfn) -> Gfn {
        Gfn::new(gfn.raw() | self.gpaw.shared_bit() >> 12)
    }
}

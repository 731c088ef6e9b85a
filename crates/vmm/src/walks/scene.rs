//! A guest that has made one access, and the walk of it in two dimensions: its own tables, read from its memory, behind the
//! second stage that KVM gave it, or that the model would.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;

use slat_memslot::{Gpa, Gva, Hpa, PAGE_SIZE, Profile, Region, SlotKey, VmType};
use slat_mmu::Access;
use slat_mmu::fault::Kind;
use slat_mmu::host::{Host, SecondStage};
use slat_mmu::role::{PageRole, RoleFlag};
use slat_mmu::spte::{Ept, Format, Npt};
use slat_mmu::table::TableId;
use slat_mmu::tdp::dump::{Detail, Dump, LoadError};
use slat_mmu::tdp::{Locked, NoCheck, NoExternal, Shared, Tables, Unobserved};
use slat_mmu::walk::second::TdpStage;
use slat_mmu::walk::{
    Dimension, ErrorCode, Exchange, GuestPaging, Ladder, PagingMode, TableMemory, Translation,
};
use thiserror::Error;

use super::execute::{DATA, Ended, MEMORY_PAGES, TEST_TABLES, Tried, place_of};
use super::{CpuState, GigabytePages, Memory, Skipped};
use crate::tdp_vm::{Activity, TdpVm};

/// Where a second stage comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecondSource {
    /// KVM's own tables, rebuilt from the events that it told while the guest ran.
    Captured,
    /// What the model's TDP MMU has after the same accesses.
    Model {
        /// Why it is not the kernel's.
        why: String,
    },
}

impl fmt::Display for SecondSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Captured => f.write_str("KVM's own tables, captured"),
            Self::Model { why } => write!(f, "the model's tables ({why})"),
        }
    }
}

/// A guest after an access.
#[derive(Clone, Debug)]
pub struct Scene {
    /// Registers and CPUID.
    pub state: CpuState,
    /// The access.
    pub tried: Tried,
    /// What came of it; nothing if no guest ran.
    pub ended: Option<Ended>,
    /// Its memory from address 0 on, in words.
    pub memory: Vec<u64>,
    /// The second stage.
    pub second: Dump,
    /// Where that is from.
    pub source: SecondSource,
}

/// Why there is no scene, or no walk of it.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SceneError {
    /// The address is mapped by the guest's own first entry.
    #[error(
        "{address} is the guest's own: in this mode addresses from {first:#x} on can be asked for"
    )]
    Own {
        /// The address.
        address: Gva,
        /// The first that is not.
        first: u64,
    },
    /// It is no address in this mode.
    #[error("{address} is no canonical address in {mode} paging")]
    NonCanonical {
        /// The address.
        address: Gva,
        /// The mode.
        mode: PagingMode,
    },
    /// The kernel does not run the mode.
    #[error("{0}")]
    NotRun(Skipped),
    /// The guest cannot be run.
    #[error("the guest cannot be run: {0}")]
    Run(String),
    /// The second stage cannot be loaded.
    #[error("the second stage: {0}")]
    Load(#[from] LoadError),
    /// There is no root in it.
    #[error("the second stage has no root in use")]
    NoRoot,
}

/// A walk in two dimensions.
#[derive(Debug)]
pub struct SceneWalk {
    /// Every reference, in order.
    pub ladder: Ladder,
    /// Where it ends in the host, or why it does not.
    pub end: Result<Translation<Hpa>, String>,
}

/// The words of the top table and the tables below it that map one page, for an address ([`place_of`] says where each is).
///
/// # Errors
/// The address is the guest's own, or none at all.
pub(crate) fn mapped(mode: PagingMode, address: Gva) -> Result<Vec<u64>, SceneError> {
    let levels = match mode {
        PagingMode::Level5 => 5,
        _ => 4,
    };
    let bits = 12 + 9 * levels;
    let upper = address.raw() >> (bits - 1);
    if upper != 0 && upper != u64::MAX >> (bits - 1) {
        return Err(SceneError::NonCanonical { address, mode });
    }
    let index = |level: u32| address.raw() >> (3 + 9 * level) & 0x1ff;
    if index(levels) == 0 {
        let first = 1 << (3 + 9 * levels);
        return Err(SceneError::Own { address, first });
    }
    let mut words = vec![0; 9 << 9];
    for level in (1..=levels).rev() {
        // Table 0 is the top, then those of the test in order.
        let table = u64::from(levels - level);
        let entry = match level {
            1 => DATA | 0x7,
            _ => (TEST_TABLES + table) << 12 | 0x7,
        };
        let place = usize::try_from(table << 9 | index(level)).unwrap_or(0);
        if let Some(word) = words.get_mut(place) {
            *word = entry;
        }
    }
    Ok(words)
}

/// The page that [`mapped`] maps.
pub(crate) const fn page_of(address: Gva) -> Gpa {
    Gpa::new(DATA | address.raw() & 0xfff)
}

impl Scene {
    /// The scene without a guest: tables of that mode in memory, behind the model's TDP MMU of a host.
    ///
    /// # Errors
    /// The address cannot be asked for.
    pub fn of_model(state: &CpuState, tried: &Tried, host: &Host) -> Result<Self, SceneError> {
        let words = mapped(state.mode, tried.address)?;
        let mut memory = vec![0; usize::try_from(MEMORY_PAGES << 9).unwrap_or(0)];
        for (index, word) in words.iter().enumerate() {
            let place = usize::try_from(place_of(index) >> 3).unwrap_or(0);
            memory[place] = *word;
        }
        Ok(Self {
            state: *state,
            tried: *tried,
            ended: None,
            memory,
            second: model_second(host)?,
            source: SecondSource::Model {
                why: "no guest was run".to_owned(),
            },
        })
    }

    /// How the guest pages.
    pub fn paging(&self) -> GuestPaging {
        self.state
            .paging(&Memory::new(), GigabytePages::ByCpuid)
            .with_pkru(self.tried.pkru)
    }

    /// The levels of the second stage.
    pub fn second_levels(&self) -> u8 {
        let mut roots = self.second.roots.iter();
        let root = roots.find(|root| in_use(root.role));
        root.map_or(0, |root| root.role.level() as u8)
    }

    /// Walks for the access: each entry of the guest's by the second stage.
    ///
    /// # Errors
    /// The second stage is not sound.
    pub fn walk(&self) -> Result<SceneWalk, SceneError> {
        match self.second.host.second_stage {
            SecondStage::Ept => self.walk_in::<Ept>(),
            SecondStage::Npt | SecondStage::Off => self.walk_in::<Npt>(),
        }
    }

    fn walk_in<F: Format>(&self) -> Result<SceneWalk, SceneError> {
        let tables = Tables::<F>::from_dump(&self.second)?;
        let root = tables
            .roots()
            .iter()
            .find(|(_, role)| in_use(*role))
            .and_then(|(root, _)| tables.roots().payload(root))
            .ok_or(SceneError::NoRoot)?;
        let mut reader = tables.reader().ok_or(SceneError::NoRoot)?;
        let mut locked = tables.shared(&mut reader, Unobserved);
        let behind = Behind::new(&mut locked, root, &self.memory);
        let ladder = Ladder::default();
        let mut stage =
            TdpStage::new(&mut locked, root).observed(ladder.observer(Dimension::Second));
        let access = ErrorCode::of(self.tried.kind, self.tried.privilege);
        let end = self
            .paging()
            .walk(
                &behind,
                &mut stage,
                &mut ladder.observer(Dimension::Guest),
                self.tried.address,
                access,
            )
            .map_err(|fault| fault.to_string());
        Ok(SceneWalk { ladder, end })
    }
}

/// The root that a vCPU in ordinary mode has.
fn in_use(role: PageRole) -> bool {
    !role.is_invalid() && !role.has(RoleFlag::GuestMode) && !role.has(RoleFlag::Smm)
}

/// What the model's TDP MMU has after a guest has touched all pages that a scene needs.
pub(crate) fn model_second(host: &Host) -> Result<Dump, SceneError> {
    match host.second_stage {
        SecondStage::Ept => model_second_in::<Ept>(host),
        SecondStage::Npt | SecondStage::Off => model_second_in::<Npt>(host),
    }
}

fn model_second_in<F: Format>(host: &Host) -> Result<Dump, SceneError> {
    let profile = Profile::latest();
    let mut vm = TdpVm::<F>::new(profile, VmType::Default, host).ok_or(SceneError::NoRoot)?;
    vm.create_vcpu(0);
    let bytes = MEMORY_PAGES * PAGE_SIZE;
    // A host address that allows no huge page.
    vm.set_region(&Region::new(SlotKey::normal(0), 0, bytes, 0x7f00_0000_1000));
    let pages = [0].into_iter().chain(TEST_TABLES..TEST_TABLES + 8);
    let touched = pages
        .chain([DATA >> 12])
        .fold(Activity::default(), |activity, page| {
            activity.step(Kind::Write, page << 12)
        });
    vm.run_guest(0, &touched);
    Ok(vm.dump(Detail::Entries))
}

/// The guest's memory where the second stage has put it.
struct Behind {
    words: Vec<Cell<u64>>,
    /// Frames of the host, with the guest's.
    frames: BTreeMap<u64, u64>,
}

impl Behind {
    fn new<F: Format, O>(
        locked: &mut Locked<Shared<'_, F, NoExternal, NoCheck>, O>,
        root: TableId,
        memory: &[u64],
    ) -> Self {
        let pages = memory.len() as u64 >> 9;
        let frames = (0..pages).filter_map(|page| {
            let found = locked.hardware_walk(root, Gpa::new(page << 12), Access::USER, &mut ());
            Some((found.ok()?.hpa.raw() >> 12, page))
        });
        Self {
            frames: frames.collect(),
            words: memory.iter().copied().map(Cell::new).collect(),
        }
    }

    fn word(&self, at: Hpa) -> Option<&Cell<u64>> {
        let page = self.frames.get(&(at.raw() >> 12))?;
        let index = usize::try_from(page << 9 | at.raw() >> 3 & 0x1ff).ok()?;
        self.words.get(index)
    }
}

impl TableMemory<Hpa> for Behind {
    fn read_u64(&self, at: Hpa) -> Option<u64> {
        Some(self.word(at)?.get())
    }

    fn compare_exchange_u64(&self, at: Hpa, current: u64, new: u64) -> Exchange {
        match self.word(at) {
            None => Exchange::Failed,
            Some(word) if word.get() != current => Exchange::Changed,
            Some(word) => {
                word.set(new);
                Exchange::Done
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use slat_memslot::{Gva, Hpa};
    use slat_mmu::fault::Kind;
    use slat_mmu::host::Host;
    use slat_mmu::walk::{Dimension, PagingMode, Privilege};

    use super::{Scene, SceneError, page_of};
    use crate::walks::{Tried, mode_state};

    fn tried(address: u64) -> Tried {
        Tried {
            kind: Kind::Write,
            privilege: Privilege::User,
            address: Gva::new(address),
            pkru: 0,
        }
    }

    #[test]
    fn four_by_four_levels_are_24_references_and_five_by_five_35() {
        for (mode, host, address, references) in [
            (PagingMode::Level4, Host::npt(40), 0x1234_5678_9abc, 24),
            (PagingMode::Level4, Host::ept(46), 0xffff_8123_4567_89ab, 24),
            (
                PagingMode::Level5,
                Host::npt(52).with_five_levels(),
                0x00ab_1234_5678_9abc,
                35,
            ),
            (PagingMode::Level5, Host::npt(40), 0x00ab_1234_5678_9abc, 29),
        ] {
            let scene =
                Scene::of_model(&mode_state(mode), &tried(address), &host).expect("a scene");
            let walk = scene.walk().expect("sound tables");
            let ladder = walk.ladder.references();
            assert_eq!(ladder.len(), references, "{mode}, {host:?}: {ladder:#x?}");
            let found = walk.end.expect("mapped");
            assert_eq!(found.gpa, page_of(Gva::new(address)));
            assert_ne!(
                found.address,
                Hpa::new(found.gpa.raw()),
                "the host has other frames"
            );
            // The guest's entries were marked, and nothing else was.
            let marked = ladder.iter().filter(|reference| reference.marked.is_some());
            let levels = if mode == PagingMode::Level5 { 5 } else { 4 };
            assert_eq!(marked.clone().count(), levels);
            assert!(
                marked
                    .into_iter()
                    .all(|one| one.dimension == Dimension::Guest)
            );
        }
    }

    #[test]
    fn addresses_that_cannot_be_asked_for_are_refused() {
        let state = mode_state(PagingMode::Level4);
        let made = |address| Scene::of_model(&state, &tried(address), &Host::npt(40));
        assert!(matches!(
            made(0x1000),
            Err(SceneError::Own { first, .. }) if first == 1 << 39
        ));
        assert!(matches!(
            made(1 << 50),
            Err(SceneError::NonCanonical { .. })
        ));
    }
}

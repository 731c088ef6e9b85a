//! How costs grow: with slots, with what is mapped, with roots, with vCPUs, and with what is converted.
//!
//! What is counted are operations of the model (entries that change, faults, requests) and, where work has no natural unit, the
//! instructions that it takes, counted one by one. No clock decides, so that the curves are the same on a busy machine.

use core::fmt;

use slat_memslot::{Gfn, GfnRange, PageSize, Pages};
use slat_mmu::host::Host;
use slat_mmu::role::{PageRole, RoleFlag, TdpDepth, TdpHost, VcpuState, root_role_for_tdp};
use slat_mmu::roots::Request;
use slat_mmu::spte::{Npt, Pfn};
use slat_mmu::tdp::{Event, Limits, MapRequest, Tables, Uninterrupted, Unobserved, ZapLeafs};

use super::cost::{BASE, Stage};
use super::scene::{Policy, Scene, SceneError};
use super::subject::Subject;
use super::{Cost, measure};
use crate::paged_vm::PagedVm;
use crate::tdp_vm::TdpVm;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod conversion;

/// A law of growth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Law {
    /// The same, whatever the size.
    Flat,
    /// A little more with each doubling.
    Logarithmic,
    /// Twice as much for twice the size.
    Linear,
    /// However it grows, at most so many times the least.
    Within(u64),
}

impl fmt::Display for Law {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flat => f.pad("flat"),
            Self::Logarithmic => f.pad("log"),
            Self::Linear => f.pad("linear"),
            Self::Within(times) => f.pad(&format!("{times} times")),
        }
    }
}

/// One cost over one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Curve {
    /// What costs.
    pub name: &'static str,
    /// What grows.
    pub over: &'static str,
    /// What is counted.
    pub counted: &'static str,
    /// How it is to grow.
    pub law: Law,
    /// Size and count.
    pub points: Vec<(u64, u64)>,
}

impl Curve {
    /// The law that its points follow; `None` where they grow otherwise, or are fewer than three.
    ///
    /// Flat: no point is more than a quarter above the least. Linear: from the middle on, a unit costs what it did before,
    /// give or take a quarter. Logarithmic: from the middle on, a doubling costs at most twice what it did before, or growth has
    /// ended: the last point is no more than a quarter above the middle.
    pub fn found(&self) -> Option<Law> {
        let counts = || self.points.iter().map(|(_, count)| *count);
        let (least, most) = (counts().min()?, counts().max()?);
        if most * 4 <= least * 5 {
            return Some(Law::Flat);
        }
        let [first, .., last] = self.points.as_slice() else {
            return None;
        };
        let middle = self.points[self.points.len() / 2];
        let by_unit = |size: u64| size as f64;
        let by_doubling = |size: u64| (size as f64).log2();
        let ratio = |measure: &dyn Fn(u64) -> f64| {
            let slope = |from: (u64, u64), to: (u64, u64)| {
                (to.1 as f64 - from.1 as f64) / (measure(to.0) - measure(from.0))
            };
            slope(middle, *last) / slope(*first, middle)
        };
        if (0.8..=1.25).contains(&ratio(&by_unit)) {
            return Some(Law::Linear);
        }
        let ended = last.1 * 4 <= middle.1 * 5;
        (ended || ratio(&by_doubling) <= 2.0).then_some(Law::Logarithmic)
    }

    /// Whether it grows as it should, or less; a bound is all that [`Law::Within`] asks.
    pub fn holds(&self) -> bool {
        match (self.found(), self.law) {
            (_, Law::Within(times)) => {
                let counts = || self.points.iter().map(|(_, count)| *count);
                let bound = counts().min().map(|least| least * times);
                bound.is_some_and(|bound| counts().max() <= Some(bound))
            }
            (Some(Law::Flat), law) => law != Law::Linear,
            (found, law) => found == Some(law),
        }
    }
}

/// How far curves go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Extent {
    /// To 4,096 slots, 64 MiB in small pages and 256 GiB in large ones: seconds.
    #[default]
    Short,
    /// To 32,764 slots, 4 GiB in small pages and 4 TiB in large ones: half a minute.
    Full,
}

/// Why a curve cannot be drawn.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CurveError {
    /// A scene cannot be played.
    #[error(transparent)]
    Scene(#[from] SceneError),
    /// Instructions cannot be counted.
    #[error("instructions cannot be counted: {0}")]
    Instructions(String),
    /// A conversion failed.
    #[error("a conversion cannot be played: {0}")]
    Conversion(String),
}

/// All curves.
///
/// Those in instructions are left out where the system cannot count them (elsewhere than on Linux on x86-64), and where debug
/// assertions are on: with them, page tables audit themselves after every operation.
///
/// # Errors
/// See [`CurveError`].
pub fn all(extent: Extent) -> Result<Vec<Curve>, CurveError> {
    let mut curves = over_memory(extent, PageSize::Size4K)?;
    curves.extend(over_memory(extent, PageSize::Size2M)?);
    curves.extend(over_roots());
    curves.extend(over_vcpus()?);
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    if !cfg!(debug_assertions) {
        curves.extend(counted::all(extent)?);
    }
    Ok(curves)
}

fn curve(
    (name, over, counted): (&'static str, &'static str, &'static str),
    law: Law,
    points: impl IntoIterator<Item = (u64, u64)>,
) -> Curve {
    Curve {
        name,
        over,
        counted,
        law,
        points: points.into_iter().collect(),
    }
}

// --- What others have mapped ---------------------------------------------------------------------------------------------

/// A slot of 1 MiB, or of one large page, goes while more and more is mapped.
fn over_memory(extent: Extent, leaf: PageSize) -> Result<Vec<Curve>, CurveError> {
    const MIB: u64 = 256;
    let (over, least, most) = match (leaf, extent) {
        (PageSize::Size4K, Extent::Short) => (SMALL, MIB, 64 * MIB),
        (PageSize::Size4K, Extent::Full) => (SMALL, MIB, 4096 * MIB),
        (_, Extent::Short) => (LARGE, 1024 * MIB, MIB << 18),
        (_, Extent::Full) => (LARGE, 1024 * MIB, MIB << 22),
    };
    let pages = leaf.pages().raw().max(MIB);
    let scene = Scene::new(Pages::new(pages)).with_leaf(leaf);
    let sizes = core::iter::successors(Some(least), |size| Some(size * 4));
    let sizes: Vec<u64> = sizes.take_while(|size| *size <= most).collect();
    let played = |policy| -> Result<Vec<(u64, Cost)>, SceneError> {
        let play = |size: &u64| {
            let scene = scene.with_others(Pages::new(*size)).with_policy(policy);
            Ok((*size / MIB, measure(&scene, &Subject::tdp())?))
        };
        sizes.iter().map(play).collect()
    };
    let (all, leaves) = (played(Policy::QuirkOn)?, played(Policy::QuirkOff)?);
    let of = |costs: &[(u64, Cost)], count: fn(&Cost) -> u64| -> Vec<(u64, u64)> {
        costs
            .iter()
            .map(|(size, cost)| (*size, count(cost)))
            .collect()
    };
    let entries = |cost: &Cost| cost.change.counts.entries;
    Ok(vec![
        curve(
            ("delete, all roots", over, ENTRIES),
            Law::Linear,
            of(&all, entries),
        ),
        curve(
            ("faults behind it", over, "faults"),
            Law::Linear,
            of(&all, Cost::refaults),
        ),
        curve(
            ("delete, leaves", over, ENTRIES),
            Law::Flat,
            of(&leaves, entries),
        ),
        curve(
            ("faults behind it", over, "faults"),
            Law::Flat,
            of(&leaves, Cost::refaults),
        ),
    ])
}

const SMALL: &str = "MiB mapped, 4K";
const LARGE: &str = "MiB mapped, 2M";
const ENTRIES: &str = "entries changed";

// --- Roots ---------------------------------------------------------------------------------------------------------------

/// Tables with so many roots, 512 pages mapped in each. KVM has a handful at most with the TDP MMU.
fn tables_with(roots: u64) -> Tables<Npt> {
    let limits = Limits {
        tables: 1 << 12,
        readers: 1,
    };
    let mut tables = Tables::<Npt>::with_limits(&Host::npt(48), limits);
    for root in 0..roots {
        let mut locked = tables.exclusive(Unobserved);
        let Ok(acquired) = locked.acquire_root(role(root)) else {
            break;
        };
        let first = MapRequest::page(Gfn::new(0), PageSize::Size4K, Pfn::new(1 << 20));
        if let Some(table) = locked.root_table(acquired.root()) {
            let _mapped = locked.map_range(table, &first, Pages::new(512));
        }
    }
    tables
}

/// One of 64 roles that differ in flags.
fn role(number: u64) -> PageRole {
    const FLAGS: [RoleFlag; 6] = [
        RoleFlag::EferNx,
        RoleFlag::Cr0Wp,
        RoleFlag::SmepAndNotWp,
        RoleFlag::SmapAndNotWp,
        RoleFlag::GuestMode,
        RoleFlag::Passthrough,
    ];
    let role = root_role_for_tdp(&VcpuState::default(), &TdpHost::new(TdpDepth::Npt4));
    let flags = FLAGS.into_iter().enumerate();
    flags.fold(role, |role, (bit, flag)| match number >> bit & 1 {
        0 => role.without(flag),
        _ => role.with(flag),
    })
}

const ROOTS: [u64; 7] = [1, 2, 4, 8, 16, 32, 64];

/// Leaves of a slot go from every root.
fn over_roots() -> Vec<Curve> {
    let range = GfnRange::new(Gfn::new(0), Pages::new(16));
    let zapped = |roots: u64| {
        let mut tables = tables_with(roots);
        let mut events: Vec<Event<Npt>> = Vec::new();
        if let Some(range) = range {
            let mut zap = ZapLeafs::of_valid_roots(range);
            let _ = zap.run(&mut tables.exclusive(&mut events), &mut Uninterrupted);
        }
        (roots, events.len() as u64)
    };
    let name = ("zap 16 pages", "roots", ENTRIES);
    vec![curve(name, Law::Linear, ROOTS.map(zapped))]
}

// --- vCPUs ---------------------------------------------------------------------------------------------------------------

/// All vCPUs share a root: each is asked to let go of it, and what was mapped is faulted in once.
fn over_vcpus() -> Result<Vec<Curve>, SceneError> {
    let scene = Scene::new(Pages::new(64)).with_others(Pages::new(1024));
    let (mut asked, mut faults) = (Vec::new(), Vec::new());
    for vcpus in ROOTS {
        let scene = scene.with_vcpus(1, u32::try_from(vcpus).unwrap_or(1));
        let mut stage = Stage::<TdpVm<Npt>>::set(&scene, &Subject::tdp())?;
        stage.populate();
        PagedVm::set_region(&mut stage.vm, &scene.change(BASE));
        let waiting = stage.vm.waiting(Request::FreeObsoleteRoots);
        asked.push((vcpus, waiting as u64));
        faults.push((vcpus, measure(&scene, &Subject::tdp())?.refaults()));
    }
    Ok(vec![
        curve(
            ("delete, all roots", "vCPUs", "vCPUs asked"),
            Law::Linear,
            asked,
        ),
        curve(("faults behind it", "vCPUs", "faults"), Law::Flat, faults),
    ])
}

/// Curves in instructions.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod counted {
    use slat_memslot::{AsId, Memory, PAGE_SIZE, Profile, Region, SlotKey, VmType};

    use super::*;
    use crate::zap::steps::instructions;

    pub(super) const INSTRUCTIONS: &str = "instructions";

    pub(super) fn all(extent: Extent) -> Result<Vec<Curve>, CurveError> {
        let mut curves = over_slots(extent).map_err(CurveError::Instructions)?;
        curves.push(invalidation(extent)?);
        curves.push(invalidation_over_roots().map_err(CurveError::Instructions)?);
        curves.extend(conversion::curves()?);
        Ok(curves)
    }

    /// Slots of a page each, with gaps between them.
    fn memory_with(slots: u64) -> (Memory, u64) {
        let profile = Profile::named("debian-6.12.117").expect("a profile of slat-memslot");
        let mut memory = Memory::new(profile, VmType::Default);
        for number in 0..slots {
            let _made = memory.set_region(&nth(number));
        }
        (memory, slots)
    }

    fn nth(number: u64) -> Region {
        let id = u16::try_from(number).unwrap_or(u16::MAX);
        let gpa = number * 2 * PAGE_SIZE;
        Region::new(SlotKey::normal(id), gpa, PAGE_SIZE, 0x1000_0000 + gpa)
    }

    fn over_slots(extent: Extent) -> Result<Vec<Curve>, String> {
        let most = match extent {
            Extent::Short => 1 << 12,
            Extent::Full => 1 << 15,
        };
        // One place is left for the slot that is made.
        let counts = core::iter::successors(Some(1_u64), |slots| Some(slots * 4));
        let counts = counts.take_while(|slots| *slots < most);
        let counts: Vec<u64> = counts.chain([(most - 5).min(32_763)]).collect();
        let (mut looked, mut made, mut gone) = (Vec::new(), Vec::new(), Vec::new());
        for slots in counts {
            let (mut memory, slots) = memory_with(slots);
            let middle = Gfn::new(slots / 2 * 2);
            let found = instructions(|| {
                let space = memory.space(AsId::NORMAL);
                core::hint::black_box(space.by_gfn(core::hint::black_box(middle)).is_some());
            })?;
            looked.push((slots, found));
            // Between two others. Once before it is counted, so that the allocator has what it needs.
            let between = Region {
                gpa: nth(slots / 2).gpa + PAGE_SIZE,
                ..nth(slots)
            };
            let _made = memory.set_region(&between);
            let _gone = memory.set_region(&Region { size: 0, ..between });
            made.push((
                slots,
                instructions(|| {
                    let _made = memory.set_region(&between);
                })?,
            ));
            let last = Region::delete(SlotKey::normal(u16::try_from(slots / 2).unwrap_or(0)));
            gone.push((
                slots,
                instructions(|| {
                    let _gone = memory.set_region(&last);
                })?,
            ));
        }
        let name = |what| (what, "slots", INSTRUCTIONS);
        Ok(vec![
            curve(name("find a slot"), Law::Logarithmic, looked),
            curve(name("create a slot"), Law::Logarithmic, made),
            curve(name("delete a slot"), Law::Logarithmic, gone),
        ])
    }

    /// All roots are invalidated: the same whatever is mapped.
    fn invalidation(extent: Extent) -> Result<Curve, CurveError> {
        let most = match extent {
            Extent::Short => 1 << 14,
            Extent::Full => 1 << 20,
        };
        let mut points = Vec::new();
        for pages in core::iter::successors(Some(256_u64), |pages| Some(pages * 4)) {
            if pages > most {
                break;
            }
            let scene = Scene::new(Pages::new(pages));
            let mut stage = Stage::<TdpVm<Npt>>::set(&scene, &Subject::tdp())?;
            stage.populate();
            let tables = &mut stage.vm.tables;
            let count = instructions(|| tables.exclusive(Unobserved).invalidate_roots());
            points.push((pages / 256, count.map_err(CurveError::Instructions)?));
        }
        let name = ("invalidate all roots", SMALL, INSTRUCTIONS);
        Ok(curve(name, Law::Flat, points))
    }

    fn invalidation_over_roots() -> Result<Curve, String> {
        let mut points = Vec::new();
        for roots in ROOTS {
            let mut tables = tables_with(roots);
            let count = instructions(|| tables.exclusive(Unobserved).invalidate_roots())?;
            points.push((roots, count));
        }
        let name = ("invalidate all roots", "roots", INSTRUCTIONS);
        Ok(curve(name, Law::Linear, points))
    }
}

//! Playing a script on tables.

use core::fmt::Display;

use slat_memslot::{AsId, Gfn};
use slat_mmu::host::SecondStage;
use slat_mmu::roots::{Acquired, RootId};
use slat_mmu::spte::{
    Access, Ept, Fill, Format, HostWrite, LeafRequest, Npt, NxHugePages, Spte, Tracking,
};
use slat_mmu::table::{Reader, TableId};
use slat_mmu::tdp::dump::{Detail, Dump};
use slat_mmu::tdp::{
    Event, Limits, MapRequest, Observer, Passes, Progress, SplitHugePages, Tables, Target,
    Uninterrupted, Unobserved, ZapInvalidated, ZapLeafs,
};

use super::expect::Failure;
use super::{
    Expect, FastZap, MAX_TABLES, Operation, Outcome, Page, PageOptions, RootName, Script, Step,
};

/// How a script is played.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The most tables, rounded up to a multiple of 512.
    pub tables: u32,
    /// What the dump tells.
    pub detail: Detail,
}

impl Default for Options {
    /// [`MAX_TABLES`], and ranges without raw entries.
    fn default() -> Self {
        Self {
            tables: MAX_TABLES,
            detail: Detail::Ranges,
        }
    }
}

/// What a script came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Every operation.
    pub steps: Vec<StepReport>,
    /// What the tables hold in the end.
    pub dump: Dump,
}

/// What one operation came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepReport {
    /// The line in the text.
    pub line: u32,
    /// The line's text.
    pub text: String,
    /// What it was expected to give.
    pub expect: Option<Expect>,
    /// What it gave.
    pub outcome: Outcome,
}

impl StepReport {
    /// Whether it gave what was expected; without expectation, anything but an error.
    pub fn agrees(&self) -> bool {
        match &self.expect {
            Some(expect) => expect.accepts(&self.outcome),
            None => !matches!(self.outcome, Outcome::Failed(_)),
        }
    }
}

impl Report {
    /// The operations that gave something else than was expected.
    pub fn failures(&self) -> impl Iterator<Item = &StepReport> {
        self.steps.iter().filter(|step| !step.agrees())
    }
}

/// Plays a script.
pub fn run(script: &Script, options: &Options) -> Report {
    play_any(script, options, Unobserved, Unobserved)
}

/// Plays a script and tells everything that happens, in order: the step, and the event as a line in the manner of KVM's
/// trace text. A step is told of, without an event, before its first.
pub fn run_traced(
    script: &Script,
    options: &Options,
    sink: &mut dyn FnMut(&Step, Option<&dyn Display>),
) -> Report {
    let trace = Trace { step: None, sink };
    match script.host.second_stage {
        SecondStage::Ept => play::<Ept, _>(script, options, trace),
        SecondStage::Npt | SecondStage::Off => play::<Npt, _>(script, options, trace),
    }
}

fn play_any<E: Steps<Ept>, N: Steps<Npt>>(
    script: &Script,
    options: &Options,
    ept: E,
    npt: N,
) -> Report {
    match script.host.second_stage {
        SecondStage::Ept => play(script, options, ept),
        SecondStage::Npt | SecondStage::Off => play(script, options, npt),
    }
}

/// An observer that is told which step it observes.
trait Steps<F>: Observer<F> {
    fn begin(&mut self, step: &Step);
}

impl<F> Steps<F> for Unobserved {
    fn begin(&mut self, _: &Step) {}
}

/// Tells events as they come, so that none is kept.
struct Trace<'s> {
    step: Option<Step>,
    sink: &'s mut dyn FnMut(&Step, Option<&dyn Display>),
}

impl<F: Format> Observer<F> for Trace<'_> {
    const EVENTS: bool = true;

    fn event(&mut self, event: Event<F>) {
        if let Some(step) = &self.step {
            (self.sink)(step, Some(&event));
        }
    }
}

impl<F: Format> Steps<F> for Trace<'_> {
    fn begin(&mut self, step: &Step) {
        (self.sink)(step, None);
        self.step = Some(step.clone());
    }
}

fn play<F: Format, O: Steps<F>>(script: &Script, options: &Options, observer: O) -> Report {
    let limits = Limits {
        tables: options.tables,
        readers: 1,
    };
    let tables = Tables::<F>::with_limits(&script.host, limits);
    let reader = tables.reader().expect("nobody else reads");
    let mut player = Player {
        tables,
        reader,
        observer,
        roots: Vec::new(),
    };
    let steps = script.steps.iter().map(|step| player.step(step)).collect();
    Report {
        steps,
        dump: player.tables.dump(options.detail),
    }
}

struct Player<F, O> {
    tables: Tables<F>,
    reader: Reader,
    observer: O,
    /// By name; `None` if there was no table for it.
    roots: Vec<Option<RootId>>,
}

impl<F: Format, O: Steps<F>> Player<F, O> {
    fn step(&mut self, step: &Step) -> StepReport {
        self.observer.begin(step);
        let outcome = self.operation(&step.operation);
        StepReport {
            line: step.line,
            text: step.text.clone(),
            expect: step.expect.clone(),
            outcome: outcome.unwrap_or_else(Outcome::Failed),
        }
    }

    fn operation(&mut self, operation: &Operation) -> Result<Outcome, Failure> {
        let (tables, observer) = (&mut self.tables, &mut self.observer);
        Ok(match operation {
            Operation::Root { root, role } => {
                let mut locked = tables.shared(&mut self.reader, &mut *observer);
                let acquired = locked.acquire_root(*role);
                drop(locked);
                self.bind(*root, acquired.as_ref().ok().copied());
                match acquired {
                    Ok(Acquired::Shared(_)) => Outcome::Shared,
                    Ok(Acquired::Created(_)) => Outcome::Created,
                    Err(_) => return Err(Failure::OutOfTables),
                }
            }
            Operation::Map { root, gfn, page } => {
                let request = MapRequest {
                    gfn: *gfn,
                    ..request(page)
                };
                self.fault(*root, &request)?
            }
            Operation::Mmio {
                root,
                gfn,
                generation,
            } => self.fault(*root, &MapRequest::mmio(*gfn, *generation))?,
            Operation::MapRange { root, frames, page } => {
                let table = self.table(*root)?;
                let request = MapRequest {
                    gfn: frames.start(),
                    ..request(page)
                };
                let mut locked = self.tables.exclusive(&mut self.observer);
                let dirty = locked.map_range(table, &request, frames.pages());
                Outcome::MappedRange {
                    pages: frames.pages().raw(),
                    dirty: dirty.map_err(Failure::Map)?.raw(),
                }
            }
            Operation::Zap(frames) => {
                let mut zap = ZapLeafs::of_valid_roots(*frames);
                let _done = zap.run(&mut tables.exclusive(&mut *observer), &mut Uninterrupted);
                Outcome::Zapped(zap.zapped())
            }
            Operation::ZapPage { root, gfn, level } => {
                let root = self.table(*root)?;
                let mut locked = self.tables.exclusive(&mut self.observer);
                let table = locked.table_of(root, *gfn, *level);
                Outcome::ZappedTable(table.is_some_and(|table| locked.zap_page(table)))
            }
            Operation::Split { frames, size } => {
                for as_id in [AsId::NORMAL, AsId::SMM] {
                    let nx_huge_pages = NxHugePages::Off;
                    let mut split = SplitHugePages::new(as_id, *frames, *size, nx_huge_pages);
                    let mut locked = tables.shared(&mut self.reader, &mut *observer);
                    let split = split.run(&mut locked, &mut Uninterrupted);
                    let _done = split.map_err(|_| Failure::OutOfTables)?;
                }
                Outcome::Done
            }
            Operation::Collapse {
                root,
                gfn,
                size,
                how,
            } => {
                let root = self.table(*root)?;
                let mut locked = self.tables.shared(&mut self.reader, &mut self.observer);
                Outcome::Collapsed(locked.collapse(root, *gfn, *size, *how))
            }
            Operation::FastZap(how) => self.fast_zap(*how),
            Operation::ZapInvalidated => self.zap_invalidated(Passes::SmallestFirst),
            Operation::Put(root) => {
                let root = self.root(*root)?;
                self.tables.exclusive(&mut self.observer).put_root(root);
                Outcome::Done
            }
        })
    }

    fn bind(&mut self, name: RootName, root: Option<Acquired>) {
        if self.roots.len() <= name.0 {
            self.roots.resize(name.0 + 1, None);
        }
        if let Some(place) = self.roots.get_mut(name.0) {
            *place = root.map(Acquired::root);
        }
    }

    fn root(&self, name: RootName) -> Result<RootId, Failure> {
        let root = self.roots.get(name.0).copied().flatten();
        root.ok_or(Failure::NoRoot)
    }

    fn table(&self, name: RootName) -> Result<TableId, Failure> {
        let root = self.root(name)?;
        self.tables.roots().payload(root).ok_or(Failure::NoRoot)
    }

    fn fault(&mut self, root: RootName, request: &MapRequest<F>) -> Result<Outcome, Failure> {
        let table = self.table(root)?;
        let mut locked = self.tables.shared(&mut self.reader, &mut self.observer);
        let mapped = locked.map(table, request);
        mapped.map(Outcome::Fault).map_err(Failure::Map)
    }

    fn fast_zap(&mut self, how: FastZap) -> Outcome {
        let mut locked = self.tables.exclusive(&mut self.observer);
        locked.invalidate_roots();
        match how {
            FastZap::BeforeReturn(passes) => self.zap_invalidated(passes),
            FastZap::Worker => Outcome::Done,
            FastZap::Discard => Outcome::Discarded(locked.discard_invalidated()),
        }
    }

    fn zap_invalidated(&mut self, passes: Passes) -> Outcome {
        let mut zap = ZapInvalidated::new(passes);
        let mut locked = self.tables.shared(&mut self.reader, &mut self.observer);
        while zap.run(&mut locked, &mut Uninterrupted) == Progress::Paused {}
        Outcome::Done
    }
}

/// A fault on a page, at frame 0.
fn request<F: Format>(page: &Page) -> MapRequest<F> {
    let has = |option| page.options.contains(option);
    let reads = page
        .options
        .intersects(PageOptions::READ | PageOptions::PREFETCH);
    let leaf = LeafRequest {
        fill: if has(PageOptions::PREFETCH) {
            Fill::Prefetch
        } else {
            Fill::Fault
        },
        host_write: if has(PageOptions::READ_ONLY) {
            HostWrite::Refused
        } else {
            HostWrite::Allowed
        },
        tracking: if has(PageOptions::TRACKED) {
            Tracking::EveryWrite
        } else {
            Tracking::None
        },
        dirty_log: has(PageOptions::LOG),
        nx_huge_pages: page.nx_huge_pages,
        ..LeafRequest::new(Spte::from_raw(0), page.size, page.pfn)
    };
    MapRequest {
        gfn: Gfn::new(0),
        size: page.size,
        access: if reads {
            Access::empty()
        } else {
            Access::WRITE
        },
        target: Target::Page(leaf),
    }
}

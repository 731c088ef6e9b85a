//! A conversion before it is carried out.

use core::fmt;

use slat_memslot::{AsId, Attributes, Gfn, GfnRange, Hva, Memory, PAGE_SHIFT, Pages, Slot, VmType};

use super::contents::{Behind, Loss};
use super::policy::{Devices, LeftBehind, NoPrivateSide, PlanError, Policy, Unbacked};
use super::{HostPart, Request, Step};
use crate::migration::{Status, StatusList};

/// A step that can be taken back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Prepared {
    pub(super) step: Step,
    /// What takes it back.
    pub(super) undo: Vec<Step>,
}

/// A conversion: what is done, in which order, and what the guest loses by it.
///
/// First come steps that can be taken back, of which the attributes are the heart; when all of them are done the conversion has
/// happened. What follows gives memory back that nobody uses any more: that can be late, but not undone.
///
/// | | to private | to shared |
/// |---|---|---|
/// | can be taken back | devices lose the shared side; attributes | attributes; devices get the shared side |
/// | cannot | the shared side is discarded | the private side is discarded |
///
/// The plan has as many steps as the range has slots and borders between attributes; it does not matter how many pages lie between.
/// What is so already is left alone: nothing is zapped or discarded there, but for the attributes of frames between others that
/// change, which one call sets with them.
///
/// ```
/// use slat_coco::convert::{MapGpaRangeExit, Plan, Policy, Request};
/// use slat_memslot::{Memory, Profile, Region, SlotKey, VmType};
///
/// let mut memory = Memory::new(Profile::latest(), VmType::SwProtected);
/// let file = memory.create_gmem(1 << 30, 0).unwrap();
/// let ram = Region::new(SlotKey::normal(0), 0, 1 << 30, 0x7f00_0000_0000).with_gmem(file, 0);
/// let _effects = memory.set_region(&ram).unwrap();
///
/// let exit = MapGpaRangeExit { nr: 12, args: [0x20_0000, 512, 0x10] };
/// let request = Request::from_hypercall(&exit).unwrap();
/// let plan = Plan::new(&memory, &request, &Policy::default()).unwrap();
/// assert_eq!(
///     plan.to_string(),
///     "make [0x200, 0x400) private\n\
///      discard the shared side of [0x200, 0x400), at 0x7f0000200000\n\
///      [0x200, 0x400) becomes private: what was there is gone; it finds what was left there last, or zeros\n"
/// );
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    request: Request,
    pub(super) prepare: Vec<Prepared>,
    pub(super) finish: Vec<Step>,
    losses: Vec<Loss>,
}

/// Frames of one slot, or of none, with one kind of attributes.
struct Piece<'a> {
    range: GfnRange,
    slot: Option<&'a Slot>,
    changes: bool,
}

impl Plan {
    /// The plan for a VM whose KVM keeps attributes: software-protected ones, SEV-SNP, TDX.
    ///
    /// `memory` is what the VMM has set up, attributes among it.
    ///
    /// # Errors
    /// The request cannot be met as the policy wants it. The guest hears `EINVAL`, and the VM goes on.
    pub fn new(memory: &Memory, request: &Request, policy: &Policy) -> Result<Self, PlanError> {
        if !memory.vm_type().has_private_memory() {
            return Err(PlanError::NoAttributes(memory.vm_type()));
        }
        let mut planner = Planner {
            memory,
            policy,
            plan: Self::empty(request),
            run: None,
            changing: Vec::new(),
        };
        for piece in pieces(memory, request) {
            planner.piece(&piece)?;
        }
        planner.end()
    }

    /// The plan for a SEV or SEV-ES guest, whose KVM keeps nothing: the VMM notes it in its list. Memory is one page for both sides, so
    /// nothing is discarded, and devices reach it as before.
    pub fn noted(vm_type: VmType, list: &StatusList, request: &Request) -> Self {
        let mut plan = Self::empty(request);
        let (range, to) = (request.range, request.to);
        let changing = list.cut(range).filter(|(_, status)| *status != to);
        let changing: Vec<GfnRange> = changing.map(|(part, _)| part).collect();
        let losses = changing.iter();
        plan.losses = losses
            .map(|part| Loss::of(vm_type, *part, to, Behind::OnePage))
            .collect();
        if let Some(hull) = hull(&changing) {
            let undo = changing.iter().map(|part| Step::Note {
                range: *part,
                to: to.other(),
            });
            plan.prepare.push(Prepared {
                step: Step::Note { range: hull, to },
                undo: undo.collect(),
            });
        }
        plan
    }

    const fn empty(request: &Request) -> Self {
        Self {
            request: *request,
            prepare: Vec::new(),
            finish: Vec::new(),
            losses: Vec::new(),
        }
    }

    /// What was asked for.
    pub const fn request(&self) -> &Request {
        &self.request
    }

    /// The steps, in order.
    pub fn steps(&self) -> impl Iterator<Item = &Step> + '_ {
        let first = self.prepare.iter().map(|prepared| &prepared.step);
        first.chain(&self.finish)
    }

    /// Whether everything is as it was asked for already.
    ///
    /// After `KVM_EXIT_MEMORY_FAULT` that means that no conversion helps: the same fault comes again, until the slot gets what it lacks
    /// or the VMM stops the guest.
    pub fn is_empty(&self) -> bool {
        self.prepare.is_empty()
    }

    /// What the guest loses and finds, part by part; nothing is said of frames that stay what they are.
    pub fn losses(&self) -> &[Loss] {
        &self.losses
    }

    /// Pages whose contents the guest cannot have back.
    pub fn lost_pages(&self) -> Pages {
        let lost = self.losses.iter().filter(|loss| loss.is_final());
        lost.map(|loss| loss.range.pages())
            .fold(Pages::new(0), |sum, pages| sum + pages)
    }

    /// Whether it is still what [`Plan::new`] would make: nothing that it is about has changed.
    pub fn is_current(&self, memory: &Memory, policy: &Policy) -> bool {
        Self::new(memory, &self.request, policy).as_ref() == Ok(self)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.steps().try_for_each(|step| writeln!(f, "{step}"))?;
        let mut losses = self.losses.iter();
        losses.try_for_each(|loss| writeln!(f, "{loss}"))
    }
}

/// The smallest range that holds all.
fn hull(ranges: &[GfnRange]) -> Option<GfnRange> {
    GfnRange::between(ranges.first()?.start(), ranges.last()?.end())
}

/// A request cut at the borders of slots and where attributes change, ascending.
fn pieces<'a>(memory: &'a Memory, request: &Request) -> impl Iterator<Item = Piece<'a>> {
    let (range, to) = (request.range, request.to);
    let mut slots = memory.space(AsId::NORMAL).in_range(range).peekable();
    let mut at = range.start();
    let parts = core::iter::from_fn(move || {
        let next = slots.peek().map(|slot| slot.range());
        let (end, slot) = match next {
            Some(next) if next.start() <= at => (next.end(), slots.next()),
            Some(next) => (next.start(), None),
            None => (range.end(), None),
        };
        let part = GfnRange::between(at, end.min(range.end()))?;
        at = part.end();
        Some((part, slot))
    });
    parts.flat_map(move |(part, slot)| {
        let parts = memory.attributes().ranges(part);
        parts.map(move |(range, attributes)| Piece {
            range,
            slot,
            changes: attributes != wanted(to),
        })
    })
}

/// The attributes of frames that are private, or shared.
pub(super) const fn wanted(to: Status) -> Attributes {
    match to {
        Status::Private => Attributes::PRIVATE,
        Status::Shared => Attributes::empty(),
    }
}

/// Why frames cannot be private, if they cannot.
fn no_private_side(slot: Option<&Slot>) -> Option<NoPrivateSide> {
    let Some(slot) = slot else {
        return Some(NoPrivateSide::Hole);
    };
    match slot.binding() {
        None => Some(NoPrivateSide::NoFile(slot.key())),
        Some(binding) if binding.file.is_none() => Some(NoPrivateSide::FileClosed(slot.key())),
        Some(_) => None,
    }
}

struct Planner<'a> {
    memory: &'a Memory,
    policy: &'a Policy,
    plan: Plan,
    /// The frames that one call sets, with those among them that change.
    run: Option<Vec<GfnRange>>,
    /// What changes and has both sides.
    changing: Vec<(GfnRange, &'a Slot)>,
}

impl<'a> Planner<'a> {
    fn piece(&mut self, piece: &Piece<'a>) -> Result<(), PlanError> {
        if !piece.changes {
            return Ok(());
        }
        if let Some(why) = no_private_side(piece.slot) {
            let unbacked = match self.plan.request.to {
                Status::Private => self.policy.unbacked_to_private,
                Status::Shared => self.policy.unbacked_to_shared,
            };
            let range = piece.range;
            match unbacked {
                Unbacked::Refuse => return Err(PlanError::NothingPrivate { range, why }),
                Unbacked::Skip => return self.end_run(),
                Unbacked::Set => {}
            }
        } else if let Some(slot) = piece.slot {
            self.changing.push((piece.range, slot));
        }
        let run = self.run.get_or_insert_default();
        match run
            .last_mut()
            .filter(|last| last.end() == piece.range.start())
        {
            Some(last) => {
                *last = GfnRange::between(last.start(), piece.range.end()).unwrap_or(*last)
            }
            None => run.push(piece.range),
        }
        Ok(())
    }

    /// One call for everything up to here.
    fn end_run(&mut self) -> Result<(), PlanError> {
        let Some(changed) = self.run.take() else {
            return Ok(());
        };
        let Some(range) = hull(&changed) else {
            return Ok(());
        };
        let to = self.plan.request.to;
        let (address, size) = (range.start().gpa().raw(), range.pages().bytes());
        let attributes = wanted(to).bits();
        let checked = self
            .memory
            .check_set_attributes(address, size, attributes, 0);
        checked.map_err(|refusal| PlanError::Attributes(refusal.reason))?;
        let back = changed.into_iter().map(|range| Step::SetAttributes {
            range,
            to: to.other(),
        });
        self.plan.prepare.push(Prepared {
            step: Step::SetAttributes { range, to },
            undo: back.collect(),
        });
        Ok(())
    }

    fn end(mut self) -> Result<Plan, PlanError> {
        self.end_run()?;
        let changing = core::mem::take(&mut self.changing);
        let to = self.plan.request.to;
        let mut devices = Vec::new();
        for (range, slot) in &changing {
            self.leave(*range, slot, &changing);
            if self.policy.devices == Devices::Mapped {
                devices.extend(host_part(slot, *range).map(|part| device_step(part, to)));
            }
        }
        match to {
            Status::Private => drop(self.plan.prepare.splice(0..0, devices)),
            Status::Shared => self.plan.prepare.extend(devices),
        }
        Ok(self.plan)
    }

    /// What becomes of the side that frames leave.
    fn leave(&mut self, range: GfnRange, slot: &Slot, changing: &[(GfnRange, &Slot)]) {
        let Some(binding) = slot.binding() else {
            return;
        };
        if binding.gmem_only {
            return self.lose(range, Behind::OnePage);
        }
        if self.policy.left_behind == LeftBehind::Keep {
            return self.lose(range, Behind::Stays);
        }
        match self.plan.request.to {
            Status::Shared => {
                self.lose(range, Behind::Discarded);
                let page = binding.first_page + (range.start() - slot.range().start()).raw();
                self.plan
                    .finish
                    .extend(binding.file.map(|file| Step::DiscardPrivate {
                        range,
                        file,
                        offset: page << PAGE_SHIFT,
                    }));
            }
            Status::Private => {
                for (part, used) in self.shared_elsewhere(slot, range, changing) {
                    self.lose(
                        part,
                        if used {
                            Behind::Stays
                        } else {
                            Behind::Discarded
                        },
                    );
                    let part = host_part(slot, part).filter(|_| !used);
                    self.plan.finish.extend(part.map(Step::DiscardShared));
                }
            }
        }
    }

    fn lose(&mut self, range: GfnRange, behind: Behind) {
        let loss = Loss::of(self.memory.vm_type(), range, self.plan.request.to, behind);
        self.plan.losses.push(loss);
    }

    /// Frames cut by whether the host memory behind them belongs to other frames too, which stay shared or have nothing else.
    fn shared_elsewhere(
        &self,
        slot: &Slot,
        range: GfnRange,
        changing: &[(GfnRange, &Slot)],
    ) -> Vec<(GfnRange, bool)> {
        let mut used = Vec::new();
        let Some(hva) = slot.hva_of(range.start()) else {
            return Vec::new();
        };
        let end = Hva::new(hva.raw() + range.pages().bytes());
        for (other, frames) in self.memory.space(AsId::NORMAL).by_hva(hva, end) {
            if other.key() == slot.key() {
                continue;
            }
            if no_private_side(Some(other)).is_some() {
                used.extend(same_memory(other, frames, slot));
                continue;
            }
            let becoming = changing
                .iter()
                .filter(|(_, of)| of.key() == other.key())
                .map(|(range, _)| *range);
            let parts = self.memory.attributes().ranges(frames);
            let shared = parts.filter(|(_, attributes)| attributes.is_empty());
            let stays = shared.flat_map(|(part, _)| without(part, becoming.clone()));
            used.extend(stays.filter_map(|part| same_memory(other, part, slot)));
        }
        cut(range, used)
    }
}

/// What is left of a range without others, which ascend.
fn without(range: GfnRange, others: impl Iterator<Item = GfnRange>) -> Vec<GfnRange> {
    let mut at = range.start();
    let mut left = Vec::new();
    for gone in others.filter_map(|other| other.intersection(range)) {
        left.extend(GfnRange::between(at, gone.start()));
        at = at.max(gone.end());
    }
    left.extend(GfnRange::between(at, range.end()));
    left
}

/// The frames of `slot` with the same host memory as some of another slot; host addresses may be apart by parts of a page.
fn same_memory(other: &Slot, frames: GfnRange, slot: &Slot) -> Option<GfnRange> {
    let hva = other.hva_of(frames.start())?.raw();
    let end = hva + frames.pages().bytes();
    let base = slot.hva().raw();
    let first = hva.saturating_sub(base) >> PAGE_SHIFT;
    let last = end.saturating_sub(base).div_ceil(1 << PAGE_SHIFT);
    let gfn = |page: u64| Gfn::new(slot.range().start().raw() + page);
    GfnRange::between(gfn(first), gfn(last))
}

/// A range cut into parts that lie in one of `marked`, and others.
fn cut(range: GfnRange, mut marked: Vec<GfnRange>) -> Vec<(GfnRange, bool)> {
    marked.sort_by_key(|part| part.start());
    let mut parts = Vec::new();
    let mut at = range.start();
    for mark in marked
        .into_iter()
        .filter_map(|mark| mark.intersection(range))
    {
        parts.extend(GfnRange::between(at, mark.start()).map(|part| (part, false)));
        parts.extend(GfnRange::between(at.max(mark.start()), mark.end()).map(|part| (part, true)));
        at = at.max(mark.end());
    }
    parts.extend(GfnRange::between(at, range.end()).map(|part| (part, false)));
    parts
}

fn host_part(slot: &Slot, range: GfnRange) -> Option<HostPart> {
    let hva = slot.hva_of(range.start())?;
    Some(HostPart { range, hva })
}

fn device_step(part: HostPart, to: Status) -> Prepared {
    let (step, undo) = match to {
        Status::Private => (Step::UnmapDma(part), Step::MapDma(part)),
        Status::Shared => (Step::MapDma(part), Step::UnmapDma(part)),
    };
    Prepared {
        step,
        undo: vec![undo],
    }
}

//! What pre-faulting a range will do, before it is asked for.

use core::fmt;

use slat_memslot::{Gfn, GfnRange, Memory, PageSize, Pages, Slot, SlotId, ZapReach};
use thiserror::Error;

use super::handle::Apicv;
use super::prefault::PrefaultOutside;
use crate::host::Host;
use crate::role::{PageRole, RoleFlag, VcpuMode, VcpuState, root_role_for_tdp};

/// Leaves of one size that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PlannedRun {
    /// The frames that were asked for. The first and the last leaf may reach beyond.
    pub frames: GfnRange,
    /// The size of each leaf.
    pub size: PageSize,
}

impl PlannedRun {
    /// How many leaves: each is one fault, and one round of the call.
    pub const fn leaves(&self) -> u64 {
        let shift = self.size.level().gfn_shift();
        (self.frames.last().raw() >> shift) - (self.frames.start().raw() >> shift) + 1
    }
}

/// Why the call will not come to the end of the range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stop {
    /// No slot holds this frame (`ENOENT` if it is the first).
    NoSlot(Gfn),
    /// The APIC access page, which is emulated unless the hardware virtualises the APIC, and always for L2 (`ENOENT`).
    ApicAccessPage(Gfn),
    /// The frame is private and its slot has no guest_memfd (`EFAULT`).
    NoFile(Gfn),
}

/// Where pre-faulting will not do what one hopes for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Caveat {
    /// The host keeps no accessed bits: the first access to each page faults all the same, if only the fast way.
    FirstAccessFaults,
    /// The pages go into a root that the vCPU leaves with SMM or L2; in the base mode each page faults again.
    OtherRoot,
    /// The guest runs in another mode, and the pages go into the root of the base mode.
    NotItsRoot,
    /// A slot's writes are logged: each of its pages counts as dirty from then on, and is mapped small.
    MarksDirty,
    /// Deleting or moving any slot throws all roots away, and with them all that was mapped (the quirk `SLOT_ZAP_ALL`).
    GoesWithAnySlot,
}

impl fmt::Display for Caveat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FirstAccessFaults => {
                "the first access to each page still faults: there are no accessed bits"
            }
            Self::OtherRoot => "the pages go into the root of SMM or L2, not of the base mode",
            Self::NotItsRoot => {
                "the pages go into the root of the base mode, which the vCPU does not use now"
            }
            Self::MarksDirty => "every page of a logged slot counts as dirty then",
            Self::GoesWithAnySlot => "deleting or moving any slot throws the pages away",
        })
    }
}

/// The call is refused (`EINVAL`, as the mailing list had it).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
#[error("the vCPU is in {0:?} mode, and only the base mode can be pre-faulted")]
pub struct OutsideBaseMode(pub VcpuMode);

/// What pre-faulting a range will do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefaultPlan {
    /// The root that the pages go into.
    pub role: PageRole,
    /// The leaves, in order.
    pub runs: Vec<PlannedRun>,
    /// Why it ends early, if it does.
    pub stop: Option<Stop>,
    /// What to think about, each once.
    pub caveats: Vec<Caveat>,
}

impl PrefaultPlan {
    /// How many faults it takes.
    pub fn faults(&self) -> u64 {
        self.runs.iter().map(PlannedRun::leaves).sum()
    }

    /// How many of the frames that were asked for will be mapped.
    pub fn pages(&self) -> Pages {
        let pages = self.runs.iter().map(|run| run.frames.pages().raw());
        Pages::new(pages.sum())
    }
}

impl fmt::Display for PrefaultPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} pages in {} faults, into root {:#}",
            self.pages(),
            self.faults(),
            self.role
        )?;
        for run in &self.runs {
            writeln!(
                f,
                "  frames {}: {} of {}",
                run.frames,
                run.leaves(),
                run.size
            )?;
        }
        match self.stop {
            Some(Stop::NoSlot(gfn)) => writeln!(f, "  stops: no slot holds {gfn}")?,
            Some(Stop::ApicAccessPage(gfn)) => {
                writeln!(f, "  stops: {gfn} is the APIC access page")?
            }
            Some(Stop::NoFile(gfn)) => {
                writeln!(f, "  stops: {gfn} is private and has no guest_memfd")?
            }
            None => {}
        }
        for caveat in &self.caveats {
            writeln!(f, "  but {caveat}")?;
        }
        Ok(())
    }
}

/// Who is to pre-fault, and how.
#[derive(Clone, Copy, Debug)]
pub struct Prefaulter<'p> {
    /// The host.
    pub host: &'p Host,
    /// The vCPU: its CPUID chooses between four and five levels on EPT hosts, its mode the rest of the root.
    pub vcpu: &'p VcpuState,
    /// What becomes of a vCPU outside the base mode.
    pub outside: PrefaultOutside,
    /// Whether hardware virtualises the APIC, so that its page is mapped.
    pub apicv: Apicv,
}

impl Prefaulter<'_> {
    /// Plans the range. `size_of` tells in which size the host maps the page behind a frame, or a guest_memfd keeps it.
    ///
    /// ```
    /// use slat_memslot::{Gfn, GfnRange, Memory, PageSize, Pages, Profile, Region, SlotKey, VmType};
    /// use slat_mmu::fault::{Apicv, PrefaultOutside, Prefaulter, Stop};
    /// use slat_mmu::{host::Host, role::VcpuState};
    ///
    /// let profile = Profile::named("linux-6.12").unwrap();
    /// let mut memory = Memory::new(profile, VmType::Default);
    /// let ram = Region::new(SlotKey::normal(0), 0x20_0000, 6 << 20, 0x7f00_0020_0000);
    /// memory.set_region(&ram).unwrap();
    ///
    /// let host = Host::ept(46);
    /// let (vcpu, outside, apicv) = (&VcpuState::default(), PrefaultOutside::CurrentRoot, Apicv::Active);
    /// let who = Prefaulter { host: &host, vcpu, outside, apicv };
    /// let range = GfnRange::new(Gfn::new(0x300), Pages::new(0x800)).unwrap();
    /// let plan = who.plan(&memory, range, |_, _| PageSize::Size2M).unwrap();
    /// // Half of a huge page, two whole ones; then the slot ends.
    /// assert_eq!((plan.pages(), plan.faults()), (Pages::new(0x500), 3));
    /// assert_eq!(plan.stop, Some(Stop::NoSlot(Gfn::new(0x800))));
    /// ```
    ///
    /// # Errors
    /// The vCPU is outside the base mode and the policy refuses that.
    ///
    /// # Panics
    /// The host has no second stage.
    pub fn plan(
        &self,
        memory: &Memory,
        range: GfnRange,
        mut size_of: impl FnMut(&Slot, Gfn) -> PageSize,
    ) -> Result<PrefaultPlan, OutsideBaseMode> {
        let role = self.role()?;
        let mut plan = PrefaultPlan {
            role,
            runs: Vec::new(),
            stop: None,
            caveats: self.caveats(),
        };
        let mut at = range.start();
        while at < range.end() {
            let slot = match self.slot_at(memory, role, at) {
                Ok(slot) => slot,
                Err(stop) => {
                    plan.stop = Some(stop);
                    break;
                }
            };
            if slot.is_logged() {
                plan.warn(Caveat::MarksDirty);
            }
            if memory.slot_zap(slot).reach == ZapReach::AllRoots {
                plan.warn(Caveat::GoesWithAnySlot);
            }
            let size = self.leaf_size(memory, slot, at, size_of(slot, at));
            let next = at.round_down(size.level()) + size.pages();
            plan.add(at, next.min(range.end()), size);
            at = next;
        }
        Ok(plan)
    }

    /// The root that the policy chooses.
    fn role(&self) -> Result<PageRole, OutsideBaseMode> {
        let tdp = self.host.tdp().expect("a host with a second stage");
        let base = VcpuState {
            mode: VcpuMode::Normal,
            ..*self.vcpu
        };
        match (self.outside, self.vcpu.mode) {
            (_, VcpuMode::Normal) | (PrefaultOutside::BaseRoot, _) => {
                Ok(root_role_for_tdp(&base, &tdp))
            }
            (PrefaultOutside::CurrentRoot, _) => Ok(root_role_for_tdp(self.vcpu, &tdp)),
            (PrefaultOutside::Refused, mode) => Err(OutsideBaseMode(mode)),
        }
    }

    fn caveats(&self) -> Vec<Caveat> {
        let base = self.vcpu.mode == VcpuMode::Normal;
        let all = [
            (!self.host.ad_enabled(), Caveat::FirstAccessFaults),
            (
                !base && self.outside == PrefaultOutside::CurrentRoot,
                Caveat::OtherRoot,
            ),
            (
                !base && self.outside == PrefaultOutside::BaseRoot,
                Caveat::NotItsRoot,
            ),
        ];
        let holds = all.into_iter().filter(|(holds, _)| *holds);
        holds.map(|(_, caveat)| caveat).collect()
    }

    fn slot_at<'m>(&self, memory: &'m Memory, role: PageRole, gfn: Gfn) -> Result<&'m Slot, Stop> {
        let slot = memory.space(role.as_id()).by_gfn(gfn);
        let slot = slot.ok_or(Stop::NoSlot(gfn))?;
        let emulated = role.has(RoleFlag::GuestMode) || self.apicv == Apicv::Inhibited;
        if slot.key().id == SlotId::APIC_ACCESS && emulated {
            return Err(Stop::ApicAccessPage(gfn));
        }
        if memory.is_private(gfn) && slot.binding().is_none() {
            return Err(Stop::NoFile(gfn));
        }
        Ok(slot)
    }

    /// The size of the leaf for a frame (`mmu.c:kvm_mmu_hugepage_adjust`). Prefaults do not execute.
    fn leaf_size(&self, memory: &Memory, slot: &Slot, gfn: Gfn, backing: PageSize) -> PageSize {
        if slot.is_logged() {
            return PageSize::Size4K;
        }
        memory.largest_page(slot.key(), gfn, backing.min(self.host.largest_page))
    }
}

impl PrefaultPlan {
    /// Adds something to think about, once.
    fn warn(&mut self, caveat: Caveat) {
        if !self.caveats.contains(&caveat) {
            self.caveats.push(caveat);
        }
    }

    /// Adds the frames behind those before that one leaf maps, to the last run if its leaves are as large.
    fn add(&mut self, start: Gfn, end: Gfn, size: PageSize) {
        let last = self.runs.last().filter(|last| last.size == size);
        let first = last.map_or(start, |last| last.frames.start());
        let Some(frames) = GfnRange::between(first, end) else {
            return;
        };
        if last.is_some() {
            self.runs.pop();
        }
        self.runs.push(PlannedRun { frames, size });
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests;

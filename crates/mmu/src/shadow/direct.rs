//! Faults of vCPUs whose pages map frames in a line: guests without paging, and ordinary guests with `kvm.tdp_mmu=0`
//! (`mmu.c:direct_page_fault`).

use slat_memslot::{Gfn, Gpa, PageSize, Slot};

use super::ShadowMmu;
use super::beside::TdpBeside;
use super::fault_in::{ResidentPages, ShadowBegun, ShadowFaultedIn, Wanted};
use super::get::Follows;
use super::guest::NoTables;
use super::held::ShadowLocked;
use super::load::Roots;
use super::page::SpteRef;
use super::set::{LeafToSet, Mapped, Stored, Want};
use super::walk::ShadowRoot;
use crate::access::Access;
use crate::fault::{Env, Fault, Handled, Kind, Outcome, Present};
use crate::role::RoleLayout;
use crate::spte::{Format, HostWrite, NxHugePages, Pfn};
use crate::tdp::{Fast, Observer, SlotLog};

/// How large the leaf of a fault may be and is to be (`req_level`, `goal_level`).
#[derive(Clone, Copy, Debug)]
pub(super) struct Goal {
    /// What everybody allows.
    pub(super) allowed: PageSize,
    /// What is mapped.
    pub(super) size: PageSize,
    pub(super) pfn: Pfn,
    /// It would be larger, were it not executed (`huge_page_disallowed`).
    pub(super) disallowed: bool,
}

impl<F: Format> ShadowMmu<F> {
    /// Handles a fault of a vCPU with a direct root. `most` is the largest leaf that the kind of paging allows.
    ///
    /// A root must be loaded. Requests that follow are to be taken: [`ShadowMmu::take_requests`].
    pub fn direct_page_fault<B: ResidentPages>(
        &mut self,
        roots: &Roots,
        fault: &Fault,
        most: PageSize,
        env: &mut Env<'_, B>,
        out: &mut impl Observer<F>,
    ) -> Handled {
        let slow = match self.begin_direct_fault(roots, fault, env, out) {
            ShadowBegun::Done(handled) => return handled,
            ShadowBegun::Slow(slow) => slow,
        };
        match slow.fault_in(env) {
            Ok(found) => self
                .lock(out)
                .finish_direct_fault(roots, fault, most, &found, env),
            Err(outcome) => outcome.into(),
        }
    }

    /// The first part of such a fault, which takes no lock in KVM: it may need nothing but a bit of an entry that is there.
    pub fn begin_direct_fault<'e, B>(
        &self,
        roots: &Roots,
        fault: &Fault,
        env: &Env<'e, B>,
        out: &mut impl Observer<F>,
    ) -> ShadowBegun<'e> {
        let Some(root) = usable(roots, self) else {
            return ShadowBegun::Done(Outcome::Retry.into());
        };
        let (memory, as_id) = (env.memory, roots.mmu.role().as_id());
        let slot = memory.space(as_id).by_gfn(fault.gfn);
        let writes = fault.present == Present::Yes && fault.kind == Kind::Write;
        if writes && self.is_write_tracked(fault.gfn) {
            return ShadowBegun::Done(Outcome::WriteProtected.into());
        }
        if let Some(fast) = self.try_fast(root, fault, slot, out) {
            return ShadowBegun::Done(fast);
        }
        let wanted = Wanted {
            as_id,
            gfn: fault.gfn,
            place: fault.gfn,
            access: Access::all(),
            kind: fault.kind,
        };
        ShadowBegun::Slow(self.slow_fault(wanted, slot, roots.mmu.role()))
    }

    /// Tries the fast way, if the fault is of the kind (`mmu.c:page_fault_can_be_fast`).
    fn try_fast(
        &self,
        root: ShadowRoot,
        fault: &Fault,
        slot: Option<&Slot>,
        out: &mut impl Observer<F>,
    ) -> Option<Handled> {
        let can_be = match fault.present {
            Present::Reserved => false,
            Present::No => !self.codec.host().ad_enabled(),
            Present::Yes => fault.kind == Kind::Write,
        };
        if !can_be {
            return None;
        }
        let log = match slot.is_some_and(Slot::is_logged) {
            true => SlotLog::On,
            false => SlotLog::Off,
        };
        let gpa = Gpa::new(fault.gfn.gpa().raw());
        let (outcome, dirty) = match self.fast_fault(root, gpa, fault.kind.access(), log, out) {
            Fast::NotFast => return None,
            Fast::Spurious => (Outcome::Spurious, false),
            Fast::Fixed { mark_dirty } => (Outcome::Fixed, mark_dirty),
        };
        let logged = slot.filter(|slot| dirty && slot.is_logged());
        Some(Handled {
            mark_dirty: logged.map(|slot| (slot.key(), fault.gfn)),
            ..outcome.into()
        })
    }

    /// How large a leaf is to be (`mmu.c:kvm_mmu_hugepage_adjust`).
    pub(super) fn goal<B>(
        &self,
        (slot, gfn): (&Slot, Gfn),
        (page, backed): (&Mapped, PageSize),
        (kind, most): (Kind, PageSize),
        env: &Env<'_, B>,
    ) -> Goal {
        let nx = env.settings.nx_huge_pages == NxHugePages::On;
        let disallowed = nx && kind == Kind::Execute;
        let mut goal = Goal {
            allowed: PageSize::Size4K,
            size: PageSize::Size4K,
            pfn: page.pfn,
            disallowed,
        };
        if most == PageSize::Size4K || slot.is_logged() {
            return goal;
        }
        let most = most.min(backed).min(self.codec.host().largest_page);
        goal.allowed = self.largest_page(env.memory, slot, gfn, most);
        if !disallowed {
            goal.size = goal.allowed;
            goal.pfn = Pfn::new(page.pfn.raw() & !(goal.size.pages().raw() - 1));
        }
        goal
    }
}

/// The root that a vCPU with a direct role can fault on.
fn usable<F: Format>(roots: &Roots, mmu: &ShadowMmu<F>) -> Option<ShadowRoot> {
    let root = roots.current(mmu);
    root.filter(|root| *root != ShadowRoot::Dummy)
}

impl<F: Format, O: Observer<F>, T: TdpBeside<F>> ShadowLocked<'_, F, O, T> {
    /// The last part of a fault of a vCPU with a direct root: maps what was found, if it still holds.
    pub fn finish_direct_fault<B: ResidentPages>(
        &mut self,
        roots: &Roots,
        fault: &Fault,
        most: PageSize,
        found: &ShadowFaultedIn<'_>,
        env: &mut Env<'_, B>,
    ) -> Handled {
        if self.make_room().is_err() {
            return Outcome::OutOfTables.into();
        }
        let root = usable(roots, self.mmu);
        match root.filter(|_| !self.is_fault_stale(roots, found, fault.gfn, env)) {
            Some(root) => self.map_in_line(root, fault, most, found, env),
            None => Outcome::Retry.into(),
        }
    }

    /// Whether what a fault was told does not hold any more (`mmu.c:is_page_fault_stale`).
    pub(super) fn is_fault_stale<B>(
        &self,
        roots: &Roots,
        found: &ShadowFaultedIn<'_>,
        gfn: Gfn,
        env: &Env<'_, B>,
    ) -> bool {
        let retry = || env.invalidation.must_retry(found.sequence, gfn);
        let page_gone = found.slot.is_some() && retry();
        (self.is_stale(roots) && !cfg!(slat_mutant = "shadow_stale_root"))
            || (page_gone && !cfg!(slat_mutant = "shadow_stale_page"))
    }

    /// Maps the page of a fault (`mmu.c:direct_map`).
    fn map_in_line<B: ResidentPages>(
        &mut self,
        root: ShadowRoot,
        fault: &Fault,
        most: PageSize,
        found: &ShadowFaultedIn<'_>,
        env: &mut Env<'_, B>,
    ) -> Handled {
        let all = Access::all_in(RoleLayout::Baseline);
        let goal = match (&found.slot, &found.page) {
            (Some(slot), Some((page, backed))) => {
                let of = (fault.kind, most);
                Some(self.mmu.goal((slot, fault.gfn), (page, *backed), of, env))
            }
            _ => None,
        };
        self.tell_requested(fault.gfn, goal.as_ref());
        let address = fault.gfn.gpa().raw();
        let Some(start) = self.mmu.walk_start(root, address) else {
            return Outcome::Retry.into();
        };
        let (at, goal) = self.reach(start, (fault.gfn, address), goal, (all, env));
        let as_id = self.space_of(at.page);
        let gfn = fault.gfn.round_down(self.level_of(at));
        let (Some(goal), Some(slot), Some((page, _))) = (goal, found.slot, &found.page) else {
            let generation = env.memory.space(as_id).generation();
            self.set_mmio(at, gfn, all, generation);
            self.prefetch_in_line(at, env);
            return Outcome::Emulate.into();
        };
        let leaf = LeafToSet {
            gfn,
            access: all,
            page: Mapped {
                pfn: goal.pfn,
                ..*page
            },
            want: want_of(fault),
            settings: env.settings,
            logged: slot.is_logged(),
        };
        let set = self.set_leaf(at, &leaf);
        if set.stored != Stored::Spurious {
            self.prefetch_in_line(at, env);
        }
        Handled {
            outcome: outcome_of(set.stored),
            mark_dirty: set.mark_dirty.then(|| (slot.key(), fault.gfn)),
            size: goal.size,
        }
    }

    /// `kvm_mmu_spte_requested`. The page is that of the frame itself, however large the leaf.
    pub(super) fn tell_requested(&mut self, gfn: Gfn, goal: Option<&Goal>) {
        let level = goal.map_or(PageSize::Size4K, |goal| goal.size).level();
        let inside = gfn.raw() - gfn.round_down(level).raw();
        let pfn = goal.map(|goal| Pfn::new(goal.pfn.raw() + inside));
        self.tell(crate::tdp::Event::SpteRequested { gfn, pfn, level });
    }

    /// Goes down to the entry of a leaf, and makes the pages on the way that are missing.
    pub(super) fn reach<B>(
        &mut self,
        start: SpteRef,
        (gfn, address): (Gfn, u64),
        goal: Option<Goal>,
        (access, env): (Access, &Env<'_, B>),
    ) -> (SpteRef, Option<Goal>) {
        let (mut at, mut goal) = (start, goal);
        loop {
            let level = self.level_of(at);
            if env.settings.nx_huge_pages == NxHugePages::On {
                self.respect_nx(at, gfn, &mut goal);
            }
            let wanted = goal.map_or(PageSize::Size4K, |goal| goal.size).level();
            if level <= wanted {
                return (at, goal);
            }
            let first = gfn.round_down(level);
            if let Some(page) = self.child_to_link(at, first, (Follows::Line, access), &NoTables) {
                self.link(at, page);
                if let Some(goal) = goal.filter(|goal| goal.disallowed) {
                    self.account_nx(page, goal.allowed.level() >= level);
                }
            }
            match self.mmu.walk_down(at, address) {
                Some(below) => at = below,
                None => return (at, goal),
            }
        }
    }

    /// Maps the neighbours of a leaf (`mmu.c:direct_pte_prefetch`), where nothing is, in runs.
    pub(super) fn prefetch_in_line<B: ResidentPages>(&mut self, at: SpteRef, env: &mut Env<'_, B>) {
        let page = self.mmu.pages.get(at.page);
        let without_ad = page.role.has(crate::role::RoleFlag::AdDisabled);
        if without_ad
            || page.level() > PageSize::Size4K.level()
            || env.invalidation.is_in_progress()
        {
            return;
        }
        self.prefetch_group(at, env);
    }

    /// The same whatever the page: beside a leaf of a guest's huge page KVM does not ask whether there are accessed bits
    /// (`mmu.c:__direct_pte_prefetch`).
    pub(super) fn prefetch_group<B: ResidentPages>(&mut self, at: SpteRef, env: &mut Env<'_, B>) {
        let group = self.mmu.rules.prefetch;
        let first = at.index & !(group - 1);
        let mut run: Option<u16> = None;
        for index in first..first + group {
            let taken = index == at.index || self.mmu.pages.get(at.page).entry(index).is_present();
            match (taken, run) {
                (false, None) => run = Some(index),
                (true, Some(start)) => {
                    if self.prefetch_run(at, start..index, env).is_none() {
                        return;
                    }
                    run = None;
                }
                _ => {}
            }
        }
        if let Some(start) = run {
            let _ = self.prefetch_run(at, start..first + group, env);
        }
    }

    /// Maps a run of neighbours, as many as are resident; `None` if none is (`mmu.c:direct_pte_prefetch_many`).
    fn prefetch_run<B: ResidentPages>(
        &mut self,
        beside: SpteRef,
        run: core::ops::Range<u16>,
        env: &mut Env<'_, B>,
    ) -> Option<()> {
        let page = self.mmu.pages.get(beside.page);
        let (access, as_id) = (page.role.access(), page.role.as_id());
        let first = page.gfn_of(run.start);
        let slot = env.memory.space(as_id).by_gfn(first)?;
        let logged = access.contains(Access::WRITE) && slot.is_logged();
        let last = Gfn::new(first.raw() + u64::from(run.end - run.start) - 1);
        if logged || slot.is_readonly() || !slot.range().contains(last) {
            return None;
        }
        let mut found = Vec::new();
        for index in run.clone() {
            let gfn = self.mmu.pages.get(beside.page).gfn_of(index);
            match env.backing.resident_page(slot, gfn) {
                Some((pfn, kind)) => found.push((index, gfn, pfn, kind)),
                None => break,
            }
        }
        for (index, gfn, pfn, kind) in &found {
            let at = SpteRef {
                index: *index,
                ..beside
            };
            let leaf = LeafToSet {
                gfn: *gfn,
                access,
                page: Mapped {
                    pfn: *pfn,
                    kind: *kind,
                    host_write: HostWrite::Allowed,
                },
                want: Want::Neighbour,
                settings: env.settings,
                logged: slot.is_logged(),
            };
            self.set_leaf(at, &leaf);
        }
        (!found.is_empty()).then_some(())
    }
}

fn want_of(fault: &Fault) -> Want {
    match (fault.prefetch, fault.kind) {
        (true, _) => Want::Prefault,
        (false, Kind::Write) => Want::Write,
        (false, Kind::Read | Kind::Execute) => Want::Read,
    }
}

pub(super) const fn outcome_of(stored: Stored) -> Outcome {
    match stored {
        Stored::Fixed => Outcome::Fixed,
        Stored::Spurious => Outcome::Spurious,
        Stored::WriteProtected => Outcome::WriteProtected,
    }
}

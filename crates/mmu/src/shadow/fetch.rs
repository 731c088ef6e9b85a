//! Faults of vCPUs whose pages follow tables of the guest's (`paging_tmpl.h:page_fault`, `paging_tmpl.h:fetch`).

use slat_memslot::{Gfn, Gpa, Level, PageSize, Slot};

use super::ShadowMmu;
use super::beside::{NoTdp, TdpBeside};
use super::direct::{Goal, outcome_of};
use super::fault_in::{ResidentPages, ShadowBegun, ShadowFaultedIn, Wanted};
use super::get::Follows;
use super::guest::{EntrySize, GuestTables, Shadowed};
use super::held::ShadowLocked;
use super::load::Roots;
use super::page::SpteRef;
use super::set::{LeafToSet, Mapped, Stored, Want};
use super::walk::ShadowRoot;
use crate::access::Access;
use crate::fault::{Env, Handled, Kind, Outcome, Present};
use crate::role::{PageRole, RoleFlag};
use crate::roots::Request;
use crate::spte::{Format, HostWrite};
use crate::tdp::Observer;
use crate::walk::{LeafSize, Mark, Privilege, Step, TableMemory, Translation, WalkObserver};

/// A fault on an address that the guest's tables translate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShadowFault {
    /// The address: virtual, or physical for a nested guest.
    pub address: u64,
    /// What the guest wanted.
    pub kind: Kind,
    /// In which mode.
    pub privilege: Privilege,
    /// What hardware found.
    pub present: Present,
}

/// The entries that a walk has read, with the marks that it has left in them: what a shadow fault needs of it
/// (`struct guest_walker`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MarkedTrail {
    steps: [Option<Step>; 5],
    marks: Vec<Mark>,
}

impl MarkedTrail {
    /// The entry of a table of a level, as it is after the walk.
    pub const fn at(&self, level: Level) -> Option<&Step> {
        self.steps[level as usize - 1].as_ref()
    }

    /// What the walk has marked, from the top down, and what it was about to mark when it had to start again.
    pub fn marks(&self) -> &[Mark] {
        &self.marks
    }
}

impl WalkObserver for MarkedTrail {
    fn step(&mut self, step: &Step) {
        self.steps[step.level as usize - 1] = Some(*step);
    }

    fn mark(&mut self, mark: &Mark) {
        self.marks.push(*mark);
        if let Some(step) = self.steps[mark.level as usize - 1].as_mut() {
            if mark.written {
                step.entry = mark.new;
            }
        }
    }

    fn changed(&mut self, tried: &Mark) {
        self.marks.push(*tried);
    }

    fn restart(&mut self) {
        self.steps = [None; 5];
    }
}

/// The guest's own walk for a fault, which succeeded.
#[derive(Clone, Copy, Debug)]
pub struct GuestWalk<'w> {
    /// The entries that it read.
    pub trail: &'w MarkedTrail,
    /// Where it led.
    pub found: &'w Translation,
}

/// What of a walk a fault goes by.
#[derive(Clone, Copy, Debug)]
struct Plan<'w> {
    trail: &'w MarkedTrail,
    /// The level of the guest's leaf.
    leaf: Level,
    gfn: Gfn,
    /// What the guest's entries allow, as far as it may be shadowed (`guest_walker.pte_access`).
    access: Access,
}

impl<'w> Plan<'w> {
    fn of(
        fault: &ShadowFault,
        walk: &GuestWalk<'w>,
        role: PageRole,
        found: &ShadowFaultedIn<'_>,
    ) -> Self {
        let mut access = allowed(fault.kind, walk.found);
        let supervisor = fault.privilege == Privilege::Supervisor;
        let read_only = !access.contains(Access::WRITE) && !role.has(RoleFlag::Cr0Wp);
        let in_slot = found.slot.is_some();
        if fault.kind == Kind::Write && read_only && supervisor && in_slot {
            // The guest may write all the same: as a supervisor's page, which user mode cannot reach.
            access = (access | Access::WRITE) - Access::USER;
            if role.has(RoleFlag::SmepAndNotWp) {
                access -= Access::EXECUTE;
            }
        }
        Self {
            trail: walk.trail,
            leaf: level_of(walk.found.size),
            gfn: walk.found.gpa.gfn(),
            access,
        }
    }

    /// The entry that a walk read in a table of a level.
    fn step(&self, level: Level) -> Option<&Step> {
        self.trail.at(level)
    }

    /// The frame of the guest's table of a level, and what the entries above it allow.
    fn table(&self, level: Level) -> Option<(Gfn, Access)> {
        let step = self.step(level)?;
        Some((step.place?.gfn(), step.above))
    }
}

/// What the guest's entries allow to an access: others than writes leave a clean page read-only.
fn allowed(kind: Kind, found: &Translation) -> Access {
    match kind {
        Kind::Write => found.rights,
        Kind::Read | Kind::Execute => found.shadow_rights(),
    }
}

/// The level of a guest's leaf of a size; one of 4 MiB is shadowed by two of 2 MiB.
const fn level_of(size: LeafSize) -> Level {
    match size {
        LeafSize::Size4K => Level::L1,
        LeafSize::Size2M | LeafSize::Size4M => Level::L2,
        LeafSize::Size1G | LeafSize::Unpaged => Level::L3,
    }
}

impl<F: Format> ShadowMmu<F> {
    /// Handles a fault after the guest's own walk has found a page.
    ///
    /// A root must be loaded. Requests that follow are to be taken: [`ShadowMmu::take_requests`].
    pub fn shadow_page_fault<B: ResidentPages, M: TableMemory + ?Sized>(
        &mut self,
        roots: &mut Roots,
        fault: &ShadowFault,
        (walk, guest): (&GuestWalk<'_>, &Shadowed<'_, M>),
        env: &mut Env<'_, B>,
        out: &mut impl Observer<F>,
    ) -> Handled {
        self.shadow_page_fault_beside(roots, fault, (walk, guest), env, out, NoTdp)
    }

    /// The same beside the tables of the TDP MMU: a nested guest.
    pub fn shadow_page_fault_beside<B: ResidentPages, M: TableMemory + ?Sized>(
        &mut self,
        roots: &mut Roots,
        fault: &ShadowFault,
        (walk, guest): (&GuestWalk<'_>, &Shadowed<'_, M>),
        env: &mut Env<'_, B>,
        out: &mut impl Observer<F>,
        tdp: impl TdpBeside<F>,
    ) -> Handled {
        let slow = match self.begin_shadow_fault(roots, fault, walk, env) {
            ShadowBegun::Done(handled) => return handled,
            ShadowBegun::Slow(slow) => slow,
        };
        match slow.fault_in(env) {
            Ok(found) => self.lock_beside(out, tdp).finish_shadow_fault(
                roots,
                fault,
                (walk, guest),
                &found,
                env,
            ),
            Err(outcome) => outcome.into(),
        }
    }

    /// The first part of such a fault, which takes no lock in KVM.
    pub fn begin_shadow_fault<'e, B>(
        &self,
        roots: &Roots,
        fault: &ShadowFault,
        walk: &GuestWalk<'_>,
        env: &Env<'e, B>,
    ) -> ShadowBegun<'e> {
        let (as_id, gfn) = (roots.mmu.role().as_id(), walk.found.gpa.gfn());
        let writes = fault.kind == Kind::Write && fault.present == Present::Yes;
        if writes && self.is_write_tracked(gfn) {
            self.forget_floods(roots, fault.address);
            return ShadowBegun::Done(Outcome::WriteProtected.into());
        }
        let wanted = Wanted {
            as_id,
            gfn,
            place: Gpa::new(fault.address).gfn(),
            access: allowed(fault.kind, walk.found),
            kind: fault.kind,
        };
        let memory = env.memory;
        let slot = memory.space(as_id).by_gfn(gfn);
        ShadowBegun::Slow(self.slow_fault(wanted, slot, roots.mmu.role()))
    }

    /// The pages on the way to an address are in use, and not being torn down
    /// (`mmu.c:shadow_page_table_clear_flood`).
    fn forget_floods(&self, roots: &Roots, address: u64) {
        let Some(root) = roots.current(self) else {
            return;
        };
        let mut at = self.walk_start(root, address);
        while let Some(here) = at {
            self.pages.get(here.page).forget_flood();
            at = self.walk_down(here, address);
        }
    }
}

impl<F: Format, O: Observer<F>, T: TdpBeside<F>> ShadowLocked<'_, F, O, T> {
    /// The last part of a fault that follows the guest's tables: maps what was found, if it still holds, and if the tables
    /// still say what they said to the walk.
    pub fn finish_shadow_fault<B: ResidentPages, M: TableMemory + ?Sized>(
        &mut self,
        roots: &mut Roots,
        fault: &ShadowFault,
        (walk, guest): (&GuestWalk<'_>, &Shadowed<'_, M>),
        found: &ShadowFaultedIn<'_>,
        env: &mut Env<'_, B>,
    ) -> Handled {
        if self.make_room().is_err() {
            return Outcome::OutOfTables.into();
        }
        let gfn = walk.found.gpa.gfn();
        if self.is_fault_stale(roots, found, gfn, env) {
            return Outcome::Retry.into();
        }
        let plan = Plan::of(fault, walk, roots.mmu.role(), found);
        self.fetch(roots, fault, &plan, (found, guest), env)
    }

    fn fetch<B: ResidentPages, M: TableMemory + ?Sized>(
        &mut self,
        roots: &mut Roots,
        fault: &ShadowFault,
        plan: &Plan<'_>,
        (found, guest): (&ShadowFaultedIn<'_>, &Shadowed<'_, M>),
        env: &mut Env<'_, B>,
    ) -> Handled {
        let top = guest.paging.mode().top_table();
        if top.is_none_or(|top| self.is_changed(plan, top, guest)) {
            return Outcome::Retry.into();
        }
        let root = roots.current(self.mmu);
        if root == Some(ShadowRoot::Dummy) {
            // The guest's table has become visible meanwhile.
            roots.mmu.request(Request::FreeObsoleteRoots);
            return Outcome::Retry.into();
        }
        let start = root.and_then(|root| self.mmu.walk_start(root, fault.address));
        let Some(start) = start else {
            return Outcome::Retry.into();
        };
        let Some(at) = self.follow(start, fault.address, plan, guest) else {
            return Outcome::Retry.into();
        };
        self.map_leaf(at, fault, plan, (found, guest), env)
    }

    /// Goes down as far as the guest's tables go, and makes the pages on the way that are missing. Says where it came to;
    /// `None` if tables have changed since the walk.
    fn follow(
        &mut self,
        start: SpteRef,
        address: u64,
        plan: &Plan<'_>,
        guest: &impl GuestTables,
    ) -> Option<SpteRef> {
        let mut at = start;
        loop {
            let level = self.level_of(at);
            self.mmu.pages.get(at.page).forget_flood();
            if level <= plan.leaf {
                return Some(at);
            }
            let below = level.child()?;
            let (table, access) = plan.table(below)?;
            let page = self.child_to_link(at, table, (Follows::GuestTable, access), guest);
            if let Some(page) = page {
                if self.mmu.pages.get(page).unsync_children.count > 0 {
                    self.sync_children(page, guest);
                }
            }
            if self.is_changed(plan, below, guest) {
                return None;
            }
            if let Some(page) = page {
                self.link(at, page);
            }
            at = self.mmu.walk_down(at, address)?;
        }
    }

    /// Whether the entry that the walk read in a table of a level is another one by now (`paging_tmpl.h:gpte_changed`).
    fn is_changed(&self, plan: &Plan<'_>, level: Level, guest: &impl GuestTables) -> bool {
        let Some(step) = plan.step(level) else {
            return false;
        };
        let four_bytes = |role: PageRole| role.has(RoleFlag::FourByteGpte);
        let size = match guest.role().is_some_and(four_bytes) {
            true => EntrySize::Four,
            false => EntrySize::Eight,
        };
        let now = step.place.and_then(|place| guest.read(place, size));
        now != Some(step.entry) && !cfg!(slat_mutant = "shadow_gpte")
    }

    /// Maps the page, in the guest's own table or in pages that stand in for parts of its huge leaf.
    fn map_leaf<B: ResidentPages, M: TableMemory + ?Sized>(
        &mut self,
        at: SpteRef,
        fault: &ShadowFault,
        plan: &Plan<'_>,
        (found, guest): (&ShadowFaultedIn<'_>, &Shadowed<'_, M>),
        env: &mut Env<'_, B>,
    ) -> Handled {
        let most = super::size_at(plan.leaf);
        let goal = match (&found.slot, &found.page) {
            (Some(slot), Some((page, backed))) => {
                let of = (fault.kind, most);
                Some(self.mmu.goal((slot, plan.gfn), (page, *backed), of, env))
            }
            _ => None,
        };
        self.tell_requested(plan.gfn, goal.as_ref());
        let (at, goal) = self.reach_validated(at, fault.address, (plan, goal), env);
        let gfn = plan.gfn.round_down(self.level_of(at));
        let (Some(goal), Some(slot), Some((page, _))) = (goal, found.slot, &found.page) else {
            let as_id = self.space_of(at.page);
            self.set_mmio(at, gfn, plan.access, guest.generation(as_id));
            self.prefetch(at, plan, guest, env);
            return Outcome::Emulate.into();
        };
        let leaf = LeafToSet {
            gfn,
            access: plan.access,
            page: Mapped {
                pfn: goal.pfn,
                ..*page
            },
            want: match fault.kind {
                Kind::Write => Want::Write,
                Kind::Read | Kind::Execute => Want::Read,
            },
            settings: env.settings,
            logged: slot.is_logged(),
        };
        let set = self.set_leaf(at, &leaf);
        if set.stored != Stored::Spurious {
            self.prefetch(at, plan, guest, env);
        }
        Handled {
            outcome: outcome_of(set.stored),
            mark_dirty: set.mark_dirty.then(|| (slot.key(), plan.gfn)),
            size: goal.size,
        }
    }

    /// Goes down below the guest's tables. A page that maps with other rights than the guest's leaf now has is left
    /// (`mmu.c:validate_direct_spte`).
    fn reach_validated<B>(
        &mut self,
        at: SpteRef,
        address: u64,
        (plan, goal): (&Plan<'_>, Option<Goal>),
        env: &Env<'_, B>,
    ) -> (SpteRef, Option<Goal>) {
        let wanted = goal.map_or(PageSize::Size4K, |goal| goal.size).level();
        let mut here = Some(at);
        while let Some(at) = here.filter(|at| self.level_of(*at) > wanted) {
            let spte = self.entry(at);
            if spte.is_link(self.level_of(at)) {
                let child = self.child(spte);
                if self.mmu.pages.get(child).role.access() != plan.access {
                    self.unlink(at);
                    self.flush();
                }
            }
            here = self.mmu.walk_down(at, address);
        }
        self.reach(at, (plan.gfn, address), goal, (plan.access, env))
    }

    /// Maps neighbours (`paging_tmpl.h:pte_prefetch`).
    fn prefetch<B: ResidentPages>(
        &mut self,
        at: SpteRef,
        plan: &Plan<'_>,
        guest: &impl GuestTables,
        env: &mut Env<'_, B>,
    ) {
        let page = self.mmu.pages.get(at.page);
        if page.level() > Level::L1 || env.invalidation.is_in_progress() {
            return;
        }
        if page.role.is_direct() {
            return self.prefetch_group(at, env);
        }
        let count = self.mmu.rules.prefetch;
        let (size, first) = (page.entry_size(), at.index & !(count - 1));
        // The group is where the walk's own entry is, which need not be where the page's part of the table begins.
        let own = plan.step(Level::L1).and_then(|step| step.place);
        let Some(own) = own else {
            return;
        };
        let group = own.raw() & !(size.bytes() * u64::from(count) - 1);
        for part in 0..count {
            let neighbour = SpteRef {
                index: first + part,
                ..at
            };
            if neighbour == at || self.entry(neighbour).is_present() {
                continue;
            }
            let place = Gpa::new(group + u64::from(part) * size.bytes());
            let Some(raw) = guest.read(place, size) else {
                return;
            };
            if !self.prefetch_one(neighbour, raw, guest, env) {
                return;
            }
        }
    }

    fn prefetch_one<B: ResidentPages>(
        &mut self,
        at: SpteRef,
        raw: u64,
        guest: &impl GuestTables,
        env: &mut Env<'_, B>,
    ) -> bool {
        let Some((gfn, access)) = self.usable(at, guest.decode(raw, Level::L1)) else {
            self.drop_entry(at);
            return false;
        };
        let as_id = self.space_of(at.page);
        let may = |slot: &&Slot| {
            let logged = access.contains(Access::WRITE) && slot.is_logged();
            !logged && !slot.is_readonly()
        };
        let Some(slot) = env.memory.space(as_id).by_gfn(gfn).filter(may) else {
            return false;
        };
        let Some((pfn, kind)) = env.backing.resident_page(slot, gfn) else {
            return false;
        };
        let leaf = LeafToSet {
            gfn,
            access,
            page: Mapped {
                pfn,
                kind,
                host_write: HostWrite::Allowed,
            },
            want: Want::Neighbour,
            settings: env.settings,
            logged: slot.is_logged(),
        };
        self.set_leaf(at, &leaf);
        true
    }
}

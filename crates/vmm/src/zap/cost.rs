//! A scene played on a model VM.

use core::time::Duration;
use std::time::Instant;

use slat_memslot::{Gfn, Hva, PAGE_SHIFT, PageSize, Quirks, Zap, ZapReach, cap};
use slat_mmu::host::SecondStage;
use slat_mmu::role::VcpuMode;
use slat_mmu::spte::{Ept, Format, Npt, NxHugePages};
use slat_mmu::tdp::{Uninterrupted, Unobserved, ZapInvalidated, ZapLeafs};

use super::counts::Counts;
use super::guest::{View, writes};
use super::scene::{Policy, Scene, SceneError};
use super::subject::{Paged, Subject};
use crate::paged_vm::PagedVm;
use crate::shadow_vm::ShadowVm;
use crate::tdp_vm::TdpVm;
use crate::traces::{Exit, Leaves, Predicted};

/// One step of a scene: what the page tables went through, and what they had before and behind it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// How long it took. On the model, zaps are timed without anybody who listens to events; faults are whole accesses of a
    /// simulated guest.
    pub time: Duration,
    /// What happened; nothing but faults and tables on a kernel, whose statistics do not tell more.
    pub counts: Counts,
    /// Leaves before it.
    pub before: Leaves,
    /// Leaves behind it.
    pub after: Leaves,
}

impl Work {
    /// Leaves that are gone.
    pub fn zapped(&self) -> u64 {
        all(self.before).saturating_sub(all(self.after))
    }

    /// Leaves that have come.
    pub fn mapped(&self) -> u64 {
        all(self.after).saturating_sub(all(self.before))
    }

    /// Faults, those among them that were mended without the lock.
    pub fn faults(&self) -> u64 {
        self.counts.faults + self.counts.fast_faults
    }
}

const fn all(leaves: Leaves) -> u64 {
    leaves.pages_4k + leaves.pages_2m + leaves.pages_1g
}

/// What a scene has cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// The scene.
    pub scene: Scene,
    /// How far the zap reached and why; none where nothing is zapped.
    pub zap: Option<Zap>,
    /// The call.
    pub change: Work,
    /// Every vCPU touches what it had mapped of the other slot.
    pub others_again: Work,
    /// The same of the slot itself, where it is still there.
    pub own_again: Option<Work>,
}

impl Cost {
    /// Faults that would not have been without the call.
    pub fn refaults(&self) -> u64 {
        self.others_again.faults() + self.own_again.map_or(0, |work| work.faults())
    }
}

/// Plays a scene on a machine's model.
///
/// # Errors
/// The scene cannot be played at all, or not on this machine.
pub fn measure(scene: &Scene, subject: &Subject) -> Result<Cost, SceneError> {
    scene.check()?;
    match (subject.paged(), subject.machine.host.second_stage) {
        (Paged::Shadow, _) => {
            if scene.roots > 1 {
                return Err(SceneError::Unable {
                    subject: subject.name().to_owned(),
                    why: "guests with shadow pages have one root here".to_owned(),
                });
            }
            play::<ShadowVm<Npt>>(scene, subject)
        }
        (Paged::Tdp, SecondStage::Ept) => timed::<Ept>(scene, subject),
        (Paged::Tdp, _) if scene.roots > 2 => timed::<Ept>(scene, subject),
        (Paged::Tdp, _) => timed::<Npt>(scene, subject),
    }
}

/// Plays a scene with the TDP MMU, and once more to time the zap with nobody listening.
fn timed<F: Format>(scene: &Scene, subject: &Subject) -> Result<Cost, SceneError> {
    let mut cost = play::<TdpVm<F>>(scene, subject)?;
    if let Some(zap) = cost.zap {
        let mut stage = Stage::<TdpVm<F>>::set(scene, subject)?;
        stage.populate();
        cost.change.time = time_zap(&mut stage.vm, zap);
    }
    Ok(cost)
}

/// What a zap takes when nobody listens.
fn time_zap<F: Format>(vm: &mut TdpVm<F>, zap: Zap) -> Duration {
    let start = Instant::now();
    match zap.reach {
        ZapReach::AllRoots => {
            vm.tables.exclusive(Unobserved).invalidate_roots();
            let mut locked = vm.tables.shared(&mut vm.reader, Unobserved);
            let mut zap = ZapInvalidated::new(slat_mmu::tdp::Passes::default());
            let _ = zap.run(&mut locked, &mut Uninterrupted);
        }
        ZapReach::Leafs { as_id, range } => {
            let mut zap = ZapLeafs::of_address_space(as_id, range);
            let _ = zap.run(&mut vm.tables.exclusive(Unobserved), &mut Uninterrupted);
        }
    }
    start.elapsed()
}

fn play<V: PagedVm>(scene: &Scene, subject: &Subject) -> Result<Cost, SceneError> {
    let mut stage = Stage::<V>::set(scene, subject)?;
    stage.populate();
    let change = scene.change(BASE);
    let zap = stage.vm.memory().check_region(&change);
    let zap = zap.ok().and_then(|change| change.zap);
    let changed = stage.work(|stage| stage.vm.set_region(&change));
    let others_again = stage.work(Stage::touch_others);
    let own_again = scene
        .slot_after()
        .map(|first| stage.work(|stage| stage.touch_slot(first)));
    if let Some(failed) = stage.failed {
        return Err(SceneError::Unable {
            subject: subject.name().to_owned(),
            why: format!("a guest ends with {failed}"),
        });
    }
    Ok(Cost {
        scene: *scene,
        zap,
        change: changed,
        others_again,
        own_again,
    })
}

/// Where the host has the slots: at a multiple of 1 GiB.
pub(super) const BASE: Hva = Hva::new(0x2000_0000_0000);
/// The first page of the host's that huge leaves map, likewise.
const FIRST_PFN: u64 = 1 << 30;
/// Accesses of one run of a guest; what happens in it is counted before the next.
const RUN: usize = 1 << 16;

/// A VM with its slots and vCPUs.
pub(super) struct Stage<V> {
    pub(super) vm: V,
    scene: Scene,
    counts: Counts,
    /// How a guest ended, if not as it should.
    failed: Option<String>,
}

impl<V: PagedVm> Stage<V> {
    pub(super) fn set(scene: &Scene, subject: &Subject) -> Result<Self, SceneError> {
        let machine = subject.machine_for(scene);
        let vm_type = scene.policy.vm_type();
        let vm = machine.profile.supports(vm_type).then_some(());
        let vm = vm.and_then(|()| V::on(&machine, vm_type, NxHugePages::Off));
        let vm = vm.ok_or_else(|| SceneError::NoVm {
            subject: subject.name().to_owned(),
            policy: scene.policy,
        })?;
        let mut stage = Self {
            vm,
            scene: *scene,
            counts: Counts::default(),
            failed: None,
        };
        for id in 0..scene.vcpus {
            stage.add_vcpu(id, subject.view());
        }
        if scene.policy == Policy::QuirkOff {
            let bits = Quirks::SLOT_ZAP_ALL.bits();
            stage.vm.enable_cap(cap::DISABLE_QUIRKS2, bits);
        }
        stage.tell_pages();
        for region in scene.slots(BASE) {
            let refused = stage.vm.memory().check_region(&region).err();
            if let Some(refused) = refused {
                return Err(SceneError::Unable {
                    subject: subject.name().to_owned(),
                    why: refused.to_string(),
                });
            }
            stage.vm.set_region(&region);
        }
        Ok(stage)
    }

    fn add_vcpu(&mut self, id: u32, view: View) {
        self.vm.create_vcpu(id);
        let root = id % self.scene.roots;
        if self.scene.roots > 2 {
            let bits = if root < 2 { 46 } else { 52 };
            self.vm.set_max_phys_addr(id, bits);
        }
        if root % 2 == 1 {
            self.vm.set_mode(id, VcpuMode::Guest);
        }
        if view == View::Long {
            self.vm.set_paging(id, view.paging());
        }
    }

    /// Says where the host has huge pages; small ones are made up.
    fn tell_pages(&mut self) {
        if self.scene.leaf == PageSize::Size4K {
            return;
        }
        let scene = self.scene;
        let frames = scene.others_frames();
        for gfn in frames.chain(scene.slot_frames(scene.slot_at())) {
            let hva = Hva::new(BASE.raw() + (gfn.raw() << PAGE_SHIFT));
            let host = self.vm.host_mut();
            host.tell(hva, FIRST_PFN + gfn.raw(), scene.leaf);
        }
    }

    pub(super) fn populate(&mut self) {
        self.touch_others();
        self.touch_slot(self.scene.slot_at());
    }

    fn touch_others(&mut self) {
        let frames: Vec<Gfn> = self.scene.others_frames().collect();
        self.touch(&frames);
    }

    fn touch_slot(&mut self, first: u64) {
        let frames: Vec<Gfn> = self.scene.slot_frames(first).collect();
        self.touch(&frames);
    }

    /// Every root's vCPUs write to all frames, each to its part: those that follow each other.
    fn touch(&mut self, frames: &[Gfn]) {
        let Scene { roots, vcpus, .. } = self.scene;
        for root in 0..roots {
            let mut left = frames;
            let sharing: Vec<u32> = (root..vcpus).step_by(roots as usize).collect();
            for (turn, id) in sharing.iter().enumerate() {
                let (own, rest) = left.split_at(left.len().div_ceil(sharing.len() - turn));
                left = rest;
                for part in own.chunks(RUN) {
                    self.vm.run_guest(*id, &writes(part.iter().copied()));
                    self.count();
                }
            }
        }
    }

    fn count(&mut self) {
        let events = self.vm.take();
        let failed = events.iter().find(|event| match event {
            Predicted::RunFailed { .. } => true,
            Predicted::Exit(exit) => *exit != Exit::Halt,
            _ => false,
        });
        if let (None, Some(failed)) = (&self.failed, failed) {
            self.failed = Some(failed.to_string());
        }
        self.counts = self.counts.plus(Counts::of(&events));
    }

    /// What a step comes to.
    fn work(&mut self, step: impl FnOnce(&mut Self)) -> Work {
        self.count();
        self.counts = Counts::default();
        let (before, start) = (self.vm.leaves(), Instant::now());
        step(self);
        let time = start.elapsed();
        self.count();
        Work {
            time,
            counts: self.counts,
            before,
            after: self.vm.leaves(),
        }
    }
}

//! Scenes played on the local `/dev/kvm`: what its statistics count (`KVM_GET_STATS_FD`).

use core::time::Duration;
use std::fmt;
use std::fs;
use std::time::Instant;

use slat_memslot::{Call, Errno, Gfn, Hva, PAGE_SIZE, PageSize, Pages, Profile, Quirks, cap};
use slat_mmu::host::Host;

use super::guest::{CODE, TABLES, View};
use super::scene::{CODE_PAGES, Policy, Scene, SceneError};
use super::subject::Subject;
use crate::kvm::{Machine, Stats, TouchLayout, Vm};
use crate::traces::Leaves;
use crate::{CallError, Machine as _, MemoryVm};

/// What a kernel's statistics tell of a VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Leaves (`pages_4k` and its kin).
    pub leaves: Leaves,
    /// Shadow pages that were taken apart so far (`mmu_shadow_zapped`).
    pub shadow_zapped: u64,
    /// Shadow pages that had to be made (`mmu_cache_miss`).
    pub shadow_made: u64,
    /// Faults of all vCPUs that mapped something (`pf_fixed`).
    pub faults: u64,
}

/// One step on the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// How long it took.
    pub time: Duration,
    /// What was counted before it.
    pub before: Seen,
    /// What was counted behind it.
    pub after: Seen,
}

impl Step {
    /// Leaves that are gone.
    pub const fn zapped(&self) -> u64 {
        all(self.before.leaves).saturating_sub(all(self.after.leaves))
    }

    /// Leaves that have come.
    pub const fn mapped(&self) -> u64 {
        all(self.after.leaves).saturating_sub(all(self.before.leaves))
    }

    /// Shadow pages that were taken apart.
    pub const fn shadow_zapped(&self) -> u64 {
        self.after.shadow_zapped - self.before.shadow_zapped
    }

    /// Shadow pages that were made.
    pub const fn shadow_made(&self) -> u64 {
        self.after.shadow_made - self.before.shadow_made
    }

    /// Faults that mapped something.
    pub const fn faults(&self) -> u64 {
        self.after.faults - self.before.faults
    }
}

const fn all(leaves: Leaves) -> u64 {
    leaves.pages_4k + leaves.pages_2m + leaves.pages_1g
}

/// What a scene has cost on the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelCost {
    /// The scene.
    pub scene: Scene,
    /// The call.
    pub change: Step,
    /// Every vCPU touches what it had mapped of the other slot.
    pub others_again: Step,
    /// The same of the slot itself, where it is still there.
    pub own_again: Option<Step>,
}

impl KernelCost {
    /// Faults that would not have been without the call.
    pub fn refaults(&self) -> u64 {
        self.others_again.faults() + self.own_again.map_or(0, |step| step.faults())
    }
}

/// The local kernel.
#[derive(Debug)]
pub struct Kernel {
    machine: Machine,
    /// The same kernel's model.
    subject: Subject,
}

/// Why the kernel cannot be asked.
#[derive(Debug)]
pub struct Absent(String);

impl fmt::Display for Absent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Absent {}

impl Kernel {
    /// Opens `/dev/kvm`.
    ///
    /// # Errors
    /// It cannot be opened, or the machine cannot be modelled.
    pub fn open() -> Result<Self, Absent> {
        let machine = Machine::open().map_err(|why| Absent(why.to_string()))?;
        let subject = subject(machine.shared_profile().as_ref()).map_err(Absent)?;
        Ok(Self { machine, subject })
    }

    /// The model of this kernel.
    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    /// Plays a scene.
    ///
    /// # Errors
    /// It cannot be played here, or the kernel refuses something.
    pub fn measure(&mut self, scene: &Scene) -> Result<KernelCost, SceneError> {
        scene.check()?;
        let name = self.subject.name().to_owned();
        let unable = |why: String| SceneError::Unable {
            subject: name.clone(),
            why,
        };
        can(scene).map_err(|why| unable(why.to_owned()))?;
        let mut stage = Stage::set(&mut self.machine, scene, self.subject.view())
            .map_err(|why| unable(why.to_string()))?;
        stage.play().map_err(|why| unable(why.to_string()))
    }
}

/// The model of the machine that this runs on.
fn subject(profile: &Profile) -> Result<Subject, String> {
    if profile.tdp.get() {
        return crate::live::here().map(Subject::of);
    }
    let cpu = fs::read_to_string("/proc/cpuinfo").map_err(|why| why.to_string())?;
    let bits = cpu.lines().find_map(|line| {
        let sizes = line.strip_prefix("address sizes")?;
        let (bits, _) = sizes.trim_start_matches([' ', '\t', ':']).split_once(' ')?;
        bits.parse::<u8>().ok()
    });
    let bits = bits.ok_or("the processor does not say its address bits")?;
    Ok(Subject::shadowed(profile.clone(), Host::shadow(bits)))
}

/// Whether a scene can be played on a kernel.
fn can(scene: &Scene) -> Result<(), &'static str> {
    if scene.leaf != PageSize::Size4K {
        return Err("the host area of a kernel's slots has small pages only");
    }
    if scene.roots > 1 {
        return Err("a kernel's guests here have one root");
    }
    if scene.touched != scene.pages && scene.touched.raw() > 1 {
        return Err("a kernel's guests touch all of a slot, or one page");
    }
    if scene.policy == Policy::Flag {
        return Err("no kernel has the slot flag");
    }
    if scene.end() >= NOWHERE / PAGE_SIZE {
        return Err("slots have a little less than 1 GiB in all");
    }
    Ok(())
}

/// Where no slot is: the last 2 MiB of the first GiB.
const NOWHERE: u64 = (1 << 30) - (2 << 20);

struct Stage {
    vm: Vm,
    stats: Stats,
    vcpu_stats: Vec<Stats>,
    scene: Scene,
    layout: TouchLayout,
    base: Hva,
}

type Done<T> = Result<T, CallError>;

impl Stage {
    fn set(machine: &mut Machine, scene: &Scene, view: View) -> Done<Self> {
        let base = machine.areas().writable;
        let mut vm = machine.create_vm(scene.policy.vm_type().raw())?;
        let layout = TouchLayout {
            code: CODE,
            tables: (view == View::Long).then_some(TABLES),
            nowhere: NOWHERE,
        };
        let behind = Pages::new(scene.moved_to().max(CODE_PAGES));
        vm.prepare_touching(&layout, base, behind)
            .map_err(CallError::errno)?;
        if scene.policy == Policy::QuirkOff {
            vm.call(&Call::EnableCap {
                cap: cap::DISABLE_QUIRKS2,
                flags: 0,
                args: [Quirks::SLOT_ZAP_ALL.bits(), 0, 0, 0],
            })?;
        }
        for region in scene.slots(base) {
            vm.set_user_memory_region(&region)?;
        }
        for _ in 0..scene.vcpus {
            vm.create_toucher(&layout).map_err(CallError::errno)?;
        }
        let errno = |why: std::io::Error| Errno::new(why.raw_os_error().unwrap_or(libc::EIO));
        let stats = vm.stats().map_err(|why| CallError::errno(errno(why)))?;
        let vcpu_stats = vm
            .vcpu_stats()
            .map_err(|why| CallError::errno(errno(why)))?;
        Ok(Self {
            vm,
            stats,
            vcpu_stats,
            scene: *scene,
            layout,
            base,
        })
    }

    fn play(&mut self) -> Done<KernelCost> {
        self.touch_others()?;
        self.touch_slot(self.scene.slot_at())?;
        let change = self.scene.change(self.base);
        let changed = self.step(|stage| stage.vm.set_user_memory_region(&change).map(drop))?;
        let others_again = self.step(Self::touch_others)?;
        let own_again = match self.scene.slot_after() {
            Some(first) => Some(self.step(|stage| stage.touch_slot(first))?),
            None => None,
        };
        Ok(KernelCost {
            scene: self.scene,
            change: changed,
            others_again,
            own_again,
        })
    }

    fn touch_others(&mut self) -> Done<()> {
        self.touch(self.scene.others_at(), self.scene.others)
    }

    fn touch_slot(&mut self, first: u64) -> Done<()> {
        self.touch(first, self.scene.touched)
    }

    /// Each vCPU touches a part of the pages, those that follow each other.
    fn touch(&mut self, first: u64, pages: Pages) -> Done<()> {
        let (mut from, mut left) = (first, pages.raw());
        for id in 0..self.scene.vcpus {
            let part = left.div_ceil(u64::from(self.scene.vcpus - id));
            if part > 0 {
                let (at, count) = (Gfn::new(from), Pages::new(part));
                let touched = self.vm.touch(id, &self.layout, at, count);
                touched.map_err(CallError::errno)?;
                (from, left) = (from + part, left - part);
            }
        }
        Ok(())
    }

    fn step(&mut self, step: impl FnOnce(&mut Self) -> Done<()>) -> Done<Step> {
        let (before, start) = (self.seen(), Instant::now());
        step(self)?;
        let time = start.elapsed();
        Ok(Step {
            time,
            before,
            after: self.seen(),
        })
    }

    fn faults(&self) -> u64 {
        let each = self.vcpu_stats.iter();
        each.map(|stats| stats.read("pf_fixed").unwrap_or(0)).sum()
    }

    fn seen(&self) -> Seen {
        let read = |name| self.stats.read(name).unwrap_or(0);
        Seen {
            leaves: Leaves {
                pages_4k: read("pages_4k"),
                pages_2m: read("pages_2m"),
                pages_1g: read("pages_1g"),
            },
            shadow_zapped: read("mmu_shadow_zapped"),
            shadow_made: read("mmu_cache_miss"),
            faults: self.faults(),
        }
    }
}

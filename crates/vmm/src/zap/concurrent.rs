//! A slot is deleted while another thread faults.

use core::num::NonZeroU32;
use core::time::Duration;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use std::thread;
use std::time::Instant;

use slat_memslot::{Gfn, PageSize, ZapReach};
use slat_mmu::host::SecondStage;
use slat_mmu::role::{PageRole, TdpDepth, TdpHost, VcpuState, root_role_for_tdp};
use slat_mmu::spte::{Npt, Pfn};
use slat_mmu::table::Reader;
use slat_mmu::tdp::{
    Every, FastZap, MapRequest, Passes, Progress, Tables, Unobserved, ZapLeafs, zap_all_fast,
};

use super::cost::{BASE, Stage};
use super::scene::{Scene, SceneError};
use super::subject::{Paged, Subject};
use crate::tdp_vm::TdpVm;

/// What a deletion was to another thread, which maps fresh pages one after the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Concurrent {
    /// How long the zap took, with the other thread at work.
    pub zap: Duration,
    /// Faults of the other thread that began meanwhile.
    pub faults: u64,
    /// The longest of them, the wait for the lock included.
    pub longest: Duration,
}

/// Entries that a zap of leaves visits before it gives the lock up for a moment, as KVM does when others want it.
const BUDGET: NonZeroU32 = NonZeroU32::new(512).expect("not zero");
/// Faults before the deletion begins.
const WARM: u64 = 1_000;
/// The most pages that the other thread maps.
const MOST: u64 = 1 << 24;

/// Zaps as the scene's operation does, with real threads on the model's tables.
///
/// # Errors
/// The scene cannot be played, zaps nothing, or wants more roots than one.
pub fn concurrent(scene: &Scene, subject: &Subject) -> Result<Concurrent, SceneError> {
    scene.check()?;
    let unable = |why: &str| SceneError::Unable {
        subject: subject.name().to_owned(),
        why: why.to_owned(),
    };
    if scene.roots > 1 {
        return Err(unable("deletions beside other threads have one root"));
    }
    if subject.machine.host.second_stage != SecondStage::Npt || subject.paged() != Paged::Tdp {
        return Err(unable("threads share the tables of NPT hosts only"));
    }
    let mut stage = Stage::<TdpVm<Npt>>::set(scene, subject)?;
    stage.populate();
    let change = stage.vm.memory().check_region(&scene.change(BASE));
    let zap = change.map_err(|refusal| unable(&refusal.to_string()))?.zap;
    let reach = zap.ok_or_else(|| unable("nothing is zapped"))?.reach;
    let first = scene.end().next_multiple_of(1 << 18);
    let TdpVm { tables, reader, .. } = stage.vm;
    let other = tables
        .reader()
        .ok_or_else(|| unable("no place for a thread"))?;
    Ok(race(&RwLock::new(tables), (reader, other), reach, first))
}

type Lock = RwLock<Tables<Npt>>;

fn read(lock: &Lock) -> RwLockReadGuard<'_, Tables<Npt>> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn race(
    lock: &Lock,
    (mut reader, other): (Reader, Reader),
    reach: ZapReach,
    first: u64,
) -> Concurrent {
    let (zapping, over) = (AtomicBool::new(false), AtomicBool::new(false));
    let ready = AtomicBool::new(false);
    thread::scope(|scope| {
        let faulting = scope.spawn(|| fault(lock, other, first, [&ready, &zapping, &over]));
        while !ready.load(Ordering::Acquire) {
            thread::yield_now();
        }
        zapping.store(true, Ordering::Release);
        let start = Instant::now();
        match reach {
            ZapReach::AllRoots => zap_all_fast(
                lock,
                &mut reader,
                (&mut Unobserved, &mut Every::new(BUDGET)),
                (FastZap::BeforeReturn, Passes::default()),
                || {},
            ),
            ZapReach::Leafs { as_id, range } => {
                zap_leaves(lock, ZapLeafs::of_address_space(as_id, range));
            }
        }
        let zap = start.elapsed();
        zapping.store(false, Ordering::Release);
        over.store(true, Ordering::Release);
        let (faults, longest) = faulting.join().unwrap_or_default();
        Concurrent {
            zap,
            faults,
            longest,
        }
    })
}

fn zap_leaves(lock: &Lock, mut zap: ZapLeafs) {
    let mut resched = Every::new(BUDGET);
    loop {
        let mut tables = lock.write().unwrap_or_else(PoisonError::into_inner);
        let mut locked = tables.exclusive(Unobserved);
        if zap.run(&mut locked, &mut resched) == Progress::Done {
            return;
        }
    }
}

/// Maps page after page, and says how many faults there were during the zap, and how long the longest took.
fn fault(
    lock: &Lock,
    mut reader: Reader,
    first: u64,
    [ready, zapping, over]: [&AtomicBool; 3],
) -> (u64, Duration) {
    let role = root_role_for_tdp(&VcpuState::default(), &TdpHost::new(TdpDepth::Npt4));
    let (mut faults, mut longest) = (0, Duration::ZERO);
    for page in 0..MOST {
        if page == WARM {
            ready.store(true, Ordering::Release);
        }
        if over.load(Ordering::Acquire) {
            break;
        }
        let counts = zapping.load(Ordering::Acquire);
        let start = Instant::now();
        map(lock, &mut reader, role, first + page);
        if counts {
            faults += 1;
            longest = longest.max(start.elapsed());
        }
    }
    (faults, longest)
}

fn map(lock: &Lock, reader: &mut Reader, role: PageRole, gfn: u64) {
    let tables = read(lock);
    let mut locked = tables.shared(reader, Unobserved);
    let Ok(acquired) = locked.acquire_root(role) else {
        return;
    };
    let root = acquired.root();
    if let Some(table) = locked.root_table(root) {
        let request = MapRequest::page(Gfn::new(gfn), PageSize::Size4K, Pfn::new(gfn));
        let _mapped = locked.map(table, &request);
    }
    locked.put_root(root);
}

//! What threads do to a TD at the same time: vCPUs fault, accept and write while slots go, attributes change and the module is
//! busy.
//!
//! When all is over the audit must be clean, the TD must be destroyable with no page left, and no vCPU may ever have found a
//! value that nobody wrote.

use slat_memslot::{Gfn, GfnRange, Level, Pages};

use super::backend::Omit;
use super::*;
use crate::sync::lock;
use crate::tdx::{Accept, BusyPlan, GuestAccess};

const FIRST: u64 = 0x3fe;
const FRAMES: u64 = 4;

/// A generator (splitmix64).
struct Random(u64);

impl Random {
    const fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % end
    }
}

fn range(start: u64, pages: u64) -> GfnRange {
    GfnRange::new(Gfn::new(start), Pages::new(pages)).unwrap()
}

/// A fault that is planted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Planted {
    Nothing,
    Omitted(Omit),
    /// A table goes with all below it while the TD runs.
    TableFirst,
    /// The mirror root is given up for another one.
    RootReplaced,
}

pub(super) fn world(hooks: HookGen, busy: u64, planted: Planted) -> TdxMmu {
    let config = Config {
        hooks,
        pauses: true,
        ..Config::default()
    };
    let vm = TdxMmu::new(&config).unwrap();
    vm.add_slot(1, range(FIRST, FRAMES));
    vm.add_slot(2, range(0x1000, 2));
    vm.set_private(range(FIRST, FRAMES));
    vm.set_private(range(0x1000, 2));
    vm.finalize().unwrap();
    let mut vcpu = vm.vcpu(0).unwrap();
    for gfn in (FIRST..FIRST + FRAMES).map(Gfn::new) {
        accept(&vm, &mut vcpu, gfn).unwrap();
    }
    drop(vcpu);
    vm.module().plan_busy(BusyPlan::random(6, busy));
    if let Planted::Omitted(omit) = planted {
        vm.omit(omit);
    }
    vm
}

/// The guest accepts a page, however often it has to try, unless it is not there to be had.
fn accept(vm: &TdxMmu, vcpu: &mut Vcpu, gfn: Gfn) -> Option<()> {
    for _ in 0..4 {
        let accepted = vm.accept(vcpu, gfn, Level::L1);
        if matches!(accepted, Ok(Accept::Accepted | Accept::AlreadyAccepted(_))) {
            return Some(());
        }
    }
    None
}

/// What a vCPU does: values that it finds are its own or the other's, or zero.
pub(super) fn vcpu(vm: &TdxMmu, number: u16, steps: u64, seed: u64) {
    let mut vcpu = vm.vcpu(number).unwrap();
    let mut random = Random(seed);
    for step in 0..steps {
        if vm.bug().is_some() {
            break;
        }
        let slot = random.below(5);
        let gfn = Gfn::new(if slot == 4 { 0x1000 } else { FIRST + slot });
        if accept(vm, &mut vcpu, gfn).is_none() {
            continue;
        }
        let mine = u64::from(number) * 1000 + step + 1;
        let found = vm.touch(&mut vcpu, gfn, GuestAccess::Write(mine));
        if let Touch::Value(value) = found {
            let value = value.expect("a page of the host's was reached");
            assert!(value % 1000 <= steps && value < 2000, "{value}");
        }
        if random.below(4) == 0 {
            vm.leave(&vcpu);
        }
    }
    vm.leave(&vcpu);
}

/// What userspace does.
pub(super) fn userspace(vm: &TdxMmu, steps: u64, planted: Planted, seed: u64) {
    let mut random = Random(seed);
    for _ in 0..steps {
        if vm.bug().is_some() {
            break;
        }
        let at = random.below(FRAMES);
        match random.below(5) {
            0 => vm.set_shared(range(FIRST + at, 1)),
            1 => vm.set_private(range(FIRST, FRAMES)),
            2 => vm.punch(range(FIRST + at, 1)),
            3 => {
                let _bug = vm.delete_slot(1, SlotZap::Leafs);
                vm.add_slot(1, range(FIRST, FRAMES));
            }
            _ => plant(vm, planted),
        }
    }
}

fn plant(vm: &TdxMmu, planted: Planted) {
    use slat_mmu::role::RoleFlag;
    use slat_mmu::tdp::Unobserved;
    match planted {
        Planted::Nothing | Planted::Omitted(_) => {}
        Planted::TableFirst => vm.exclusively(|tables| {
            let mut locked = tables.exclusive(Unobserved);
            let table = locked.find(vm.mirror, Gfn::new(FIRST)).place.table;
            locked.zap_page(table);
        }),
        Planted::RootReplaced => vm.exclusively(|tables| {
            let mirror = |(_, role): &(_, slat_mmu::role::PageRole)| role.has(RoleFlag::IsMirror);
            let role = tables.roots().iter().find(mirror).map(|(_, role)| role);
            let another = role.unwrap().with(RoleFlag::Smm);
            let _root = tables.exclusive(Unobserved).acquire_root(another);
        }),
    }
}

/// Everything that has to hold when all is over; what does not is returned.
pub(super) fn finish(vm: &TdxMmu) -> Vec<String> {
    vm.module().plan_busy(BusyPlan::default());
    let mut wrong: Vec<String> = vm.bug().iter().map(ToString::to_string).collect();
    wrong.extend(vm.audit().iter().map(|each| format!("{each:?}")));
    if wrong.is_empty() {
        let gmem = lock(&vm.kvm).files.len();
        if let Err(refusal) = vm.destroy() {
            wrong.push(refusal.to_string());
        }
        if vm.pages_in_use() != gmem {
            wrong.push(format!(
                "{} pages, {gmem} of guest_memfd",
                vm.pages_in_use()
            ));
        }
        wrong.extend(vm.audit().iter().map(|each| format!("{each:?}")));
    }
    wrong
}

//! Random sequences with the audit after each step, and the content of every page followed.
//!
//! The reference knows of each frame whether it is private, and what the guest would find there. `SLAT_SEQUENCES` sets how
//! many sequences there are, `SLAT_SEED` from which seed on; a sequence that fails is shortened and printed.

#![expect(clippy::cast_possible_truncation, reason = "frames are few")]

use std::panic::{AssertUnwindSafe, catch_unwind};

use slat_memslot::Level;
use slat_mmu::spte::Pfn;

use super::*;

/// The frames that take part, in two slots with a border of 2 MiB between them.
const FIRST: u64 = 0x3f8;
const FRAMES: u64 = 16;
const HALF: u64 = FRAMES / 2;
const STEPS: usize = 30;
const SEQUENCES: u64 = 1_000;

/// What the guest would find at a private frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    Nothing,
    /// A page that waits to be accepted.
    Pending,
    Value(u64),
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Fault(u16, u64),
    Accept(u16, u64),
    Write(u16, u64, u64),
    Read(u16, u64),
    Shared(u64, u64),
    Private(u64, u64),
    Punch(u64, u64),
    Delete(u16),
    Add(u16),
    FaultShared(u16, u64),
    ZapShared,
    Leave(u16),
    Busy(u32),
}

/// A generator (splitmix64).
struct Random(u64);

impl Random {
    const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    const fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn op(&mut self) -> Op {
        let vcpu = u16::from(self.below(2) == 1);
        let frame = self.below(FRAMES);
        let pages = 1 + self.below(FRAMES - frame);
        let slot = 1 + vcpu;
        match self.below(26) {
            0..3 => Op::Fault(vcpu, frame),
            3..9 => Op::Accept(vcpu, frame),
            9..13 => Op::Write(vcpu, frame, self.below(100)),
            13..17 => Op::Read(vcpu, frame),
            17 => Op::Shared(frame, pages),
            18..20 => Op::Private(frame, pages),
            20 => Op::Punch(frame, pages),
            21 => Op::Delete(slot),
            22 => Op::Add(slot),
            23 => Op::FaultShared(vcpu, frame),
            24 => match self.below(3) {
                0 => Op::ZapShared,
                _ => Op::Leave(vcpu),
            },
            _ => Op::Busy(u32::from(vcpu)),
        }
    }
}

/// The TD, and what it should be.
struct World {
    vm: TdxMmu,
    vcpus: Vec<Vcpu>,
    private: [bool; FRAMES as usize],
    slots: [bool; 2],
    held: [Held; FRAMES as usize],
    busy: bool,
}

fn frame(offset: u64) -> Gfn {
    Gfn::new(FIRST + offset)
}

fn slot_range(id: u16) -> GfnRange {
    range(FIRST + HALF * u64::from(id - 1), HALF)
}

impl World {
    fn new(hooks: HookGen) -> Self {
        let config = Config {
            hooks,
            ..Config::default()
        };
        let vm = TdxMmu::new(&config).unwrap();
        for id in [1, 2] {
            vm.add_slot(id, slot_range(id));
        }
        vm.set_private(range(FIRST, FRAMES));
        vm.finalize().unwrap();
        Self {
            vcpus: (0..2).map(|vcpu| vm.vcpu(vcpu).unwrap()).collect(),
            vm,
            private: [true; FRAMES as usize],
            slots: [true; 2],
            held: [Held::Nothing; FRAMES as usize],
            busy: false,
        }
    }

    fn has_slot(&self, offset: u64) -> bool {
        self.slots[usize::from(offset >= HALF)]
    }

    /// What a fault should come to if the module is not busy.
    fn fault_of(&self, offset: u64) -> PrivateFault {
        let at = offset as usize;
        let gfn = frame(offset);
        match (self.has_slot(offset), self.private[at], self.held[at]) {
            (_, false, _) => PrivateFault::Exit(MemoryFault { gfn, private: true }),
            (false, ..) => PrivateFault::NoSlot,
            (_, _, Held::Nothing) => PrivateFault::Fixed,
            _ => PrivateFault::Spurious,
        }
    }

    /// Compares a fault with what it should be, and follows.
    fn faulted(&mut self, offset: u64, fault: PrivateFault) {
        let wanted = self.fault_of(offset);
        let retried = fault == PrivateFault::Retry(slat_mmu::tdp::Retry::Busy);
        assert!(
            fault == wanted || self.busy && retried,
            "{fault:?}, not {wanted:?}"
        );
        if fault == PrivateFault::Fixed {
            self.held[offset as usize] = Held::Pending;
        }
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Fault(vcpu, at) => {
                let fault = self
                    .vm
                    .fault_private(&mut self.vcpus[usize::from(vcpu)], frame(at));
                self.faulted(at, fault);
            }
            Op::Accept(vcpu, at) => self.accept(vcpu, at),
            Op::Write(vcpu, at, value) => self.touch(vcpu, at, GuestAccess::Write(value)),
            Op::Read(vcpu, at) => self.touch(vcpu, at, GuestAccess::Read),
            Op::Shared(at, pages) => {
                self.vm.set_shared(range(FIRST + at, pages));
                self.convert(at, pages, false);
            }
            Op::Private(at, pages) => {
                self.vm.set_private(range(FIRST + at, pages));
                self.convert(at, pages, true);
            }
            Op::Punch(at, pages) => {
                self.vm.punch(range(FIRST + at, pages));
                self.lose(at, pages);
            }
            Op::Delete(id) => {
                self.vm.delete_slot(id, SlotZap::Leafs).unwrap();
                self.lose(HALF * u64::from(id - 1), HALF);
                self.slots[usize::from(id - 1)] = false;
            }
            Op::Add(id) => {
                self.vm.add_slot(id, slot_range(id));
                self.slots[usize::from(id - 1)] = true;
            }
            Op::FaultShared(vcpu, at) => {
                let page = Pfn::new(0x40 + at);
                let vcpu = &mut self.vcpus[usize::from(vcpu)];
                let fault = self.vm.fault_shared(vcpu, frame(at), page);
                let mapped = matches!(fault, PrivateFault::Fixed | PrivateFault::Spurious);
                let can = self.has_slot(at) && !self.private[at as usize];
                assert_eq!(mapped, can, "{fault:?}");
            }
            Op::ZapShared => self.vm.zap_direct_roots(),
            Op::Leave(vcpu) => self.vm.leave(&self.vcpus[usize::from(vcpu)]),
            Op::Busy(skip) => {
                let plan = BusyPlan::any(skip, Operand::SeptTree);
                self.vm.module().plan_busy(plan);
            }
        }
        // A plan strikes once.
        self.busy = matches!(op, Op::Busy(_)) || self.busy;
    }

    fn accept(&mut self, vcpu: u16, at: u64) {
        let vcpu = &mut self.vcpus[usize::from(vcpu)];
        let accepted = self.vm.accept(vcpu, frame(at), Level::L1);
        let held = &mut self.held[at as usize];
        match (accepted, *held) {
            (Ok(Accept::Accepted), Held::Pending) => *held = Held::Value(0),
            (Ok(Accept::AlreadyAccepted(Level::L1)), Held::Value(_)) => {}
            (Ok(Accept::Exit(_)), Held::Nothing) => {
                // The fault that followed is seen in the tables.
                if self.has_page(at) {
                    assert_eq!(self.fault_of(at), PrivateFault::Fixed);
                    self.held[at as usize] = Held::Pending;
                } else {
                    assert!(self.busy || self.fault_of(at) != PrivateFault::Fixed);
                }
            }
            (Err(refusal), _) => assert!(self.busy && refusal.is_busy(), "{refusal}"),
            other => panic!("{other:?}"),
        }
    }

    fn has_page(&self, at: u64) -> bool {
        let leaf = GpaMapping::new(frame(at).gpa(), Level::L1);
        let (module, td) = (self.vm.module(), self.vm.td());
        let mut entries = module.sept_entries(td).into_iter();
        entries.any(|(gpa, entry)| gpa == leaf.gpa && entry.level == Level::L1)
    }

    fn touch(&mut self, vcpu: u16, at: u64, access: GuestAccess) {
        let vcpu = &mut self.vcpus[usize::from(vcpu)];
        let touched = self.vm.touch(vcpu, frame(at), access);
        let held = self.held[at as usize];
        match (touched, held) {
            (Touch::Value(found), Held::Value(kept)) => {
                assert_eq!(
                    found,
                    Some(kept),
                    "content was lost or kept against the rules"
                );
                if let GuestAccess::Write(value) = access {
                    self.held[at as usize] = Held::Value(value);
                }
            }
            (Touch::Pending, Held::Pending) => {}
            (Touch::Fault(fault), Held::Nothing) => self.faulted(at, fault),
            // The guard against stepping tells the host again.
            (Touch::Fault(PrivateFault::Spurious), Held::Pending) => {}
            (Touch::NotEntered(refusal), _) => assert!(self.busy && refusal.is_busy()),
            other => panic!("{other:?}"),
        }
    }

    fn lose(&mut self, at: u64, pages: u64) {
        self.held[at as usize..(at + pages) as usize].fill(Held::Nothing);
    }

    fn convert(&mut self, at: u64, pages: u64, private: bool) {
        let frames = at as usize..(at + pages) as usize;
        if self.private[frames.clone()].iter().all(|is| *is == private) {
            return;
        }
        if !private {
            self.lose(at, pages);
        }
        self.private[frames].fill(private);
    }
}

fn run(hooks: HookGen, ops: &[Op]) -> Result<(), String> {
    let mut world = World::new(hooks);
    for (number, op) in ops.iter().enumerate() {
        let step = catch_unwind(AssertUnwindSafe(|| world.step(*op)));
        step.map_err(|_| format!("operation {number} went wrong"))?;
        let (bug, audit) = (world.vm.bug(), world.vm.audit());
        if bug.is_some() || !audit.is_empty() {
            return Err(format!("after operation {number}: {bug:?} {audit:#?}"));
        }
    }
    world.vm.module().plan_busy(BusyPlan::default());
    world.vcpus.clear();
    let destroyed = world.vm.destroy();
    let audit = world.vm.audit();
    if destroyed.is_ok() && audit.is_empty() {
        Ok(())
    } else {
        Err(format!("at the end: {destroyed:?} {audit:#?}"))
    }
}

/// Drops operations as long as what is left still fails.
fn shorten(hooks: HookGen, mut ops: Vec<Op>) -> Vec<Op> {
    let mut at = ops.len();
    while at > 0 {
        at -= 1;
        let mut shorter = ops.clone();
        shorter.remove(at);
        if run(hooks, &shorter).is_err() {
            ops = shorter;
            at = at.min(ops.len());
        }
    }
    ops
}

fn number(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok();
    value.map_or(default, |value| value.parse().expect("a number"))
}

#[test]
fn random_sequences_keep_all_invariants() {
    let (count, first) = (
        number("SLAT_SEQUENCES", SEQUENCES),
        number("SLAT_SEED", 0x7d),
    );
    for seed in first..first.wrapping_add(count) {
        let mut random = Random(seed.wrapping_mul(0x2545_f491_4f6c_dd1d));
        let hooks = BOTH[(seed % 2) as usize];
        let ops: Vec<Op> = (0..STEPS).map(|_| random.op()).collect();
        if run(hooks, &ops).is_err() {
            let short = shorten(hooks, ops);
            let error = run(hooks, &short).expect_err("it still fails");
            panic!("SLAT_SEED={seed} SLAT_SEQUENCES=1, {hooks:?}\n{short:#?}\n{error}");
        }
    }
    println!("{count} sequences of {STEPS} operations from seed {first:#x}");
}

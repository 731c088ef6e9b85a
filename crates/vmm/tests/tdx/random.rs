//! Random calls of a VMM and of a guest with the audit after each, and the content of every page followed on both sides.
//!
//! The reference knows of each frame whether it is private, what its guest would find there, which pages the file has, and what
//! the host's page holds. `SLAT_SEQUENCES` sets how many sequences there are, `SLAT_SEED` from which seed on; a sequence that
//! fails is shortened and printed.

#![expect(clippy::cast_possible_truncation, reason = "frames are few")]

use std::panic::{AssertUnwindSafe, catch_unwind};

use slat_memslot::{
    Access, Attributes, Call, Errno, FileCall, GmemId, Level, MapGpaAnswer, Outcome, PAGE_SIZE,
    Region, SlotKey, TdOp, TdSide, TdxCall, TdxCommand, TdxConversion, TdxCount, TdxHost,
    TdxOutcome, TdxSlotZap, WaitingEvent,
};
use slat_vmm::{CallError, CallResult, MemoryVm, model};

use super::vm;

/// The frames that take part, in two slots with a border of 2 MiB between them.
const FIRST: u64 = 0x1f8;
const FRAMES: u64 = 16;
const HALF: u64 = FRAMES / 2;
const ALL: usize = FRAMES as usize;
const STEPS: usize = 30;
const SEQUENCES: u64 = 1_000;
const HVA: u64 = 0x7f00_0000_0000;

/// What the guest would find at a private frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    Nothing,
    Pending,
    Value(u64),
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Accept(u32, u64),
    Write(u32, u64, u64),
    Read(u32, u64),
    WriteShared(u32, u64, u64),
    ReadShared(u32, u64),
    /// An attribute is set, without or with giving back what is behind the other side.
    Set(u64, u64, bool),
    Convert(u32, u64, u64, bool, bool),
    Punch(u64, u64),
    Discard(u64, u64),
    Delete(u64, TdxSlotZap),
    Add(u64),
    PreFault(u32, u64, u64),
    Busy(u32),
}

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

    fn op(&mut self) -> Op {
        let vcpu = self.below(2) as u32;
        let at = self.below(FRAMES);
        let pages = 1 + self.below(FRAMES - at);
        let value = 1 + self.below(99);
        let yes = self.below(2) == 1;
        match self.below(30) {
            0..7 => Op::Accept(vcpu, at),
            7..11 => Op::Write(vcpu, at, value),
            11..15 => Op::Read(vcpu, at),
            15..17 => Op::WriteShared(vcpu, at, value),
            17..19 => Op::ReadShared(vcpu, at),
            19..21 => Op::Set(at, pages, yes),
            21..24 => Op::Convert(vcpu, at, pages, yes, value % 2 == 0),
            24 => Op::Punch(at, pages),
            25 => Op::Discard(at, pages),
            26 if value % 4 == 0 => Op::Delete(u64::from(vcpu), TdxSlotZap::SharedRoots),
            26 => Op::Delete(u64::from(vcpu), TdxSlotZap::Leafs),
            27 => Op::Add(u64::from(vcpu)),
            28 => Op::PreFault(vcpu, at, pages),
            _ => Op::Busy(vcpu),
        }
    }
}

/// The TD, and what it should be.
struct World {
    vm: model::Vm,
    private: [bool; ALL],
    slots: [bool; 2],
    held: [Held; ALL],
    /// Which pages the files have.
    pages: [bool; ALL],
    shared: [u64; ALL],
    /// The module may be busy once.
    busy: bool,
}

const fn gpa(at: u64) -> u64 {
    (FIRST + at) * PAGE_SIZE
}

fn command(command: TdxCommand) -> Call {
    Call::Tdx(TdxCall::Command {
        command,
        hw_error: 0,
    })
}

fn slot(number: u64) -> Region {
    let first = gpa(HALF * number);
    let hva = HVA + HALF * number * PAGE_SIZE;
    let size = HALF * PAGE_SIZE;
    let file = GmemId::new(number as u32);
    Region::new(SlotKey::normal(1 + number as u16), first, size, hva).with_gmem(file, 0)
}

impl World {
    fn new(profile: &str) -> Self {
        let mut vm = vm(profile);
        let enable = |cap, arg| Call::EnableCap {
            cap,
            flags: 0,
            args: [arg, 0, 0, 0],
        };
        let init = TdxCommand::InitVm {
            attributes: 0,
            gpaw: 48,
            maxphyaddr: 52,
            flags: 0,
            nent: 0,
        };
        for call in [
            enable(slat_memslot::cap::EXIT_HYPERCALL, 1 << 12),
            enable(121, 24),
            command(init),
            Call::CreateVcpu,
            Call::CreateVcpu,
            command(TdxCommand::InitVcpu { vcpu: 0, flags: 0 }),
            command(TdxCommand::InitVcpu { vcpu: 1, flags: 0 }),
        ] {
            vm.call(&call).unwrap();
        }
        for number in 0..2 {
            vm.create_guest_memfd(HALF * PAGE_SIZE, 0).unwrap();
            vm.set_user_memory_region(&slot(number)).unwrap();
        }
        let all = FRAMES * PAGE_SIZE;
        vm.set_memory_attributes(gpa(0), all, Attributes::PRIVATE.bits())
            .unwrap();
        vm.call(&command(TdxCommand::FinalizeVm { flags: 0 }))
            .unwrap();
        Self {
            vm,
            private: [true; ALL],
            slots: [true; 2],
            held: [Held::Nothing; ALL],
            pages: [false; ALL],
            shared: [0; ALL],
            busy: false,
        }
    }

    fn has_slot(&self, at: u64) -> bool {
        self.slots[usize::from(at >= HALF)]
    }

    fn guest(&mut self, vcpu: u32, op: TdOp) -> CallResult {
        self.vm.call(&Call::Tdx(TdxCall::Guest { vcpu, op }))
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Accept(vcpu, at) => self.accept(vcpu, at),
            Op::Write(vcpu, at, value) => self.touch(vcpu, at, Some(value)),
            Op::Read(vcpu, at) => self.touch(vcpu, at, None),
            Op::WriteShared(vcpu, at, value) => self.touch_shared(vcpu, at, Some(value)),
            Op::ReadShared(vcpu, at) => self.touch_shared(vcpu, at, None),
            Op::Set(at, pages, private) => self.set(at, pages, private),
            Op::Convert(vcpu, at, pages, private, punch) => {
                self.convert(vcpu, (at, pages), private, punch);
            }
            Op::Punch(at, pages) => self.punch(at, pages),
            Op::Discard(at, pages) => {
                let host = TdxHost::Discard {
                    address: gpa(at),
                    size: pages * PAGE_SIZE,
                };
                self.vm.call(&Call::Tdx(TdxCall::Host(host))).unwrap();
                for frame in at..at + pages {
                    if self.has_slot(frame) {
                        self.discarded(frame);
                    }
                }
            }
            Op::Delete(number, how) => self.delete(number, how),
            Op::Add(number) => {
                let there = self.slots[number as usize];
                let added = self.vm.set_user_memory_region(&slot(number));
                assert_eq!(added.is_ok(), !there, "{added:?}");
                self.slots[number as usize] = true;
            }
            Op::PreFault(vcpu, at, pages) => self.pre_fault(vcpu, at, pages),
            Op::Busy(skip) => {
                let busy = TdxCall::Host(TdxHost::Busy { skip });
                self.vm.call(&Call::Tdx(busy)).unwrap();
                self.busy = true;
            }
        }
    }

    /// A page that was written as shared goes; what was never touched is not there to go.
    fn discarded(&mut self, at: u64) {
        self.shared[at as usize] = 0;
    }

    /// What a private access comes to before it reaches a page.
    fn exit(&self, at: u64, private: bool) -> Option<Outcome> {
        let flags = if private { 8 } else { 0 };
        let fault = Outcome::Access(Access::MemoryFault {
            flags,
            gpa: gpa(at),
            size: PAGE_SIZE,
        });
        let right = self.private[at as usize] == private;
        match (right, self.has_slot(at)) {
            (false, _) => Some(fault),
            (true, false) if private => Some(fault),
            (true, false) => Some(Outcome::Tdx(TdxOutcome::Ve)),
            (true, true) => None,
        }
    }

    fn accept(&mut self, vcpu: u32, at: u64) {
        let op = TdOp::Accept {
            gpa: gpa(at),
            level: Level::L1,
        };
        let accepted = self.guest(vcpu, op).unwrap();
        if let Some(exit) = self.exit(at, true) {
            assert_eq!(accepted, exit);
            return;
        }
        let frame = at as usize;
        let wanted = match self.held[frame] {
            Held::Value(_) => TdxOutcome::AlreadyAccepted(Level::L1),
            Held::Nothing | Held::Pending => {
                self.held[frame] = Held::Value(0);
                TdxOutcome::Accepted
            }
        };
        self.pages[frame] = true;
        assert_eq!(accepted, Outcome::Tdx(wanted));
    }

    fn touch(&mut self, vcpu: u32, at: u64, write: Option<u64>) {
        let (gpa, side) = (gpa(at), TdSide::AsGiven);
        let op = match write {
            Some(value) => TdOp::Write { gpa, side, value },
            None => TdOp::Read { gpa, side },
        };
        let found = self.guest(vcpu, op).unwrap();
        if let Some(exit) = self.exit(at, true) {
            assert_eq!(found, exit);
            return;
        }
        let frame = at as usize;
        self.pages[frame] = true;
        let wanted = match (self.held[frame], write) {
            (Held::Nothing | Held::Pending, _) => {
                self.held[frame] = Held::Pending;
                Outcome::Tdx(TdxOutcome::Ve)
            }
            (Held::Value(kept), None) => Outcome::Value(kept),
            (Held::Value(_), Some(value)) => {
                self.held[frame] = Held::Value(value);
                Outcome::Done
            }
        };
        assert_eq!(found, wanted, "content was lost or kept against the rules");
    }

    fn touch_shared(&mut self, vcpu: u32, at: u64, write: Option<u64>) {
        let (gpa, side) = (gpa(at), TdSide::Shared);
        let op = match write {
            Some(value) => TdOp::Write { gpa, side, value },
            None => TdOp::Read { gpa, side },
        };
        let found = self.guest(vcpu, op).unwrap();
        if let Some(exit) = self.exit(at, false) {
            assert_eq!(found, exit);
            return;
        }
        let wanted = match write {
            Some(value) => {
                self.shared[at as usize] = value;
                Outcome::Done
            }
            None => Outcome::Value(self.shared[at as usize]),
        };
        assert_eq!(
            found, wanted,
            "the host's page was lost or kept against the rules"
        );
    }

    fn set(&mut self, at: u64, pages: u64, private: bool) {
        let attributes = if private {
            Attributes::PRIVATE.bits()
        } else {
            0
        };
        self.vm
            .set_memory_attributes(gpa(at), pages * PAGE_SIZE, attributes)
            .unwrap();
        let frames = at as usize..(at + pages) as usize;
        if !private {
            self.held[frames.clone()].fill(Held::Nothing);
        }
        self.private[frames].fill(private);
    }

    /// The guest asks, the VMM sets the attribute and gives back what is behind the side that goes, or not.
    fn convert(&mut self, vcpu: u32, (at, pages): (u64, u64), private: bool, punch: bool) {
        let (side, to) = match private {
            true => (TdSide::AsGiven, TdxConversion::Private),
            false => (TdSide::Shared, TdxConversion::Shared),
        };
        let size = pages * PAGE_SIZE;
        let asked = self.guest(
            vcpu,
            TdOp::MapGpa {
                gpa: gpa(at),
                side,
                size,
            },
        );
        let exit = TdxOutcome::Hypercall {
            gpa: gpa(at),
            pages,
            to,
        };
        assert_eq!(asked, Ok(Outcome::Tdx(exit)));
        self.set(at, pages, private);
        if punch && !private {
            self.punch(at, pages);
        }
        let answered = self.vm.call(&Call::Tdx(TdxCall::CompleteHypercall {
            vcpu,
            ret: 0,
            event: WaitingEvent::None,
        }));
        let Ok(Outcome::Tdx(TdxOutcome::MapGpa { answer, next })) = answered else {
            panic!("{answered:?}");
        };
        assert_eq!(answer, MapGpaAnswer::Success);
        assert_eq!(next & ((1 << 47) - 1), gpa(at + pages));
    }

    /// A hole in both files, whether slots hold them or not.
    fn punch(&mut self, at: u64, pages: u64) {
        for number in 0..2 {
            let (first, end) = (HALF * number, HALF * (number + 1));
            let (from, to) = (at.max(first), (at + pages).min(end));
            if from >= to {
                continue;
            }
            let hole = FileCall::Fallocate {
                mode: 3,
                offset: (from - first) * PAGE_SIZE,
                len: (to - from) * PAGE_SIZE,
            };
            let file = GmemId::new(number as u32);
            self.vm.call(&Call::File(file, hole)).unwrap();
            self.held[from as usize..to as usize].fill(Held::Nothing);
            self.pages[from as usize..to as usize].fill(false);
        }
    }

    fn delete(&mut self, number: u64, how: TdxSlotZap) {
        let policy = TdxCall::Host(TdxHost::SlotZap(how));
        self.vm.call(&Call::Tdx(policy)).unwrap();
        let there = self.slots[number as usize];
        let gone = self
            .vm
            .set_user_memory_region(&Region::delete(SlotKey::normal(1 + number as u16)));
        assert_eq!(gone.is_ok(), there, "{gone:?}");
        self.slots[number as usize] = false;
        let frames = (HALF * number) as usize..(HALF * (number + 1)) as usize;
        self.held[frames].fill(Held::Nothing);
    }

    fn pre_fault(&mut self, vcpu: u32, at: u64, pages: u64) {
        let done = self.vm.call(&Call::PreFault {
            vcpu,
            gpa: gpa(at),
            size: pages * PAGE_SIZE,
            flags: 0,
        });
        let reached = match done {
            Ok(Outcome::Remaining { gpa: left, .. }) => left / PAGE_SIZE - FIRST,
            Err(CallError::Refused { .. }) => at,
            other => panic!("{other:?}"),
        };
        for frame in at..reached {
            assert!(self.has_slot(frame), "{frame}");
            if self.private[frame as usize] {
                self.pages[frame as usize] = true;
                if self.held[frame as usize] == Held::Nothing {
                    self.held[frame as usize] = Held::Pending;
                }
            }
        }
        if reached < at + pages {
            let busy = done == Err(CallError::errno(Errno::EAGAIN)) || self.busy;
            assert!(busy || !self.has_slot(reached), "{done:?}");
            // The page was taken before the module was asked.
            if self.has_slot(reached) && self.private[reached as usize] {
                self.pages[reached as usize] = true;
            }
        }
    }

    fn check(&self) -> Result<(), String> {
        let td = self.vm.td().unwrap();
        let audit = td.audit();
        if !audit.is_empty() {
            return Err(format!("{audit:#?}"));
        }
        let wanted = self.pages.iter().filter(|page| **page).count() as u64;
        let found = td.count(TdxCount::PrivatePages);
        if found != wanted {
            return Err(format!("the files have {found} pages, not {wanted}"));
        }
        Ok(())
    }
}

fn run(profile: &str, ops: &[Op]) -> Result<(), String> {
    let mut world = World::new(profile);
    for (number, op) in ops.iter().enumerate() {
        let step = catch_unwind(AssertUnwindSafe(|| world.step(*op)));
        step.map_err(|_| format!("operation {number} went wrong"))?;
        world
            .check()
            .map_err(|why| format!("after operation {number}: {why}"))?;
    }
    // What is still planned to be busy must not meet the end.
    let end = Call::Tdx(TdxCall::Host(TdxHost::Teardown));
    match world.vm.call(&end) {
        Ok(Outcome::Value(0)) => Ok(()),
        Err(CallError::Tdx { .. }) if world.busy => Ok(()),
        other => Err(format!("at the end: {other:?}")),
    }
}

/// Drops operations as long as what is left still fails.
fn shorten(profile: &str, mut ops: Vec<Op>) -> Vec<Op> {
    let mut at = ops.len();
    while at > 0 {
        at -= 1;
        let mut shorter = ops.clone();
        shorter.remove(at);
        if run(profile, &shorter).is_err() {
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
fn random_calls_lose_and_keep_what_the_rules_say() {
    let (count, first) = (
        number("SLAT_SEQUENCES", SEQUENCES),
        number("SLAT_SEED", 0x7d),
    );
    for seed in first..first.wrapping_add(count) {
        let mut random = Random(seed.wrapping_mul(0x2545_f491_4f6c_dd1d));
        let profile = ["linux-6.18-tdx", "linux-7.3-rc1-tdx"][(seed % 2) as usize];
        let ops: Vec<Op> = (0..STEPS).map(|_| random.op()).collect();
        if run(profile, &ops).is_err() {
            let short = shorten(profile, ops);
            let error = run(profile, &short).expect_err("it still fails");
            panic!("SLAT_SEED={seed} SLAT_SEQUENCES=1, {profile}\n{short:#?}\n{error}");
        }
    }
    println!("{count} sequences of {STEPS} operations from seed {first:#x}");
}

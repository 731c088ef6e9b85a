//! Random guests on random VMMs, answer by answer against the reference, with all audits after each step.
//!
//! `SLAT_SEQUENCES` sets how many sequences, `SLAT_SEED` the first seed. A failure names its seed.

use slat_coco::psc::{Direction, MapGpaRange, PscEntry, PscOperation, PscQuirks};
use slat_coco::rmp::{RmpSize, Visibility};
use slat_coco::snp::{Found, Hole, Value};
use slat_memslot::{Call, FileCall, Gfn, GfnRange, GmemId, PageSize, Pages, Region, SlotKey};
use slat_mmu::tdp::audit::AuditContext;
use slat_vmm::snp_vm::{EncryptOp, GuestAct, SnpAnswer, SnpCommand, SnpOp, VmmWays};
use slat_vmm::{Machine, MemoryVm, model};

use super::reference::Reference;
use super::{BASE, machine};

use Visibility::{Private, Shared};

/// Numbers from a seed (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % sides
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.roll(from.len() as u64)).unwrap()]
    }
}

fn setting(name: &str, default: u64) -> u64 {
    let given = std::env::var(name).ok();
    given.map_or(default, |given| given.parse().unwrap())
}

const PAGES: u64 = 8;
const STEPS: u32 = 24;
const FILE: GmemId = GmemId::new(0);

fn at(page: u64) -> usize {
    usize::try_from(page).unwrap()
}

fn range(start: u64, pages: u64) -> GfnRange {
    GfnRange::new(Gfn::new(start), Pages::new(pages)).unwrap()
}

fn region(size: u64) -> Region {
    Region::new(SlotKey::normal(0), 0, size, BASE).with_gmem(FILE, 0)
}

/// A VM with two vCPUs, of which the first pages are launched with contents.
fn start(dice: &mut Dice, reference: &mut Reference) -> model::Vm {
    let mut vm = machine().create_vm(4).unwrap();
    vm.create_guest_memfd(PAGES << 12, 0).unwrap();
    vm.set_user_memory_region(&region(PAGES << 12)).unwrap();
    vm.enable_cap(slat_memslot::cap::EXIT_HYPERCALL, 1 << 12)
        .unwrap();
    vm.call(&Call::CreateVcpu).unwrap();
    vm.call(&Call::CreateVcpu).unwrap();
    let launched = dice.roll(4);
    let mut commands = vec![SnpCommand::LaunchStart {
        policy: 0x3_0000,
        flags: 0,
    }];
    if launched > 0 {
        super::private(&mut vm, 0, launched);
        commands.push(SnpCommand::LaunchUpdate {
            gpa: 0,
            size: launched << 12,
            page: 1,
            tag: 77,
            flags: 0,
        });
        (0..launched).for_each(|page| reference.launch(at(page), 77));
    }
    commands.push(SnpCommand::LaunchFinish { flags: 0 });
    for command in commands {
        vm.memory_encrypt_op(&EncryptOp::Snp(command)).unwrap();
    }
    vm
}

fn ways(dice: &mut Dice) -> VmmWays {
    VmmWays {
        explicit: dice.pick(&[Hole::Punched, Hole::Kept]),
        implicit: dice.pick(&[None, Some(Hole::Punched), Some(Hole::Kept)]),
        quirks: dice.pick(&[PscQuirks::kvm(), PscQuirks::kvm_2026(), PscQuirks::strict()]),
        chunk: dice.pick(&[None, None, Some(1), Some(2)]),
        fails_at: dice.pick(&[None, None, None, Some(1), Some(2)]),
    }
}

/// One operation on both. Gives what it was.
fn step(vm: &mut model::Vm, reference: &mut Reference, dice: &mut Dice) -> String {
    let page = dice.roll(PAGES);
    let gfn = Gfn::new(page);
    let ways = ways(dice);
    vm.snp(&SnpOp::Vmm(ways)).unwrap();
    let access = dice.pick(&[Private, Private, Shared]);
    let (tag, implicit) = (dice.roll(1 << 40), ways.implicit);
    let (act, expected) = match dice.roll(16) {
        0..=2 => (
            GuestAct::Read(gfn, access),
            reference.read(at(page), access, implicit),
        ),
        3..=5 => (
            GuestAct::Write(gfn, access, tag),
            reference.write(at(page), access, tag, implicit),
        ),
        6 | 7 => (
            GuestAct::Validate(gfn, RmpSize::Size4K),
            reference.validate(at(page), true, implicit),
        ),
        8 => (
            GuestAct::Rescind(gfn, RmpSize::Size4K),
            reference.validate(at(page), false, implicit),
        ),
        9 | 10 => psc(reference, dice, &ways),
        11 => msr(reference, dice, &ways),
        other => return outside(vm, reference, dice, (other, page, tag)),
    };
    let vcpu = u32::try_from(dice.roll(2)).unwrap();
    let answer = vm.snp(&SnpOp::Guest(vcpu, act.clone())).unwrap();
    assert_eq!(answer, expected, "{act:?} {ways:?}");
    format!("vCPU {vcpu}: {act:?} under {ways:?}: {answer:?}")
}

/// The VMM and the host.
fn outside(
    vm: &mut model::Vm,
    reference: &mut Reference,
    dice: &mut Dice,
    (what, page, tag): (u64, u64, u64),
) -> String {
    let pages = 1 + dice.roll(PAGES - page);
    let gfn = Gfn::new(page);
    let (op, expected) = match what {
        12 => {
            let call = FileCall::Fallocate {
                mode: 3,
                offset: page << 12,
                len: pages << 12,
            };
            vm.call(&Call::File(FILE, call)).unwrap();
            reference.punch(at(page)..at(page + pages));
            return format!("hole {page} + {pages}");
        }
        13 => {
            let there = !reference.slot;
            let size = if there { PAGES << 12 } else { 0 };
            vm.set_user_memory_region(&region(size)).unwrap();
            reference.set_slot(there);
            return format!("slot: {there}");
        }
        14 => {
            let to = dice.pick(&[Private, Shared]);
            let hole = dice.pick(&[Hole::Punched, Hole::Kept]);
            reference.convert(at(page)..at(page + pages), to, hole);
            (
                SnpOp::Convert(range(page, pages), to, hole),
                SnpAnswer::Done,
            )
        }
        _ if dice.roll(2) == 0 => (SnpOp::HostRead(gfn), reference.host_read(at(page))),
        _ => (
            SnpOp::HostWrite(gfn, tag),
            reference.host_write(at(page), tag),
        ),
    };
    let answer = vm.snp(&op).unwrap();
    assert_eq!(answer, expected, "{op:?}");
    format!("{op:?}: {answer:?}")
}

/// A page-state change of a few entries, which the engine joins and the VMM answers part by part.
fn psc(reference: &mut Reference, dice: &mut Dice, ways: &VmmWays) -> (GuestAct, SnpAnswer) {
    let mut entries = Vec::new();
    for _ in 0..1 + dice.roll(4) {
        let page = dice.roll(PAGES);
        let operation = dice.pick(&[PscOperation::Private, PscOperation::Shared]);
        entries.push(PscEntry::new(Gfn::new(page), operation, RmpSize::Size4K));
    }
    // Nobody but slots says which frames a guest has.
    let refused = ways.quirks == PscQuirks::strict() && !reference.slot;
    let (mut done, mut exits, mut info) = (0, Vec::new(), 0);
    while done < entries.len() && !refused {
        let (first, mut end) = (entries[done], done + 1);
        while end < entries.len()
            && entries[end].operation == first.operation
            && entries[end].gfn.raw() == entries[end - 1].gfn.raw() + 1
        {
            end += 1;
        }
        let (to, side) = match first.operation {
            PscOperation::Private => (Direction::ToPrivate, Private),
            _ => (Direction::ToShared, Shared),
        };
        exits.push(MapGpaRange {
            range: range(first.gfn.raw(), (end - done) as u64),
            to,
            hint: PageSize::Size4K,
        });
        if ways.fails_at.is_some_and(|at| at as usize == exits.len()) {
            info = 0x100 << 32;
            break;
        }
        let now = ways
            .chunk
            .map_or(end - done, |chunk| at(chunk).min(end - done));
        let start = at(first.gfn.raw());
        reference.convert(start..start + now, side, ways.explicit);
        done += now;
    }
    if refused {
        info = 1 << 32 | 2;
    }
    let cursor = u16::try_from(done).unwrap();
    (GuestAct::Psc(entries), SnpAnswer::Psc(info, cursor, exits))
}

/// The MSR protocol: a page, or an operation that does not exist.
fn msr(reference: &mut Reference, dice: &mut Dice, ways: &VmmWays) -> (GuestAct, SnpAnswer) {
    let (page, operation) = (dice.roll(PAGES), dice.roll(4));
    let value = operation << 52 | page << 12 | 0x014;
    let answer = match operation {
        1 | 2 => {
            let to = if operation == 1 { Private } else { Shared };
            reference.convert(at(page)..at(page) + 1, to, ways.explicit);
            0x015
        }
        _ => 1 << 63 | 0x015,
    };
    (GuestAct::Msr(value), SnpAnswer::Msr(answer))
}

/// The host reads no page that the guest wrote as private, and everything agrees.
fn check(vm: &mut model::Vm, reference: &Reference) {
    for page in 0..PAGES {
        let peeked = vm.snp(&SnpOp::HostPeek(Gfn::new(page))).unwrap();
        let leaked = matches!(peeked, SnpAnswer::Found(Found::Value(Value::Tag(_))));
        assert!(!leaked, "the host reads page {page}: {peeked:?}");
        assert_eq!(peeked, reference.host_peek(at(page)), "page {page}");
    }
    assert_eq!(vm.audit_snp(), []);
    let paging = vm.paging().unwrap();
    assert!(paging.audit(&AuditContext::default()).is_empty());
}

#[test]
fn sequences_with_every_page_tracked() {
    let sequences = setting("SLAT_SEQUENCES", 1_000);
    let first = setting("SLAT_SEED", 1);
    let (mut steps, mut stale, mut lost) = (0u64, 0, 0);
    for seed in first..first + sequences {
        let mut dice = Dice(seed);
        let mut reference = Reference::new(at(PAGES));
        let mut vm = start(&mut dice, &mut reference);
        let mut told = Vec::new();
        for _ in 0..STEPS {
            let attempt = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let what = step(&mut vm, &mut reference, &mut dice);
                check(&mut vm, &reference);
                what
            }));
            match attempt {
                Ok(what) => told.push(what),
                Err(panic) => {
                    println!("seed {seed}, after {told:#?}");
                    std::panic::resume_unwind(panic);
                }
            }
            steps += 1;
        }
        stale += reference.stale;
        lost += reference.lost;
    }
    println!(
        "{sequences} sequences from seed {first}, {steps} steps: {stale} times old contents came back, {lost} times they \
         were lost to a hole"
    );
    assert!(stale > 0 && lost > 0);
}

//! Random sequences over whole VMs: slots, logs, rings, guest accesses, pre-faults, notifiers, attributes, settings. After
//! each operation the tables are audited, no leaf is where no slot is or allows what its slot does not, and each page that
//! a guest can write unnoticed is in the log already.
//!
//! `SLAT_SEQUENCES` and `SLAT_SEED` choose how many and which.
#![expect(clippy::unwrap_used, reason = "a test may fail anywhere")]

use std::time::Instant;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use slat_memslot::{
    AsId, Call, Gfn, Gpa, PAGE_SIZE, PageSize, Pages, Profile, Region, Slot, SlotFlags, SlotKey,
    VmType, cap,
};
use slat_mmu::fault::Kind;
use slat_mmu::host::Host;
use slat_mmu::spte::{Entry, Ept, Format, Npt, NxHugePages};
use slat_mmu::tdp::Unobserved;
use slat_mmu::tdp::audit::AuditContext;
use slat_vmm::tdp_vm::{Activity, EagerSplit, TdpVm};

/// Operations of a sequence.
const OPERATIONS: usize = 24;
/// Frames that slots may lie in.
const FRAMES: u64 = 0xa00;
/// Where host memory begins.
const BASE: u64 = 0x7f00_0000_0000;

struct World<F: Format> {
    vm: TdpVm<F>,
    random: ChaCha8Rng,
    /// How often pages were replaced: each time others come.
    version: u64,
    /// Leaves that were looked at.
    leaves: u64,
    log: Log,
}

/// How writes are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Log {
    Bitmaps,
    /// What is read is watched again when it is cleared.
    ClearedByHand,
    /// A ring that is full after some two hundred entries.
    SmallRing,
    LargeRing,
}

impl Log {
    const ALL: [Self; 4] = [
        Self::Bitmaps,
        Self::ClearedByHand,
        Self::SmallRing,
        Self::LargeRing,
    ];

    /// The capability that chooses it.
    fn capability(self, pml: bool) -> Option<(u32, u64)> {
        match self {
            Self::Bitmaps => None,
            Self::ClearedByHand => Some((cap::MANUAL_DIRTY_LOG_PROTECT2, 1)),
            Self::SmallRing if pml => Some((cap::DIRTY_LOG_RING, 0x4000)),
            Self::SmallRing => Some((cap::DIRTY_LOG_RING, 0x1000)),
            Self::LargeRing => Some((cap::DIRTY_LOG_RING, 0x10_0000)),
        }
    }
}

impl<F: Format> World<F> {
    fn new(host: &Host, vm_type: VmType, seed: u64) -> Self {
        let mut profile = Profile::named("debian-6.12.117").unwrap();
        profile.pml.set(host.pml());
        let log = Log::ALL[usize::try_from(seed / 5 % 4).unwrap()];
        let mut world = Self {
            vm: TdpVm::new(profile, vm_type, host).unwrap(),
            random: ChaCha8Rng::seed_from_u64(seed),
            version: 0,
            leaves: 0,
            log,
        };
        if let Some((cap, arg)) = log.capability(host.pml()) {
            world.vm.enable_cap(cap, arg);
        }
        world.vm.create_vcpu(0);
        world.region(0, 0, 16, SlotFlags::empty());
        world
    }

    fn below(&mut self, end: u64) -> u64 {
        self.random.random_range(0..end)
    }

    fn pick<T: Copy>(&mut self, values: [T; 3]) -> T {
        values[self.random.random_range(0..3)]
    }

    /// The page behind a frame, by its slot.
    fn page(&self, gfn: u64) -> u64 {
        let slot = self.vm.memory().space(AsId::NORMAL).by_gfn(Gfn::new(gfn));
        let hva = slot.and_then(|slot| slot.hva_of(Gfn::new(gfn)));
        let frame = hva.map_or(0, |hva| hva.raw() / PAGE_SIZE);
        (self.version % 64 + 1) << 16 | frame & 0xffff
    }

    fn region(&mut self, slot: u32, gfn: u64, pages: u64, flags: SlotFlags) {
        let hva = BASE + u64::from(slot) * 0x1000 * PAGE_SIZE + (gfn & 0x1ff) * PAGE_SIZE;
        let region = Region::new(
            SlotKey::normal(slot.try_into().unwrap()),
            gfn * PAGE_SIZE,
            pages * PAGE_SIZE,
            hva,
        );
        self.vm.set_region(&region.with_flags(flags));
    }

    /// The pages that an access may need.
    fn supply(&mut self, gfns: &[u64]) {
        let pages = gfns.iter().map(|gfn| (Gfn::new(*gfn), self.page(*gfn)));
        let pages: Vec<_> = pages.collect();
        for (gfn, pfn) in &pages {
            if self.version % 2 == 0 {
                self.vm.host_mut().know_huge(PageSize::Size2M, *gfn, *pfn);
            }
        }
        self.vm.host_mut().supply(pages);
    }

    fn access(&mut self, kind: Kind, gfn: u64) {
        self.supply(&[1, gfn]);
        let activity = Activity::halt(Gpa::new(0x1000)).step(kind, gfn * PAGE_SIZE);
        self.vm.run_guest(0, &activity);
    }

    fn hva_range(&mut self) -> std::ops::Range<u64> {
        let slot = 1 + self.below(3);
        let start = BASE + slot * 0x1000 * PAGE_SIZE + self.below(0x300) * PAGE_SIZE;
        start..start + (1 + self.below(0x400)) * PAGE_SIZE
    }

    fn operation(&mut self) {
        // Some pages are met again and again, so that what was cleared is written anew.
        let gfn = match self.below(3) {
            0 => self.pick([0x200, 0x233, 0x410]),
            _ => 0x200 + self.below(FRAMES - 0x200),
        };
        let slot = 1 + u32::try_from(self.below(3)).unwrap();
        match self.below(23) {
            0..=3 => self.access(Kind::Write, gfn),
            4..=6 => self.access(Kind::Read, gfn),
            7 => self.access(Kind::Execute, gfn),
            // A pre-fault looks at no ring, and can overrun one.
            8 | 9 if self.log == Log::SmallRing => self.access(Kind::Read, gfn),
            8 | 9 => {
                self.supply(&[gfn]);
                let pages = Pages::new(1 + self.below(0x300));
                self.vm.pre_fault(0, Gfn::new(gfn), pages, 0);
            }
            10 | 11 => {
                let flags = [
                    SlotFlags::empty(),
                    SlotFlags::LOG_DIRTY_PAGES,
                    SlotFlags::READONLY,
                ];
                let flags = self.pick(flags);
                let (gfn, pages) = (
                    self.pick([0x200, 0x400, 0x601]),
                    self.pick([0x200, 0x180, 0x400]),
                );
                self.region(slot, gfn, pages, flags);
            }
            12 => self.region(slot, 0x200, 0, SlotFlags::empty()),
            13 => {
                let known = self
                    .vm
                    .memory()
                    .slot(slot)
                    .map(|slot| (slot.range(), slot.flags()));
                if let Some((range, flags)) = known {
                    let flags = flags ^ SlotFlags::LOG_DIRTY_PAGES;
                    self.region(slot, range.start().raw(), range.pages().raw(), flags);
                }
            }
            14 => self.vm.get_dirty_log(slot),
            15 => self.vm.clear_dirty_log(slot, 0, Pages::new(64)),
            16 => {
                let range = self.hva_range();
                self.vm.unmap_hva(range.clone());
                self.vm.host_mut().replace(range);
                self.version += 1;
            }
            17 => {
                let range = self.hva_range();
                let _young = self.vm.age_hva(range);
            }
            18 => {
                let on = self.below(2) == 0;
                self.vm.set_nx_huge_pages(if on {
                    NxHugePages::On
                } else {
                    NxHugePages::Off
                });
                self.vm
                    .set_eager_split(if on { EagerSplit::On } else { EagerSplit::Off });
            }
            19 | 20 => {
                let _taken = self.vm.call(&Call::HarvestDirtyRing { vcpu: 0 });
            }
            21 => {
                let _freed = self.vm.call(&Call::ResetDirtyRings);
            }
            _ => {
                let (gfn, private) = (Gfn::new(gfn & !0xf), self.below(2) << 3);
                self.vm.set_attributes(gfn, Pages::new(0x10), private);
            }
        }
    }

    /// Whether a page is in its slot's bitmap, or in the ring and not yet given back.
    fn is_logged(&self, slot: &Slot, gfn: Gfn) -> bool {
        let (key, offset) = (slot.key().raw(), (gfn - slot.range().start()).raw());
        let memory = self.vm.memory();
        if !memory.has_rings() {
            return slot
                .dirty()
                .unwrap()
                .get()
                .iter()
                .any(|page| page == offset);
        }
        let entries = memory.ring(0).unwrap().entries();
        entries
            .iter()
            .any(|entry| entry.flags != 0 && (entry.slot, entry.offset) == (key, offset))
    }

    fn check(&mut self) {
        let mut leaves = 0;
        let _told = self.vm.take();
        let tables = self.vm.tables();
        assert_eq!(tables.audit(&AuditContext::default()), []);
        let mut reader = tables.reader().unwrap();
        let locked = tables.shared(&mut reader, Unobserved);
        for (root, role) in tables.roots().iter() {
            let Some(table) = locked.root_table(root) else {
                continue;
            };
            let mut gfn = 0;
            while gfn < FRAMES + 0x200 {
                let found = locked.find(table, Gfn::new(gfn));
                if let Entry::Leaf(leaf) = tables.codec().decode(found.spte, found.level) {
                    let slot = self.vm.memory().space(role.as_id()).by_gfn(Gfn::new(gfn));
                    let slot =
                        slot.unwrap_or_else(|| panic!("{gfn:#x} is mapped, and no slot is there"));
                    leaves += 1;
                    let write = leaf.writability;
                    assert!(!(slot.is_readonly() && write.host), "{gfn:#x} is read-only");
                    let huge = leaf.size() != Some(PageSize::Size4K);
                    assert!(
                        !(slot.is_logged() && huge && write.hardware),
                        "{gfn:#x} is logged"
                    );
                    let unnoticed = write.hardware && (leaf.dirty || !tables.codec().host().pml());
                    assert!(
                        !(slot.is_logged() && unnoticed) || self.is_logged(slot, Gfn::new(gfn)),
                        "{gfn:#x} can be written, and is not in the log"
                    );
                }
                gfn = (gfn | (found.level.pages().raw() - 1)) + 1;
            }
        }
        self.leaves += leaves;
    }
}

/// Runs one, and gives how many leaves were looked at.
fn sequence<F: Format>(host: &Host, vm_type: VmType, seed: u64) -> u64 {
    let mut world = World::<F>::new(host, vm_type, seed);
    for _ in 0..OPERATIONS {
        world.operation();
        world.check();
    }
    world.vm.close();
    let totals = world.vm.tables().totals();
    assert_eq!((totals.pages_4k, totals.pages_2m, totals.tables), (0, 0, 0));
    world.leaves
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

#[test]
fn whole_vms_stay_consistent() {
    let (count, first) = (number("SLAT_SEQUENCES", 300), number("SLAT_SEED", 1));
    let (start, mut leaves) = (Instant::now(), 0);
    let protected = VmType::SwProtected;
    for seed in first..first + count {
        let run = || match seed % 5 {
            0 => sequence::<Npt>(&Host::npt(40), VmType::Default, seed),
            1 => sequence::<Ept>(&Host::ept(40), VmType::Default, seed),
            2 => sequence::<Ept>(&Host::ept(40).without_ad(), VmType::Default, seed),
            3 => sequence::<Ept>(&Host::ept(40).without_pml(), VmType::Default, seed),
            _ => sequence::<Npt>(&Host::npt(40), protected, seed),
        };
        leaves += std::panic::catch_unwind(run).unwrap_or_else(|cause| {
            println!("SLAT_SEED={seed} SLAT_SEQUENCES=1 repeats it");
            std::panic::resume_unwind(cause);
        });
    }
    let took = start.elapsed();
    println!("{count} sequences from seed {first}, {leaves} leaves looked at, in {took:.1?}");
    assert!(leaves > count, "nearly nothing was mapped");
}

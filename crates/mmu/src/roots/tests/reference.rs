//! A naive model of roots, in the shape of KVM's own algorithm, beside the real one.

use proptest::prelude::*;
use slat_memslot::Gfn;

use super::{roles, vcpus};
use crate::role::{PageRole, RoleFlag};
use crate::roots::*;

/// Names a root for good: how many were made before it.
type Serial = usize;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Held {
    Nothing,
    Special(SpecialRoot),
    Page(Serial),
}

#[derive(Debug)]
struct Page {
    role: PageRole,
    kind: RootKind,
    references: i64,
    generation: u64,
    scheduled: bool,
    freed: bool,
}

/// The root in use, then the earlier ones.
type Places = [(Pgd, Held); 4];

#[derive(Debug)]
struct Naive {
    pages: Vec<Page>,
    generation: u64,
    vcpus: Vec<Places>,
    /// Freed by the operation that runs.
    freed: Vec<Serial>,
}

const EMPTY: (Pgd, Held) = (Pgd::ZERO, Held::Nothing);

impl Naive {
    fn new(vcpus: usize) -> Self {
        Self {
            pages: Vec::new(),
            generation: 0,
            vcpus: vec![[EMPTY; 4]; vcpus],
            freed: Vec::new(),
        }
    }

    fn put(&mut self, serial: Serial) {
        let page = &mut self.pages[serial];
        page.references -= 1;
        assert!(page.references >= 0, "negative references");
        if page.references == 0 && page.role.is_invalid() {
            self.remove(serial);
        }
    }

    fn remove(&mut self, serial: Serial) {
        let page = &mut self.pages[serial];
        assert!(!page.freed, "freed twice");
        page.freed = true;
        self.freed.push(serial);
    }

    fn drop_place(&mut self, vcpu: usize, place: usize) {
        let (_, held) = std::mem::replace(&mut self.vcpus[vcpu][place], EMPTY);
        if let Held::Page(serial) = held {
            self.put(serial);
        }
    }

    fn usable(&self, (held_pgd, held): (Pgd, Held), pgd: Pgd, role: PageRole) -> bool {
        match held {
            Held::Page(serial) => {
                (role.is_direct() || held_pgd == pgd) && self.pages[serial].role == role
            }
            Held::Nothing | Held::Special(_) => false,
        }
    }

    fn switch(&mut self, vcpu: usize, pgd: Pgd, role: PageRole) -> Found {
        if matches!(self.vcpus[vcpu][0].1, Held::Special(_)) {
            self.drop_place(vcpu, 0);
        }
        if self.vcpus[vcpu][0].1 == Held::Nothing {
            return self.switch_without_current(vcpu, pgd, role);
        }
        if self.usable(self.vcpus[vcpu][0], pgd, role) {
            return Found::Current;
        }
        for place in 1..4 {
            self.vcpus[vcpu].swap(0, place);
            if self.usable(self.vcpus[vcpu][0], pgd, role) {
                return Found::Previous(place - 1);
            }
        }
        self.drop_place(vcpu, 0);
        Found::Nowhere
    }

    fn switch_without_current(&mut self, vcpu: usize, pgd: Pgd, role: PageRole) -> Found {
        for place in 1..4 {
            if self.usable(self.vcpus[vcpu][place], pgd, role) {
                self.vcpus[vcpu].swap(0, place);
                for later in place..3 {
                    self.vcpus[vcpu][later] = self.vcpus[vcpu][later + 1];
                }
                self.vcpus[vcpu][3] = EMPTY;
                return Found::Previous(place - 1);
            }
        }
        Found::Nowhere
    }

    /// Gives what was found or made, or nothing if a root was in use.
    fn load(&mut self, vcpu: usize, kind: RootKind, pgd: Pgd, role: PageRole) -> Option<Serial> {
        if self.vcpus[vcpu][0].1 != Held::Nothing {
            return None;
        }
        let generation = self.generation;
        let same = self.pages.iter().position(|page| {
            let valid = kind == RootKind::Tdp || page.generation == generation;
            !page.freed && page.role == role && page.kind == kind && valid
        });
        let serial = same.unwrap_or_else(|| {
            self.pages.push(Page {
                role,
                kind,
                references: i64::from(kind == RootKind::Tdp),
                generation,
                scheduled: false,
                freed: false,
            });
            self.pages.len() - 1
        });
        self.pages[serial].references += 1;
        let pgd = if role.is_direct() { Pgd::ZERO } else { pgd };
        self.vcpus[vcpu][0] = (pgd, Held::Page(serial));
        Some(serial)
    }

    fn invalidate_all(&mut self) {
        self.generation += 1;
        for page in self.pages.iter_mut().filter(|page| !page.freed) {
            if page.kind == RootKind::Tdp && !page.role.is_invalid() {
                page.role = page.role.with(RoleFlag::Invalid);
                page.scheduled = true;
            }
        }
    }

    fn zap_invalidated(&mut self) {
        for serial in 0..self.pages.len() {
            let page = &self.pages[serial];
            if page.kind != RootKind::Tdp && page.generation != self.generation {
                self.zap_shadow(serial);
            }
            if std::mem::take(&mut self.pages[serial].scheduled) {
                self.put(serial);
            }
        }
    }

    fn zap_shadow(&mut self, serial: Serial) {
        let page = &mut self.pages[serial];
        if page.freed || page.kind == RootKind::Tdp {
            return;
        }
        page.role = page.role.with(RoleFlag::Invalid);
        if page.references == 0 {
            self.remove(serial);
        }
    }

    fn free_where(
        &mut self,
        vcpu: usize,
        places: [usize; 4],
        wanted: impl Fn(&Self, Held) -> bool,
    ) {
        for place in places {
            let held = self.vcpus[vcpu][place].1;
            if held != Held::Nothing && wanted(self, held) {
                self.drop_place(vcpu, place);
            }
        }
    }

    fn is_obsolete(&self, held: Held) -> bool {
        match held {
            Held::Page(serial) => {
                let page = &self.pages[serial];
                let outdated = page.kind != RootKind::Tdp && page.generation != self.generation;
                page.role.is_invalid() || outdated
            }
            Held::Special(_) => true,
            Held::Nothing => false,
        }
    }
}

/// Both sides of the comparison.
struct Pair {
    /// Its roots point at their serials.
    table: RootTable<u32>,
    mmus: Vec<VcpuMmu>,
    naive: Naive,
}

#[derive(Clone, Debug)]
enum Op {
    Init(usize, PageRole),
    Switch(usize, Pgd),
    Load(usize, GuestRoot),
    LoadPae(usize, Pgd),
    Free(usize, RootSet),
    FreeGuestMode(usize),
    InvalidateAll,
    Zap,
    ZapShadow(usize),
    Serve(usize),
}

fn serials(freed: impl IntoIterator<Item = Freed<u32>>) -> Vec<Serial> {
    let freed = freed.into_iter().map(|freed| freed.payload as Serial);
    freed.collect()
}

fn dropped_pages(dropped: impl IntoIterator<Item = Dropped<u32>>) -> Vec<Serial> {
    let freed = dropped.into_iter().filter_map(|dropped| match dropped {
        Dropped::Page(released) => released.freed(),
        Dropped::Special(_) => None,
    });
    serials(freed)
}

impl Pair {
    fn new(tdp_mmu: TdpMmu) -> Self {
        let mmus = vcpus(roles()[0]);
        Self {
            table: RootTable::new(tdp_mmu),
            naive: Naive::new(mmus.len()),
            mmus,
        }
    }

    fn serial(&self, root: RootId) -> Option<Serial> {
        Some(self.table.payload(root)? as Serial)
    }

    fn apply(&mut self, op: &Op) {
        let mut freed = match *op {
            Op::Init(vcpu, role) => {
                self.mmus[vcpu].init(role);
                Vec::new()
            }
            Op::Switch(vcpu, pgd) => self.switch(vcpu, pgd),
            Op::Load(vcpu, guest) => self.load(vcpu, guest),
            Op::LoadPae(vcpu, pgd) => self.load_pae(vcpu, pgd),
            Op::Free(vcpu, set) => {
                let flags = [(1, 2), (2, 4), (3, 8), (0, 1)];
                for (place, bit) in flags.into_iter().filter(|(_, bit)| set.bits() & bit != 0) {
                    assert_eq!(RootSet::place(place).bits(), bit);
                    self.naive.drop_place(vcpu, place);
                }
                dropped_pages(self.mmus[vcpu].free(&self.table, set))
            }
            Op::FreeGuestMode(vcpu) => self.free_guest_mode(vcpu),
            Op::InvalidateAll => self.invalidate_all(),
            Op::Zap => {
                self.naive.zap_invalidated();
                serials(self.table.zap_invalidated())
            }
            Op::ZapShadow(nth) => self.zap_shadow(nth),
            Op::Serve(vcpu) => self.serve(vcpu),
        };
        let mut expected = std::mem::take(&mut self.naive.freed);
        freed.sort_unstable();
        expected.sort_unstable();
        assert_eq!(freed, expected, "{op:?}");
        self.compare();
    }

    fn switch(&mut self, vcpu: usize, pgd: Pgd) -> Vec<Serial> {
        let expected = self.naive.switch(vcpu, pgd, self.mmus[vcpu].role());
        let new = self.mmus[vcpu].new_pgd(&self.table, pgd, FlushOnReuse::Off);
        assert_eq!(new.switch.found, expected);
        assert_eq!(new.reused.is_some(), expected != Found::Nowhere);
        dropped_pages(new.switch.dropped)
    }

    fn load(&mut self, vcpu: usize, guest: GuestRoot) -> Vec<Serial> {
        let role = self.mmus[vcpu].role();
        let made_before = self.naive.pages.len();
        let load = self.mmus[vcpu].load(&self.table, guest, || u32::try_from(made_before).unwrap());
        let (GuestRoot::Visible(pgd) | GuestRoot::Unbacked(pgd)) = guest;
        if load == Load::Dummy {
            assert!(!role.is_direct() && guest == GuestRoot::Unbacked(pgd));
            assert_eq!(self.naive.vcpus[vcpu][0].1, Held::Nothing);
            self.naive.vcpus[vcpu][0] = (pgd, Held::Special(SpecialRoot::Dummy));
            return Vec::new();
        }
        let kind = self.table.kind_for(role, Gfn::new(pgd.raw() >> 12));
        let expected = self.naive.load(vcpu, kind, pgd, role);
        let made = self.naive.pages.len() > made_before;
        match load {
            Load::InUse(_) => assert_eq!(expected, None),
            Load::Shared(root) | Load::Created(root) => {
                assert_eq!(self.serial(root), expected);
                assert_eq!(load == Load::Created(root), made);
            }
            Load::Dummy => unreachable!("seen above"),
        }
        Vec::new()
    }

    fn load_pae(&mut self, vcpu: usize, pgd: Pgd) -> Vec<Serial> {
        if self.mmus[vcpu].cache().current() == Root::None {
            self.mmus[vcpu].load_pae(pgd);
            self.naive.vcpus[vcpu][0] = (pgd, Held::Special(SpecialRoot::Pae));
        }
        Vec::new()
    }

    fn free_guest_mode(&mut self, vcpu: usize) -> Vec<Serial> {
        if self.mmus[vcpu].role().is_guest_mode() {
            return Vec::new();
        }
        self.naive.free_where(vcpu, [1, 2, 3, 1], |naive, held| {
            matches!(held, Held::Page(serial) if naive.pages[serial].role.is_guest_mode())
        });
        dropped_pages(self.mmus[vcpu].free_guest_mode(&self.table))
    }

    fn invalidate_all(&mut self) -> Vec<Serial> {
        self.naive.invalidate_all();
        self.table.invalidate_all();
        let requests = |mmu: &mut VcpuMmu| mmu.request(Request::FreeObsoleteRoots);
        self.mmus.iter_mut().for_each(requests);
        Vec::new()
    }

    fn zap_shadow(&mut self, nth: usize) -> Vec<Serial> {
        let live: Vec<_> = self.table.iter().map(|(root, _)| root).collect();
        let Some(root) = live.get(nth).copied() else {
            return Vec::new();
        };
        self.naive.zap_shadow(self.serial(root).unwrap());
        serials(self.table.zap_shadow(root))
    }

    fn serve(&mut self, vcpu: usize) -> Vec<Serial> {
        let asked = self.mmus[vcpu]
            .requests()
            .contains(Request::FreeObsoleteRoots);
        if asked {
            self.naive
                .free_where(vcpu, [1, 2, 3, 0], Naive::is_obsolete);
        }
        let mut freed = Vec::new();
        while let Some((_, dropped)) = self.mmus[vcpu].serve(&self.table) {
            freed.extend(dropped_pages(dropped));
        }
        freed
    }

    fn compare(&self) {
        for (mmu, expected) in self.mmus.iter().zip(&self.naive.vcpus) {
            for ((pgd, root), expected) in mmu.cache().roots().zip(expected) {
                assert_eq!((pgd, self.held(root)), *expected);
            }
        }
        let live: Vec<_> = self.table.iter().collect();
        let expected = self.naive.pages.iter().filter(|page| !page.freed);
        assert_eq!(live.len(), expected.count());
        for &(root, role) in &live {
            let serial = self.serial(root).unwrap();
            let page = &self.naive.pages[serial];
            assert!(!page.freed);
            assert_eq!(role, page.role);
            assert_eq!(
                self.table.references(root).map(i64::from),
                Some(page.references)
            );
            assert_eq!(page.references, self.holders(serial));
        }
        self.no_two_valid_tdp_roots_are_alike();
    }

    fn held(&self, root: Root) -> Held {
        match root {
            Root::None => Held::Nothing,
            Root::Special(special) => Held::Special(special),
            Root::Page(root) => Held::Page(self.serial(root).unwrap()),
        }
    }

    /// Every reference there should be: places in caches, and the TDP MMU's own.
    fn holders(&self, serial: Serial) -> i64 {
        let places = self.naive.vcpus.iter().flatten();
        let holding = places.filter(|(_, held)| *held == Held::Page(serial));
        let page = &self.naive.pages[serial];
        let own = page.kind == RootKind::Tdp && (page.scheduled || !page.role.is_invalid());
        i64::try_from(holding.count()).unwrap() + i64::from(own)
    }

    fn no_two_valid_tdp_roots_are_alike(&self) {
        let tdp = |root: &RootId| self.table.kind(*root) == Some(RootKind::Tdp);
        let valid = self
            .table
            .iter()
            .filter(|(root, role)| tdp(root) && !role.is_invalid());
        let mut roles: Vec<_> = valid.map(|(_, role)| role).collect();
        let all = roles.len();
        roles.sort_unstable();
        roles.dedup();
        assert_eq!(roles.len(), all);
    }

    /// Frees everything; then no root may be left that is not a shadow page kept for later.
    fn end(&mut self) {
        for vcpu in 0..self.mmus.len() {
            self.apply(&Op::Free(vcpu, RootSet::all()));
        }
        self.apply(&Op::InvalidateAll);
        self.apply(&Op::Zap);
        assert!(self.table.is_empty());
        assert!(self.naive.pages.iter().all(|page| page.freed));
    }
}

fn any_op() -> impl Strategy<Value = Op> {
    let vcpu = 0_usize..3;
    let pgd = || (1_u64..6).prop_map(|number| Pgd::new(number << 12));
    let role = proptest::sample::select(roles().to_vec());
    prop_oneof![
        3 => (vcpu.clone(), role).prop_map(|(vcpu, role)| Op::Init(vcpu, role)),
        8 => (vcpu.clone(), pgd()).prop_map(|(vcpu, pgd)| Op::Switch(vcpu, pgd)),
        8 => (vcpu.clone(), pgd()).prop_map(|(vcpu, pgd)| Op::Load(vcpu, GuestRoot::Visible(pgd))),
        1 => (vcpu.clone(), pgd()).prop_map(|(vcpu, pgd)| Op::Load(vcpu, GuestRoot::Unbacked(pgd))),
        1 => (vcpu.clone(), pgd()).prop_map(|(vcpu, pgd)| Op::LoadPae(vcpu, pgd)),
        1 => (vcpu.clone(), 0_u8..16).prop_map(|(vcpu, set)| Op::Free(vcpu, RootSet::from_bits_truncate(set))),
        1 => vcpu.clone().prop_map(Op::FreeGuestMode),
        1 => Just(Op::InvalidateAll),
        1 => Just(Op::Zap),
        1 => (0_usize..8).prop_map(Op::ZapShadow),
        2 => vcpu.prop_map(Op::Serve),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn caches_and_references_follow_the_naive_model(
        tdp_mmu in prop_oneof![Just(TdpMmu::On), Just(TdpMmu::Off)],
        ops in proptest::collection::vec(any_op(), 0..120),
    ) {
        let mut pair = Pair::new(tdp_mmu);
        ops.iter().for_each(|op| pair.apply(op));
        pair.end();
    }
}

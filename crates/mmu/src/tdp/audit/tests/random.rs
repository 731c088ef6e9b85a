//! Whatever is done to tables, the audit finds nothing, on every kind of host.

use proptest::prelude::*;
use slat_memslot::{AsId, Generation, GfnRange};

use super::*;
use crate::host::{Encryption, Layout};
use crate::spte::{Ept, Fill, Npt, NxHugePages};
use crate::tdp::{
    Collapse, Passes, Progress, SplitHugePages, Target, Uninterrupted, ZapInvalidated, ZapLeafs,
};

#[derive(Clone, Copy, Debug)]
enum Op {
    Map(u64, PageSize, Fill),
    Mmio(u64),
    MapRange(u64, u64),
    Zap(u64, u64),
    Split(u64, PageSize),
    Collapse(u64, bool),
    FastZap,
    Discard,
}

fn op() -> impl Strategy<Value = Op> {
    let gfn = 0_u64..0x800;
    let size = prop_oneof![
        4 => Just(PageSize::Size4K),
        2 => Just(PageSize::Size2M),
        1 => Just(PageSize::Size1G),
    ];
    let fill = prop_oneof![Just(Fill::Fault), Just(Fill::Prefetch)];
    prop_oneof![
        8 => (gfn.clone(), size.clone(), fill).prop_map(|(gfn, size, fill)| Op::Map(gfn, size, fill)),
        2 => gfn.clone().prop_map(Op::Mmio),
        2 => (gfn.clone(), 1..0x500_u64).prop_map(|(gfn, pages)| Op::MapRange(gfn, pages)),
        3 => (gfn.clone(), 1..0x400_u64).prop_map(|(gfn, pages)| Op::Zap(gfn, pages)),
        2 => (gfn.clone(), size).prop_map(|(gfn, size)| Op::Split(gfn, size)),
        2 => (gfn, any::<bool>()).prop_map(|(gfn, zap)| Op::Collapse(gfn, zap)),
        1 => Just(Op::FastZap),
        1 => Just(Op::Discard),
    ]
}

impl<F: Format> World<F> {
    fn apply(&mut self, op: Op, nx: NxHugePages) {
        match op {
            Op::Map(gfn, size, fill) => self.fault(gfn, size, (fill, nx)),
            Op::Mmio(gfn) if self.is_empty(gfn) => self.fault_mmio(gfn),
            Op::Mmio(_) => {}
            Op::MapRange(gfn, pages) => self.map_range(gfn, pages),
            Op::Zap(gfn, pages) => self.zap(gfn, pages),
            Op::Split(gfn, size) => self.split(gfn, size, nx),
            Op::Collapse(gfn, zap) => self.collapse(gfn, zap, nx),
            Op::FastZap | Op::Discard => self.zap_all(matches!(op, Op::Discard)),
        }
    }

    fn is_empty(&mut self, gfn: u64) -> bool {
        let found = self.shared(|locked, root| locked.find(root, Gfn::new(gfn)));
        !found.spte.is_present()
    }

    /// Guest and host frames are the same, so that no fault ever wants another page.
    fn fault(&mut self, gfn: u64, size: PageSize, (fill, nx): (Fill, NxHugePages)) {
        let start = first(gfn, size.level());
        let mut request = MapRequest::page(Gfn::new(gfn), size, Pfn::new(start));
        if let Target::Page(page) = &mut request.target {
            (page.fill, page.nx_huge_pages) = (fill, nx);
        }
        let _mapped = self.shared(|locked, root| locked.map(root, &request).unwrap());
    }

    fn fault_mmio(&mut self, gfn: u64) {
        let request = MapRequest::mmio(Gfn::new(gfn), Generation::new(4));
        let _mapped = self.shared(|locked, root| locked.map(root, &request));
    }

    fn map_range(&mut self, gfn: u64, pages: u64) {
        let root = self.root_table();
        let request = MapRequest::page(Gfn::new(gfn), PageSize::Size4K, Pfn::new(gfn));
        let mut nobody = Unobserved;
        let mut locked = self.tables.exclusive(&mut nobody);
        let pages = slat_memslot::Pages::new(pages);
        let _dirty = locked.map_range(root, &request, pages).unwrap();
    }

    fn zap(&mut self, gfn: u64, pages: u64) {
        let range = GfnRange::between(Gfn::new(gfn), Gfn::new(gfn + pages)).unwrap();
        let mut zap = ZapLeafs::of_valid_roots(range);
        let mut nobody = Unobserved;
        let mut locked = self.tables.exclusive(&mut nobody);
        assert_eq!(zap.run(&mut locked, &mut Uninterrupted), Progress::Done);
    }

    fn split(&mut self, gfn: u64, size: PageSize, nx: NxHugePages) {
        let range = GfnRange::between(Gfn::new(gfn), Gfn::new(gfn + 1)).unwrap();
        let mut split = SplitHugePages::new(AsId::NORMAL, range, size, nx);
        let done = self.shared(|locked, _| split.run(locked, &mut Uninterrupted));
        assert_eq!(done, Ok(Progress::Done));
    }

    fn collapse(&mut self, gfn: u64, zap: bool, nx: NxHugePages) {
        let how = if zap {
            Collapse::Zap
        } else {
            Collapse::Recover(nx)
        };
        let size = PageSize::Size2M;
        self.shared(|locked, root| locked.collapse(root, Gfn::new(gfn), size, how));
    }

    fn zap_all(&mut self, discard: bool) {
        let role = self.tables.roots.role(self.root).unwrap();
        let mut nobody = Unobserved;
        let mut locked = self.tables.exclusive(&mut nobody);
        locked.invalidate_roots();
        if discard {
            locked.discard_invalidated();
        }
        self.root = self.shared(|locked, _| {
            let mut zap = ZapInvalidated::new(Passes::default());
            assert_eq!(zap.run(locked, &mut Uninterrupted), Progress::Done);
            locked.acquire_root(role).unwrap().root()
        });
    }
}

fn run<F: Format>(host: &Host, ops: &[Op], nx: NxHugePages) -> Result<(), TestCaseError> {
    let mut world = World::<F>::new(host);
    let context = AuditContext {
        nx_huge_pages: nx,
        host_mmio: HostMmio::Absent,
        ..AuditContext::default()
    };
    let context = context.with_generation(AsId::NORMAL, Generation::new(4));
    for op in ops {
        world.apply(*op, nx);
        prop_assert_eq!(world.tables.audit(&context), []);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_found_in_sound_tables(
        ops in prop::collection::vec(op(), 1..24),
        nx in prop_oneof![Just(NxHugePages::Off), Just(NxHugePages::On)],
    ) {
        for layout in [Layout::P1, Layout::P2, Layout::P3] {
            let intel = Host::ept(46).with_layout(layout);
            run::<Ept>(&intel, &ops, nx)?;
            run::<Ept>(&intel.without_ad(), &ops, nx)?;
            run::<Ept>(&intel.with_execute_only().with_l1tf(44), &ops, nx)?;
            run::<Ept>(&intel.with_five_levels(), &ops, nx)?;
            let amd = Host::npt(48).with_layout(layout);
            run::<Npt>(&amd, &ops, nx)?;
            let c_bit = 47;
            let encrypted = amd.with_encryption(Encryption::Active { c_bit }, 43);
            run::<Npt>(&encrypted, &ops, nx)?;
        }
        run::<Ept>(&Host::ept(46).without_ad().with_software_ad(), &ops, nx)?;
    }
}

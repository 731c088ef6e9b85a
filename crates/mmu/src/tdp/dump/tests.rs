//! Texts of dumps: taken from tables, written and read, broken, compared.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may fail anywhere"
)]

mod load;
mod property;

use slat_memslot::{Generation, Gfn, GfnRange, Level, PageSize, Pages};

use super::*;
use crate::host::Layout;
use crate::role::{RoleLayout, VcpuMode, VcpuState, root_role_for_tdp};
use crate::roots::RootId;
use crate::spte::{Ept, Fill, Format, HostWrite, LeafRequest, Npt, Spte};
use crate::table::TableId;
use crate::tdp::{
    Limits, MapRequest, Resolution, Tables, Target, Uninterrupted, Unobserved, ZapLeafs,
};

/// Small tables with their ordinary root.
fn world<F: Format>(host: &Host, mode: VcpuMode) -> (Tables<F>, RootId, TableId) {
    let limits = Limits {
        tables: 512,
        readers: 1,
    };
    let mut tables = Tables::with_limits(host, limits);
    let vcpu = VcpuState {
        mode,
        ..VcpuState::default()
    };
    let role = root_role_for_tdp(&vcpu, &host.tdp().unwrap());
    let mut observer = Unobserved;
    let mut locked = tables.exclusive(&mut observer);
    let root = locked.acquire_root(role).unwrap().root();
    let table = locked.root_table(root).unwrap();
    (tables, root, table)
}

fn page<F: Format>(size: PageSize, pfn: u64) -> LeafRequest<F> {
    LeafRequest::new(Spte::from_raw(0), size, Pfn::new(pfn))
}

fn map<F: Format>(tables: &mut Tables<F>, root: TableId, gfn: u64, page: LeafRequest<F>) {
    let request = MapRequest {
        target: Target::Page(page),
        ..MapRequest::page(Gfn::new(gfn), page.table.size, page.pfn)
    };
    let mut observer = Unobserved;
    let mapped = tables.exclusive(&mut observer).map(root, &request).unwrap();
    assert_eq!(mapped.resolution, Resolution::Fixed);
}

/// The lines of what the only root maps.
fn ranges(dump: &Dump) -> Vec<String> {
    dump.roots[0].ranges.iter().map(Range::to_string).collect()
}

/// The text of a dump, which is read back as the same, with the raw entries and without.
fn text<F: Format>(tables: &mut Tables<F>) -> String {
    let raw = tables.dump(Detail::Entries);
    assert_eq!(raw.to_string().parse::<Dump>(), Ok(raw.clone()), "{raw}");
    let dump = tables.dump(Detail::Ranges);
    assert_eq!(dump.to_string().parse::<Dump>(), Ok(dump.clone()), "{dump}");
    assert_eq!(dump.clone().normalised(), dump);
    dump.to_string()
}

/// Ranges end where the level, the frame of the host, or anything a leaf says changes.
#[test]
fn leaves_are_joined_while_they_are_alike() {
    let (mut tables, _, root) = world::<Ept>(&Host::ept(46), VcpuMode::Normal);
    for gfn in 0..4 {
        map(&mut tables, root, gfn, page(PageSize::Size4K, 0x1000 + gfn));
    }
    map(&mut tables, root, 4, page(PageSize::Size4K, 0x2000));
    let read_only = LeafRequest {
        host_write: HostWrite::Refused,
        ..page(PageSize::Size4K, 0x2001)
    };
    map(&mut tables, root, 5, read_only);
    let logged = LeafRequest {
        dirty_log: true,
        fill: Fill::Prefetch,
        ..page(PageSize::Size4K, 0x2002)
    };
    map(&mut tables, root, 6, logged);
    map(&mut tables, root, 0x200, page(PageSize::Size2M, 0x4200));
    map(&mut tables, root, 0x400, page(PageSize::Size2M, 0x4400));
    map(
        &mut tables,
        root,
        0x4_0000,
        page(PageSize::Size1G, 0x8_0000),
    );
    let dump = tables.dump(Detail::Ranges);
    assert_eq!(
        ranges(&dump),
        [
            "0x0..0x4 l1 rwx pfn 0x1000 hw mw ad wb+ipat",
            "0x4..0x5 l1 rwx pfn 0x2000 hw mw ad wb+ipat",
            "0x5..0x6 l1 r-x pfn 0x2001 -- -- a- wb+ipat",
            "0x6..0x7 l1 rwx pfn 0x2002 hw mw -d wb+ipat",
            "0x200..0x600 l2 rwx pfn 0x4200 hw mw ad wb+ipat",
            "0x40000..0x80000 l3 rwx pfn 0x80000 hw mw ad wb+ipat",
        ]
    );
    assert_eq!(dump.roots[0].tables, [1, 1, 1, 1, 0]);
    let text = text(&mut tables);
    assert!(text.starts_with("slat-dump 1 ept p2 maxphyaddr 46 levels 4 ad pml\n\n"));
    assert!(text.contains("root 0.0 valid refs 2\n  role baseline 0x3784 mirror 0x3784 mbec "));
}

/// What each mode and layout adds to a line.
#[test]
fn what_is_out_of_the_ordinary_is_told() {
    let (mut tables, _, root) = world::<Ept>(&Host::ept(46).without_ad(), VcpuMode::Normal);
    let early = LeafRequest {
        fill: Fill::Prefetch,
        ..page(PageSize::Size4K, 0x10)
    };
    map(&mut tables, root, 0, early);
    let dump = tables.dump(Detail::Ranges);
    let line = "0x0..0x1 l1 --- pfn 0x10 hw mw -- wb+ipat ad-off saved r-x";
    assert_eq!(ranges(&dump), [line]);
    text(&mut tables);

    let (mut tables, _, root) = world::<Ept>(&Host::ept(46), VcpuMode::Guest);
    map(&mut tables, root, 0, page(PageSize::Size4K, 0x10));
    let dump = tables.dump(Detail::Ranges);
    let line = "0x0..0x1 l1 rwx pfn 0x10 hw mw ad wb+ipat ad-wp";
    assert_eq!(ranges(&dump), [line]);
    assert!(text(&mut tables).contains(" guest_mode\n"));

    let host = Host::ept(46).with_layout(Layout::P3);
    let (mut tables, _, root) = world::<Ept>(&host, VcpuMode::Normal);
    map(&mut tables, root, 0, page(PageSize::Size4K, 0x10));
    let line = "0x0..0x1 l1 rwxu pfn 0x10 hw mw ad wb+ipat";
    assert_eq!(ranges(&tables.dump(Detail::Ranges)), [line]);
    assert!(text(&mut tables).contains("  role baseline - mirror - mbec "));

    let host = Host::npt(48).with_encryption(crate::host::Encryption::Active { c_bit: 47 }, 43);
    let (mut tables, _, root) = world::<Npt>(&host, VcpuMode::Normal);
    map(&mut tables, root, 0, page(PageSize::Size4K, 0x10));
    let line = "0x0..0x1 l1 rwx pfn 0x10 hw mw ad pat enc";
    assert_eq!(ranges(&tables.dump(Detail::Ranges)), [line]);
    assert!(text(&mut tables).contains(" phys-bits 43 sme 47\n"));
}

#[test]
fn mmio_is_joined_while_the_generation_is_the_same() {
    let (mut tables, _, root) = world::<Npt>(&Host::npt(48), VcpuMode::Normal);
    let mut observer = Unobserved;
    for (gfn, generation) in [(0xfee00, 6), (0xfee01, 6), (0xfee02, 8)] {
        let request = MapRequest::mmio(Gfn::new(gfn), Generation::new(generation));
        let mapped = tables.exclusive(&mut observer).map(root, &request).unwrap();
        assert_eq!(mapped.resolution, Resolution::Emulate);
    }
    assert_eq!(
        ranges(&tables.dump(Detail::Ranges)),
        [
            "0xfee00..0xfee02 l1 mmio gen 0x6 rw-",
            "0xfee02..0xfee03 l1 mmio gen 0x8 rw-",
        ]
    );
    text(&mut tables);
}

/// A difference has the frames that differ and no more.
#[test]
fn a_diff_is_cut_to_what_differs() {
    let (mut tables, root, table) = world::<Npt>(&Host::npt(48), VcpuMode::Normal);
    let mut observer = Unobserved;
    let request = MapRequest::page(Gfn::new(0), PageSize::Size4K, Pfn::new(0x1000));
    let mut locked = tables.exclusive(&mut observer);
    let _dirty = locked
        .map_range(table, &request, Pages::new(0x100))
        .unwrap();
    let before = locked.dump(Detail::Ranges);
    let range = GfnRange::between(Gfn::new(0x10), Gfn::new(0x12)).unwrap();
    let _over = ZapLeafs::of_valid_roots(range).run(&mut locked, &mut Uninterrupted);
    let request = MapRequest::page(Gfn::new(0x11), PageSize::Size4K, Pfn::new(0x9));
    let _mapped = locked.map(table, &request).unwrap();
    let after = locked.dump(Detail::Ranges);
    assert_eq!(
        before.diff(&after).to_string(),
        "\u{20}root 0.0 valid refs 2\n\
         -  0x10..0x12 l1 rwx pfn 0x1010 hw mw ad pat\n\
         +  0x11..0x12 l1 rwx pfn 0x9 hw mw ad pat\n"
    );
    assert!(after.diff(&after).is_empty());
    assert_eq!(after.diff(&after).to_string(), "");

    locked.invalidate_roots();
    locked.put_root(root);
    let gone = locked.dump(Detail::Ranges);
    let text = after.diff(&gone).to_string();
    assert!(text.starts_with("-root 0.0 valid refs 2\n+root 0.0 invalid refs 1\n-  role "));
    assert!(!text.contains("pfn"), "{text}");
}

#[test]
fn raw_entries_are_those_of_the_tables() {
    let (mut tables, _, root) = world::<Npt>(&Host::npt(48), VcpuMode::Normal);
    map(&mut tables, root, 0x207, page(PageSize::Size4K, 0x777));
    let dump = tables.dump(Detail::Entries);
    let all: Vec<_> = dump.roots[0]
        .entries
        .iter()
        .map(|raw| (raw.level, raw.gfn, raw.entries.len()))
        .collect();
    let zero = Gfn::new(0);
    assert_eq!(
        all,
        [
            (Level::L4, zero, 1),
            (Level::L3, zero, 1),
            (Level::L2, zero, 1),
            (Level::L1, Gfn::new(0x200), 1),
        ]
    );
    let spte = dump.roots[0].entries[3].entries[0];
    assert_eq!(
        (spte.0, format!("{:#x}", spte.1)),
        (7, "0x777e67".to_owned())
    );
    text(&mut tables);
}

/// A dump to break.
const GOOD: &str = "\
slat-dump 1 npt p2 maxphyaddr 48 levels 4 ad on

root 0.0 valid refs 2 # a comment
  role baseline 0x3784 mirror 0x3784 mbec 0x6f84 = l4 8-byte q0 direct wux nxe ad cr0_wp
  tables l4 1 l3 1 l2 1 l1 1
  0x0..0x1 l1 rwx pfn 0x10 hw mw ad pat
  0xfee00..0xfee01 l1 mmio gen 0x6 rw-
  table 0 l4 gfn 0x0
    spte 0 0 0x10007
";

#[test]
fn an_error_names_line_and_value() {
    let role = PageRole::from_word(RoleLayout::Baseline, 0x3784).unwrap();
    let mbec = format!("mbec {:#x}", role.word(RoleLayout::Mbec));
    let good = GOOD.replace("mbec 0x6f84", &mbec);
    assert_eq!(good.parse::<Dump>().map(|dump| dump.roots.len()), Ok(1));
    for (from, to, error) in [
        ("slat-dump 1", "slat-dump 2", "line 1: 2: `1` belongs here"),
        ("npt", "nqt", "line 1: nqt: none of ept, npt, shadow"),
        (
            "maxphyaddr 48",
            "maxphyaddr 53",
            "line 1: 53: an address width is at most 52",
        ),
        (
            "ad on",
            "ad on phys-bits 50",
            "line 1: 50: more bits than maxphyaddr",
        ),
        (
            "refs 2",
            "refs 0x100000000",
            "line 3: 0x100000000: a number of references is at most",
        ),
        (
            "valid refs",
            "invalid refs",
            "line 4: 0x3784: the role says",
        ),
        (
            "0x3784 mirror",
            "0x13784 mirror",
            "line 4: 0x3784: another role",
        ),
        ("wux", "w-x", "line 4: w-x: `wux` belongs here"),
        ("l1 1\n", "l1 1 l0 1\n", "line 5: l0: one word too many"),
        (
            "0x0..0x1",
            "0x1..0x1",
            "line 6: 0x1..0x1: an empty or reversed range",
        ),
        (
            "0x0..0x1 l1",
            "0x0..0x1 l2",
            "line 6: 0x0..0x1: not aligned",
        ),
        ("rwx pfn", "xwr pfn", "line 6: xwr: neither"),
        ("pfn 0x10", "pfn 0x1g", "line 6: 0x1g: not a number"),
        ("pfn 0x10", "pfn +1", "line 6: +1: not a number"),
        ("pfn 0x10", "pfn 0x10000000000", "line 6: 0x10000000000: "),
        (
            "pat\n",
            "pat saved\n",
            "line 6: end of line: an access is missing",
        ),
        (
            "0xfee00..0xfee01",
            "0x0..0x2",
            "line 7: 0x0..0x2: not behind the range before",
        ),
        (
            "0xfee00..0xfee01",
            "0xffffffffff..0x10000000001",
            "line 7: 0xffffffffff..0x10000000001: frames of more",
        ),
        (
            "0xfee00..0xfee01",
            "0x1000000000..0x1000000001",
            "line 7: 0x1000000000..0x1000000001: beyond what",
        ),
        (
            "gen 0x6",
            "gen 0x80000",
            "line 7: 0x80000: more than an entry can hold",
        ),
        (
            "spte 0 0",
            "spte 1 0",
            "line 9: 1: not the last table, which is 0",
        ),
        (
            "spte 0 0",
            "spte 0 512",
            "line 9: 512: an index is at most 511",
        ),
        (
            "  table 0 l4 gfn 0x0\n",
            "",
            "line 8: spte: no range of frames",
        ),
        (&good, "", "line 1: end of text: the header is missing"),
    ] {
        let broken = good.replacen(from, to, 1);
        let said = broken.parse::<Dump>().unwrap_err().to_string();
        assert!(said.starts_with(error), "{said}\n{broken}");
    }
}

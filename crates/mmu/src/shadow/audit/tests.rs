//! One fault for every code, planted in a VM of pages that is sound otherwise.

use slat_memslot::{Gfn, Level};

use super::ShadowCode as Code;
use crate::host::Host;
use crate::role::RoleFlag;
use crate::shadow::page::{NxDisallowed, PageId, SpteRef};
use crate::shadow::tests::World;
use crate::spte::{Npt, Spte};

type Mmu = crate::shadow::ShadowMmu<Npt>;

/// A guest with four levels of tables, one of the last level out of step, and a direct page under a huge leaf.
fn world() -> World<Npt> {
    let mut world = World::paged(&Host::shadow(40));
    world.map_small(0x40_0000, 0x500);
    world.map_small(0x40_1000, 0x501);
    world.map_huge(0x80_0000, 0x600);
    world.touch(0x40_0000);
    world.touch(0x40_1000);
    world.touch(0x80_0000);
    // The guest maps its own last-level table, and writes to it.
    world.write_own_table(0x40_2000, 0x40_0000);
    assert_eq!(world.audit(), []);
    world
}

fn page(mmu: &Mmu, wanted: impl Fn(&crate::shadow::PageInfo) -> bool) -> PageId {
    let found = mmu.active().find(wanted);
    found.expect("the world has such a page").page
}

fn unsync(mmu: &Mmu) -> PageId {
    page(mmu, |page| page.unsync)
}

fn last_level_in_step(mmu: &Mmu) -> PageId {
    page(mmu, |page| page.role.level() == Level::L1 && !page.unsync)
}

fn upper(mmu: &Mmu) -> PageId {
    page(mmu, |page| {
        page.role.level() == Level::L2 && !page.role.is_direct()
    })
}

/// A present entry of a page.
fn present(mmu: &Mmu, id: PageId) -> SpteRef {
    let found = (0..512).find(|index| mmu.pages.get(id).entry(*index).is_present());
    let index = found.expect("an entry is present");
    SpteRef { page: id, index }
}

fn store(mmu: &mut Mmu, at: SpteRef, raw: u64) {
    mmu.pages
        .get_mut(at.page)
        .replace(at.index, Spte::from_raw(raw));
}

fn plant(code: Code, world: &mut World<Npt>) {
    let mmu = &mut world.mmu;
    match code {
        Code::LeafNotListed => {
            let at = present(mmu, last_level_in_step(mmu));
            let gfn = mmu.pages.get(at.page).gfn_of(at.index);
            let as_id = slat_memslot::AsId::NORMAL;
            let mut head = mmu.frames.leafs(as_id, Level::L1, gfn);
            assert!(mmu.lists.remove(&mut head, at));
            mmu.frames.set_leafs(as_id, Level::L1, gfn, head);
        }
        Code::StaleListEntry => {
            let at = present(mmu, last_level_in_step(mmu));
            store(mmu, at, 1 << 63);
        }
        Code::ParentNotListed => {
            let at = present(mmu, upper(mmu));
            let link = mmu.pages.get(at.page).entry(at.index).raw();
            store(mmu, SpteRef { index: 300, ..at }, link);
        }
        Code::StaleParent => {
            let at = present(mmu, upper(mmu));
            store(mmu, at, 1 << 63);
        }
        Code::DanglingLink => {
            let at = present(mmu, upper(mmu));
            store(mmu, at, 0x7fff_f000 | 0x827);
        }
        Code::LinearGfn => {
            let mut direct = World::direct(&Host::npt(40));
            direct.touch(0x40_0000);
            let at = present(
                &direct.mmu,
                page(&direct.mmu, |page| page.role.level() == Level::L2),
            );
            let child = page(&direct.mmu, |page| page.role.level() == Level::L1);
            direct.mmu.pages.get_mut(child).gfn = Gfn::new(0x600);
            assert!(direct.mmu.pages.get(at.page).entry(at.index).is_present());
            *world = direct;
        }
        Code::TrackCount => mmu.frames.track(slat_memslot::AsId::NORMAL, Gfn::new(0x77)),
        Code::WritableTable => {
            let table = unsync(mmu);
            mmu.stats.mmu_unsync -= 1;
            mmu.pages.get_mut(table).unsync = false;
        }
        Code::HugeCount => mmu
            .frames
            .allow_huge(slat_memslot::AsId::NORMAL, Gfn::new(4)),
        Code::UnsyncPage => {
            let above = upper(mmu);
            mmu.pages.get_mut(above).unsync = true;
        }
        Code::UnsyncMarks => {
            let marked = |page: &crate::shadow::PageInfo| {
                page.role.level() == Level::L2 && mmu.pages.get(page.page).unsync_children.count > 0
            };
            let above = page(mmu, marked);
            mmu.pages.get_mut(above).unsync_children = Default::default();
        }
        Code::ActivePages => {
            let id = last_level_in_step(mmu);
            mmu.pages.retire(id);
        }
        Code::UsedCount => mmu.pages.used += 1,
        Code::LeafCount => mmu.stats.pages_4k += 1,
        Code::IndirectCount => mmu.indirect += 1,
        Code::UnsyncCount => mmu.stats.mmu_unsync += 1,
        Code::NonpresentValue => {
            let at = SpteRef {
                index: 511,
                page: last_level_in_step(mmu),
            };
            store(mmu, at, 0x42);
        }
        Code::RootRoleMismatch => {
            let role = world.roots.mmu.role();
            world.roots.mmu.init(role.with(RoleFlag::GuestMode));
        }
        Code::WaitingPage => {
            let id = last_level_in_step(mmu);
            let page = mmu.pages.get_mut(id);
            page.role = page.role.with(RoleFlag::Invalid);
        }
        Code::SamePageTwice => {
            let (one, two) = (last_level_in_step(mmu), unsync(mmu));
            let (gfn, role) = (mmu.pages.get(two).gfn, mmu.pages.get(two).role);
            let page = mmu.pages.get_mut(one);
            (page.gfn, page.role) = (gfn, role);
        }
        Code::NxPages => {
            let id = last_level_in_step(mmu);
            mmu.pages.get_mut(id).nx = NxDisallowed::Recoverable;
        }
    }
}

#[test]
fn every_fault_is_found() {
    for &code in Code::ALL {
        let mut world = world();
        plant(code, &mut world);
        let found = world.audit();
        assert!(
            found.iter().any(|violation| violation.code == code),
            "{code} is not among {found:?}"
        );
    }
}

fn finds_active_pages(world: &World<Npt>) {
    let active = |one: &super::ShadowViolation| one.code == Code::ActivePages;
    assert!(world.audit().iter().any(active), "{:?}", world.audit());
}

/// A list that comes back to a page, from its end and from its middle, is found and does not hold the audit up.
#[test]
fn a_circle_of_active_pages_is_found() {
    let count = world().mmu.active().count();
    for place in [1, count / 2, count - 1] {
        let mut world = world();
        let pages: Vec<PageId> = world.mmu.active().map(|page| page.page).collect();
        world.mmu.pages.get_mut(pages[place]).older = Some(pages[0]);
        finds_active_pages(&world);
        let mut world = self::world();
        world.mmu.pages.get_mut(pages[count - 1 - place]).newer = Some(pages[count - 1]);
        finds_active_pages(&world);
    }
}

/// A list that leads to a page that is gone is found, too.
#[test]
fn an_active_page_that_is_gone_is_found() {
    let mut world = world();
    let id = last_level_in_step(&world.mmu);
    world.mmu.pages.remove(id);
    finds_active_pages(&world);
}

/// Codes are numbered in order, and the page has each with its rule.
#[test]
fn the_documentation_has_every_code() {
    let page = include_str!("../../../../../docs/shadow.md");
    for (number, &code) in (1..).zip(Code::ALL) {
        assert_eq!(code.number(), number);
        assert_eq!(code.to_string(), format!("S{number:02} {}", code.name()));
        let row = format!("| S{number:02} | `{}` | {} |", code.name(), code.rule());
        assert!(page.contains(&row), "{row} is not in docs/shadow.md");
    }
}

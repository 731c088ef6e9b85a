//! Walks for an access, and the check behind the tables.

use super::*;
use crate::access::Access;
use crate::spte::{Fill, HostWrite, LeafRequest};

/// Denies every access to one page.
#[derive(Debug)]
struct Reserved(Pfn);

impl AccessCheck for Reserved {
    type Denied = &'static str;

    fn check(&self, access: &Translated) -> Result<(), &'static str> {
        if access.pfn == self.0 {
            return Err("another guest's");
        }
        Ok(())
    }
}

fn tables() -> (Tables<Npt, NoExternal, Reserved>, TableId) {
    let host = Host::npt(48);
    let check = Reserved(Pfn::new(0x803));
    let mut tables = Tables::with(&host, Limits::default(), NoExternal, check);
    let mut locked = tables.exclusive(Unobserved);
    let root = locked.acquire_root(role(&host)).unwrap().root();
    let root = locked.root_table(root).unwrap();
    let huge = MapRequest::page(Gfn::new(0x200), PageSize::Size2M, Pfn::new(0x800));
    let read_only = LeafRequest {
        host_write: HostWrite::Refused,
        fill: Fill::Fault,
        ..LeafRequest::new(Spte::from_raw(0), PageSize::Size4K, Pfn::new(7))
    };
    let small = MapRequest {
        access: Access::empty(),
        target: Target::Page(read_only),
        ..MapRequest::page(Gfn::new(1), PageSize::Size4K, Pfn::new(7))
    };
    let mmio = MapRequest::mmio(Gfn::new(2), slat_memslot::Generation::new(4));
    for request in [huge, small, mmio] {
        let _resolution = locked.map(root, &request).unwrap().resolution;
    }
    (tables, root)
}

#[test]
fn an_access_ends_where_the_tables_or_the_check_say() {
    let (mut tables, root) = tables();
    let locked = tables.exclusive(Unobserved);
    let ask = |gfn, access| locked.translate(root, Gfn::new(gfn), access);
    let read = Access::USER;

    let reached = ask(0x205, read | Access::WRITE).unwrap();
    assert_eq!(
        (reached.pfn, reached.level),
        (Pfn::new(0x805), slat_memslot::Level::L2)
    );
    assert_eq!(ask(0x203, read), Err(Violation::Denied("another guest's")));
    assert_eq!(ask(1, read).unwrap().pfn, Pfn::new(7));
    let refused = ask(1, Access::WRITE);
    assert!(matches!(
        refused,
        Err(Violation::Permission {
            missing: Access::WRITE,
            ..
        })
    ));
    assert!(matches!(ask(2, read), Err(Violation::Mmio { .. })));
    let absent = Violation::Absent {
        level: slat_memslot::Level::L1,
    };
    assert_eq!(ask(3, read), Err(absent));
    let absent = Violation::Absent {
        level: slat_memslot::Level::L4,
    };
    assert_eq!(ask(1 << 30, read), Err(absent));
}

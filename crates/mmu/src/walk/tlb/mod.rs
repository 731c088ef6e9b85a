//! What a vCPU remembers of its walks: translations, guest-physical pages, and tables of both dimensions.
//!
//! Like a CPU's, these caches are only right as long as whoever takes something away from a table has them flushed
//! ([`Flush`]). [`Tlb::audit`] compares what is remembered with the tables as they are, and so catches a flush that
//! was forgotten; it is the MMU's duty for the second stage, and the guest's own for its tables.
//!
//! Everything is tagged with a [`Context`]: root and role of the second stage, address space (VPID or ASID), and PCID.
//!
//! | kept | as a CPU calls it | used for |
//! |---|---|---|
//! | pages | combined mappings | an access that has been made before: no walk at all |
//! | second | guest-physical mappings | the second stage of a guest's table: no walk of the second stage |
//! | second tables | paging-structure caches | a table of the second stage above a leaf: no walk from its root |
//! | tables | paging-structure caches | a table of the guest above a leaf: no walk from the guest's root |
//! | last tables | the same, of combined mappings | the table of the guest's leaf and where it is: one entry to read |

mod access;
mod audit;
mod context;
mod flush;
mod pages;
mod second;
mod second_tables;
mod tables;
#[cfg(all(test, not(any(loom, shuttle))))]
mod tests;

pub use access::{CachedStage, TlbAccess};
pub use audit::{Contradiction, Stale};
pub use context::{AddressSpaceId, Context, Pcid};
pub use flush::Flush;
pub use pages::CachedPage;

use pages::Pages;
use second::SecondPages;
use second_tables::SecondTables;
use tables::GuestTables;

/// The caches of one vCPU.
///
/// ```
/// use slat_mmu::walk::tlb::{Flush, Tlb};
/// let mut tlb = Tlb::default();
/// tlb.flush(Flush::All);
/// assert_eq!(tlb.pages().count(), 0);
/// ```
#[derive(Clone, Debug, Default)]
pub struct Tlb {
    pages: Pages,
    second: SecondPages,
    second_tables: SecondTables,
    tables: GuestTables,
}

//! The audit: everything that has to hold of the tables, the roots and the vCPUs' roots, in one place.
//!
//! KVM checks most of it somewhere, when it happens to pass by, and warns once; some of it nobody checks. Here all
//! violations are found and named, each with a stable code ([`AuditCode`]) and its place.
//!
//! [`Tables::audit`](super::Tables::audit) looks at every entry of every table, [`audit_vcpus`] at the roots that vCPUs
//! keep. With debug assertions every exclusive operation ends with an audit, of all tables while there are few and of some of
//! them by turns when there are many; every fault ends with one of the entries on its way. Those panic.
//!
//! Who may be asked when: an audit of tables takes it for granted that nobody changes them, and an entry that another thread
//! has frozen looks like one left behind. The audit of a fault allows for others: it reads each entry once, takes frozen
//! ones for granted, and compares nothing but what does not change while a table can be reached.
//!
//! # Invariants
//! - `A01 duplicate-root`: No two valid roots have the same role.
//! - `A02 root-not-held`: A root has a reference, and a valid one the TDP MMU's own.
//! - `A03 scheduled-valid-root`: A root that waits to be zapped is invalid.
//! - `A04 zapped-root-present`: An invalid root that the TDP MMU has given up has no present entry.
//! - `A05 root-page-mismatch`: A root's table exists, has the root's role, starts at frame 0, and has no parent.
//! - `A06 root-role-impossible`: A root is direct, of level 4 or 5, with the host's A/D bits, and not for SMM and L2 at once.
//! - `A07 root-role-mismatch`: The root in use has the role that the MMU wants.
//! - `A08 obsolete-root-kept`: A vCPU that keeps an invalid root has been asked to free obsolete roots.
//! - `A09 unknown-root`: A vCPU's roots exist.
//! - `A10 root-kept-twice`: A vCPU's earlier roots differ from each other and from the one in use.
//! - `A11 special-root-kept`: An earlier root of a vCPU is never special (PAE, dummy).
//! - `A12 too-few-references`: A root has a reference for every place in a vCPU's cache that holds it.
//! - `A13 dangling-link`: A link leads to a table that exists.
//! - `A14 level-mismatch`: A link leads one level down.
//! - `A15 role-mismatch`: A table has the role of the table above, but for the level and for `invalid`, which roots alone are.
//! - `A16 gfn-mismatch`: A table starts at the frame of the entry that links to it.
//! - `A17 parent-mismatch`: A table knows the entry that links to it.
//! - `A18 linked-twice`: No two entries or roots lead to the same table.
//! - `A19 cycle`: No table leads back to itself.
//! - `A20 table-unaligned`: A table starts where tables of its level start.
//! - `A21 beyond-max-gfn`: No present entry is for a frame beyond the last that can be mapped.
//! - `A22 table-count`: The count of tables is the number of linked ones.
//! - `A23 leaf-count`: The counts of leaves are the numbers of leaves.
//! - `A24 full-mismatch`: A table that is known to be full holds nothing but leaves.
//! - `A25 leaked-table`: A table that was given out is linked, a root's, waits, or is lost.
//! - `A26 freed-table-linked`: A table that was freed, or waits to be, is not linked and not a root's.
//! - `A27 retired-table-present`: A table that waits to be freed has no present entry.
//! - `A28 mirror-without-owner`: There is a mirror only where somebody owns the real tables.
//! - `A29 nonpresent-value`: What is not present is empty, frozen, or an MMIO entry.
//! - `A30 frozen-left-behind`: No entry is frozen while nobody works on the tables.
//! - `A31 reserved-bits`: A present entry has no bit that hardware reserves.
//! - `A32 writable-triple`: Host-writable, MMU-writable, writable: each only with the one before.
//! - `A33 page-size-bit`: Bit 7 is set in leaves of levels 2 and 3, and nowhere else.
//! - `A34 ad-type`: The A/D type of a leaf is that of its table's role, that of a link the host's.
//! - `A35 saved-permissions`: Permissions are saved only in an entry that is access-tracked.
//! - `A36 suppress-ve`: A present EPT entry never raises a #VE (bit 63).
//! - `A37 stray-bits`: A leaf has all bits that KVM always sets and none that it never sets.
//! - `A38 leaf-unaligned`: A leaf's page starts where pages of its size start.
//! - `A39 link-bits`: A link allows everything and says nothing else.
//! - `A40 encryption-bit`: Every link and every leaf of ordinary memory has the C-bit if the host uses it.
//! - `A41 executable-huge-leaf`: No huge leaf is executable under the mitigation of iTLB multihit.
//! - `A42 mmio-bits`: An MMIO entry has the bits of its frame, access and generation, and no others.
//! - `A43 mmio-gfn`: An MMIO entry is for the frame that it is found at, and not beyond the last.
//! - `A44 mmio-generation`: An MMIO entry's generation is not from the future.
//! - `A45 empty-mismatch`: A table of 4 KiB entries that is known to be empty holds no leaf.
//!
//! What the tables cannot tell is left out: whether a page is the slot's, whether a slot is logged, whether a leaf without
//! the C-bit is the host's MMIO (unless [`HostMmio`] says that there is none).
//!
//! KVM counterparts: `tdp_mmu.c:handle_changed_spte`, `spte.h:check_spte_writable_invariants`, `spte.h:is_ept_ve_possible`,
//! `CONFIG_KVM_PROVE_MMU`; the audit that a root has its MMU's role was asked for in 2022 and is in no kernel looked at.

mod code;
mod context;
mod entry;
mod memory;
mod root;
mod step;
#[cfg(all(test, not(any(loom, shuttle))))]
mod tests;
mod tree;
mod vcpu;
mod violation;

pub use code::AuditCode;
pub use context::{AuditContext, HostMmio};
pub use vcpu::audit_vcpus;
pub use violation::{EntryAt, Evidence, Subject, Violation};

pub(super) use step::StepCursor;

use context::FrozenEntries;
use root::Below;
use tree::Audit;

use super::hooks::External;
use super::tables::Tables;
use crate::roots::VcpuMmu;
use crate::spte::Format;

impl<F: Format, X: External<F>, C> Tables<F, X, C> {
    /// Audits all tables and roots, and gives every violation; see the [module](self) for what is checked.
    ///
    /// Right only while nobody changes the tables: with the lock held for writing, or when all is quiet. Tables of roots
    /// that were given up must have been handed to [`Locked::free_root`](super::Locked::free_root), or count as leaked.
    /// Nothing is allocated unless something is wrong.
    ///
    /// ```
    /// use slat_memslot::{Gfn, PageSize};
    /// use slat_mmu::role::{VcpuState, root_role_for_tdp};
    /// use slat_mmu::tdp::{MapRequest, Tables, Unobserved, audit::AuditContext};
    /// use slat_mmu::{host::Host, spte::{Ept, Pfn}};
    ///
    /// let host = Host::ept(46);
    /// let (tables, mut observer) = (Tables::<Ept>::new(&host), Unobserved);
    /// let mut reader = tables.reader().unwrap();
    /// let mut shared = tables.shared(&mut reader, &mut observer);
    /// let role = root_role_for_tdp(&VcpuState::default(), &host.tdp().unwrap());
    /// let root = shared.acquire_root(role).unwrap().root();
    /// let table = shared.root_table(root).unwrap();
    /// let request = MapRequest::page(Gfn::new(7), PageSize::Size4K, Pfn::new(0x4007));
    /// let _mapped = shared.map(table, &request).unwrap();
    /// drop(shared);
    /// assert_eq!(tables.audit(&AuditContext::default()), []);
    /// ```
    pub fn audit(&self, context: &AuditContext) -> Vec<Violation> {
        let mut audit = Audit::new(self, context, FrozenEntries::LeftBehind);
        audit.everything();
        audit.check_leaks();
        audit.violations
    }
}

impl<F: Format, X, C> Tables<F, X, C> {
    /// Audits the roots that a vCPU keeps; see [`audit_vcpus`]. Others may work meanwhile.
    pub fn audit_vcpu(&self, vcpu: &VcpuMmu) -> Vec<Violation> {
        audit_vcpus(&self.roots, &[vcpu])
    }
}

impl<F: Format, X: External<F>, C> Audit<'_, F, X, C> {
    /// All but leaks.
    fn everything(&mut self) {
        self.roots(Below::Walked);
        self.check_freed();
        self.check_counts();
    }
}

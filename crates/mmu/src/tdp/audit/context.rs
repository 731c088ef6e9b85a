//! What the tables themselves do not say.

use slat_memslot::{AsId, Generation};

use crate::role::PageRole;
use crate::spte::{Codec, Format, NxHugePages};

/// Whether pages of the host's devices are mapped, which have no C-bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum HostMmio {
    /// They may be: a leaf without the C-bit may be one.
    #[default]
    Possible,
    /// They are not.
    Absent,
}

/// What an audit cannot see in the tables. By default it knows nothing, and checks less.
///
/// ```
/// use slat_memslot::{AsId, Generation};
/// use slat_mmu::spte::NxHugePages;
/// use slat_mmu::tdp::audit::AuditContext;
/// let context = AuditContext {
///     nx_huge_pages: NxHugePages::On,
///     ..AuditContext::default()
/// };
/// let context = context.with_generation(AsId::NORMAL, Generation::new(6));
/// # let _ = context;
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct AuditContext {
    /// Whether huge leaves must not be executable, and never were allowed to be.
    pub nx_huge_pages: NxHugePages,
    /// Whether pages of the host's devices are mapped.
    pub host_mmio: HostMmio,
    /// The current generation of slots, by address space.
    pub generations: [Option<Generation>; 2],
}

impl AuditContext {
    /// With the current generation of slots of an address space.
    #[must_use]
    pub const fn with_generation(mut self, as_id: AsId, generation: Generation) -> Self {
        self.generations[as_id.index()] = Some(generation);
        self
    }

    /// For a tree that is on its way out: its entries may be from before the number wrapped around.
    pub(super) const fn without_generations(mut self) -> Self {
        self.generations = [None; 2];
        self
    }

    /// The current generation as an MMIO entry of a table would have it.
    pub(super) fn mmio_generation<F: Format>(
        &self,
        codec: &Codec<F>,
        role: PageRole,
    ) -> Option<u64> {
        let current = self.generations[role.as_id().index()]?;
        Some(codec.mmio_generation(current).raw())
    }
}

/// What a frozen entry means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FrozenEntries {
    /// Another thread works on it.
    Allowed,
    /// It was left behind.
    LeftBehind,
}

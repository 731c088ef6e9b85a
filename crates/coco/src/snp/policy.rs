//! What a host does when a guest's access does not fit what it knows.

/// The three ways discussed when nested RMP faults were first handled in KVM (kvm list, July 2021).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum RmpFaultPolicy {
    /// Memory attributes are the truth. An access that does not fit them goes to userspace; the reverse map follows when a
    /// page is prepared and when it is freed; an RMP fault only takes entries of 2 MiB apart. Merged in 6.11.
    #[default]
    Upstream,
    /// Every RMP fault walks the nested tables and changes the reverse map to fit the access, under no lock. Proposed in
    /// `handle_rmp_page_fault` (RFC v4 37/40); one page is behind a frame, whether private or shared.
    Rfc2021,
    /// A page-state change is mandatory: an access that does not fit the attributes is the guest's error, and is told to it.
    /// Nothing goes to userspace.
    Strict,
}

impl RmpFaultPolicy {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Upstream, Self::Rfc2021, Self::Strict];

    /// Whether private pages come from a file of their own.
    pub const fn has_file(self) -> bool {
        !matches!(self, Self::Rfc2021)
    }
}

//! Pages of the host that nobody has.

use slat_mmu::spte::Pfn;

/// A pile of free pages.
#[derive(Debug)]
pub(super) struct FreePages {
    next: u64,
    end: u64,
    returned: Vec<Pfn>,
}

impl FreePages {
    pub(super) const fn new(first: Pfn, end: Pfn) -> Self {
        Self {
            next: first.raw(),
            end: end.raw(),
            returned: Vec::new(),
        }
    }

    /// A page, the one that came back last if there is one.
    pub(super) fn take(&mut self) -> Option<Pfn> {
        if let Some(page) = self.returned.pop() {
            return Some(page);
        }
        let page = (self.next < self.end).then_some(Pfn::new(self.next));
        self.next += u64::from(page.is_some());
        page
    }

    pub(super) fn give_back(&mut self, page: Pfn) {
        self.returned.push(page);
    }

    /// How many are out.
    pub(super) fn used(&self, first: Pfn) -> u64 {
        self.next - first.raw() - self.returned.len() as u64
    }
}

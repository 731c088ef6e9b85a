//! Where events go.

use slat_mmu::tdp::{Event, Fast, Observer};

use crate::traces::Predicted;

/// Keeps what happens, in order.
#[derive(Debug, Default)]
pub(crate) struct Sink {
    pub(crate) events: Vec<Predicted>,
    /// Who faults, and where.
    pub(crate) vcpu: u32,
    pub(crate) address: u64,
}

impl<F> Observer<F> for Sink {
    const EVENTS: bool = true;

    fn event(&mut self, event: Event<F>) {
        if let Event::FastFault { old, new, fast, .. } = event {
            self.events.push(Predicted::FastPageFault {
                vcpu: self.vcpu,
                gva: self.address,
                old: old.raw(),
                new: new.raw(),
                spurious: fast == Fast::Spurious,
                fixed: matches!(fast, Fast::Fixed { .. }),
            });
        }
        self.events.extend(Predicted::from_event(&event));
    }
}

impl Extend<Predicted> for Sink {
    fn extend<I: IntoIterator<Item = Predicted>>(&mut self, more: I) {
        self.events.extend(more);
    }
}

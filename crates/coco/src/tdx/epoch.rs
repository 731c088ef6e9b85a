//! When no TLB can hold a translation of a blocked range any more.
//!
//! Every vCPU that enters is counted in the TD's epoch. Blocking a range notes the epoch in which it took place. The
//! range has been tracked when nobody who entered in that epoch or earlier is inside: a later entry has flushed.

/// A TD's epoch and the vCPUs inside (`TDCS.EPOCH_TRACKING`).
///
/// ```
/// use slat_coco::tdx::Epochs;
///
/// let mut epochs = Epochs::new();
/// let (entered, _) = epochs.enter(0);
/// let blocked = epochs.current();
/// assert!(epochs.track() && !epochs.is_tracked(blocked), "a vCPU is inside");
/// epochs.exit(entered);
/// assert!(epochs.is_tracked(blocked));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Epochs {
    epoch: u64,
    /// How many vCPUs are inside, by the parity of the epoch in which they entered.
    inside: [u16; 2],
}

impl Default for Epochs {
    fn default() -> Self {
        Self::new()
    }
}

impl Epochs {
    /// What a new TD begins with: epoch 1, nobody inside.
    pub const fn new() -> Self {
        Self {
            epoch: 1,
            inside: [0; 2],
        }
    }

    /// The TD's epoch.
    pub const fn current(&self) -> u64 {
        self.epoch
    }

    /// How many vCPUs are inside, by the parity of the epoch in which they entered.
    pub const fn inside(&self) -> [u16; 2] {
        self.inside
    }

    /// A vCPU enters that entered in epoch `last` before. Gives its epoch, and whether it has to flush its TLB.
    #[must_use]
    pub const fn enter(&mut self, last: u64) -> (u64, bool) {
        self.inside[parity(self.epoch)] += 1;
        (self.epoch, self.epoch != last)
    }

    /// A vCPU exits that entered in this epoch.
    pub const fn exit(&mut self, entered: u64) {
        self.inside[parity(entered)] -= 1;
    }

    /// Begins the next epoch, if nobody is inside who entered before the present one.
    #[must_use]
    pub const fn track(&mut self) -> bool {
        if self.inside[parity(self.epoch + 1)] != 0 {
            return false;
        }
        self.epoch += 1;
        true
    }

    /// Begins the next epoch whoever is inside: a fault to find.
    pub(crate) const fn plant_next(&mut self) {
        self.epoch += 1;
    }

    /// Whether nobody can hold a translation of what was blocked in this epoch.
    pub const fn is_tracked(&self, blocked: u64) -> bool {
        let before = self.epoch - 1;
        blocked < before || blocked == before && self.inside[parity(blocked)] == 0
    }
}

const fn parity(epoch: u64) -> usize {
    (epoch & 1) as usize
}

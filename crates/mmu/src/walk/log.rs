//! What a walk does, step by step, for whoever wants to know.

use slat_memslot::{Gpa, Level};

use crate::access::Access;

/// An entry that a walk has read (`kvm_mmu_paging_element`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Step {
    /// The level of its table; 3 for a pointer of PAE paging.
    pub level: Level,
    /// Where it is, as the guest counts; nothing for a pointer of PAE paging, which is a register.
    pub place: Option<Gpa>,
    /// The entry as it was read.
    pub entry: u64,
    /// What the entries above allow together (`guest_walker.pt_access`).
    pub above: Access,
    /// What they and this one allow together.
    pub rights: Access,
}

/// An entry that a walk has marked as accessed or dirty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mark {
    /// The level of its table.
    pub level: Level,
    /// Where it is, as the guest counts. KVM logs its page as dirty.
    pub place: Gpa,
    /// What it was.
    pub old: u64,
    /// What it is.
    pub new: u64,
    /// Whether it was written; else its memory can only be read and the mark is left out.
    pub written: bool,
}

/// Hears of each step of a walk. `()` hears nothing and costs nothing.
pub trait WalkObserver {
    /// Whether it hears anything.
    const OBSERVES: bool = true;

    /// An entry was read. It has not been checked yet.
    #[inline]
    fn step(&mut self, step: &Step) {
        let _ = step;
    }

    /// An entry was marked.
    #[inline]
    fn mark(&mut self, mark: &Mark) {
        let _ = mark;
    }

    /// An entry has changed since it was read, so that it is not marked. KVM traces marks before it tries to make them.
    #[inline]
    fn changed(&mut self, tried: &Mark) {
        let _ = tried;
    }

    /// An entry had changed before it could be marked: the walk starts again from the top.
    #[inline]
    fn restart(&mut self) {}
}

impl WalkObserver for () {
    const OBSERVES: bool = false;
}

impl<O: WalkObserver + ?Sized> WalkObserver for &mut O {
    const OBSERVES: bool = O::OBSERVES;

    #[inline]
    fn step(&mut self, step: &Step) {
        (**self).step(step);
    }

    #[inline]
    fn mark(&mut self, mark: &Mark) {
        (**self).mark(mark);
    }

    #[inline]
    fn changed(&mut self, tried: &Mark) {
        (**self).changed(tried);
    }

    #[inline]
    fn restart(&mut self) {
        (**self).restart();
    }
}

/// The entries of the last walk, lowest level last: what shadow paging needs of it (`struct guest_walker`).
///
/// ```
/// use slat_memslot::{Gpa, Gva, Level};
/// use slat_mmu::role::{Cr0, Cr4, Efer, VcpuState};
/// use slat_mmu::walk::{ErrorCode, GuestCpu, GuestPaging, Unnested, WalkTrail};
///
/// let mut memory = vec![0_u64; 4 * 512];
/// // One page of 2 MiB at 4 MiB, two tables above it.
/// (memory[0], memory[512], memory[1024]) = (0x1007, 0x2007, 0x40_0087);
/// let vcpu = VcpuState {
///     cr0: Cr0::PG | Cr0::PE | Cr0::WP,
///     cr4: Cr4::PAE,
///     efer: Efer::LME | Efer::LMA | Efer::NX,
///     ..VcpuState::default()
/// };
/// let paging = GuestPaging::new(&vcpu, &GuestCpu::new(46));
/// let mut trail = WalkTrail::default();
/// let found = paging.walk(memory.as_slice(), &mut Unnested, &mut trail, Gva::new(0x1234), ErrorCode::WRITE)?;
/// assert_eq!(found.address, Gpa::new(0x40_1234));
/// let tables: Vec<_> = trail.steps().iter().map(|step| (step.level, step.place)).collect();
/// assert_eq!(tables, [
///     (Level::L4, Some(Gpa::new(0))),
///     (Level::L3, Some(Gpa::new(0x1000))),
///     (Level::L2, Some(Gpa::new(0x2000))),
/// ]);
/// # Ok::<(), slat_mmu::walk::WalkFault>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct WalkTrail {
    steps: [Option<Step>; 5],
    count: usize,
}

impl WalkTrail {
    /// The entries that were read, highest level first.
    pub fn steps(&self) -> Vec<Step> {
        self.iter().copied().collect()
    }

    /// The same without a list.
    pub fn iter(&self) -> impl Iterator<Item = &Step> {
        self.steps[..self.count].iter().flatten()
    }

    /// The entry of a level, if the walk came so far.
    pub fn at(&self, level: Level) -> Option<&Step> {
        self.iter().find(|step| step.level == level)
    }

    /// Forgets everything: before another walk.
    pub const fn clear(&mut self) {
        self.count = 0;
    }
}

impl WalkObserver for WalkTrail {
    fn step(&mut self, step: &Step) {
        // A walk from the top begins with its highest level.
        let begins = match self.iter().last() {
            Some(last) => last.level <= step.level,
            None => true,
        };
        if begins {
            self.clear();
        }
        if let Some(place) = self.steps.get_mut(self.count) {
            *place = Some(*step);
            self.count += 1;
        }
    }

    fn restart(&mut self) {
        self.clear();
    }
}

/// Everything that a walk did, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WalkEvent {
    /// An entry was read.
    Step(Step),
    /// An entry was marked.
    Mark(Mark),
    /// The walk started again.
    Restart,
}

impl WalkObserver for Vec<WalkEvent> {
    fn step(&mut self, step: &Step) {
        self.push(WalkEvent::Step(*step));
    }

    fn mark(&mut self, mark: &Mark) {
        self.push(WalkEvent::Mark(*mark));
    }

    fn restart(&mut self) {
        self.push(WalkEvent::Restart);
    }
}

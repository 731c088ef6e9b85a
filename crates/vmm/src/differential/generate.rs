//! Random calls, biased towards the edges of what the VM has.

mod files;
mod logs;
mod regions;
mod vm;

use slat_memslot::{
    AddressSpace, AsId, Buffer, Call, FileCall, Memory, PAGE_SHIFT, Profile, Region, Slot,
};

use slat_mmu::host::Host;

use super::Config;
use super::dice::Dice;
use crate::Areas;

/// A part of the memory interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Area {
    /// Setting regions.
    Slots,
    /// guest_memfd: files, their mappings, binding to slots.
    Gmem,
    /// Memory attributes.
    Attributes,
    /// Dirty logs, with guest writes.
    DirtyLog,
    /// Dirty rings, with guest writes.
    DirtyRing,
    /// Capabilities and quirks.
    Caps,
    /// Pre-faulting.
    PreFault,
    /// Everything else that lays memory out.
    Layout,
}

impl Area {
    /// Every area.
    pub const ALL: [Self; 8] = [
        Self::Slots,
        Self::Gmem,
        Self::Attributes,
        Self::DirtyLog,
        Self::DirtyRing,
        Self::Caps,
        Self::PreFault,
        Self::Layout,
    ];

    /// The word on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Slots => "slots",
            Self::Gmem => "gmem",
            Self::Attributes => "attributes",
            Self::DirtyLog => "dirty-log",
            Self::DirtyRing => "dirty-ring",
            Self::Caps => "caps",
            Self::PreFault => "pre-fault",
            Self::Layout => "layout",
        }
    }

    /// What of this area a kernel cannot show, or a model that knows this of its host not follow; if anything.
    pub fn missing(self, profile: &Profile, host: Option<&Host>) -> Option<&'static str> {
        match self {
            Self::Slots if !profile.smm.get() => {
                Some("address space 1 (KVM_CAP_MULTI_ADDRESS_SPACE is not 2)")
            }
            Self::Gmem if !profile.guest_memfd.get() => {
                Some("all but ENOTTY (KVM_CAP_GUEST_MEMFD is 0)")
            }
            Self::Attributes if !profile.attributes.get() => {
                Some("all but ENOTTY (KVM_CAP_MEMORY_ATTRIBUTES is 0)")
            }
            Self::PreFault if !profile.tdp.get() => Some("success (KVM_CAP_PRE_FAULT_MEMORY is 0)"),
            Self::DirtyRing if !profile.dirty_ring.get() => {
                Some("all but EINVAL (KVM_CAP_DIRTY_LOG_RING is 0)")
            }
            Self::DirtyLog if profile.tdp.get() && host.is_none() => {
                Some("guest accesses, whose logging depends on page tables of an unknown host")
            }
            _ => None,
        }
    }

    /// How often the area's turn comes, against the others.
    const fn weight(self) -> u64 {
        match self {
            Self::Slots => 45,
            Self::Gmem => 20,
            Self::DirtyLog => 16,
            Self::DirtyRing => 6,
            Self::Caps => 5,
            Self::Attributes | Self::PreFault | Self::Layout => 3,
        }
    }
}

/// The largest slot that is made on purpose: its metadata costs a kernel without two-dimensional paging a millisecond.
const MAX_SLOT_PAGES: u64 = 1 << 18;
/// The most memory that a file is made to hold.
const MAX_ALLOCATION: u64 = 1 << 20;
/// The longest mapping that is made.
const MAX_MAPPING: u64 = 1 << 30;
/// The longest range whose attributes are set.
const MAX_ATTRIBUTES: u64 = 64 << 20;
/// The most files of one VM, so that descriptors do not run out.
const MAX_FILES: usize = 48;

/// Makes calls.
pub(super) struct Generator {
    dice: Dice,
    areas: Vec<Area>,
    host: Areas,
    vm_types: Vec<u32>,
    logged_mode: bool,
    /// Where user space ends, and where guest-physical memory ends.
    ends: (u64, u64),
}

impl Generator {
    pub(super) fn new(config: &Config, profile: &Profile, host: Areas) -> Self {
        let vm_types = (0..32)
            .filter(|t| profile.vm_types.get() & (1 << t) != 0)
            .collect();
        Self {
            dice: Dice::new(config.seed),
            areas: config.areas.clone(),
            host,
            vm_types,
            logged_mode: false,
            ends: (
                profile.user_end.get(),
                (profile.max_gfn() + 1) << PAGE_SHIFT,
            ),
        }
    }

    pub(super) fn one_in(&mut self, n: u32) -> bool {
        self.dice.one_in(n)
    }

    /// The type of the next VM.
    pub(super) fn vm_type(&mut self) -> u32 {
        self.dice.pick(&self.vm_types)
    }

    /// A fresh VM.
    pub(super) fn begin(&mut self) {
        self.logged_mode = self.dice.percent(40);
    }

    /// The next call. Calls that would cost a kernel too much are replaced.
    pub(super) fn call(&mut self, memory: &Memory) -> Call {
        loop {
            let call = self.any_call(memory);
            if !is_too_dear(&call, memory) {
                return call;
            }
        }
    }

    fn any_call(&mut self, memory: &Memory) -> Call {
        match self.area() {
            Area::Slots => Call::SetRegion(self.region(memory)),
            Area::Gmem => self.gmem_call(memory),
            Area::Attributes => self.set_attributes(memory),
            Area::DirtyLog => self.dirty_log_call(memory),
            Area::DirtyRing => self.dirty_ring_call(memory),
            Area::Caps => self.cap_call(),
            Area::PreFault => self.pre_fault(memory),
            Area::Layout => self.layout_call(memory),
        }
    }

    fn area(&mut self) -> Area {
        let total: u64 = self.areas.iter().map(|a| a.weight()).sum();
        let mut at = self.dice.below(total.max(1));
        for area in &self.areas {
            match at.checked_sub(area.weight()) {
                Some(rest) => at = rest,
                None => return *area,
            }
        }
        Area::Slots
    }

    /// Calls whose answers show the VM's state: the log of every slot, the size of every file.
    pub(super) fn read_back(&mut self, memory: &Memory) -> Vec<Call> {
        let spaces = 0..u32::from(memory.address_space_count());
        let logs = spaces
            .flat_map(|as_id| (0..32).map(move |id| as_id << 16 | id))
            .map(|slot| Call::GetDirtyLog {
                slot,
                buffer: Buffer::Good,
            });
        let files = self
            .files(memory)
            .into_iter()
            .map(|id| Call::File(id, FileCall::Size));
        logs.chain(files).collect()
    }
}

/// Whether a call would succeed at a price that random testing should not pay: a huge slot's metadata, gigabytes of
/// page cache, all of the address space.
pub(super) fn is_too_dear(call: &Call, memory: &Memory) -> bool {
    let dear = match call {
        Call::SetRegion(Region { size, .. }) => size >> 12 > MAX_SLOT_PAGES,
        Call::File(_, FileCall::Fallocate { mode, len, .. }) => {
            mode & 2 == 0 && *len > MAX_ALLOCATION
        }
        Call::File(_, FileCall::Mmap { len, .. }) => *len > MAX_MAPPING,
        // The kernel keeps an entry per frame.
        Call::SetAttributes { size, .. } => *size > MAX_ATTRIBUTES,
        Call::CreateGmem { .. } => return memory.gmem_files() >= MAX_FILES,
        Call::CreateVcpu => return memory.vcpus() >= 3,
        _ => false,
    };
    dear && memory.check(call).is_ok()
}

/// A slot that exists, in any address space.
fn live_slot<'m>(dice: &mut Dice, memory: &'m Memory) -> Option<&'m Slot> {
    let spaces = || [AsId::NORMAL, AsId::SMM].map(|as_id| memory.space(as_id));
    let count = spaces().iter().map(|space| space.len()).sum::<usize>() as u64;
    let at = (count != 0).then(|| dice.below(count))?;
    let mut slots = spaces().into_iter().flat_map(AddressSpace::iter);
    slots.nth(usize::try_from(at).ok()?)
}

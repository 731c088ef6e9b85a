//! The VMM's side: what it answers when a vCPU exits.

use slat_memslot::{
    Attributes, Call, FileCall, GmemId, Outcome, PAGE_SIZE, Pages, Region, SlotKey, TdxCall,
    TdxConversion, TdxHost,
};

use crate::{CallError, MemoryVm};

/// `KVM_EXIT_MEMORY_FAULT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryFaultExit {
    /// Whether the access was private (`KVM_MEMORY_EXIT_FLAG_PRIVATE`).
    pub private: bool,
    /// First byte.
    pub gpa: u64,
    /// Length in bytes.
    pub size: u64,
}

/// `KVM_EXIT_HYPERCALL` with `KVM_HC_MAP_GPA_RANGE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapGpaExit {
    /// First byte.
    pub gpa: u64,
    /// How many pages of 4 KiB.
    pub pages: u64,
    /// What they shall be.
    pub to: TdxConversion,
}

/// Whoever answers a TD's exits.
pub trait Vmm<V: MemoryVm> {
    /// The guest touched memory from the other side than its attribute says.
    ///
    /// # Errors
    /// The VMM gives up.
    fn memory_fault(&mut self, vm: &mut V, exit: &MemoryFaultExit) -> Result<(), CallError>;

    /// The guest wants to convert. Gives what goes into `hypercall.ret`.
    ///
    /// # Errors
    /// The VMM gives up.
    fn map_gpa(&mut self, vm: &mut V, exit: &MapGpaExit) -> Result<u64, CallError>;

    /// Memory is plugged: a slot of so many pages at an address.
    ///
    /// # Errors
    /// The VMM gives up.
    fn plug(&mut self, vm: &mut V, slot: u16, gpa: u64, pages: Pages) -> Result<(), CallError>;

    /// Memory is unplugged.
    ///
    /// # Errors
    /// The VMM gives up.
    fn unplug(&mut self, vm: &mut V, slot: u16) -> Result<(), CallError>;
}

/// What a VMM does besides setting attributes when memory is converted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Conversions {
    /// It gives pages of guest_memfd back when the guest asked for memory to be shared.
    pub punches_when_asked: bool,
    /// The same after a memory fault.
    pub punches_after_fault: bool,
    /// It gives host pages back when memory becomes private.
    pub discards: bool,
}

impl Conversions {
    /// Everything that has to be given back is.
    pub const CAREFUL: Self = Self {
        punches_when_asked: true,
        punches_after_fault: true,
        discards: true,
    };
}

/// One slot with its file.
#[derive(Clone, Copy, Debug)]
struct Ram {
    slot: u16,
    gpa: u64,
    size: u64,
    hva: u64,
    file: GmemId,
}

/// A VMM that converts in the right order: the attribute first, which zaps, then what lies behind the side that went.
#[derive(Clone, Debug)]
pub struct CarefulVmm {
    rams: Vec<Ram>,
    conversions: Conversions,
    next_hva: u64,
}

const FALLOC_FL_KEEP_SIZE: u32 = 1;
const FALLOC_FL_PUNCH_HOLE: u32 = 2;

impl CarefulVmm {
    /// A VMM without memory yet, whose slots' host memory begins here.
    pub(super) const fn new(hva: u64) -> Self {
        Self {
            rams: Vec::new(),
            conversions: Conversions::CAREFUL,
            next_hva: hva,
        }
    }

    /// The same with other manners.
    #[must_use]
    pub const fn with(mut self, conversions: Conversions) -> Self {
        self.conversions = conversions;
        self
    }

    /// Sets the attribute of a range, slot by slot; parts that no slot holds are left alone.
    fn convert<V: MemoryVm>(
        &self,
        vm: &mut V,
        (gpa, size): (u64, u64),
        private: bool,
        punch: bool,
    ) -> Result<(), CallError> {
        for ram in &self.rams {
            let (from, to) = (gpa.max(ram.gpa), (gpa + size).min(ram.gpa + ram.size));
            if from >= to {
                continue;
            }
            let attributes = if private {
                Attributes::PRIVATE.bits()
            } else {
                0
            };
            vm.set_memory_attributes(from, to - from, attributes)?;
            if !private && punch {
                punch_hole(vm, ram, from - ram.gpa, to - from)?;
            }
            if private && self.conversions.discards {
                let (address, size) = (from, to - from);
                let discard = TdxHost::Discard { address, size };
                vm.call(&Call::Tdx(TdxCall::Host(discard)))?;
            }
        }
        Ok(())
    }
}

fn punch_hole<V: MemoryVm>(
    vm: &mut V,
    ram: &Ram,
    offset: u64,
    len: u64,
) -> Result<Outcome, CallError> {
    let mode = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE;
    let punch = FileCall::Fallocate { mode, offset, len };
    vm.call(&Call::File(ram.file, punch))
}

impl<V: MemoryVm> Vmm<V> for CarefulVmm {
    fn memory_fault(&mut self, vm: &mut V, exit: &MemoryFaultExit) -> Result<(), CallError> {
        let punch = self.conversions.punches_after_fault;
        self.convert(vm, (exit.gpa, exit.size), exit.private, punch)
    }

    fn map_gpa(&mut self, vm: &mut V, exit: &MapGpaExit) -> Result<u64, CallError> {
        let private = exit.to == TdxConversion::Private;
        let punch = self.conversions.punches_when_asked;
        let range = (exit.gpa, exit.pages * PAGE_SIZE);
        self.convert(vm, range, private, punch)?;
        Ok(0)
    }

    fn plug(&mut self, vm: &mut V, slot: u16, gpa: u64, pages: Pages) -> Result<(), CallError> {
        let size = pages.bytes();
        let file = vm.create_guest_memfd(size, 0)?;
        let hva = self.next_hva;
        let region = Region::new(SlotKey::normal(slot), gpa, size, hva).with_gmem(file, 0);
        vm.set_user_memory_region(&region)?;
        vm.set_memory_attributes(gpa, size, Attributes::PRIVATE.bits())?;
        self.next_hva += size;
        self.rams.push(Ram {
            slot,
            gpa,
            size,
            hva,
            file,
        });
        Ok(())
    }

    fn unplug(&mut self, vm: &mut V, slot: u16) -> Result<(), CallError> {
        let Some(at) = self.rams.iter().position(|ram| ram.slot == slot) else {
            return Ok(());
        };
        let ram = self.rams.remove(at);
        vm.set_user_memory_region(&Region::delete(SlotKey::normal(slot)))?;
        vm.set_memory_attributes(ram.gpa, ram.size, 0)?;
        vm.call(&Call::File(ram.file, FileCall::Close)).map(drop)
    }
}

impl CarefulVmm {
    /// Where the host memory of a slot begins.
    pub fn host_memory(&self, slot: u16) -> Option<u64> {
        let ram = self.rams.iter().find(|ram| ram.slot == slot);
        ram.map(|ram| ram.hva)
    }
}

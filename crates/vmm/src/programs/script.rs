//! Programs being written, by what they have in common.

use slat_memslot::{AsId, Gfn, Gpa, Hva, PAGE_SHIFT, Pages, Quirks, SlotFlags, VmType};

use crate::live::{Area, Kind, Program};
use crate::traces::{GuestAct, Op, SetRegion, Sregs};

/// Host memory: instructions, small pages, huge pages.
const AREAS: [Area; 3] = [
    Area::at(0, Pages::new(0x10), Kind::Small),
    Area::at(1, Pages::new(0x800), Kind::Small),
    Area::at(2, Pages::new(0x800), Kind::Transparent),
];

/// Frames of a huge page.
pub(super) const HUGE: u64 = 0x200;
/// The only attribute there is.
pub(super) const PRIVATE: u64 = 1 << 3;
/// The flag of a slot whose writes are logged.
pub(super) const LOGGED: u32 = SlotFlags::LOG_DIRTY_PAGES.bits();

/// What a slot's memory in the host is made of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    Small,
    Huge,
}

/// A slot of `pages` frames from `gfn`, over host memory that begins `from` pages into its area.
pub(super) const fn slot(id: u16, (gfn, pages): (u64, u64), of: Of, from: u64) -> SetRegion {
    let area = match of {
        Of::Small => AREAS[1],
        Of::Huge => AREAS[2],
    };
    SetRegion {
        slot: id,
        as_id: AsId::NORMAL,
        flags: 0,
        gfn: Gfn::new(gfn),
        pages: Pages::new(pages),
        gmem_offset: None,
        hva: Some(Hva::new(area.start.raw() + (from << PAGE_SHIFT))),
    }
}

/// The same with a guest_memfd for what is private, from this page of the file.
pub(super) const fn with_file(region: SetRegion, page: u64) -> SetRegion {
    SetRegion {
        flags: SlotFlags::GUEST_MEMFD.bits(),
        gmem_offset: Some(page << PAGE_SHIFT),
        ..region
    }
}

/// A program while it is written.
pub(super) struct Script {
    ops: Vec<Op<'static>>,
    has_file: bool,
}

impl Script {
    /// A VM without quirks switched off, before it has a vCPU. Each program says its parameters; none leaves NX huge pages
    /// behind.
    pub(super) fn vm(vm_type: VmType) -> Self {
        let mut script = Self {
            ops: Vec::new(),
            has_file: false,
        };
        script.parameter("eager_page_split", true);
        script.parameter("nx_huge_pages", false);
        let vm_type = u64::from(vm_type.raw());
        script.then(Op::CreateVm { vm_type });
        script
    }

    /// A default VM with a vCPU, and the slot of its instructions.
    pub(super) fn plain() -> Self {
        Self::vm(VmType::Default).with_vcpu()
    }

    /// A VM with private memory, a vCPU, a guest_memfd of 16 MiB, and the slot of its instructions.
    pub(super) fn protected() -> Self {
        let mut script = Self::vm(VmType::SwProtected).with_vcpu();
        script.then(Op::CreateGmem { size: 16 << 20 });
        script.has_file = true;
        script
    }

    /// A vCPU, and the slot of its instructions.
    pub(super) fn with_vcpu(mut self) -> Self {
        let vcpu = 0;
        let sregs = Sregs::Flat;
        self.then(Op::CreateVcpu { id: vcpu });
        self.then(Op::SetCpuid {
            vcpu,
            max_phys_addr: None,
        });
        self.then(Op::SetSregs {
            vcpu: Some(vcpu),
            sregs,
        });
        self.set(code(AsId::NORMAL));
        self
    }

    /// Only what a deleted slot had mapped goes from now on.
    pub(super) fn without_zap_quirk(mut self) -> Self {
        self.then(Op::EnableCap {
            cap: "DISABLE_QUIRKS2",
            bits: Some("SLOT_ZAP_ALL"),
            arg: Quirks::SLOT_ZAP_ALL.bits(),
        });
        self
    }

    /// `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`: 1, or 3 for logs that begin full.
    pub(super) fn with_manual_protection(mut self, arg: u64) -> Self {
        self.then(Op::EnableCap {
            cap: "MANUAL_DIRTY_LOG_PROTECT2",
            bits: None,
            arg,
        });
        self
    }

    pub(super) fn then(&mut self, op: Op<'static>) {
        self.ops.push(op);
    }

    pub(super) fn parameter(&mut self, name: &'static str, on: bool) {
        let value = if on { "Y" } else { "N" };
        self.then(Op::ModuleParameter { name, value });
    }

    pub(super) fn set(&mut self, region: SetRegion) {
        self.then(Op::SetRegion(region));
    }

    /// Sets a slot to what it is: nothing happens, but the statistics are told before.
    pub(super) fn count_leaves(&mut self) {
        self.set(code(AsId::NORMAL));
    }

    pub(super) fn delete(&mut self, region: SetRegion) {
        let pages = Pages::new(0);
        self.set(SetRegion { pages, ..region });
    }

    pub(super) fn act(&mut self, act: GuestAct<'static>) {
        self.then(Op::Guest { vcpu: 0, act });
    }

    pub(super) fn read(&mut self, gfn: u64) {
        self.act(GuestAct::Read(gpa(gfn)));
    }

    pub(super) fn write(&mut self, gfn: u64) {
        self.act(GuestAct::Write(gpa(gfn)));
    }

    pub(super) fn execute(&mut self, gfn: u64) {
        self.act(GuestAct::Execute(gpa(gfn)));
    }

    /// The guest enters and halts: what waits for the next entry is done.
    pub(super) fn enter(&mut self) {
        self.act(GuestAct::Halt { at: None });
    }

    /// The guest writes to all pages of a range.
    pub(super) fn write_all(&mut self, gfn: u64, pages: u64) {
        let from = gpa(gfn);
        self.act(GuestAct::WritePages { pages, from });
    }

    /// Makes frames private, or shared.
    pub(super) fn convert(&mut self, gfn: u64, pages: u64, attributes: u64) {
        self.then(Op::SetAttributes {
            gfn: Gfn::new(gfn),
            pages: Pages::new(pages),
            attributes,
        });
    }

    pub(super) fn pre_fault(&mut self, gfn: u64, pages: u64) {
        self.pre_fault_with(gfn, pages, 0);
    }

    pub(super) fn pre_fault_with(&mut self, gfn: u64, pages: u64, flags: u64) {
        self.then(Op::PreFault {
            vcpu: 0,
            gfn: Gfn::new(gfn),
            pages: Pages::new(pages),
            flags: Some(flags),
        });
    }

    pub(super) fn read_log(&mut self, slot: u16) {
        self.then(Op::GetDirtyLog { slot });
    }

    pub(super) fn clear_log(&mut self, slot: u16, first: u64, pages: u64) {
        self.then(Op::ClearDirtyLog {
            slot,
            first,
            pages: Pages::new(pages),
        });
    }

    /// The end: everything is closed.
    pub(super) fn end(mut self) -> Program {
        self.then(Op::CloseVcpu { id: 0 });
        if self.has_file {
            self.then(Op::CloseGmem);
        }
        self.then(Op::CloseVm);
        Program {
            areas: AREAS.to_vec(),
            ops: self.ops,
        }
    }
}

const fn gpa(gfn: u64) -> Gpa {
    Gpa::new(gfn << PAGE_SHIFT)
}

/// The slot of the guest's instructions.
pub(super) const fn code(as_id: AsId) -> SetRegion {
    AREAS[0].slot_of_code(as_id)
}

//! Devices that reach a guest's shared memory, and conversions that take it from them and give it back: what a VMM with VFIO puts
//! behind `DeviceMaps`. A container is played, since one needs a device; slots and attributes are the model's, `/dev/kvm`'s, or both.
//!
//! `cargo run --example vfio -- --on both`

use std::error::Error;
use std::io::{self, Write};

use slat::coco::convert::{
    Contract, Devices, Ended, Executor, HostPart, MapGpaRangeExit, Outcome as Answer, Path, Pause,
    Plan, Policy, PrivateMap, Request, Run, Step,
};
use slat::coco::migration::Status;
use slat::memslot::{
    Call, Errno, Gfn, GfnRange, GuestContents, Hva, Memory, Pages, Region, SlotKey, VmType,
};
use slat::vmm::MemoryVm;
use slat::vmm::convert::{DeviceMaps, VmExecutor};

mod on;
mod type1;

use type1::{Container, Type1};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// Where the guest's memory begins, and how much there is.
const DATA: (u64, u64) = (2 * MIB, 8 * MIB);

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    run(&arguments, &mut io::stdout().lock())
}

// --- To be copied --------------------------------------------------------------------------------------------------------

/// A container as conversions need it. A device's addresses are the guest's.
struct Iommu<'c, C> {
    container: &'c mut C,
    /// What is mapped by one call, and can be unmapped without its neighbours. Conversions of less are refused, since the rest of a
    /// mapping cannot stay mapped while a part goes: a device at work on it would fault. 4 KiB is always right, and 65,535 mappings
    /// of it are 256 MiB; guests that share memory by 2 MiB only can have that.
    granule: u64,
}

impl<C: Container> DeviceMaps for Iommu<'_, C> {
    /// All of it or nothing.
    fn map(&mut self, part: &HostPart) -> Result<(), Errno> {
        let (start, hva) = (part.range.start().gpa().raw(), part.hva.raw());
        let end = part.range.end().gpa().raw();
        let mut at = start;
        while at < end {
            let next = (at - at % self.granule + self.granule).min(end);
            if let Err(errno) = self.container.map_dma(at, next - at, hva + (at - start)) {
                // These are whole mappings, which go without fail.
                if at > start {
                    let _bytes = self.container.unmap_dma(start, at - start)?;
                }
                return Err(errno);
            }
            at = next;
        }
        Ok(())
    }

    /// VFIO's answer comes when the IOMMU's TLB is flushed and the pages are let go. A range that cuts a mapping is refused, and nothing
    /// was done.
    fn unmap(&mut self, part: &HostPart) -> Result<(), Errno> {
        let (start, size) = (part.range.start().gpa().raw(), part.range.pages().bytes());
        let _bytes = self.container.unmap_dma(start, size)?;
        Ok(())
    }
}

/// Shared memory is mapped for devices; what is left is given back, once they do not reach it.
fn policy() -> Policy {
    Policy {
        devices: Devices::Mapped,
        ..Policy::default()
    }
}

/// One request of the guest, to its end. Gives what the hypercall returns.
fn convert(vmm: &mut Vmm<'_>, exit: &MapGpaRangeExit) -> Result<u64, Box<dyn Error>> {
    let returns = |answer: Answer| answer.ret(Contract::Since2026, Path::Hypercall);
    let Ok(request) = Request::from_hypercall(exit) else {
        return Ok(returns(Answer::Refused));
    };
    let Ok(plan) = Plan::new(vmm.memory, &request, &policy()) else {
        return Ok(returns(Answer::Refused));
    };
    let mut run = Run::new(plan);
    let ended = loop {
        let stopped = run.to_end(&mut vmm.executor());
        match stopped {
            Ok(ended) => break ended,
            // Interrupted; it goes on where it was.
            Err(Pause::Interrupted { .. }) => {}
            // No vCPU may run before this is over.
            Err(Pause::Halfway { step, errno }) => vmm.wait_for(&step, errno),
        }
    };
    if let Ended::TakenBack { why } = ended {
        vmm.notes.push(format!("taken back: {why}"));
    }
    Ok(returns(ended.outcome()))
}

// --- The rest plays it -----------------------------------------------------------------------------------------------------

/// The whole example, written to `out`.
pub(crate) fn run(arguments: &[&str], out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    let mut chosen = on::chosen(arguments, &[VmType::SwProtected, VmType::Default])?;
    writeln!(out, "{}", chosen.title())?;
    if chosen.memory.vm_type() != VmType::SwProtected {
        writeln!(out, "this kernel has no private memory to show")?;
        return Ok(());
    }
    let mut vmm = Vmm {
        host: chosen.areas.writable.raw(),
        vm: chosen.vm.as_mut(),
        memory: &mut chosen.memory,
        container: Type1::default(),
        granule: 64 * KIB,
        fails: None,
        notes: Vec::new(),
    };
    vmm.lay_out()?;
    writeln!(out, "devices: {}", vmm.devices())?;
    let (to_private, to_shared) = (0x10, 0);
    for (title, gpa, size, to, trouble) in [
        ("2 MiB shall be private", 4 * MIB, 2 * MIB, to_private, None),
        ("a part of it shared again", 4 * MIB, MIB, to_shared, None),
        (
            "less than is mapped at a time",
            8 * MIB,
            4 * KIB,
            to_private,
            None,
        ),
        (
            "the attributes cannot be set",
            8 * MIB,
            MIB,
            to_private,
            Some(Trouble::Attributes),
        ),
        (
            "no more memory may be pinned",
            5 * MIB,
            MIB,
            to_shared,
            Some(Trouble::LockLimit),
        ),
        (
            "the same on the way back",
            8 * MIB,
            MIB,
            to_private,
            Some(Trouble::Both),
        ),
    ] {
        writeln!(out, "\n# {title}")?;
        vmm.provoke(trouble);
        let exit = MapGpaRangeExit {
            nr: GuestContents::MAP_GPA_RANGE,
            args: [gpa, size >> 12, to],
        };
        let ret = convert(&mut vmm, &exit)?;
        for note in vmm.notes.drain(..) {
            writeln!(out, "{note}")?;
        }
        writeln!(out, "the hypercall returns {}", ret as i64)?;
        writeln!(out, "devices: {}", vmm.devices())?;
    }
    writeln!(
        out,
        "\n# what is private now\n{}",
        PrivateMap::of(vmm.memory)
    )?;
    Ok(())
}

/// What goes wrong during a conversion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    /// `KVM_SET_MEMORY_ATTRIBUTES` says `ENOMEM`.
    Attributes,
    /// Not a byte more may be pinned.
    LockLimit,
    /// Both, until the VMM waits.
    Both,
}

/// A VMM: a VM, what it knows of it, and a container with its devices.
struct Vmm<'a> {
    host: u64,
    vm: &'a mut dyn MemoryVm,
    memory: &'a mut Memory,
    container: Type1,
    granule: u64,
    fails: Option<Errno>,
    notes: Vec<String>,
}

impl Vmm<'_> {
    /// 8 MiB in one slot, all of it shared and mapped for devices.
    fn lay_out(&mut self) -> Result<(), Box<dyn Error>> {
        let (gpa, size) = DATA;
        let file = self.vm.create_guest_memfd(size, 0)?;
        let _known = self.memory.create_gmem(size, 0)?;
        let slot = Region::new(SlotKey::normal(0), gpa, size, self.host + gpa).with_gmem(file, 0);
        let call = Call::SetRegion(slot);
        self.vm.call(&call)?;
        let _known = self.memory.call(&call);
        let range = GfnRange::new(Gfn::new(gpa >> 12), Pages::in_bytes(size));
        let range = range.ok_or("a slot is not empty")?;
        let hva = Hva::new(self.host + gpa);
        let granule = self.granule;
        let container = &mut self.container;
        let mapped = Iommu { container, granule }.map(&HostPart { range, hva });
        mapped.map_err(|errno| errno.to_string().into())
    }

    fn executor(&mut self) -> Steps<'_> {
        let (container, granule) = (&mut self.container, self.granule);
        let iommu = Iommu { container, granule };
        let vm: &mut dyn MemoryVm = &mut *self.vm;
        Steps {
            executor: VmExecutor::new(vm).with_devices(iommu),
            memory: self.memory,
            fails: &mut self.fails,
            notes: &mut self.notes,
        }
    }

    fn provoke(&mut self, trouble: Option<Trouble>) {
        let has = |wanted| trouble == Some(wanted) || trouble == Some(Trouble::Both);
        self.fails = has(Trouble::Attributes).then_some(Errno::ENOMEM);
        self.container.lock_limit = match trouble {
            // Most of what the conversion lets go first is somebody else's by then.
            Some(Trouble::Both) => self.container.pinned() - MIB + 128 * KIB,
            Some(Trouble::LockLimit) => self.container.pinned(),
            _ => u64::MAX,
        };
    }

    /// Here a VMM stops its vCPUs and makes room; it may give up, but not go on.
    fn wait_for(&mut self, step: &Step, errno: Errno) {
        self.notes
            .push(format!("no vCPU runs: {step}: {errno}; room is made"));
        self.container.lock_limit = u64::MAX;
    }

    /// What devices reach, and whether any of it is private.
    fn devices(&self) -> String {
        let (gpa, size) = DATA;
        let pages = (gpa >> 12..(gpa + size) >> 12).map(Gfn::new);
        let reached = |gfn: &Gfn| self.container.translate(gfn.gpa().raw()).is_some();
        let is_private = |gfn: &Gfn| {
            let range = GfnRange::new(*gfn, Pages::new(1));
            let private = |range| self.memory.attributes().private_pages(range) > Pages::new(0);
            range.is_some_and(private)
        };
        let wrong = pages.filter(|gfn| reached(gfn) == is_private(gfn));
        format!(
            "{} KiB in {} mappings, {} pages wrong",
            self.container.pinned() / KIB,
            self.container.len(),
            wrong.count()
        )
    }
}

/// Carries steps out, says so, keeps what the VMM knows in step, and fails where it is told to.
struct Steps<'a> {
    executor: VmExecutor<'a, dyn MemoryVm + 'a, Iommu<'a, Type1>>,
    memory: &'a mut Memory,
    fails: &'a mut Option<Errno>,
    notes: &'a mut Vec<String>,
}

impl Steps<'_> {
    fn try_to(&mut self, step: &Step) -> Result<(), Errno> {
        let Step::SetAttributes { range, to } = *step else {
            return self.executor.carry_out(step);
        };
        if let Some(errno) = self.fails.take() {
            return Err(errno);
        }
        self.executor.carry_out(step)?;
        let (address, size) = (range.start().gpa().raw(), range.pages().bytes());
        let attributes = u64::from(to == Status::Private) << 3;
        let _known = self.memory.set_attributes(address, size, attributes, 0);
        Ok(())
    }
}

impl Executor for Steps<'_> {
    fn carry_out(&mut self, step: &Step) -> Result<(), Errno> {
        let result = self.try_to(step);
        self.notes.push(match &result {
            Ok(()) => step.to_string(),
            Err(errno) => format!("{step}: {errno}"),
        });
        result
    }
}

//! The machines, and a VM that is handled as a VMM does.

use slat_coco::convert::{Contract, Ended, LeftBehind, MapGpaRangeExit, Path, Policy, Request};
use slat_memslot::{
    Access, Call, ContentsCall, FileCall, GmemId, GuestContents, Outcome, Profile, Region, SlotKey,
    VmType, cap,
};
use slat_mmu::host::Host;
use slat_vmm::{Machine, MemoryVm, convert, model};

pub(crate) const PAGE: u64 = 0x1000;
pub(crate) const MIB2: u64 = 0x20_0000;
/// Where guests have their data: a multiple of 2 MiB, as the selftest's 4 GiB is, below the 4 GiB that these guests reach.
pub(crate) const DATA: u64 = 0x1000_0000;
/// What each vCPU has.
pub(crate) const PER_VCPU: u64 = MIB2 + PAGE;
/// Where the guest's instructions are.
pub(crate) const CODE: u64 = 0x1000;
/// Where the host memory of data begins in the area A.
const HOST_DATA: u64 = 0x100_0000;
/// Slots of data.
const FIRST_SLOT: u16 = 10;

const PUNCH_HOLE: u32 = 3;
const ALLOCATE: u32 = 1;

/// Runs a test on every machine there is.
pub(crate) fn on_each_machine(test: fn(&mut dyn FnMut() -> World)) {
    let profile = || Profile::named("debian-6.12.117-sw-protected").unwrap();
    let models = [
        model::Machine::new(profile()),
        model::Machine::with_host(profile(), Host::npt(40)),
        model::Machine::with_host(profile(), Host::ept(46)),
    ];
    for mut machine in models {
        test(&mut || World::new(&mut machine));
    }
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    on_the_kernel(test);
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn on_the_kernel(test: fn(&mut dyn FnMut() -> World)) {
    match super::kernel::machine() {
        Ok(mut machine) => {
            test(&mut || World::new(&mut machine));
            println!("{}: as on the model", machine.profile().name);
        }
        Err(why) => println!("skipped on the kernel: {why}"),
    }
}

/// A software-protected VM with code in slot 0 and data in others, and what its VMM knows.
pub(crate) struct World {
    pub(crate) vm: Box<dyn MemoryVm>,
    /// Where the host's area begins.
    host: u64,
    pub(crate) file: GmemId,
    data: u64,
    /// What a conversion asked for by the guest does with the file: punched to shared, allocated to private.
    pub(crate) fallocate: bool,
}

impl World {
    /// Nothing but code and one vCPU.
    fn new<M: Machine>(machine: &mut M) -> Self
    where
        M::Vm: 'static,
    {
        let host = machine.areas().writable.raw();
        let mut vm = machine.create_vm(VmType::SwProtected.raw()).unwrap();
        let code = Region::new(SlotKey::normal(0), 0, 0x1_0000, host);
        vm.set_user_memory_region(&code).unwrap();
        vm.enable_cap(cap::EXIT_HYPERCALL, 1 << 12).unwrap();
        vm.call(&Call::CreateVcpu).unwrap();
        Self {
            vm: Box::new(vm),
            host,
            file: GmemId::new(0),
            data: 0,
            fallocate: false,
        }
    }

    /// With so much data for each of some vCPUs, in some slots of one file.
    pub(crate) fn with_data(mut self, vcpus: u64, slots: u64) -> Self {
        // Slots end at pages, wherever that is.
        let slot_size = (vcpus * PER_VCPU).div_ceil(slots).next_multiple_of(PAGE);
        self.data = slot_size * slots;
        self.file = self.vm.create_guest_memfd(self.data, 0).unwrap();
        for number in 0..slots {
            let offset = number * slot_size;
            let key = SlotKey::normal(FIRST_SLOT + u16::try_from(number).unwrap());
            let slot = Region::new(key, DATA + offset, slot_size, self.host_of(DATA + offset));
            let slot = slot.with_gmem(self.file, offset);
            self.vm.set_user_memory_region(&slot).unwrap();
        }
        for _ in 1..vcpus {
            self.vm.call(&Call::CreateVcpu).unwrap();
        }
        // The host's area is what the VM before has left there.
        let (hva, size) = (self.host_of(DATA), self.data);
        self.contents(ContentsCall::Discard { hva, size });
        self
    }

    /// Where data is in the host.
    pub(crate) fn host_of(&self, gpa: u64) -> u64 {
        self.host + HOST_DATA + (gpa - DATA)
    }

    fn contents(&mut self, call: ContentsCall) -> Outcome {
        self.vm.call(&Call::Contents(call)).unwrap()
    }

    /// A vCPU does something; its exits are handled, unless they are faults.
    pub(crate) fn guest(&mut self, vcpu: u32, act: GuestContents) -> Outcome {
        let outcome = self.contents(ContentsCall::Guest {
            vcpu,
            code: CODE,
            act,
        });
        match outcome {
            Outcome::MapGpaRange {
                gpa,
                pages,
                attributes,
            } => {
                let exit = MapGpaRangeExit {
                    nr: GuestContents::MAP_GPA_RANGE,
                    args: [gpa, pages, attributes],
                };
                let ret = self.handle(&exit);
                self.contents(ContentsCall::ReturnHypercall { vcpu, ret })
            }
            other => other,
        }
    }

    /// What the VMM does with the exit, and answers. The old side stays, as in the selftest, but for what `fallocate` says.
    fn handle(&mut self, exit: &MapGpaRangeExit) -> u64 {
        let (contract, path) = (Contract::Since2026, Path::Hypercall);
        let refused = slat_coco::convert::Outcome::Refused.ret(contract, path);
        let Ok(request) = Request::from_hypercall(exit) else {
            return refused;
        };
        let policy = Policy {
            left_behind: LeftBehind::Keep,
            ..Policy::default()
        };
        let Ok(run) = convert::convert(self.vm.as_mut(), &request, &policy) else {
            return refused;
        };
        if self.fallocate {
            let private = exit.args[2] & 0x10 != 0;
            let mode = if private { ALLOCATE } else { PUNCH_HOLE };
            self.fallocate(mode, exit.args[0], exit.args[1] * PAGE)
                .unwrap();
        }
        run.ended()
            .map_or(refused, |ended: Ended| ended.outcome().ret(contract, path))
    }

    /// `fallocate` on the file behind some data.
    pub(crate) fn fallocate(&mut self, mode: u32, gpa: u64, len: u64) -> slat_vmm::CallResult {
        let call = FileCall::Fallocate {
            mode,
            offset: gpa - DATA,
            len,
        };
        self.vm.call(&Call::File(self.file, call))
    }

    pub(crate) fn punch_hole(&mut self, gpa: u64, len: u64) {
        self.fallocate(PUNCH_HOLE, gpa, len).unwrap();
    }

    /// The guest asks for a conversion, and hears that it is done.
    pub(crate) fn ask(&mut self, vcpu: u32, gpa: u64, size: u64, private: bool) {
        let act = GuestContents::MapGpaRange {
            gpa,
            pages: size / PAGE,
            attributes: if private { 0x10 } else { 0 },
        };
        assert_eq!(
            self.guest(vcpu, act),
            Outcome::Value(0),
            "{gpa:#x} {size:#x}"
        );
    }

    pub(crate) fn guest_fills(&mut self, vcpu: u32, gpa: u64, size: u64, byte: u8) {
        let filled = self.guest(vcpu, GuestContents::Fill { gpa, size, byte });
        assert_eq!(filled, Outcome::Done, "{gpa:#x} {size:#x}");
    }

    /// The guest finds this byte everywhere.
    pub(crate) fn guest_finds(&mut self, vcpu: u32, gpa: u64, size: u64, byte: u8) {
        if size == 0 {
            return;
        }
        let found = self.guest(vcpu, GuestContents::Check { gpa, size, byte });
        assert_eq!(found, Outcome::Value(1), "{gpa:#x} {size:#x} {byte:#x}");
    }

    pub(crate) fn host_fills(&mut self, gpa: u64, size: u64, byte: u8) {
        let hva = self.host_of(gpa);
        self.contents(ContentsCall::HostFill { hva, size, byte });
    }

    /// The host finds this byte everywhere behind data.
    pub(crate) fn host_finds(&mut self, gpa: u64, size: u64, byte: u8) {
        let hva = self.host_of(gpa);
        let found = self.contents(ContentsCall::HostCheck { hva, size, byte });
        assert_eq!(found, Outcome::Value(1), "{gpa:#x} {size:#x} {byte:#x}");
    }

    /// `KVM_EXIT_MEMORY_FAULT` for private memory at a page.
    pub(crate) fn private_fault(gpa: u64) -> Outcome {
        Outcome::Access(Access::MemoryFault {
            flags: 8,
            gpa,
            size: PAGE,
        })
    }
}

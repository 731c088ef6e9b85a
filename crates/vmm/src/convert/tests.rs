//! Exits decoded, and conversions on model VMs page by page.

use slat_coco::convert::{Cause, Ended, LeftBehind, Policy, Request};
use slat_coco::migration::Status;
use slat_memslot::{
    Access, Call, ContentsCall, Gfn, GfnRange, GuestContents, Outcome, PageSize, Pages, Profile,
    Region, SlotKey,
};
use slat_mmu::host::Host;

use super::convert;
use crate::{Machine, MemoryVm, model};

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod exits {
    use kvm_ioctls::{HypercallExit, VcpuExit};
    use slat_coco::convert::{DecodeError, MapGpaRangeExit, MemoryFaultExit, Request};
    use slat_memslot::Gpa;

    use crate::convert::decode;

    /// Every word, size and alignment says the same through `VcpuExit` as through plain fields.
    #[test]
    fn exits_say_what_their_fields_say() {
        let mut compared = 0;
        for attributes in (0..0x100).chain((8..64).map(|bit| 1 << bit)) {
            for gpa in [0, 0x1000, 0x20_0000, 0x800, !0xfff] {
                for pages in [0, 1, 511, 512, 513, !0] {
                    for nr in [12, 9] {
                        let mut ret = 0;
                        let args = [gpa, pages, attributes, 1, 2, 3];
                        let exit = VcpuExit::Hypercall(HypercallExit {
                            nr,
                            args,
                            ret: &mut ret,
                            longmode: 1,
                        });
                        let args = [gpa, pages, attributes];
                        let fields = Request::from_hypercall(&MapGpaRangeExit { nr, args });
                        assert_eq!(decode(&exit), Some(fields));
                        compared += 1;
                    }
                }
            }
        }
        assert_eq!(compared, 312 * 5 * 6 * 2);
    }

    #[test]
    fn memory_faults_say_what_their_fields_say() {
        for flags in (0..64).map(|bit| 1 << bit).chain([0, 9]) {
            for (gpa, size) in [(0x1000, 0x1000), (0x1234, 0x1000), (0, 0), (0, 0x800)] {
                let exit = VcpuExit::MemoryFault { flags, gpa, size };
                let gpa = Gpa::new(gpa);
                let fields = Request::from_memory_fault(&MemoryFaultExit { flags, gpa, size });
                assert_eq!(decode(&exit), Some(fields));
            }
        }
        // 39 is the number of the exit, which libkrun's author once took for the flag.
        let exit = VcpuExit::MemoryFault {
            flags: 39,
            gpa: 0,
            size: 0x1000,
        };
        assert_eq!(decode(&exit), Some(Err(DecodeError::UnknownFlags(39))));
    }
}

const DATA: u64 = 0x20_0000;
const SIZE: u64 = 0x40_0000;
/// Host memory of slots.
const HOST: u64 = 0x7f00_0000_0000;

fn machines() -> Vec<model::Machine> {
    let profile = || Profile::named("debian-6.12.117-sw-protected").expect("a profile");
    vec![
        model::Machine::new(profile()),
        model::Machine::with_host(profile(), Host::npt(40)),
        model::Machine::with_host(profile(), Host::ept(46)),
    ]
}

/// Code at 0, data in two slots of one file from 2 MiB on.
fn vm(machine: &mut model::Machine) -> model::Vm {
    let mut vm = machine.create_vm(1).expect("a software-protected VM");
    let file = vm.create_guest_memfd(SIZE, 0).expect("a file");
    let half = SIZE / 2;
    let slots = [
        Region::new(SlotKey::normal(0), 0, 0x10_0000, HOST),
        Region::new(SlotKey::normal(1), DATA, half, HOST + DATA).with_gmem(file, 0),
        Region::new(SlotKey::normal(2), DATA + half, half, HOST + DATA + half)
            .with_gmem(file, half),
    ];
    for slot in slots {
        vm.set_user_memory_region(&slot).expect("a slot");
    }
    vm.call(&Call::CreateVcpu).expect("a vCPU");
    vm
}

fn guest(vm: &mut impl MemoryVm, act: GuestContents) -> Outcome {
    let (vcpu, code) = (0, 0x1000);
    let call = Call::Contents(ContentsCall::Guest { vcpu, code, act });
    vm.call(&call).expect("a guest that runs")
}

fn fill(vm: &mut impl MemoryVm, gpa: u64, size: u64, byte: u8) -> Outcome {
    guest(vm, GuestContents::Fill { gpa, size, byte })
}

fn holds(vm: &mut impl MemoryVm, gpa: u64, size: u64, byte: u8) -> bool {
    guest(vm, GuestContents::Check { gpa, size, byte }) == Outcome::Value(1)
}

fn request(gpa: u64, size: u64, to: Status) -> Request {
    Request {
        range: GfnRange::new(Gfn::new(gpa >> 12), Pages::in_bytes(size)).expect("a range"),
        to,
        hint: PageSize::Size4K,
        cause: Cause::Hypercall,
    }
}

#[test]
fn what_a_guest_finds_after_conversions() {
    for mut machine in machines() {
        let vm = &mut vm(&mut machine);
        let keep = Policy {
            left_behind: LeftBehind::Keep,
            ..Policy::default()
        };
        let go = |vm: &mut model::Vm, to, policy: &Policy| {
            let run = convert(vm, &request(DATA, SIZE, to), policy).expect("a run");
            assert_eq!(run.ended(), Some(Ended::Converted));
        };
        assert_eq!(fill(vm, DATA, SIZE, 0xaa), Outcome::Done);
        go(vm, Status::Private, &keep);
        assert!(holds(vm, DATA, SIZE, 0));
        assert_eq!(fill(vm, DATA, SIZE, 0xbb), Outcome::Done);
        go(vm, Status::Shared, &keep);
        assert!(holds(vm, DATA, SIZE, 0xaa), "what was shared was kept");
        go(vm, Status::Private, &Policy::default());
        assert!(holds(vm, DATA, SIZE, 0xbb), "what was private was kept");
        go(vm, Status::Shared, &Policy::default());
        assert!(holds(vm, DATA, SIZE, 0), "what was shared was discarded");
        go(vm, Status::Private, &Policy::default());
        assert!(holds(vm, DATA, SIZE, 0), "what was private was discarded");
    }
}

/// The hypercall as KVM checks it, whatever the machine.
#[test]
fn hypercalls() {
    for mut machine in machines() {
        let vm = &mut vm(&mut machine);
        let ask = |gpa, pages, attributes| GuestContents::MapGpaRange {
            gpa,
            pages,
            attributes,
        };
        let no_such = Outcome::Value(GuestContents::NO_SUCH_HYPERCALL);
        assert_eq!(guest(vm, ask(DATA, 1, 0x10)), no_such);
        vm.enable_cap(slat_memslot::cap::EXIT_HYPERCALL, 1 << 12)
            .expect("enabled");
        for (gpa, pages) in [(DATA + 1, 1), (DATA, 0), (0x800, 1)] {
            let refused = Outcome::Value(GuestContents::NO_SUCH_RANGE);
            assert_eq!(
                guest(vm, ask(gpa, pages, 0x10)),
                refused,
                "{gpa:#x} {pages}"
            );
        }
        // Attributes are not looked at, and a guest in 32-bit mode has 32 bits.
        for attributes in [0, 0x10, 7, 0xffff_ffff, 0x1_0000_0010] {
            let exit = guest(vm, ask(DATA | 5 << 32, 2, attributes));
            let (gpa, pages, attributes) = (DATA, 2, attributes & 0xffff_ffff);
            let wanted = Outcome::MapGpaRange {
                gpa,
                pages,
                attributes,
            };
            assert_eq!(exit, wanted);
            let (vcpu, ret) = (0, 22_u64.wrapping_neg());
            let back = Call::Contents(ContentsCall::ReturnHypercall { vcpu, ret });
            assert_eq!(vm.call(&back), Ok(Outcome::Value(0xffff_ffea)));
            assert!(vm.call(&back).is_err(), "it has asked for nothing");
        }
    }
}

/// Private frames of a slot without a file: the fault comes again, and no plan helps.
#[test]
fn a_fault_that_no_conversion_mends() {
    for mut machine in machines() {
        let vm = &mut vm(&mut machine);
        vm.set_memory_attributes(0x8000, 0x1000, 8).expect("set");
        let fault = Access::MemoryFault {
            flags: 8,
            gpa: 0x8000,
            size: 0x1000,
        };
        assert_eq!(fill(vm, 0x8000, 0x1000, 1), Outcome::Access(fault));
        let asked = Request {
            cause: Cause::MemoryFault,
            ..request(0x8000, 0x1000, Status::Private)
        };
        let run = convert(vm, &asked, &Policy::default()).expect("a run");
        assert!(run.plan().is_empty());
    }
}

//! What belongs into a VMM's exit loop for guests that make memory private and shared: decode the exit, plan, carry out, answer; what
//! the guest loses by it; and what happens when a step fails. On the model, on `/dev/kvm`, or on both with every answer compared.
//!
//! `cargo run --example convert -- --on both`

use std::error::Error;
use std::io::{self, Write};

use slat::coco::convert::{
    Contract, LeftOver, MapGpaRangeExit, Outcome as Answer, Path, Plan, Policy, PrivateMap,
    Request, Run, Step,
};
use slat::memslot::{
    Call, ContentsCall, Errno, GuestContents, Memory, Outcome, Region, SlotKey, VmType, cap,
};
use slat::vmm::MemoryVm;
use slat::vmm::convert::VmExecutor;

mod on;

const MIB: u64 = 1 << 20;
/// Where the guest's instructions are.
const CODE: u64 = 0x1000;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    run(&arguments, &mut io::stdout().lock())
}

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
        left_over: Vec::new(),
    };
    vmm.lay_out()?;
    vmm.conversions(out)?;
    vmm.failures(out)?;
    writeln!(
        out,
        "\n# what is private now\n{}",
        PrivateMap::of(vmm.memory)
    )?;
    Ok(())
}

/// A VMM: a VM, and what it knows of it.
struct Vmm<'a> {
    host: u64,
    vm: &'a mut dyn MemoryVm,
    memory: &'a mut Memory,
    left_over: Vec<LeftOver>,
}

impl Vmm<'_> {
    fn call(&mut self, call: &Call) -> Result<Outcome, Box<dyn Error>> {
        let outcome = self.vm.call(call)?;
        let _known = self.memory.call(call);
        Ok(outcome)
    }

    /// Code in a slot of its own; 8 MiB in two slots of one file, and a hole between them.
    fn lay_out(&mut self) -> Result<(), Box<dyn Error>> {
        let file = self.vm.create_guest_memfd(8 * MIB, 0)?;
        let _known = self.memory.create_gmem(8 * MIB, 0)?;
        let slot = |id, gpa, size| Region::new(SlotKey::normal(id), gpa, size, self.host + gpa);
        for region in [
            slot(0, 0, 64 << 10),
            slot(1, 2 * MIB, 4 * MIB).with_gmem(file, 0),
            slot(2, 8 * MIB, 4 * MIB).with_gmem(file, 4 * MIB),
        ] {
            self.call(&Call::SetRegion(region))?;
        }
        let (cap, flags) = (cap::EXIT_HYPERCALL, 0);
        let args = [1 << GuestContents::MAP_GPA_RANGE, 0, 0, 0];
        self.call(&Call::EnableCap { cap, flags, args })?;
        self.call(&Call::CreateVcpu)?;
        let (hva, size) = (self.host, 16 * MIB);
        self.call(&Call::Contents(ContentsCall::Discard { hva, size }))?;
        Ok(())
    }

    /// `KVM_RUN`, with whatever exits it takes: the heart of the example.
    fn run_guest(
        &mut self,
        act: GuestContents,
        out: &mut impl Write,
    ) -> Result<Outcome, Box<dyn Error>> {
        let (vcpu, code) = (0, CODE);
        let mut outcome = self.call(&Call::Contents(ContentsCall::Guest { vcpu, code, act }))?;
        while let Outcome::MapGpaRange {
            gpa,
            pages,
            attributes,
        } = outcome
        {
            let exit = MapGpaRangeExit {
                nr: GuestContents::MAP_GPA_RANGE,
                args: [gpa, pages, attributes],
            };
            let answer = self.handle(&exit, &mut |_| Ok(()), out)?;
            let ret = answer.ret(Contract::Since2026, Path::Hypercall);
            outcome = self.call(&Call::Contents(ContentsCall::ReturnHypercall { vcpu, ret }))?;
        }
        Ok(outcome)
    }

    /// An exit from its fields to the answer. A guest that asks for what cannot be hears so, and goes on.
    fn handle(
        &mut self,
        exit: &MapGpaRangeExit,
        may_fail: &mut dyn FnMut(&Step) -> Result<(), Errno>,
        out: &mut impl Write,
    ) -> Result<Answer, Box<dyn Error>> {
        let request = match Request::from_hypercall(exit) {
            Ok(request) => request,
            Err(why) => return refuse(&why, out),
        };
        let plan = match Plan::new(self.memory, &request, &Policy::default()) {
            Ok(plan) => plan,
            Err(why) => return refuse(&why, out),
        };
        write!(out, "{plan}")?;
        let mut run = Run::new(plan);
        let mut executor = Executor {
            executor: VmExecutor::new(self.vm),
            memory: self.memory,
            may_fail,
        };
        let ended = run.to_end(&mut executor)?;
        // Memory that is used twice until it can be given back.
        self.left_over.extend(run.left_over());
        let answer = ended.outcome();
        writeln!(out, "the guest hears: {answer:?}")?;
        Ok(answer)
    }

    fn conversions(&mut self, out: &mut impl Write) -> Result<(), Box<dyn Error>> {
        let (gpa, size) = (4 * MIB, 2 * MIB);
        let ask = |gpa, size, attributes| GuestContents::MapGpaRange {
            gpa,
            pages: size >> 12,
            attributes,
        };
        let fill = |byte| GuestContents::Fill { gpa, size, byte };
        let check = |byte| GuestContents::Check { gpa, size, byte };
        for (title, act) in [
            ("the guest writes shared memory", fill(1)),
            ("2 MiB shall be private", ask(gpa, size, 0x11)),
            ("what was there is gone", check(0)),
            ("the guest writes private memory", fill(2)),
            ("and asks for what it has", ask(gpa, size, 0x10)),
            ("the range ends in a hole", ask(5 * MIB, 2 * MIB, 0x10)),
            ("a hole that is shared already", ask(6 * MIB, 2 * MIB, 0)),
            ("attributes that mean nothing", ask(gpa, size, 0x30)),
            ("two slots and the hole, shared", ask(2 * MIB, 10 * MIB, 0)),
            ("what was there is gone", check(0)),
        ] {
            writeln!(out, "\n# {title}")?;
            let outcome = self.run_guest(act, out)?;
            writeln!(out, "{outcome:?}")?;
        }
        Ok(())
    }

    /// Each step fails once.
    fn failures(&mut self, out: &mut impl Write) -> Result<(), Box<dyn Error>> {
        for failing in 0..2 {
            writeln!(out, "\n# step {} fails", failing + 1)?;
            let exit = MapGpaRangeExit {
                nr: GuestContents::MAP_GPA_RANGE,
                args: [8 * MIB, 16, 0x10],
            };
            let mut steps = 0..;
            let mut may_fail = |_: &Step| match steps.next() == Some(failing) {
                true => Err(Errno::ENOMEM),
                false => Ok(()),
            };
            self.handle(&exit, &mut may_fail, out)?;
            let left_over = self.left_over.len();
            writeln!(out, "left over: {left_over}")?;
        }
        Ok(())
    }
}

fn refuse(why: &dyn Error, out: &mut impl Write) -> Result<Answer, Box<dyn Error>> {
    writeln!(out, "refused: {why}")?;
    Ok(Answer::Refused)
}

/// Carries steps out, keeps what the VMM knows in step, and fails where it is told to.
struct Executor<'a> {
    executor: VmExecutor<'a, dyn MemoryVm + 'a>,
    memory: &'a mut Memory,
    may_fail: &'a mut dyn FnMut(&Step) -> Result<(), Errno>,
}

impl slat::coco::convert::Executor for Executor<'_> {
    fn carry_out(&mut self, step: &Step) -> Result<(), Errno> {
        (self.may_fail)(step)?;
        self.executor.carry_out(step)?;
        if let Step::SetAttributes { range, to } = *step {
            let private = to == slat::coco::migration::Status::Private;
            let (address, size) = (range.start().gpa().raw(), range.pages().bytes());
            let _known = self
                .memory
                .set_attributes(address, size, u64::from(private) << 3, 0);
        }
        Ok(())
    }
}

//! An SNP guest makes pages private and shared: asked for, not asked for, and while it rewrites its own request. What the
//! host does about it under the three policies of the discussion in which KVM's handling was first proposed. At the end the
//! same on a whole VM, which a kernel may have, too.
//!
//! `cargo run --example snp_page_state -- --on model`, or `--on kvm`

use std::error::Error;
use std::io::{self, Write};
use std::sync::Arc;

use slat::coco::psc::{PscEntry, PscOperation, PscQuirks};
use slat::coco::rmp::{Asid, Rmp, RmpSize, Visibility};
use slat::coco::snp::{
    GuestOp, GuestReply, Hole, RmpFaultPolicy, SharedBuffer, SnpExit, SnpSettings, SnpVcpu, SnpVm,
    Value, Vmm,
};
use slat::memslot::{Gfn, GfnRange, Pages, Profile};
use slat::mmu::spte::Pfn;
use slat::vmm::scenario::{self, Expect, Scenario};
use slat::vmm::{self, Report, Verdict, model};

const PAGE: Gfn = Gfn::new(7);

/// A VM of type SNP from its launch on, line by line as in a scenario file.
const WHOLE_VM: &str = "
vm snp type=sev-snp
create_guest_memfd G size=64K
set_user_memory_region2 slot=0 flags=GUEST_MEMFD gpa=0 size=64K hva=A gmem=G
enable_cap EXIT_HYPERCALL args=4096
set_memory_attributes address=0 size=8K attributes=PRIVATE
create_vcpu
snp_launch_start policy=0x30000
snp_launch_update gpa=0 size=4K tag=7
snp_launch_finish
snp_read gpa=0 c=1
snp_psc entries=2:private,3:private
snp_write gpa=0x2000 c=1 tag=1
snp_validate gpa=0x2000
snp_write gpa=0x2000 c=1 tag=1
snp_host_peek gpa=0x2000
snp_write gpa=0x2000 c=0 tag=2
snp_audit
";

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    run(&arguments, &mut io::stdout().lock())
}

/// The whole example, written to `out`.
pub(crate) fn run(arguments: &[&str], out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    asked_for(out)?;
    not_asked_for(out)?;
    stale(out)?;
    rewritten(out)?;
    let scenario = scenario::parse(WHOLE_VM)?;
    let report = match arguments {
        [] | ["--on", "model"] => {
            let profile = Profile::named("linux-6.12").ok_or("a profile is missing")?;
            vmm::run(
                &scenario,
                &mut model::Machine::for_scenario(profile, &scenario),
            )?
        }
        ["--on", "kvm"] => on_the_kernel(&scenario)?,
        _ => return Err("usage: --on model|kvm".into()),
    };
    whole_vm(&report, out)
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn on_the_kernel(scenario: &Scenario) -> Result<Report, Box<dyn Error>> {
    Ok(vmm::run(scenario, &mut vmm::kvm::Machine::open()?)?)
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn on_the_kernel(_: &Scenario) -> Result<Report, Box<dyn Error>> {
    Err("only Linux on x86-64 has the kernel to run on".into())
}

/// Each line and its answer; where the machine has no such VMs, why.
fn whole_vm(report: &Report, out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    writeln!(out, "\n# A whole VM")?;
    for step in &report.steps {
        let answer = match (&step.verdict, &step.snp, &step.result) {
            (Verdict::NotTried { why }, ..) => {
                writeln!(out, "not tried: {why}")?;
                return Ok(());
            }
            (_, Some(answer), _) => Expect::Snp(answer.clone()).to_string(),
            (_, _, Some(Ok(outcome))) => Expect::of(&Ok(outcome.clone())).to_string(),
            (_, _, Some(Err(error))) => error.to_string(),
            (_, None, None) => continue,
        };
        writeln!(out, "{}: {answer}", step.text)?;
    }
    Ok(())
}

fn guest(policy: RmpFaultPolicy) -> Result<(SnpVm, SnpVcpu), Box<dyn Error>> {
    let asid = Asid::new(5).ok_or("an ASID has 10 bits")?;
    let settings = SnpSettings {
        policy,
        ..SnpSettings::new(asid, 64)
    };
    let vm = SnpVm::new(settings, Arc::new(Rmp::new(0x1000)), Pfn::new(0x400))?;
    let vcpu = vm.create_vcpu()?;
    Ok((vm, vcpu))
}

fn page() -> Result<GfnRange, Box<dyn Error>> {
    Ok(GfnRange::new(PAGE, Pages::new(1)).ok_or("a page is not empty")?)
}

const fn write(visibility: Visibility, tag: u64) -> GuestOp {
    GuestOp::Write(PAGE, visibility, Value::Tag(tag))
}

fn told(reply: GuestReply) -> String {
    match reply {
        GuestReply::Done => "done".into(),
        GuestReply::Read(found) => format!("reads {found:?}"),
        GuestReply::Exit(SnpExit::MemoryFault { access, .. }) => {
            format!("exit to userspace, the access was {access:?}")
        }
        GuestReply::Exit(SnpExit::Vc(code)) => format!("#VC {code:#x}"),
        GuestReply::Exit(SnpExit::Injected(_)) => "an error for the guest".into(),
        other => format!("{other:?}"),
    }
}

/// Private, used, shared again.
fn asked_for(out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    writeln!(out, "# Asked for")?;
    let (vm, mut vcpu) = guest(RmpFaultPolicy::Upstream)?;
    vm.unshare(&mut vcpu, page()?, Vmm::CAREFUL);
    let done = vm.run(&mut vcpu, &write(Visibility::Private, 1), Vmm::CAREFUL);
    writeln!(out, "private write: {}", told(done))?;
    writeln!(out, "the host reads {:?}", vm.host_peek_private(PAGE))?;
    vm.share(&mut vcpu, page()?, Vmm::CAREFUL);
    let done = vm.run(&mut vcpu, &write(Visibility::Shared, 2), Vmm::CAREFUL);
    writeln!(out, "shared write: {}", told(done))?;
    writeln!(out, "the host reads {:?}", vm.host_read(PAGE))?;
    writeln!(out, "violations: {}", vm.audit().len())?;
    Ok(())
}

/// The page is private; another vCPU writes it as shared.
fn not_asked_for(out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    writeln!(out, "\n# Not asked for")?;
    for policy in RmpFaultPolicy::ALL {
        let (vm, mut owner) = guest(policy)?;
        let mut other = vm.create_vcpu()?;
        vm.unshare(&mut owner, page()?, Vmm::CAREFUL);
        vm.run(&mut owner, &write(Visibility::Private, 1), Vmm::CAREFUL);
        let stray = vm.run(&mut other, &write(Visibility::Shared, 2), Vmm::CAREFUL);
        let read = GuestOp::Read(PAGE, Visibility::Private);
        let kept = vm.run(&mut owner, &read, Vmm::CAREFUL);
        writeln!(
            out,
            "{policy:?}: {}; its owner: {}",
            told(stray),
            told(kept)
        )?;
    }
    Ok(())
}

/// There and back, with a hole and without.
fn stale(out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    writeln!(out, "\n# There and back")?;
    for hole in [Hole::Punched, Hole::Kept] {
        let vmm = Vmm {
            explicit: hole,
            ..Vmm::CAREFUL
        };
        let (vm, mut vcpu) = guest(RmpFaultPolicy::Upstream)?;
        vm.unshare(&mut vcpu, page()?, vmm);
        vm.run(&mut vcpu, &write(Visibility::Private, 1), vmm);
        vm.share(&mut vcpu, page()?, vmm);
        vm.unshare(&mut vcpu, page()?, vmm);
        let read = vm.run(&mut vcpu, &GuestOp::Read(PAGE, Visibility::Private), vmm);
        writeln!(out, "{hole:?}: {}", told(read))?;
    }
    Ok(())
}

/// The header says that three entries are still to do, and one of them is no operation at all.
fn rewritten(out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    writeln!(out, "\n# A hostile buffer")?;
    let (vm, _) = guest(RmpFaultPolicy::Upstream)?;
    let entry = |gfn, operation| PscEntry::new(Gfn::new(gfn), operation, RmpSize::Size4K);
    let entries = [
        entry(1, PscOperation::Private),
        entry(2, PscOperation::Unknown(9)),
        entry(1 << 30, PscOperation::Private),
    ];
    for (name, quirks) in [("KVM", PscQuirks::kvm()), ("strict", PscQuirks::strict())] {
        let buffer = SharedBuffer::new(&entries);
        let vmm = Vmm {
            quirks,
            ..Vmm::CAREFUL
        };
        let result = vm.page_state_change(&buffer, vmm);
        let cursor = buffer.header().cur_entry;
        writeln!(out, "{name}: {result:?}, stops at entry {cursor}")?;
    }
    Ok(())
}

//! An SNP guest makes pages private and shared: asked for, not asked for, and while it rewrites its own request. What the
//! host does about it under the three policies of the discussion in which KVM's handling was first proposed.
//!
//! `cargo run --example snp_page_state`

use std::error::Error;
use std::io::{self, Write};
use std::sync::Arc;

use slat::coco::psc::{PscEntry, PscOperation, PscQuirks};
use slat::coco::rmp::{Asid, Rmp, RmpSize, Visibility};
use slat::coco::snp::{
    GuestOp, GuestReply, Hole, RmpFaultPolicy, SharedBuffer, SnpExit, SnpSettings, SnpVcpu, SnpVm,
    Value, Vmm,
};
use slat::memslot::{Gfn, GfnRange, Pages};
use slat::mmu::spte::Pfn;

const PAGE: Gfn = Gfn::new(7);

fn main() -> Result<(), Box<dyn Error>> {
    run(&mut io::stdout().lock())
}

/// The whole example, written to `out`.
pub(crate) fn run(out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    asked_for(out)?;
    not_asked_for(out)?;
    stale(out)?;
    rewritten(out)
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

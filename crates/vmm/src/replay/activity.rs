//! What a guest of a recording does, access by access.

use slat_memslot::Gpa;
use slat_mmu::fault::Kind;
use slat_mmu::host::SecondStage;
use slat_mmu::role::VcpuMode;

use super::Machine;
use crate::tdp_vm::{Activity, Ending, SecondStageOfL2};
use crate::traces::GuestAct;

/// Where the recorded program puts its guest's instructions: they halt, read, write, and jump.
pub(crate) mod stub {
    pub(crate) const HALT: u64 = 0x1000;
    pub(crate) const READ: u64 = 0x1010;
    pub(crate) const WRITE: u64 = 0x1020;
    pub(crate) const JUMP: u64 = 0x1030;
    pub(crate) const VMRUN: u64 = 0x1040;
    pub(crate) const WRITE_PAGES: u64 = 0x1050;
    pub(crate) const CPUID: u64 = 0x1050;
    /// What starts a nested guest with VMX, the values that it writes into the VMCS, and where the nested guest's exits go.
    pub(crate) const VMLAUNCH: u64 = 0x2000;
    pub(crate) const VMCS_VALUES: u64 = 0x3000;
    pub(crate) const VMX_EXIT: u64 = 0x2040;
    /// In long mode: VMRUN and a halt behind it, and a write of eight bytes.
    pub(crate) const L1_VMRUN: u64 = 0x8000;
    pub(crate) const BEHIND_VMRUN: u64 = L1_VMRUN + 3;
    pub(crate) const L1_STORE: u64 = 0x8010;
    pub(crate) const BEHIND_STORE: u64 = L1_STORE + 3;
    /// Where L1 has the tables that it gives to a nested guest.
    pub(crate) const L2_TABLES: slat_memslot::Gpa = slat_memslot::Gpa::new(0xb000);
    /// The rest of the pointer to an EPT: write-back, four levels, no accessed and dirty bits.
    pub(crate) const EPT_POINTER: u64 = 6 | 3 << 3;
    /// The descriptor of the handler of invalid instructions, which nobody has set up.
    pub(crate) const INVALID_OPCODE: u64 = 6 * 8;
}

/// What a write of L2's leaves: a halt.
const WRITTEN_BY_L2: u64 = 0xf4;

/// The accesses of what a guest does, instruction fetches among them.
pub(super) fn activity(act: &GuestAct<'_>, handler: u64, machine: &Machine) -> Activity {
    let at = |address| Activity::halt(Gpa::new(address));
    match act {
        GuestAct::Halt { at: place } => at(place.map_or(stub::HALT, Gpa::raw)),
        GuestAct::Read(gpa) => at(stub::READ).step(Kind::Read, gpa.raw()),
        GuestAct::Write(gpa) => at(stub::WRITE).step(Kind::Write, gpa.raw()),
        GuestAct::Execute(gpa) => at(stub::JUMP).step(Kind::Execute, gpa.raw()),
        GuestAct::WritePages { pages, from } => {
            let write =
                |all: Activity, page| all.step(Kind::Write, from.raw().wrapping_add(page << 12));
            (0..*pages).fold(at(stub::WRITE_PAGES), write)
        }
        // Where no nested guest has started, its instructions run as any others.
        GuestAct::NestedWrite(gpa) => at(stub::WRITE).step(Kind::Write, gpa.raw()),
        GuestAct::NestedCpuid => Activity {
            mode_then: Some(VcpuMode::Normal),
            steps_then: at(stub::VMX_EXIT).steps,
            ..at(stub::CPUID)
        },
        GuestAct::RunL2 { tables, kind, gpa } => {
            // Behind the access is a halt.
            let (start, behind) = match kind {
                Kind::Read => (stub::READ, Some(2)),
                Kind::Write => (stub::WRITE, Some(3)),
                Kind::Execute => (stub::JUMP, None),
            };
            let access = at(start).step(*kind, gpa.raw());
            let l2 = behind.map_or(access.clone(), |len| {
                access.step(Kind::Execute, start + len)
            });
            Activity {
                mode_then: Some(VcpuMode::Guest),
                l2_tables: tables.map(|cr3| SecondStageOfL2::Npt { cr3 }),
                steps_then: l2.steps,
                memory_runs: tables.is_some() && *kind == Kind::Execute,
                back_in_l1: true,
                steps_of_l1: at(stub::BEHIND_VMRUN).steps,
                written: Some((1, WRITTEN_BY_L2)),
                ..at(stub::L1_VMRUN)
            }
        }
        GuestAct::StoreOfL1 { gpa, value } => Activity {
            written: Some((8, *value)),
            ..at(stub::L1_STORE)
                .step(Kind::Write, gpa.raw())
                .step(Kind::Execute, stub::BEHIND_STORE)
        },
        GuestAct::OrInto(gpa) => at(stub::WRITE).step(Kind::Write, gpa.raw()),
        GuestAct::Launch { vmx: false, .. } if !machine.is_amd() => Activity {
            ending: Ending::TripleFault,
            ..at(stub::VMRUN).step(Kind::Read, stub::INVALID_OPCODE)
        },
        GuestAct::Launch {
            vmx,
            nested_paging,
            read,
        } => launch(*vmx, *nested_paging, *read, machine),
        GuestAct::EnterSmm { .. } => Activity {
            mode_first: Some(VcpuMode::Smm),
            ..at(handler)
        },
        GuestAct::SmmRead(gpa) => at(handler.wrapping_add(1)).step(Kind::Read, gpa.raw()),
        GuestAct::SmmWrite(gpa) => at(handler.wrapping_add(1)).step(Kind::Write, gpa.raw()),
        GuestAct::LeaveSmm => Activity {
            mode_then: Some(VcpuMode::Normal),
            steps_then: at(stub::READ).steps,
            ..at(handler.wrapping_add(1))
        },
        _ => Activity::default(),
    }
}

/// A nested guest is started and reads. Without a second stage of its own a host has none to offer, and the start fails.
fn launch(vmx: bool, nested_paging: bool, read: Gpa, machine: &Machine) -> Activity {
    let begin = match vmx {
        true => Activity::halt(Gpa::new(stub::VMLAUNCH)),
        false => Activity::halt(Gpa::new(stub::VMRUN)),
    };
    if nested_paging && machine.host.second_stage == SecondStage::Off {
        return begin;
    }
    let begin = match vmx {
        true => begin.step(Kind::Read, stub::VMCS_VALUES),
        false => begin,
    };
    let l2 = Activity::halt(Gpa::new(stub::READ)).step(Kind::Read, read.raw());
    let l2_tables = match vmx {
        true => SecondStageOfL2::Ept {
            pointer: stub::L2_TABLES.raw() | stub::EPT_POINTER,
        },
        false => SecondStageOfL2::Npt {
            cr3: stub::L2_TABLES,
        },
    };
    Activity {
        mode_then: Some(VcpuMode::Guest),
        l2_tables: nested_paging.then_some(l2_tables),
        steps_then: l2.steps,
        ..begin
    }
}

//! What a conversion between private and shared costs, by how much is converted: where nothing is mapped, and where tables are left of
//! pages that were.

use slat_coco::convert::{Cause, Ended, LeftBehind, Policy, Request};
use slat_coco::migration::Status;
use slat_memslot::{
    Call, Gfn, GfnRange, GuestAccess, PAGE_SIZE, PageSize, Pages, Profile, Region, SlotKey, VmType,
};
use slat_mmu::host::Host;

use super::counted::INSTRUCTIONS;
use super::{Curve, CurveError, Law, curve};
use crate::zap::steps::instructions;
use crate::{Machine, MemoryVm, convert, model};

const GIB: u64 = 1 << 30;
/// What a table of 4 KiB entries covers, and the least that is converted.
const PART: u64 = 2 << 20;
const HOST: u64 = 0x7f00_0000_0000;
/// The most that a GiB may cost, in conversions of 2 MiB.
const TIMES: u64 = 20;

/// A GiB there and back, beside 2 MiB.
pub(super) fn curves() -> Result<Vec<Curve>, CurveError> {
    let name = |what| (what, "parts of 2 MiB", INSTRUCTIONS);
    let never_mapped = over_parts(&mut vm()?)?;
    let mut vm = vm()?;
    leave_tables(&mut vm)?;
    let emptied = over_parts(&mut vm)?;
    Ok(vec![
        curve(name("convert, nothing mapped"), Law::Flat, never_mapped),
        curve(name("convert, emptied tables"), Law::Within(TIMES), emptied),
    ])
}

fn over_parts(vm: &mut model::Vm) -> Result<Vec<(u64, u64)>, CurveError> {
    let mut points = Vec::new();
    for parts in [1, 8, 64, 512] {
        // Once before it is counted, so that the allocator has what it needs.
        there_and_back(vm, parts * PART)?;
        let count = instructions(|| {
            let _done = there_and_back(vm, parts * PART);
        });
        points.push((parts, count.map_err(CurveError::Instructions)?));
    }
    Ok(points)
}

/// A GiB and a page for instructions, on NPT.
fn vm() -> Result<model::Vm, CurveError> {
    let profile =
        Profile::named("debian-6.12.117-sw-protected").expect("a profile of slat-memslot");
    let mut machine = model::Machine::with_host(profile, Host::npt(40));
    let mut vm = machine
        .create_vm(VmType::SwProtected.raw())
        .map_err(played)?;
    let file = vm.create_guest_memfd(GIB, 0).map_err(played)?;
    let code = Region::new(SlotKey::normal(0), 0, 2 * PAGE_SIZE, HOST);
    let data = Region::new(SlotKey::normal(1), GIB, GIB, HOST + GIB).with_gmem(file, 0);
    for call in [
        Call::SetRegion(code),
        Call::SetRegion(data),
        Call::CreateVcpu,
    ] {
        vm.call(&call).map_err(played)?;
    }
    Ok(vm)
}

/// The guest writes to a page of every part, and all of it is converted.
fn leave_tables(vm: &mut model::Vm) -> Result<(), CurveError> {
    for part in 0..GIB / PART {
        let write = GuestAccess::write(GIB + part * PART).by_code_at(PAGE_SIZE);
        vm.call(&Call::Guest(write)).map_err(played)?;
    }
    there_and_back(vm, GIB)
}

fn there_and_back(vm: &mut model::Vm, bytes: u64) -> Result<(), CurveError> {
    let policy = Policy {
        left_behind: LeftBehind::Discard,
        ..Policy::default()
    };
    for to in [Status::Private, Status::Shared] {
        let range = GfnRange::new(Gfn::new(GIB >> 12), Pages::in_bytes(bytes));
        let request = Request {
            range: range.ok_or_else(|| CurveError::Conversion("an empty range".to_owned()))?,
            to,
            hint: PageSize::Size2M,
            cause: Cause::Hypercall,
        };
        let run = convert::convert(vm, &request, &policy).map_err(played)?;
        if run.ended() != Some(Ended::Converted) {
            let ended = format!("it ended with {:?}", run.ended());
            return Err(CurveError::Conversion(ended));
        }
    }
    Ok(())
}

fn played(why: impl core::fmt::Display) -> CurveError {
    CurveError::Conversion(why.to_string())
}

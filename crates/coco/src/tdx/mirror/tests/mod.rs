//! Tests of the mirror. Oracle: the fact sheet's transitions, and the audit after each step.

mod audit;
mod bugs;
mod busy;
mod files;
mod policies;
mod protocol;
mod random;
mod threads;

use slat_memslot::{Gfn, GfnRange, Pages};

use super::*;
use crate::tdx::*;

/// The slot that all tests have, and where it begins.
const SLOT: u16 = 1;
const START: u64 = 0x100;
const PAGES: u64 = 0x400;

fn range(start: u64, pages: u64) -> GfnRange {
    GfnRange::new(Gfn::new(start), Pages::new(pages)).unwrap()
}

fn gfn(offset: u64) -> Gfn {
    Gfn::new(START + offset)
}

/// A TD with a private slot, being built.
fn building(hooks: HookGen) -> TdxMmu {
    let config = Config {
        hooks,
        ..Config::default()
    };
    of_config(&config)
}

fn of_config(config: &Config) -> TdxMmu {
    let vm = TdxMmu::new(config).unwrap();
    vm.add_slot(SLOT, range(START, PAGES));
    vm.set_private(range(START, PAGES));
    vm
}

/// The same, running.
fn running(hooks: HookGen) -> TdxMmu {
    let vm = building(hooks);
    vm.finalize().unwrap();
    vm
}

const BOTH: [HookGen; 2] = [HookGen::Split, HookGen::Unified];

/// The guest accepts a page and writes to it.
fn accept_and_write(vm: &TdxMmu, vcpu: &mut Vcpu, gfn: Gfn, value: u64) {
    let level = slat_memslot::Level::L1;
    loop {
        match vm.accept(vcpu, gfn, level) {
            Ok(Accept::Accepted | Accept::AlreadyAccepted(_)) => break,
            Ok(Accept::Exit(_)) => {}
            other => panic!("{gfn}: {other:?}"),
        }
    }
    let written = vm.touch(vcpu, gfn, GuestAccess::Write(value));
    assert!(matches!(written, Touch::Value(_)), "{written:?}");
}

fn value_at(vm: &TdxMmu, vcpu: &mut Vcpu, gfn: Gfn) -> Touch {
    vm.touch(vcpu, gfn, GuestAccess::Read)
}

#[track_caller]
fn clean(vm: &TdxMmu) {
    assert_eq!(vm.bug(), None);
    assert_eq!(vm.audit(), []);
}

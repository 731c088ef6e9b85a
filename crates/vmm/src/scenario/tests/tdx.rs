//! Any call of a TD, with any answer that it can have.

use proptest::prelude::*;
use slat_memslot::{
    Level, MapGpaAnswer, Outcome, TdOp, TdSide, TdxCall, TdxCommand, TdxConversion, TdxCount,
    TdxEntry, TdxFinding, TdxHost, TdxOutcome, TdxQuestion, TdxSlotZap, WaitingEvent,
};

use super::property::number;

fn level() -> impl Strategy<Value = Level> {
    prop_oneof![Just(Level::L1), Just(Level::L2), Just(Level::L3)]
}

fn side() -> impl Strategy<Value = TdSide> {
    prop_oneof![Just(TdSide::AsGiven), Just(TdSide::Shared)]
}

fn one_of<T: Copy + core::fmt::Debug>(all: &'static [T]) -> impl Strategy<Value = T> {
    prop::sample::select(all)
}

fn command() -> impl Strategy<Value = TdxCommand> {
    let init_vm = (
        number(),
        any::<u8>(),
        any::<u8>(),
        any::<u32>(),
        any::<u32>(),
    );
    let region = (number(), number(), number(), prop::option::of(number()));
    prop_oneof![
        init_vm.prop_map(|(attributes, gpaw, maxphyaddr, flags, nent)| {
            TdxCommand::InitVm {
                attributes,
                gpaw,
                maxphyaddr,
                flags,
                nent,
            }
        }),
        any::<(u32, u32)>().prop_map(|(vcpu, flags)| TdxCommand::InitVcpu { vcpu, flags }),
        (any::<(u32, u32)>(), region).prop_map(|((vcpu, flags), (source, gpa, pages, signal))| {
            TdxCommand::InitMemRegion {
                vcpu,
                flags,
                source,
                gpa,
                pages,
                signal,
            }
        }),
        any::<u32>().prop_map(|flags| TdxCommand::FinalizeVm { flags }),
    ]
}

fn op() -> impl Strategy<Value = TdOp> {
    prop_oneof![
        (number(), side()).prop_map(|(gpa, side)| TdOp::Read { gpa, side }),
        (number(), side(), number()).prop_map(|(gpa, side, value)| TdOp::Write {
            gpa,
            side,
            value
        }),
        (number(), level()).prop_map(|(gpa, level)| TdOp::Accept { gpa, level }),
        (number(), side(), number()).prop_map(|(gpa, side, size)| TdOp::MapGpa { gpa, side, size }),
    ]
}

fn host() -> impl Strategy<Value = TdxHost> {
    let policies = [
        TdxSlotZap::Leafs,
        TdxSlotZap::SharedRoots,
        TdxSlotZap::AllRoots,
    ];
    prop_oneof![
        (number(), number()).prop_map(|(hva, value)| TdxHost::Write { hva, value }),
        (number(), number()).prop_map(|(address, size)| TdxHost::Discard { address, size }),
        (number(), number()).prop_map(|(address, size)| TdxHost::DmaMap { address, size }),
        (number(), number()).prop_map(|(address, size)| TdxHost::DmaUnmap { address, size }),
        prop::sample::select(policies.to_vec()).prop_map(TdxHost::SlotZap),
        any::<u32>().prop_map(|skip| TdxHost::Busy { skip }),
        Just(TdxHost::Teardown),
    ]
}

pub(super) fn call() -> impl Strategy<Value = TdxCall> {
    let event = prop_oneof![Just(WaitingEvent::None), Just(WaitingEvent::Pending)];
    prop_oneof![
        (command(), number())
            .prop_map(|(command, hw_error)| TdxCall::Command { command, hw_error }),
        (any::<u32>(), op()).prop_map(|(vcpu, op)| TdxCall::Guest { vcpu, op }),
        (any::<u32>(), number(), event)
            .prop_map(|(vcpu, ret, event)| { TdxCall::CompleteHypercall { vcpu, ret, event } }),
        host().prop_map(TdxCall::Host),
        one_of(TdxCount::ALL).prop_map(|what| TdxCall::Ask(TdxQuestion::Count(what))),
        Just(TdxCall::Ask(TdxQuestion::Report)),
        number().prop_map(|gpa| TdxCall::Ask(TdxQuestion::Entry { gpa })),
    ]
}

/// A result that the call can have.
pub(super) fn answer(call: &TdxCall) -> BoxedStrategy<Outcome> {
    let asked = || {
        prop_oneof![
            (number(), number(), one_of(TdxConversion::ALL))
                .prop_map(|(gpa, pages, to)| TdxOutcome::Hypercall { gpa, pages, to }),
            (one_of(MapGpaAnswer::ALL), number())
                .prop_map(|(answer, next)| TdxOutcome::MapGpa { answer, next }),
        ]
        .prop_map(Outcome::Tdx)
        .boxed()
    };
    match call {
        TdxCall::Guest { op, .. } => match op {
            TdOp::Read { .. } => number().prop_map(Outcome::Value).boxed(),
            TdOp::Write { .. } => Just(Outcome::Tdx(TdxOutcome::Ve)).boxed(),
            TdOp::Accept { .. } => prop_oneof![
                Just(TdxOutcome::Accepted),
                level().prop_map(TdxOutcome::AlreadyAccepted),
                level().prop_map(TdxOutcome::SizeMismatch),
                Just(TdxOutcome::OperandInvalid),
            ]
            .prop_map(Outcome::Tdx)
            .boxed(),
            TdOp::MapGpa { .. } => asked(),
        },
        TdxCall::CompleteHypercall { .. } => asked(),
        TdxCall::Ask(TdxQuestion::Count(_)) => number().prop_map(Outcome::Value).boxed(),
        TdxCall::Ask(TdxQuestion::Entry { .. }) => one_of(TdxEntry::ALL)
            .prop_map(|entry| Outcome::Tdx(TdxOutcome::Entry(entry)))
            .boxed(),
        TdxCall::Ask(TdxQuestion::Report) => {
            prop::sample::subsequence(TdxFinding::ALL, 0..TdxFinding::ALL.len())
                .prop_map(|found| Outcome::Tdx(TdxOutcome::Report(found)))
                .boxed()
        }
        TdxCall::Command { .. } | TdxCall::Host(_) => Just(Outcome::Done).boxed(),
    }
}

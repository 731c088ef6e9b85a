//! Random operations on what memory holds, and of SEV guests.

use proptest::prelude::*;
use slat_memslot::{
    Access, Call, ContentsCall, GuestContents, Outcome, SevCall, SevCommand, SevHost, SevQuestion,
    SevSide,
};

use super::property::number;

fn act() -> impl Strategy<Value = GuestContents> {
    let fields = || (number(), number(), any::<u8>());
    prop_oneof![
        fields().prop_map(|(gpa, size, byte)| GuestContents::Fill { gpa, size, byte }),
        fields().prop_map(|(gpa, size, byte)| GuestContents::Check { gpa, size, byte }),
        (number(), number(), number()).prop_map(|(gpa, pages, attributes)| {
            GuestContents::MapGpaRange {
                gpa,
                pages,
                attributes,
            }
        }),
    ]
}

fn contents() -> impl Strategy<Value = ContentsCall> {
    let fields = || (number(), number(), any::<u8>());
    let code = prop_oneof![Just(0x1000), number()];
    prop_oneof![
        (any::<u32>(), code, act()).prop_map(|(vcpu, code, act)| ContentsCall::Guest {
            vcpu,
            code,
            act
        }),
        (any::<u32>(), number())
            .prop_map(|(vcpu, ret)| ContentsCall::ReturnHypercall { vcpu, ret }),
        fields().prop_map(|(hva, size, byte)| ContentsCall::HostFill { hva, size, byte }),
        fields().prop_map(|(hva, size, byte)| ContentsCall::HostCheck { hva, size, byte }),
        (number(), number()).prop_map(|(hva, size)| ContentsCall::Discard { hva, size }),
    ]
}

fn command() -> impl Strategy<Value = SevCommand> {
    prop_oneof![
        prop::sample::select(vec![
            SevCommand::Init2,
            SevCommand::LaunchUpdateVmsa,
            SevCommand::LaunchMeasure,
            SevCommand::LaunchFinish,
            SevCommand::GuestStatus,
            SevCommand::SendStart,
            SevCommand::SendFinish,
            SevCommand::SendCancel,
            SevCommand::ReceiveFinish,
        ]),
        any::<u32>().prop_map(|policy| SevCommand::LaunchStart { policy }),
        number().prop_map(|hva| SevCommand::LaunchUpdateData { hva }),
        (number(), number()).prop_map(|(hva, value)| SevCommand::LaunchSecret { hva, value }),
        (number(), number()).prop_map(|(hva, size)| SevCommand::SendUpdateData { hva, size }),
        number().prop_map(|session| SevCommand::ReceiveStart { session }),
        (number(), number(), number()).prop_map(|(hva, size, packet)| {
            SevCommand::ReceiveUpdateData { hva, size, packet }
        }),
    ]
}

fn sev() -> impl Strategy<Value = SevCall> {
    let side = || prop_oneof![Just(SevSide::Private), Just(SevSide::Shared)];
    let part = || (number(), number());
    prop_oneof![
        command().prop_map(SevCall::Command),
        part().prop_map(|(hva, size)| SevCall::RegisterRegion { hva, size }),
        part().prop_map(|(hva, size)| SevCall::UnregisterRegion { hva, size }),
        (any::<u32>(), number(), side()).prop_map(|(vcpu, gpa, side)| SevCall::Read {
            vcpu,
            gpa,
            side
        }),
        (any::<u32>(), number(), side(), number()).prop_map(|(vcpu, gpa, side, value)| {
            SevCall::Write {
                vcpu,
                gpa,
                side,
                value,
            }
        }),
        number().prop_map(|hva| SevCall::Host(SevHost::Read { hva })),
        part().prop_map(|(hva, value)| SevCall::Host(SevHost::Write { hva, value })),
        number().prop_map(|hva| SevCall::Host(SevHost::Move { hva })),
        number().prop_map(|hva| SevCall::Host(SevHost::SendPlain { hva })),
        part().prop_map(|(hva, packet)| SevCall::Host(SevHost::ReceivePlain { hva, packet })),
        Just(SevCall::Ask(SevQuestion::PinnedPages)),
        number().prop_map(|hva| SevCall::Ask(SevQuestion::IsPinned { hva })),
        Just(SevCall::Ask(SevQuestion::CacheFlushes)),
        number().prop_map(|gpa| SevCall::Ask(SevQuestion::IsShared { gpa })),
    ]
}

pub(super) fn call() -> impl Strategy<Value = Call> {
    prop_oneof![
        contents().prop_map(Call::Contents),
        sev().prop_map(Call::Sev)
    ]
}

/// A result that such a call can have.
pub(super) fn answer(call: &Call) -> BoxedStrategy<Outcome> {
    let fault = (number(), number(), number())
        .prop_map(|(flags, gpa, size)| Outcome::Access(Access::MemoryFault { flags, gpa, size }));
    match call {
        Call::Contents(ContentsCall::Guest { .. }) => prop_oneof![
            fault,
            Just(Outcome::Access(Access::Mmio)),
            (number(), number(), number()).prop_map(|(gpa, pages, attributes)| {
                Outcome::MapGpaRange {
                    gpa,
                    pages,
                    attributes,
                }
            }),
        ]
        .boxed(),
        Call::Sev(SevCall::Read { .. }) => prop_oneof![
            fault,
            Just(Outcome::Noise),
            number().prop_map(Outcome::Value)
        ]
        .boxed(),
        _ => number().prop_map(Outcome::Value).boxed(),
    }
}

//! Any text is read or refused, and any call comes back from its text.

use proptest::prelude::*;
use slat_memslot::{
    Access, AccessKind, AsId, Buffer, Call, ClearBits, DirtyPages, Errno, FileCall, FileRef,
    GmemId, GuestAccess, Hva, MapCall, MapId, OtherFile, Outcome, Pages, Region, RegionVersion,
};

use super::super::{Names, StepKind, parse, write};
use super::{areas, contents, tdx};

type Answered = (Call, Result<Outcome, Errno>);

const FILES: u32 = 3;
const MAPS: u32 = 2;

/// The files and mappings that the generated calls use.
fn prologue() -> Vec<Answered> {
    let create = Call::CreateGmem {
        size: 0x1000,
        flags: 3,
        reserved: 0,
    };
    let mmap = FileCall::Mmap {
        len: 0x8000,
        prot: 3,
        flags: 1,
        offset: 0,
    };
    let mmap = Call::File(GmemId::new(0), mmap);
    let files = (0..FILES).map(|i| (create.clone(), Ok(Outcome::Gmem(GmemId::new(i)))));
    let maps = (0..MAPS).map(|i| {
        let base = Hva::new(0x40_0000_0000 + u64::from(i) * 0x10_0000);
        (mmap.clone(), Ok(Outcome::Mapped(MapId::new(i), base)))
    });
    files.chain(maps).collect()
}

fn file_ref() -> impl Strategy<Value = FileRef> {
    prop_oneof![
        any::<i32>().prop_map(FileRef::NotOpen),
        Just(FileRef::NotOpen(-1)),
        Just(FileRef::Other(OtherFile::Null)),
        Just(FileRef::Other(OtherFile::Memfd)),
        Just(FileRef::Other(OtherFile::Vm)),
        Just(FileRef::Other(OtherFile::Kvm)),
        Just(FileRef::Foreign),
        (0..FILES).prop_map(|i| FileRef::Gmem(GmemId::new(i))),
    ]
}

fn hva() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (0x10_0000_0000u64..0x10_4000_1000),
        (0x40_0000_0000u64..0x40_0010_9000),
        Just(0),
    ]
}

pub(super) fn number() -> impl Strategy<Value = u64> {
    prop_oneof![any::<u64>(), 0..0x1_0000u64, Just(0)]
}

prop_compose! {
    fn region()(
        newer in any::<bool>(),
        slot in prop_oneof![any::<u32>(), 0..4u32],
        flags in prop_oneof![any::<u32>(), 0..16u32],
        (gpa, size, hva) in (number(), number(), hva()),
        (gmem, gmem_offset, padding) in (file_ref(), number(), any::<u32>()),
    ) -> Call {
        let older = Region { slot, flags, gpa, size, hva, ..Region::default() };
        Call::SetRegion(if newer {
            Region { version: RegionVersion::V2, gmem, gmem_offset, padding, ..older }
        } else {
            older
        })
    }
}

fn file_call() -> impl Strategy<Value = FileCall> {
    prop_oneof![
        Just(FileCall::Close),
        Just(FileCall::Read),
        Just(FileCall::Write),
        Just(FileCall::Pread),
        Just(FileCall::Pwrite),
        Just(FileCall::Lseek),
        Just(FileCall::Chmod),
        Just(FileCall::Size),
        Just(FileCall::Blocks),
        number().prop_map(|len| FileCall::Truncate { len }),
        (any::<u32>(), number(), number()).prop_map(|(mode, offset, len)| FileCall::Fallocate {
            mode,
            offset,
            len
        }),
    ]
}

fn map_call() -> impl Strategy<Value = MapCall> {
    prop_oneof![
        number().prop_map(|offset| MapCall::Touch { offset }),
        any::<u32>().prop_map(|advice| MapCall::Madvise { advice }),
        (0..30u32).prop_map(|advice| MapCall::Madvise { advice }),
        any::<u32>().prop_map(|prot| MapCall::Mprotect { prot }),
        Just(MapCall::Unmap),
    ]
}

fn clear_bits() -> impl Strategy<Value = ClearBits> {
    prop_oneof![
        Just(ClearBits::All),
        Just(ClearBits::Null),
        prop::collection::vec(any::<u64>(), 0..4).prop_map(ClearBits::Words),
    ]
}

fn dirty_call() -> impl Strategy<Value = Call> {
    let buffer = prop_oneof![Just(Buffer::Good), Just(Buffer::Null)];
    prop_oneof![
        (any::<u32>(), buffer).prop_map(|(slot, buffer)| Call::GetDirtyLog { slot, buffer }),
        (any::<u32>(), number(), any::<u32>(), clear_bits()).prop_map(
            |(slot, first_page, num_pages, bits)| Call::ClearDirtyLog {
                slot,
                first_page,
                num_pages,
                bits
            }
        ),
        Just(Call::ResetDirtyRings),
        any::<u32>().prop_map(|vcpu| Call::HarvestDirtyRing { vcpu }),
    ]
}

fn vm_call() -> impl Strategy<Value = Call> {
    let cap = prop_oneof![any::<u32>(), 0..260u32];
    prop_oneof![
        (cap, any::<u32>(), any::<[u64; 4]>()).prop_map(|(cap, flags, args)| Call::EnableCap {
            cap,
            flags,
            args
        }),
        (0..260u32).prop_map(|cap| Call::CheckExtension { cap }),
        Just(Call::CreateVcpu),
        Just(Call::CreateIrqchip),
        (any::<u32>(), number(), number(), number()).prop_map(|(vcpu, gpa, size, flags)| {
            Call::PreFault {
                vcpu,
                gpa,
                size,
                flags,
            }
        }),
        number().prop_map(|pages| Call::SetNrMmuPages { pages }),
        number().prop_map(|gpa| Call::SetTssAddr { gpa }),
        number().prop_map(|gpa| Call::SetIdentityMapAddr { gpa }),
        guest_access().prop_map(Call::Guest),
        (number(), number(), number(), number()).prop_map(|(address, size, attributes, flags)| {
            Call::SetAttributes {
                address,
                size,
                attributes,
                flags,
            }
        }),
    ]
}

fn guest_access() -> impl Strategy<Value = GuestAccess> {
    let kind = prop_oneof![
        Just(AccessKind::Read),
        Just(AccessKind::Write),
        Just(AccessKind::Execute)
    ];
    let as_id = prop_oneof![Just(AsId::NORMAL), Just(AsId::SMM)];
    let code = prop::option::of(number());
    (any::<u32>(), as_id, kind, number(), code).prop_map(|(vcpu, as_id, kind, gpa, code)| {
        GuestAccess {
            vcpu,
            as_id,
            kind,
            gpa,
            code: code.filter(|_| kind != AccessKind::Execute),
        }
    })
}

fn call() -> impl Strategy<Value = Call> {
    prop_oneof![
        region(),
        (0..FILES, file_call()).prop_map(|(i, call)| Call::File(GmemId::new(i), call)),
        (0..MAPS, map_call()).prop_map(|(i, call)| Call::Map(MapId::new(i), call)),
        dirty_call(),
        vm_call(),
        tdx::call().prop_map(Call::Tdx),
        contents::call(),
    ]
}

/// A result that the call can have.
fn answer(call: Call) -> impl Strategy<Value = Answered> {
    let good = match &call {
        Call::GetDirtyLog { .. } => prop::collection::vec(any::<u64>(), 0..3)
            .prop_map(|words| Outcome::Dirty(DirtyPages::from_words(Pages::new(150), words)))
            .boxed(),
        Call::HarvestDirtyRing { .. } => prop::collection::vec((any::<u32>(), any::<u64>()), 0..3)
            .prop_map(Outcome::Ring)
            .boxed(),
        Call::PreFault { .. } => (number(), number())
            .prop_map(|(gpa, size)| Outcome::Remaining { gpa, size })
            .boxed(),
        Call::Guest(_) => prop_oneof![
            Just(Access::RingFull),
            (number(), number(), number()).prop_map(|(flags, gpa, size)| Access::MemoryFault {
                flags,
                gpa,
                size
            }),
        ]
        .prop_map(Outcome::Access)
        .boxed(),
        Call::Tdx(call) => tdx::answer(call),
        Call::Contents(_) | Call::Sev(_) => contents::answer(&call),
        Call::Map(..) | Call::CheckExtension { .. } => number().prop_map(Outcome::Value).boxed(),
        _ => Just(Outcome::Done).boxed(),
    };
    let bad = (1..134i32).prop_map(Errno::new);
    let result = prop_oneof![good.prop_map(Ok), bad.prop_map(Err)];
    result.prop_map(move |result| (call.clone(), result))
}

/// Resolves the calls of `text` again, with the numbers that they had.
fn replay(text: &str, answers: &[Answered]) -> Vec<Call> {
    let scenario = parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let mut names = Names::new(areas());
    let mut calls = Vec::new();
    for (step, (_, result)) in scenario.steps.iter().zip(answers) {
        let StepKind::Call(request) = &step.kind else {
            panic!("{step}");
        };
        let resolved = request.resolve(&names);
        calls.push(resolved.unwrap_or_else(|e| panic!("{e}\n{text}")));
        if let Ok(outcome) = result {
            names.bind(request, outcome);
        }
        assert!(
            step.expect.as_ref().is_some_and(|e| e.accepts(result)),
            "{step}"
        );
    }
    assert_eq!(scenario.to_string(), text);
    calls
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn calls_come_back_from_their_text(
        body in prop::collection::vec(call().prop_flat_map(answer), 0..12),
    ) {
        let mut answers = prologue();
        answers.extend(body);
        let text = write(answers.iter().map(|(call, result)| (call, result)), areas());
        let calls: Vec<Call> = answers.iter().map(|(call, _)| call.clone()).collect();
        prop_assert_eq!(replay(&text, &answers), calls);
    }

    #[test]
    fn any_text_is_read_or_refused(text in "\\PC*|[ -~\n\t]{0,80}") {
        let _ = parse(&text);
    }

    #[test]
    fn damaged_text_is_read_or_refused(
        at in any::<prop::sample::Index>(),
        take in 0..6usize,
        put in "[-a-zA-Z0-9=:+|,\"\\\\# \n>é]{0,6}",
    ) {
        let mut text: Vec<char> = include_str!("canonical.slat").chars().collect();
        let start = at.index(text.len());
        let end = text.len().min(start + take);
        text.splice(start..end, put.chars());
        let text: String = text.into_iter().collect();
        if let Ok(scenario) = parse(&text) {
            let canonical = scenario.to_string();
            let again = parse(&canonical);
            prop_assert_eq!(again, Ok(scenario.renumbered()), "{}", canonical);
        }
    }
}

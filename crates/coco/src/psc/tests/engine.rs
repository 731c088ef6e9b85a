//! The engine beside the vectors.

use proptest::prelude::*;

use super::*;
use crate::convert::UnknownReturn;

fn strict() -> PscSettings {
    PscSettings::new(PscQuirks::strict())
}

fn kvm() -> PscSettings {
    PscSettings::new(PscQuirks::kvm())
}

/// Entries that are near each other, so that they merge often, with every field off now and then.
fn entries() -> impl Strategy<Value = Vec<u64>> {
    let size = prop_oneof![4 => Just(0u64), 2 => Just(1)];
    let operation = prop_oneof![8 => Just(1u64), 4 => Just(2), 1 => 0..16u64];
    let page = prop_oneof![8 => Just(0u64), 1 => 0..2u64, 1 => 0..0x400u64];
    let gfn = prop_oneof![
        8 => 1020..1040u64,
        4 => (0..4u64).prop_map(|n| n * 512),
        1 => (1..5u64).prop_map(|n| (1 << 40) - n),
        1 => (1..5u64).prop_map(|n| (1 << 40) - n * 512),
        2 => 0..1u64 << 40,
    ];
    let reserved = prop_oneof![30 => Just(0u64), 1 => 1..128u64];
    let one = (size, operation, page, gfn, reserved).prop_map(|(size, op, page, gfn, reserved)| {
        page | gfn << 12 | op << 52 | size << 56 | reserved << 57
    });
    let one = prop_oneof![200 => one, 1 => any::<u64>(), 1 => Just(u64::MAX)];
    // Runs: some entries follow the one before, a few of them beyond the last frame and into the operation.
    let many = prop::collection::vec((one, 0..8u8), 1..253);
    many.prop_map(|raw| {
        let mut words: Vec<u64> = Vec::new();
        for (mut word, follows) in raw {
            if let Some(last) = words.last().filter(|_| follows < 5) {
                let entry = PscEntry::from_word(*last);
                let gfn = (entry.gfn.raw() + entry.size.pages()) & 0xff_ffff_ffff;
                word = match follows {
                    0 => last.wrapping_add(entry.size.pages() << 12),
                    _ => PscEntry::new(Gfn::new(gfn), entry.operation, entry.size).to_word(),
                };
            }
            words.push(word);
        }
        words
    })
}

fn load(words: &[u64], cur: u16, end: u16) -> Buffer<'static> {
    let buffer = Buffer::new(cur, end, &[]);
    buffer.words.borrow_mut()[1..=words.len()].copy_from_slice(words);
    buffer
}

/// 4000, or as many as are asked for.
fn cases() -> ProptestConfig {
    let asked = std::env::var("SLAT_SEQUENCES").ok();
    ProptestConfig::with_cases(asked.and_then(|text| text.parse().ok()).unwrap_or(4000))
}

proptest! {
    #![proptest_config(cases())]

    /// With KVM's quirks the engine does what KVM's algorithm does, to the last bit of the buffer.
    #[test]
    fn kvm_is_followed(
        words in entries(),
        cur in prop_oneof![4 => Just(0u16), 1 => 0..260u16],
        short in prop_oneof![4 => Just(0u16), 1 => 0..300u16],
        fails in 0..8usize,
        room in prop_oneof![4 => Just(253u64), 1 => 0..253u64],
    ) {
        let end = u16::try_from(words.len()).unwrap() - 1 + short;
        let buffer = load(&words, cur, end);
        let scratch = Gpa::new(0x7800 + (253 - room) * 8);
        let scratch = Scratch::in_ghcb(Gpa::new(0x7000), scratch).unwrap();
        prop_assert_eq!(u64::from(scratch.entries()), room);
        let mut answers = vec![Answer::Done; fails];
        if let Some(last) = answers.last_mut() {
            *last = Answer::Failed;
        }
        let (steps, result) = run(kvm(), &buffer, scratch, &answers);
        let mut expected = load(&words, cur, end).words.into_inner();
        let (exits, info) = reference::kvm(&mut expected, room, fails);
        prop_assert_eq!(args(&steps), exits);
        prop_assert_eq!(result.sw_exit_info_2(), info);
        prop_assert!(*buffer.words.borrow() == expected);
    }

    /// What the strict engine asks for is what the entries say, page by page and in order, and each word was read once.
    #[test]
    fn the_strict_engine_asks_for_every_page_once(words in entries()) {
        let end = u16::try_from(words.len()).unwrap() - 1;
        let buffer = load(&words, 0, end);
        let (steps, result) = run(strict(), &buffer, whole(), &[]);
        let mut wanted = Vec::new();
        for word in &words[..usize::from(buffer.header().cur_entry)] {
            let entry = PscEntry::from_word(*word);
            let first = entry.gfn.raw() + u64::from(entry.cur_page);
            wanted.extend((first..entry.gfn.raw() + entry.size.pages()).map(|gfn| (gfn, entry.operation)));
        }
        let mut got = Vec::new();
        for step in &steps {
            let (range, operation) = match step {
                PscStep::Map(exit) if exit.to == Direction::ToPrivate => (exit.range, PscOperation::Private),
                PscStep::Map(exit) => (exit.range, PscOperation::Shared),
                PscStep::Resize(resize) if resize.to == RmpSize::Size4K => (resize.range, PscOperation::Psmash),
                PscStep::Resize(resize) => (resize.range, PscOperation::Unsmash),
                PscStep::Resume(_) => unreachable!(),
            };
            got.extend((range.start().raw()..range.end().raw()).map(|gfn| (gfn, operation)));
        }
        prop_assert_eq!(got, wanted);
        prop_assert!(buffer.loads.borrow().iter().all(|count| *count <= 1));
        let all = buffer.header().cur_entry == end + 1;
        prop_assert_eq!(result == PscResult::Success, all);
    }

    /// A plan of all ranges is what the engine gives one by one: steps, result, and what the guest is told.
    #[test]
    fn a_plan_is_what_the_engine_does(
        words in entries(),
        cur in prop_oneof![4 => Just(0u16), 1 => 0..260u16],
        short in prop_oneof![4 => Just(0u16), 1 => 0..300u16],
        done in 0..8usize,
        last in prop_oneof![Just(Answer::Failed), (0..700u64).prop_map(|n| Answer::Partly(pages(n)))],
        limit in prop_oneof![2 => Just(1u64 << 41), 1 => 0..2048u64],
        once in any::<bool>(),
    ) {
        let end = u16::try_from(words.len()).unwrap() - 1 + short;
        // KVM's quirks, but for the header, or none of them.
        let quirks = match once {
            true => PscQuirks::strict(),
            false => PscQuirks { header: HeaderReads::Once, ..PscQuirks::kvm() },
        };
        let settings = PscSettings { end_gfn: Gfn::new(limit), ..PscSettings::new(quirks) };
        let mut answers = vec![Answer::Done; done];
        answers.push(last);
        let (one, other) = (load(&words, cur, end), load(&words, cur, end));
        let (steps, result) = run(settings, &one, whole(), &answers);
        let mut plan = PscPlan::new(settings);
        let (mut planned, mut answers) = (Vec::new(), answers.into_iter());
        let mut step = plan.begin(&other, whole());
        let all: Vec<PscStep> = plan.steps().collect();
        while !matches!(step, PscStep::Resume(_)) {
            planned.push(step);
            step = plan.complete(&other, answers.next().unwrap_or(Answer::Done));
        }
        prop_assert_eq!(step, PscStep::Resume(result));
        prop_assert_eq!(&planned, &steps);
        prop_assert_eq!(&all[..planned.len()], &planned[..]);
        prop_assert!(*one.words.borrow() == *other.words.borrow());
        prop_assert!(other.loads.borrow().iter().all(|count| *count <= 1));
    }

    /// However the VMM cuts the work into parts, the guest that asks again gets every page once.
    #[test]
    fn a_partial_answer_is_resumed(
        parts in prop::collection::vec(0..700u64, 1..40),
        gfns in prop::collection::vec((1..6u64, any::<bool>()), 1..6),
    ) {
        let entries: Vec<PscEntry> = gfns.iter().map(|(n, huge)| match huge {
            true => private_2m(n * 512),
            false => private_4k(n * 512),
        }).collect();
        let buffer = Buffer::all(&entries);
        let (mut done, mut parts) = (Vec::new(), parts.into_iter());
        loop {
            let mut psc = Psc::new(strict());
            let mut step = psc.begin(&buffer, whole());
            while let PscStep::Map(exit) = step {
                let all = exit.range.pages().raw();
                let now = parts.next().unwrap_or(all).min(all);
                let start = exit.range.start().raw();
                done.extend(start..start + now);
                step = psc.complete(&buffer, Answer::Partly(pages(now)));
            }
            prop_assert_eq!(step, PscStep::Resume(PscResult::Success));
            if usize::from(buffer.header().cur_entry) == entries.len() {
                break;
            }
        }
        let wanted: Vec<u64> = entries.iter().flat_map(|entry| {
            let first = entry.gfn.raw();
            first..first + entry.size.pages()
        }).collect();
        prop_assert_eq!(done, wanted);
    }
}

#[test]
fn exits_that_are_not_enabled_fail() {
    let settings = PscSettings {
        exits_enabled: false,
        ..kvm()
    };
    let buffer = Buffer::all(&[private_4k(16)]);
    let (steps, result) = run(settings, &buffer, whole(), &[]);
    assert_eq!((steps.len(), result), (0, PscResult::Generic));
}

#[test]
fn userspace_keeps_to_the_contract_since_2026() {
    let start = |quirks| {
        let buffer = Buffer::all(&[private_4k(16)]);
        let mut psc = Psc::new(PscSettings::new(quirks));
        let _exit = psc.begin(&buffer, whole());
        (psc, buffer)
    };
    for ret in [11, 22] {
        let (mut psc, buffer) = start(PscQuirks::kvm_2026());
        let step = psc.complete_ret(&buffer, ret);
        assert_eq!(step, Ok(PscStep::Resume(PscResult::Generic)));
    }
    for ret in [1, (-22i64).cast_unsigned(), u64::MAX] {
        let (mut psc, buffer) = start(PscQuirks::kvm_2026());
        assert_eq!(psc.complete_ret(&buffer, ret), Err(UnknownReturn(ret)));
        assert!(!psc.in_flight());
        let (mut psc, buffer) = start(PscQuirks::kvm());
        let step = psc.complete_ret(&buffer, ret);
        assert_eq!(step, Ok(PscStep::Resume(PscResult::Generic)));
    }
    let (mut psc, buffer) = start(PscQuirks::kvm_2026());
    let step = psc.complete_ret(&buffer, 0);
    assert_eq!(step, Ok(PscStep::Resume(PscResult::Success)));
}

#[test]
fn an_event_amid_an_event_fails() {
    let buffer = Buffer::all(&[private_4k(16)]);
    let mut psc = Psc::new(kvm());
    let _exit = psc.begin(&buffer, whole());
    let again = psc.begin(&buffer, whole());
    assert_eq!(again, PscStep::Resume(PscResult::Generic));
    let nothing = psc.complete(&buffer, Answer::Done);
    assert_eq!(nothing, PscStep::Resume(PscResult::Generic));
}

#[test]
fn the_strict_engine_refuses_what_is_reserved_or_beyond() {
    let reserved = PscEntry {
        reserved: 1,
        ..private_4k(16)
    };
    let unknown = entry(16, PscOperation::Unknown(7), RmpSize::Size4K);
    let beyond = private_4k(0x1000);
    let settings = PscSettings {
        end_gfn: Gfn::new(0x1000),
        ..strict()
    };
    for bad in [reserved, unknown, beyond] {
        let buffer = Buffer::all(&[private_4k(15), bad]);
        let (steps, result) = run(settings, &buffer, whole(), &[]);
        assert_eq!(args(&steps), [[0xf000, 1, 0x10]]);
        assert_eq!(result, PscResult::InvalidEntry);
        assert_eq!(buffer.header().cur_entry, 1);
    }
    let buffer = Buffer::new(5, 0, &[]);
    let (_, result) = run(strict(), &buffer, whole(), &[]);
    assert_eq!(result, PscResult::InvalidHeader);
}

#[test]
fn smashing_is_told_by_the_strict_engine() {
    let psmash = entry(512, PscOperation::Psmash, RmpSize::Size2M);
    let unsmash = entry(512, PscOperation::Unsmash, RmpSize::Size2M);
    let buffer = Buffer::all(&[psmash, unsmash]);
    let (steps, result) = run(strict(), &buffer, whole(), &[]);
    let sizes: Vec<RmpSize> = steps
        .iter()
        .map(|step| match step {
            PscStep::Resize(resize) => resize.to,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(sizes, [RmpSize::Size4K, RmpSize::Size2M]);
    assert_eq!(result, PscResult::Success);
}

/// A guest that moves the cursor back each time has KVM do the same entry again, and the strict engine not.
#[test]
fn a_cursor_that_is_moved_back() {
    let hostile = || {
        Buffer::all(&[private_4k(16), private_4k(18)]).changing(|words, at| {
            if at == 0 {
                words[0] &= !0xffff;
                words[1] &= !0xfff;
            }
        })
    };
    let (steps, result) = run(strict(), &hostile(), whole(), &[]);
    assert_eq!((steps.len(), result), (2, PscResult::Success));
    let (steps, result) = run(kvm(), &hostile(), whole(), &[]);
    // Where KVM goes on as long as the guest likes, the engine goes back to the guest.
    assert_eq!((steps.len(), result), (253, PscResult::Success));
}

#[test]
fn an_end_that_grows_behind_the_check_leads_nowhere() {
    for settings in [strict(), kvm()] {
        let buffer = Buffer::all(&[private_4k(16), private_4k(18)]).changing(|words, at| {
            if at > 0 {
                words[0] |= 0xffff_0000;
            }
        });
        let (steps, result) = run(settings, &buffer, whole(), &[]);
        match settings.quirks.header {
            HeaderReads::Once => assert_eq!((steps.len(), result), (2, PscResult::Success)),
            HeaderReads::EveryRange => {
                assert_eq!((steps.len(), result), (1, PscResult::InvalidHeader));
            }
        }
    }
}

#[test]
fn an_entry_that_changes_after_its_check_changes_nothing() {
    for settings in [strict(), kvm()] {
        let buffer = Buffer::all(&[private_4k(16)]);
        let mut psc = Psc::new(settings);
        let PscStep::Map(exit) = psc.begin(&buffer, whole()) else {
            panic!();
        };
        assert_eq!(exit.args(), [0x10000, 1, 0x10]);
        // The guest makes it an entry of 2 MiB meanwhile: one page is done, not 512.
        buffer.words.borrow_mut()[1] = private_2m(512).to_word();
        assert_eq!(
            psc.complete(&buffer, Answer::Done),
            PscStep::Resume(PscResult::Success)
        );
        assert_eq!(buffer.entry(0).cur_page, 1);
    }
}

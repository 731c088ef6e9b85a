//! Vectors V1 to V14, computed from KVM's algorithm by an independent implementation.

use super::*;

const ENC: u64 = 0x10;
const DEC: u64 = 0;
const HINT_2M: u64 = 1;

/// Runs a vector as KVM does, and compares exits, SW_EXITINFO2, and the cursor that the guest sees.
fn check(buffer: &Buffer<'_>, exits: &[[u64; 3]], info: u64, cursor: u16) {
    let settings = PscSettings::new(PscQuirks::kvm());
    let (steps, result) = run(settings, buffer, whole(), &[]);
    assert_eq!(args(&steps), exits);
    assert_eq!(result.sw_exit_info_2(), info);
    assert_eq!(buffer.header().cur_entry, cursor);
}

const INVALID_HDR: u64 = 0x1_0000_0001;
const INVALID_ENTRY: u64 = 0x1_0000_0002;
const GENERIC: u64 = 0x100_0000_0000;

#[test]
fn v1_neighbours_go_together() {
    let buffer = Buffer::all(&[private_4k(16), private_4k(17), private_4k(18)]);
    check(&buffer, &[[0x10000, 3, ENC]], 0, 3);
    for index in 0..3 {
        assert_eq!(buffer.entry(index), done(private_4k(16 + index as u64), 1));
    }
}

#[test]
fn v2_a_gap_separates() {
    let buffer = Buffer::all(&[private_4k(16), private_4k(18)]);
    check(&buffer, &[[0x10000, 1, ENC], [0x12000, 1, ENC]], 0, 2);
}

#[test]
fn v3_another_direction_separates() {
    let shared = entry(17, PscOperation::Shared, RmpSize::Size4K);
    let buffer = Buffer::all(&[private_4k(16), shared]);
    check(&buffer, &[[0x10000, 1, ENC], [0x11000, 1, DEC]], 0, 2);
}

#[test]
fn v4_huge_neighbours_go_together() {
    let buffer = Buffer::all(&[private_2m(512), private_2m(1024)]);
    check(&buffer, &[[0x200000, 1024, ENC | HINT_2M]], 0, 2);
}

#[test]
fn v5_another_size_separates() {
    let buffer = Buffer::all(&[private_4k(511), private_2m(512)]);
    let exits = [[0x1ff000, 1, ENC], [0x200000, 512, ENC | HINT_2M]];
    check(&buffer, &exits, 0, 2);
}

#[test]
fn v6_a_half_done_entry_is_resumed_with_its_own_size_as_hint() {
    let buffer = Buffer::all(&[done(private_2m(512), 10)]);
    check(&buffer, &[[0x20a000, 502, ENC | HINT_2M]], 0, 1);
    assert_eq!(buffer.entry(0).cur_page, 512);
}

#[test]
fn v7_a_half_done_entry_takes_a_page_too_many() {
    let entries = [done(private_2m(512), 10), private_4k(1014)];
    let buffer = Buffer::all(&entries);
    // Page 1024 is converted, which nobody asked for.
    check(&buffer, &[[0x20a000, 503, ENC | HINT_2M]], 0, 2);
    // The strict engine keeps to what was asked for.
    let buffer = Buffer::all(&entries);
    let settings = PscSettings::new(PscQuirks::strict());
    let (steps, _) = run(settings, &buffer, whole(), &[]);
    assert_eq!(args(&steps), [[0x20a000, 502, ENC], [0x3f6000, 1, ENC]]);
}

#[test]
fn v8_psmash_is_done_by_doing_nothing() {
    let psmash = entry(512, PscOperation::Psmash, RmpSize::Size2M);
    let buffer = Buffer::all(&[psmash, private_2m(1024)]);
    check(&buffer, &[[0x400000, 512, ENC | HINT_2M]], 0, 2);
    assert_eq!(buffer.entry(0), done(psmash, 512));
}

#[test]
fn v9_a_huge_entry_must_be_aligned() {
    let buffer = Buffer::all(&[private_2m(513)]);
    check(&buffer, &[], INVALID_ENTRY, 0);
}

#[test]
fn v10_no_more_can_be_done_than_there_is() {
    let buffer = Buffer::all(&[done(private_2m(512), 513)]);
    check(&buffer, &[], INVALID_ENTRY, 0);
}

#[test]
fn v11_the_last_entry_must_be_in_the_buffer() {
    check(&Buffer::new(0, 253, &[]), &[], INVALID_HDR, 0);
}

#[test]
fn v12_a_cursor_behind_the_end_is_success() {
    check(&Buffer::new(5, 0, &[]), &[], 0, 5);
}

#[test]
fn v13_what_is_done_is_skipped() {
    let buffer = Buffer::all(&[done(private_4k(16), 1), private_4k(17)]);
    check(&buffer, &[[0x11000, 1, ENC]], 0, 2);
}

#[test]
fn v14_a_failure_leaves_the_cursor_at_the_entry() {
    let buffer = Buffer::all(&[private_4k(16), private_4k(18)]);
    let settings = PscSettings::new(PscQuirks::kvm());
    let answers = [Answer::Done, Answer::Failed];
    let (steps, result) = run(settings, &buffer, whole(), &answers);
    assert_eq!(args(&steps), [[0x10000, 1, ENC], [0x12000, 1, ENC]]);
    assert_eq!(result.sw_exit_info_2(), GENERIC);
    assert_eq!(buffer.header().cur_entry, 1);
    assert_eq!(buffer.entry(1).cur_page, 0);
}

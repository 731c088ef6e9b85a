use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Instant;

use proptest::prelude::*;

use super::*;

/// An entry whose order is its value.
fn entry(start: u64, end: u64, value: u32) -> Entry {
    Entry {
        start,
        end,
        order: value,
        value,
    }
}

/// The obvious implementation.
#[derive(Default)]
struct Naive(BTreeMap<(u64, u32), u64>);

impl Naive {
    fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        self.0
            .iter()
            .map(|(&(start, value), &end)| entry(start, end, value))
    }
}

#[derive(Clone, Debug)]
enum Op {
    Insert(u64, u64, u32),
    Remove(prop::sample::Index),
    RemoveAbsent(u64, u32),
}

fn operations(count: usize) -> impl Strategy<Value = Vec<Op>> {
    let insert = (0u64..400, 1u64..40, 0u32..600);
    let op = prop_oneof![
        5 => insert.prop_map(|(start, len, value)| Op::Insert(start, start + len, value)),
        3 => any::<prop::sample::Index>().prop_map(Op::Remove),
        1 => (0u64..400, 0u32..600).prop_map(|(start, value)| Op::RemoveAbsent(start, value)),
    ];
    prop::collection::vec(op, 0..count)
}

fn apply(list: &mut Ordered, naive: &mut Naive, op: &Op) {
    match *op {
        Op::Insert(start, end, value) => {
            list.insert(entry(start, end, value));
            naive.0.insert((start, value), end);
        }
        Op::Remove(index) if !naive.0.is_empty() => {
            let key = *naive
                .0
                .keys()
                .nth(index.index(naive.0.len()))
                .expect("in range");
            assert!(list.remove(key.0, key.1));
            naive.0.remove(&key);
        }
        Op::Remove(_) => {}
        Op::RemoveAbsent(start, value) => {
            let present = naive.0.remove(&(start, value)).is_some();
            assert_eq!(list.remove(start, value), present);
        }
    }
}

fn check_invariants(list: &Ordered) {
    assert_eq!(list.len(), list.iter().count());
    for (at, chunk) in list.chunks.iter().enumerate() {
        assert!((1..=CHUNK).contains(&chunk.len()));
        assert_eq!(list.firsts[at], chunk.entries[0].start);
        assert_eq!(list.max_ends[at], chunk.max_end());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn agrees_with_a_tree(ops in operations(1500), probes in prop::collection::vec((0u64..450, 1u64..60), 1..20)) {
        let (mut list, mut naive) = (Ordered::new(), Naive::default());
        for op in &ops {
            apply(&mut list, &mut naive, op);
        }
        check_invariants(&list);
        prop_assert!(list.iter().eq(naive.entries()));
        for (start, len) in probes {
            let end = start + len;
            let before = naive.entries().filter(|e| e.start <= start).last();
            prop_assert_eq!(list.predecessor(start), before);
            let expected: Vec<_> = naive.entries().filter(|e| e.start < end && e.end > start).collect();
            prop_assert_eq!(list.overlapping(start, end).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn disjoint_search_agrees_with_the_general_one(
        lengths in prop::collection::vec((0u64..4, 1u64..6), 0..600),
        probes in prop::collection::vec((0u64..3000, 1u64..40, any::<bool>()), 1..40),
    ) {
        let mut list = Ordered::new();
        let mut at = 0;
        for (value, (gap, len)) in (0u32..).zip(lengths) {
            list.insert(entry(at + gap, at + gap + len, value));
            at += gap + len;
        }
        for (start, len, skip) in probes {
            let end = start + len;
            let first = list.overlapping(start, end).next();
            let except = first.filter(|_| skip).map(|e| e.value);
            let expected = list.overlapping(start, end).find(|e| Some(e.value) != except);
            prop_assert_eq!(list.disjoint_overlap(start, end, except), expected);
        }
    }
}

#[test]
fn aliases_of_one_start_span_chunks() {
    let mut list = Ordered::new();
    for value in (0..2000).rev() {
        list.insert(entry(0x1000, 0x2000, value));
    }
    check_invariants(&list);
    assert_eq!(list.overlapping(0x1fff, 0x2000).count(), 2000);
    assert_eq!(list.predecessor(0x1000).map(|e| e.value), Some(1999));
    for value in (0..2000).step_by(2).chain((1..2000).step_by(2)) {
        assert!(list.remove(0x1000, value));
        assert!(!list.remove(0x1000, value));
    }
    assert!(list.len() == 0 && list.predecessor(u64::MAX).is_none());
}

#[test]
fn the_same_start_and_value_is_replaced() {
    let mut list = Ordered::new();
    list.insert(entry(1, 10, 7));
    list.insert(entry(1, 3, 7));
    assert_eq!(list.len(), 1);
    assert_eq!(list.overlapping(5, 6).count(), 0);
}

/// xorshift, so that the timing needs no dependency.
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

fn filled(count: usize) -> (Ordered, Vec<(u64, u64, u32)>) {
    let (mut list, mut plain, mut state) = (Ordered::new(), Vec::new(), 0x9e37_79b9_7f4a_7c15);
    for value in 0..u32::try_from(count).expect("small") {
        let start = random(&mut state) >> 20;
        list.insert(entry(start, start + 16, value));
        plain.push((start, start + 16, value));
    }
    plain.sort_unstable();
    (list, plain)
}

/// The best of several rounds, in nanoseconds per step.
fn best(steps: u32, mut round: impl FnMut()) -> f64 {
    let timed = (0..9).map(|_| {
        let begin = Instant::now();
        round();
        begin.elapsed().as_secs_f64() * 1e9 / f64::from(steps)
    });
    timed.fold(f64::INFINITY, f64::min)
}

/// Prints lookup and update times: `cargo test --release -p slat-memslot timing -- --ignored --nocapture`.
#[test]
#[ignore = "prints timings, asserts nothing"]
fn timing() {
    const STEPS: u32 = 1_000_000;
    for count in [1, 16, 512, 4096, 32_764] {
        let (mut list, plain) = filled(count);
        let mut state = 0xdead_beef_cafe_f00d;
        let keys: Vec<u64> = (0..4096).map(|_| random(&mut state) >> 20).collect();
        let probe = |find: &dyn Fn(u64) -> u64| {
            best(STEPS, || {
                let mut sum = 0u64;
                for key in keys.iter().cycle().take(STEPS as usize) {
                    sum = sum.wrapping_add(find(*key));
                }
                black_box(sum);
            })
        };
        let chunked = probe(&|key| list.predecessor(black_box(key)).map_or(0, |e| e.end));
        let packed = probe(&|key| {
            let at = plain.partition_point(|e| e.0 <= black_box(key));
            at.checked_sub(1).map_or(0, |at| plain[at].1)
        });
        let ranges = probe(&|key| list.overlapping(key, key + 16).count() as u64);
        let update = best(STEPS / 4, || {
            for key in keys.iter().cycle().take(STEPS as usize / 4) {
                list.insert(entry(*key, *key + 16, u32::MAX));
                list.remove(*key, u32::MAX);
            }
        });
        println!(
            "{count:6} entries: predecessor {chunked:6.1} ns, packed {packed:6.1} ns, \
             overlapping {ranges:6.1} ns, insert+remove {update:6.1} ns"
        );
    }
}

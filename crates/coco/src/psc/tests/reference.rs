//! KVM's algorithm once more, on a buffer that nobody else writes: lists instead of states, and one function.

/// The exits of an event, its SW_EXITINFO2, and the buffer as the guest finds it. The exit of number `fails` fails.
pub(super) fn kvm(words: &mut [u64; 254], capacity: u64, fails: usize) -> (Vec<[u64; 3]>, u64) {
    let mut exits = Vec::new();
    let field = |word: u64, low: u32, bits: u32| word >> low & ((1 << bits) - 1);
    loop {
        let (start, end) = (field(words[0], 0, 16), field(words[0], 16, 16));
        if end >= capacity {
            return (exits, 1 << 32 | 1);
        }
        let mut at = start;
        let (gfn, mut count, step, word) = loop {
            if at > end {
                return (exits, 0);
            }
            let word = words[usize::try_from(at).unwrap() + 1];
            let whole = if field(word, 56, 1) == 1 { 512 } else { 1 };
            let (done, gfn) = (field(word, 0, 12), field(word, 12, 40));
            if done > whole || gfn % whole != 0 {
                return (exits, 1 << 32 | 2);
            }
            if done < whole {
                let step = if done > 0 { 1 } else { whole };
                break (gfn + done, whole - done, step, word);
            }
            words[0] += 1;
            at += 1;
        };
        let first = at;
        at += 1;
        while at <= end {
            let next = words[usize::try_from(at).unwrap() + 1];
            let next_size = if field(next, 56, 1) == 1 { 512 } else { 1 };
            if field(next, 52, 4) != field(word, 52, 4)
                || field(next, 12, 40) != field(word, 12, 40) + count
                || field(next, 0, 12) != 0
                || next_size != step
            {
                break;
            }
            count += step;
            at += 1;
        }
        let operation = field(word, 52, 4);
        if operation == 1 || operation == 2 {
            let attributes = if operation == 1 { 16 } else { 0 } + field(word, 56, 1);
            exits.push([gfn << 12, count, attributes]);
            if exits.len() == fails {
                return (exits, 0x100 << 32);
            }
        }
        for index in first..at {
            let word = &mut words[usize::try_from(index).unwrap() + 1];
            let whole = if field(*word, 56, 1) == 1 { 512 } else { 1 };
            *word = *word & !0xfff | whole;
        }
        words[0] = words[0] & !0xffff | at;
    }
}

//! 32768 pages of a bitmap: all alike, or spelt out.

use std::sync::Arc;

use super::InitialBits;

/// 64-bit words of a chunk.
pub(super) const CHUNK_WORDS: usize = 512;
/// The same for address arithmetic.
pub(super) const CHUNK_WORDS_U64: u64 = 512;
/// Pages of a chunk.
pub(super) const CHUNK_PAGES: u64 = CHUNK_WORDS_U64 * 64;

/// The bits of a chunk. Copies share what is spelt out until one of them changes.
#[derive(Clone, Debug)]
pub(super) enum Chunk {
    /// All alike.
    Uniform(InitialBits),
    /// Spelt out.
    Words(Arc<[u64; CHUNK_WORDS]>),
}

impl InitialBits {
    /// 64 such bits.
    pub(super) const fn word(self) -> u64 {
        match self {
            Self::Clear => 0,
            Self::Set => u64::MAX,
        }
    }
}

impl Chunk {
    /// Whether it is known to hold nothing but `bits`.
    pub(super) fn is_all(&self, bits: InitialBits) -> bool {
        matches!(self, Self::Uniform(own) if *own == bits)
    }

    /// Word `at`.
    pub(super) fn word(&self, at: usize) -> u64 {
        match self {
            Self::Uniform(bits) => bits.word(),
            Self::Words(words) => words[at],
        }
    }

    /// The words, spelt out from now on.
    pub(super) fn words(&mut self) -> &mut [u64; CHUNK_WORDS] {
        if let Self::Uniform(bits) = *self {
            *self = Self::Words(Arc::new([bits.word(); CHUNK_WORDS]));
        }
        match self {
            Self::Words(words) => Arc::make_mut(words),
            Self::Uniform(_) => unreachable!("spelt out above"),
        }
    }

    /// Sets the bits that `other` has.
    pub(super) fn add(&mut self, other: &Self) {
        match (&mut *self, other) {
            (_, Self::Uniform(InitialBits::Clear)) | (Self::Uniform(InitialBits::Set), _) => {}
            (_, Self::Uniform(InitialBits::Set)) | (Self::Uniform(InitialBits::Clear), _) => {
                *self = other.clone();
            }
            (Self::Words(own), Self::Words(other)) => {
                let own = Arc::make_mut(own).iter_mut();
                own.zip(other.iter()).for_each(|(own, other)| *own |= other);
            }
        }
    }

    /// How many of the first `pages` bits are set.
    pub(super) fn count(&self, pages: u64) -> u64 {
        match self {
            Self::Uniform(InitialBits::Clear) => 0,
            Self::Uniform(InitialBits::Set) => pages,
            Self::Words(words) => (0..)
                .zip(words.iter())
                .map(|(at, word)| u64::from((word & valid(pages, at)).count_ones()))
                .sum(),
        }
    }

    /// The first bit from `from` on that is set, or that is not.
    pub(super) fn find(&self, from: u64, set: bool) -> Option<u64> {
        let words = match self {
            Self::Uniform(bits) => {
                let hit = (*bits == InitialBits::Set) == set && from < CHUNK_PAGES;
                return hit.then_some(from);
            }
            Self::Words(words) => words,
        };
        let flip = if set { 0 } else { u64::MAX };
        let mut mask = u64::MAX << (from % 64);
        let first = usize::try_from(from / 64).ok()?;
        for (at, word) in (from / 64..).zip(words.get(first..)?) {
            let hit = (word ^ flip) & mask;
            if hit != 0 {
                return Some(at * 64 + u64::from(hit.trailing_zeros()));
            }
            mask = u64::MAX;
        }
        None
    }
}

/// Chunk of a word, and the word's place in it.
pub(super) fn place(word: u64) -> (usize, usize) {
    let small = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    (small(word / CHUNK_WORDS_U64), small(word % CHUNK_WORDS_U64))
}

/// The bits of word `word` that stand for one of `pages` pages.
pub(super) const fn valid(pages: u64, word: u64) -> u64 {
    match pages.saturating_sub(word.saturating_mul(64)) {
        0 => 0,
        pages @ 1..64 => (1 << pages) - 1,
        _ => u64::MAX,
    }
}

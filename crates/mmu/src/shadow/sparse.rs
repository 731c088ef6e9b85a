//! A word for each frame, where most frames have none.

use std::collections::BTreeMap;
use std::ops::Range;

/// Frames in a chunk.
const CHUNK: u64 = 512;
const WORDS: usize = 512;

/// Words by number. A chunk is there from the first word on that is not the default one.
#[derive(Clone, Debug)]
pub(super) struct Sparse<T> {
    chunks: BTreeMap<u64, Box<[T; WORDS]>>,
}

impl<T> Default for Sparse<T> {
    fn default() -> Self {
        Self {
            chunks: BTreeMap::new(),
        }
    }
}

fn split(at: u64) -> (u64, usize) {
    (at / CHUNK, usize::try_from(at % CHUNK).unwrap_or(0))
}

impl<T: Copy + Default + PartialEq> Sparse<T> {
    #[inline]
    pub(super) fn get(&self, at: u64) -> T {
        let (chunk, part) = split(at);
        let chunk = self.chunks.get(&chunk);
        chunk.map_or(T::default(), |words| words[part])
    }

    #[inline]
    pub(super) fn set(&mut self, at: u64, word: T) {
        let (chunk, part) = split(at);
        match self.chunks.get_mut(&chunk) {
            Some(words) => words[part] = word,
            None if word != T::default() => {
                let words = self.chunks.entry(chunk);
                let words = words.or_insert_with(|| Box::new([T::default(); WORDS]));
                words[part] = word;
            }
            None => {}
        }
    }

    /// The next word of a range that is not the default one.
    pub(super) fn next(&self, range: Range<u64>) -> Option<(u64, T)> {
        if range.is_empty() {
            return None;
        }
        let chunks = self
            .chunks
            .range(range.start / CHUNK..=(range.end - 1) / CHUNK);
        let words = chunks.flat_map(|(chunk, words)| {
            let numbers = (chunk * CHUNK..).zip(words.iter());
            numbers.filter(|(_, word)| **word != T::default())
        });
        let mut inside = words.filter(|(at, _)| range.contains(at));
        inside.next().map(|(at, word)| (at, *word))
    }

    /// All words that are not the default one.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, T)> + '_ {
        let words = self
            .chunks
            .iter()
            .flat_map(|(chunk, words)| (chunk * CHUNK..).zip(words.iter().copied()));
        words.filter(|(_, word)| *word != T::default())
    }
}

//! A sorted list of ranges in two levels: what slot lookups by frame and by host address run on.
//!
//! KVM keeps a red-black tree by frame and an interval tree by host address per slot set. Both need the same few
//! questions answered, and both hold at most 32767 entries, so one sorted array cut into chunks does: a packed
//! array of the chunks' first keys says which chunk, a packed array of the chunk's keys says where in it. Two short
//! searches touch fewer cache lines than one over all entries, and an insertion moves at most one chunk.
//!
//! Invariants: no chunk is empty; entries ascend by `(start, value)` within and across chunks, each pair once;
//! `firsts` and `max_ends` hold each chunk's lowest start and highest end.

use core::ops::Range;

#[cfg(test)]
mod tests;

/// The most entries of a chunk; found by measurement, small enough that an insertion costs about as much as in a
/// list of a few entries.
const CHUNK: usize = 128;
/// A chunk below this size is joined with a neighbour that has room.
const SPARSE: usize = CHUNK / 4;
/// The most entries of a chunk after joining two, so that the next insertion does not cut it again.
const JOINED: usize = CHUNK * 3 / 4;

/// A half-open range with its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Entry {
    /// First position.
    pub(crate) start: u64,
    /// The position behind the last one.
    pub(crate) end: u64,
    /// What the owner of the list wants to find.
    pub(crate) value: u32,
}

/// Ranges sorted by `(start, value)`; they may overlap.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ordered {
    firsts: Vec<u64>,
    max_ends: Vec<u64>,
    chunks: Vec<Chunk>,
    len: usize,
}

/// Consecutive entries, one array per field, since a search looks only at the starts.
#[derive(Clone, Debug, Default)]
struct Chunk {
    starts: Vec<u64>,
    ends: Vec<u64>,
    values: Vec<u32>,
}

/// How many of the ascending `keys` are at most `key`.
#[inline]
fn up_to(keys: &[u64], key: u64) -> usize {
    keys.partition_point(|k| *k <= key)
}

/// How many of the ascending `keys` are below `key`.
#[inline]
fn below(keys: &[u64], key: u64) -> usize {
    keys.partition_point(|k| *k < key)
}

impl Chunk {
    #[inline]
    fn len(&self) -> usize {
        self.starts.len()
    }

    #[inline]
    fn entry(&self, at: usize) -> Entry {
        Entry {
            start: self.starts[at],
            end: self.ends[at],
            value: self.values[at],
        }
    }

    fn entries(&self, range: Range<usize>) -> impl Iterator<Item = Entry> + '_ {
        range.map(|at| self.entry(at))
    }

    fn max_end(&self) -> u64 {
        self.ends.iter().copied().max().unwrap_or(0)
    }

    /// The place of `(start, value)`: where it is, or where it belongs.
    fn find(&self, start: u64, value: u32) -> Result<usize, usize> {
        let mut at = below(&self.starts, start);
        let same = self.starts[at..].iter().take_while(|s| **s == start);
        let end = at + same.count();
        at += self.values[at..end].partition_point(|v| *v < value);
        if at < end && self.values[at] == value {
            Ok(at)
        } else {
            Err(at)
        }
    }

    fn insert(&mut self, at: usize, entry: Entry) {
        self.starts.insert(at, entry.start);
        self.ends.insert(at, entry.end);
        self.values.insert(at, entry.value);
    }

    fn remove(&mut self, at: usize) -> Entry {
        Entry {
            start: self.starts.remove(at),
            end: self.ends.remove(at),
            value: self.values.remove(at),
        }
    }

    fn split_off(&mut self, at: usize) -> Self {
        Self {
            starts: self.starts.split_off(at),
            ends: self.ends.split_off(at),
            values: self.values.split_off(at),
        }
    }

    fn append(&mut self, other: &mut Self) {
        self.starts.append(&mut other.starts);
        self.ends.append(&mut other.ends);
        self.values.append(&mut other.values);
    }
}

impl Ordered {
    /// An empty list; allocates nothing.
    pub(crate) const fn new() -> Self {
        Self {
            firsts: Vec::new(),
            max_ends: Vec::new(),
            chunks: Vec::new(),
            len: 0,
        }
    }

    /// How many entries.
    #[inline]
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// Adds `[start, end)`. An entry with the same start and value is replaced.
    pub(crate) fn insert(&mut self, start: u64, end: u64, value: u32) {
        if self.chunks.is_empty() {
            self.push_chunk(0, Chunk::default());
        }
        let at = self.chunk_of(start, value);
        match self.chunks[at].find(start, value) {
            Ok(place) => {
                self.chunks[at].ends[place] = end;
                self.max_ends[at] = self.chunks[at].max_end();
            }
            Err(place) => {
                self.chunks[at].insert(place, Entry { start, end, value });
                self.firsts[at] = self.firsts[at].min(start);
                self.max_ends[at] = self.max_ends[at].max(end);
                self.len += 1;
                self.split_if_full(at);
            }
        }
    }

    /// Takes the entry of this start and value out; `false` when there is none.
    pub(crate) fn remove(&mut self, start: u64, value: u32) -> bool {
        if self.chunks.is_empty() {
            return false;
        }
        let at = self.chunk_of(start, value);
        let Ok(place) = self.chunks[at].find(start, value) else {
            return false;
        };
        let removed = self.chunks[at].remove(place);
        self.len -= 1;
        if self.chunks[at].len() == 0 {
            self.drop_chunk(at);
            return true;
        }
        self.firsts[at] = self.chunks[at].starts[0];
        // Only the entry that reached furthest can have defined the chunk's end.
        if removed.end == self.max_ends[at] {
            self.max_ends[at] = self.chunks[at].max_end();
        }
        self.join_if_sparse(at);
        true
    }

    /// The last entry that starts at or before `key`: the only one that can hold `key` when no two overlap.
    #[inline]
    pub(crate) fn predecessor(&self, key: u64) -> Option<Entry> {
        let (chunk, at) = self.position_before(key)?;
        Some(self.chunks[chunk].entry(at))
    }

    /// All entries that share a position with `[start, end)`, ascending; right also when entries overlap.
    pub(crate) fn overlapping(&self, start: u64, end: u64) -> impl Iterator<Item = Entry> + '_ {
        let reach = below(&self.firsts, end);
        let candidates = self.chunks[..reach].iter().zip(&self.max_ends[..reach]);
        candidates
            .filter(move |(_, max_end)| **max_end > start)
            .flat_map(move |(chunk, _)| chunk.entries(0..below(&chunk.starts, end)))
            .filter(move |entry| entry.end > start)
    }

    /// The first entry that shares a position with `[start, end)` and has not the value `except`.
    ///
    /// Only for lists whose entries do not overlap each other: at most the entry before `start` and the two behind
    /// it are looked at.
    pub(crate) fn disjoint_overlap(
        &self,
        start: u64,
        end: u64,
        except: Option<u32>,
    ) -> Option<Entry> {
        let wanted = |e: &Entry| Some(e.value) != except;
        let hit = |e: &Entry| e.start < end && e.end > start;
        let Some((chunk, at)) = self.position_before(start) else {
            return self.iter().take_while(hit).find(wanted);
        };
        let before = self.chunks[chunk].entry(at);
        if hit(&before) && wanted(&before) {
            return Some(before);
        }
        self.iter_from(chunk, at + 1).take_while(hit).find(wanted)
    }

    /// All entries, ascending by `(start, value)`.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Entry> + '_ {
        self.iter_from(0, 0)
    }

    /// The entries from place `at` of `chunk` on.
    fn iter_from(&self, chunk: usize, at: usize) -> impl Iterator<Item = Entry> + '_ {
        let chunks = self.chunks[chunk.min(self.chunks.len())..].iter();
        let skips = core::iter::once(at).chain(core::iter::repeat(0));
        chunks
            .zip(skips)
            .flat_map(|(chunk, skip)| chunk.entries(skip..chunk.len()))
    }

    /// Chunk and place of the last entry that starts at or before `key`.
    #[inline]
    fn position_before(&self, key: u64) -> Option<(usize, usize)> {
        let chunk = up_to(&self.firsts, key).checked_sub(1)?;
        let at = up_to(&self.chunks[chunk].starts, key).checked_sub(1)?;
        Some((chunk, at))
    }

    /// The chunk that `(start, value)` is in or belongs to. Many entries may share a start, hence the values count.
    fn chunk_of(&self, start: u64, value: u32) -> usize {
        let mut after = below(&self.firsts, start);
        let same = self.firsts[after..].iter().take_while(|f| **f == start);
        let end = after + same.count();
        after += self.chunks[after..end].partition_point(|chunk| chunk.values[0] <= value);
        after.saturating_sub(1)
    }

    fn push_chunk(&mut self, at: usize, chunk: Chunk) {
        self.firsts
            .insert(at, chunk.starts.first().copied().unwrap_or(u64::MAX));
        self.max_ends.insert(at, chunk.max_end());
        self.chunks.insert(at, chunk);
    }

    fn drop_chunk(&mut self, at: usize) {
        self.firsts.remove(at);
        self.max_ends.remove(at);
        self.chunks.remove(at);
    }

    fn split_if_full(&mut self, at: usize) {
        if self.chunks[at].len() <= CHUNK {
            return;
        }
        let upper = self.chunks[at].split_off(CHUNK / 2);
        self.max_ends[at] = self.chunks[at].max_end();
        self.push_chunk(at + 1, upper);
    }

    /// Keeps the number of chunks proportional to that of entries after many removals.
    fn join_if_sparse(&mut self, at: usize) {
        if self.chunks[at].len() >= SPARSE || self.chunks.len() == 1 {
            return;
        }
        let lower = at.saturating_sub(1);
        if self.chunks[lower].len() + self.chunks[lower + 1].len() > JOINED {
            return;
        }
        let mut upper = core::mem::take(&mut self.chunks[lower + 1]);
        self.chunks[lower].append(&mut upper);
        self.max_ends[lower] = self.max_ends[lower].max(self.max_ends[lower + 1]);
        self.drop_chunk(lower + 1);
    }
}

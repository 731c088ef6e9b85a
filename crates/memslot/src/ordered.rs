//! A sorted list of ranges in two levels: what slot lookups by frame and by host address run on.
//!
//! KVM keeps a red-black tree by frame and an interval tree by host address per slot set. Both need the same few
//! questions answered, and both hold at most 32767 entries, so one sorted array cut into chunks does: a packed
//! array of the chunks' first keys says which chunk, and a search in the chunk says where in it. Two short
//! searches touch fewer cache lines than one over all entries, and an insertion moves at most one chunk.
//!
//! Invariants: no chunk is empty; entries ascend by `(start, order)` within and across chunks, each pair once;
//! `firsts` and `max_ends` hold each chunk's lowest start and highest end.

#[cfg(test)]
mod tests;

/// The most entries of a chunk; found by measurement, small enough that an insertion costs about as much as in a
/// list of a few entries.
const CHUNK: usize = 32;
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
    /// The place among those with the same start.
    pub(crate) order: u32,
    /// What the owner of the list wants to find.
    pub(crate) value: u32,
}

/// Ranges sorted by `(start, order)`; they may overlap.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ordered {
    firsts: Vec<u64>,
    max_ends: Vec<u64>,
    chunks: Vec<Chunk>,
    len: usize,
}

/// Consecutive entries.
#[derive(Clone, Debug, Default)]
struct Chunk {
    entries: Vec<Entry>,
}

impl Chunk {
    #[inline]
    fn len(&self) -> usize {
        self.entries.len()
    }

    /// How many entries start at or before `key`.
    #[inline]
    fn up_to(&self, key: u64) -> usize {
        self.entries.partition_point(|entry| entry.start <= key)
    }

    /// The entries that start before `key`.
    fn below(&self, key: u64) -> &[Entry] {
        let count = self.entries.partition_point(|entry| entry.start < key);
        &self.entries[..count]
    }

    /// The lowest start, with its lowest order.
    fn first(&self) -> Option<(u64, u32)> {
        self.entries.first().map(|entry| (entry.start, entry.order))
    }

    fn max_end(&self) -> u64 {
        self.entries
            .iter()
            .map(|entry| entry.end)
            .max()
            .unwrap_or(0)
    }

    /// The place of `(start, order)`: where it is, or where it belongs.
    fn find(&self, start: u64, order: u32) -> Result<usize, usize> {
        self.entries
            .binary_search_by_key(&(start, order), |entry| (entry.start, entry.order))
    }

    fn split_off(&mut self, at: usize) -> Self {
        Self {
            entries: self.entries.split_off(at),
        }
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

    /// Adds a range. An entry with the same start and order is replaced.
    pub(crate) fn insert(&mut self, entry: Entry) {
        if self.chunks.is_empty() {
            self.push_chunk(0, Chunk::default());
        }
        let Entry {
            start, end, order, ..
        } = entry;
        let at = self.chunk_of(start, order);
        match self.chunks[at].find(start, order) {
            Ok(place) => {
                self.chunks[at].entries[place] = entry;
                self.max_ends[at] = self.chunks[at].max_end();
            }
            Err(place) => {
                self.chunks[at].entries.insert(place, entry);
                self.firsts[at] = self.firsts[at].min(start);
                self.max_ends[at] = self.max_ends[at].max(end);
                self.len += 1;
                self.split_if_full(at);
            }
        }
    }

    /// Takes the entry of this start and order out; `false` when there is none.
    pub(crate) fn remove(&mut self, start: u64, order: u32) -> bool {
        if self.chunks.is_empty() {
            return false;
        }
        let at = self.chunk_of(start, order);
        let Ok(place) = self.chunks[at].find(start, order) else {
            return false;
        };
        let removed = self.chunks[at].entries.remove(place);
        self.len -= 1;
        if self.chunks[at].len() == 0 {
            self.drop_chunk(at);
            return true;
        }
        self.firsts[at] = self.chunks[at].entries[0].start;
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
        // Most VMs have few slots, and those need no search for the chunk.
        let chunk = match self.chunks.as_slice() {
            [only] => only,
            chunks => chunks.get(self.chunks_up_to(key).wrapping_sub(1))?,
        };
        chunk.entries.get(chunk.up_to(key).wrapping_sub(1)).copied()
    }

    /// All entries that share a position with `[start, end)`, ascending; right also when entries overlap.
    pub(crate) fn overlapping(&self, start: u64, end: u64) -> impl Iterator<Item = Entry> + '_ {
        let reach = self.firsts.partition_point(|first| *first < end);
        let candidates = self.chunks[..reach].iter().zip(&self.max_ends[..reach]);
        candidates
            .filter(move |(_, max_end)| **max_end > start)
            .flat_map(move |(chunk, _)| chunk.below(end).iter().copied())
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
        let before = self.chunks[chunk].entries[at];
        if hit(&before) && wanted(&before) {
            return Some(before);
        }
        self.iter_from(chunk, at + 1).take_while(hit).find(wanted)
    }

    /// All entries, ascending by `(start, order)`.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Entry> + '_ {
        self.iter_from(0, 0)
    }

    /// The entries from place `at` of `chunk` on.
    fn iter_from(&self, chunk: usize, at: usize) -> impl Iterator<Item = Entry> + '_ {
        let chunks = self.chunks[chunk.min(self.chunks.len())..].iter();
        let skips = core::iter::once(at).chain(core::iter::repeat(0));
        chunks
            .zip(skips)
            .flat_map(|(chunk, skip)| chunk.entries[skip..].iter().copied())
    }

    /// How many chunks start at or before `key`.
    #[inline]
    fn chunks_up_to(&self, key: u64) -> usize {
        self.firsts.partition_point(|first| *first <= key)
    }

    /// Chunk and place of the last entry that starts at or before `key`.
    #[inline]
    fn position_before(&self, key: u64) -> Option<(usize, usize)> {
        let chunk = self.chunks_up_to(key).checked_sub(1)?;
        let at = self.chunks[chunk].up_to(key).checked_sub(1)?;
        Some((chunk, at))
    }

    /// The chunk that `(start, order)` is in or belongs to. Many entries may share a start, hence the order counts.
    fn chunk_of(&self, start: u64, order: u32) -> usize {
        let mut after = self.firsts.partition_point(|first| *first < start);
        let same = self.firsts[after..].iter().take_while(|f| **f == start);
        let end = after + same.count();
        after += self.chunks[after..end].partition_point(|c| c.first() <= Some((start, order)));
        after.saturating_sub(1)
    }

    fn push_chunk(&mut self, at: usize, chunk: Chunk) {
        let first = chunk.first().map_or(u64::MAX, |(start, _)| start);
        self.firsts.insert(at, first);
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
        self.chunks[lower].entries.append(&mut upper.entries);
        self.max_ends[lower] = self.max_ends[lower].max(self.max_ends[lower + 1]);
        self.drop_chunk(lower + 1);
    }
}

//! Tables by number.

use std::sync::OnceLock;

use crate::sync::{AtomicU64, Mutex, Ordering, lock, set_value, value};

/// Entries of a table. In this crate's own tests a model checker cannot explore 512.
pub const ENTRIES: usize = if cfg!(all(test, any(loom, shuttle))) {
    4
} else {
    512
};

/// Tables made at a time: 2 MiB of entries, or a few where a model checker makes them anew for every run.
const CHUNK: u32 = if cfg!(any(loom, shuttle)) { 4 } else { 512 };

/// Notes in a word.
const NOTES: u32 = 32;

/// The entries of one table.
pub type Table = [AtomicU64; ENTRIES];

/// The number of a table in its arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct TableId(u32);

impl TableId {
    /// The number, from 0.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// The table of this number.
    #[inline]
    pub const fn new(raw: u32) -> Self {
        Self(raw)
    }

    /// The raw number.
    #[inline]
    pub const fn raw(self) -> u32 {
        self.0
    }
}

#[derive(Debug)]
#[repr(align(64))]
struct Notes([AtomicU64; CHUNK.div_ceil(NOTES) as usize]);

/// Tables and what is known about each, beside it. Three pointers and a state of 8 bytes: a walk finds a chunk by a shift.
#[derive(Debug)]
struct Chunk<M> {
    tables: Box<[Table; CHUNK as usize]>,
    meta: Box<[M; CHUNK as usize]>,
    /// Two bits for each table, all of them on two cache lines.
    notes: Box<Notes>,
}

impl<M: Default> Chunk<M> {
    fn new(fill: u64) -> Self {
        Self {
            tables: boxed(|| core::array::from_fn(|_| AtomicU64::new(fill))),
            meta: boxed(M::default),
            notes: Box::new(Notes(core::array::from_fn(|_| AtomicU64::new(0)))),
        }
    }
}

/// An array made in its place: it is too large for a stack.
fn boxed<T>(make: impl Fn() -> T) -> Box<[T; CHUNK as usize]> {
    let slice: Box<[T]> = (0..CHUNK).map(|_| make()).collect();
    match slice.try_into() {
        Ok(array) => array,
        Err(_) => unreachable!("there are as many elements as the array has"),
    }
}

impl<M> Chunk<M> {
    #[inline]
    fn note(&self, id: TableId) -> Note<'_> {
        let (word, shift) = place_of_note(id);
        Note {
            word: &self.notes.0[word],
            shift,
        }
    }
}

/// A number below 4 that is kept with a table. What it means is the user's to say. It starts as 0, and stays when the table is
/// recycled.
#[derive(Clone, Copy, Debug)]
pub struct Note<'a> {
    word: &'a AtomicU64,
    shift: u32,
}

impl Note<'_> {
    /// The number.
    #[inline]
    pub fn get(self) -> u8 {
        (self.word.load(Ordering::Relaxed) >> self.shift & 0b11) as u8
    }

    /// Sets bits of it.
    #[inline]
    pub fn add(self, bits: u8) {
        let bits = u64::from(bits & 0b11) << self.shift;
        self.word.fetch_or(bits, Ordering::Relaxed);
    }

    /// Clears bits of it. Costs a load where they are clear.
    #[inline]
    pub fn take(self, bits: u8) {
        let bits = u64::from(bits & 0b11) << self.shift;
        // A store would take the line from others.
        if self.word.load(Ordering::Relaxed) & bits != 0 {
            self.word.fetch_and(!bits, Ordering::Relaxed);
        }
    }
}

/// Numbers that can be given out.
#[derive(Debug, Default)]
struct Free {
    recycled: Vec<TableId>,
    /// The first number never given out.
    next: u32,
}

/// Tables of atomic entries, found by number in constant time, made by the chunk and recycled for ever.
///
/// Tables never move and are never unmapped, so a shared reference to the arena reaches any of them without a lock; only
/// allocation takes one. `M` is what is kept beside each table.
///
/// ```
/// use slat_mmu::table::Arena;
/// use std::sync::atomic::Ordering;
/// let mut arena = Arena::<()>::new(1 << 63, 1024);
/// let id = arena.allocate().unwrap();
/// assert_eq!(arena.table(id)[7].load(Ordering::Relaxed), 1 << 63);
/// *arena.table_mut(id)[7].get_mut() = 0x807;
/// arena.recycle(id);
/// assert_eq!((arena.allocate(), arena.in_use()), (Some(id), 1));
/// assert_eq!(arena.table(id)[7].load(Ordering::Relaxed), 1 << 63);
/// ```
#[derive(Debug)]
pub struct Arena<M> {
    chunks: Box<[OnceLock<Chunk<M>>]>,
    free: Mutex<Free>,
    fill: u64,
}

impl<M: Default> Arena<M> {
    /// An arena of at most `limit` tables (rounded up to a chunk), whose entries start as `fill`. Costs a few bytes for
    /// each 512 tables of the limit until tables are allocated.
    pub fn new(fill: u64, limit: u32) -> Self {
        Self {
            chunks: (0..limit.div_ceil(CHUNK))
                .map(|_| OnceLock::new())
                .collect(),
            free: Mutex::new(Free::default()),
            fill,
        }
    }

    /// A table whose entries are all the fill value; `None` when the limit is reached.
    pub fn allocate(&self) -> Option<TableId> {
        let mut free = lock(&self.free);
        if let Some(id) = free.recycled.pop() {
            drop(free);
            self.clear(id);
            return Some(id);
        }
        let id = TableId(free.next);
        let chunk = self.chunks.get((id.0 / CHUNK) as usize)?;
        free.next += 1;
        // Made under the lock: two threads at the border of a chunk would make it twice otherwise.
        let _made = chunk.get_or_init(|| Chunk::new(self.fill));
        Some(id)
    }

    /// A table whose entries are whatever they were, for whoever writes all of them before anybody sees one.
    pub fn allocate_unfilled(&mut self) -> Option<TableId> {
        let recycled = lock(&self.free).recycled.pop();
        recycled.or_else(|| self.allocate())
    }

    fn clear(&self, id: TableId) {
        for entry in self.table(id) {
            entry.store(self.fill, Ordering::Relaxed);
        }
    }

    /// Lets a table's number be given out again. Nobody may walk through the table any more: see
    /// [`Epochs`](super::Epochs).
    pub fn recycle(&self, id: TableId) {
        lock(&self.free).recycled.push(id);
    }

    /// Memory for entries and for what is kept beside them, in bytes, given out or not.
    pub fn bytes(&self) -> usize {
        let made = self.chunks.iter().filter(|chunk| chunk.get().is_some());
        let table = size_of::<Table>() + size_of::<M>();
        size_of_val(&*self.chunks) + made.count() * CHUNK as usize * table
    }

    /// The list of numbers that can be given out again, for whoever has the arena to himself and many to add.
    pub(crate) fn take_recycled(&mut self) -> Vec<TableId> {
        core::mem::take(&mut lock(&self.free).recycled)
    }

    /// Puts the list back.
    pub(crate) fn return_recycled(&mut self, recycled: Vec<TableId>) {
        lock(&self.free).recycled = recycled;
    }

    /// How many tables can still be given out.
    pub fn left(&self) -> usize {
        let limit = self.chunks.len() * CHUNK as usize;
        limit - self.in_use()
    }

    /// How many numbers were ever given out: those below this one.
    pub(crate) fn made(&self) -> u32 {
        lock(&self.free).next
    }

    /// Visits the numbers that came back and wait to be given out again. The arena must not be used meanwhile.
    pub(crate) fn visit_recycled(&self, visit: impl FnMut(TableId)) {
        lock(&self.free).recycled.iter().copied().for_each(visit);
    }

    /// How many tables are given out.
    pub fn in_use(&self) -> usize {
        let free = lock(&self.free);
        free.next as usize - free.recycled.len()
    }
}

impl<M> Arena<M> {
    /// The entries of a table.
    ///
    /// # Panics
    /// The number was never given out.
    #[inline]
    pub fn table(&self, id: TableId) -> &Table {
        &self.chunk(id).tables[(id.0 % CHUNK) as usize]
    }

    /// What is known about a table.
    ///
    /// # Panics
    /// The number was never given out.
    #[inline]
    pub fn meta(&self, id: TableId) -> &M {
        &self.chunk(id).meta[(id.0 % CHUNK) as usize]
    }

    /// All of it: the entries of a table, what is known about it, and its note.
    ///
    /// # Panics
    /// The number was never given out.
    #[inline]
    pub(crate) fn parts(&self, id: TableId) -> (&Table, &M, Note<'_>) {
        let (chunk, at) = (self.chunk(id), (id.0 % CHUNK) as usize);
        (&chunk.tables[at], &chunk.meta[at], chunk.note(id))
    }

    /// The entries of a table, for plain stores: whoever has the arena to itself needs no atomic operation.
    ///
    /// # Panics
    /// The number was never given out.
    #[inline]
    pub fn table_mut(&mut self, id: TableId) -> &mut Table {
        &mut self.chunk_mut(id).tables[(id.0 % CHUNK) as usize]
    }

    /// What is known about a table, to be changed by whoever has the arena to itself.
    ///
    /// # Panics
    /// The number was never given out.
    #[inline]
    pub fn meta_mut(&mut self, id: TableId) -> &mut M {
        &mut self.chunk_mut(id).meta[(id.0 % CHUNK) as usize]
    }

    /// The note that is kept with a table. A chunk's notes lie close together, so that going through many tables costs little.
    ///
    /// # Panics
    /// The number was never given out.
    #[inline]
    pub fn note(&self, id: TableId) -> Note<'_> {
        self.chunk(id).note(id)
    }

    /// Changes a table's note, for whoever has the arena to itself.
    ///
    /// # Panics
    /// The number was never given out.
    #[inline]
    pub fn set_note(&mut self, id: TableId, note: u8) {
        let (word, shift) = place_of_note(id);
        let word = &mut self.chunk_mut(id).notes.0[word];
        let others = value(word) & !(0b11 << shift);
        set_value(word, others | u64::from(note & 0b11) << shift);
    }

    /// Reads the notes of many tables.
    #[inline]
    pub(crate) fn notes(&self) -> NoteReader<'_, M> {
        NoteReader {
            arena: self,
            group: None,
            word: 0,
        }
    }

    /// Finds tables for one walk, which begins at this one.
    ///
    /// # Panics
    /// The number was never given out.
    #[inline]
    pub(crate) fn finder(&self, first: TableId) -> Finder<'_, M> {
        Finder {
            arena: self,
            number: first.0 / CHUNK,
            tables: &self.chunk(first).tables,
        }
    }

    #[inline]
    fn chunk(&self, id: TableId) -> &Chunk<M> {
        let chunk = self.chunks[(id.0 / CHUNK) as usize].get();
        chunk.expect("a table that was given out lies in a chunk that was made")
    }

    #[inline]
    fn chunk_mut(&mut self, id: TableId) -> &mut Chunk<M> {
        let chunk = self.chunks[(id.0 / CHUNK) as usize].get_mut();
        chunk.expect("a table that was given out lies in a chunk that was made")
    }
}

/// The word of a table's note in its chunk, and the note's lowest bit.
#[inline]
const fn place_of_note(id: TableId) -> (usize, u32) {
    let number = id.0 % CHUNK;
    ((number / NOTES) as usize, number % NOTES * 2)
}

/// Finds the tables of one walk. Most lie in the chunk of the one before: a CPU guesses that and need not wait for the
/// chunk to be looked up.
#[derive(Debug)]
pub(crate) struct Finder<'a, M> {
    arena: &'a Arena<M>,
    /// The chunk of the table found last.
    number: u32,
    tables: &'a [Table; CHUNK as usize],
}

impl<'a, M> Finder<'a, M> {
    /// The entries of a table.
    ///
    /// # Panics
    /// The number was never given out.
    #[inline]
    pub(crate) fn table(&mut self, id: TableId) -> &'a Table {
        let number = id.0 / CHUNK;
        if number != self.number {
            (self.number, self.tables) = (number, &self.arena.chunk(id).tables);
        }
        &self.tables[(id.0 % CHUNK) as usize]
    }
}

/// Reads the notes of one table after the other, for whoever has the arena to itself: tables whose numbers are near to each
/// other share a word, which is read once.
#[derive(Debug)]
pub(crate) struct NoteReader<'a, M> {
    arena: &'a Arena<M>,
    /// The tables whose notes are in the word read last.
    group: Option<u32>,
    word: u64,
}

impl<M> NoteReader<'_, M> {
    /// A table's note.
    ///
    /// # Panics
    /// The number was never given out.
    #[inline]
    pub(crate) fn get(&mut self, id: TableId) -> u8 {
        const GROUP: u32 = if CHUNK < NOTES { CHUNK } else { NOTES };
        let (number, shift) = place_of_note(id);
        if self.group != Some(id.0 / GROUP) {
            let word = &self.arena.chunk(id).notes.0[number];
            (self.group, self.word) = (Some(id.0 / GROUP), word.load(Ordering::Relaxed));
        }
        (self.word >> shift & 0b11) as u8
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_number_is_given_out_once_until_it_comes_back() {
        let arena = Arena::<()>::new(0, 1500);
        let mut seen = BTreeSet::new();
        while let Some(id) = arena.allocate() {
            assert!(seen.insert(id));
        }
        // The limit is rounded up to whole chunks.
        assert_eq!((seen.len(), arena.in_use()), (1536, 1536));
        let back = TableId::new(700);
        arena.recycle(back);
        assert_eq!((arena.allocate(), arena.allocate()), (Some(back), None));
    }

    #[test]
    fn a_table_comes_back_clean() {
        let arena = Arena::<()>::new(1 << 63, 1);
        let id = arena.allocate().unwrap();
        for entry in arena.table(id) {
            entry.store(0x5a0, Ordering::Relaxed);
        }
        arena.recycle(id);
        assert_eq!(arena.allocate(), Some(id));
        assert!(
            arena
                .table(id)
                .iter()
                .all(|e| e.load(Ordering::Relaxed) == 1 << 63)
        );
    }

    #[test]
    fn every_table_has_its_own_note() {
        let mut arena = Arena::<()>::new(0, 600);
        let ids: Vec<TableId> = std::iter::from_fn(|| arena.allocate()).collect();
        let note = |number: usize| u8::try_from(number / 3 % 4).unwrap();
        for (number, &id) in ids.iter().enumerate() {
            arena.set_note(id, note(number));
        }
        let notes = |arena: &Arena<()>| {
            ids.iter()
                .map(|&id| arena.note(id).get())
                .collect::<Vec<_>>()
        };
        let mut expected: Vec<u8> = (0..ids.len()).map(note).collect();
        assert_eq!(notes(&arena), expected);
        arena.note(ids[32]).add(0b01);
        arena.note(ids[9]).take(0b10);
        arena.note(ids[513]).take(0b11);
        (expected[32], expected[9], expected[513]) = (0b11, 0b01, 0);
        assert_eq!(notes(&arena), expected);
    }

    #[test]
    fn a_finder_finds_what_the_arena_finds() {
        let arena = Arena::<()>::new(0, 1500);
        let ids: Vec<TableId> = std::iter::from_fn(|| arena.allocate()).collect();
        let mut finder = arena.finder(ids[0]);
        for number in [0, 511, 512, 3, 1535, 1024, 512, 0] {
            let id = ids[number];
            assert!(std::ptr::eq(finder.table(id), arena.table(id)), "{number}");
        }
    }

    #[test]
    fn threads_share_an_arena() {
        let arena = Arena::<()>::new(0, 1 << 14);
        let numbers = std::thread::scope(|scope| {
            let take = || {
                (0..2000)
                    .filter_map(|_| arena.allocate())
                    .collect::<Vec<_>>()
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            let join = |t: std::thread::ScopedJoinHandle<'_, Vec<TableId>>| t.join().unwrap();
            threads.into_iter().flat_map(join).collect::<BTreeSet<_>>()
        });
        assert_eq!(numbers.len(), 8000);
    }
}

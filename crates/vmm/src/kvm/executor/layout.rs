//! What the guest of executed accesses has in its own pages: tables, descriptors, handlers, code.

use slat_memslot::PAGE_SIZE;
use slat_mmu::walk::PagingMode;

// Pages of the guest's own. Page 0 is the top table, whose first entry is the guest's; these are the tables below.
const TABLE_4: u64 = 10 << 12;
const TABLE_3: u64 = 1 << 12;
const TABLE_2: u64 = 2 << 12;
const TABLE_1: u64 = 3 << 12;
pub(super) const GDT: u64 = 4 << 12;
pub(super) const IDT: u64 = 5 << 12;
pub(super) const TSS: u64 = 6 << 12;
pub(super) const STACK_TOP: u64 = 8 << 12;
pub(super) const HANDLERS: u64 = 8 << 12;
pub(super) const KERNEL_CODE: u64 = 9 << 12;
pub(super) const USER_CODE: u64 = 16 << 12;
/// The pages that are cleared before they are filled.
const OWN_PAGES: u64 = 11;

/// `hlt`.
pub(super) const HALT: u8 = 0xf4;
/// Bytes between two pieces of code.
pub(super) const PIECE: u64 = 8;
/// `mov al, [rbx]`, `mov [rbx], al`; then both and `jmp rbx` after `wrpkru; mov eax, ebp`. A halt follows each.
const CODE: [[u8; 8]; 5] = [
    [0x8a, 0x03, HALT, HALT, HALT, HALT, HALT, HALT],
    [0x88, 0x03, HALT, HALT, HALT, HALT, HALT, HALT],
    [0x0f, 0x01, 0xef, 0x89, 0xe8, 0x8a, 0x03, HALT],
    [0x0f, 0x01, 0xef, 0x89, 0xe8, 0x88, 0x03, HALT],
    [0x0f, 0x01, 0xef, 0x89, 0xe8, 0xff, 0xe3, HALT],
];

/// Present, writable, accessed, dirty; and for user mode.
const SUPERVISOR: u64 = 0x63;
const USER: u64 = 0x67;

/// The selectors of the guest's segments; data for user mode is 16 behind.
pub(super) const DATA_SELECTOR: u16 = 0x10;
pub(super) const TSS_SELECTOR: u16 = 0x28;

/// The selector of code in supervisor mode; code for user mode is 16 and 8 behind.
pub(super) const fn code_selector(long: bool, user: bool) -> u16 {
    match (long, user) {
        (true, false) => 0x08,
        (true, true) => 0x18,
        (false, false) => 0x38,
        (false, true) => 0x40,
    }
}

const DESCRIPTORS: [u64; 9] = [
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00af_fb00_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x0000_8b00_0000_0067 | TSS << 16,
    0,
    0x00cf_9b00_0000_ffff,
    0x00cf_fb00_0000_ffff,
];

/// The bytes of the descriptor table, less one.
pub(super) const GDT_LIMIT: u16 = 8 * 9 - 1;

const _: () = assert!(8 * DESCRIPTORS.len() - 1 == GDT_LIMIT as usize);

/// Whether a mode is long mode.
pub(super) const fn is_long(mode: PagingMode) -> bool {
    matches!(mode, PagingMode::Level4 | PagingMode::Level5)
}

/// All words of the guest's own pages that are not zero, for a mode.
pub(super) fn own_words(mode: PagingMode) -> Vec<(u64, u64)> {
    let mut words = tables(mode);
    words.extend((0..).map(|index| GDT + 8 * index).zip(DESCRIPTORS));
    // Where the stack of supervisor mode begins: RSP0, which is not aligned to words, or ESP0 and SS0.
    words.push((TSS, STACK_TOP << 32));
    if !is_long(mode) {
        words.push((TSS + 8, u64::from(DATA_SELECTOR)));
    }
    let selector = u64::from(code_selector(is_long(mode), false));
    for vector in 0..32 {
        let handler = HANDLERS + 16 * vector;
        let gate =
            handler & 0xffff | selector << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48;
        words.push((IDT + gate_bytes(mode) * vector, gate));
    }
    let halts = u64::from_le_bytes([HALT; 8]);
    words.extend((0..PAGE_SIZE).step_by(8).map(|at| (HANDLERS + at, halts)));
    for code in [KERNEL_CODE, USER_CODE] {
        let pieces = CODE.iter().map(|piece| u64::from_le_bytes(*piece));
        words.extend((0..).map(|index| code + PIECE * index).zip(pieces));
    }
    words
}

/// The bytes of an interrupt gate.
const fn gate_bytes(mode: PagingMode) -> u64 {
    if is_long(mode) { 16 } else { 8 }
}

/// The bytes of the table of interrupt gates, less one.
pub(super) const fn idt_limit(mode: PagingMode) -> u16 {
    if is_long(mode) { 511 } else { 255 }
}

/// The pages to be cleared first.
pub(super) fn own_pages() -> impl Iterator<Item = u64> {
    (0..OWN_PAGES).map(|page| page << 12).chain([USER_CODE])
}

/// The tables that map the guest's own pages where they are.
fn tables(mode: PagingMode) -> Vec<(u64, u64)> {
    let chain: &[u64] = match mode {
        PagingMode::Level5 => &[0, TABLE_4, TABLE_3, TABLE_2, TABLE_1],
        PagingMode::Pae => &[0, TABLE_2, TABLE_1],
        PagingMode::Bits32 | PagingMode::Bits32Pse => &[0, TABLE_1],
        _ => &[0, TABLE_3, TABLE_2, TABLE_1],
    };
    let links = chain.windows(2).map(|pair| match pair {
        // A pointer of PAE paging has no rights.
        [0, table] if mode == PagingMode::Pae => (0, table | 1),
        [from, table] => (*from, table | USER),
        _ => (0, 0),
    });
    let mut words: Vec<(u64, u64)> = links.collect();
    let leaf = |page: u64| match page << 12 {
        USER_CODE => USER_CODE | USER,
        own if (GDT..=KERNEL_CODE).contains(&own) => own | SUPERVISOR,
        _ => 0,
    };
    let narrow = matches!(mode, PagingMode::Bits32 | PagingMode::Bits32Pse);
    words.extend(
        (0..=USER_CODE >> 12).filter_map(|page| match (narrow, page % 2) {
            (false, _) => Some((TABLE_1 + 8 * page, leaf(page))),
            (true, 0) => Some((TABLE_1 + 4 * page, leaf(page) | leaf(page + 1) << 32)),
            (true, _) => None,
        }),
    );
    words
}

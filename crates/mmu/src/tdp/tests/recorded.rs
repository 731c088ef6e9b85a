//! The order of events as kernels were seen to have it.
//!
//! `recordings/` holds, by machine and scenario, what kernel 6.12.117 did to its page tables, traced on emulated CPUs:
//! AMD with four and five levels; Intel with A/D bits and PML, with A/D bits alone, without, and with five levels. Each
//! operation is what made the kernel do it, and the indented lines below are the kernel's trace events. They are replayed
//! on [`Tables`], and every event has to be the same.
//!
//! | line | meaning |
//! |---|---|
//! | `acquire ROLE` | a vCPU takes the root of this role |
//! | `map asN GFN lN PFN WANT [read-only] [logged] [nx] [pat]` | a fault, or a prefetch |
//! | `mmio asN GFN GENERATION` | a fault where no slot is |
//! | `leafs asN START END` | the leaves of a range are zapped in all roots of an address space |
//! | `split asN START END lN` | the huge leaves of a range are split |
//! | `collapse asN GFN lN` | a table makes room for a huge leaf, the slot's writes being logged no more |
//! | `fast`, `all` | all roots are invalidated and zapped; the VM dies |
//! | `poke asN GFN lN OLD -> NEW` | hardware, a fast fault, aging or the dirty log changed the leaf |
//! | `spte asN GFN lN OLD -> NEW` | `kvm_tdp_mmu_spte_changed` |
//! | `page GFN lN ROLE`, `zapped GFN lN` | `kvm_mmu_get_page`, `kvm_mmu_prepare_zap_page` |
//! | `set GFN lN SPTE`, `mmio GFN GENERATION` | `kvm_mmu_set_spte`, `mark_mmio_spte` |
//! | `split GFN lN SPTE ERRNO` | `kvm_mmu_split_huge_page` |
//!
//! Numbers are hexadecimal. `-` is the empty entry, `!` the frozen one, `T3+827` a link with these bits to the third table
//! that was linked. `x200` at the end stands for as many entries that follow each other, pages alike.

use std::collections::HashMap;

use slat_memslot::{AsId, Generation, Level};

use super::*;
use crate::role::RoleLayout;
use crate::spte::{Access, Ept, Fill, GuestPat, HostWrite, LeafRequest, NxHugePages};
use crate::sync::Ordering;
use crate::table::span;

/// The words of a line, taken one by one.
struct Words<'l>(core::str::SplitWhitespace<'l>);

impl<'l> Words<'l> {
    fn of(line: &'l str) -> Self {
        Self(line.split_whitespace())
    }

    fn next(&mut self) -> &'l str {
        self.0.next().unwrap_or("")
    }

    fn hex(&mut self) -> u64 {
        u64::from_str_radix(self.next(), 16).unwrap()
    }

    fn space(&mut self) -> AsId {
        AsId::new(self.next().strip_prefix("as").unwrap().parse().unwrap()).unwrap()
    }

    fn level(&mut self) -> Level {
        let number: usize = self.next().strip_prefix('l').unwrap().parse().unwrap();
        Level::ALL[number - 1]
    }

    fn size(&mut self) -> PageSize {
        match self.level() {
            Level::L1 => PageSize::Size4K,
            Level::L2 => PageSize::Size2M,
            _ => PageSize::Size1G,
        }
    }

    fn range(&mut self) -> GfnRange {
        let (start, end) = (self.hex(), self.hex());
        GfnRange::between(Gfn::new(start), Gfn::new(end)).unwrap()
    }
}

/// An entry of a line for the `n`-th of a run of pages.
fn nth_value(value: &str, level: Level, n: u64) -> String {
    match u64::from_str_radix(value, 16) {
        Ok(raw) => format!("{:x}", raw + ((n * span(level)) << 12)),
        Err(_) => value.into(),
    }
}

/// The lines that a line stands for.
fn unfold(line: &str) -> Vec<String> {
    let Some((one, count)) = line.rsplit_once(" x") else {
        return vec![line.into()];
    };
    let mut words = Words::of(one);
    let (what, space, gfn, level) = (words.next(), words.next(), words.hex(), words.level());
    let (old, _, new) = (words.next(), words.next(), words.next());
    let count = u64::from_str_radix(count, 16).unwrap();
    let nth = |n| {
        let (old, new) = (nth_value(old, level, n), nth_value(new, level, n));
        let gfn = gfn + n * span(level);
        format!("{what} {space} {gfn:x} l{} {old} -> {new}", level as u8)
    };
    (0..count).map(nth).collect()
}

/// A machine in the middle of a scenario.
struct Replay<F: Format> {
    tables: Tables<F>,
    reader: Reader,
    events: Vec<Event<F>>,
    /// The newest root of each address space.
    roots: [Option<TableId>; 2],
    /// How tables are called, by number, and how many names were given.
    names: HashMap<u64, u64>,
    named: u64,
}

impl<F: Format> Replay<F> {
    fn new(host: &Host) -> Self {
        let tables = Tables::new(host);
        Self {
            reader: tables.reader().unwrap(),
            tables,
            events: Vec::new(),
            roots: [None; 2],
            names: HashMap::new(),
            named: 0,
        }
    }

    fn root(&self, space: AsId) -> TableId {
        self.roots[space.index()].unwrap()
    }

    fn shared(&mut self) -> Locked<Shared<'_, F, NoExternal, NoCheck>, &mut Vec<Event<F>>> {
        self.tables.shared(&mut self.reader, &mut self.events)
    }

    /// Does what a line says.
    fn act(&mut self, line: &str) {
        let mut words = Words::of(line);
        match words.next() {
            "acquire" => self.acquire(words.hex()),
            "map" => self.map(&mut words),
            "mmio" => {
                let (root, gfn) = (self.root(words.space()), Gfn::new(words.hex()));
                let request = MapRequest::mmio(gfn, Generation::new(words.hex()));
                let mapped = self.shared().map(root, &request).unwrap();
                assert_eq!(mapped.resolution, Resolution::Emulate);
            }
            "leafs" => {
                let mut zap = ZapLeafs::of_address_space(words.space(), words.range());
                let locked = &mut self.tables.exclusive(&mut self.events);
                assert_eq!(zap.run(locked, &mut Uninterrupted), Progress::Done);
            }
            "split" => {
                let (space, range, target) = (words.space(), words.range(), words.size());
                let mut split = SplitHugePages::new(space, range, target, NxHugePages::Off);
                let progress = split.run(&mut self.shared(), &mut Uninterrupted);
                assert_eq!(progress, Ok(Progress::Done));
            }
            "collapse" => {
                let (root, gfn) = (self.root(words.space()), Gfn::new(words.hex()));
                let collapsed = self
                    .shared()
                    .collapse(root, gfn, words.size(), Collapse::Zap);
                assert_eq!(collapsed, Collapsed::Done);
            }
            // Nothing was there to collapse.
            "collapsible" => {}
            "fast" => {
                self.tables.exclusive(&mut self.events).invalidate_roots();
                // The recorded kernels were built with CONFIG_KVM_PROVE_MMU.
                let mut zap = ZapInvalidated::new(Passes::LargestFirst);
                let progress = zap.run(&mut self.shared(), &mut Uninterrupted);
                assert_eq!(progress, Progress::Done);
            }
            "all" => {
                let mut zap = ZapAll::new(Passes::LargestFirst);
                let locked = &mut self.tables.exclusive(&mut self.events);
                assert_eq!(zap.run(locked, &mut Uninterrupted), Progress::Done);
            }
            "poke" => self.poke(&mut words),
            _ => panic!("what is {line:?}?"),
        }
    }

    fn acquire(&mut self, word: u64) {
        let word = u32::try_from(word).unwrap();
        let role = PageRole::from_word(RoleLayout::Baseline, word).unwrap();
        let root = self.shared().acquire_root(role).unwrap().root();
        let table = self.shared().root_table(root);
        self.roots[role.as_id().index()] = table;
    }

    fn map(&mut self, words: &mut Words<'_>) {
        let (root, gfn, size) = (
            self.root(words.space()),
            Gfn::new(words.hex()),
            words.size(),
        );
        let mut page = LeafRequest::new(Spte::from_raw(0), size, Pfn::new(words.hex()));
        let access = match words.next() {
            "read" => Access::USER,
            "write" => Access::WRITE,
            "execute" => Access::EXECUTE,
            _ => Access::empty(),
        };
        if access.is_empty() {
            page.fill = Fill::Prefetch;
        }
        for word in words.0.by_ref() {
            match word {
                "read-only" => page.host_write = HostWrite::Refused,
                "logged" => page.dirty_log = true,
                "pat" => page.guest_pat = GuestPat::Honoured,
                _ => page.nx_huge_pages = NxHugePages::On,
            }
        }
        let target = Target::Page(page);
        let request = MapRequest {
            gfn,
            size,
            access,
            target,
        };
        let _mapped = self.shared().map(root, &request).unwrap();
    }

    /// Changes a leaf behind the tables' back, as hardware does, and what is not part of this module.
    fn poke(&mut self, words: &mut Words<'_>) {
        let (root, gfn, level) = (self.root(words.space()), words.hex(), words.level());
        let (old, _, new) = (words.hex(), words.next(), words.hex());
        let found = self.tables.find(root, gfn);
        assert_eq!(
            (found.level, found.spte.raw()),
            (level, old),
            "a poke at {gfn:#x}"
        );
        let entry = self.tables.entry(found.place.table, found.place.index);
        entry.store(new, Ordering::Relaxed);
    }

    /// An entry as a recording has it.
    fn value(&mut self, spte: Spte<F>, level: Level, installed: bool) -> String {
        let codec = *self.tables.codec();
        if codec.is_nonpresent(spte) {
            return "-".into();
        } else if codec.is_frozen(spte) {
            return "!".into();
        } else if !spte.is_link(level) {
            return format!("{:x}", spte.raw());
        }
        let table = codec.pfn(spte);
        if installed {
            self.named += 1;
            self.names.insert(table.raw(), self.named);
        }
        let bits = spte.raw() & !(table.raw() << 12);
        format!("T{}+{bits:x}", self.names[&table.raw()])
    }

    /// What happened since this was last asked, in the words of a recording. Flushes have no tracepoint.
    fn story(&mut self) -> Vec<String> {
        let events = core::mem::take(&mut self.events);
        events.iter().filter_map(|event| self.line(event)).collect()
    }

    fn line(&mut self, event: &Event<F>) -> Option<String> {
        Some(match *event {
            Event::SpteChanged {
                as_id,
                gfn,
                level,
                old,
                new,
            } => {
                let (old, new) = (self.value(old, level, false), self.value(new, level, true));
                format!(
                    "spte as{} {:x} l{} {old} -> {new}",
                    as_id.index(),
                    gfn.raw(),
                    level as u8
                )
            }
            Event::PageAllocated { gfn, role, .. } => {
                let word = role.word(RoleLayout::Baseline);
                format!("page {:x} l{} {word:x}", gfn.raw(), role.level() as u8)
            }
            Event::PageZapped { gfn, role, .. } => {
                format!("zapped {:x} l{}", gfn.raw(), role.level() as u8)
            }
            Event::SpteSet { gfn, level, spte } => {
                format!("set {:x} l{} {:x}", gfn.raw(), level as u8, spte.raw())
            }
            Event::MmioMarked { mmio, .. } => {
                format!("mmio {:x} {:x}", mmio.gfn.raw(), mmio.generation.raw())
            }
            // Recordings have such changes as pokes.
            Event::FastFault { .. } => return None,
            Event::HugePageSplit {
                gfn,
                spte,
                level,
                result,
            } => {
                let (level, errno) = (level as u8, result.errno());
                format!("split {:x} l{level} {:x} {errno}", gfn.raw(), spte.raw())
            }
            Event::SpteRequested { .. }
            | Event::ZapAllFast
            | Event::Flushed { .. }
            | Event::ShadowPage { .. }
            | Event::ShadowPageZapped { .. }
            | Event::ShadowSpteSet { .. }
            | Event::PageUnsync { .. }
            | Event::PageSync { .. }
            | Event::ShadowZapAllFast { .. } => {
                return None;
            }
        })
    }
}

/// Replays one scenario and gives how many events it has.
fn replay_scenario<F: Format>(host: &Host, name: &str, lines: &[&str]) -> usize {
    let mut replay = Replay::<F>::new(host);
    let (mut at, mut count) = (0, 0);
    while at < lines.len() {
        let caused = lines[at + 1..]
            .iter()
            .take_while(|line| line.starts_with(' '));
        let expected: Vec<_> = caused
            .clone()
            .flat_map(|line| unfold(line.trim()))
            .collect();
        unfold(lines[at]).iter().for_each(|line| replay.act(line));
        let story = replay.story();
        let differs = story
            .iter()
            .zip(&expected)
            .position(|(ours, theirs)| ours != theirs);
        let differs =
            differs.or((story.len() != expected.len()).then(|| story.len().min(expected.len())));
        if let Some(event) = differs {
            let (ours, theirs) = (story.get(event), expected.get(event));
            panic!(
                "{name}, {:?}, event {event}: {ours:?}, the kernel {theirs:?}",
                lines[at]
            );
        }
        count += expected.len();
        at += 1 + caused.count();
    }
    count
}

/// Replays all scenarios of a machine.
fn replay<F: Format>(machine: &str, host: &Host, recording: &str) {
    let (mut scenarios, mut events) = (0, 0);
    for scenario in recording.split("\n\n") {
        let mut lines = scenario.lines();
        let name = lines.next().and_then(|line| line.strip_prefix("scenario "));
        let name = format!(
            "{machine} {}",
            name.expect("a scenario starts with its name")
        );
        events += replay_scenario::<F>(host, &name, &lines.collect::<Vec<_>>());
        scenarios += 1;
    }
    println!("{machine}: {scenarios} scenarios, {events} events as recorded");
}

#[test]
fn npt_l4() {
    replay::<Npt>(
        "npt-l4",
        &Host::npt(40),
        include_str!("recordings/npt-l4.txt"),
    );
}

#[test]
fn npt_l5() {
    let host = Host::npt(40).with_five_levels();
    replay::<Npt>("npt-l5", &host, include_str!("recordings/npt-l5.txt"));
}

#[test]
fn ept_l4() {
    replay::<Ept>(
        "ept-l4",
        &Host::ept(40),
        include_str!("recordings/ept-l4.txt"),
    );
}

#[test]
fn ept_l4_noad() {
    let host = Host::ept(40).without_ad();
    replay::<Ept>(
        "ept-l4-noad",
        &host,
        include_str!("recordings/ept-l4-noad.txt"),
    );
}

#[test]
fn ept_l4_nopml() {
    let host = Host::ept(40).without_pml();
    replay::<Ept>(
        "ept-l4-nopml",
        &host,
        include_str!("recordings/ept-l4-nopml.txt"),
    );
}

#[test]
fn ept_l5() {
    let host = Host::ept(40).with_five_levels();
    replay::<Ept>("ept-l5", &host, include_str!("recordings/ept-l5.txt"));
}

//! Any dump is read as it was written, and no text makes the reader panic.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::super::words;
use super::*;
use crate::host::{AdBits, Encryption, ExecuteOnly, MmioCaching};
use crate::spte::{AdType, Codec, Writability};

fn any_of<T: Copy + core::fmt::Debug + 'static>(
    words: words::Words<T>,
) -> impl Strategy<Value = T> {
    select(words).prop_map(|(value, _)| value)
}

prop_compose! {
    fn host()(
        second_stage in any_of(words::STAGES),
        layout in any_of(words::LAYOUTS),
        hardware_ad in any_of(words::HARDWARE_AD),
        (max_level, largest_page) in (select(&[Level::L4, Level::L5][..]), any_of(words::SIZES)),
        (maxphyaddr, fewer) in (38_u8..=52, 0_u8..6),
        (software, execute_only, no_mmio) in any::<(bool, bool, bool)>(),
        l1tf_cache_bits in proptest::option::of(0_u8..=52),
        encryption in prop_oneof![
            Just(Encryption::Off),
            (0_u8..64).prop_map(|c_bit| Encryption::Available { c_bit }),
            (0_u8..64).prop_map(|c_bit| Encryption::Active { c_bit }),
        ],
    ) -> Host {
        Host {
            second_stage,
            layout,
            ad_bits: if software { AdBits::Software } else { AdBits::Hardware },
            hardware_ad,
            maxphyaddr,
            phys_bits: maxphyaddr - fewer,
            l1tf_cache_bits,
            encryption,
            execute_only: if execute_only { ExecuteOnly::Supported } else { ExecuteOnly::Unsupported },
            mmio_caching: if no_mmio { MmioCaching::Off } else { MmioCaching::On },
            max_level,
            largest_page,
        }
    }
}

fn access() -> impl Strategy<Value = Access> {
    any::<u8>().prop_map(Access::from_bits_truncate)
}

prop_compose! {
    fn leaf(level: Level)(
        pfn in 0_u64..1 << 39,
        (access, saved) in (access(), access()),
        (host, mmu, hardware) in any::<(bool, bool, bool)>(),
        (accessed, dirty, encrypted) in any::<(bool, bool, bool)>(),
        ad in select(&[AdType::Enabled, AdType::Disabled, AdType::WriteProtectOnly, AdType::Unused][..]),
        memory in any_of(words::MEMORY),
    ) -> Content {
        Content::Leaf(Leaf {
            pfn: Pfn::new(pfn).round_down(level),
            level,
            access: access - Access::WRITE,
            writability: Writability { host, mmu, hardware },
            saved,
            ad,
            accessed,
            dirty,
            memory,
            encrypted,
        })
    }
}

fn content(level: Level) -> impl Strategy<Value = Content> {
    let codec = Codec::<Npt>::new(&Host::npt(48));
    let mmio = (0_u64..1 << 36, access(), 0_u64..1 << 18).prop_map(move |(gfn, access, raw)| {
        Content::Mmio {
            gfn: Gfn::new(gfn),
            access,
            generation: codec.mmio_generation(Generation::new(raw)),
        }
    });
    prop_oneof![4 => leaf(level), 1 => mmio, 1 => Just(Content::Frozen)]
}

/// Ranges one behind the other: how far from the last, how long, and what.
fn mapped() -> impl Strategy<Value = Vec<Range>> {
    let level = select(&[Level::L1, Level::L2, Level::L3][..]);
    let one = level.prop_flat_map(|level| (Just(level), content(level), 0_u64..3, 1_u64..4));
    vec(one, 0..8).prop_map(|all| {
        let mut at = 0_u64;
        let place = |(level, content, gap, length): (Level, Content, u64, u64)| {
            let pages = level.pages().raw();
            let start = at.next_multiple_of(pages) + gap * pages;
            at = start + length * pages;
            let frames = GfnRange::between(Gfn::new(start), Gfn::new(at)).unwrap();
            Range {
                frames,
                level,
                content,
            }
        };
        all.into_iter().map(place).collect()
    })
}

fn entries() -> impl Strategy<Value = Vec<RawTable>> {
    let entries = proptest::collection::btree_map(0_u16..512, any::<u64>(), 0..4);
    let table = (
        any::<u32>(),
        select(Level::ALL.as_slice()),
        0_u64..4,
        entries,
    );
    let table = table.prop_map(|(table, level, at, entries)| RawTable {
        table,
        level,
        gfn: Gfn::new((at * (level.pages().raw() << 9)) % (1 << 40)),
        entries: entries.into_iter().collect(),
    });
    vec(table, 0..3)
}

prop_compose! {
    fn root(place: u32)(
        generation in any::<u32>(),
        (flags, invalid) in (0_u32..4, any::<bool>()),
        references in any::<u32>(),
        level in select(&[Level::L4, Level::L5][..]),
        mut tables in any::<[u32; 5]>(),
        (ranges, entries) in (mapped(), entries()),
    ) -> Root {
        let word = [0x3784, 0x1003784, 0x23784, 0x13784][flags as usize];
        let role = PageRole::from_word(RoleLayout::Baseline, word).unwrap().with_level(level);
        if level == Level::L4 {
            tables[4] = 0;
        }
        Root {
            number: RootNumber { place, generation },
            role: if invalid { role.with(crate::role::RoleFlag::Invalid) } else { role },
            references,
            tables,
            ranges,
            entries,
        }
    }
}

fn dump() -> impl Strategy<Value = Dump> {
    let roots = (0_u32..3).prop_flat_map(|count| (0..count).map(root).collect::<Vec<_>>());
    (host(), roots).prop_map(|(host, roots)| Dump { host, roots })
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(dump in dump()) {
        let text = dump.to_string();
        prop_assert_eq!(text.parse::<Dump>(), Ok(dump.clone()), "{}", text);
        let normal = dump.normalised();
        prop_assert_eq!(normal.to_string().parse::<Dump>(), Ok(normal.clone()));
        prop_assert!(normal.diff(&normal).is_empty());
    }

    /// A text with some characters changed, left out or put in: an error that names a line, or a dump.
    #[test]
    fn a_mutated_text_does_no_harm(
        dump in dump(),
        changes in vec((any::<prop::sample::Index>(), "[ -~\n]{0,3}", 0_usize..3), 1..4),
    ) {
        let mut text = dump.to_string();
        for (at, new, gone) in changes {
            let start = at.index(text.len());
            let end = text.len().min(start + gone);
            text.replace_range(start..end, &new);
        }
        match text.parse::<Dump>() {
            Ok(read) => prop_assert_eq!(read.to_string().parse::<Dump>(), Ok(read)),
            Err(error) => prop_assert!((1..=text.lines().count().max(1)).contains(&(error.line as usize))),
        }
    }

    #[test]
    fn garbage_does_no_harm(text in "(slat-dump 1 )?\\PC{0,200}") {
        let _ = text.parse::<Dump>();
    }

    /// The two sides of a diff, each cut out of its own dump, are where the dumps differ and nowhere else.
    #[test]
    fn a_diff_accounts_for_every_frame(old in mapped(), new in mapped()) {
        let with = |ranges: &[Range]| Dump {
            host: Host::npt(48),
            roots: vec![Root {
                number: RootNumber { place: 0, generation: 0 },
                role: PageRole::from_word(RoleLayout::Baseline, 0x3784).unwrap(),
                references: 1,
                tables: [0; 5],
                ranges: ranges.to_vec(),
                entries: Vec::new(),
            }],
        };
        let diff = with(&old).diff(&with(&new));
        let at = |ranges: &[Range], gfn: Gfn| {
            let one = GfnRange::new(gfn, Pages::new(1)).unwrap();
            ranges.iter().find_map(|range| range.within(one))
        };
        let edges = old.iter().chain(&new).flat_map(|r| [r.frames.start(), r.frames.last()]);
        for gfn in edges {
            let (before, after) = (at(&old, gfn), at(&new, gfn));
            let (mut gone, mut come) = (None, None);
            if let Some(root) = diff.roots.first() {
                (gone, come) = (at(&root.removed, gfn), at(&root.added, gfn));
            }
            if before == after {
                prop_assert_eq!((gone, come), (None, None));
            } else {
                prop_assert_eq!((gone, come), (before, after));
            }
        }
    }
}

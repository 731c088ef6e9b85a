//! From text to a dump.

use core::str::FromStr;

use slat_memslot::{Generation, Gfn, Level};

use super::line::{DumpError, FRAMES, Line};
use super::write::{RoleLine, VERSION};
use super::{Content, Dump, Range, RawTable, Root, RootNumber, words};
use crate::host::{AdBits, Encryption, ExecuteOnly, Host, MmioCaching};
use crate::role::{PageRole, RoleFlag, RoleLayout};
use crate::spte::{Access, AdType, Codec, Leaf, MmioGeneration, Npt, Pfn, Writability};

impl FromStr for Dump {
    type Err = DumpError;

    /// Reads a dump.
    ///
    /// # Errors
    /// The first line that cannot be read, or that contradicts what stands before: words of a role that disagree, ranges out
    /// of order or out of alignment, entries of another table than the last.
    fn from_str(text: &str) -> Result<Self, DumpError> {
        let mut reader = Reader {
            dump: None,
            part: Part::Header,
        };
        let mut last = 1;
        for (number, text) in (1_u32..).zip(text.lines()) {
            last = number;
            if let Some(line) = Line::new(number, text) {
                reader.line(line)?;
            }
        }
        let end = DumpError {
            line: last,
            value: "end of text".to_owned(),
            reason: String::new(),
        };
        reader.finish(end)
    }
}

/// What the next line may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// The first line.
    Header,
    /// A root.
    Roots,
    /// The role of the root, which says to be valid or not.
    Role { valid: bool },
    /// How many tables it has.
    Tables,
    /// What it maps, a table of it, or another root.
    Body,
    /// An entry, a table, or another root.
    Entries,
}

struct Reader {
    dump: Option<Dump>,
    part: Part,
}

impl Reader {
    fn line(&mut self, mut line: Line<'_>) -> Result<(), DumpError> {
        let Some(dump) = &mut self.dump else {
            self.dump = Some(header(&mut line)?);
            self.part = Part::Roots;
            return line.end();
        };
        self.part = match (self.part, line.peek().unwrap_or_default()) {
            (Part::Role { valid }, _) => read_role(last(dump), valid, &mut line)?,
            (Part::Tables, _) => read_tables(last(dump), &mut line)?,
            (_, "root") => read_root(dump, &mut line)?,
            (Part::Body | Part::Entries, "table") => read_table(last(dump), &mut line)?,
            (Part::Entries, "spte") => read_entry(last(dump), &mut line)?,
            (Part::Body, _) => read_range(dump, &mut line)?,
            (Part::Header | Part::Roots | Part::Entries, word) => {
                return Err(line.error(word, "nothing that belongs here"));
            }
        };
        line.end()
    }

    fn finish(self, end: DumpError) -> Result<Dump, DumpError> {
        let missing = match self.part {
            Part::Header => "the header is missing",
            Part::Role { .. } => "the role of the last root is missing",
            Part::Tables => "the tables of the last root are missing",
            Part::Roots | Part::Body | Part::Entries => "",
        };
        let reason = missing.to_owned();
        match self.dump {
            Some(dump) if reason.is_empty() => Ok(dump),
            _ => Err(DumpError { reason, ..end }),
        }
    }
}

/// The root that is being read.
fn last(dump: &mut Dump) -> Option<&mut Root> {
    dump.roots.last_mut()
}

fn header(line: &mut Line<'_>) -> Result<Dump, DumpError> {
    line.keyword("slat-dump")?;
    line.keyword(VERSION)?;
    let second_stage = line.one_of("a second stage", words::STAGES)?;
    let layout = line.one_of("a layout", words::LAYOUTS)?;
    line.keyword("maxphyaddr")?;
    let maxphyaddr = width(line)?;
    line.keyword("levels")?;
    let levels = line.word("a number of levels")?;
    let max_level = match levels {
        "4" => Level::L4,
        "5" => Level::L5,
        _ => return Err(line.error(levels, "tables have 4 levels or 5")),
    };
    line.keyword("ad")?;
    let mut host = Host {
        second_stage,
        layout,
        hardware_ad: line.one_of("who maintains A/D bits", words::HARDWARE_AD)?,
        max_level,
        ..Host::npt(maxphyaddr)
    };
    while let Some(word) = line.optional() {
        fact(&mut host, word, line)?;
    }
    Ok(Dump {
        host,
        roots: Vec::new(),
    })
}

/// An address width.
fn width(line: &mut Line<'_>) -> Result<u8, DumpError> {
    let bits = line.byte("an address width", 52)?;
    if bits >= 32 {
        return Ok(bits);
    }
    Err(line.error(bits, "an address width is at least 32"))
}

/// What is not as on every host.
fn fact(host: &mut Host, word: &str, line: &mut Line<'_>) -> Result<(), DumpError> {
    match word {
        "phys-bits" => host.phys_bits = width(line)?,
        "software-ad" => host.ad_bits = AdBits::Software,
        "l1tf" => host.l1tf_cache_bits = Some(line.byte("an address width", 52)?),
        "c-bit" => {
            let c_bit = line.byte("the C-bit", 63)?;
            host.encryption = Encryption::Available { c_bit };
        }
        "sme" => {
            let c_bit = line.byte("the C-bit", 63)?;
            host.encryption = Encryption::Active { c_bit };
        }
        "execute-only" => host.execute_only = ExecuteOnly::Supported,
        "no-mmio" => host.mmio_caching = MmioCaching::Off,
        "largest" => host.largest_page = line.one_of("a size", words::SIZES)?,
        _ => return Err(line.error(word, "no fact about a host")),
    }
    if host.phys_bits > host.maxphyaddr {
        return Err(line.error(host.phys_bits, "more bits than maxphyaddr"));
    }
    Ok(())
}

fn read_root(dump: &mut Dump, line: &mut Line<'_>) -> Result<Part, DumpError> {
    line.keyword("root")?;
    let word = line.word("a root's number")?;
    let number = root_number(word).ok_or_else(|| line.error(word, "no number of a root"))?;
    if dump.roots.iter().any(|root| root.number == number) {
        return Err(line.error(word, "a second root of this number"));
    }
    let valid = line.either("valid", "invalid")?;
    line.keyword("refs")?;
    dump.roots.push(Root {
        number,
        role: PageRole::new(Level::L4),
        references: line.number32("a number of references")?,
        tables: [0; 5],
        ranges: Vec::new(),
        entries: Vec::new(),
    });
    Ok(Part::Role { valid })
}

fn root_number(word: &str) -> Option<RootNumber> {
    let (place, generation) = word.split_once('.')?;
    let number = |text: &str| {
        let digits = text.chars().all(|c| c.is_ascii_digit());
        text.parse().ok().filter(|_| digits)
    };
    Some(RootNumber {
        place: number(place)?,
        generation: number(generation)?,
    })
}

fn read_role(root: Option<&mut Root>, valid: bool, line: &mut Line<'_>) -> Result<Part, DumpError> {
    line.keyword("role")?;
    let mut role: Option<(PageRole, &str)> = None;
    for (layout, name) in words::ROLE_LAYOUTS {
        line.keyword(name)?;
        let found = role_word(*layout, line)?;
        match (role, found) {
            (None, found) => role = found,
            (Some((first, _)), Some((other, word))) if first != other => {
                return Err(line.error(word, "another role than the words before say"));
            }
            _ => {}
        }
    }
    let Some((role, word)) = role else {
        return Err(line.error("-", "no layout has this role"));
    };
    line.keyword("=")?;
    let told = RoleLine(role).to_string();
    let told = told.split_once(" = ").map_or("", |(_, text)| text);
    for expected in told.split_ascii_whitespace() {
        line.keyword(expected)?;
    }
    if role.has(RoleFlag::Invalid) == valid {
        return Err(line.error(
            word,
            "the role says `invalid` and the root does not, or the other way",
        ));
    }
    if let Some(root) = root {
        root.role = role;
    }
    Ok(Part::Tables)
}

/// The role of a layout's word, with the word; `None` for `-`.
fn role_word<'a>(
    layout: RoleLayout,
    line: &mut Line<'a>,
) -> Result<Option<(PageRole, &'a str)>, DumpError> {
    let Some(word @ "-") = line.peek() else {
        let word = line.peek().unwrap_or_default();
        let number = line.number32("a role's word")?;
        let role = PageRole::from_word(layout, number);
        let role = role.map_err(|error| line.error(word, error.to_string()))?;
        return Ok(Some((role, word)));
    };
    line.keyword(word)?;
    Ok(None)
}

fn read_tables(root: Option<&mut Root>, line: &mut Line<'_>) -> Result<Part, DumpError> {
    line.keyword("tables")?;
    let Some(root) = root else {
        return Ok(Part::Body);
    };
    for level in Level::ALL.into_iter().rev() {
        if level > root.role.level() {
            continue;
        }
        let word = line.peek().unwrap_or("end of line");
        if line.level()? != level {
            return Err(line.error(word, format!("`l{}` belongs here", level as u8)));
        }
        let count = line.number32("a number of tables")?;
        if let Some(place) = root.tables.get_mut(level as usize - 1) {
            *place = count;
        }
    }
    Ok(Part::Body)
}

fn read_range(dump: &mut Dump, line: &mut Line<'_>) -> Result<Part, DumpError> {
    let word = line.peek().unwrap_or_default();
    let host = dump.host;
    let Some(root) = last(dump) else {
        return Ok(Part::Body);
    };
    let frames = line.frames()?;
    let level = line.level()?;
    let inside = level.pages().raw() - 1;
    let before = root
        .ranges
        .last()
        .map_or(Gfn::new(0), |last| last.frames.end());
    let reach = root.role.level().pages().raw() << 9;
    let wrong = if level > root.role.level() {
        "a level above the root's"
    } else if (frames.start().raw() | frames.end().raw()) & inside != 0 {
        "not aligned to its level"
    } else if frames.start() < before {
        "not behind the range before"
    } else if frames.end().raw() > reach {
        "beyond what the root's levels reach"
    } else {
        ""
    };
    if !wrong.is_empty() {
        return Err(line.error(word, wrong));
    }
    let range = Range {
        frames,
        level,
        content: content(&host, frames.start(), level, line)?,
    };
    if let Content::Leaf(leaf) = range.content {
        let end = leaf.pfn.checked_add(frames.pages());
        let fits = end.is_some_and(|end| end.raw() <= FRAMES);
        if leaf.pfn.raw() & inside != 0 || !fits {
            return Err(line.error(leaf.pfn, "not aligned to its level, or beyond 40 bits"));
        }
    }
    root.ranges.push(range);
    Ok(Part::Body)
}

fn content(
    host: &Host,
    first: Gfn,
    level: Level,
    line: &mut Line<'_>,
) -> Result<Content, DumpError> {
    let word = line.word("what is mapped")?;
    match word {
        "frozen" => Ok(Content::Frozen),
        "mmio" => {
            line.keyword("gen")?;
            let generation = read_generation(host, line)?;
            let access = read_access(line)?;
            let mut gfn = first;
            if line.peek() == Some("gfn") {
                line.keyword("gfn")?;
                gfn = line.gfn()?;
            }
            Ok(Content::Mmio {
                gfn,
                access,
                generation,
            })
        }
        letters => {
            let allowed = words::access(letters)
                .ok_or_else(|| line.error(letters, "neither `rwx` nor `mmio` nor `frozen`"))?;
            read_leaf(allowed, level, line).map(Content::Leaf)
        }
    }
}

fn read_access(line: &mut Line<'_>) -> Result<Access, DumpError> {
    let word = line.word("an access")?;
    words::access(word).ok_or_else(|| line.error(word, "no access: `rwx`, with `-` for none"))
}

/// As much of a generation as an entry of this host can hold.
fn read_generation(host: &Host, line: &mut Line<'_>) -> Result<MmioGeneration, DumpError> {
    let word = line.peek().unwrap_or_default();
    let raw = line.number("a generation")?;
    let held = Codec::<Npt>::new(host).mmio_generation(Generation::new(raw));
    if held.raw() == raw {
        return Ok(held);
    }
    Err(line.error(word, "more than an entry can hold"))
}

fn read_leaf(allowed: Access, level: Level, line: &mut Line<'_>) -> Result<Leaf, DumpError> {
    line.keyword("pfn")?;
    let pfn = Pfn::new(line.number("a frame of the host")?);
    let host = line.either("hw", "--")?;
    let mmu = line.either("mw", "--")?;
    let (accessed, dirty) = read_marks(line)?;
    let mut leaf = Leaf {
        pfn,
        level,
        access: allowed - Access::WRITE,
        writability: Writability {
            host,
            mmu,
            hardware: allowed.contains(Access::WRITE),
        },
        saved: Access::empty(),
        ad: AdType::Enabled,
        accessed,
        dirty,
        memory: line.one_of("a memory type", words::MEMORY)?,
        encrypted: false,
    };
    while let Some(word) = line.optional() {
        match (word, words::value(words::AD_TYPES, word)) {
            (_, Some(ad)) => leaf.ad = ad,
            ("saved", _) => leaf.saved = read_access(line)?,
            ("enc", _) => leaf.encrypted = true,
            _ => return Err(line.error(word, "nothing that a page has")),
        }
    }
    Ok(leaf)
}

fn read_marks(line: &mut Line<'_>) -> Result<(bool, bool), DumpError> {
    let word = line.word("accessed and dirty")?;
    match word {
        "ad" => Ok((true, true)),
        "a-" => Ok((true, false)),
        "-d" => Ok((false, true)),
        "--" => Ok((false, false)),
        _ => Err(line.error(word, "none of ad, a-, -d, --")),
    }
}

fn read_table(root: Option<&mut Root>, line: &mut Line<'_>) -> Result<Part, DumpError> {
    line.keyword("table")?;
    let table = line.number32("a table's number")?;
    let level = line.level()?;
    line.keyword("gfn")?;
    let gfn = line.gfn()?;
    if gfn.raw() & ((level.pages().raw() << 9) - 1) != 0 {
        return Err(line.error(gfn, "no table of this level starts here"));
    }
    if let Some(root) = root {
        root.entries.push(RawTable {
            table,
            level,
            gfn,
            entries: Vec::new(),
        });
    }
    Ok(Part::Entries)
}

fn read_entry(root: Option<&mut Root>, line: &mut Line<'_>) -> Result<Part, DumpError> {
    line.keyword("spte")?;
    let number = line.number32("a table's number")?;
    let index = line.number_to("an index", 511)?;
    let index = u16::try_from(index).unwrap_or(u16::MAX);
    let raw = line.number("an entry")?;
    let Some(table) = root.and_then(|root| root.entries.last_mut()) else {
        return Ok(Part::Entries);
    };
    if table.table != number {
        return Err(line.error(
            number,
            format!("not the last table, which is {}", table.table),
        ));
    }
    if table
        .entries
        .last()
        .is_some_and(|(before, _)| *before >= index)
    {
        return Err(line.error(index, "not behind the entry before"));
    }
    table.entries.push((index, raw));
    Ok(Part::Entries)
}

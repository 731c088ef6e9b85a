//! From text to operations, with everything checked that does not depend on what earlier operations give.

use std::collections::BTreeMap;

use slat_memslot::{Generation, Gfn, GfnRange, Level, PageSize};
use slat_mmu::host::{Host, Layout, SecondStage};
use slat_mmu::role::{PageRole, RoleFlag, reachable_tdp_roots};
use slat_mmu::spte::{NxHugePages, Pfn};
use slat_mmu::tdp::{Collapse, Passes};

use super::args::{self, Args, Word};
use super::{
    Expect, FastZap, MAX_TABLES, Operation, Page, PageOptions, ParseError, RootName, Script, Step,
};
use crate::scenario::lex::{self, Parsed};

/// Reads a script.
///
/// # Errors
/// The first line that cannot be read or cannot be played, with the value in question.
pub fn parse(text: &str) -> Result<Script, ParseError> {
    let mut parser = Parser::new();
    for (number, line) in (1_u32..).zip(text.split('\n')) {
        if let Some(mut args) = Args::new(number, line)? {
            let op = args.optional();
            if let Some(op) = op {
                parser.line(op, &mut args, line)?;
            }
            args.finish()?;
        }
    }
    Ok(Script {
        host: parser.host,
        steps: parser.steps,
    })
}

/// A root that a name stands for.
#[derive(Clone, Copy, Debug)]
struct Held {
    name: RootName,
    role: PageRole,
    /// The line that has made it invalid.
    invalid_since: Option<u32>,
}

struct Parser {
    host: Host,
    /// Whether a `host` line was read.
    has_host: bool,
    steps: Vec<Step>,
    held: BTreeMap<String, Held>,
    /// Names that were ever given.
    names: usize,
    /// The fewest levels that a root has had.
    fewest_levels: Level,
    /// Tables that were asked for so far.
    tables: u64,
}

impl Parser {
    const fn new() -> Self {
        Self {
            host: Host::npt(48),
            has_host: false,
            steps: Vec::new(),
            held: BTreeMap::new(),
            names: 0,
            fewest_levels: Level::L5,
            tables: 0,
        }
    }

    fn line(&mut self, op: Word<'_>, args: &mut Args<'_>, text: &str) -> Result<(), ParseError> {
        let operation = match op.text {
            "host" => return self.host(op, args),
            "expect" => return self.expect(op, args),
            "root" => self.root(op, args)?,
            "map" => self.map(op, args)?,
            "mmio" => self.mmio(op, args)?,
            "zap" => Operation::Zap(self.frames(op, args)?),
            "zap-page" => self.zap_page(op, args)?,
            "split" => self.split(op, args)?,
            "collapse" => self.collapse(op, args)?,
            "fast-zap" => self.fast_zap(args)?,
            "zap-invalidated" => Operation::ZapInvalidated,
            "put" => self.put(op, args)?,
            _ => return Err(args.error(op, "no such operation")),
        };
        let text = text.split('#').next().unwrap_or_default().trim();
        self.steps.push(Step {
            line: args.line,
            operation,
            text: text.to_owned(),
            expect: None,
        });
        Ok(())
    }

    // --- Lines that do nothing by themselves ---------------------------------------------------------------------------

    fn host(&mut self, op: Word<'_>, args: &mut Args<'_>) -> Result<(), ParseError> {
        if self.has_host || !self.steps.is_empty() {
            return Err(args.error(op, "there is one host, before all operations"));
        }
        self.has_host = true;
        let (_, is_ept) = args.value(op, "`ept` or `npt`", |text| match text {
            "ept" => Ok(true),
            "npt" => Ok(false),
            _ => Err("neither ept nor npt".to_owned()),
        })?;
        let (_, bits) = args.value(op, "the host's MAXPHYADDR", |text| {
            let bits = u8::try_from(lex::number(text)?).ok();
            let known = bits.filter(|bits| (36..=52).contains(bits));
            known.ok_or_else(|| "not from 36 to 52".to_owned())
        })?;
        self.host = if is_ept {
            Host::ept(bits)
        } else {
            Host::npt(bits)
        };
        while let Some(word) = args.optional() {
            self.host = host_fact(self.host, word.text).map_err(|why| args.error(word, &why))?;
        }
        Ok(())
    }

    fn expect(&mut self, op: Word<'_>, args: &mut Args<'_>) -> Result<(), ParseError> {
        let expect = Expect::read(op, args)?;
        let Some(step) = self.steps.last_mut() else {
            return Err(args.error(op, "no operation before it"));
        };
        if step.expect.is_some() {
            return Err(args.error(op, "a second one for the same operation"));
        }
        if !expect.fits(&step.operation) {
            let why = format!("`{expect}` is nothing that `{}` can give", step.text);
            return Err(args.error(op, &why));
        }
        step.expect = Some(expect);
        Ok(())
    }

    // --- Roots -----------------------------------------------------------------------------------------------------------

    fn root(&mut self, op: Word<'_>, args: &mut Args<'_>) -> Result<Operation, ParseError> {
        let (name, text) = args.value(op, "a name", lex::name)?;
        if self.held.contains_key(&text) {
            return Err(args.error(name, "held already; `put` gives it up"));
        }
        let (mut flags, mut level) = (Vec::new(), None);
        while let Some(word) = args.optional() {
            let flag = match word.text {
                "smm" => RoleFlag::Smm,
                "guest" => RoleFlag::GuestMode,
                "level" => {
                    level = Some(args.value(op, "a level", root_level)?);
                    continue;
                }
                _ => return Err(args.error(word, "none of smm, guest, level")),
            };
            if !flags.is_empty() {
                return Err(args.error(word, "SMM ends guest mode: one mode at a time"));
            }
            flags.push(flag);
        }
        let wanted = |role: &PageRole| {
            [RoleFlag::Smm, RoleFlag::GuestMode]
                .into_iter()
                .all(|flag| role.has(flag) == flags.contains(&flag))
                && level.is_none_or(|(_, level)| role.level() == level)
        };
        let mut roles = self.host.tdp().into_iter().flat_map(reachable_tdp_roots);
        let role = roles.find(wanted);
        let at = level.map_or(op, |(word, _)| word);
        let role = role.ok_or_else(|| args.error(at, "no root of this host has so many levels"))?;
        let root = RootName(self.names);
        self.names += 1;
        self.fewest_levels = self.fewest_levels.min(role.level());
        self.take_tables(op, args, 1)?;
        self.held.insert(
            text,
            Held {
                name: root,
                role,
                invalid_since: None,
            },
        );
        Ok(Operation::Root { root, role })
    }

    /// A root that is held and valid.
    fn valid(&self, op: Word<'_>, args: &mut Args<'_>) -> Result<Held, ParseError> {
        let word = args.word(op, "a root")?;
        match self.held.get(word.text).copied() {
            None => Err(args.error(word, "no root of this name is held")),
            Some(Held {
                invalid_since: Some(line),
                ..
            }) => {
                let why = format!("line {line} has made this root invalid");
                Err(args.error(word, &why))
            }
            Some(held) => Ok(held),
        }
    }

    fn put(&mut self, op: Word<'_>, args: &mut Args<'_>) -> Result<Operation, ParseError> {
        let word = args.word(op, "a root")?;
        let held = self.held.remove(word.text);
        let held = held.ok_or_else(|| args.error(word, "no root of this name is held"))?;
        Ok(Operation::Put(held.name))
    }

    fn fast_zap(&mut self, args: &mut Args<'_>) -> Result<Operation, ParseError> {
        let how = match args.optional() {
            None => FastZap::BeforeReturn(Passes::SmallestFirst),
            Some(word) => match word.text {
                "smallest" => FastZap::BeforeReturn(Passes::SmallestFirst),
                "largest" => FastZap::BeforeReturn(Passes::LargestFirst),
                "worker" => FastZap::Worker,
                "discard" => FastZap::Discard,
                _ => {
                    return Err(args.error(word, "none of smallest, largest, worker, discard"));
                }
            },
        };
        for held in self.held.values_mut() {
            held.invalid_since = held.invalid_since.or(Some(args.line));
        }
        Ok(Operation::FastZap(how))
    }

    // --- Frames ----------------------------------------------------------------------------------------------------------

    fn map(&mut self, op: Word<'_>, args: &mut Args<'_>) -> Result<Operation, ParseError> {
        let held = self.valid(op, args)?;
        let (word, (gfn, frames)) = args.value(op, "a frame", args::gfn_or_frames)?;
        let last = frames.map_or(gfn, GfnRange::last);
        self.check_levels(word, args, last, held.role.level())?;
        let (_, pfn) = args.value(op, "a frame of the host", lex::number)?;
        let page = self.page(Pfn::new(pfn), args)?;
        let below = Level::ALL
            .into_iter()
            .filter(|level| (page.size.level()..held.role.level()).contains(level));
        let pages = frames.map_or(1, |frames| frames.pages().raw());
        let tables = below.map(|level| pages.div_ceil(level.pages().raw() << 9) + 1);
        self.take_tables(word, args, tables.sum())?;
        Ok(match frames {
            None => Operation::Map {
                root: held.name,
                gfn,
                page,
            },
            Some(frames) => Operation::MapRange {
                root: held.name,
                frames,
                page,
            },
        })
    }

    fn page(&self, pfn: Pfn, args: &mut Args<'_>) -> Result<Page, ParseError> {
        let mut page = Page {
            pfn,
            size: PageSize::Size4K,
            options: PageOptions::empty(),
            nx_huge_pages: NxHugePages::Off,
        };
        while let Some(word) = args.optional() {
            match word.text {
                "ro" => page.options |= PageOptions::READ_ONLY,
                "prefetch" => page.options |= PageOptions::PREFETCH,
                "tracked" => page.options |= PageOptions::TRACKED,
                "log" => page.options |= PageOptions::LOG,
                "read" => page.options |= PageOptions::READ,
                "nx-huge" => page.nx_huge_pages = NxHugePages::On,
                text => {
                    page.size = args::size(text).map_err(|_| {
                        let why = "none of 4k, 2m, 1g, ro, prefetch, tracked, log, read, nx-huge";
                        args.error(word, why)
                    })?;
                }
            }
        }
        Ok(page)
    }

    fn mmio(&mut self, op: Word<'_>, args: &mut Args<'_>) -> Result<Operation, ParseError> {
        let held = self.valid(op, args)?;
        let (word, gfn) = args.value(op, "a frame", args::gfn)?;
        self.check_levels(word, args, gfn, held.role.level())?;
        let keyword = args.word(op, "gen")?;
        if keyword.text != "gen" {
            return Err(args.error(keyword, "`gen` belongs here"));
        }
        let (_, generation) = args.value(op, "a generation", lex::number)?;
        self.take_tables(word, args, 4)?;
        Ok(Operation::Mmio {
            root: held.name,
            gfn,
            generation: Generation::new(generation),
        })
    }

    fn zap_page(&mut self, op: Word<'_>, args: &mut Args<'_>) -> Result<Operation, ParseError> {
        let held = self.valid(op, args)?;
        let gfn = self.frame(op, args, &held)?;
        let (word, level) = args.value(op, "a level", table_level)?;
        if level >= held.role.level() {
            return Err(args.error(word, "not below the root"));
        }
        Ok(Operation::ZapPage {
            root: held.name,
            gfn,
            level,
        })
    }

    fn split(&mut self, op: Word<'_>, args: &mut Args<'_>) -> Result<Operation, ParseError> {
        let frames = self.frames(op, args)?;
        let (word, size) = args.value(op, "a size", args::size)?;
        if size == PageSize::Size1G {
            return Err(args.error(word, "nothing is split to the largest size"));
        }
        Ok(Operation::Split { frames, size })
    }

    fn collapse(&mut self, op: Word<'_>, args: &mut Args<'_>) -> Result<Operation, ParseError> {
        let held = self.valid(op, args)?;
        let gfn = self.frame(op, args, &held)?;
        let (word, size) = args.value(op, "a size", args::size)?;
        if size == PageSize::Size4K {
            return Err(args.error(word, "no huge size"));
        }
        let how = args.word(op, "`zap` or `recover`")?;
        let how = match how.text {
            "zap" => Collapse::Zap,
            "recover" if args.skip("nx-huge") => Collapse::Recover(NxHugePages::On),
            "recover" => Collapse::Recover(NxHugePages::Off),
            _ => return Err(args.error(how, "neither zap nor recover")),
        };
        Ok(Operation::Collapse {
            root: held.name,
            gfn,
            size,
            how,
        })
    }

    /// One frame that the host and the root have.
    fn frame(&self, op: Word<'_>, args: &mut Args<'_>, held: &Held) -> Result<Gfn, ParseError> {
        let (word, gfn) = args.value(op, "a frame", args::gfn)?;
        self.check_host(word, args, gfn)?;
        self.check_levels(word, args, gfn, held.role.level())?;
        Ok(gfn)
    }

    /// Frames that the host has and whose start every root reaches.
    fn frames(&self, op: Word<'_>, args: &mut Args<'_>) -> Result<GfnRange, ParseError> {
        let (word, frames) = args.value(op, "a range of frames", args::frames)?;
        self.check_host(word, args, frames.last())?;
        self.check_levels(word, args, frames.start(), self.fewest_levels)?;
        Ok(frames)
    }

    fn check_host(&self, at: Word<'_>, args: &Args<'_>, gfn: Gfn) -> Result<(), ParseError> {
        let last = self.host.max_gfn();
        if gfn <= last {
            return Ok(());
        }
        Err(args.error(at, &format!("the host's last frame is {last}")))
    }

    /// The tables themselves refuse frames that the host does not have; those that only the root's levels cannot tell apart
    /// they must not be asked for.
    fn check_levels(
        &self,
        at: Word<'_>,
        args: &Args<'_>,
        gfn: Gfn,
        levels: Level,
    ) -> Result<(), ParseError> {
        let end = levels.pages().raw() << 9;
        if gfn.raw() < end || gfn > self.host.max_gfn() {
            return Ok(());
        }
        let why = format!("a root of {} levels ends at {end:#x}", levels as u8);
        Err(args.error(at, &why))
    }

    /// Counts tables that an operation may need.
    fn take_tables(
        &mut self,
        at: Word<'_>,
        args: &Args<'_>,
        tables: u64,
    ) -> Result<(), ParseError> {
        self.tables = self.tables.saturating_add(tables);
        if self.tables <= u64::from(MAX_TABLES) {
            return Ok(());
        }
        let total = self.tables;
        let why = format!("a script may take {MAX_TABLES} tables in all, and this makes {total}");
        Err(args.error(at, &why))
    }
}

/// The host with a fact about it.
fn host_fact(host: Host, word: &str) -> Parsed<Host> {
    let ept = host.second_stage == SecondStage::Ept;
    Ok(match word {
        "p1" => host.with_layout(Layout::P1),
        "p2" => host.with_layout(Layout::P2),
        "p3" => host.with_layout(Layout::P3),
        "la57" => host.with_five_levels(),
        "noad" if ept => host.without_ad(),
        "nopml" if ept => host.without_pml(),
        "execute-only" if ept => host.with_execute_only(),
        "noad" | "nopml" | "execute-only" => return Err("a fact about hosts with EPT".to_owned()),
        "software-ad" if host.layout != Layout::P1 => host.with_software_ad(),
        "software-ad" => return Err("not with p1, which is older".to_owned()),
        "no-mmio" => host.without_mmio_caching(),
        _ => {
            return Err(
                "none of p1, p2, p3, la57, noad, nopml, execute-only, software-ad, no-mmio"
                    .to_owned(),
            );
        }
    })
}

fn root_level(text: &str) -> Parsed<Level> {
    match text {
        "4" => Ok(Level::L4),
        "5" => Ok(Level::L5),
        _ => Err("neither 4 nor 5".to_owned()),
    }
}

fn table_level(text: &str) -> Parsed<Level> {
    let level = Level::ALL.into_iter().zip(["1", "2", "3", "4"]);
    let mut level = level.filter(|(_, name)| *name == text);
    let level = level.next().map(|(level, _)| level);
    level.ok_or_else(|| "none of 1, 2, 3, 4".to_owned())
}

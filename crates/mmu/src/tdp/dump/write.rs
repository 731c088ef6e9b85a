//! From a dump to its text.

use core::fmt::{self, Display, Formatter};

use slat_memslot::{Level, PageSize};

use super::words::{self, word};
use super::{Content, Dump, Range, RawTable, Root};
use crate::host::{AdBits, Encryption, ExecuteOnly, Host, MmioCaching};
use crate::role::PageRole;
use crate::spte::Leaf;

/// The number of the text's form.
pub(super) const VERSION: &str = "1";

impl Display for Dump {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "slat-dump {VERSION} {}", HostLine(&self.host))?;
        self.roots.iter().try_for_each(|root| write!(f, "\n{root}"))
    }
}

/// The words of a host.
pub(super) struct HostLine<'d>(pub(super) &'d Host);

impl Display for HostLine<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let host = self.0;
        write!(
            f,
            "{} {} maxphyaddr {} levels {} ad {}",
            word(words::STAGES, &host.second_stage),
            word(words::LAYOUTS, &host.layout),
            host.maxphyaddr,
            host.max_level as u8,
            word(words::HARDWARE_AD, &host.hardware_ad),
        )?;
        if host.phys_bits != host.maxphyaddr {
            write!(f, " phys-bits {}", host.phys_bits)?;
        }
        if host.ad_bits == AdBits::Software {
            f.write_str(" software-ad")?;
        }
        if let Some(bits) = host.l1tf_cache_bits {
            write!(f, " l1tf {bits}")?;
        }
        match host.encryption {
            Encryption::Off => {}
            Encryption::Available { c_bit } => write!(f, " c-bit {c_bit}")?,
            Encryption::Active { c_bit } => write!(f, " sme {c_bit}")?,
        }
        if host.execute_only == ExecuteOnly::Supported {
            f.write_str(" execute-only")?;
        }
        if host.mmio_caching == MmioCaching::Off {
            f.write_str(" no-mmio")?;
        }
        if host.largest_page != PageSize::Size1G {
            write!(f, " largest {}", word(words::SIZES, &host.largest_page))?;
        }
        Ok(())
    }
}

impl Display for Root {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n{}", RootLine(self), RoleLine(self.role))?;
        writeln!(f, "{}", self.tables_line())?;
        for range in &self.ranges {
            writeln!(f, "  {range}")?;
        }
        self.entries.iter().try_for_each(|raw| write!(f, "{raw}"))
    }
}

impl Root {
    /// How many tables there are, from the root's level down.
    pub(super) fn tables_line(&self) -> String {
        let levels = Level::ALL.into_iter().zip(self.tables);
        let below = levels.filter(|(level, _)| *level <= self.role.level());
        let texts: Vec<String> = below
            .rev()
            .map(|(level, count)| format!(" l{} {count}", level as u8))
            .collect();
        format!("  tables{}", texts.concat())
    }
}

/// The line of a root.
pub(super) struct RootLine<'d>(pub(super) &'d Root);

impl Display for RootLine<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let root = self.0;
        let state = if root.role.is_invalid() {
            "invalid"
        } else {
            "valid"
        };
        write!(f, "root {} {state} refs {}", root.number, root.references)
    }
}

/// The line of a role: its words, and what they say.
pub(super) struct RoleLine(pub(super) PageRole);

impl Display for RoleLine {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("  role")?;
        for (layout, name) in words::ROLE_LAYOUTS {
            if self.0.fits(*layout) {
                write!(f, " {name} {:#x}", self.0.word(*layout))?;
            } else {
                write!(f, " {name} -")?;
            }
        }
        write!(f, " = {:#}", self.0)
    }
}

impl Display for Range {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (start, end) = (self.frames.start(), self.frames.end());
        write!(f, "{start}..{end} l{} ", self.level as u8)?;
        match &self.content {
            Content::Leaf(leaf) => write_leaf(f, leaf),
            Content::Mmio {
                gfn,
                access,
                generation,
            } => {
                let letters = words::access_letters(*access);
                write!(f, "mmio gen {:#x} {letters}", generation.raw())?;
                if *gfn != start {
                    write!(f, " gfn {gfn}")?;
                }
                Ok(())
            }
            Content::Frozen => f.write_str("frozen"),
        }
    }
}

fn write_leaf(f: &mut Formatter<'_>, leaf: &Leaf) -> fmt::Result {
    let choose = |set, word| if set { word } else { "--" };
    write!(
        f,
        "{} pfn {} {} {} {}{} {}",
        words::access_letters(leaf.allowed()),
        leaf.pfn,
        choose(leaf.writability.host, "hw"),
        choose(leaf.writability.mmu, "mw"),
        if leaf.accessed { 'a' } else { '-' },
        if leaf.dirty { 'd' } else { '-' },
        words::memory_word(&leaf.memory),
    )?;
    if let Some(word) = words::ad_word(leaf.ad) {
        write!(f, " {word}")?;
    }
    if !leaf.saved.is_empty() {
        write!(f, " saved {}", words::access_letters(leaf.saved))?;
    }
    if leaf.encrypted {
        f.write_str(" enc")?;
    }
    Ok(())
}

impl Display for RawTable {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (table, level) = (self.table, self.level as u8);
        writeln!(f, "  table {table} l{level} gfn {}", self.gfn)?;
        for (index, raw) in &self.entries {
            writeln!(f, "    spte {table} {index} {raw:#x}")?;
        }
        Ok(())
    }
}

//! Fields printed by name: `gfn=0x8 (8) level=(1)`, `gfn=8 role=14084`.

use slat_memslot::{AsId, Gfn, Gpa, Level};
use slat_mmu::role::{PageRole, RoleLayout};

use super::Line;
use crate::traces::lex::level_of;
use crate::traces::{ParseError, Traced, TracedAccess, TracedPage};

/// Whether a text begins with a name and `=`.
pub(super) fn are_named(text: &str) -> bool {
    let word = text.split_whitespace().next().unwrap_or_default();
    word.split_once('=').is_some_and(|(name, _)| {
        !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    })
}

/// How numbers without `0x` are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plain {
    /// In base 10: an event whose format the printing program does not understand.
    Decimal,
    /// As the event's format prints them: `trace-cmd report -R`.
    AsFormatted,
}

/// The fields that formats print in base 16.
const HEX: [&str; 12] = [
    "gfn",
    "pfn",
    "spte",
    "sptep",
    "old_spte",
    "new_spte",
    "access",
    "gen",
    "mmu_used_pages",
    "cr2_or_gpa",
    "guest_rip",
    "fault_address",
];

/// The fields of one event.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    line: Line<'a>,
    event: &'a str,
    text: &'a str,
    plain: Plain,
}

impl<'a> Fields<'a> {
    pub(super) fn of(line: Line<'a>, event: &'a str, text: &'a str, plain: Plain) -> Self {
        // No program understands the formats of these two.
        let page = matches!(event, "kvm_mmu_get_page" | "kvm_mmu_prepare_zap_page");
        Self {
            line,
            event,
            text,
            plain: if page { Plain::Decimal } else { plain },
        }
    }

    /// The event; `None` for one whose text form alone is read.
    pub(super) fn traced(&self) -> Result<Option<Traced<'a>>, ParseError> {
        let event = match self.event {
            "kvm_tdp_mmu_spte_changed" => Traced::SpteChanged {
                as_id: self.as_id()?,
                gfn: self.gfn()?,
                level: self.level()?,
                old: self.number("old_spte")?,
                new: self.number("new_spte")?,
            },
            "kvm_mmu_get_page" => Traced::GetPage {
                page: self.page()?,
                created: self.number("created")? != 0,
            },
            "kvm_mmu_prepare_zap_page" => Traced::PrepareZapPage { page: self.page()? },
            "kvm_mmu_set_spte" => self.set_spte()?,
            "kvm_mmu_spte_requested" => Traced::SpteRequested {
                gfn: self.gfn()?,
                pfn: self.number("pfn")?,
                level: self.level()?,
            },
            "fast_page_fault" => self.fast_page_fault()?,
            "mark_mmio_spte" => Traced::MarkMmio {
                gfn: self.gfn()?,
                access: self.small("access")?,
                generation: self.small("gen")?,
            },
            "kvm_mmu_split_huge_page" => Traced::SplitHugePage {
                gfn: self.gfn()?,
                spte: self.number("spte")?,
                level: self.level()?,
                errno: self.errno()?,
            },
            "kvm_mmu_zap_all_fast" => Traced::ZapAllFast {
                generation: self.small("mmu_valid_gen")?,
                used_pages: self.number("mmu_used_pages")?,
            },
            "kvm_page_fault" => Traced::PageFault {
                vcpu: self.small("vcpu_id")?,
                rip: self.number("guest_rip")?,
                address: Gpa::new(self.number("fault_address")?),
                error_code: self.number("error_code")?,
            },
            _ => return Ok(None),
        };
        Ok(Some(event))
    }

    fn set_spte(&self) -> Result<Traced<'a>, ParseError> {
        let spte = self.number("spte")?;
        Ok(Traced::SetSpte {
            gfn: self.gfn()?,
            spte,
            access: TracedAccess {
                read: self.number("r")? != 0,
                write: spte & 2 != 0,
                execute: self.number("x")? != 0,
                // A signed byte, -1 where the format has no such bit.
                user: match self.value("u")? {
                    (_, "-1" | "255" | "0xff") => None,
                    (_, value) => Some(value != "0" && value != "0x0"),
                },
            },
            level: self.level()?,
            at: self.number("sptep")?,
        })
    }

    /// Which number means that a fault was fixed is not the same in all kernels; whether the entry changed is.
    fn fast_page_fault(&self) -> Result<Traced<'a>, ParseError> {
        let (old, new) = (self.number("old_spte")?, self.number("new_spte")?);
        Ok(Traced::FastPageFault {
            vcpu: self.small("vcpu_id")?,
            gva: self.number("cr2_or_gpa")?,
            error_code: self.number("error_code")?,
            old,
            new,
            spurious: false,
            fixed: old != new,
        })
    }

    fn page(&self) -> Result<TracedPage, ParseError> {
        let (place, value) = self.value("role")?;
        let word = self.small("role")?;
        let role = PageRole::from_word(RoleLayout::Mirror, word)
            .map_err(|error| self.line.error(place, &format!("role {value}: {error}")))?;
        Ok(TracedPage {
            generation: self.small("mmu_valid_gen")?,
            gfn: self.gfn()?,
            role,
            root_count: self.small("root_count")?,
            unsync: self.number("unsync")? != 0,
        })
    }

    fn gfn(&self) -> Result<Gfn, ParseError> {
        self.number("gfn").map(Gfn::new)
    }

    fn level(&self) -> Result<Level, ParseError> {
        let (place, _) = self.value("level")?;
        let level = u8::try_from(self.number("level")?).ok().and_then(level_of);
        level.ok_or_else(|| self.line.error(place, "no level"))
    }

    fn as_id(&self) -> Result<AsId, ParseError> {
        let (place, _) = self.value("as_id")?;
        let id = u8::try_from(self.number("as_id")?).ok().and_then(AsId::new);
        id.ok_or_else(|| self.line.error(place, "no address space"))
    }

    fn errno(&self) -> Result<i32, ParseError> {
        let (place, value) = self.value("errno")?;
        if let Ok(errno) = value.parse() {
            return Ok(errno);
        }
        // Printed in hex, a negative number is one of 32 bits.
        let bits = self.small("errno");
        let errno = bits.map(|bits| i32::from_ne_bytes(bits.to_ne_bytes()));
        errno.map_err(|_| self.line.error(place, "no errno"))
    }

    fn small(&self, name: &str) -> Result<u32, ParseError> {
        let (place, _) = self.value(name)?;
        let number = self.number(name)?;
        u32::try_from(number).map_err(|_| self.line.error(place, "more than 32 bits"))
    }

    fn number(&self, name: &str) -> Result<u64, ParseError> {
        let (place, value) = self.value(name)?;
        let number = match value.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None if self.plain == Plain::AsFormatted && HEX.contains(&name) => {
                u64::from_str_radix(value, 16)
            }
            None => value.parse(),
        };
        number.map_err(|_| self.line.error(place, &format!("no number for {name}")))
    }

    /// Where a field is, and its value: `8` in `gfn=8`, `0x8` in `gfn=0x8 (8)`, `1` in `level=(1)`.
    fn value(&self, name: &str) -> Result<(&'a str, &'a str), ParseError> {
        for word in self.text.split_whitespace() {
            let Some((found, value)) = word.split_once('=') else {
                continue;
            };
            if found == name {
                let inner = value.strip_prefix('(').and_then(|v| v.strip_suffix(')'));
                return Ok((word, inner.unwrap_or(value)));
            }
        }
        let wrong = format!("{} has no field {name} here", self.event);
        Err(self.line.error(self.text, &wrong))
    }
}

//! From options to lines of a scenario.

use clap::Subcommand;

use crate::Error;

/// Options of `slat explain region`.
#[derive(Debug, clap::Args)]
pub(super) struct RegionArgs {
    /// The slot id, with its address space before a colon: 5 or 1:5.
    #[arg(long)]
    slot: String,
    /// Guest-physical address.
    #[arg(long)]
    gpa: Option<String>,
    /// Size in bytes; 0 deletes.
    #[arg(long)]
    size: String,
    /// Host address; `A` is good host memory, so is `A+0x1000`.
    #[arg(long)]
    hva: Option<String>,
    /// Flags by name, joined by commas, or as a number.
    #[arg(long)]
    flags: Option<String>,
    /// The guest_memfd: new:SIZE, none, foreign, null, memfd, vmfd, kvmfd, fd:NUMBER, or a name from the context.
    #[arg(long)]
    gmem: Option<String>,
    /// Offset into the guest_memfd.
    #[arg(long)]
    gmem_offset: Option<String>,
    /// Ask about the older ioctl, `KVM_SET_USER_MEMORY_REGION`.
    #[arg(long, conflicts_with_all = ["gmem", "gmem_offset"])]
    v1: bool,
}

/// The name of a file that `--gmem new:SIZE` makes.
const NEW_FILE: &str = "new";

impl RegionArgs {
    pub(super) fn lines(&self) -> Result<Vec<String>, Error> {
        let mut lines = Vec::new();
        let mut gmem = self.gmem.as_deref();
        if let Some(size) = gmem.and_then(|gmem| gmem.strip_prefix("new:")) {
            let create = format!("create_guest_memfd {NEW_FILE}");
            lines.push(line(&create, &[("size", Some(size))])?);
            gmem = Some(NEW_FILE);
        }
        let op = match self.v1 {
            true => "set_user_memory_region",
            false => "set_user_memory_region2",
        };
        let flags = self.flags.as_deref().map(flags);
        lines.push(line(
            op,
            &[
                ("slot", Some(&self.slot)),
                ("flags", flags.as_deref()),
                ("gpa", self.gpa.as_deref()),
                ("size", Some(&self.size)),
                ("hva", self.hva.as_deref()),
                ("gmem", gmem),
                ("gmem_offset", self.gmem_offset.as_deref()),
            ],
        )?);
        Ok(lines)
    }
}

/// Options of `slat explain gmem`.
#[derive(Debug, clap::Args)]
pub(super) struct GmemArgs {
    /// Size in bytes.
    #[arg(long)]
    size: String,
    /// Flags by name, joined by commas, or as a number.
    #[arg(long)]
    flags: Option<String>,
}

impl GmemArgs {
    pub(super) fn line(&self) -> Result<String, Error> {
        let flags = self.flags.as_deref().map(flags);
        line(
            "create_guest_memfd",
            &[("size", Some(&self.size)), ("flags", flags.as_deref())],
        )
    }
}

/// Options of `slat explain attributes`.
#[derive(Debug, clap::Args)]
pub(super) struct AttributesArgs {
    /// First byte.
    #[arg(long)]
    address: String,
    /// Size in bytes.
    #[arg(long)]
    size: String,
    /// PRIVATE, or a number.
    #[arg(long)]
    attributes: String,
    /// Must be 0.
    #[arg(long)]
    flags: Option<String>,
}

impl AttributesArgs {
    pub(super) fn line(&self) -> Result<String, Error> {
        let attributes = flags(&self.attributes);
        line(
            "set_memory_attributes",
            &[
                ("address", Some(&self.address)),
                ("size", Some(&self.size)),
                ("attributes", Some(&attributes)),
                ("flags", self.flags.as_deref()),
            ],
        )
    }
}

/// The two calls on dirty logs.
#[derive(Debug, Subcommand)]
pub(super) enum DirtyLog {
    /// `KVM_GET_DIRTY_LOG`.
    Get {
        /// The slot id, with its address space before a colon.
        #[arg(long)]
        slot: String,
    },
    /// `KVM_CLEAR_DIRTY_LOG`.
    Clear {
        /// The slot id, with its address space before a colon.
        #[arg(long)]
        slot: String,
        /// First page of the range.
        #[arg(long, default_value = "0")]
        first_page: String,
        /// Pages in the range.
        #[arg(long)]
        num_pages: String,
        /// all, none, null, or 64-bit words joined by commas.
        #[arg(long, default_value = "all")]
        bits: String,
    },
}

impl DirtyLog {
    pub(super) fn line(&self) -> Result<String, Error> {
        match self {
            Self::Get { slot } => line("get_dirty_log", &[("slot", Some(slot))]),
            Self::Clear {
                slot,
                first_page,
                num_pages,
                bits,
            } => line(
                "clear_dirty_log",
                &[
                    ("slot", Some(slot)),
                    ("first_page", Some(first_page)),
                    ("num_pages", Some(num_pages)),
                    ("bits", Some(bits)),
                ],
            ),
        }
    }
}

/// Flags as a scenario writes them; also with the uAPI's prefixes, and joined by commas.
fn flags(text: &str) -> String {
    let names = text.split([',', '|']).map(|name| {
        let name = name.trim();
        let prefixes = ["KVM_MEM_", "KVM_MEMORY_ATTRIBUTE_", "GUEST_MEMFD_FLAG_"];
        let bare = prefixes.iter().find_map(|p| name.strip_prefix(p));
        match bare.unwrap_or(name) {
            "LOG_DIRTY" => "LOG_DIRTY_PAGES",
            bare => bare,
        }
    });
    names.collect::<Vec<_>>().join("|")
}

/// A line of a scenario; a value must be one word.
fn line(op: &str, pairs: &[(&str, Option<&str>)]) -> Result<String, Error> {
    let mut line = op.to_owned();
    for (key, value) in pairs {
        let Some(value) = value else { continue };
        if value.is_empty() || value.contains(|c: char| c.is_whitespace() || "#\"".contains(c)) {
            return Err(format!("--{}: {value:?} is no value", key.replace('_', "-")).into());
        }
        line.push_str(&format!(" {key}={value}"));
    }
    Ok(line)
}

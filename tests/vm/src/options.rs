//! What can be asked of the machine.

use std::convert::Infallible;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};

/// The machine, and how long it may run.
#[derive(Args, Clone, Debug)]
pub(crate) struct Machine {
    /// The kernel: `built` (from Debian's source; software-protected VMs, SMM, an MMU that checks itself), `debian`
    /// (Debian's own), or the path of an image with all drivers built in
    #[arg(long, default_value = "built", value_name = "KERNEL")]
    pub(crate) kernel: Kernel,
    /// Paging levels of the host, and so of its NPT
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(4..=5))]
    pub(crate) levels: u8,
    /// The MMU that KVM uses
    #[arg(long, value_enum, default_value_t = Mmu::Tdp)]
    pub(crate) mmu: Mmu,
    /// Memory in MiB
    #[arg(long, default_value_t = 2048, value_name = "MIB")]
    pub(crate) memory: u32,
    /// Processors
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=8), value_name = "N")]
    pub(crate) cpus: u8,
    /// Reserves huge pages of one size, `2M=300` or `1G=1`; may be given for each size
    #[arg(long, value_name = "SIZE=COUNT")]
    pub(crate) hugepages: Vec<HugePages>,
    /// One more argument for the kernel's command line, `kvm.nx_huge_pages=never`; may be given again
    #[arg(long, value_name = "ARGUMENT")]
    pub(crate) append: Vec<String>,
    /// One more feature for QEMU's processor, `phys-bits=48`; may be given again
    #[arg(long, value_name = "FEATURE")]
    pub(crate) cpu: Vec<String>,
    /// Seconds after which the machine is stopped
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    pub(crate) timeout: u64,
    /// A folder whose files can be written from inside; what is written anywhere else is lost. May be given again
    #[arg(long, value_name = "FOLDER")]
    pub(crate) write: Vec<PathBuf>,
    /// Keeps what the kernel printed
    #[arg(long, value_name = "FILE")]
    pub(crate) console: Option<PathBuf>,
}

/// Which kernel is booted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kernel {
    /// Built from Debian's source package with `kernel.config`.
    Built,
    /// Debian's prebuilt one, with modules.
    Debian,
    /// Any other image.
    Image(PathBuf),
}

impl FromStr for Kernel {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "built" => Self::Built,
            "debian" => Self::Debian,
            path => Self::Image(path.into()),
        })
    }
}

/// How KVM maps a guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mmu {
    /// NPT, with the TDP MMU
    Tdp,
    /// NPT, with the shadow MMU's direct pages: `kvm.tdp_mmu=0`
    Direct,
    /// No NPT, shadow paging: `kvm_amd.npt=0`
    Shadow,
}

impl Mmu {
    /// The parameter on the kernel's command line, if one is needed.
    pub(crate) fn parameter(self) -> Option<&'static str> {
        match self {
            Self::Tdp => None,
            Self::Direct => Some("kvm.tdp_mmu=0"),
            Self::Shadow => Some("kvm_amd.npt=0"),
        }
    }
}

/// Huge pages that the kernel sets aside when it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HugePages {
    /// As the kernel reads it: `2M` or `1G`.
    pub(crate) size: String,
    pub(crate) count: u32,
}

impl FromStr for HugePages {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (size, count) = text
            .split_once('=')
            .ok_or("expected SIZE=COUNT, as in 2M=300")?;
        if !["2M", "1G"].contains(&size) {
            return Err(format!("huge pages are of 2M or 1G, not of {size}"));
        }
        let count = count
            .parse()
            .map_err(|_| format!("{count} is no number of pages"))?;
        Ok(Self {
            size: size.to_owned(),
            count,
        })
    }
}

//! `slat walk`: a walk of a guest's page tables, reference by reference.

mod kernel;
mod live;
mod print;
mod registers;

use std::path::PathBuf;
use std::process::ExitCode;

use slat_memslot::{Gpa, Gva};
use slat_mmu::host::ExecuteOnly;
use slat_mmu::walk::second::{FaultPlace, NestedStage, SecondExit};
use slat_mmu::walk::{
    Dimension, ErrorCode, GuestPaging, Ladder, NestedEptRoot, Translation, Unnested, WalkFault,
};

use crate::Error;
use registers::Registers;

const EXAMPLES: &str = "\
Examples:
  slat walk --memory guest.raw --cr3 0x1000 0x401234            a read in supervisor mode, by four levels
  slat walk --memory guest.raw --cr3 0x1000 --write --user 0x401234
  slat walk --memory guest.raw --cr3 0x1000 --eptp 0x205e 0x401234
                              the same with EPT, which is in the dump too: 24 references
  slat walk --memory guest.raw --cr3 0x1000 --on both 0x401234  asks KVM_TRANSLATE of the local /dev/kvm as well
  slat walk --live --write --user 0x123456789abc                a guest on the local /dev/kvm makes the access; its walk
                              goes through its own tables and the second stage that KVM has made for it

The dump is raw memory from guest-physical address 0 on. It is not changed: what a CPU would mark is shown only.

Exit status: 0 if the address is translated, 1 if it is not or the kernel says something else, 2 if the question cannot
be read.";

/// Options of `slat walk`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The guest-virtual address.
    #[arg(value_parser = number)]
    address: u64,
    /// Raw memory from address 0 on.
    #[arg(long, value_name = "FILE", required_unless_present = "live")]
    memory: Option<PathBuf>,
    /// A guest on /dev/kvm with tables for this address makes the access. The second stage is KVM's own, rebuilt from its
    /// events, where it has a TDP MMU and they can be captured (as root), else the model's.
    #[arg(long, conflicts_with_all = ["memory", "cr3", "eptp", "ncr3", "on", "implicit"])]
    live: bool,
    /// The levels of the guest's tables.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(4..=5), requires = "live")]
    levels: u8,
    #[command(flatten)]
    registers: Registers,
    /// The access is a write.
    #[arg(long, conflicts_with = "fetch")]
    write: bool,
    /// The access is an instruction fetch.
    #[arg(long)]
    fetch: bool,
    /// The access is made in user mode.
    #[arg(long, conflicts_with = "implicit")]
    user: bool,
    /// The CPU makes the access by itself.
    #[arg(long)]
    implicit: bool,
    /// A second stage in the same dump: the pointer to EPT.
    #[arg(long, value_parser = number, conflicts_with = "ncr3")]
    eptp: Option<u64>,
    /// A second stage in the same dump: the root of NPT, walked as the guest's own tables are.
    #[arg(long, value_parser = number)]
    ncr3: Option<u64>,
    /// Who walks: the model, or the model and KVM_TRANSLATE beside it.
    #[arg(long, value_enum, default_value_t = On::Model)]
    on: On,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum On {
    Model,
    Both,
}

/// A number, decimal or with `0x`.
fn number(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(&digits.replace('_', ""), 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("{text:?} is no number: write 4096 or 0x1000"))
}

/// What came of a walk.
struct Walked {
    ladder: Ladder,
    /// Where the address goes, or why it does not.
    end: Result<Translation, String>,
    /// What hardware tells KVM of a fault of the second stage.
    exit: Option<SecondExit>,
    /// What is known of a guest that made the access.
    live: Option<Live>,
}

/// What is known of a guest that made the access.
struct Live {
    /// What came of it.
    ended: String,
    /// Where the second stage comes from.
    second: String,
    /// Its levels.
    second_levels: u8,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Error> {
    let Some(memory) = &args.memory else {
        return live::run(args);
    };
    let bytes = std::fs::read(memory).map_err(|why| format!("{}: {why}", memory.display()))?;
    let paging = args.registers.paging();
    let paging = match args.registers.pointers(paging.mode()) {
        Some(pointers) => paging.with_pointers(pointers),
        None => paging
            .with_loaded_pointers(bytes.as_slice())
            .map_err(|why| format!("--cr3: {why}"))?,
    };
    let words = marked_copy(&bytes);
    let walked = match args.second(&paging) {
        None => one_dimension(args, &paging, &words),
        Some(second) => two_dimensions(args, &paging, second, &words),
    };
    let asked = match args.on {
        On::Model => None,
        On::Both => Some(kernel::ask(args, &bytes)?),
    };
    let asked = asked.map(|kernel| (kernel, kernel::expected(args, &paging, &bytes)));
    match args.json {
        true => print::json(args, &paging, &walked, asked)?,
        false => print::text(args, &paging, &walked, asked),
    }
    let agrees = asked.is_none_or(|(kernel, model)| kernel == model);
    Ok(match walked.end.is_ok() && agrees {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// Words that can be marked; the rest of a last word is zeroes.
fn marked_copy(bytes: &[u8]) -> Vec<std::cell::Cell<u64>> {
    let word = |chunk: &[u8]| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        std::cell::Cell::new(u64::from_le_bytes(word))
    };
    bytes.chunks(8).map(word).collect()
}

impl Args {
    fn access(&self) -> ErrorCode {
        let mut access = ErrorCode::READ;
        access.set(ErrorCode::WRITE, self.write);
        access.set(ErrorCode::FETCH, self.fetch);
        access.set(ErrorCode::USER, self.user);
        access.set(ErrorCode::IMPLICIT_ACCESS, self.implicit);
        access
    }

    /// The second stage and whether it is EPT.
    fn second(&self, paging: &GuestPaging) -> Option<(GuestPaging, bool)> {
        if let Some(pointer) = self.eptp {
            let root = NestedEptRoot::of(pointer, ExecuteOnly::Supported);
            return Some((GuestPaging::nested_ept(&root, &self.registers.cpu()), true));
        }
        self.ncr3.map(|root| (paging.with_cr3(root), false))
    }
}

fn one_dimension(args: &Args, paging: &GuestPaging, words: &[std::cell::Cell<u64>]) -> Walked {
    let ladder = Ladder::default();
    let guest = &mut ladder.observer(Dimension::Guest);
    let address = Gva::new(args.address);
    let end = paging.walk(words, &mut Unnested, guest, address, args.access());
    Walked {
        end: end.map_err(|fault| fault.to_string()),
        exit: None,
        live: None,
        ladder,
    }
}

fn two_dimensions(
    args: &Args,
    paging: &GuestPaging,
    (second, ept): (GuestPaging, bool),
    words: &[std::cell::Cell<u64>],
) -> Walked {
    let ladder = Ladder::default();
    let guest = &mut ladder.observer(Dimension::Guest);
    let nested = ladder.observer(Dimension::Second);
    let mut stage = NestedStage::new(second, words, Unnested).observed(nested);
    let address = Gva::new(args.address);
    let end = paging.walk(words, &mut stage, guest, address, args.access());
    let exit = match &end {
        Err(WalkFault::Second {
            fault: WalkFault::Page(fault),
            table,
            ..
        }) => {
            let place = match table {
                Some(_) => FaultPlace::Table,
                None => FaultPlace::Final,
            };
            Some(match ept {
                true => SecondExit::synthesised_ept(fault, place),
                false => SecondExit::synthesised_npt(fault, place),
            })
        }
        _ => None,
    };
    Walked {
        end: end.map_err(|fault| fault.to_string()),
        exit,
        live: None,
        ladder,
    }
}

/// Where the kernel and the model say that a supervisor read goes.
type Asked = (Option<Gpa>, Option<Gpa>);

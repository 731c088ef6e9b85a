//! Results, and what the recorded program saw.

mod write;

use slat_memslot::{AsId, Errno, Gfn, Gpa, Hva, Level, Pages};
use winnow::combinator::{alt, eof, opt, preceded, repeat, seq, terminated};
use winnow::prelude::*;
use winnow::token::{rest as anything, take_till};

use super::lex::{Input, as_id, bit, dec, gfn, gpa, hex, hex32, level, name, pages, signed};

/// What a system call returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ret {
    /// Success, with a number; for calls that make something it is a descriptor.
    Value(i64),
    /// An error.
    Failed(Errno),
}

/// Why the guest stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Exit {
    /// `KVM_EXIT_HLT`.
    Halt,
    /// `KVM_EXIT_MMIO`.
    Mmio {
        /// The address.
        gpa: Gpa,
        /// How many bytes.
        len: u32,
        /// Whether it was a write.
        write: bool,
    },
    /// `KVM_EXIT_MEMORY_FAULT`.
    MemoryFault {
        /// `KVM_MEMORY_EXIT_FLAG_*`.
        flags: u64,
        /// The page.
        gpa: Gpa,
        /// Its size.
        size: u64,
    },
    /// Another, by its number.
    Other {
        /// `KVM_EXIT_*`.
        reason: u32,
    },
}

/// How many leaves the tables of a VM have (`pages_4k`, `pages_2m`, `pages_1g`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Leaves {
    /// Of 4 KiB.
    pub pages_4k: u64,
    /// Of 2 MiB.
    pub pages_2m: u64,
    /// Of 1 GiB.
    pub pages_1g: u64,
}

/// Something that the recorded program saw.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Note<'a> {
    /// The guest stopped.
    Exit(Exit),
    /// `KVM_RUN` failed.
    RunFailed {
        /// The error.
        errno: Errno,
        /// `exit_reason` in the shared page, which may be an old one.
        exit_reason: u32,
    },
    /// The host's page behind a frame.
    Backing {
        /// The frame.
        gfn: Gfn,
        /// The page.
        pfn: u64,
        /// At which level the host maps it, where it is said.
        level: Option<Level>,
    },
    /// The backing notes that follow are of this address space.
    BackingOf(AsId),
    /// What `KVM_GET_DIRTY_LOG` gave.
    Dirty {
        /// How many pages.
        count: u64,
        /// The first ones (40 at most), as pages of the slot.
        first: Vec<u64>,
    },
    /// What was in a dirty ring: the slots in raw numbers, with the address space in the upper half, and the pages in them.
    Ring(Vec<(u32, u64)>),
    /// Host memory whose pages are there before anybody reads them: no zero page stands for them.
    Filled {
        /// Where it begins.
        hva: Hva,
        /// Its size.
        pages: Pages,
    },
    /// The host has made one huge page of what was small, or nothing.
    Collapsed {
        /// The address.
        hva: Hva,
        /// The first page.
        pfn: u64,
    },
    /// What `KVM_PRE_FAULT_MEMORY` left to do.
    PreFaultLeft {
        /// The next frame.
        gfn: Gfn,
        /// How many.
        pages: Pages,
    },
    /// Whether the page is still idle.
    Idle(bool),
    /// The VM's statistics, where they are read.
    Leaves(Leaves),
    /// The guest's registers.
    Registers {
        /// RIP.
        rip: u64,
        /// RDX, where it says something.
        rdx: Option<u64>,
    },
    /// `KVM_GET_NESTED_STATE`.
    NestedState {
        /// `KVM_STATE_NESTED_*`.
        flags: u32,
    },
    /// `KVM_CHECK_EXTENSION`.
    Capability {
        /// The name, without `KVM_CAP_`.
        cap: &'a str,
        /// On `/dev/kvm`.
        system: i64,
        /// On a VM.
        vm: i64,
    },
    /// What `KVM_CREATE_VM` of a type gave, which was tried only.
    Created {
        /// `KVM_X86_*_VM`.
        vm_type: u64,
        /// A descriptor, or -1.
        returned: i64,
    },
    /// `KVM_GET_SUPPORTED_CPUID`.
    SupportedCpuid {
        /// The leaf.
        leaf: u32,
        /// Its EAX.
        eax: u32,
    },
    /// Slots were added on purpose, to move the generation.
    SlotsAdded {
        /// How many.
        count: u32,
        /// The generation then.
        generation: u64,
    },
    /// A timer will interrupt the operation that follows.
    Alarm {
        /// After so long.
        seconds: u32,
    },
    /// The program gave up.
    Fatal(&'a str),
    /// Anything else.
    Remark(&'a str),
}

fn errno(input: &mut Input<'_>) -> ModalResult<Errno> {
    name.try_map(str::parse).parse_next(input)
}

/// Reads a result: `0`, or `-1 EINVAL`.
pub(super) fn ret(input: &mut Input<'_>) -> ModalResult<Ret> {
    let failed = preceded("-1 ", errno).map(Ret::Failed);
    alt((failed, signed.map(Ret::Value))).parse_next(input)
}

/// Reads a note. One that nobody knows is a remark; some are known by their first word and have to be complete.
pub(super) fn note<'a>(input: &mut Input<'a>) -> ModalResult<Note<'a>> {
    let second = input.split(' ').nth(1).unwrap_or_default();
    let word = input.split([' ', '=']).next().unwrap_or_default();
    match word {
        "exit" => preceded("exit ", exit).map(Note::Exit).parse_next(input),
        "backing" if second.starts_with("gfn=") => backing(input),
        "dirty" => dirty(input),
        "ring" => preceded("ring", ring).map(Note::Ring).parse_next(input),
        "filled" => seq!(Note::Filled {
            _: "filled hva=", hva: hex.map(Hva::new),
            _: " npages=", pages: pages,
        })
        .parse_next(input),
        "collapsed" => seq!(Note::Collapsed {
            _: "collapsed hva=", hva: hex.map(Hva::new),
            _: " pfn=", pfn: hex,
        })
        .parse_next(input),
        "pre_fault" => pre_fault_left(input),
        "pages" => leaves.map(Note::Leaves).parse_next(input),
        "idle" => preceded("idle=", bit).map(Note::Idle).parse_next(input),
        "KVM_RUN" => run_failed(input),
        "nested" => nested_state(input),
        "FATAL" => preceded("FATAL ", anything)
            .map(Note::Fatal)
            .parse_next(input),
        "rip" => registers(input),
        cap if cap.starts_with("KVM_CAP_") => capability(input),
        _ => alt((terminated(rarer, eof), anything.map(Note::Remark))).parse_next(input),
    }
}

fn exit(input: &mut Input<'_>) -> ModalResult<Exit> {
    alt((
        "HLT".value(Exit::Halt),
        seq!(Exit::Mmio {
            _: "MMIO gpa=", gpa: gpa,
            _: " len=", len: dec,
            _: " write=", write: bit,
        }),
        seq!(Exit::MemoryFault {
            _: "MEMORY_FAULT flags=", flags: hex,
            _: " gpa=", gpa: gpa,
            _: " size=", size: hex,
        }),
        seq!(Exit::Other { _: "reason=", reason: dec }),
    ))
    .parse_next(input)
}

fn backing<'a>(input: &mut Input<'a>) -> ModalResult<Note<'a>> {
    seq!(Note::Backing {
        _: "backing gfn=", gfn: gfn,
        _: " pfn=", pfn: hex,
        level: opt(preceded(" level=", level)),
    })
    .parse_next(input)
}

fn dirty<'a>(input: &mut Input<'a>) -> ModalResult<Note<'a>> {
    let mut pages = repeat(0.., preceded(' ', hex));
    seq!(Note::Dirty {
        _: "dirty count=", count: dec,
        _: " first=", first: pages,
        _: opt(' '),
    })
    .parse_next(input)
}

/// ` 1:0 1:7f`.
fn ring(input: &mut Input<'_>) -> ModalResult<Vec<(u32, u64)>> {
    let entry = |input: &mut Input<'_>| {
        let slot = preceded(' ', hex32).parse_next(input)?;
        let page = preceded(':', hex).parse_next(input)?;
        Ok((slot, page))
    };
    repeat(0.., entry).parse_next(input)
}

fn pre_fault_left<'a>(input: &mut Input<'a>) -> ModalResult<Note<'a>> {
    seq!(Note::PreFaultLeft {
        _: "pre_fault left gfn=", gfn: gfn,
        _: " npages=", pages: pages,
    })
    .parse_next(input)
}

fn leaves(input: &mut Input<'_>) -> ModalResult<Leaves> {
    seq!(Leaves {
        _: "pages 4k=", pages_4k: dec,
        _: " 2m=", pages_2m: dec,
        _: " 1g=", pages_1g: dec,
    })
    .parse_next(input)
}

fn run_failed<'a>(input: &mut Input<'a>) -> ModalResult<Note<'a>> {
    seq!(Note::RunFailed {
        _: "KVM_RUN -1 ", errno: errno,
        _: " exit_reason=", exit_reason: dec,
    })
    .parse_next(input)
}

fn nested_state<'a>(input: &mut Input<'a>) -> ModalResult<Note<'a>> {
    seq!(Note::NestedState {
        _: "nested flags=", flags: hex32,
        _: opt(" (bit 0 guest mode)"),
    })
    .parse_next(input)
}

fn registers<'a>(input: &mut Input<'a>) -> ModalResult<Note<'a>> {
    seq!(Note::Registers {
        _: "rip=", rip: hex,
        rdx: opt(preceded(" rdx=", hex)),
    })
    .parse_next(input)
}

fn capability<'a>(input: &mut Input<'a>) -> ModalResult<Note<'a>> {
    let mut name = take_till(1.., ' ');
    seq!(Note::Capability {
        _: "KVM_CAP_", cap: name,
        _: " system=", system: signed,
        _: " vm=", vm: signed,
    })
    .parse_next(input)
}

fn rarer<'a>(input: &mut Input<'a>) -> ModalResult<Note<'a>> {
    let page_of = ("as", as_id, " page:").map(|(_, as_id, _)| Note::BackingOf(as_id));
    let created = seq!(Note::Created {
        _: "KVM_CREATE_VM type ", vm_type: dec,
        _: ": ", returned: signed,
    });
    let cpuid = seq!(Note::SupportedCpuid {
        _: "supported CPUID ", leaf: hex32,
        _: " eax=", eax: hex32,
    });
    let added = seq!(Note::SlotsAdded {
        count: dec,
        _: " slot additions: memslot generation ", generation: hex,
    });
    let alarm = seq!(Note::Alarm { _: "SIGALRM armed, ", seconds: dec, _: " s" });
    alt((page_of, created, cpuid, added, alarm)).parse_next(input)
}

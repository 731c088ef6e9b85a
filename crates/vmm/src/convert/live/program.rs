//! Random programs of conversions.

use slat_coco::convert::{
    Ended, LeftBehind, MapGpaRangeExit, Plan, Policy, Request, Run, Unbacked,
};
use slat_memslot::{Gfn, Gpa, PAGE_SHIFT, Pages};

use super::write::{END_FRAME, FIRST_FRAME, Writer};
use crate::live::{Abilities, Program};
use crate::traces::{GuestAct, Op};

/// What happens in a program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Conversions that came to an end.
    pub converted: usize,
    /// Those in which a step failed, and the others were taken back.
    pub taken_back: usize,
    /// Those that had no plan.
    pub refused: usize,
    /// Those that had nothing to do.
    pub nothing: usize,
    /// Steps.
    pub steps: usize,
    /// Plans that set the attributes of more than one slot.
    pub across_slots: usize,
}

/// A program with what happens in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conversions {
    /// The program.
    pub program: Program,
    /// What happens in it.
    pub tally: Tally,
}

/// Frames of a huge page.
const HUGE: u64 = 0x200;
/// The hypercall.
const MAP_GPA_RANGE: u64 = 12;

/// A program of about so many operations; the same for the same seed.
pub fn program(seed: u64, operations: usize, abilities: Abilities) -> Conversions {
    let mut writer = Writer::new(seed, abilities);
    let mut tally = Tally::default();
    writer.begin();
    while writer.ops.len() < operations {
        match writer.dice.below(100) {
            0..45 => convert(&mut writer, &mut tally),
            45..80 => {
                let gfn = writer.frame();
                writer.access(gfn);
            }
            80..84 => writer.create_slot(),
            84..87 => writer.delete_slot(),
            87..90 => writer.switch_log(),
            90..93 => writer.pre_fault(),
            93..96 => writer.punch_hole(),
            _ => writer.host_memory(),
        }
    }
    Conversions {
        program: writer.end(),
        tally,
    }
}

/// What a guest asks for: within a page table, over whole huge pages, across slots and holes.
fn exit(writer: &mut Writer) -> MapGpaRangeExit {
    let gfn = writer.frame().raw();
    let (gfn, pages) = match writer.dice.below(6) {
        0 => (gfn, 1),
        1 => (gfn, 1 + writer.dice.small(0x20)),
        2 => (gfn & !(HUGE - 1), HUGE),
        3 => (gfn, HUGE),
        4 => (gfn, 1 + writer.dice.below(4 * HUGE)),
        _ => (FIRST_FRAME, END_FRAME - FIRST_FRAME),
    };
    let attributes = writer.dice.below(3) | u64::from(writer.dice.percent(60)) << 4;
    MapGpaRangeExit {
        nr: MAP_GPA_RANGE,
        args: [gfn << PAGE_SHIFT, pages, attributes],
    }
}

fn policy(writer: &mut Writer) -> Policy {
    const UNBACKED: [Unbacked; 3] = [Unbacked::Set, Unbacked::Skip, Unbacked::Refuse];
    Policy {
        left_behind: writer.dice.pick(&[LeftBehind::Discard, LeftBehind::Keep]),
        unbacked_to_private: writer.dice.pick(&UNBACKED),
        unbacked_to_shared: writer.dice.pick(&UNBACKED),
        ..Policy::default()
    }
}

/// One conversion, with accesses beside each of its borders before and after.
fn convert(writer: &mut Writer, tally: &mut Tally) {
    let exit = exit(writer);
    let Ok(request) = Request::from_hypercall(&exit) else {
        return;
    };
    let policy = policy(writer);
    let plan = match Plan::new(&writer.memory, &request, &policy) {
        Ok(plan) if plan.is_empty() => {
            tally.nothing += 1;
            // A VMM need not look: KVM finds out as well.
            return set_again(writer, &request);
        }
        Ok(plan) => plan,
        Err(_) => {
            tally.refused += 1;
            return;
        }
    };
    let borders = borders(writer, &request);
    accesses(writer, &borders);
    tally.steps += plan.steps().count();
    tally.across_slots += usize::from(plan.losses().len() > 1);
    let steps = plan.steps().count() as u64;
    writer.fails = match writer.dice.percent(20) {
        true => usize::try_from(writer.dice.below(steps)).ok(),
        false => None,
    };
    let mut run = Run::new(plan);
    match run.to_end(writer) {
        Ok(Ended::Converted) => tally.converted += 1,
        Ok(Ended::TakenBack { .. }) => tally.taken_back += 1,
        // Steps of a writer fail once.
        Err(_) => {}
    }
    writer.fails = None;
    accesses(writer, &borders);
}

/// The call whose attributes are there already.
fn set_again(writer: &mut Writer, request: &Request) {
    let private = request.to == slat_coco::migration::Status::Private;
    writer.push(Op::SetAttributes {
        gfn: request.range.start(),
        pages: request.range.pages(),
        attributes: u64::from(private) << 3,
    });
}

/// Frames on both sides of where the request or attributes begin and end, a few of them.
fn borders(writer: &mut Writer, request: &Request) -> Vec<Gfn> {
    let range = request.range;
    let inner = writer.memory.attributes().ranges(range);
    let starts: Vec<u64> = inner.map(|(part, _)| part.start().raw()).collect();
    let ends = [range.start().raw(), range.end().raw()];
    let mut frames: Vec<u64> = ends
        .into_iter()
        .flat_map(|at| [at.saturating_sub(1), at])
        .collect();
    if !starts.is_empty() {
        let inner = writer.dice.pick(&starts);
        frames.extend([inner.saturating_sub(1), inner]);
    }
    frames.retain(|gfn| (FIRST_FRAME..END_FRAME).contains(gfn));
    frames.sort_unstable();
    frames.dedup();
    frames.into_iter().map(Gfn::new).collect()
}

fn accesses(writer: &mut Writer, frames: &[Gfn]) {
    for gfn in frames {
        if writer.dice.percent(70) {
            writer.access(*gfn);
        }
    }
}

impl Writer {
    /// The guest reads or writes, one page or several.
    pub(super) fn access(&mut self, gfn: Gfn) {
        let gpa = Gpa::new(gfn.raw() << PAGE_SHIFT);
        let act = match self.dice.below(10) {
            0..5 => GuestAct::Write(gpa),
            5..9 => GuestAct::Read(gpa),
            _ => GuestAct::WritePages {
                pages: 1 + self.dice.small(24),
                from: gpa,
            },
        };
        self.guest(act);
    }

    /// Memory ahead of the guest.
    pub(super) fn pre_fault(&mut self) {
        if !self.abilities.pre_fault {
            return;
        }
        // Some kernels never come back from a root that is obsolete: an entry gets another one.
        self.guest(GuestAct::Halt { at: None });
        let (gfn, pages) = (self.frame(), 1 + self.dice.small(HUGE));
        self.push(Op::PreFault {
            vcpu: 0,
            gfn,
            pages: Pages::new(pages),
            flags: None,
        });
    }
}

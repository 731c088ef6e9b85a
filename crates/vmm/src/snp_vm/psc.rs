//! Page-state changes: the guest asks, KVM exits, the VMM converts.

use slat_coco::psc::{
    Answer, Direction, MapGpaRange, MsrRequest, MsrResponse, Psc, PscEntry, PscQuirks, PscResult,
    PscSettings, PscStep, Scratch,
};
use slat_coco::rmp::Visibility;
use slat_coco::snp::SharedBuffer;
use slat_memslot::{AsId, Errno, Gfn, Gpa, Pages};
use slat_mmu::spte::Format;

use super::{SnpAnswer, VmmWays};
use crate::tdp_vm::TdpVm;

/// `KVM_CAP_EXIT_HYPERCALL`, the bit of `KVM_HC_MAP_GPA_RANGE`.
const EXIT_MAP_GPA_RANGE: u64 = 1 << 12;
/// Features of the hypervisor: SNP, AP creation.
const FEATURES: u64 = 3;

/// What happened in an event.
struct Event {
    exits: Vec<MapGpaRange>,
    result: PscResult,
}

impl<F: Format> TdpVm<F> {
    /// An event, with the guest's loop around it: it asks again as long as the host gets on.
    pub(super) fn page_state_change(&mut self, entries: &[PscEntry]) -> SnpAnswer {
        let buffer = SharedBuffer::new(entries);
        self.change_states(&buffer)
    }

    /// The same with a buffer that others may write meanwhile.
    pub fn change_states(&mut self, buffer: &SharedBuffer) -> SnpAnswer {
        let Some(ways) = self.snp.as_ref().map(|snp| snp.ways) else {
            return SnpAnswer::RunFailed;
        };
        let Ok(scratch) = Scratch::in_ghcb(Gpa::new(0x1000), Gpa::new(0x1800)) else {
            return SnpAnswer::RunFailed;
        };
        let mut psc = Psc::new(self.psc_settings(ways.quirks));
        let mut event = Event {
            exits: Vec::new(),
            result: PscResult::Success,
        };
        let mut cursor = None;
        loop {
            let header = buffer.header();
            if header.cur_entry > header.end_entry || cursor == Some(header.cur_entry) {
                break;
            }
            cursor = Some(header.cur_entry);
            let before = event.exits.len();
            if self
                .run_event(&mut psc, buffer, scratch, &ways, &mut event)
                .is_err()
            {
                return SnpAnswer::RunFailed;
            }
            // A part of an entry may have been done without moving the cursor.
            if event.exits.len() > before {
                cursor = None;
            }
            if event.result != PscResult::Success {
                break;
            }
        }
        let info = event.result.sw_exit_info_2();
        SnpAnswer::Psc(info, buffer.header().cur_entry, event.exits)
    }

    fn run_event(
        &mut self,
        psc: &mut Psc,
        buffer: &SharedBuffer,
        scratch: Scratch,
        ways: &VmmWays,
        event: &mut Event,
    ) -> Result<(), slat_coco::convert::UnknownReturn> {
        let mut step = psc.begin(buffer, scratch);
        loop {
            step = match step {
                PscStep::Map(exit) => {
                    event.exits.push(exit);
                    let answer = self.answer_exit(&exit, ways, event.exits.len());
                    match answer {
                        Answer::Failed => {
                            let ret = u64::from(Errno::EINVAL.raw().unsigned_abs());
                            psc.complete_ret(buffer, ret)?
                        }
                        other => psc.complete(buffer, other),
                    }
                }
                PscStep::Resize(_) => psc.complete(buffer, Answer::Done),
                PscStep::Resume(result) => {
                    event.result = result;
                    return Ok(());
                }
            };
        }
    }

    /// What the VMM does about an exit.
    fn answer_exit(&mut self, exit: &MapGpaRange, ways: &VmmWays, number: usize) -> Answer {
        let fails = ways
            .fails_at
            .is_some_and(|at| usize::try_from(at) == Ok(number));
        if fails {
            return Answer::Failed;
        }
        let pages = exit.range.pages();
        let part = ways
            .chunk
            .filter(|chunk| *chunk > 0 && *chunk < pages.raw());
        let range = match part {
            Some(chunk) => slat_memslot::GfnRange::new(exit.range.start(), Pages::new(chunk)),
            None => Some(exit.range),
        };
        let converted =
            range.is_some_and(|range| self.convert(range, side(exit.to), ways.explicit));
        match (converted, part) {
            (false, _) => Answer::Failed,
            (true, Some(chunk)) => Answer::Partly(Pages::new(chunk)),
            (true, None) => Answer::Done,
        }
    }

    fn psc_settings(&self, quirks: PscQuirks) -> PscSettings {
        let slots = self.memory.space(AsId::NORMAL).iter();
        let end = slots.map(|slot| slot.range().end()).max();
        let settings = PscSettings::new(quirks);
        PscSettings {
            exits_enabled: self.exits_enabled(),
            end_gfn: match quirks == PscQuirks::strict() {
                true => end.unwrap_or(Gfn::new(0)),
                false => settings.end_gfn,
            },
            ..settings
        }
    }

    fn exits_enabled(&self) -> bool {
        self.memory.hypercall_exits() & EXIT_MAP_GPA_RANGE != 0
    }

    /// The MSR protocol: one page at a time.
    pub(super) fn ghcb_msr(&mut self, value: u64) -> SnpAnswer {
        let hole = self.snp.as_ref().map(|snp| snp.ways.explicit);
        let response = match MsrRequest::from_msr(value) {
            request @ MsrRequest::PageState { .. } => {
                let exit = request.exit().filter(|_| self.exits_enabled());
                let changed = exit
                    .zip(hole)
                    .is_some_and(|(exit, hole)| self.convert(exit.range, side(exit.to), hole));
                match changed {
                    true => MsrResponse::PageStateChanged,
                    false => MsrResponse::PageStateFailed,
                }
            }
            MsrRequest::RegisterGhcb { gfn } => MsrResponse::Registered(Some(gfn)),
            MsrRequest::PreferredGhcb => MsrResponse::NoPreferredGhcb,
            _ => MsrResponse::Features(FEATURES),
        };
        SnpAnswer::Msr(response.to_msr())
    }
}

const fn side(to: Direction) -> Visibility {
    match to {
        Direction::ToPrivate => Visibility::Private,
        Direction::ToShared => Visibility::Shared,
    }
}

//! The guest asks for memory to be shared or private.

use slat_coco::tdx::mapgpa::{
    Conversion, MapGpa, MapGpaExit, MapGpaReply, MapGpaRules, MapGpaStatus, MapGpaStep,
};
use slat_coco::tdx::mirror::TdxMmu;
use slat_memslot::{
    Errno, GfnRange, Gpa, MapGpaAnswer, Outcome, TdxConversion, TdxOutcome, WaitingEvent,
};

use super::{Request, TdxError, TdxVm};
use crate::{CallError, CallResult};

/// `KVM_HC_MAP_GPA_RANGE`.
const MAP_GPA_RANGE: u64 = 12;

impl TdxVm {
    pub(super) fn convert(&mut self, vcpu: u32, gpa: u64, size: u64) -> CallResult {
        let gpaw = self.td.as_ref().map(TdxMmu::gpaw).unwrap_or_default();
        let rules = MapGpaRules {
            gpaw,
            guest_maxphyaddr: self.maxphyaddr,
            exit_hypercall: self.memory.hypercall_exits() & 1 << MAP_GPA_RANGE != 0,
            contract: self.contract(),
        };
        match MapGpa::begin(&rules, Gpa::new(gpa), size) {
            Ok(map) => {
                self.watch_request(gpaw.without_shared(Gpa::new(gpa)).raw(), size);
                Ok(self.ask_userspace(vcpu, map))
            }
            Err(reply) => {
                self.watch_refusal(reply.status, gpa);
                Ok(told(reply))
            }
        }
    }

    /// `KVM_EXIT_HYPERCALL`.
    fn ask_userspace(&mut self, vcpu: u32, map: MapGpa) -> Outcome {
        self.counts.hypercalls += 1;
        let exit = map.exit();
        let range = GfnRange::new(exit.gpa.gfn(), exit.pages);
        let private = range.map_or(0, |range| self.private_in(range));
        if let Some(vcpu) = self.vcpu_mut(vcpu) {
            vcpu.request = Some(Request { map, private });
        }
        asked(&exit)
    }

    /// `KVM_RUN` after userspace has answered.
    pub(super) fn complete(&mut self, vcpu: u32, ret: u64, event: WaitingEvent) -> CallResult {
        let known = self.vcpu_mut(vcpu);
        let known = known.ok_or(CallError::errno(Errno::EBADF))?;
        let Some(Request { mut map, private }) = known.request.take() else {
            return Err(CallError::NotTried {
                why: "the vCPU has asked for nothing: td_map_gpa comes first",
            });
        };
        self.watch_answer(&map.exit(), ret, private);
        match map.answer(ret, event == WaitingEvent::Pending) {
            MapGpaStep::Exit(_) => Ok(self.ask_userspace(vcpu, map)),
            MapGpaStep::Reply(reply) => Ok(told(reply)),
            MapGpaStep::RunFails => Err(TdxError::Answer(ret).into()),
        }
    }
}

fn asked(exit: &MapGpaExit) -> Outcome {
    Outcome::Tdx(TdxOutcome::Hypercall {
        gpa: exit.gpa.raw(),
        pages: exit.pages.raw(),
        to: match exit.to {
            Conversion::ToPrivate => TdxConversion::Private,
            Conversion::ToShared => TdxConversion::Shared,
        },
    })
}

fn told(reply: MapGpaReply) -> Outcome {
    Outcome::Tdx(TdxOutcome::MapGpa {
        answer: match reply.status {
            MapGpaStatus::Success => MapGpaAnswer::Success,
            MapGpaStatus::Retry => MapGpaAnswer::Retry,
            MapGpaStatus::InvalidOperand => MapGpaAnswer::InvalidOperand,
            MapGpaStatus::AlignError => MapGpaAnswer::AlignError,
            MapGpaStatus::SubfuncUnsupported => MapGpaAnswer::SubfuncUnsupported,
        },
        next: reply.next.raw(),
    })
}

//! The model beside the log.

use std::collections::BTreeMap;

use slat_memslot::{
    Call, Errno, FileCall, FileRef, GmemId, MapId, Outcome, Profile, Reason, Region, RegionError,
    SlotKey,
};

use super::{Gap, Prediction, Predictions, compare};
use crate::capability::is_foreign_to_memory;
use crate::scenario::{Names, Request};
use crate::strace::{MemoryIoctl, Returned};
use crate::{CallError, CallResult, Machine, MemoryVm, model};

/// Answers calls with the model, and keeps count.
pub(super) struct Predictor {
    machine: model::Machine,
    /// `None` for a VM that the model could not make.
    vms: BTreeMap<u32, Option<Vm>>,
    pub(super) done: Predictions,
}

/// A VM, with the model's number of each file and mapping that was made in truth.
struct Vm {
    model: model::Vm,
    files: Vec<Option<GmemId>>,
    maps: Vec<Option<MapId>>,
}

impl Vm {
    fn new(model: model::Vm) -> Self {
        Self {
            model,
            files: Vec::new(),
            maps: Vec::new(),
        }
    }

    /// The call with the model's numbers; `None` when it concerns what the model does not have.
    fn translated(&self, call: &Call) -> Option<Call> {
        let file = |id: GmemId| self.files.get(id.index()).copied().flatten();
        Some(match call {
            Call::SetRegion(region) => match region.gmem {
                FileRef::Gmem(id) => Call::SetRegion(Region {
                    gmem: FileRef::Gmem(file(id)?),
                    ..*region
                }),
                _ => call.clone(),
            },
            Call::File(id, call) => Call::File(file(*id)?, *call),
            Call::Map(id, call) => Call::Map(self.maps.get(id.index()).copied().flatten()?, *call),
            other => other.clone(),
        })
    }

    /// Answers a call, and leaves the model as the log has it.
    fn call(&mut self, call: &Call, actual: Result<i64, Errno>) -> CallResult {
        if actual.is_err() {
            let predicted = self.model.preview(call);
            if predicted.is_ok() {
                return predicted;
            }
        }
        let predicted = self.model.call(call);
        if actual.is_ok() && predicted.is_err() {
            self.follow(call, &predicted);
        }
        predicted
    }

    /// Does what the kernel did although the model refused: removes the slots that stand in the way of a region.
    fn follow(&mut self, call: &Call, refused: &CallResult) {
        const TRIES: u32 = 64;
        let Call::SetRegion(region) = call else {
            return;
        };
        let mut result = refused.clone();
        for _ in 0..TRIES {
            let Some(slot) = obstacle(&result, region) else {
                return;
            };
            if self
                .model
                .call(&Call::SetRegion(Region::delete(slot)))
                .is_err()
            {
                return;
            }
            result = self.model.call(call);
        }
    }

    /// Notes what a call made in truth.
    fn note(&mut self, call: &Call, predicted: &CallResult) {
        match call {
            Call::CreateGmem { .. } => self.files.push(match predicted {
                Ok(Outcome::Gmem(id)) => Some(*id),
                _ => None,
            }),
            Call::File(_, FileCall::Mmap { .. }) => self.maps.push(match predicted {
                Ok(Outcome::Mapped(id, _)) => Some(*id),
                _ => None,
            }),
            _ => {}
        }
    }
}

/// The slot that is in the way of a region.
fn obstacle(result: &CallResult, region: &Region) -> Option<SlotKey> {
    let Err(CallError::Refused {
        reason: Some(Reason::Region(reason)),
        ..
    }) = result
    else {
        return None;
    };
    match reason {
        RegionError::Overlap { with, .. } => Some(*with),
        RegionError::GmemBound { by, .. } => Some(*by),
        RegionError::GmemOnLiveSlot { slot }
        | RegionError::HvaChanged { slot, .. }
        | RegionError::SizeChanged { slot, .. }
        | RegionError::ReadonlyChanged { slot, .. }
        | RegionError::GmemSlotImmutable { slot } => (region.size != 0).then_some(*slot),
        _ => None,
    }
}

impl Predictor {
    pub(super) fn new(profile: Profile) -> Self {
        Self {
            machine: model::Machine::new(profile),
            vms: BTreeMap::new(),
            done: Predictions::default(),
        }
    }

    pub(super) fn create_vm(&mut self, at: u32, vm: Option<u32>, vm_type: u64, returned: Returned) {
        let made = self
            .machine
            .create_vm(u32::try_from(vm_type).unwrap_or(u32::MAX));
        let predicted = match &made {
            Ok(_) => Ok(Outcome::Done),
            Err(error) => Err(*error),
        };
        if let (Some(vm), Some(Ok(_))) = (vm, returned.result()) {
            self.vms.insert(vm, made.ok().map(Vm::new));
        }
        let text = format!("create_vm type={vm_type}");
        let name = MemoryIoctl::CreateVm.name();
        self.judge(at, vm, (name, None, &text), returned.result(), predicted);
    }

    pub(super) fn call(&mut self, at: u32, vm: u32, call: &Call, returned: Returned) {
        if is_foreign_to_memory(call) {
            self.done.other_capabilities += 1;
            return;
        }
        let name = MemoryIoctl::of(call).map_or_else(|| Request::operation(call), |i| i.name());
        let text = Request::of(call, &Names::default(), None).to_string();
        let actual = returned.result();
        let predicted = match actual {
            Some(actual) => self.predict(at, vm, call, actual),
            None => {
                self.gap(at, format!("how {name} ended"));
                NOT_COMPARED
            }
        };
        self.judge(at, Some(vm), (name, Some(call), &text), actual, predicted);
    }

    fn predict(&mut self, at: u32, vm: u32, call: &Call, actual: Result<i64, Errno>) -> CallResult {
        if !self.vms.contains_key(&vm) {
            self.gap(at, format!("what VM {vm} did before the log begins"));
            let made = self.machine.create_vm(0);
            self.vms.insert(vm, made.ok().map(Vm::new));
        }
        let Some(Some(vm)) = self.vms.get_mut(&vm) else {
            return NOT_COMPARED;
        };
        let predicted = match vm.translated(call) {
            Some(call) => vm.call(&call, actual),
            None => NOT_COMPARED,
        };
        if actual.is_ok() {
            vm.note(call, &predicted);
        }
        predicted
    }

    /// Counts a call whose arguments the log does not show.
    pub(super) fn undecoded(&mut self, at: u32, ioctl: MemoryIoctl, returned: Returned) {
        self.done.calls.entry(ioctl.name()).or_default().undecoded += 1;
        if changes_state(ioctl) && !matches!(returned, Returned::Failed(_)) {
            self.gap(at, format!("the arguments of {ioctl}"));
        }
    }

    fn gap(&mut self, at: u32, what: String) {
        self.done.gap.get_or_insert(Gap { at, what });
    }

    fn judge(
        &mut self,
        at: u32,
        vm: Option<u32>,
        (name, call, text): (&'static str, Option<&Call>, &str),
        actual: Option<Result<i64, Errno>>,
        predicted: CallResult,
    ) {
        let tally = self.done.calls.entry(name).or_default();
        let verdict = actual.and_then(|actual| compare(call, actual, &predicted));
        let (Some(actual), Some(right)) = (actual, verdict) else {
            tally.open += 1;
            return;
        };
        let prediction = Prediction {
            at,
            vm,
            text: text.to_owned(),
            actual,
            predicted,
        };
        match (right, actual) {
            (true, Ok(_)) => tally.right += 1,
            (true, Err(_)) => {
                tally.right += 1;
                self.done.refusals.push(prediction);
            }
            (false, _) => {
                tally.wrong += 1;
                self.done.wrong.push(prediction);
            }
        }
    }
}

/// The answer to what cannot be put to the model.
const NOT_COMPARED: CallResult = Err(CallError::NotTried {
    why: "the model has nothing to compare",
});

/// Whether later answers depend on the ioctl.
fn changes_state(ioctl: MemoryIoctl) -> bool {
    use MemoryIoctl as M;
    matches!(
        ioctl,
        M::SetUserMemoryRegion
            | M::SetUserMemoryRegion2
            | M::EnableCap
            | M::CreateGuestMemfd
            | M::SetMemoryAttributes
            | M::CreateVcpu
            | M::CreateIrqchip
    )
}

//! Steps carried out by KVM's calls.

use slat_coco::convert::{
    Executor, HostPart, Outcome, Pause, Plan, PlanError, Policy, Request, Run, Step,
};
use slat_coco::migration::{Status, StatusList};
use slat_memslot::{Attributes, Call, ContentsCall, Errno, FileCall};
use thiserror::Error;

use crate::{CallError, MemoryVm};

/// Those through whom devices reach guest memory: VFIO, vhost, a VMM's own back ends.
pub trait DeviceMaps {
    /// Devices may reach the memory.
    ///
    /// # Errors
    /// They cannot; nothing was done.
    fn map(&mut self, part: &HostPart) -> Result<(), Errno>;

    /// Devices must not reach the memory any more: the answer comes when none does.
    ///
    /// # Errors
    /// They still may; nothing was done.
    fn unmap(&mut self, part: &HostPart) -> Result<(), Errno>;
}

/// Nobody: for VMs without devices of this kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoDevices;

impl DeviceMaps for NoDevices {
    fn map(&mut self, _: &HostPart) -> Result<(), Errno> {
        Ok(())
    }

    fn unmap(&mut self, _: &HostPart) -> Result<(), Errno> {
        Ok(())
    }
}

/// Carries steps out on a VM.
#[derive(Debug)]
pub struct VmExecutor<'v, V: ?Sized, D = NoDevices> {
    vm: &'v mut V,
    devices: D,
    list: Option<&'v mut StatusList>,
    error: Option<CallError>,
}

impl<'v, V: MemoryVm + ?Sized> VmExecutor<'v, V> {
    /// Without devices.
    pub fn new(vm: &'v mut V) -> Self {
        Self {
            vm,
            devices: NoDevices,
            list: None,
            error: None,
        }
    }
}

impl<'v, V: MemoryVm + ?Sized, D: DeviceMaps> VmExecutor<'v, V, D> {
    /// With devices.
    pub fn with_devices<E: DeviceMaps>(self, devices: E) -> VmExecutor<'v, V, E> {
        VmExecutor {
            vm: self.vm,
            devices,
            list: self.list,
            error: self.error,
        }
    }

    /// With the list that the VMM of a SEV guest keeps.
    #[must_use]
    pub fn with_list(self, list: &'v mut StatusList) -> Self {
        Self {
            list: Some(list),
            ..self
        }
    }

    /// What the last step that failed came to: an error number alone says less.
    pub fn error(&self) -> Option<&CallError> {
        self.error.as_ref()
    }

    fn call(&mut self, call: &Call) -> Result<(), Errno> {
        match self.vm.call(call) {
            Ok(_) => Ok(()),
            Err(error) => {
                let errno = error.number().unwrap_or(Errno::ENOSYS);
                self.error = Some(error);
                Err(errno)
            }
        }
    }
}

const KEEP_SIZE: u32 = 1;
const PUNCH_HOLE: u32 = 2;

impl<V: MemoryVm + ?Sized, D: DeviceMaps> Executor for VmExecutor<'_, V, D> {
    fn carry_out(&mut self, step: &Step) -> Result<(), Errno> {
        match *step {
            Step::UnmapDma(part) => self.devices.unmap(&part),
            Step::MapDma(part) => self.devices.map(&part),
            Step::SetAttributes { range, to } => self.call(&Call::SetAttributes {
                address: range.start().gpa().raw(),
                size: range.pages().bytes(),
                attributes: match to {
                    Status::Private => Attributes::PRIVATE.bits(),
                    Status::Shared => 0,
                },
                flags: 0,
            }),
            Step::DiscardShared(part) => self.call(&Call::Contents(ContentsCall::Discard {
                hva: part.hva.raw(),
                size: part.range.pages().bytes(),
            })),
            Step::DiscardPrivate {
                range,
                file,
                offset,
            } => {
                let hole = FileCall::Fallocate {
                    mode: KEEP_SIZE | PUNCH_HOLE,
                    offset,
                    len: range.pages().bytes(),
                };
                self.call(&Call::File(file, hole))
            }
            Step::Note { range, to } => match &mut self.list {
                Some(list) => {
                    let _news = list.set(range, to);
                    Ok(())
                }
                None => Err(Errno::ENOSYS),
            },
        }
    }
}

/// Why a conversion did not come to an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ConvertError {
    /// The machine does not keep what userspace has set up, so that there is nothing to plan from.
    #[error("the machine does not know what was set up")]
    NothingKnown,
    /// There is no plan. Nothing was done.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A step was interrupted: [`Plan`] and [`Run`] let a VMM go on where it was.
    #[error(transparent)]
    Pause(#[from] Pause),
}

impl ConvertError {
    /// What the guest hears.
    pub const fn outcome(&self) -> Outcome {
        match self {
            Self::Plan(_) => Outcome::Refused,
            Self::NothingKnown | Self::Pause(_) => Outcome::TryAgain,
        }
    }
}

/// How often an interrupted step is tried.
const ATTEMPTS: u32 = 16;

/// Plans a conversion and carries it out, without devices. What could not be given back is in [`Run::left_over`].
///
/// # Errors
/// There is no plan, or a step is interrupted again and again; in the latter case what can be is taken back.
pub fn convert<V: MemoryVm + ?Sized>(
    vm: &mut V,
    request: &Request,
    policy: &Policy,
) -> Result<Run, ConvertError> {
    let memory = vm.known_memory().ok_or(ConvertError::NothingKnown)?;
    let mut run = Run::new(Plan::new(memory, request, policy)?);
    let mut executor = VmExecutor::new(vm);
    let mut paused = None;
    for _ in 0..ATTEMPTS {
        match run.to_end(&mut executor) {
            Ok(_) => return Ok(run),
            Err(pause) => paused = Some(pause),
        }
    }
    let why = match paused {
        Some(Pause::Interrupted { errno, .. } | Pause::Halfway { errno, .. }) => errno,
        None => Errno::EAGAIN,
    };
    let _gone_back = run.give_up(why);
    run.to_end(&mut executor)?;
    Ok(run)
}

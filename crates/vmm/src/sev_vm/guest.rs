//! A guest, its memory by key, and what it has announced.

use slat_coco::migration::{Status, StatusList};
use slat_coco::sev::{EncRegion, SevVm, SevVmType};
use slat_memslot::{
    Errno, Gpa, Hva, Outcome, PAGE_SHIFT, PAGE_SIZE, SevCall, SevCommand, SevHost, SevQuestion,
    SevSide, VmType,
};

use super::Wire;
use super::wire::Parcel;
use crate::{CallError, CallResult};

/// What a VM of type SEV or SEV-ES has beside slots and tables.
#[derive(Clone, Debug)]
pub(crate) struct SevGuest {
    pub(super) vm: SevVm,
    list: StatusList,
    wire: Wire,
}

const NO_SUCH_PARCEL: CallError = CallError::NotTried {
    why: "nothing of this number was sent that way",
};

/// The page at a host address.
pub(super) const fn page(hva: u64) -> u64 {
    hva >> PAGE_SHIFT
}

impl SevGuest {
    /// That of a new VM, if it is of such a type.
    pub(crate) fn of(vm_type: VmType, wire: &Wire) -> Option<Box<Self>> {
        let kind = match vm_type {
            VmType::Sev => SevVmType::Sev,
            VmType::SevEs => SevVmType::SevEs,
            _ => return None,
        };
        Some(Box::new(Self {
            vm: SevVm::new(kind),
            list: StatusList::new(),
            wire: wire.clone(),
        }))
    }

    /// What its VMM has noted.
    pub(crate) fn list(&mut self) -> &mut StatusList {
        &mut self.list
    }

    pub(crate) fn create_vcpu(&mut self) {
        self.vm.create_vcpu();
    }

    /// Everything but a guest's accesses.
    pub(crate) fn call(&mut self, call: &SevCall) -> CallResult {
        match *call {
            SevCall::Command(command) => self.command(command),
            SevCall::RegisterRegion { hva, size } => {
                let addr = Hva::new(hva);
                done(self.vm.register_region(EncRegion { addr, size }))
            }
            SevCall::UnregisterRegion { hva, size } => {
                let addr = Hva::new(hva);
                done(self.vm.unregister_region(EncRegion { addr, size }))
            }
            SevCall::Host(host) => self.host(host),
            SevCall::Ask(SevQuestion::PinnedPages) => {
                Ok(Outcome::Value(self.vm.regions().pinned()))
            }
            SevCall::Ask(SevQuestion::IsShared { gpa }) => {
                let status = self.list.get(Gpa::new(gpa).gfn());
                Ok(Outcome::Value(u64::from(status == Status::Shared)))
            }
            SevCall::Ask(SevQuestion::IsPinned { hva }) => {
                let pinned = self.vm.regions().is_pinned(page(hva));
                Ok(Outcome::Value(u64::from(pinned)))
            }
            SevCall::Ask(SevQuestion::CacheFlushes) => Ok(Outcome::Value(self.vm.cache_flushes())),
            SevCall::Read { .. } | SevCall::Write { .. } => Err(CallError::errno(Errno::EINVAL)),
        }
    }

    /// What a guest finds in a page, or puts there, once it has reached it.
    pub(crate) fn access(&mut self, call: &SevCall, hva: u64) -> CallResult {
        let is_private = |side| side == SevSide::Private;
        match *call {
            SevCall::Read { side, .. } => Ok(read(self.vm.guest_read(page(hva), is_private(side)))),
            SevCall::Write { side, value, .. } => {
                for half in 0..slat_coco::sev::HALVES {
                    self.vm
                        .guest_write(page(hva), half, is_private(side), value);
                }
                Ok(Outcome::Done)
            }
            _ => self.call(call),
        }
    }

    fn command(&mut self, command: SevCommand) -> CallResult {
        let (vm, wire) = (&mut self.vm, &self.wire);
        match command {
            SevCommand::Init2 => done(vm.init()),
            SevCommand::LaunchStart { policy } => done(vm.launch_start(policy)),
            SevCommand::LaunchUpdateData { hva } => done(vm.launch_update_data(page(hva))),
            SevCommand::LaunchUpdateVmsa => done(vm.launch_update_vmsa()),
            SevCommand::LaunchMeasure => done(vm.launch_measure()),
            SevCommand::LaunchSecret { hva, value } => done(vm.launch_secret(page(hva), value)),
            SevCommand::LaunchFinish => done(vm.launch_finish()),
            SevCommand::GuestStatus => {
                let state = vm.guest_status().map_err(refused)?;
                Ok(Outcome::Value(state.raw().into()))
            }
            SevCommand::SendStart => {
                let session = vm.send_start().map_err(refused)?;
                Ok(Outcome::Value(wire.open(session)))
            }
            SevCommand::SendUpdateData { hva, size } => {
                let packet = vm.send_update_data(page(hva), hva % PAGE_SIZE, size);
                let packet = packet.map_err(refused)?;
                Ok(Outcome::Value(wire.send(Parcel::Encrypted(packet))))
            }
            SevCommand::SendFinish => done(vm.send_finish()),
            SevCommand::SendCancel => done(vm.send_cancel()),
            SevCommand::ReceiveStart { session } => {
                let session = wire.session(session).ok_or(NO_SUCH_PARCEL)?;
                done(vm.receive_start(session))
            }
            SevCommand::ReceiveUpdateData { hva, size, packet } => {
                let Some(Parcel::Encrypted(packet)) = wire.parcel(packet) else {
                    return Err(NO_SUCH_PARCEL);
                };
                let place = (hva % PAGE_SIZE, size);
                done(vm.receive_update_data(page(hva), place, &packet))
            }
            SevCommand::ReceiveFinish => done(vm.receive_finish()),
        }
    }

    fn host(&mut self, host: SevHost) -> CallResult {
        match host {
            SevHost::Read { hva } => Ok(read(self.vm.host_read(page(hva)))),
            SevHost::Write { hva, value } => {
                self.vm.host_write(page(hva), value);
                Ok(Outcome::Done)
            }
            SevHost::Move { hva } => Ok(Outcome::Value(u64::from(self.move_page(hva)))),
            SevHost::SendPlain { hva } => {
                let stored = self.vm.stored(page(hva));
                Ok(Outcome::Value(self.wire.send(Parcel::Plain(stored))))
            }
            SevHost::ReceivePlain { hva, packet } => {
                let Some(Parcel::Plain(stored)) = self.wire.parcel(packet) else {
                    return Err(NO_SUCH_PARCEL);
                };
                self.vm.store(page(hva), stored);
                Ok(Outcome::Done)
            }
        }
    }
}

/// A page whose halves hold the same; anything else is noise.
fn read(halves: [Option<u64>; slat_coco::sev::HALVES]) -> Outcome {
    match halves {
        [Some(first), Some(second)] if first == second => Outcome::Value(first),
        _ => Outcome::Noise,
    }
}

const fn refused(why: slat_coco::sev::SevError) -> CallError {
    CallError::Sev { why }
}

fn done(result: Result<(), slat_coco::sev::SevError>) -> CallResult {
    result.map(|()| Outcome::Done).map_err(refused)
}

//! KVM's commands for a TD (`KVM_MEMORY_ENCRYPT_OP`).

use slat_coco::tdx::ioctl::TdxCall as Staged;
use slat_coco::tdx::mirror::{Config, Measure, MemRegion, TdxMmu};
use slat_coco::tdx::{Content, Debug, Gpaw, PendingAccess, TdParams};
use slat_memslot::{GfnRange, Gpa, Outcome, TdxCommand};

use super::{TdxError, TdxVm};
use crate::CallResult;

/// `KVM_TDX_INIT_MEM_REGION`, as it was passed.
#[derive(Clone, Copy)]
struct Region {
    vcpu: u32,
    flags: u32,
    what: MemRegion,
    signal: Option<u64>,
}

impl TdxVm {
    pub(super) fn command(&mut self, command: TdxCommand, hw_error: u64) -> CallResult {
        match command {
            TdxCommand::InitVm {
                attributes,
                gpaw,
                maxphyaddr,
                flags,
                nent,
            } => {
                let staged = Staged::InitVm {
                    flags,
                    reserved: 0,
                    nent,
                    nent_again: nent,
                };
                self.stages
                    .check(staged, hw_error)
                    .map_err(TdxError::from)?;
                self.init_vm(attributes, gpaw)?;
                self.maxphyaddr = maxphyaddr;
                self.go_on(staged)
            }
            TdxCommand::InitVcpu { vcpu, flags } => self.init_vcpu(vcpu, flags, hw_error),
            TdxCommand::InitMemRegion {
                vcpu,
                flags,
                source,
                gpa,
                pages,
                signal,
            } => {
                let what = MemRegion {
                    source,
                    gpa: Gpa::new(gpa),
                    pages,
                };
                let region = Region {
                    vcpu,
                    flags,
                    what,
                    signal,
                };
                self.init_mem_region(region, hw_error)
            }
            TdxCommand::FinalizeVm { flags } => self.finalize(flags, hw_error),
        }
    }

    /// What was tested before is done.
    fn go_on(&mut self, staged: Staged) -> CallResult {
        self.stages.call(staged, 0).map_err(TdxError::from)?;
        Ok(Outcome::Done)
    }

    /// The TD, which exists since the stages say so.
    fn initialised(&self) -> Result<&TdxMmu, TdxError> {
        self.td.as_ref().ok_or(TdxError::NotRunnable(0))
    }

    fn init_vm(&mut self, attributes: u64, gpaw: u8) -> Result<(), TdxError> {
        let gpaw = match gpaw {
            48 => Gpaw::Bits48,
            52 => Gpaw::Bits52,
            other => return Err(TdxError::Gpaw(other)),
        };
        let pending_access = match attributes & TdxCommand::SEPT_VE_DISABLE {
            0 => PendingAccess::Ve,
            _ => PendingAccess::Exit,
        };
        let debug = match attributes & TdxCommand::DEBUG {
            0 => Debug::Off,
            _ => Debug::On,
        };
        let params = TdParams {
            gpaw,
            pending_access,
            debug,
            max_vcpus: self.settings.max_vcpus,
        };
        let config = Config {
            params,
            vcpus: 0,
            hooks: self.settings.hooks,
            host_pages: self.settings.host_pages,
            tables: self.settings.tables,
            pauses: false,
        };
        let td = TdxMmu::new(&config).map_err(TdxError::Module)?;
        self.memory.set_shared_bit(gpaw.shared_bit() >> 12);
        self.tell_all(&td);
        self.td = Some(td);
        Ok(())
    }

    /// Slots and attributes that were there before.
    fn tell_all(&self, td: &TdxMmu) {
        for slot in self.memory.space(Default::default()).iter() {
            td.bind_slot(slot.key().id.raw(), slot.range(), Self::file_of(slot));
        }
        let private: Vec<GfnRange> = self.memory.attributes().iter().map(|(r, _)| r).collect();
        for range in private {
            td.set_private(range);
        }
    }

    fn init_vcpu(&mut self, vcpu: u32, flags: u32, hw_error: u64) -> CallResult {
        let staged = Staged::InitVcpu {
            vcpu: usize::try_from(vcpu).unwrap_or(usize::MAX),
            flags,
        };
        self.stages
            .check(staged, hw_error)
            .map_err(TdxError::from)?;
        let number = self.initialised()?.add_vcpu().map_err(TdxError::Module)?;
        if let Some(vcpu) = self.vcpu_mut(vcpu) {
            vcpu.number = Some(number);
        }
        self.go_on(staged)
    }

    fn init_mem_region(&mut self, region: Region, hw_error: u64) -> CallResult {
        let staged = Staged::InitMemRegion {
            vcpu: usize::try_from(region.vcpu).unwrap_or(usize::MAX),
            flags: region.flags,
        };
        self.stages
            .check(staged, hw_error)
            .map_err(TdxError::from)?;
        let measure = match region.flags & TdxCommand::MEASURE_MEMORY_REGION {
            0 => Measure::Addresses,
            _ => Measure::Content,
        };
        let mut left = region.what;
        let mut to_signal = region.signal;
        let signal = || match &mut to_signal {
            Some(0) => true,
            Some(pages) => {
                *pages -= 1;
                false
            }
            None => false,
        };
        let content = |source| Content::Value(self.host.value(source));
        let td = self.initialised()?;
        let added = td.init_mem_region(&mut left, measure, content, signal);
        self.watch.region(region.what, left, added.is_ok());
        self.check_alive()?;
        added.map_err(TdxError::Region)?;
        Ok(Outcome::Done)
    }

    fn finalize(&mut self, flags: u32, hw_error: u64) -> CallResult {
        let staged = Staged::FinalizeVm { flags };
        self.stages
            .check(staged, hw_error)
            .map_err(TdxError::from)?;
        self.initialised()?.finalize().map_err(TdxError::Module)?;
        self.memory.set_finalized();
        self.watch.finalized();
        self.go_on(staged)
    }

    pub(super) fn vcpu_mut(&mut self, vcpu: u32) -> Option<&mut super::Vcpu> {
        self.vcpus.get_mut(usize::try_from(vcpu).ok()?)
    }
}

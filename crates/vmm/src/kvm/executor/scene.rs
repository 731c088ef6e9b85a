//! One access by a guest, with all that its walk needs taken down.

use slat_mmu::host::Host;
use slat_mmu::role::{Cr0, Cr4, Efer};
use slat_mmu::tdp::dump::Dump;
use slat_mmu::walk::PagingMode;

use super::AccessGuest;
use crate::capture::{Capture, Setup};
use crate::live::here;
use crate::rebuild::{Options, rebuild};
use crate::walks::scene::{mapped, model_second, page_of};
use crate::walks::{
    CpuState, Executor as _, MEMORY_PAGES, Part, Scene, SceneError, SecondSource, SkipReason,
    Skipped, Tried, mode_state,
};

impl AccessGuest {
    /// Runs a guest with four or five levels of tables that makes one access, and gives what is left: registers, memory,
    /// and the second stage. That is KVM's own where it has a TDP MMU and its events can be captured, else the model's.
    ///
    /// # Errors
    /// The address cannot be asked for, or the kernel does not run the mode, or not at all.
    pub fn scene(mode: PagingMode, tried: &Tried) -> Result<Scene, SceneError> {
        let words = mapped(mode, tried.address)?;
        let run = |errno: slat_memslot::Errno| SceneError::Run(errno.to_string());
        let host = here();
        let capture = match &host {
            Ok(_) => Capture::start(&Setup::default()).map_err(|why| why.to_string()),
            Err(why) => Err(why.clone()),
        };
        let mut guest = Self::open().map_err(|why| SceneError::Run(why.to_string()))?;
        let state = mode_state(mode);
        guest.renew(&state).map_err(run)?;
        if let Some(why) = SkipReason::of(guest.takes(&state)) {
            let part = Part::Mode(mode);
            return Err(SceneError::NotRun(Skipped { part, why }));
        }
        guest.enter(mode).map_err(run)?;
        guest.load(&words).map_err(run)?;
        let to = Some(page_of(tried.address));
        let ended = guest.access(&state, tried, to).map_err(run)?;
        let captured = capture.and_then(|capture| capture.stop().map_err(|why| why.to_string()));
        let captured =
            captured.and_then(|captured| tables(&captured.text, host.ok().map(|m| m.host)));
        let (second, source) = match captured {
            Ok(dump) => (dump, SecondSource::Captured),
            Err(why) => (model_second(&like(mode))?, SecondSource::Model { why }),
        };
        Ok(Scene {
            state: guest.registers(&state).map_err(run)?,
            tried: *tried,
            ended: Some(ended),
            memory: (0..MEMORY_PAGES << 12)
                .step_by(8)
                .map(|at| guest.read(at))
                .collect(),
            second,
            source,
        })
    }

    /// What the vCPU has now.
    fn registers(&self, state: &CpuState) -> Result<CpuState, slat_memslot::Errno> {
        let sregs = self.machine.vcpu.get_sregs().map_err(super::errno)?;
        Ok(CpuState {
            cr0: Cr0::from_bits_retain(sregs.cr0),
            cr3: sregs.cr3,
            cr4: Cr4::from_bits_retain(sregs.cr4),
            efer: Efer::from_bits_retain(sregs.efer),
            ..*state
        })
    }
}

/// A host whose second stage has as many levels as the guest's tables.
fn like(mode: PagingMode) -> Host {
    match mode {
        PagingMode::Level5 => Host::npt(52).with_five_levels(),
        _ => Host::npt(48),
    }
}

/// The tables of the VM that has some, of all in a trace.
fn tables(text: &str, host: Option<Host>) -> Result<Dump, String> {
    let options = Options {
        host,
        ..Options::default()
    };
    let rebuilt = rebuild(text, &options).map_err(|why| why.to_string())?;
    if let Some(failure) = rebuilt.failures.first() {
        return Err(format!("the trace contradicts itself: {failure:?}"));
    }
    let has_root = |dump: &Dump| dump.roots.iter().any(|root| !root.role.is_invalid());
    let mut dumps = rebuilt.vms.into_iter().map(|vm| vm.dump);
    dumps
        .find(has_root)
        .ok_or_else(|| "no root is in the trace".to_owned())
}

//! Recordings predicted: what a kernel did in a scenario, from its operations alone.
//!
//! [`predict`] does a recording's operations on a [`TdpVm`] or, without the TDP MMU, a [`ShadowVm`], and holds everything that the model says
//! against everything that was recorded, operation by operation. What it takes from the recording, beside the operations:
//!
//! - which page is behind a frame, and how large the host maps it: from `backing` notes, and where there are none, from
//!   the first `kvm_mmu_spte_requested` that names it, or `kvm_mmu_set_spte` for what shadow pages map along;
//! - which host addresses are unmapped, write-protected or looked at for use: the notifier's lines, with the slot that an
//!   address belongs to learned from an operation that says both;
//! - arguments that the text of an operation leaves out: another host address of a slot, flags of a pre-fault. A call that
//!   could only fail by those, and did, is taken to have had them.
//!
//! What depends on the machine is a [`Machine`]. Everything else is predicted: every entry, table, role word, zap, split,
//! MMIO mark, result, exit and dirty bitmap.
//!
//! ```
//! use slat_vmm::replay::{Machine, Verdict, predict};
//! use slat_vmm::traces::{self, Recording};
//!
//! let all = traces::Machine::named("npt-l4").unwrap().recordings();
//! let one = all.iter().find(|one| one.scenario == "01-first-fault-4k").unwrap();
//! let recording = Recording::parse(one.text())?;
//! let verdict = predict(&recording, &Machine::named("npt-l4").unwrap());
//! assert!(matches!(verdict, Verdict::Agrees { compared: 45, adopted: 0 }));
//! # Ok::<(), traces::ParseError>(())
//! ```

mod activity;
mod addresses;
mod inputs;
mod machine;
mod missing;
mod planted;
mod run;

pub(crate) use activity::stub;
pub use machine::Machine;
pub use missing::NotModelled;
pub use planted::Planted;

use slat_mmu::host::SecondStage;
use slat_mmu::roots::TdpMmu;
use slat_mmu::spte::{Ept, Npt};

use crate::shadow_vm::ShadowVm;
use crate::tdp_vm::TdpVm;
use crate::traces::{Difference, Recording};

/// What came of a prediction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Everything is as recorded.
    Agrees {
        /// How many events and results were compared.
        compared: usize,
        /// How many leaves had accessed and dirty bits that were not predicted. Hardware sets them without an event, so
        /// that it may be the hardware that is another one.
        adopted: usize,
    },
    /// Something is not.
    Differs {
        /// How many were as recorded before.
        compared: usize,
        /// The first that is not.
        difference: Box<Difference>,
    },
    /// The scenario needs what the model does not have.
    NotModelled(NotModelled),
}

/// Predicts a recording that was made on a machine.
pub fn predict(recording: &Recording<'_>, machine: &Machine) -> Verdict {
    predict_by(recording, machine, None)
}

/// The same with one rule made wrong.
pub fn predict_wrongly(recording: &Recording<'_>, machine: &Machine, planted: Planted) -> Verdict {
    predict_by(recording, machine, Some(planted))
}

fn predict_by(recording: &Recording<'_>, machine: &Machine, planted: Option<Planted>) -> Verdict {
    if let Some(missing) = missing::first(recording, machine) {
        return Verdict::NotModelled(missing);
    }
    match (machine.tdp_mmu, machine.host.second_stage) {
        (TdpMmu::On, SecondStage::Ept) => run::run::<TdpVm<Ept>>(recording, machine, planted),
        (TdpMmu::On, SecondStage::Npt) => run::run::<TdpVm<Npt>>(recording, machine, planted),
        (TdpMmu::Off, SecondStage::Ept) => run::run::<ShadowVm<Ept>>(recording, machine, planted),
        (_, SecondStage::Npt | SecondStage::Off) => {
            run::run::<ShadowVm<Npt>>(recording, machine, planted)
        }
    }
}

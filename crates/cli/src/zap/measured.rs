//! Who plays scenes, and what came of one.

use slat_vmm::zap::{Cost, Paged, Policy, Scene, Subject, measure};

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
use slat_vmm::zap::kernel::{Kernel, KernelCost};

use super::{Args, Mmu, On};
use crate::Error;

/// The model, the kernel, or both.
pub(super) struct Who {
    pub(super) model: Option<Subject>,
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    pub(super) kernel: Option<Kernel>,
    paged: Paged,
}

/// What a scene has cost.
#[derive(Clone, Debug)]
pub(super) struct Measured {
    pub(super) scene: Scene,
    pub(super) model: Option<Cost>,
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    pub(super) kernel: Option<KernelCost>,
}

impl Who {
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    pub(super) fn open(args: &Args) -> Result<Self, Error> {
        if args.on == On::Model {
            return Ok(Self {
                paged: args.subject().paged(),
                model: Some(args.subject()),
                kernel: None,
            });
        }
        let kernel = Kernel::open()?;
        let paged = kernel.subject().paged();
        let wanted = args.mmu.map(|mmu| match mmu {
            Mmu::Tdp => Paged::Tdp,
            Mmu::Shadow => Paged::Shadow,
        });
        if wanted.is_some_and(|wanted| wanted != paged) {
            return Err(format!("the kernel has the MMU {paged:?}").into());
        }
        Ok(Self {
            paged,
            model: (args.on == On::Both).then(|| kernel.subject().clone()),
            kernel: Some(kernel),
        })
    }

    #[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
    pub(super) fn open(args: &Args) -> Result<Self, Error> {
        match args.on {
            On::Model => Ok(Self {
                paged: args.subject().paged(),
                model: Some(args.subject()),
            }),
            On::Kvm | On::Both => Err("KVM for x86-64 needs Linux on x86-64".into()),
        }
    }

    /// The model with the TDP MMU.
    pub(super) fn tdp_model() -> Self {
        Self {
            model: Some(Subject::tdp()),
            #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
            kernel: None,
            paged: Paged::Tdp,
        }
    }

    /// Which MMU scenes are played on.
    pub(super) fn paged(&self) -> Paged {
        self.paged
    }

    /// What the machine has VMs for.
    pub(super) fn policies(&self) -> Vec<Policy> {
        let subject = self.model.as_ref().or(self.kernels_model());
        let has = |policy: &Policy| {
            let known = *policy != Policy::Flag || !self.on_kernel();
            known && subject.is_some_and(|subject| subject.has(*policy))
        };
        Policy::ALL.into_iter().filter(has).collect()
    }

    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    fn kernels_model(&self) -> Option<&Subject> {
        self.kernel.as_ref().map(Kernel::subject)
    }

    #[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
    fn kernels_model(&self) -> Option<&Subject> {
        None
    }

    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    pub(super) fn on_kernel(&self) -> bool {
        self.kernel.is_some()
    }

    #[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
    pub(super) fn on_kernel(&self) -> bool {
        false
    }

    pub(super) fn measure(&mut self, scene: &Scene) -> Result<Measured, Error> {
        let model = self.model.as_ref();
        Ok(Measured {
            scene: *scene,
            model: model.map(|subject| measure(scene, subject)).transpose()?,
            #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
            kernel: self
                .kernel
                .as_mut()
                .map(|kernel| kernel.measure(scene))
                .transpose()?,
        })
    }
}

impl Args {
    fn subject(&self) -> Subject {
        match self.mmu {
            Some(Mmu::Shadow) => Subject::shadow(),
            Some(Mmu::Tdp) | None => Subject::tdp(),
        }
    }
}

/// One line of a table: who, leaves zapped, others' leaves back, own leaves back, and microseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Line {
    pub(super) who: &'static str,
    pub(super) zapped: u64,
    pub(super) others_back: u64,
    pub(super) own_back: u64,
    /// Tables or shadow pages that went.
    pub(super) tables: u64,
    /// What only the model counts.
    pub(super) entries: Option<u64>,
    /// Faults behind the call.
    pub(super) faults: u64,
    pub(super) zap_us: f64,
    pub(super) again_us: f64,
}

impl Measured {
    /// What each has counted.
    pub(super) fn lines(&self) -> Vec<Line> {
        let model = self.model.as_ref().map(model_line);
        model.into_iter().chain(self.kernel_line()).collect()
    }

    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    fn kernel_line(&self) -> Option<Line> {
        let cost = self.kernel.as_ref()?;
        let own = cost.own_again.unwrap_or_default();
        Some(Line {
            who: "kernel",
            zapped: cost.change.zapped(),
            others_back: cost.others_again.mapped(),
            own_back: own.mapped(),
            tables: cost.change.shadow_zapped(),
            entries: None,
            faults: cost.refaults(),
            zap_us: micros(cost.change.time),
            again_us: micros(cost.others_again.time + own.time),
        })
    }

    #[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
    fn kernel_line(&self) -> Option<Line> {
        None
    }

    /// Whether both have counted the same, where both have counted.
    pub(super) fn agrees(&self) -> bool {
        let counts = |line: &Line| (line.zapped, line.others_back, line.own_back, line.faults);
        let lines = self.lines();
        lines
            .windows(2)
            .all(|two| counts(&two[0]) == counts(&two[1]))
    }
}

fn model_line(cost: &Cost) -> Line {
    let own = cost.own_again.unwrap_or_default();
    Line {
        who: "model",
        zapped: cost.change.zapped(),
        others_back: cost.others_again.mapped(),
        own_back: own.mapped(),
        tables: cost.change.counts.tables_zapped,
        entries: Some(cost.change.counts.entries),
        faults: cost.refaults(),
        zap_us: micros(cost.change.time),
        again_us: micros(cost.others_again.time + own.time),
    }
}

fn micros(time: core::time::Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

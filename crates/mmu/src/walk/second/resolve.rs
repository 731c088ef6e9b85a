//! A second stage whose faults are mended on the way.

use slat_memslot::Gpa;

use crate::walk::{ErrorCode, Stage};

/// Mends faults of a stage (`mmu.c:kvm_mmu_page_fault`).
pub trait Resolve<S: Stage> {
    /// Whether it is worth to try again; if not, the fault is reported. `access` is what the walk wants.
    fn resolve(&mut self, stage: &mut S, fault: &S::Fault, access: ErrorCode) -> bool;
}

impl<S: Stage, R: FnMut(&mut S, &S::Fault, ErrorCode) -> bool> Resolve<S> for R {
    fn resolve(&mut self, stage: &mut S, fault: &S::Fault, access: ErrorCode) -> bool {
        self(stage, fault, access)
    }
}

/// A stage with someone who mends its faults. A guest is entered again after each; here the access is just made again.
#[derive(Debug)]
pub struct Resolving<S, R> {
    stage: S,
    resolver: R,
}

/// How often one access is tried. KVM tries for ever, entering the guest in between.
const ATTEMPTS: u32 = 64;

impl<S: Stage, R: Resolve<S>> Resolving<S, R> {
    /// A stage and who mends its faults.
    pub const fn new(stage: S, resolver: R) -> Self {
        Self { stage, resolver }
    }

    /// Both.
    pub fn into_parts(self) -> (S, R) {
        (self.stage, self.resolver)
    }
}

impl<S: Stage, R: Resolve<S>> Stage for Resolving<S, R> {
    type Address = S::Address;
    type Fault = S::Fault;

    fn translate(&mut self, gpa: Gpa, access: ErrorCode) -> Result<S::Address, S::Fault> {
        for _ in 1..ATTEMPTS {
            match self.stage.translate(gpa, access) {
                Err(fault) if self.resolver.resolve(&mut self.stage, &fault, access) => {}
                other => return other,
            }
        }
        self.stage.translate(gpa, access)
    }

    fn before_mark(&mut self, gpa: Gpa) -> Result<(), S::Fault> {
        let access = ErrorCode::WRITE | ErrorCode::GUEST_PAGE;
        for _ in 1..ATTEMPTS {
            match self.stage.before_mark(gpa) {
                Err(fault) if self.resolver.resolve(&mut self.stage, &fault, access) => {}
                other => return other,
            }
        }
        self.stage.before_mark(gpa)
    }
}

//! What a VMM writes to `hypercall.ret`.

use thiserror::Error;

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// All of it is done.
    Done,
    /// Nothing is done, and the guest may ask again.
    TryAgain,
    /// Nothing is done, and asking again does not help.
    Refused,
}

/// What userspace may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Contract {
    /// Zero, or anything else for a failure: kernels before May 2026.
    Before2026,
    /// Zero, `EAGAIN`, `EINVAL`; with anything else `KVM_RUN` fails (`kvm_is_valid_map_gpa_range_ret`).
    #[default]
    Since2026,
}

/// A value of `hypercall.ret` that userspace must not give.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
#[error(
    "hypercall.ret is {0:#x}: only 0, EAGAIN and EINVAL are allowed; KVM_RUN fails with EINVAL"
)]
pub struct UnknownReturn(pub u64);

/// Who asked, which decides what the value means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Path {
    /// The guest's own hypercall (SEV, SEV-ES, software-protected VMs): the value is what it finds in RAX, a negative errno.
    Hypercall,
    /// A page-state change of an SNP guest, or MapGPA of TDX: KVM makes of it what the guest's protocol has.
    Converted,
}

const EAGAIN: u64 = 11;
const EINVAL: u64 = 22;

impl Outcome {
    /// The value for `hypercall.ret`.
    ///
    /// A guest that is to try again can be told so by its own hypercall, and by the others since 2026; before, it hears of a
    /// failure.
    ///
    /// ```
    /// use slat_coco::convert::{Contract, Outcome, Path};
    /// assert_eq!(Outcome::Done.ret(Contract::Since2026, Path::Converted), 0);
    /// assert_eq!(Outcome::Refused.ret(Contract::Since2026, Path::Converted), 22);
    /// assert_eq!(Outcome::Refused.ret(Contract::Since2026, Path::Hypercall) as i64, -22);
    /// ```
    pub const fn ret(self, contract: Contract, path: Path) -> u64 {
        let errno = match (self, contract) {
            (Self::Done, _) => return 0,
            (Self::TryAgain, Contract::Since2026) => EAGAIN,
            (Self::TryAgain, Contract::Before2026) => match path {
                Path::Hypercall => EAGAIN,
                Path::Converted => EINVAL,
            },
            (Self::Refused, _) => EINVAL,
        };
        match path {
            Path::Hypercall => errno.wrapping_neg(),
            Path::Converted => errno,
        }
    }

    /// What KVM makes of a value that a VMM has written for a page-state change or MapGPA.
    ///
    /// # Errors
    /// The contract does not allow the value: `KVM_RUN` fails with `EINVAL`.
    pub const fn of_ret(ret: u64, contract: Contract) -> Result<Self, UnknownReturn> {
        match (ret, contract) {
            (0, _) => Ok(Self::Done),
            (EAGAIN, Contract::Since2026) => Ok(Self::TryAgain),
            (EINVAL, Contract::Since2026) | (_, Contract::Before2026) => Ok(Self::Refused),
            (ret, Contract::Since2026) => Err(UnknownReturn(ret)),
        }
    }
}

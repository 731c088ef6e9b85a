//! Why a call fails: one variant per cause, with the offending values.
//!
//! Each variant answers what the kernel answers with ([`errno`](RegionError::errno)), which kernel function refuses
//! ([`kernel_site`](RegionError::kernel_site)) and a stable code that scenario files and tools use. [`catalogue`]
//! lists every reason there is.

use core::fmt;

use crate::Errno;

mod dirty;
mod gmem;
mod region;
mod vm;

pub use dirty::{DirtyLogError, DirtyRingError};
pub use gmem::{FileError, GmemError, MapError};
pub use region::RegionError;
pub use vm::{AttributeError, CapError, GateError, PreFaultError, VmError};

/// What is known of a reason without its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct ReasonInfo {
    /// Stable kebab-case name.
    pub code: &'static str,
    /// The usual error number. A few reasons changed theirs; [`Reason::errno`] is exact for the profile at hand.
    pub errno: Errno,
    /// Source file and function of the kernel that refuses.
    pub site: &'static str,
    /// Since which release the reason exists, and until which.
    pub since: &'static str,
    /// The cause in words, with the names of the values in braces.
    pub text: &'static str,
}

/// Defines one family of reasons. Each line: variant, values, code, errno, kernel site, release, message.
macro_rules! reasons {
    (
        $(#[$meta:meta])*
        pub enum $name:ident {
            $(
                $(#[$doc:meta])*
                $variant:ident { $($field:ident : $ty:ty),* } =
                    $code:literal, $errno:ident, $site:literal, $since:literal, $text:literal;
            )*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize))]
        #[non_exhaustive]
        pub enum $name {
            $(
                $(#[$doc])*
                #[doc = concat!("\n\n`", stringify!($errno), "`, `", $site, "`, ", $since, ".")]
                #[error($text)]
                $variant {
                    $(
                        #[doc = concat!("The value called `", stringify!($field), "` in the message.")]
                        $field: $ty
                    ),*
                },
            )*
        }

        impl $name {
            /// Every reason of this family, in the order in which the kernel tests for them.
            pub const CATALOGUE: &'static [$crate::ReasonInfo] = &[
                $($crate::ReasonInfo {
                    code: $code,
                    errno: $crate::Errno::$errno,
                    site: $site,
                    since: $since,
                    text: $text,
                }),*
            ];

            /// The reason without its values.
            pub fn info(&self) -> &'static $crate::ReasonInfo {
                match self {
                    $(Self::$variant { .. } => {
                        const INFO: $crate::ReasonInfo = $crate::ReasonInfo {
                            code: $code,
                            errno: $crate::Errno::$errno,
                            site: $site,
                            since: $since,
                            text: $text,
                        };
                        &INFO
                    })*
                }
            }

            /// The stable kebab-case name.
            pub fn code(&self) -> &'static str {
                self.info().code
            }

            /// Source file and function of the kernel that refuses.
            pub fn kernel_site(&self) -> &'static str {
                self.info().site
            }
        }
    };
}
use reasons;

/// Implements `errno()` for a family in which every reason has one number for ever.
macro_rules! fixed_errno {
    ($($name:ident),*) => {$(
        impl $name {
            /// The error number that the ioctl or system call gives.
            pub fn errno(&self) -> $crate::Errno {
                self.info().errno
            }
        }
    )*};
}
use fixed_errno;

macro_rules! families {
    ($($(#[$doc:meta])* $family:ident($error:ident)),* $(,)?) => {
        /// Why a call of the memory interface fails, whatever the call.
        ///
        /// ```
        /// use slat_memslot::{Errno, Reason, RegionError};
        /// let reason = Reason::from(RegionError::SizeUnaligned { size: 0x1800 });
        /// assert_eq!(reason.code(), "size-unaligned");
        /// assert_eq!(reason.errno(), Errno::EINVAL);
        /// assert_eq!(reason.to_string(), "memory_size 0x1800 is no multiple of 4096");
        /// ```
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize))]
        #[non_exhaustive]
        pub enum Reason {
            $($(#[$doc])* $family($error)),*
        }

        impl Reason {
            /// The error number that the ioctl or system call gives.
            pub fn errno(&self) -> Errno {
                match self {
                    $(Self::$family(e) => e.errno()),*
                }
            }

            /// The reason without its values.
            pub fn info(&self) -> &'static ReasonInfo {
                match self {
                    $(Self::$family(e) => e.info()),*
                }
            }
        }

        impl fmt::Display for Reason {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$family(e) => fmt::Display::fmt(e, f)),*
                }
            }
        }

        impl core::error::Error for Reason {}

        $(
            impl From<$error> for Reason {
                #[inline]
                fn from(error: $error) -> Self {
                    Self::$family(error)
                }
            }
        )*

        /// Every reason there is: a family's name, then its reasons in the order in which the kernel tests.
        pub fn catalogue() -> impl Iterator<Item = (&'static str, &'static ReasonInfo)> {
            [$((stringify!($family), $error::CATALOGUE)),*]
                .into_iter()
                .flat_map(|(family, reasons)| reasons.iter().map(move |reason| (family, reason)))
        }
    };
}

families! {
    /// Before any VM or vCPU ioctl.
    Gate(GateError),
    /// `KVM_SET_USER_MEMORY_REGION` and `KVM_SET_USER_MEMORY_REGION2`.
    Region(RegionError),
    /// `KVM_CREATE_GUEST_MEMFD`.
    Gmem(GmemError),
    /// System calls on a guest_memfd.
    File(FileError),
    /// System calls on a mapping of a guest_memfd.
    Map(MapError),
    /// `KVM_SET_MEMORY_ATTRIBUTES`.
    Attributes(AttributeError),
    /// `KVM_GET_DIRTY_LOG` and `KVM_CLEAR_DIRTY_LOG`.
    DirtyLog(DirtyLogError),
    /// Enabling, harvesting and resetting dirty rings.
    DirtyRing(DirtyRingError),
    /// `KVM_ENABLE_CAP`.
    Cap(CapError),
    /// `KVM_PRE_FAULT_MEMORY`.
    PreFault(PreFaultError),
    /// The remaining VM ioctls that touch the memory layout.
    Vm(VmError),
}

impl Reason {
    /// The stable kebab-case name.
    pub fn code(&self) -> &'static str {
        self.info().code
    }

    /// Source file and function of the kernel that refuses.
    pub fn kernel_site(&self) -> &'static str {
        self.info().site
    }
}

//! The MSR protocol: requests that fit the GHCB's MSR, for when there is no GHCB yet.

use slat_memslot::{Gfn, GfnRange, PageSize, Pages};

use super::exit::{Direction, MapGpaRange};
use crate::rmp::Vmpl;

const INFO: u64 = 0xfff;

/// What a guest writes into the MSR (bits 11:0 say which).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MsrRequest {
    /// `0x002`: which versions of the protocol, and where the C-bit is.
    SevInfo,
    /// `0x004`: a register of a CPUID leaf.
    Cpuid {
        /// The leaf (63:32).
        function: u32,
        /// EAX, EBX, ECX or EDX as 0 to 3 (31:30).
        register: u8,
    },
    /// `0x010`: which frame the host would like the GHCB in.
    PreferredGhcb,
    /// `0x012`: the GHCB is at this frame. SNP guests must say so.
    RegisterGhcb {
        /// The frame (63:12).
        gfn: Gfn,
    },
    /// `0x014`: a page shall be made private or shared.
    PageState {
        /// The frame (51:12).
        gfn: Gfn,
        /// Which way (55:52); `None` for an operation that does not exist here.
        to: Option<Direction>,
    },
    /// `0x016`: another privilege level shall run.
    RunVmpl {
        /// Which (39:32); `None` for one that does not exist.
        vmpl: Option<Vmpl>,
    },
    /// `0x080`: which features the hypervisor has.
    HypervisorFeatures,
    /// `0x100`: the guest cannot go on.
    Terminate {
        /// Set of reasons (15:12).
        set: u8,
        /// The reason (23:16).
        code: u8,
    },
    /// Nothing that is defined.
    Unknown(u64),
}

impl MsrRequest {
    /// What a value asks for.
    ///
    /// ```
    /// use slat_coco::psc::{Direction, MsrRequest};
    /// use slat_memslot::Gfn;
    /// let request = MsrRequest::from_msr(1 << 52 | 0x8000 << 12 | 0x014);
    /// let expected = MsrRequest::PageState { gfn: Gfn::new(0x8000), to: Some(Direction::ToPrivate) };
    /// assert_eq!(request, expected);
    /// assert_eq!(request.exit().unwrap().args(), [0x800_0000, 1, 0x10]);
    /// ```
    pub fn from_msr(value: u64) -> Self {
        let [_, second, third, fourth, fifth, _, seventh, _] = value.to_le_bytes();
        match value & INFO {
            0x002 => Self::SevInfo,
            0x004 => {
                let [.., a, b, c, d] = value.to_le_bytes();
                Self::Cpuid {
                    function: u32::from_le_bytes([a, b, c, d]),
                    register: fourth >> 6,
                }
            }
            0x010 => Self::PreferredGhcb,
            0x012 => Self::RegisterGhcb {
                gfn: Gfn::new(value >> 12),
            },
            0x014 => Self::PageState {
                gfn: Gfn::new(value >> 12 & 0xff_ffff_ffff),
                to: match seventh >> 4 {
                    1 => Some(Direction::ToPrivate),
                    2 => Some(Direction::ToShared),
                    _ => None,
                },
            },
            0x016 => Self::RunVmpl {
                vmpl: Vmpl::new(u64::from(fifth)),
            },
            0x080 => Self::HypervisorFeatures,
            0x100 => Self::Terminate {
                set: second >> 4,
                code: third,
            },
            _ => Self::Unknown(value),
        }
    }

    /// The exit that a page-state change needs: one page. `None` for other requests, and for operations that do not exist,
    /// which are answered with an error at once (`snp_begin_psc_msr`).
    pub fn exit(&self) -> Option<MapGpaRange> {
        match *self {
            Self::PageState { gfn, to: Some(to) } => Some(MapGpaRange {
                range: GfnRange::new(gfn, Pages::new(1))?,
                to,
                hint: PageSize::Size4K,
            }),
            _ => None,
        }
    }
}

/// What a host writes into the MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MsrResponse {
    /// `0x011`: no frame is preferred.
    NoPreferredGhcb,
    /// `0x013`: the GHCB is at this frame, or the frame is refused.
    Registered(Option<Gfn>),
    /// `0x015`: the page's state has changed.
    PageStateChanged,
    /// `0x015`: it has not (`GHCB_MSR_PSC_RESP_ERROR`).
    PageStateFailed,
    /// `0x081`: features of the hypervisor (bit 0 SNP, 1 AP creation, 5 multi-VMPL).
    Features(u64),
}

impl MsrResponse {
    /// The value. Of a page-state change, all of 63:32 is the error.
    ///
    /// ```
    /// use slat_coco::psc::MsrResponse;
    /// assert_eq!(MsrResponse::PageStateChanged.to_msr(), 0x015);
    /// assert_eq!(MsrResponse::PageStateFailed.to_msr(), 1 << 63 | 0x015);
    /// ```
    pub const fn to_msr(self) -> u64 {
        const NO_FRAME: u64 = u64::MAX << 12;
        match self {
            Self::NoPreferredGhcb => NO_FRAME | 0x011,
            Self::Registered(None) => NO_FRAME | 0x013,
            Self::Registered(Some(gfn)) => gfn.raw() << 12 | 0x013,
            Self::PageStateChanged => 0x015,
            Self::PageStateFailed => 1 << 63 | 0x015,
            Self::Features(bits) => bits << 12 | 0x081,
        }
    }
}

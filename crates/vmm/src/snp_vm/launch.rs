//! `KVM_MEMORY_ENCRYPT_OP`: the initial image, page by page.

use slat_coco::rmp::{LaunchPage, RmpSize, RmpState};
use slat_coco::snp::{Key, Value, rmpupdate};
use slat_memslot::{AsId, Errno, Gfn, Gpa, Outcome, PAGE_SHIFT, PAGE_SIZE, Pages};
use slat_mmu::spte::{Format, Pfn};
use thiserror::Error;

use super::{FilePage, Launch, LaunchType, Snp, SnpCommand};
use crate::tdp_vm::TdpVm;
use crate::traces::Predicted;
use crate::{CallError, CallResult};

/// Bits of a policy that must be set: SMT may be on, and the reserved one.
const POLICY_MUST: u64 = 1 << 16 | 1 << 17;
/// Bits that may be set: the versions, the two above, debugging, one socket.
const POLICY_VALID: u64 = 0xffff | POLICY_MUST | 1 << 19 | 1 << 20;
/// KVM refuses guests that want one socket only.
const POLICY_SINGLE_SOCKET: u64 = 1 << 20;

/// Why a command is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
#[non_exhaustive]
pub enum LaunchRefused {
    /// The guest is no SNP guest.
    #[error("the guest is no SNP guest")]
    NotSnp,
    /// The guest has a context already.
    #[error("the launch has started already")]
    StartedAlready,
    /// The guest has no context.
    #[error("the launch has not started")]
    NotStarted,
    /// Flags, of which there are none.
    #[error("flags {0:#x}")]
    Flags(u64),
    /// The policy has bits that it must not have, or lacks some.
    #[error("policy {0:#x}")]
    Policy(u64),
    /// The length is no multiple of a page.
    #[error("a length of {0:#x}")]
    Length(u64),
    /// There is no such type of page.
    #[error("page type {0}")]
    PageType(u8),
    /// No slot with a file is at the first frame.
    #[error("no slot with a guest_memfd at {0:?}")]
    NoFile(Gfn),
    /// The first page cannot be launched. The call gives `EIO` whatever the cause.
    #[error("{0}")]
    Page(#[from] PageRefused),
    /// The launch has finished: firmware takes no more.
    #[error("the launch has finished")]
    Finished,
}

/// Why a page is not launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum PageRefused {
    /// There is none to launch.
    #[error("a length of 0")]
    None,
    /// It is in the file already, prepared, or assigned (`EEXIST`).
    #[error("{0:?} is there already")]
    Exists(Gfn),
    /// The attributes do not say that it is private (`EINVAL`).
    #[error("{0:?} is not private")]
    NotPrivate(Gfn),
    /// The host has no page, or the reverse map does not take it.
    #[error("{0:?} has no page")]
    NoPage(Gfn),
    /// Firmware refuses it. The page was reclaimed.
    #[error("firmware refused {0:?}")]
    Firmware(Gfn),
}

impl LaunchRefused {
    /// The error of the call.
    pub const fn errno(&self) -> Errno {
        match self {
            Self::NotSnp => Errno::ENOTTY,
            Self::Page(_) | Self::Finished => Errno::EIO,
            _ => Errno::EINVAL,
        }
    }

    /// The kernel's function that refuses.
    pub const fn kernel_site(&self) -> &'static str {
        match self {
            Self::NotSnp | Self::StartedAlready | Self::Policy(_) => "sev.c:snp_launch_start",
            Self::Page(_) => "guest_memfd.c:kvm_gmem_populate",
            Self::Finished => "the SNP firmware",
            _ => "sev.c:snp_launch_update",
        }
    }
}

impl<F: Format> TdpVm<F> {
    /// `KVM_MEMORY_ENCRYPT_OP`. An update that stops early says what is left.
    ///
    /// # Errors
    /// As [`TdpVm::snp_command`].
    pub fn memory_encrypt_op(&mut self, command: &SnpCommand) -> CallResult {
        let done = self.snp_command(command);
        let answer = match &done {
            Ok(_) => Ok(Some(0)),
            Err(refused) => Err(refused.errno()),
        };
        self.out.events.push(Predicted::Returned(answer));
        done.map_err(|refused| CallError::errno(refused.errno()))
    }

    /// The same, with the reason of a refusal.
    ///
    /// # Errors
    /// The first check that fails, in KVM's order.
    pub fn snp_command(&mut self, command: &SnpCommand) -> Result<Outcome, LaunchRefused> {
        let launch = self.snp.as_ref().map(|snp| snp.launch);
        let launch = launch.ok_or(LaunchRefused::NotSnp)?;
        match *command {
            SnpCommand::LaunchStart { policy, flags } => self.launch_start(launch, policy, flags),
            _ if launch == Launch::None => Err(LaunchRefused::NotStarted),
            SnpCommand::LaunchUpdate {
                gpa,
                size,
                page,
                tag,
                flags,
            } => self.launch_update((gpa, size), page, tag, flags),
            SnpCommand::LaunchFinish { flags } => self.launch_finish(launch, flags),
        }
    }

    fn launch_start(
        &mut self,
        launch: Launch,
        policy: u64,
        flags: u64,
    ) -> Result<Outcome, LaunchRefused> {
        if launch != Launch::None {
            return Err(LaunchRefused::StartedAlready);
        }
        no_flags(flags)?;
        let good = policy & !POLICY_VALID == 0
            && policy & POLICY_MUST == POLICY_MUST
            && policy & POLICY_SINGLE_SOCKET == 0;
        if !good {
            return Err(LaunchRefused::Policy(policy));
        }
        if let Some(snp) = &mut self.snp {
            snp.launch = Launch::Started;
        }
        Ok(Outcome::Done)
    }

    fn launch_update(
        &mut self,
        (gpa, size): (u64, u64),
        page: u8,
        tag: u64,
        flags: u64,
    ) -> Result<Outcome, LaunchRefused> {
        if size % PAGE_SIZE != 0 {
            return Err(LaunchRefused::Length(size));
        }
        no_flags(flags)?;
        let known = launch_type(page).ok_or(LaunchRefused::PageType(page))?;
        let value = match known {
            LaunchType::Zero => Value::Zero,
            _ => Value::Tag(tag),
        };
        let first = Gpa::new(gpa).gfn();
        let slot = self.memory.space(AsId::NORMAL).by_gfn(first);
        let behind = slot.and_then(|slot| {
            let file = slot.binding()?.file?;
            Some((file, slot.range().end()))
        });
        let (_, end) = behind.ok_or(LaunchRefused::NoFile(first))?;
        let wanted = size >> PAGE_SHIFT;
        // No further than the slot goes.
        let pages = wanted.min((end - first).raw());
        if pages == 0 {
            return Err(PageRefused::None.into());
        }
        let mut done = 0;
        while done < pages {
            match self.launch_page(first + Pages::new(done), value) {
                Ok(()) => done += 1,
                Err(refused) if done == 0 => return Err(refused.into()),
                Err(_) => break,
            }
        }
        if done == wanted {
            return Ok(Outcome::Done);
        }
        Ok(Outcome::Remaining {
            gpa: gpa + (done << PAGE_SHIFT),
            size: (wanted - done) << PAGE_SHIFT,
        })
    }

    fn launch_page(&mut self, gfn: Gfn, value: Value) -> Result<(), PageRefused> {
        let slot = self.memory.space(AsId::NORMAL).by_gfn(gfn);
        let place = slot.and_then(|slot| super::backing::place(slot, gfn));
        let place = place.ok_or(PageRefused::NoPage(gfn))?;
        let private = self.memory.is_private(gfn);
        let snp = self.snp.as_mut().ok_or(PageRefused::NoPage(gfn))?;
        let known = snp.files.get(&place).copied();
        if known.is_some_and(|page| page.prepared) {
            return Err(PageRefused::Exists(gfn));
        }
        if !private {
            return Err(PageRefused::NotPrivate(gfn));
        }
        let allocated = || snp.frames.allocate(&snp.rmp, RmpSize::Size4K);
        let pfn = known.map(|page| page.pfn).or_else(allocated);
        let pfn = pfn.ok_or(PageRefused::NoPage(gfn))?;
        if snp.rmp.entry(pfn).assigned {
            return Err(PageRefused::Exists(gfn));
        }
        snp.launch_frame((pfn, gfn), LaunchPage::Normal, value)?;
        let page = FilePage {
            pfn,
            gfn,
            folio: RmpSize::Size4K,
            prepared: true,
        };
        if known.is_some_and(|page| page.folio == RmpSize::Size2M) {
            snp.split_folio(place.0, place.1);
        }
        snp.insert_page(place, page);
        Ok(())
    }

    /// The registers of all vCPUs are measured, each in a page of KVM's own (`snp_launch_update_vmsa`).
    fn launch_finish(&mut self, launch: Launch, flags: u64) -> Result<Outcome, LaunchRefused> {
        no_flags(flags)?;
        if launch == Launch::Finished {
            return Err(LaunchRefused::Finished);
        }
        let ids: Vec<u32> = self.vcpus.keys().copied().collect();
        if let Some(snp) = &mut self.snp {
            for id in ids {
                snp.launch_vmsa(id)?;
            }
            snp.launch = Launch::Finished;
        }
        self.memory.set_finalized();
        Ok(Outcome::Done)
    }
}

const fn no_flags(flags: u64) -> Result<(), LaunchRefused> {
    match flags {
        0 => Ok(()),
        _ => Err(LaunchRefused::Flags(flags)),
    }
}

const fn launch_type(raw: u8) -> Option<LaunchType> {
    Some(match raw {
        1 => LaunchType::Normal,
        3 => LaunchType::Zero,
        4 => LaunchType::Unmeasured,
        5 => LaunchType::Secrets,
        6 => LaunchType::Cpuid,
        _ => return None,
    })
}

impl Snp {
    /// A frame goes from the hypervisor's to Pre-Guest to Guest-Valid. If firmware refuses it is reclaimed and freed; if that
    /// fails it is leaked.
    pub(super) fn launch_frame(
        &mut self,
        (pfn, gfn): (Pfn, Gfn),
        page: LaunchPage,
        value: Value,
    ) -> Result<(), PageRefused> {
        self.frames.host_write(&self.rmp, pfn, value);
        self.frames.adjust_direct_map(pfn, RmpSize::Size4K);
        rmpupdate(&self.rmp, pfn, &RmpState::pre_guest(self.asid, gfn))
            .map_err(|_| PageRefused::NoPage(gfn))?;
        let taken = self.launch != Launch::Finished
            && self.rmp.launch_update(self.asid, gfn, pfn, page).is_ok();
        if taken {
            self.frames.put(pfn, value, Key::Guest(self.asid));
            return Ok(());
        }
        let reclaimed = self.rmp.page_reclaim(pfn).is_ok();
        if reclaimed && rmpupdate(&self.rmp, pfn, &RmpState::shared(RmpSize::Size4K)).is_ok() {
            self.frames.free(pfn);
        } else {
            self.leaked.insert(pfn, gfn);
        }
        Err(PageRefused::Firmware(gfn))
    }
}

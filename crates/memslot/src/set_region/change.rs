//! What a set-region call will do, before it does it.

use core::fmt;

use crate::{AsId, Generation, GfnRange, Region, SlotKey, VmType};

/// What a set-region call comes to (`enum kvm_mr_change`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum ChangeKind {
    /// Nothing differs; KVM returns before any work.
    Nothing,
    /// A new slot.
    Create,
    /// The slot goes.
    Delete,
    /// The slot goes to another guest address; its flags may change with it.
    Move,
    /// Only flags change, that is dirty logging.
    FlagsOnly,
}

impl fmt::Display for ChangeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "no change",
            Self::Create => "create",
            Self::Delete => "delete",
            Self::Move => "move",
            Self::FlagsOnly => "flags only",
        })
    }
}

/// Why a zap reaches as far as it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum ZapRule {
    /// The kernel is older than the quirk and always throws all roots away.
    KernelBeforeQuirk,
    /// A default VM with the quirk `SLOT_ZAP_ALL` on.
    DefaultVm,
    /// A default VM with the quirk disabled.
    QuirkDisabled,
    /// Another VM type: the quirk does not apply.
    VmType(VmType),
    /// The proposed flag `KVM_MEM_ZAP_LEAFS_ONLY` is set on the slot.
    Flag,
    /// The proposed flag is known but not set on the slot.
    NoFlag,
    /// MMIO entries cannot tell the new generation from an old one.
    MmioGenerationWrap,
}

impl fmt::Display for ZapRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KernelBeforeQuirk => {
                f.write_str("this kernel is older than the quirk SLOT_ZAP_ALL")
            }
            Self::DefaultVm => f.write_str("a default VM with the quirk SLOT_ZAP_ALL on"),
            Self::QuirkDisabled => f.write_str("the quirk SLOT_ZAP_ALL is disabled"),
            Self::VmType(vm_type) => {
                write!(f, "VM type {vm_type}, to which the quirk does not apply")
            }
            Self::Flag => f.write_str("the slot's flag KVM_MEM_ZAP_LEAFS_ONLY (experiment)"),
            Self::NoFlag => f.write_str("the slot lacks KVM_MEM_ZAP_LEAFS_ONLY (experiment)"),
            Self::MmioGenerationWrap => f.write_str("the MMIO generation wraps"),
        }
    }
}

/// How far a zap reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum ZapReach {
    /// Every root of every address space: the whole VM refaults (`kvm_mmu_zap_all_fast`).
    AllRoots,
    /// The leaves of these frames in the roots of one address space; tables stay (`kvm_mmu_zap_memslot`).
    Leafs {
        /// The address space whose roots are visited.
        as_id: AsId,
        /// The frames.
        range: GfnRange,
    },
}

/// A zap of page tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Zap {
    /// How far it reaches.
    pub reach: ZapReach,
    /// Why so far.
    pub rule: ZapRule,
}

impl fmt::Display for Zap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reach {
            ZapReach::AllRoots => write!(f, "all roots of the VM ({})", self.rule),
            ZapReach::Leafs { as_id, range } => {
                write!(
                    f,
                    "leaves of guest frames {range} in the roots of {as_id:?} ({})",
                    self.rule
                )
            }
        }
    }
}

/// What happens to a slot's dirty log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum LogSwitch {
    /// Logging starts: huge mappings are split, entries write-protected or their dirty bits cleared.
    On,
    /// Logging starts with every bit set; no entry changes until the first clear.
    OnInitiallySet,
    /// Logging ends.
    Off,
}

/// What a change asks of the CPUs beside a zap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Requests {
    /// The slot's guest frames are flushed from all TLBs, whatever was changed (`kvm_mmu_slot_apply_flags`).
    pub flush_slot: bool,
    /// All CPUs write their caches back, since encrypted memory goes (`sev_guest_memory_reclaimed`).
    pub write_back_caches: bool,
    /// All vCPUs switch page-modification logging on or off (`KVM_REQ_UPDATE_CPU_DIRTY_LOGGING`).
    pub update_dirty_logging: bool,
}

impl Requests {
    /// Those that are made, in words.
    pub fn iter(&self) -> impl Iterator<Item = &'static str> {
        let all = [
            (self.flush_slot, "flushes the slot's frames from all TLBs"),
            (self.write_back_caches, "writes all CPUs' caches back"),
            (
                self.update_dirty_logging,
                "switches page-modification logging on all vCPUs",
            ),
        ];
        all.into_iter()
            .filter(|(made, _)| *made)
            .map(|(_, words)| words)
    }
}

/// The plan of one set-region call: everything that will change, printable, not yet done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[must_use = "a plan does nothing until it is committed"]
pub struct Change {
    /// The request that the plan answers.
    pub request: Region,
    /// What it comes to.
    pub kind: ChangeKind,
    /// The slot.
    pub slot: SlotKey,
    /// The frames the slot holds now.
    pub old: Option<GfnRange>,
    /// The frames it will hold.
    pub new: Option<GfnRange>,
    /// What is zapped on the way.
    pub zap: Option<Zap>,
    /// What happens to the dirty log.
    pub log: Option<LogSwitch>,
    /// What the CPUs are asked to do.
    pub requests: Requests,
    /// How often the address space's slots are exchanged, each time with a wait for all readers.
    pub swaps: u32,
    /// The address space's generation before.
    pub before: Generation,
    /// The address space's generation after.
    pub after: Generation,
    /// Which state of the VM's memory the plan was made for.
    pub(crate) version: u64,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} slot {}", self.kind, self.slot)?;
        match (self.old, self.new) {
            (Some(old), Some(new)) if old != new => write!(f, ": guest frames {old} -> {new}")?,
            (_, Some(range)) | (Some(range), None) => write!(f, ": guest frames {range}")?,
            (None, None) => {}
        }
        if let Some(zap) = self.zap {
            write!(f, "\n  zaps {zap}")?;
        }
        if let Some(log) = self.log {
            let what = match log {
                LogSwitch::On => "on: mappings are split and write-protected now",
                LogSwitch::OnInitiallySet => {
                    "on, all pages dirty: mappings stay until they are cleared"
                }
                LogSwitch::Off => "off",
            };
            write!(f, "\n  dirty log {what}")?;
        }
        for words in self.requests.iter() {
            write!(f, "\n  {words}")?;
        }
        match self.swaps {
            0 => Ok(()),
            n => write!(
                f,
                "\n  {n} exchange(s) of the slots, {:?} -> {:#x}",
                self.before,
                self.after.raw()
            ),
        }
    }
}

/// What a set-region call has done, or what a refused one has left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[must_use = "page tables and dirty logs have to follow"]
pub struct Effects {
    /// What it came to.
    pub kind: ChangeKind,
    /// The slot.
    pub slot: SlotKey,
    /// What is to be zapped because the slot goes.
    pub zap: Option<Zap>,
    /// What is to be zapped because the MMIO generation wrapped.
    pub wrap: Option<Zap>,
    /// What happens to the dirty log.
    pub log: Option<LogSwitch>,
    /// The address space's generation afterwards.
    pub generation: Generation,
}

impl fmt::Display for Effects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is now {:?}", self.slot.as_id, self.generation)?;
        if let Some(zap) = self.zap {
            write!(f, "; zapped: {zap}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

//! Whose page tables a scene is played on.

use slat_memslot::{Profile, Vendor};
use slat_mmu::host::Host;
use slat_mmu::roots::TdpMmu;
use slat_mmu::shadow::ShadowRules;
use slat_mmu::spte::NxHugePages;
use slat_mmu::tdp::Passes;
use slat_mmu::walk::GuestVendor;

use super::guest::View;
use super::scene::{Policy, Scene};
use crate::replay::Machine;

/// Which of KVM's MMUs a subject has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Paged {
    /// Two-dimensional paging with the TDP MMU.
    Tdp,
    /// Shadow pages.
    Shadow,
}

/// A machine whose VMs play scenes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    pub(super) machine: Machine,
}

impl Subject {
    /// Linux 6.12 with the TDP MMU: NPT, or EPT of five levels where a scene wants more than two roots.
    ///
    /// # Panics
    /// Not in practice: the machine is known.
    pub fn tdp() -> Self {
        let mut named = Machine::named("npt-l4").expect("a machine that is known");
        named.profile.maxphyaddr.set(48);
        Self::of(Machine {
            name: "Linux 6.12.117, NPT".to_owned(),
            host: Host::npt(48),
            passes: Passes::default(),
            ..named
        })
    }

    /// Linux 6.18 without a second stage: guests run on shadow pages.
    ///
    /// # Panics
    /// Not in practice: the profile is known.
    pub fn shadow() -> Self {
        let profile = Profile::named("linux-6.18.44-pvm").expect("a profile of slat-memslot");
        Self::shadowed(profile, Host::shadow(48))
    }

    /// A machine that was found, with shadow pages.
    pub(super) fn shadowed(profile: Profile, host: Host) -> Self {
        let machine = Machine {
            name: format!("{} on shadow pages", profile.name),
            host,
            profile,
            nx_huge_pages: NxHugePages::Off,
            passes: Passes::default(),
            tdp_mmu: TdpMmu::Off,
            guest_vendor: GuestVendor::default(),
            shadow_rules: ShadowRules::UPSTREAM,
        };
        Self { machine }
    }

    /// A machine that was found, with the TDP MMU.
    pub fn of(machine: Machine) -> Self {
        Self { machine }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.machine.name
    }

    /// Which MMU it has.
    pub fn paged(&self) -> Paged {
        match self.machine.tdp_mmu {
            TdpMmu::On => Paged::Tdp,
            TdpMmu::Off => Paged::Shadow,
        }
    }

    /// Whether it has VMs for a policy. The flag that was proposed is known to the model alone, with the TDP MMU.
    pub fn has(&self, policy: Policy) -> bool {
        let supported = self.machine.profile.supports(policy.vm_type());
        supported && (policy != Policy::Flag || self.paged() == Paged::Tdp)
    }

    /// How its guests see their memory: a paravirtual kernel maps pages only for guests that page.
    pub(super) fn view(&self) -> View {
        match self.machine.profile.vendor.get() {
            Vendor::Paravirtual => View::Long,
            Vendor::Intel | Vendor::Amd => View::Flat,
        }
    }

    /// The machine that plays a scene.
    pub(super) fn machine_for(&self, scene: &Scene) -> Machine {
        let mut machine = self.machine.clone();
        if scene.roots > 2 && self.paged() == Paged::Tdp {
            machine.host = Host::ept(52).with_five_levels();
            machine.profile.vendor.set(Vendor::Intel);
        }
        if scene.policy == Policy::Flag {
            machine.profile = machine.profile.with_zap_leafs_flag();
        }
        machine
    }
}

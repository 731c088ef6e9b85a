//! The machine that this process runs on, as far as its tables depend on it.

use std::fs;

use kvm_ioctls::Kvm;
use slat_memslot::{PageSize, Profile};
use slat_mmu::host::{Host, SecondStage};
use slat_mmu::roots::TdpMmu;
use slat_mmu::shadow::{ShadowRules, UnsyncChildren};
use slat_mmu::spte::NxHugePages;
use slat_mmu::tdp::Passes;

use super::abilities::Abilities;
use crate::kvm::{gigabyte_pages, guest_vendor, probe};
use crate::replay::Machine;
use crate::walks::GigabytePages;

/// The machine, or what it lacks to be predicted.
///
/// # Errors
/// KVM cannot be used, or does not use the TDP MMU, or the processor is not known.
pub fn here() -> Result<Machine, String> {
    match two_dimensional()? {
        machine if machine.tdp_mmu == TdpMmu::On => Ok(machine),
        _ => Err("KVM does not use the TDP MMU here".to_owned()),
    }
}

/// The machine, if its guests run guests of their own with SVM, on either MMU, or what it lacks to be predicted.
///
/// # Errors
/// KVM cannot be used, or has no NPT, or offers no SVM to guests, or the processor is not known.
pub fn here_nested() -> Result<Machine, String> {
    let machine = two_dimensional()?;
    if machine.host.second_stage != SecondStage::Npt {
        return Err("there is no NPT here".to_owned());
    }
    match parameter("kvm_amd", "nested") {
        Some(true) => Ok(machine),
        _ => Err("KVM offers no SVM to guests here".to_owned()),
    }
}

/// A machine with a second stage, on either MMU.
fn two_dimensional() -> Result<Machine, String> {
    let kvm = Kvm::new().map_err(|error| format!("/dev/kvm: {error}"))?;
    let capabilities = probe(&kvm).map_err(|errno| format!("KVM_CREATE_VM: {errno}"))?;
    let tdp_mmu = match parameter("kvm", "tdp_mmu") {
        Some(true) => TdpMmu::On,
        _ => TdpMmu::Off,
    };
    let cpu =
        fs::read_to_string("/proc/cpuinfo").map_err(|error| format!("/proc/cpuinfo: {error}"))?;
    let bits = address_bits(&cpu).ok_or("the processor does not say its address bits")?;
    let host = if has_flag(&cpu, "svm") && parameter("kvm_amd", "npt") == Some(true) {
        Host::npt(bits)
    } else if has_flag(&cpu, "vmx") && parameter("kvm_intel", "ept") == Some(true) {
        intel(bits)
    } else {
        return Err("neither NPT nor EPT is on".to_owned());
    };
    let host = if has_flag(&cpu, "la57") {
        host.with_five_levels()
    } else {
        host
    };
    let nx_huge_pages = match parameter("kvm", "nx_huge_pages") {
        Some(true) => NxHugePages::On,
        _ => NxHugePages::Off,
    };
    Ok(Machine {
        name: format!("this machine ({})", capabilities.release),
        host,
        profile: Profile::probed(&capabilities),
        nx_huge_pages,
        passes: passes(&capabilities.release),
        tdp_mmu,
        guest_vendor: guest_vendor(&kvm).map_err(|errno| format!("CPUID: {errno}"))?,
        shadow_rules: shadow_rules(),
    })
}

/// The machine, if its guests run on shadow pages, or what it lacks to be predicted.
///
/// # Errors
/// KVM cannot be used, or has a second stage, or the processor is not known.
pub fn here_shadowed() -> Result<Machine, String> {
    let kvm = Kvm::new().map_err(|error| format!("/dev/kvm: {error}"))?;
    let capabilities = probe(&kvm).map_err(|errno| format!("KVM_CREATE_VM: {errno}"))?;
    let profile = Profile::probed(&capabilities);
    if profile.tdp.get() {
        return Err("KVM has a second stage here".to_owned());
    }
    let cpu =
        fs::read_to_string("/proc/cpuinfo").map_err(|error| format!("/proc/cpuinfo: {error}"))?;
    let bits = address_bits(&cpu).ok_or("the processor does not say its address bits")?;
    let gigabyte = gigabyte_pages(&kvm).map_err(|errno| format!("CPUID: {errno}"))?;
    let mut host = Host::shadow(bits);
    if gigabyte == GigabytePages::Never {
        host = host.with_largest_page(PageSize::Size2M);
    }
    if parameter("kvm", "mmio_caching") != Some(true) {
        host = host.without_mmio_caching();
    }
    let nx_huge_pages = match parameter("kvm", "nx_huge_pages") {
        Some(true) => NxHugePages::On,
        _ => NxHugePages::Off,
    };
    Ok(Machine {
        name: format!("this machine ({})", capabilities.release),
        host,
        profile,
        nx_huge_pages,
        passes: passes(&capabilities.release),
        tdp_mmu: TdpMmu::Off,
        guest_vendor: guest_vendor(&kvm).map_err(|errno| format!("CPUID: {errno}"))?,
        shadow_rules: shadow_rules(),
    })
}

/// What this kernel can be asked for.
pub fn abilities(machine: &Machine) -> Abilities {
    Abilities::of(machine)
}

/// Only some kernels have the switch; others zap.
fn shadow_rules() -> ShadowRules {
    let unsync_children = match parameter("kvm", "eager_zap_unsync_children") {
        Some(false) => UnsyncChildren::Kept,
        Some(true) | None => UnsyncChildren::Zapped,
    };
    ShadowRules {
        unsync_children,
        ..ShadowRules::UPSTREAM
    }
}

fn intel(bits: u8) -> Host {
    let host = Host::ept(bits);
    match (
        parameter("kvm_intel", "eptad"),
        parameter("kvm_intel", "pml"),
    ) {
        (Some(true), Some(true)) => host,
        (Some(true), _) => host.without_pml(),
        _ => host.without_ad(),
    }
}

/// A switch of a module.
fn parameter(module: &str, name: &str) -> Option<bool> {
    let text = fs::read_to_string(format!("/sys/module/{module}/parameters/{name}")).ok()?;
    Some(matches!(text.trim(), "Y" | "1"))
}

fn has_flag(cpu: &str, flag: &str) -> bool {
    let mut flags = cpu.lines().filter(|line| line.starts_with("flags"));
    flags
        .next()
        .is_some_and(|line| line.split_whitespace().any(|word| word == flag))
}

/// `address sizes : 40 bits physical, 48 bits virtual`.
fn address_bits(cpu: &str) -> Option<u8> {
    let line = cpu.lines().find(|line| line.starts_with("address sizes"))?;
    line.split_whitespace().find_map(|word| word.parse().ok())
}

/// A kernel that proves its MMU zaps the largest tables first. One that does not say how it was made counts as ordinary.
fn passes(release: &str) -> Passes {
    let config = fs::read_to_string(format!("/boot/config-{release}")).unwrap_or_default();
    let proves = std::process::Command::new("zcat")
        .arg("/proc/config.gz")
        .output();
    let packed = proves.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let proves = |config: &str| config.lines().any(|line| line == "CONFIG_KVM_PROVE_MMU=y");
    if proves(&config) || packed.is_ok_and(|config| proves(&config)) {
        Passes::LargestFirst
    } else {
        Passes::SmallestFirst
    }
}

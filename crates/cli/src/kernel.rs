//! Which kernel is meant: the local one, or one by name.

use slat_memslot::Profile;
use slat_vmm::{Machine, model};

use crate::Error;

/// The local `/dev/kvm`.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub(crate) fn open() -> Result<slat_vmm::kvm::Machine, Error> {
    Ok(slat_vmm::kvm::Machine::open()?)
}

/// The local `/dev/kvm`, which is not there.
#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
pub(crate) fn open() -> Result<model::Machine, Error> {
    Err("KVM for x86-64 needs Linux on x86-64".into())
}

/// The local `/dev/kvm`, and the model that it is compared with.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub(crate) fn with_model() -> Result<(slat_vmm::kvm::Machine, model::Machine), Error> {
    let machine = open()?;
    let profile = machine.shared_profile();
    Ok((machine, model::Machine::new(profile)))
}

/// The local `/dev/kvm`, which is not there.
#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
pub(crate) fn with_model() -> Result<(model::Machine, model::Machine), Error> {
    Err("KVM for x86-64 needs Linux on x86-64".into())
}

/// The profile called `name`.
pub(crate) fn named(name: &str) -> Result<Profile, Error> {
    Profile::named(name).ok_or_else(|| {
        let names: Vec<&str> = Profile::names().collect();
        format!("no profile {name:?}; there are {}", names.join(", ")).into()
    })
}

/// A profile, and why it was taken.
#[derive(Clone, Debug)]
pub(crate) struct Choice {
    pub(crate) profile: Profile,
    pub(crate) why: String,
}

impl Choice {
    fn new(profile: Profile, why: impl Into<String>) -> Self {
        Self {
            profile,
            why: why.into(),
        }
    }

    /// By `--profile`, else the local kernel, else the newest that is known.
    pub(crate) fn for_questions(name: Option<&str>) -> Result<Self, Error> {
        if let Some(name) = name {
            return Ok(Self::new(named(name)?, "by --profile"));
        }
        Ok(match open() {
            Ok(machine) => Self::new(machine.profile().clone(), "the local /dev/kvm"),
            Err(_) => Self::new(Profile::latest(), "the newest known; no /dev/kvm here"),
        })
    }

    /// By `--profile`, else the one that the file names, else the newest that is known.
    pub(crate) fn for_file(name: Option<&str>, file: Option<&str>) -> Result<Self, Error> {
        if let Some(name) = name {
            return Ok(Self::new(named(name)?, "by --profile"));
        }
        let Some(file) = file else {
            return Ok(Self::new(
                Profile::latest(),
                "the newest known; the file names none",
            ));
        };
        if let Some(profile) = Profile::named(file) {
            return Ok(Self::new(profile, "as the file says"));
        }
        if let (true, Ok(machine)) = (file.starts_with("probed"), open()) {
            let why = format!("the local /dev/kvm, for the file's {file:?}");
            return Ok(Self::new(machine.profile().clone(), why));
        }
        let why = format!("the newest known; the file's {file:?} is unknown");
        Ok(Self::new(Profile::latest(), why))
    }
}

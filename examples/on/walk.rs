//! `--on model|kvm|both` for examples that walk tables: the same memory for the model and for `KVM_TRANSLATE`.

use std::error::Error;

use slat::memslot::{Gpa, Gva};
use slat::vmm::walks::Memory;

/// Tables in pages 0 to 3; the last maps page 1 read-only, page 2 for the supervisor alone, page 4 with a reserved bit and
/// not for execution, and nothing else. A page of 2 MiB follows.
pub(crate) fn guest_tables() -> Memory {
    let memory = Memory::new();
    for (word, entry) in [
        (0, 0x1007),
        (512, 0x2007),
        (1024, 0x3007),
        (1025, 0x8000_0000_0020_0087),
        (1536 + 1, 0x4005),
        (1536 + 2, 0x5003),
        (1536 + 4, 0x6007 | 1 << 50),
    ] {
        memory.ram[word].set(entry);
    }
    memory
}

/// Whether the model shall answer.
///
/// # Errors
/// The arguments are others.
pub(crate) fn wants_model(arguments: &[&str]) -> Result<bool, Box<dyn Error>> {
    match arguments {
        [] | ["--on", "model" | "both"] => Ok(true),
        ["--on", "kvm"] => Ok(false),
        _ => Err("usage: --on model|kvm|both".into()),
    }
}

/// Whether the kernel shall answer.
///
/// # Errors
/// The arguments are others.
pub(crate) fn wants_kernel(arguments: &[&str]) -> Result<bool, Box<dyn Error>> {
    match arguments {
        [] | ["--on", "model"] => Ok(false),
        ["--on", "kvm" | "both"] => Ok(true),
        _ => Err("usage: --on model|kvm|both".into()),
    }
}

/// What `KVM_TRANSLATE` says of an address in long mode, with these tables.
///
/// # Errors
/// There is no kernel to ask, or it does not run long mode.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub(crate) fn kernel(memory: &Memory, address: Gva) -> Result<Option<Gpa>, Box<dyn Error>> {
    use slat::mmu::role::{Cr0, Efer};
    use slat::mmu::walk::PagingMode;
    use slat::vmm::walks::{Walker, mode_state};

    let mut translator = slat::vmm::kvm::Translator::open()?;
    translator.load(memory);
    let mut state = mode_state(PagingMode::Level4);
    state.cr0 |= Cr0::WP;
    state.efer |= Efer::NX;
    if !translator.set(&state).map_err(|errno| errno.to_string())? {
        return Err("the kernel does not run long mode".into());
    }
    Ok(translator
        .translate(address)
        .map_err(|errno| errno.to_string())?)
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
pub(crate) fn kernel(_: &Memory, _: Gva) -> Result<Option<Gpa>, Box<dyn Error>> {
    Err("only Linux on x86-64 has the kernel to ask".into())
}

//! The same question to `/dev/kvm`.

use slat_memslot::{Gpa, Gva};
use slat_mmu::walk::GuestPaging;

use super::Args;
use crate::Error;

/// What `KVM_TRANSLATE` says of the address.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub(super) fn ask(args: &Args, bytes: &[u8]) -> Result<Option<Gpa>, Error> {
    use slat_memslot::PageSize;
    use slat_mmu::role::{Cr0, Cr4, Efer};
    use slat_mmu::walk::AlignmentCheck;
    use slat_vmm::walks::{CpuState, Walker as _};

    let registers = &args.registers;
    let mut translator = slat_vmm::kvm::Translator::over(bytes)?;
    let cpu = registers.cpu();
    let state = CpuState {
        cr0: Cr0::from_bits_retain(registers.cr0),
        cr3: registers.cr3(),
        cr4: Cr4::from_bits_retain(registers.cr4),
        efer: Efer::from_bits_retain(registers.efer),
        ac: AlignmentCheck::of(registers.rflags),
        maxphyaddr: registers.maxphyaddr,
        vendor: cpu.vendor,
        gigabyte_pages: cpu.largest_page == PageSize::Size1G,
        mode: registers.paging().mode(),
    };
    match translator.set(&state) {
        Ok(true) => {}
        Ok(false) => return Err(format!("this kernel does not run {} paging", state.mode).into()),
        Err(errno) => return Err(format!("KVM_SET_SREGS: {errno}").into()),
    }
    let answer = translator.translate(Gva::new(args.address));
    answer.map_err(|errno| format!("KVM_TRANSLATE: {errno}").into())
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
pub(super) fn ask(_: &Args, _: &[u8]) -> Result<Option<Gpa>, Error> {
    Err("KVM for x86-64 needs Linux on x86-64".into())
}

/// What the model says that `KVM_TRANSLATE` answers: a read in supervisor mode, by the guest's tables alone.
pub(super) fn expected(args: &Args, paging: &GuestPaging, bytes: &[u8]) -> Option<Gpa> {
    let found = paging.kvm_translate(bytes, Gva::new(args.address));
    let gpa = found.ok().map(|found| found.address);
    gpa.filter(|gpa| gpa.raw() != u64::MAX)
}

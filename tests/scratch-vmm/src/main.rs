//! The first day of a VMM: guest memory from vm-memory, memory slots through kvm-ioctls, and slat asked before each.
//!
//! `scratch-vmm` plans and stops. `scratch-vmm --run` makes the calls, on a machine with `/dev/kvm`.

use std::error::Error;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VmFd};
use slat::memslot::{Call, Memory, Profile, Region, Repair, VmType};
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

/// RAM below the hole for devices, and the rest above 4 GiB.
const LAYOUT: [(GuestAddress, usize); 2] = [
    (GuestAddress(0), 64 << 20),
    (GuestAddress(4 << 30), 32 << 20),
];
/// Firmware that wants to end at 64 MiB, where RAM already is.
const FIRMWARE: (GuestAddress, usize) = (GuestAddress(60 << 20), 4 << 20);

fn main() -> Result<(), Box<dyn Error>> {
    // Mapped before the VM exists, so dropped after it.
    let guest = GuestMemoryMmap::<()>::from_ranges(&LAYOUT)?;
    let firmware = GuestMemoryMmap::<()>::from_ranges(&[FIRMWARE])?;
    let run = std::env::args().any(|argument| argument == "--run");
    let vm = run.then(|| Kvm::new()?.create_vm()).transpose()?;

    let mut model = Memory::new(Profile::latest(), VmType::Default);
    println!("kernel: {}", model.profile().name);
    for (slot, region) in (0..).zip(guest.iter()) {
        add_slot(&mut model, vm.as_ref(), &request(slot, region))?;
    }

    let Some(region) = firmware.iter().next() else {
        return Err("firmware has no memory".into());
    };
    let request = request(2, region);
    let Err(refusal) = model.check_region(&request) else {
        return Err("two slots at one address passed".into());
    };
    println!("refused: {refusal}");
    println!(
        "  {} ({:?}), by {}",
        refusal.reason.code(),
        refusal.errno(),
        refusal.reason.kernel_site()
    );
    match model.repair(&Call::SetRegion(request), &refusal.reason) {
        Repair::Calls {
            call: Call::SetRegion(repaired),
            ..
        } => {
            println!("repair: guest_phys_addr {:#x}", repaired.gpa);
            add_slot(&mut model, vm.as_ref(), &repaired)?;
        }
        other => return Err(format!("no repair: {other:?}").into()),
    }
    Ok(())
}

/// What KVM would be asked for a region of guest memory.
fn request(slot: u32, region: &GuestRegionMmap) -> Region {
    Region::from(kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: region.start_addr().0,
        memory_size: region.len(),
        userspace_addr: region.as_ptr() as u64,
    })
}

/// Asks slat, prints the plan, makes the call if there is a VM, and carries the plan out in the model.
fn add_slot(model: &mut Memory, vm: Option<&VmFd>, request: &Region) -> Result<(), Box<dyn Error>> {
    let plan = model.check_region(request)?;
    println!("plan: {plan}");
    let raw = kvm_userspace_memory_region::from(request);
    match vm {
        // SAFETY: the mapping behind the slot outlives the VM (see `main`), and nothing else uses it.
        Some(vm) => unsafe { vm.set_user_memory_region(raw) }?,
        None => println!(
            "  would call KVM_SET_USER_MEMORY_REGION(slot {}, {:#x} + {:#x})",
            raw.slot, raw.guest_phys_addr, raw.memory_size
        ),
    }
    let _effects = model.commit_region(plan)?;
    Ok(())
}

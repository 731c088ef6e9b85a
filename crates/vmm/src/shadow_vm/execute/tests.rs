//! What random programs have found on kernels, each in its shortest form.

use slat_memslot::{Gpa, Profile, Region, SlotKey, VmType};
use slat_mmu::host::Host;
use slat_mmu::spte::Npt;
use slat_mmu::walk::{GuestVendor, Privilege};

use crate::shadow_vm::ShadowVm;
use crate::traces::{Control, Exit, Instruction, Predicted};

/// Where the memory of guests begins.
const RAM: u64 = 0x2000_0000_0000;
const PRESENT_WRITE_USER: u64 = 7;

/// A guest with tables of four levels from 0xa000 on, whose page at 0x1000 has the instructions of user mode.
struct Guest(ShadowVm<Npt>);

impl Guest {
    /// On a kernel with a paravirtual backend, with the CPUID of a vendor.
    fn of(vendor: GuestVendor) -> Self {
        let profile = Profile::named("linux-6.18.44-pvm").expect("a known profile");
        let host = Host::shadow(48).without_mmio_caching();
        let mut vm = ShadowVm::new(profile, VmType::Default, &host).with_guest_vendor(vendor);
        vm.create_vcpu(0);
        vm.set_max_phys_addr(0, 48);
        vm.set_region(&Region::new(SlotKey::normal(0), 0, 0x10000, RAM));
        let mut guest = Self(vm);
        let ways = [(0xa000, 0xb000), (0xb000, 0xc000), (0xc000, 0xd000)];
        for (table, next) in ways {
            guest.write(table, next | PRESENT_WRITE_USER);
        }
        // The instructions, and what is in no slot, and data.
        guest.write(0xd008, 0x1000 | PRESENT_WRITE_USER);
        guest.write(0xd010, 0x40_0000 | PRESENT_WRITE_USER);
        guest.write(0xd018, 0x3000 | PRESENT_WRITE_USER);
        guest.0.set_control(
            0,
            &Control {
                cr0: 0x8001_0011,
                cr3: 0xa000,
                cr4: 0x20,
                efer: 0xd01,
            },
        );
        guest
    }

    fn write(&mut self, gpa: u64, value: u64) {
        self.0.poke(RAM + gpa, value);
    }

    /// How a load in user mode ends.
    fn load(&mut self, gva: u64) -> Exit {
        let _ = self.0.take();
        self.0
            .execute(0, &Instruction::Load { gva }, Privilege::User);
        let told = self.0.take();
        let exit = told.iter().find_map(|told| match told {
            Predicted::Exit(exit) => Some(*exit),
            _ => None,
        });
        exit.expect("an exit")
    }
}

#[test]
fn bit_8_of_a_top_entry_is_the_vendors_matter() {
    const SHUTDOWN: Exit = Exit::Other { reason: 8 };
    for (vendor, exit) in [
        (GuestVendor::Intel, Exit::Trap),
        (GuestVendor::Amd, SHUTDOWN),
    ] {
        let mut guest = Guest::of(vendor);
        guest.write(0xa008, 0xb107);
        assert_eq!(guest.load(0x80_0000_1000), exit, "{vendor:?}");
    }
}

/// KVM emulates an access to MMIO, and fetches the instruction by the tables as they are, not as shadow pages have them.
#[test]
fn an_instruction_that_has_moved_away_cannot_be_emulated() {
    let mut guest = Guest::of(GuestVendor::Amd);
    let mmio = Exit::Mmio {
        gpa: Gpa::new(0x40_0000),
        len: 8,
        write: false,
    };
    assert_eq!(guest.load(0x2000), mmio);
    // Shadow pages do not learn of it, and execute the instruction where it was.
    guest.write(0xd008, 0x40_1000 | PRESENT_WRITE_USER);
    assert_eq!(guest.load(0x2000), Exit::Other { reason: 17 });
    assert_eq!(guest.load(0x3000), Exit::Trap);
}

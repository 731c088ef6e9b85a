//! Random calls on the VM as a whole.

use slat_memslot::{Call, Memory, PAGE_SIZE, cap};

use super::{Generator, live_slot};

/// Numbers that cannot be enabled on any VM.
const NOT_ENABLED: [u32; 8] = [3, 10, 81, 231, 233, 234, 235, 9999];
const ODD_RANGE: [u64; 6] = [
    0,
    1,
    0x800,
    1 << 63,
    0xffff_ffff_ffff_f000,
    0xffff_ffff_ffff_e000,
];

impl Generator {
    pub(super) fn set_attributes(&mut self, memory: &Memory) -> Call {
        let page = self.dice.below(4096) * PAGE_SIZE;
        let huge = self.dice.below(16) << 21;
        let address = self.dice.pick(&[page, huge]);
        let size = self
            .dice
            .pick(&[PAGE_SIZE, 16 * PAGE_SIZE, 1 << 21, 1 << 22]);
        let private = memory.supported_attributes().bits();
        let attributes = self.dice.pick(&[0, private]);
        Call::SetAttributes {
            address: self.dice.mostly(address, &ODD_RANGE),
            size: self.dice.mostly(size, &ODD_RANGE),
            attributes: self.dice.mostly(attributes, &[1, 8, 16]),
            flags: u64::from(self.dice.percent(4)),
        }
    }

    pub(super) fn cap_call(&mut self) -> Call {
        let flags = u32::from(self.dice.percent(6));
        let (cap, arg) = match self.dice.below(10) {
            0..=2 => {
                let number = self.dice.pick(cap::ALL).0;
                return Call::CheckExtension { cap: number };
            }
            3..=5 => {
                let cap = self.dice.pick(&[cap::DISABLE_QUIRKS, cap::DISABLE_QUIRKS2]);
                (
                    cap,
                    self.dice
                        .pick(&[0, 0x80, 0x5ff, 0x200, 0x400, 0x800, 0xffff, 1 << 40]),
                )
            }
            6..=7 => (
                cap::EXIT_HYPERCALL,
                self.dice.pick(&[0, 0x1000, 1, 0x1001, 1 << 32]),
            ),
            8 => (
                cap::MANUAL_DIRTY_LOG_PROTECT2,
                self.dice.pick(&[0, 1, 2, 3, 4]),
            ),
            _ => (self.dice.pick(&NOT_ENABLED), self.dice.below(4)),
        };
        Call::EnableCap {
            cap,
            flags,
            args: [arg, 0, 0, 0],
        }
    }

    pub(super) fn pre_fault(&mut self, memory: &Memory) -> Call {
        if memory.vcpus() == 0 {
            return Call::CreateVcpu;
        }
        let slot = live_slot(&mut self.dice, memory);
        let gpa = slot.map_or(0, |s| s.range().start().gpa().raw());
        let size = slot.map_or(PAGE_SIZE, |s| s.pages().bytes());
        let size = self.dice.pick(&[size, PAGE_SIZE, size + PAGE_SIZE]);
        Call::PreFault {
            vcpu: 0,
            gpa: self.dice.mostly(gpa, &ODD_RANGE),
            size: self.dice.mostly(size, &ODD_RANGE),
            flags: u64::from(self.dice.percent(6)),
        }
    }

    pub(super) fn layout_call(&mut self, memory: &Memory) -> Call {
        match self.dice.below(10) {
            0..=2 => Call::SetNrMmuPages {
                pages: self.dice.pick(&[0, 1, 63, 64, 65, 1000, 1 << 40]),
            },
            3..=4 => Call::SetTssAddr {
                gpa: self
                    .dice
                    .pick(&[0xfffb_d000, 0xffff_d000, 0xffff_d001, 0xffff_e000, 0]),
            },
            5..=6 => Call::SetIdentityMapAddr {
                gpa: self.dice.pick(&[0xfffb_c000, 0x800, 0]),
            },
            // An interrupt controller keeps guest writes from ending in a halt, so it comes to VMs that have none.
            7 if memory.vcpus() > 0 => Call::CreateIrqchip,
            _ if self.dice.percent(20) => Call::CreateVcpu,
            _ => Call::SetNrMmuPages {
                pages: self.dice.below(200),
            },
        }
    }
}

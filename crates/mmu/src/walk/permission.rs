//! What an access may do with the rights that the entries leave it.
//!
//! KVM counterparts: `mmu.c:update_permission_bitmask`, `mmu.c:update_pkru_bitmask`, `mmu.h:permission_fault`.

use crate::access::Access;
use crate::role::{CpuRole, ExtendedRole, RoleFlag};

use super::ErrorCode;
use super::fault::Cause;

/// RFLAGS.AC, which lifts SMAP for explicit accesses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AlignmentCheck {
    /// Clear: SMAP holds.
    #[default]
    Clear,
    /// Set, as by `stac`: supervisor mode may use user pages.
    Set,
}

impl AlignmentCheck {
    /// From RFLAGS, bit 18.
    pub const fn of(rflags: u64) -> Self {
        match rflags & 1 << 18 {
            0 => Self::Clear,
            _ => Self::Set,
        }
    }
}

/// What makes an access fault, as registers decide it: one table lookup for each access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Permissions {
    /// For each access a bit for each set of rights that it faults with (`permissions`).
    faults: [u8; 16],
    /// Two bits for each access: whether a key may forbid it at all, and whether it may as a write (`pkru_mask`).
    key_mask: u32,
    pkru: u32,
    /// [`SMAP_OFF`] if RFLAGS.AC lifts SMAP.
    smap_off: u32,
    rules: Rules,
}

/// The registers' bits that the tables come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Rules {
    ept: bool,
    wp: bool,
    nx: bool,
    smep: bool,
    smap: bool,
    pke: bool,
}

/// Bits of an index: those of an error code, one place down, with this one in the place of a reserved bit.
const WRITE: u32 = 1;
const USER: u32 = 2;
const SMAP_OFF: u32 = 4;
const FETCH: u32 = 8;

impl Permissions {
    /// Of a guest's own tables.
    pub(super) fn of(role: CpuRole) -> Self {
        let extended = role.extended();
        Self::from_rules(Rules {
            ept: false,
            wp: role.has(RoleFlag::Cr0Wp),
            nx: role.has(RoleFlag::EferNx),
            smep: extended.contains(ExtendedRole::CR4_SMEP),
            smap: extended.contains(ExtendedRole::CR4_SMAP),
            pke: extended.contains(ExtendedRole::CR4_PKE),
        })
    }

    /// Of a nested hypervisor's EPT: entries alone decide.
    pub(super) fn ept() -> Self {
        Self::from_rules(Rules {
            ept: true,
            ..Rules::default()
        })
    }

    fn from_rules(rules: Rules) -> Self {
        let mut faults = [0; 16];
        let mut key_mask = 0;
        for (access, faults) in (0..).zip(&mut faults) {
            *faults = rules.faults(access);
            key_mask |= rules.key_bits(access) << (2 * access);
        }
        Self {
            faults,
            key_mask,
            pkru: 0,
            smap_off: 0,
            rules,
        }
    }

    /// The same without EFER.NX.
    pub(super) fn without_nx(self) -> Self {
        let rules = Rules {
            nx: false,
            ..self.rules
        };
        Self {
            pkru: self.pkru,
            smap_off: self.smap_off,
            ..Self::from_rules(rules)
        }
    }

    pub(super) const fn set_pkru(&mut self, pkru: u32) {
        self.pkru = pkru;
    }

    pub(super) const fn set_alignment_check(&mut self, ac: AlignmentCheck) {
        self.smap_off = match ac {
            AlignmentCheck::Clear => 0,
            AlignmentCheck::Set => SMAP_OFF,
        };
    }

    /// Whether error codes tell fetches.
    pub(super) const fn tells_fetches(&self) -> bool {
        self.rules.nx || self.rules.smep
    }

    /// The code of the fault that an access gets; empty if it is allowed.
    #[inline]
    pub(super) fn check(&self, access: ErrorCode, rights: Access, key: u8) -> ErrorCode {
        let index = self.index(access);
        let forbidden = self.faults[index as usize] >> rights.bits() & 1 != 0;
        let mut code = ErrorCode::PRESENT;
        let mut fault = forbidden;
        if self.key_mask != 0 && self.key_forbids(index, rights, key) {
            code |= ErrorCode::PK;
            fault = true;
        }
        if fault { code } else { ErrorCode::empty() }
    }

    /// Whether an access is allowed.
    #[inline(always)]
    pub(super) fn allows(&self, access: ErrorCode, rights: Access, key: u8) -> bool {
        let index = self.index(access);
        let forbidden = self.faults[index as usize] >> rights.bits() & 1 != 0;
        !forbidden && (self.key_mask == 0 || !self.key_forbids(index, rights, key))
    }

    /// The lowest byte of a code, one place down.
    #[inline]
    fn index(&self, access: ErrorCode) -> u32 {
        let [low, ..] = access.bits().to_le_bytes();
        let wants = u32::from(low) >> 1 & (WRITE | USER | FETCH);
        if access.contains(ErrorCode::IMPLICIT_ACCESS) {
            wants
        } else {
            wants | self.smap_off
        }
    }

    #[inline]
    fn key_forbids(&self, index: u32, rights: Access, key: u8) -> bool {
        let user_page = if rights.contains(Access::USER) {
            SMAP_OFF
        } else {
            0
        };
        let index = index & !SMAP_OFF | user_page;
        let denied = self.pkru >> (2 * u32::from(key & 0xf)) & 3;
        denied & self.key_mask >> (2 * index) != 0
    }

    /// The first rule that an access breaks, in the order of this crate: KVM only knows that one is broken.
    pub(super) fn cause(&self, access: ErrorCode, rights: Access, key: u8) -> Cause {
        let index = self.index(access);
        self.rules
            .broken(index, rights)
            .unwrap_or(Cause::ProtectionKey { key })
    }
}

impl Rules {
    /// A bit for each set of rights that an access faults with.
    fn faults(self, index: u32) -> u8 {
        (0..8).fold(0, |faults, bits| {
            let rights = Access::from_bits_truncate(bits);
            faults | u8::from(self.broken(index, rights).is_some()) << bits
        })
    }

    /// The first rule that an access with these rights breaks.
    fn broken(self, index: u32, rights: Access) -> Option<Cause> {
        let user = index & USER != 0;
        let fetch = index & FETCH != 0;
        let supervisor_on_user_page = !self.ept && !user && rights.contains(Access::USER);
        if user && !rights.contains(Access::USER) {
            return Some(Cause::User);
        }
        if index & WRITE != 0 && !rights.contains(Access::WRITE) && (self.ept || user || self.wp) {
            return Some(Cause::Write);
        }
        if fetch && !rights.contains(Access::EXECUTE) && (self.ept || self.nx) {
            return Some(Cause::Fetch);
        }
        if supervisor_on_user_page && fetch && self.smep {
            return Some(Cause::Smep);
        }
        if supervisor_on_user_page && !fetch && self.smap && index & SMAP_OFF == 0 {
            return Some(Cause::Smap);
        }
        None
    }

    /// Keys concern data of user pages; writes in supervisor mode only with CR0.WP. `SMAP_OFF` stands for a user page.
    fn key_bits(self, index: u32) -> u32 {
        let concerned = self.pke && index & FETCH == 0 && index & SMAP_OFF != 0;
        let as_write = index & WRITE != 0 && (index & USER != 0 || self.wp);
        match (concerned, as_write) {
            (false, _) => 0,
            (true, false) => 1,
            (true, true) => 3,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Permissions, Rules};

    const NO_RULES: Rules = Rules {
        ept: false,
        wp: false,
        nx: false,
        smep: false,
        smap: false,
        pke: false,
    };

    /// The tables that `mmu.c:update_permission_bitmask` gives, as listed for Linux 6.12.
    #[test]
    fn the_tables_are_the_kernel_s() {
        let (wp, nx) = (true, true);
        let (smep, smap) = (true, true);
        for (rules, low, high) in [
            (
                Rules {
                    ept: true,
                    ..NO_RULES
                },
                LOW,
                HIGH,
            ),
            (Rules { wp, nx, ..NO_RULES }, LOW, HIGH),
            (
                Rules {
                    wp,
                    nx,
                    smep,
                    ..NO_RULES
                },
                LOW,
                [0xf5, 0xf7, 0x5f, 0x7f, 0xf5, 0xf7, 0x5f, 0x7f],
            ),
            (
                Rules {
                    wp,
                    nx,
                    smep,
                    smap,
                    ..NO_RULES
                },
                [0xf0, 0xf3, 0x0f, 0x3f, 0x00, 0x33, 0x0f, 0x3f],
                [0xf5, 0xf7, 0x5f, 0x7f, 0xf5, 0xf7, 0x5f, 0x7f],
            ),
            (
                Rules { nx, ..NO_RULES },
                [0x00, 0x00, 0x0f, 0x3f, 0x00, 0x00, 0x0f, 0x3f],
                [0x55, 0x55, 0x5f, 0x7f, 0x55, 0x55, 0x5f, 0x7f],
            ),
            (
                Rules {
                    nx,
                    smep,
                    smap,
                    ..NO_RULES
                },
                [0xf0, 0xf0, 0x0f, 0x3f, 0x00, 0x00, 0x0f, 0x3f],
                [0xf5, 0xf5, 0x5f, 0x7f, 0xf5, 0xf5, 0x5f, 0x7f],
            ),
            (Rules { wp, ..NO_RULES }, LOW, LOW),
        ] {
            let made = Permissions::from_rules(rules);
            assert_eq!(
                [made.faults[..8].to_vec(), made.faults[8..].to_vec()],
                [low.to_vec(), high.to_vec()],
                "{rules:?}"
            );
            assert_eq!(made.key_mask, 0);
        }
    }

    const LOW: [u8; 8] = [0x00, 0x33, 0x0f, 0x3f, 0x00, 0x33, 0x0f, 0x3f];
    const HIGH: [u8; 8] = [0x55, 0x77, 0x5f, 0x7f, 0x55, 0x77, 0x5f, 0x7f];

    #[test]
    fn the_masks_of_keys_are_the_kernel_s() {
        for (wp, mask) in [(true, 0xdd00), (false, 0xd500)] {
            let rules = Rules {
                pke: true,
                wp,
                ..NO_RULES
            };
            assert_eq!(Permissions::from_rules(rules).key_mask, mask);
        }
    }
}

//! Paging as the manuals describe it, written without looking at the walker: numbers and `if`s only.
//!
//! Where hardware and KVM differ, KVM wins; each such place is named.

/// Registers and CPUID.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cpu {
    pub(super) paging: bool,
    pub(super) pae: bool,
    pub(super) long: bool,
    pub(super) la57: bool,
    pub(super) pse: bool,
    pub(super) wp: bool,
    pub(super) nxe: bool,
    pub(super) smep: bool,
    pub(super) smap: bool,
    pub(super) pke: bool,
    pub(super) ac: bool,
    pub(super) pkru: u32,
    pub(super) root: u64,
    pub(super) pointers: [u64; 4],
    pub(super) maxphyaddr: u32,
    pub(super) amd: bool,
    pub(super) gigabyte_pages: bool,
    pub(super) ept: Option<Ept>,
}

/// EPT of a nested hypervisor instead.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ept {
    pub(super) five_levels: bool,
    pub(super) marks: bool,
    pub(super) execute_only: bool,
}

/// An access.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) address: u64,
    pub(super) write: bool,
    pub(super) user: bool,
    pub(super) fetch: bool,
    pub(super) implicit: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Gpa(u64),
    Fault(u64),
    NotCanonical,
}

/// Memory from address 0 on.
pub(super) fn access(memory: &mut [u64], cpu: &Cpu, wanted: Wanted) -> Answer {
    if let Some(ept) = cpu.ept {
        return through_ept(memory, cpu, ept, wanted);
    }
    if !cpu.paging {
        return Answer::Gpa(wanted.address);
    }
    if cpu.long {
        let used = if cpu.la57 { 57 } else { 48 };
        let extended = ((wanted.address << (64 - used)) as i64 >> (64 - used)) as u64;
        if extended != wanted.address {
            return Answer::NotCanonical;
        }
    }
    match own_tables(memory, cpu, wanted) {
        Ok(gpa) => Answer::Gpa(gpa),
        Err(mut code) => {
            code |= u64::from(wanted.write) << 1 | u64::from(wanted.user) << 2;
            // Hardware wants PAE beside EFER.NXE; KVM does not.
            code |= u64::from(wanted.fetch && (cpu.nxe || cpu.smep)) << 4;
            Answer::Fault(code)
        }
    }
}

fn bit(value: u64, n: u32) -> bool {
    value >> n & 1 == 1
}

/// Bits `high` to `low`, both included.
fn field(value: u64, high: u32, low: u32) -> u64 {
    value >> low & ((1 << (high - low + 1)) - 1)
}

fn read(memory: &[u64], at: u64, bytes: u64) -> Option<u64> {
    let word = *memory.get((at / 8) as usize)?;
    Some(match (bytes, at % 8) {
        (8, _) => word,
        (_, 0) => word % (1 << 32),
        _ => word / (1 << 32),
    })
}

fn set(memory: &mut [u64], at: u64, bits: u64) {
    let shift = 8 * (at % 8);
    memory[(at / 8) as usize] |= bits << shift;
}

fn own_tables(memory: &mut [u64], cpu: &Cpu, wanted: Wanted) -> Result<u64, u64> {
    let entry_bytes = if cpu.pae { 8 } else { 4 };
    let address_bits = 12 + if cpu.pae { 9 } else { 10 };
    let mut level = match (cpu.long, cpu.la57, cpu.pae) {
        (true, true, _) => 5,
        (true, false, _) => 4,
        _ => 2,
    };
    let mut table = field(cpu.root, if cpu.pae { 51 } else { 31 }, 12) << 12;
    if cpu.pae && !cpu.long {
        let pointer = cpu.pointers[field(wanted.address, 31, 30) as usize];
        if !bit(pointer, 0) {
            return Err(0);
        }
        table = field(pointer, 51, 12) << 12;
    }
    let (mut writable, mut user, mut executable) = (true, true, true);
    let mut visited = Vec::new();
    loop {
        let low = 12 + (address_bits - 12) * (level - 1);
        let index = field(wanted.address, low + address_bits - 13, low);
        let at = table + index * entry_bytes;
        let entry = read(memory, at, entry_bytes).ok_or(0_u64)?;
        if !bit(entry, 0) {
            return Err(0);
        }
        let leaf = level == 1 || bit(entry, 7) && (cpu.pae || cpu.pse);
        if has_reserved(cpu, entry, level, leaf) {
            return Err(0b1001);
        }
        visited.push(at);
        writable &= bit(entry, 1);
        user &= bit(entry, 2);
        executable &= !(cpu.pae && bit(entry, 63));
        if leaf {
            let key = if cpu.pae { field(entry, 62, 59) } else { 0 };
            allowed(cpu, wanted, (writable, user, executable), key)?;
            for at in &visited {
                set(memory, *at, 1 << 5);
            }
            if wanted.write {
                set(memory, at, 1 << 6);
            }
            let offset = field(wanted.address, low - 1, 0);
            let mut base = field(entry, if cpu.pae { 51 } else { 31 }, low) << low;
            if !cpu.pae && level == 2 {
                base |= field(entry, 16, 13) << 32;
            }
            return Ok(base | offset);
        }
        table = field(entry, if cpu.pae { 51 } else { 31 }, 12) << 12;
        level -= 1;
    }
}

fn has_reserved(cpu: &Cpu, entry: u64, level: u32, leaf: bool) -> bool {
    if !cpu.pae {
        // Of a 4 MiB page bit 21 is reserved, and bits 20 to 17 are above the 36 bits that KVM lets PSE-36 have.
        return leaf && level == 2 && field(entry, 21, 17) != 0;
    }
    if bit(entry, 63) && !cpu.nxe {
        return true;
    }
    // Outside long mode the bits up to 62 are reserved as well.
    let top = if cpu.long { 51 } else { 62 };
    if cpu.maxphyaddr <= top && field(entry, top, cpu.maxphyaddr) != 0 {
        return true;
    }
    match level {
        5 | 4 => bit(entry, 7) || cpu.amd && bit(entry, 8),
        3 if leaf => !cpu.gigabyte_pages || field(entry, 29, 13) != 0,
        2 if leaf => field(entry, 20, 13) != 0,
        _ => false,
    }
}

fn allowed(
    cpu: &Cpu,
    wanted: Wanted,
    (writable, user, executable): (bool, bool, bool),
    key: u64,
) -> Result<(), u64> {
    let mut forbidden = false;
    if wanted.user {
        forbidden |= !user;
        forbidden |= wanted.write && !writable;
    } else {
        forbidden |= wanted.write && cpu.wp && !writable;
        forbidden |= wanted.fetch && cpu.smep && user;
        let lifted = cpu.ac && !wanted.implicit;
        forbidden |= !wanted.fetch && cpu.smap && user && !lifted;
    }
    forbidden |= wanted.fetch && cpu.nxe && !executable;
    let mut by_key = false;
    if cpu.long && cpu.pke && user && !wanted.fetch {
        let (access_disabled, write_disabled) = (
            bit(cpu.pkru.into(), 2 * key as u32),
            bit(cpu.pkru.into(), 2 * key as u32 + 1),
        );
        by_key = access_disabled || wanted.write && write_disabled && (wanted.user || cpu.wp);
    }
    match (forbidden || by_key, by_key) {
        (false, _) => Ok(()),
        (true, false) => Err(1),
        (true, true) => Err(0b10_0001),
    }
}

/// EPT: bits 2 to 0 are read, write, execute. The code is what KVM makes of it: reading is the user bit.
fn through_ept(memory: &mut [u64], cpu: &Cpu, ept: Ept, wanted: Wanted) -> Answer {
    let told = u64::from(wanted.write) << 1 | u64::from(wanted.user) << 2;
    let mut table = field(cpu.root, 51, 12) << 12;
    let mut allowed = 7;
    let mut visited = Vec::new();
    for level in (1..=if ept.five_levels { 5 } else { 4 }).rev() {
        let low = 12 + 9 * (level - 1);
        let at = table + 8 * field(wanted.address, low + 8, low);
        let Some(entry) = read(memory, at, 8) else {
            return Answer::Fault(told);
        };
        let permissions = field(entry, 2, 0);
        if permissions == 0 {
            return Answer::Fault(told);
        }
        let leaf = level == 1 || bit(entry, 7);
        let mut bad = cpu.maxphyaddr <= 51 && field(entry, 51, cpu.maxphyaddr) != 0;
        bad |= matches!(permissions, 2 | 6) || permissions == 4 && !ept.execute_only;
        // KVM looks at the memory type of links too; they must be 0 there anyway.
        bad |= matches!(field(entry, 5, 3), 2 | 3 | 7);
        bad |= match (level, leaf) {
            (4 | 5, _) => field(entry, 7, 3) != 0,
            (2 | 3, false) => field(entry, 6, 3) != 0,
            (3, true) => !cpu.gigabyte_pages || field(entry, 29, 12) != 0,
            (2, true) => field(entry, 20, 12) != 0,
            _ => false,
        };
        if bad {
            return Answer::Fault(told | 0b1001);
        }
        visited.push(at);
        allowed &= permissions;
        if leaf {
            let needed = u64::from(wanted.user)
                | u64::from(wanted.write) << 1
                | u64::from(wanted.fetch) << 2;
            if needed & !allowed != 0 {
                return Answer::Fault(told | 1);
            }
            if ept.marks {
                for at in &visited {
                    set(memory, *at, 1 << 8);
                }
                if wanted.write {
                    set(memory, at, 1 << 9);
                }
            }
            return Answer::Gpa(field(entry, 51, low) << low | field(wanted.address, low - 1, 0));
        }
        table = field(entry, 51, 12) << 12;
    }
    unreachable!("level 1 has leaves only")
}

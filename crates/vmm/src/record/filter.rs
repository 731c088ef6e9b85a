//! The seccomp filter: which system calls stop the recorded program.
//!
//! It decides by system call number, for `ioctl` by the request's type byte and number, and for `mmap` by the
//! presence of a file. It can be coarse, since a stop too many costs only time; it must not let a memory call pass.

use libc::{
    BPF_ABS, BPF_ALU, BPF_AND, BPF_JEQ, BPF_JGE, BPF_JGT, BPF_JMP, BPF_JSET, BPF_K, BPF_LD,
    BPF_RET, BPF_W, SECCOMP_RET_ALLOW, SECCOMP_RET_TRACE, sock_filter,
};

use super::memory::low_half;

/// `AUDIT_ARCH_X86_64`: the ELF machine number with the 64-bit and little-endian marks.
const AUDIT_ARCH_X86_64: u32 = 62 | 0x8000_0000 | 0x4000_0000;

/// Offsets into `struct seccomp_data`.
const NR: u32 = 0;
const ARCH: u32 = 4;
const IOCTL_REQUEST: u32 = argument(1);
const FCNTL_COMMAND: u32 = argument(1);
const MMAP_FLAGS: u32 = argument(3);

/// Where the lower half of a system call's argument lies.
const fn argument(index: u32) -> u32 {
    16 + 8 * index
}

/// System calls that always stop.
const ALWAYS: [libc::c_long; 8] = [
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup2,
    libc::SYS_dup3,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_munmap,
];

/// Numbers of ioctls that pass: from `KVM_RUN` to `KVM_SET_DEBUGREGS` all concern a vCPU's state.
const VCPU_STATE: std::ops::RangeInclusive<u32> = 0x80..=0xa2;
/// Numbers of ioctls that pass because they inject interrupts, again and again.
const INTERRUPTS: [u32; 3] = [0x61, 0x67, 0xa5];

/// The lines of the filter.
struct Program(Vec<sock_filter>);

impl Program {
    fn line(&mut self, code: u32, k: u32, jt: u8, jf: u8) {
        let code = u16::try_from(code).unwrap_or(u16::MAX);
        self.0.push(sock_filter { code, jt, jf, k });
    }

    fn load(&mut self, offset: u32) {
        self.line(BPF_LD | BPF_W | BPF_ABS, offset, 0, 0);
    }

    fn mask(&mut self, mask: u32) {
        self.line(BPF_ALU | BPF_AND | BPF_K, mask, 0, 0);
    }

    fn jump(&mut self, test: u32, value: u32, jt: u8, jf: u8) {
        self.line(BPF_JMP | test | BPF_K, value, jt, jf);
    }

    fn give(&mut self, verdict: u32) {
        self.line(BPF_RET | BPF_K, verdict, 0, 0);
    }

    /// Gives `verdict` if the loaded word is `value`.
    fn give_if(&mut self, value: u32, verdict: u32) {
        self.jump(BPF_JEQ, value, 0, 1);
        self.give(verdict);
    }

    /// Runs `body` if the loaded word is `value`; `body` must end with a verdict.
    fn block_if(&mut self, value: u32, body: fn(&mut Self)) {
        let mut inner = Self(Vec::new());
        body(&mut inner);
        let length = u8::try_from(inner.0.len()).unwrap_or(u8::MAX);
        self.jump(BPF_JEQ, value, 0, length);
        self.0.append(&mut inner.0);
    }
}

/// The verdict on ioctls.
fn ioctl(p: &mut Program) {
    p.load(IOCTL_REQUEST);
    p.mask(0xff00);
    p.jump(BPF_JEQ, 0xae00, 1, 0);
    p.give(SECCOMP_RET_ALLOW);
    p.load(IOCTL_REQUEST);
    p.mask(0xff);
    for number in INTERRUPTS {
        p.give_if(number, SECCOMP_RET_ALLOW);
    }
    p.jump(BPF_JGE, *VCPU_STATE.start(), 0, 2);
    p.jump(BPF_JGT, *VCPU_STATE.end(), 1, 0);
    p.give(SECCOMP_RET_ALLOW);
    p.give(SECCOMP_RET_TRACE);
}

/// The verdict on `mmap`: anonymous mappings pass.
fn mmap(p: &mut Program) {
    p.load(MMAP_FLAGS);
    p.jump(BPF_JSET, libc::MAP_ANONYMOUS.unsigned_abs(), 0, 1);
    p.give(SECCOMP_RET_ALLOW);
    p.give(SECCOMP_RET_TRACE);
}

/// The verdict on `fcntl`: only the two ways to duplicate stop.
fn fcntl(p: &mut Program) {
    p.load(FCNTL_COMMAND);
    p.give_if(libc::F_DUPFD.unsigned_abs(), SECCOMP_RET_TRACE);
    p.give_if(libc::F_DUPFD_CLOEXEC.unsigned_abs(), SECCOMP_RET_TRACE);
    p.give(SECCOMP_RET_ALLOW);
}

/// The filter's program.
pub(super) fn program() -> Vec<sock_filter> {
    let number = |nr: libc::c_long| low_half(nr.unsigned_abs());
    let mut p = Program(Vec::new());
    p.load(ARCH);
    p.jump(BPF_JEQ, AUDIT_ARCH_X86_64, 1, 0);
    p.give(SECCOMP_RET_ALLOW);
    p.load(NR);
    p.block_if(number(libc::SYS_ioctl), ioctl);
    p.block_if(number(libc::SYS_mmap), mmap);
    p.block_if(number(libc::SYS_fcntl), fcntl);
    for nr in ALWAYS {
        p.give_if(number(nr), SECCOMP_RET_TRACE);
    }
    p.give(SECCOMP_RET_ALLOW);
    p.0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the filter on a system call, as the kernel would.
    fn verdict(nr: libc::c_long, args: [u32; 6]) -> u32 {
        let word = |offset: u32| match offset {
            NR => low_half(nr.unsigned_abs()),
            ARCH => AUDIT_ARCH_X86_64,
            other => args[usize::try_from((other - 16) / 8).unwrap()],
        };
        let program = program();
        let (mut at, mut acc) = (0, 0);
        loop {
            let line = program[at];
            let code = u32::from(line.code);
            let test = |hit: bool| usize::from(if hit { line.jt } else { line.jf });
            at += 1;
            match code & 7 {
                BPF_LD => acc = word(line.k),
                BPF_ALU => acc &= line.k,
                BPF_RET => return line.k,
                _ => {
                    at += match code & 0xf0 {
                        BPF_JEQ => test(acc == line.k),
                        BPF_JGE => test(acc >= line.k),
                        BPF_JGT => test(acc > line.k),
                        BPF_JSET => test(acc & line.k != 0),
                        other => panic!("jump {other:#x}"),
                    }
                }
            }
        }
    }

    #[test]
    fn memory_ioctls_stop_and_vcpu_ioctls_pass() {
        use crate::record::decode::request;
        for &stops in request::ALL {
            let args = [3, stops, 0, 0, 0, 0];
            assert_eq!(
                verdict(libc::SYS_ioctl, args),
                SECCOMP_RET_TRACE,
                "{stops:#x}"
            );
        }
        for passes in [
            0xae80,
            0x8090_ae81,
            0x4008_ae61,
            0x4020_aea5,
            0x5401,
            0x4080_aea2,
        ] {
            let args = [3, passes, 0, 0, 0, 0];
            assert_eq!(
                verdict(libc::SYS_ioctl, args),
                SECCOMP_RET_ALLOW,
                "{passes:#x}"
            );
        }
    }

    #[test]
    fn descriptors_are_followed() {
        assert_eq!(verdict(libc::SYS_close, [0; 6]), SECCOMP_RET_TRACE);
        assert_eq!(verdict(libc::SYS_munmap, [0; 6]), SECCOMP_RET_TRACE);
        assert_eq!(verdict(libc::SYS_read, [0; 6]), SECCOMP_RET_ALLOW);
        assert_eq!(
            verdict(libc::SYS_fcntl, [3, 1030, 0, 0, 0, 0]),
            SECCOMP_RET_TRACE
        );
        assert_eq!(
            verdict(libc::SYS_fcntl, [3, 1, 0, 0, 0, 0]),
            SECCOMP_RET_ALLOW
        );
        assert_eq!(
            verdict(libc::SYS_mmap, [0, 0, 0, 0x22, 0, 0]),
            SECCOMP_RET_ALLOW
        );
        assert_eq!(
            verdict(libc::SYS_mmap, [0, 0, 0, 1, 0, 0]),
            SECCOMP_RET_TRACE
        );
    }
}

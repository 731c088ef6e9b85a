//! Operations on SNP guests: what a line asks for, what it is answered, both ways.

mod answer;
mod read;
mod write;

use crate::snp_vm::{SnpCommand, SnpOp};

pub(super) use answer::{read as read_answer, text as answer_text};
pub(super) use read::read;
pub(super) use write::{command as write_command, op as write_op};

use super::words::Words;

/// What a line asks of an SNP guest, its VMM, or its host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnpStep {
    /// `KVM_MEMORY_ENCRYPT_OP`.
    Command(SnpCommand),
    /// Anything else.
    Op(SnpOp),
}

const LAUNCH_TYPES: Words = &[
    ("normal", 1),
    ("zero", 3),
    ("unmeasured", 4),
    ("secrets", 5),
    ("cpuid", 6),
];
const SIZES: Words = &[("4K", 0), ("2M", 1)];
const SIDES: Words = &[("shared", 0), ("private", 1)];
const HOLES: Words = &[("keep", 0), ("punch", 1)];
const IMPLICIT: Words = &[("keep", 0), ("punch", 1), ("stop", 2)];
const QUIRKS: Words = &[("kvm", 0), ("kvm-2026", 1), ("strict", 2)];
const POLICIES: Words = &[("upstream", 0), ("rfc-2021", 1), ("strict", 2)];
const PERMISSIONS: Words = &[
    ("READ", 1),
    ("WRITE", 2),
    ("EXECUTE_USER", 4),
    ("EXECUTE_SUPERVISOR", 8),
];
const OPERATIONS: Words = &[("private", 1), ("shared", 2), ("psmash", 3), ("unsmash", 4)];
const AP_REQUESTS: Words = &[("create-on-init", 0), ("create", 1), ("destroy", 2)];
const STATES: Words = &[
    ("hypervisor", 0),
    ("hv-fixed", 1),
    ("guest-invalid", 2),
    ("guest-valid", 3),
    ("guest-valid-vmsa", 4),
    ("pre-guest", 5),
    ("pre-swap", 6),
    ("firmware", 7),
    ("context", 8),
    ("metadata", 9),
    ("reclaim", 10),
];

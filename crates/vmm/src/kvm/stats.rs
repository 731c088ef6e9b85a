//! Statistics of a VM or of a vCPU (`KVM_GET_STATS_FD`), by name.
#![expect(unsafe_code, reason = "an ioctl makes a descriptor")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

use kvm_bindings::KVMIO;
use vmm_sys_util::ioctl::ioctl;
use vmm_sys_util::ioctl_io_nr;

ioctl_io_nr!(KVM_GET_STATS_FD, KVMIO, 0xce);

/// Where each number is in the descriptor's file.
#[derive(Debug)]
pub(crate) struct Stats {
    file: File,
    places: BTreeMap<String, u64>,
}

/// `struct kvm_stats_header` and `struct kvm_stats_desc`, without the name behind it.
const HEADER: usize = 24;
const DESCRIPTION: usize = 16;

impl Stats {
    /// Those of a VM or of a vCPU.
    ///
    /// # Errors
    /// The kernel has none, or they cannot be read.
    pub(crate) fn of(of: &impl AsRawFd) -> io::Result<Self> {
        // SAFETY: the call has no argument, and makes a new descriptor.
        let descriptor = unsafe { ioctl(of, KVM_GET_STATS_FD()) };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: nobody else has the descriptor.
        let file = unsafe { File::from_raw_fd(descriptor) };
        let mut header = [0; HEADER];
        file.read_exact_at(&mut header, 0)?;
        let word = |at: usize| word_at(&header, at);
        let (name_size, count) = (word(4) as usize, u64::from(word(8)));
        let (first, data) = (u64::from(word(16)), u64::from(word(20)));
        let mut places = BTreeMap::new();
        let mut one = vec![0; DESCRIPTION + name_size];
        let size = one.len() as u64;
        for number in 0..count {
            file.read_exact_at(&mut one, first + number * size)?;
            let name = one[DESCRIPTION..].split(|byte| *byte == 0).next();
            let name = String::from_utf8_lossy(name.unwrap_or_default()).into_owned();
            places.insert(name, data + u64::from(word_at(&one, 8)));
        }
        Ok(Self { file, places })
    }

    /// One number; `None` if the kernel does not count it.
    pub(crate) fn read(&self, name: &str) -> Option<u64> {
        let mut value = [0; 8];
        let place = self.places.get(name)?;
        self.file.read_exact_at(&mut value, *place).ok()?;
        Some(u64::from_ne_bytes(value))
    }
}

fn word_at(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
    u32::from_ne_bytes(word.unwrap_or_default())
}

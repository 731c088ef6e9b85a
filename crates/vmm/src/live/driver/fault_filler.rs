//! A thread that fills missing pages of host memory (`userfaultfd`).
#![expect(unsafe_code, reason = "system calls take pointers")]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;

use slat_memslot::{Hva, PAGE_SIZE};

use crate::live::areas::HALT;

/// Fills each missing page of some ranges with an instruction that halts, when somebody accesses it.
#[derive(Debug)]
pub(super) struct FaultFiller {
    file: Arc<File>,
    thread: Option<JoinHandle<()>>,
    /// The thread ends when this is closed.
    end: Option<UnixStream>,
}

/// `_IOWR(0xaa, 0x3f, struct uffdio_api)`.
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
/// `_IOWR(0xaa, 0x00, struct uffdio_register)`.
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
/// `_IOWR(0xaa, 0x03, struct uffdio_copy)`.
const UFFDIO_COPY: libc::c_ulong = 0xc028_aa03;
const API: u64 = 0xaa;
const REGISTER_MISSING: u64 = 1;
/// The size of `struct uffd_msg`, and where it has the address.
const MESSAGE: usize = 32;
const ADDRESS: std::ops::Range<usize> = 16..24;

impl FaultFiller {
    pub(super) fn start() -> io::Result<Self> {
        // One that blocks cannot be polled.
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        // SAFETY: the call takes a number, and gives a descriptor that is ours.
        let descriptor = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        let descriptor = RawFd::try_from(descriptor).unwrap_or(-1);
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: as above.
        let file = Arc::new(unsafe { File::from_raw_fd(descriptor) });
        call(&file, UFFDIO_API, &mut [API, 0, 0])?;
        let (read, end) = UnixStream::pair()?;
        let shared = Arc::clone(&file);
        let thread = std::thread::Builder::new().spawn(move || fill(&shared, &read))?;
        Ok(Self {
            file,
            thread: Some(thread),
            end: Some(end),
        })
    }

    /// Missing pages of a range are filled from now on.
    pub(super) fn register(&self, hva: Hva, bytes: u64) -> io::Result<()> {
        let mut request = [hva.raw(), bytes, REGISTER_MISSING, 0];
        call(&self.file, UFFDIO_REGISTER, &mut request)
    }
}

impl Drop for FaultFiller {
    fn drop(&mut self) {
        self.end = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn call(file: &File, request: libc::c_ulong, words: &mut [u64]) -> io::Result<()> {
    // SAFETY: the request's struct is made of as many words, and the kernel keeps no pointer to it.
    match unsafe { libc::ioctl(file.as_raw_fd(), request, words.as_mut_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn fill(mut file: &File, end: &UnixStream) {
    let page = vec![HALT; usize::try_from(PAGE_SIZE).unwrap_or(0)];
    let waits = |fd| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    let mut polled = [waits(file.as_raw_fd()), waits(end.as_raw_fd())];
    loop {
        // SAFETY: the array has two elements.
        let ready = unsafe { libc::poll(polled.as_mut_ptr(), 2, -1) };
        let [faults, ended] = &polled;
        if ready < 0 || ended.revents != 0 {
            return;
        }
        let mut message = [0; MESSAGE];
        if faults.revents == 0 || file.read_exact(&mut message).is_err() {
            continue;
        }
        let mut address = [0; 8];
        address.copy_from_slice(&message[ADDRESS]);
        let to = u64::from_le_bytes(address) & !(PAGE_SIZE - 1);
        // Who has filled it meanwhile has woken the others.
        let _ = call(
            file,
            UFFDIO_COPY,
            &mut [to, page.as_ptr() as u64, PAGE_SIZE, 0, 0],
        );
    }
}

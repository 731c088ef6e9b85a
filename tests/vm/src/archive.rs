//! A cpio archive in the form that Linux unpacks as its first file system ("newc", `buffer-format.rst` of the kernel).

use std::io::{self, Write};

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// Writes files one after the other.
#[derive(Debug)]
pub(crate) struct Archive<W> {
    to: W,
    files: u32,
}

impl<W: Write> Archive<W> {
    pub(crate) fn new(to: W) -> Self {
        Self { to, files: 0 }
    }

    pub(crate) fn folder(&mut self, name: &str) -> io::Result<()> {
        self.entry(name, FOLDER, &[])
    }

    /// A file that may be executed.
    pub(crate) fn file(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
        self.entry(name, PROGRAM, content)
    }

    /// Writes the end, without which Linux takes nothing.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.entry("TRAILER!!!", 0, &[])?;
        self.to.flush()
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.files += 1;
        let size = u32::try_from(content.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let name_size =
            u32::try_from(name.len() + 1).map_err(|_| io::ErrorKind::InvalidFilename)?;
        // Inode, mode, owner, group, links, time, size, device and special device, name, no checksum.
        let fields = [self.files, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        self.to.write_all(b"070701")?;
        for field in fields {
            write!(self.to, "{field:08X}")?;
        }
        self.padded(&[name.as_bytes(), &[0]].concat(), 110)?;
        self.padded(content, 0)
    }

    /// Bytes, and zeroes up to a multiple of four, counted from `before` bytes ahead of them.
    fn padded(&mut self, bytes: &[u8], before: usize) -> io::Result<()> {
        self.to.write_all(bytes)?;
        let end = before + bytes.len();
        self.to.write_all(&[0; 3][..end.next_multiple_of(4) - end])
    }
}

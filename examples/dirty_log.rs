//! Rounds of a live migration that lose no page: the bitmaps of KVM, of the VMM and of a device become one, dirty
//! pages become few long transfers, and a round that fails leaves its pages to the next.
//!
//! `cargo run --example dirty_log`

use std::error::Error;
use std::io::{self, Write};

use slat::memslot::{
    AsId, Buffer, DirtyBacklog, DirtyEpoch, DirtyPages, DirtySource, Gfn, Memory, Pages, Profile,
    Region, SlotFlags, SlotKey, VmType, coalesce_dirty, merge_dirty,
};

const PAGES: Pages = Pages::new(256);
const SLOT: SlotKey = SlotKey::normal(0);
/// Clean pages that are sent along rather than cut a transfer in two.
const MAX_GAP: Pages = Pages::new(4);

fn main() -> Result<(), Box<dyn Error>> {
    run(&mut io::stdout().lock())
}

/// The whole example, written to `out`.
pub(crate) fn run(out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    let mut memory = logged_memory()?;
    let mut backlog = DirtyBacklog::new(PAGES);

    writeln!(out, "# Round 1: the connection breaks on the way")?;
    for page in [3, 4, 5, 8, 100] {
        let _ = memory.mark_dirty(0, AsId::NORMAL, Gfn::new(page));
    }
    // What the VMM itself wrote, and what a vhost-user device reports, in words as they come.
    let harvested = harvest(&mut memory, &[1 << 9, 0, 0, 0], &[0, 0, 0, 1 << 63], out)?;
    let epoch = backlog.begin(&harvested)?;
    let broken = transfer(
        epoch,
        &mut Wire {
            breaks_at: Some(100),
        },
        out,
    );
    writeln!(out, "transfer: {}", broken.expect_err("breaks"))?;
    writeln!(out, "kept: pages {}", backlog.pages())?;

    writeln!(
        out,
        "\n# Round 2: the log is empty for KVM, not for the backlog"
    )?;
    let _ = memory.mark_dirty(0, AsId::NORMAL, Gfn::new(101));
    let harvested = harvest(&mut memory, &[0; 4], &[0; 4], out)?;
    let epoch = backlog.begin(&harvested)?;
    transfer(epoch, &mut Wire { breaks_at: None }, out)?;
    writeln!(out, "kept: pages {}", backlog.pages())?;

    writeln!(out, "\n# A bitmap of another size is refused, not cut")?;
    let refused = merge_dirty(PAGES, [&[u64::MAX; 3][..]]).expect_err("three words for 256 pages");
    writeln!(out, "{refused}")?;
    Ok(())
}

/// A VM with one slot whose writes are logged.
fn logged_memory() -> Result<Memory, Box<dyn Error>> {
    let mut memory = Memory::new(Profile::latest(), VmType::Default);
    let region = Region::new(SLOT, 0, PAGES.bytes(), 0x7f00_0000_0000)
        .with_flags(SlotFlags::LOG_DIRTY_PAGES);
    let _effects = memory.set_region(&region)?;
    Ok(memory)
}

/// Reads KVM's log, which forgets it, and adds what KVM does not see.
fn harvest(
    memory: &mut Memory,
    vmm: &[u64],
    device: &[u64],
    out: &mut impl Write,
) -> Result<DirtyPages, Box<dyn Error>> {
    let kvm = memory.get_dirty_log(SLOT.raw(), Buffer::Good)?;
    let sources = [
        DirtySource::from(&kvm),
        DirtySource::from(vmm),
        DirtySource::from(device),
    ];
    let all = merge_dirty(PAGES, sources)?;
    writeln!(out, "KVM: pages {kvm}; with VMM and device: pages {all}")?;
    Ok(all)
}

/// A connection, which may break at a page.
struct Wire {
    breaks_at: Option<u64>,
}

impl Wire {
    fn send(&mut self, first: u64, end: u64) -> io::Result<()> {
        match self.breaks_at {
            Some(page) if (first..end).contains(&page) => {
                Err(io::Error::new(io::ErrorKind::BrokenPipe, "broken pipe"))
            }
            _ => Ok(()),
        }
    }
}

/// Sends all pages of an epoch. An error drops it, and what has not arrived stays in the backlog.
fn transfer(
    mut epoch: DirtyEpoch<'_>,
    wire: &mut Wire,
    out: &mut impl Write,
) -> Result<(), io::Error> {
    let ranges: Vec<_> = coalesce_dirty(epoch.pages(), MAX_GAP).collect();
    let dirty = epoch.pages().count();
    writeln!(out, "{dirty} dirty pages in {} transfers", ranges.len())?;
    for (first, end) in ranges {
        wire.send(first, end)?;
        writeln!(out, "sent {first}..{end}")?;
        epoch.sent(first..end);
    }
    epoch.commit();
    Ok(())
}

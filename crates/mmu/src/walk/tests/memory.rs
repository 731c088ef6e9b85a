//! One guest in each kind of memory that tables can be in.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use slat_memslot::{Gpa, Gva};

use crate::role::{Cr0, Cr4, Efer, VcpuState};
use crate::walk::{
    ErrorCode, Exchange, GuestCpu, GuestPaging, ReadOnly, TableMemory, Translation, WalkFault,
};

const ACCESSES: [ErrorCode; 3] = [
    ErrorCode::READ,
    ErrorCode::WRITE,
    ErrorCode::WRITE.union(ErrorCode::USER),
];

/// A guest in four-level paging with one page at 0 and another, for supervisors to read, at 0x1000.
fn long_mode() -> (GuestPaging, Vec<u64>) {
    let vcpu = VcpuState {
        cr0: Cr0::PG | Cr0::PE | Cr0::WP,
        cr4: Cr4::PAE,
        efer: Efer::LME | Efer::LMA,
        ..VcpuState::default()
    };
    let mut memory = vec![0; 5 * 512];
    for (at, entry) in [(0, 0x1007), (512, 0x2007), (1024, 0x3007)] {
        memory[at] = entry;
    }
    memory[3 * 512] = 0x5007;
    memory[3 * 512 + 1] = 0x6001;
    (GuestPaging::new(&vcpu, &GuestCpu::new(46)), memory)
}

/// The same in 32-bit paging, whose entries are halves of words.
fn bits_32() -> (GuestPaging, Vec<u64>) {
    let vcpu = VcpuState {
        cr0: Cr0::PG | Cr0::PE | Cr0::WP,
        ..VcpuState::default()
    };
    let mut memory = vec![0; 2 * 512];
    memory[0] = 0x1007;
    memory[512] = 0x6001 << 32 | 0x5007;
    (GuestPaging::new(&vcpu, &GuestCpu::new(46)), memory)
}

type Answer = Result<Translation, WalkFault>;

fn walks(paging: &GuestPaging, memory: &(impl TableMemory + ?Sized)) -> Vec<Answer> {
    let addresses = [0x123, 0x1ff8, 0x2000].map(Gva::new);
    let all = addresses.into_iter().flat_map(|a| ACCESSES.map(|b| (a, b)));
    all.map(|(address, access)| paging.translate(memory, address, access))
        .collect()
}

/// In one thread's memory, with what is left there; [`super::reference`] is the oracle of that.
fn in_cells(paging: &GuestPaging, memory: &[u64]) -> (Vec<Answer>, Vec<u64>) {
    let cells: Vec<_> = memory.iter().copied().map(Cell::new).collect();
    let answers = walks(paging, cells.as_slice());
    (answers, cells.into_iter().map(Cell::into_inner).collect())
}

fn physical(answers: Vec<Answer>) -> Vec<Option<u64>> {
    let found = answers.into_iter().map(Result::ok);
    found.map(|found| Some(found?.address.raw())).collect()
}

#[test]
fn shared_memory_is_walked_and_marked_alike() {
    for (paging, memory) in [long_mode(), bits_32()] {
        let (expected, marked) = in_cells(&paging, &memory);
        assert_ne!(marked, memory);
        let atomics: Vec<_> = memory.iter().copied().map(AtomicU64::new).collect();
        assert_eq!(walks(&paging, atomics.as_slice()), expected);
        let left: Vec<_> = atomics.into_iter().map(AtomicU64::into_inner).collect();
        assert_eq!(left, marked);
    }
}

#[test]
fn dumps_are_walked_and_left_alone() {
    for (paging, memory) in [long_mode(), bits_32()] {
        let (expected, _) = in_cells(&paging, &memory);
        let expected = physical(expected);
        let bytes: Vec<u8> = memory.iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(physical(walks(&paging, bytes.as_slice())), expected);
        assert_eq!(physical(walks(&paging, memory.as_slice())), expected);
        let atomics: Vec<_> = memory.iter().copied().map(AtomicU64::new).collect();
        let kept = ReadOnly(atomics.as_slice());
        assert_eq!(physical(walks(&paging, &kept)), expected);
        let left = atomics.iter().map(|word| word.load(Ordering::Relaxed));
        assert!(left.eq(memory));
    }
}

/// What a walk does that was overtaken, or whose table is gone.
#[test]
fn an_exchange_says_why_it_failed() {
    let atomics = [1, 2].map(AtomicU64::new);
    let cells = [1, 2].map(Cell::new);
    let memories: [&dyn TableMemory; 2] = [&AllOf(&atomics[..]), &AllOf(&cells[..])];
    for memory in memories {
        let exchange = |at, old, new| memory.compare_exchange_u64(Gpa::new(at), old, new);
        assert_eq!(exchange(8, 1, 7), Exchange::Changed);
        assert_eq!(exchange(8, 2, 7), Exchange::Done);
        assert_eq!(memory.read_u64(Gpa::new(8)), Some(7));
        assert_eq!(exchange(16, 0, 7), Exchange::Failed);
        assert_eq!(memory.read_u64(Gpa::new(16)), None);
        let half = |at, old, new| memory.compare_exchange_u32(Gpa::new(at), old, new);
        assert_eq!(half(12, 0, 9), Exchange::Done);
        assert_eq!(half(8, 7, 5), Exchange::Done);
        assert_eq!(half(8, 7, 5), Exchange::Changed);
        assert_eq!(half(20, 0, 5), Exchange::Failed);
        assert_eq!(memory.read_u64(Gpa::new(8)), Some(9 << 32 | 5));
        assert_eq!(memory.read_u32(Gpa::new(12)), Some(9));
    }
    let kept = ReadOnly(&atomics[..]);
    let refused = TableMemory::<Gpa>::compare_exchange_u32(&kept, Gpa::new(0), 1, 2);
    assert_eq!(refused, Exchange::ReadOnly);
    let refused = TableMemory::<Gpa>::compare_exchange_u64(&kept, Gpa::new(0), 1, 2);
    assert_eq!(refused, Exchange::ReadOnly);
}

/// Memory whose kind the walk does not know.
struct AllOf<'m, M: ?Sized>(&'m M);

impl<M: TableMemory + ?Sized> TableMemory for AllOf<'_, M> {
    fn read_u64(&self, at: Gpa) -> Option<u64> {
        self.0.read_u64(at)
    }

    fn read_u32(&self, at: Gpa) -> Option<u32> {
        self.0.read_u32(at)
    }

    fn compare_exchange_u64(&self, at: Gpa, current: u64, new: u64) -> Exchange {
        self.0.compare_exchange_u64(at, current, new)
    }

    fn compare_exchange_u32(&self, at: Gpa, current: u32, new: u32) -> Exchange {
        self.0.compare_exchange_u32(at, current, new)
    }
}

#[cfg(feature = "vm-memory")]
mod of_a_vmm {
    use vm_memory::bitmap::{AtomicBitmap, Bitmap};
    use vm_memory::{
        Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, Iommu,
        IommuMemory, Permissions,
    };

    use super::*;
    use crate::walk::{GuestVirtual, Marks, Privilege, VmMemory};

    type Memory = GuestMemoryMmap<AtomicBitmap>;

    /// In two regions, the second from 0x1000 on.
    fn mapped(words: &[u64]) -> Memory {
        let bytes = words.len() * 8;
        let regions = [
            (GuestAddress(0), 0x1000),
            (GuestAddress(0x1000), bytes - 0x1000),
        ];
        let memory = Memory::from_ranges(&regions).unwrap();
        for (word, at) in words.iter().zip((0..).step_by(8)) {
            memory.write_obj(*word, GuestAddress(at)).unwrap();
        }
        for region in GuestMemoryBackend::iter(&memory) {
            (**region).bitmap().reset();
        }
        memory
    }

    fn words(memory: &Memory, count: usize) -> Vec<u64> {
        let at = (0..count as u64).map(|index| GuestAddress(8 * index));
        at.map(|at| memory.read_obj(at).unwrap()).collect()
    }

    #[test]
    fn its_tables_are_walked_and_marked_and_logged() {
        for (paging, memory) in [long_mode(), bits_32()] {
            let (expected, marked) = in_cells(&paging, &memory);
            let vmm = mapped(&memory);
            let tables = VmMemory(&vmm);
            assert_eq!(walks(&paging, &tables), expected);
            assert_eq!(words(&vmm, memory.len()), marked);
            // A page of tables is dirty if a mark was made in it.
            let pages = memory.chunks(512).zip(marked.chunks(512));
            for ((page, (old, new)), start) in (0..).zip(pages).zip((0..).step_by(0x1000)) {
                let region = usize::from(page != 0);
                let region = GuestMemoryBackend::iter(&vmm).nth(region).unwrap();
                let dirty = region
                    .bitmap()
                    .dirty_at(if page == 0 { 0 } else { start - 0x1000 });
                assert_eq!(dirty, old != new, "page {page}");
            }
            assert_eq!(tables.read_u64(Gpa::new(1 << 30)), None);
            let beyond = tables.compare_exchange_u64(Gpa::new(1 << 30), 0, 1);
            assert_eq!(beyond, Exchange::Failed);
            let overtaken = tables.compare_exchange_u32(Gpa::new(0), 5, 1);
            assert_eq!(overtaken, Exchange::Changed);
        }
    }

    /// Each access to the guest's own addresses finds what one walk for each page finds.
    #[test]
    fn ranges_of_a_guest_go_page_by_page() {
        let (paging, memory) = long_mode();
        for marks in [Marks::Set, Marks::LeftAlone] {
            let vmm = mapped(&memory);
            let space = GuestVirtual::new(paging, vmm.clone(), Privilege::Supervisor, marks);
            let pieces = |at, length, access| {
                let slices = space.translate(GuestAddress(at), length, access).ok()?;
                let found = slices.map(|piece| (piece.base.0, piece.length));
                Some(found.collect::<Vec<_>>())
            };
            // 0 lies at 0x5000, 0x1000 at 0x6000, which may be read, and behind that is nothing.
            let bytes = |pieces: Option<Vec<(u64, usize)>>| {
                let all = pieces?.into_iter();
                Some(
                    all.flat_map(|(base, len)| base..base + len as u64)
                        .collect::<Vec<_>>(),
                )
            };
            assert_eq!(
                bytes(pieces(0xff0, 0x20, Permissions::Read)),
                Some((0x5ff0..0x6010).collect())
            );
            assert_eq!(
                bytes(pieces(0x10, 0xff0, Permissions::Write)),
                Some((0x5010..0x6000).collect())
            );
            assert_eq!(pieces(0xff0, 0x20, Permissions::Write), None);
            assert_eq!(pieces(0x1ff0, 0x20, Permissions::Read), None);
            assert_eq!(pieces(u64::MAX - 0x10, 0x20, Permissions::Read), None);
            assert_eq!(pieces(u64::MAX - 0x1000, 8, Permissions::Read), None);
            let left = words(&vmm, memory.len());
            assert_eq!(left != memory, marks == Marks::Set);
        }
    }

    #[test]
    fn a_guest_is_read_through_its_tables() {
        let (paging, mut memory) = long_mode();
        memory.resize(8 * 512, 0);
        memory[6 * 512] = u64::from_le_bytes(*b"a kernel");
        let vmm = mapped(&memory);
        let space = GuestVirtual::new(paging, vmm.clone(), Privilege::Supervisor, Marks::LeftAlone);
        let guest = IommuMemory::new(vmm, space, true, AtomicBitmap::default());
        let mut text = [0; 8];
        guest.read_slice(&mut text, GuestAddress(0x1000)).unwrap();
        assert_eq!(&text, b"a kernel");
        assert!(guest.write_slice(b"x", GuestAddress(0x1000)).is_err());
        guest.write_slice(b"x", GuestAddress(0xfff)).unwrap();
    }
}

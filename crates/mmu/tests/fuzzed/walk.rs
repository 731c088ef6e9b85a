//! Walks over arbitrary memory with arbitrary registers: no panic, few steps, and every way to walk says the same.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;

use slat_memslot::{Gfn, Gva, Hpa, PageSize};
use slat_mmu::host::{ExecuteOnly, Host};
use slat_mmu::role::{Cr0, Cr4, Efer, VcpuState, root_role_for_tdp};
use slat_mmu::spte::{Ept, Pfn};
use slat_mmu::table::Reader;
use slat_mmu::tdp::{Limits, MapRequest, SecondFault, Tables, Unobserved};
use slat_mmu::walk::second::{NestedStage, TdpStage};
use slat_mmu::walk::tlb::{AddressSpaceId, Context, Pcid, Tlb};
use slat_mmu::walk::{
    AlignmentCheck, Cause, Dimension, ErrorCode, GuestCpu, GuestPaging, GuestVendor, Ladder,
    NestedEptRoot, ReadOnly, Translation, Unnested, WalkFault,
};

/// Memory has this many words: sixteen pages.
const WORDS: usize = 16 * 512;

/// Takes values from the front of the input, zeroes when it is used up.
struct Input<'b>(&'b [u8]);

impl Input<'_> {
    fn word(&mut self) -> u64 {
        let count = self.0.len().min(8);
        let (front, rest) = self.0.split_at(count);
        let mut word = [0; 8];
        word[..count].copy_from_slice(front);
        self.0 = rest;
        u64::from_le_bytes(word)
    }

    fn index(&mut self) -> usize {
        let count = self.0.len().min(2);
        let (front, rest) = self.0.split_at(count);
        let mut index = [0; 2];
        index[..count].copy_from_slice(front);
        self.0 = rest;
        usize::from(u16::from_le_bytes(index)) % WORDS
    }
}

/// CR0, CR3, CR4, EFER, flags, address, pointer to EPT; then a place of two bytes and an entry of eight, as often as there
/// are.
pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let vcpu = VcpuState {
        cr0: Cr0::from_bits_retain(input.word()),
        cr3: input.word(),
        cr4: Cr4::from_bits_retain(input.word()),
        efer: Efer::from_bits_retain(input.word()),
        ..VcpuState::default()
    };
    let [maxphyaddr, vendor, access, ac, pkru @ ..] = input.word().to_le_bytes();
    let address = Gva::new(input.word());
    let eptp = input.word();
    let cpu = GuestCpu {
        vendor: if vendor & 1 == 0 {
            GuestVendor::Intel
        } else {
            GuestVendor::Amd
        },
        largest_page: if vendor & 2 == 0 {
            PageSize::Size1G
        } else {
            PageSize::Size2M
        },
        ..GuestCpu::new(maxphyaddr)
    };
    let access = ErrorCode::from_bits_truncate(u64::from(access)) & ErrorCode::ACCESS;
    let words = vec![Cell::new(0_u64); WORDS];
    while !input.0.is_empty() {
        let index = input.index();
        words[index].set(input.word());
    }
    let memory = words.as_slice();
    let paging = GuestPaging::new(&vcpu, &cpu)
        .with_pkru(u32::from_le_bytes(pkru))
        .with_alignment_check(AlignmentCheck::of(u64::from(ac) << 18));
    let paging = paging.with_loaded_pointers(memory).unwrap_or(paging);

    let read_only = paging.translate(&ReadOnly(memory), address, access);
    let mut batch = Vec::new();
    paging.translate_batch(&ReadOnly(memory), [address; 3], access, |_, found| {
        batch.push(found)
    });
    assert!(
        batch.iter().all(|found| *found == read_only),
        "{batch:?} {read_only:?}"
    );
    nested(&paging, &cpu, eptp, &ReadOnly(memory), address, access);
    SECOND.with_borrow_mut(|second| {
        let found = second.walk(&paging, &ReadOnly(memory), address, access);
        agree(&read_only, &found);
    });

    let ladder = Ladder::default();
    let guest = &mut ladder.observer(Dimension::Guest);
    let found = paging.walk(memory, &mut Unnested, guest, address, access);
    assert!(
        ladder.references().len() <= 5,
        "one dimension: {:?}",
        ladder.references()
    );
    let place = |found: &Result<slat_mmu::walk::Translation, _>| {
        found.as_ref().ok().map(|to| (to.address, to.rights))
    };
    assert_eq!(place(&found), place(&read_only));
    if let (Err(one), Err(other)) = (&found, &read_only) {
        assert_eq!(one, other);
    }
    // Marks do not change where an access goes, unless they are in what it reads: tables that hold themselves.
    let again = paging.translate(memory, address, access);
    assert_eq!(again.is_ok(), found.is_ok());
}

thread_local! {
    static SECOND: RefCell<Second> = RefCell::new(Second::new());
}

/// A second stage that puts the memory's frames where they are, and knows no others.
struct Second {
    tables: Tables<Ept>,
    reader: Reader,
    context: Context,
}

type Found = Result<Translation<Hpa>, WalkFault<SecondFault<Infallible>>>;

impl Second {
    fn new() -> Self {
        let host = Host::ept(52);
        let limits = Limits {
            tables: 8,
            readers: 1,
        };
        let tables = Tables::with_limits(&host, limits);
        let mut reader = tables.reader().expect("the first");
        let mut locked = tables.shared(&mut reader, Unobserved);
        let role = root_role_for_tdp(&VcpuState::default(), &host.tdp().expect("EPT"));
        let root = locked.acquire_root(role).expect("room").root();
        let root = locked.root_table(root).expect("just made");
        for frame in 0..WORDS as u64 / 512 {
            let page = MapRequest::page(Gfn::new(frame), PageSize::Size4K, Pfn::new(frame));
            let _mapped = locked.map(root, &page).expect("room");
        }
        drop(locked);
        Self {
            tables,
            reader,
            context: Context {
                root,
                role,
                space: AddressSpaceId::default(),
                pcid: Pcid::default(),
            },
        }
    }

    /// Walks, alone and together and through the caches of a vCPU: all say the same.
    fn walk(
        &mut self,
        paging: &GuestPaging,
        memory: &ReadOnly<'_, [Cell<u64>]>,
        address: Gva,
        access: ErrorCode,
    ) -> Found {
        let mut locked = self.tables.shared(&mut self.reader, Unobserved);
        let mut stage = TdpStage::new(&mut locked, self.context.root);
        let found = paging.walk(memory, &mut stage, &mut (), address, access);
        paging.walk_batch(memory, &mut stage, [address; 3], access, |_, one| {
            assert_eq!(one, found);
        });
        let mut tlb = Tlb::default();
        for _ in 0..2 {
            let cached = tlb.access(
                &self.context,
                paging,
                memory,
                &mut locked,
                (address, access),
            );
            let walked = found.as_ref().map(|found| found.address);
            assert_eq!(cached.as_ref().map(|cached| cached.hpa()), walked);
        }
        assert_eq!(tlb.audit(&locked, &[self.context.root]), []);
        found
    }
}

/// Two dimensions come to what one comes to, but for memory that is not there: the second stage says so then.
fn agree(one: &Result<Translation, WalkFault>, two: &Found) {
    match (one, two) {
        (Ok(one), Ok(two)) => assert_eq!((one.gpa, one.rights), (two.gpa, two.rights)),
        (Ok(one), Err(WalkFault::Second { gpa, table, .. })) => {
            assert_eq!((one.gpa, None), (*gpa, *table));
            assert!(one.gpa.raw() >= WORDS as u64 * 8);
        }
        (Err(WalkFault::Page(one)), Err(WalkFault::Second { table, .. })) => {
            assert_eq!((one.cause, Some(one.level)), (Cause::NoMemory, *table));
        }
        (Err(WalkFault::Page(one)), Err(WalkFault::Page(two))) => assert_eq!(one, two),
        (Err(WalkFault::NonCanonical { .. }), Err(WalkFault::NonCanonical { .. })) => {}
        _ => panic!("{one:?}, {two:?}"),
    }
}

fn nested(
    paging: &GuestPaging,
    cpu: &GuestCpu,
    eptp: u64,
    memory: &ReadOnly<'_, [Cell<u64>]>,
    address: Gva,
    access: ErrorCode,
) {
    let root = NestedEptRoot::of(eptp, ExecuteOnly::Supported);
    let ept = GuestPaging::nested_ept(&root, cpu);
    let ladder = Ladder::default();
    let mut stage =
        NestedStage::new(ept, memory, Unnested).observed(ladder.observer(Dimension::Nested));
    let guest = &mut ladder.observer(Dimension::Guest);
    let _found = paging.walk(memory, &mut stage, guest, address, access);
    assert!(
        ladder.references().len() <= 35,
        "two dimensions: {:?}",
        ladder.references()
    );
}

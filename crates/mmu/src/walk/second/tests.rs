//! Walks in two and three dimensions against a naive composition: where they go, whose fault it is, and what is marked.
#![expect(clippy::unwrap_used, reason = "a test may fail anywhere")]

use std::cell::Cell;
use std::collections::BTreeMap;

use proptest::prelude::*;
use slat_memslot::{Generation, Gfn, Gpa, Gva, Hpa, Level, PageSize};

use super::{
    EptQualification, FaultPlace, NestedAccess, NestedStage, Resolve, Resolving, SecondExit,
    TdpStage,
};
use crate::access::Access;
use crate::fault::Kind;
use crate::host::{ExecuteOnly, Host};
use crate::role::{Cr0, Cr4, Efer, PhysBits, VcpuState, root_role_for_tdp};
use crate::spte::{Ept, Format, HostWrite, LeafRequest, Npt, Pfn, Spte};
use crate::table::{Reader, TableId};
use crate::tdp::{
    Limits, MapRequest, NoCheck, NoExternal, SecondCause, SecondFault, SecondStep, Shared, Tables,
    Target, Unobserved,
};
use crate::walk::{
    ErrorCode, GuestCpu, GuestPaging, NestedEptRoot, PageFault, Privilege, Stage, Translation,
    WalkEvent, WalkFault,
};

/// What the second stage has for a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Backing {
    Absent,
    ReadOnly,
    Mmio,
    Ordinary,
}

/// Frames of the guest; those of the host follow from [`frame_of_host`].
const FRAMES: u64 = 32;
const FRAME_COUNT: usize = 32;
const HOST_FRAMES: u64 = 64 + FRAMES;

/// Where a frame of the guest is on the host: no frame keeps its number.
fn frame_of_host(gfn: u64) -> u64 {
    64 + (gfn * 13 + 5) % FRAMES
}

/// Tables of the TDP MMU over memory of the host.
struct World<F: Format> {
    tables: Tables<F>,
    reader: Reader,
    root: TableId,
    memory: Vec<Cell<u64>>,
    backing: BTreeMap<u64, Backing>,
}

impl<F: Format> World<F> {
    fn new(host: &Host, width: u8, backing: &[Backing]) -> Self {
        let limits = Limits {
            tables: 64,
            readers: 1,
        };
        let tables = Tables::with_limits(host, limits);
        let mut reader = tables.reader().unwrap();
        let phys_bits = PhysBits {
            physical: width,
            guest_physical: 0,
        };
        let vcpu = VcpuState {
            phys_bits,
            ..VcpuState::default()
        };
        let mut locked = tables.shared(&mut reader, Unobserved);
        let role = root_role_for_tdp(&vcpu, &host.tdp().unwrap());
        let root = locked.acquire_root(role).unwrap().root();
        let root = locked.root_table(root).unwrap();
        for (gfn, backing) in (0..).zip(backing) {
            if let Some(request) = request(gfn, *backing) {
                let _mapped = locked.map(root, &request).unwrap();
            }
        }
        drop(locked);
        let words = usize::try_from(HOST_FRAMES).unwrap() * 512;
        Self {
            tables,
            reader,
            root,
            memory: vec![Cell::new(0); words],
            backing: (0..).zip(backing.iter().copied()).collect(),
        }
    }

    /// A word of the guest's memory, by the guest's address, whatever the second stage says.
    fn word(&self, gpa: u64) -> &Cell<u64> {
        let hpa = frame_of_host(gpa >> 12) << 12 | gpa & 0xfff;
        &self.memory[usize::try_from(hpa >> 3).unwrap()]
    }

    fn snapshot(&self) -> Vec<u64> {
        self.memory.iter().map(Cell::get).collect()
    }

    fn walk(
        &mut self,
        paging: &GuestPaging,
        gva: u64,
        access: ErrorCode,
    ) -> Result<Translation<Hpa>, WalkFault<Fault>> {
        let mut locked = self.tables.shared(&mut self.reader, Unobserved);
        let mut stage = TdpStage::new(&mut locked, self.root);
        paging.walk(
            self.memory.as_slice(),
            &mut stage,
            &mut (),
            Gva::new(gva),
            access,
        )
    }
}

fn request<F: Format>(gfn: u64, backing: Backing) -> Option<MapRequest<F>> {
    let pfn = Pfn::new(frame_of_host(gfn));
    let page = MapRequest::page(Gfn::new(gfn), PageSize::Size4K, pfn);
    match backing {
        Backing::Absent => None,
        Backing::Ordinary => Some(page),
        Backing::Mmio => Some(MapRequest::mmio(Gfn::new(gfn), Generation::new(4))),
        Backing::ReadOnly => Some(MapRequest {
            access: Access::empty(),
            target: Target::Page(LeafRequest {
                host_write: HostWrite::Refused,
                ..LeafRequest::new(Spte::from_raw(0), PageSize::Size4K, pfn)
            }),
            ..page
        }),
    }
}

type Fault = SecondFault<core::convert::Infallible>;

/// The guest's registers: four levels, everything allowed.
fn guest(cr3: u64) -> GuestPaging {
    let vcpu = VcpuState {
        cr0: Cr0::PG | Cr0::PE | Cr0::WP,
        cr3,
        cr4: Cr4::PAE,
        efer: Efer::LME | Efer::LMA | Efer::NX,
        ..VcpuState::default()
    };
    GuestPaging::new(&vcpu, &GuestCpu::new(46))
}

/// Links the frames `tables` into a chain for address 0, down to `page`.
fn chain<F: Format>(world: &World<F>, tables: [u64; 4], page: u64, flags: u64) {
    let next = tables.into_iter().skip(1).chain([page]);
    for (table, next) in tables.into_iter().zip(next) {
        world.word(table << 12).set(next << 12 | flags);
    }
}

#[test]
fn four_by_four_levels_are_24_references_and_five_by_five_are_35() {
    for (host, width, la57, tables, references) in [
        (Host::ept(46), 46, Cr4::empty(), 4, 24),
        (Host::ept(52).with_five_levels(), 52, Cr4::LA57, 5, 35),
    ] {
        let mut world = World::<Ept>::new(&host, width, &[Backing::Ordinary; 8]);
        for table in 0..tables {
            world.word(table << 12).set((table + 1) << 12 | 7);
        }
        let vcpu = VcpuState {
            cr0: Cr0::PG | Cr0::PE,
            cr4: Cr4::PAE | la57,
            efer: Efer::LME | Efer::LMA,
            ..VcpuState::default()
        };
        let paging = GuestPaging::new(&vcpu, &GuestCpu::new(width));
        let mut locked = world.tables.shared(&mut world.reader, Unobserved);
        let mut second: Vec<SecondStep> = Vec::new();
        let mut first: Vec<WalkEvent> = Vec::new();
        let mut stage = TdpStage::new(&mut locked, world.root).observed(&mut second);
        let found = paging.walk(
            world.memory.as_slice(),
            &mut stage,
            &mut first,
            Gva::new(0x123),
            ErrorCode::READ,
        );
        assert_eq!(
            found.unwrap().address,
            Hpa::new(frame_of_host(tables) << 12 | 0x123)
        );
        let read = first
            .iter()
            .filter(|event| matches!(event, WalkEvent::Step(_)))
            .count();
        assert_eq!(read + second.len(), references);
    }
}

#[test]
fn a_fault_knows_its_dimension_and_level() {
    let mut backing = [Backing::Ordinary; 8];
    (backing[2], backing[5], backing[6]) = (Backing::Absent, Backing::ReadOnly, Backing::Mmio);
    let mut world = World::<Ept>::new(&Host::ept(46), 46, &backing);
    chain(&world, [0, 1, 2, 3], 4, 7);
    match world.walk(&guest(0), 0x10, ErrorCode::READ) {
        Err(WalkFault::Second {
            fault,
            gpa,
            table: Some(Level::L2),
        }) => {
            assert_eq!(gpa, Gpa::new(0x2000));
            assert_eq!(fault.cause, SecondCause::NotPresent);
            // Entries are marked in this EPT, so that the table was wanted for writing too.
            let exit = SecondExit::ept(&fault, FaultPlace::Table);
            assert_eq!(exit.to_string(), "EPT violation, qualification 0x83");
            assert_eq!(
                exit.error_code(),
                ErrorCode::USER | ErrorCode::WRITE | ErrorCode::GUEST_PAGE
            );
        }
        other => panic!("{other:?}"),
    }
    // A page that is read-only on the host: read, executed, not written.
    chain(&world, [0, 1, 3, 4], 5, 7);
    assert!(world.walk(&guest(0), 0, ErrorCode::READ).is_ok());
    assert!(world.walk(&guest(0), 0, ErrorCode::FETCH).is_ok());
    match world.walk(&guest(0), 0, ErrorCode::WRITE) {
        Err(WalkFault::Second {
            fault, table: None, ..
        }) => {
            assert_eq!(
                fault.cause,
                SecondCause::NotAllowed {
                    missing: Access::WRITE
                }
            );
            // As recorded, but for bits 9 and 10, which are of a newer CPU.
            let exit = SecondExit::ept(&fault, FaultPlace::Final);
            assert_eq!(
                exit,
                SecondExit::EptViolation(EptQualification::from_bits_truncate(0x1aa))
            );
        }
        other => panic!("{other:?}"),
    }
    // MMIO is a misconfiguration, which tells nothing more.
    chain(&world, [0, 1, 3, 4], 6, 7);
    match world.walk(&guest(0), 0, ErrorCode::READ) {
        Err(WalkFault::Second {
            fault, table: None, ..
        }) => {
            assert!(
                matches!(fault.cause, SecondCause::Misconfigured { mmio: Some(mmio), .. } if mmio.gfn == Gfn::new(6))
            );
            let exit = SecondExit::ept(&fault, FaultPlace::Final);
            assert_eq!(
                (exit, exit.error_code()),
                (SecondExit::EptMisconfiguration, ErrorCode::RSVD)
            );
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn nested_page_faults_tell_the_place() {
    let mut backing = [Backing::Ordinary; 8];
    (backing[2], backing[5], backing[6]) = (Backing::ReadOnly, Backing::Absent, Backing::Mmio);
    let mut world = World::<Npt>::new(&Host::npt(48), 48, &backing);
    let mut code = |tables, page, access| {
        chain(&world, tables, page, 7);
        match world.walk(&guest(0), 0, access) {
            Err(WalkFault::Second { fault, table, .. }) => {
                let place = if table.is_some() {
                    FaultPlace::Table
                } else {
                    FaultPlace::Final
                };
                SecondExit::npt(&fault, place).error_code().bits()
            }
            other => panic!("{other:?}"),
        }
    };
    // A table of the guest must be writable: P|W|U and bit 33.
    assert_eq!(code([0, 1, 2, 3], 4, ErrorCode::READ), 0x2_0000_0007);
    assert_eq!(code([0, 1, 3, 4], 5, ErrorCode::READ), 0x1_0000_0004);
    assert_eq!(code([0, 1, 3, 4], 5, ErrorCode::WRITE), 0x1_0000_0006);
    assert_eq!(code([0, 1, 3, 4], 5, ErrorCode::FETCH), 0x1_0000_0014);
    assert_eq!(code([0, 1, 3, 4], 6, ErrorCode::READ), 0x1_0000_000d);
}

#[test]
fn without_marks_in_ept_a_mark_in_the_guest_is_a_write_of_its_own() {
    let mut backing = [Backing::Ordinary; 8];
    backing[3] = Backing::ReadOnly;
    let mut world = World::<Ept>::new(&Host::ept(46).without_ad(), 46, &backing);
    chain(&world, [0, 1, 2, 3], 4, 7);
    match world.walk(&guest(0), 0, ErrorCode::READ) {
        Err(WalkFault::Second {
            fault,
            table: Some(Level::L1),
            ..
        }) => {
            let exit = SecondExit::ept(&fault, FaultPlace::Table);
            assert_eq!(exit.to_string(), "EPT violation, qualification 0xaa");
        }
        other => panic!("{other:?}"),
    }
    // Entries that are marked already need no write.
    chain(&world, [0, 1, 2, 3], 4, 0x67);
    assert!(world.walk(&guest(0), 0, ErrorCode::WRITE).is_ok());
}

/// Maps what is missing.
struct Mapping {
    root: TableId,
    /// The frames, and whether the final page was missing.
    mended: Vec<(u64, bool)>,
}

type Locked<'t> = crate::tdp::Locked<Shared<'t, Ept, NoExternal, NoCheck>, Unobserved>;

impl<'l, 't> Resolve<TdpStage<'l, Locked<'t>>> for Mapping {
    fn resolve(
        &mut self,
        stage: &mut TdpStage<'l, Locked<'t>>,
        fault: &Fault,
        access: ErrorCode,
    ) -> bool {
        let gfn = fault.gpa.gfn().raw();
        self.mended
            .push((gfn, access.contains(ErrorCode::GUEST_FINAL)));
        let request = request(gfn, Backing::Ordinary).unwrap();
        stage.locked().map(self.root, &request).is_ok()
    }
}

#[test]
fn faults_of_the_second_stage_are_mended_on_the_way() {
    let mut world = World::<Ept>::new(&Host::ept(46), 46, &[]);
    chain(&world, [0, 1, 2, 3], 4, 7);
    let paging = guest(0);
    let mut locked = world.tables.shared(&mut world.reader, Unobserved);
    let root = world.root;
    let stage = TdpStage::new(&mut locked, root);
    let resolver = Mapping {
        root,
        mended: Vec::new(),
    };
    let mut stage = Resolving::new(stage, resolver);
    let found = paging.walk(
        world.memory.as_slice(),
        &mut stage,
        &mut (),
        Gva::new(8),
        ErrorCode::WRITE,
    );
    assert_eq!(found.unwrap().address, Hpa::new(frame_of_host(4) << 12 | 8));
    assert_eq!(
        stage.into_parts().1.mended,
        [(0, false), (1, false), (2, false), (3, false), (4, true)]
    );
}

#[test]
fn what_kvm_makes_up_for_l1() {
    let fault = |code, rights, cause| PageFault {
        code,
        address: Gva::new(0x5000),
        level: Level::L1,
        rights,
        cause,
    };
    let readable = Access::USER | Access::EXECUTE;
    let write = fault(
        ErrorCode::WRITE | ErrorCode::USER | ErrorCode::PRESENT,
        readable,
        crate::walk::Cause::Write,
    );
    let told = |exit: SecondExit| exit.to_string();
    assert_eq!(
        told(SecondExit::synthesised_ept(&write, FaultPlace::Final)),
        "EPT violation, qualification 0x1ab"
    );
    assert_eq!(
        told(SecondExit::synthesised_ept(&write, FaultPlace::Table)),
        "EPT violation, qualification 0xab"
    );
    assert_eq!(
        told(SecondExit::synthesised_npt(&write, FaultPlace::Final)),
        "#NPF(0x100000007 PRESENT|WRITE|USER|GUEST_FINAL)"
    );
    let reserved = fault(
        ErrorCode::PRESENT | ErrorCode::RSVD,
        Access::empty(),
        crate::walk::Cause::Reserved { bits: 8 },
    );
    assert_eq!(
        SecondExit::synthesised_ept(&reserved, FaultPlace::Final),
        SecondExit::EptMisconfiguration
    );
}

#[test]
fn kvm_s_own_walker_executes_only_what_l2_can_read() {
    let mut world = World::<Ept>::new(&Host::ept(46), 46, &[Backing::Ordinary; 16]);
    // EPT12 in frames 8 to 11 maps L2's frame 0 to frame 4, for execution only.
    chain(&world, [8, 9, 10, 11], 4, 7);
    world.word(11 << 12).set(4 << 12 | 6 << 3 | 4);
    let root = NestedEptRoot::of(8 << 12 | 0x5e, ExecuteOnly::Supported);
    let ept12 = GuestPaging::nested_ept(&root, &GuestCpu::new(46));
    let unpaged = GuestPaging::new(&VcpuState::default(), &GuestCpu::new(46));
    for (access, reaches) in [
        (NestedAccess::Kvm, false),
        (NestedAccess::HardwareEpt, true),
    ] {
        let mut locked = world.tables.shared(&mut world.reader, Unobserved);
        let behind = TdpStage::new(&mut locked, world.root);
        let mut stage =
            NestedStage::new(ept12, world.memory.as_slice(), behind).with_access(access);
        let fetch = ErrorCode::of(Kind::Execute, Privilege::Supervisor);
        let found = unpaged.walk(
            world.memory.as_slice(),
            &mut stage,
            &mut (),
            Gva::new(0x77),
            fetch,
        );
        assert_eq!(found.is_ok(), reaches, "{found:?}");
    }
}

// --- Naive composition ---------------------------------------------------------------------------------------------

/// A failed access in words: the stages it came through, outermost first.
type Story = String;

/// The second stage by its map alone.
fn second(world: &BTreeMap<u64, Backing>, gpa: u64, write: bool) -> Result<u64, Story> {
    match world.get(&(gpa >> 12)) {
        Some(Backing::Ordinary) => {}
        Some(Backing::ReadOnly) if !write => {}
        Some(Backing::ReadOnly) => return Err("read-only".into()),
        Some(Backing::Mmio) => return Err("MMIO".into()),
        Some(Backing::Absent) | None => return Err("absent".into()),
    }
    Ok(frame_of_host(gpa >> 12) << 12 | gpa & 0xfff)
}

/// One stage of four levels whose entries have nothing but permissions and frames, read through the next stage.
struct Naive<'w> {
    root: u64,
    /// The bits that an entry needs, and those that are set in it when it is used, and when it is written through.
    present: u64,
    write: u64,
    accessed: u64,
    dirty: u64,
    memory: &'w [Cell<u64>],
}

impl Naive<'_> {
    fn translate(
        &self,
        address: u64,
        write: bool,
        next: &dyn Fn(u64, bool) -> Result<u64, Story>,
    ) -> Result<u64, Story> {
        let mut table = self.root;
        let mut places = Vec::new();
        let mut writable = true;
        for level in (1..=4_u32).rev() {
            let index = address >> (12 + 9 * (level - 1)) & 511;
            let gpa = table << 12 | index << 3;
            let hpa = next(gpa, true).map_err(|why| format!("table {level} at {gpa:#x}: {why}"))?;
            let place = &self.memory[usize::try_from(hpa >> 3).unwrap()];
            let entry = place.get();
            if entry & self.present == 0 {
                return Err(format!("entry {level} absent"));
            }
            writable &= entry & self.write != 0;
            places.push(place);
            table = entry >> 12 & 0xff_ffff;
        }
        if write && !writable {
            return Err("entry 1 read-only".into());
        }
        let gpa = table << 12 | address & 0xfff;
        let hpa = next(gpa, write).map_err(|why| format!("page at {gpa:#x}: {why}"))?;
        for place in &places {
            place.set(place.get() | self.accessed);
        }
        if write {
            let leaf = places.last().unwrap();
            leaf.set(leaf.get() | self.dirty);
        }
        Ok(hpa)
    }
}

fn tell_page(fault: &PageFault) -> Story {
    let what = match fault.code.contains(ErrorCode::PRESENT) {
        true => "read-only",
        false => "absent",
    };
    format!("entry {} {what}", fault.level as u8)
}

fn tell_second(fault: &Fault) -> Story {
    match fault.cause {
        SecondCause::NotPresent => "absent".into(),
        SecondCause::NotAllowed { .. } => "read-only".into(),
        SecondCause::Misconfigured { mmio: Some(_), .. } => "MMIO".into(),
        other => format!("{other:?}"),
    }
}

fn tell<S>(fault: &WalkFault<S>, inner: impl Fn(&S) -> Story) -> Story {
    match fault {
        WalkFault::Page(fault) => tell_page(fault),
        WalkFault::NonCanonical { address } => format!("{address}"),
        WalkFault::Second {
            fault,
            gpa,
            table: Some(level),
        } => {
            format!("table {} at {gpa:#x}: {}", *level as u8, inner(fault))
        }
        WalkFault::Second {
            fault,
            gpa,
            table: None,
        } => format!("page at {gpa:#x}: {}", inner(fault)),
    }
}

fn any_backing() -> impl Strategy<Value = Backing> {
    prop_oneof![
        30 => Just(Backing::Ordinary),
        2 => Just(Backing::ReadOnly),
        1 => Just(Backing::Absent),
        1 => Just(Backing::Mmio),
    ]
}

/// Frames that tables are in; entries 0, 1 and 511 of each are used.
const INDEXES: [u64; 3] = [0, 1, 511];

/// An entry: which frame, and what it allows.
type Raw = (u64, u8);

fn any_raws() -> impl Strategy<Value = Vec<Raw>> {
    let flags = prop_oneof![20 => Just(3_u8), 2 => Just(1), 1 => Just(0)];
    prop::collection::vec((0..16_u64, flags), 16 * INDEXES.len())
}

fn any_address() -> impl Strategy<Value = (u64, bool)> {
    let index = || prop::sample::select(INDEXES[..2].to_vec());
    let parts = (index(), index(), index(), index(), 0..4096_u64);
    (parts, any::<bool>()).prop_map(|((a, b, c, d, offset), write)| {
        (((a << 9 | b) << 9 | c) << 21 | d << 12 | offset, write)
    })
}

/// Fills sixteen frames from `first` on with entries that link to frames from `target` on.
fn fill<F: Format>(world: &World<F>, first: u64, target: u64, raws: &[Raw], bits: [u64; 4]) {
    for (place, (frame, flags)) in raws.iter().enumerate() {
        let table = first + place as u64 / 3;
        let index = INDEXES[place % 3];
        let entry = (target + frame) << 12 | bits[usize::from(*flags)];
        world.word(table << 12 | index << 3).set(entry);
    }
}

const GUEST_BITS: [u64; 4] = [0, 5, 0, 7];

fn naive_guest<'w>(root: u64, memory: &'w [Cell<u64>]) -> Naive<'w> {
    Naive {
        root,
        present: 1,
        write: 2,
        accessed: 1 << 5,
        dirty: 1 << 6,
        memory,
    }
}

fn two_dimensions<F: Format>(
    host: &Host,
    backing: &[Backing],
    raws: &[Raw],
    accesses: &[(u64, bool)],
) -> Result<(), TestCaseError> {
    let mut world = World::<F>::new(host, 46, backing);
    fill(&world, 0, 0, raws, GUEST_BITS);
    let expected: Vec<Cell<u64>> = world.memory.clone();
    for (address, write) in accesses {
        let access = if *write {
            ErrorCode::WRITE
        } else {
            ErrorCode::READ
        };
        let found = world.walk(&guest(0), *address, access);
        let found = found
            .map(|found| found.address.raw())
            .map_err(|fault| tell(&fault, tell_second));
        let next = |gpa, write| second(&world.backing, gpa, write);
        let should = naive_guest(0, &expected).translate(*address, *write, &next);
        prop_assert_eq!(found, should, "{:#x}", address);
        let expected: Vec<u64> = expected.iter().map(Cell::get).collect();
        prop_assert_eq!(world.snapshot(), expected);
    }
    Ok(())
}

/// L2's tables in L1's frames 16 to 31, which L2 knows as 0 to 15; EPT12 in frames 0 to 15.
fn three_dimensions<F: Format>(
    host: &Host,
    backing: &[Backing],
    (l2, l1): (&[Raw], &[Raw]),
    accesses: &[(u64, bool)],
) -> Result<(), TestCaseError> {
    let mut world = World::<F>::new(host, 46, backing);
    fill(&world, 16, 0, l2, GUEST_BITS);
    // Links among EPT12's own tables, but for those of level 1: frames 8 to 15 hold these and map to 16 and up.
    let ept_bits = [0, 5, 0, 7];
    fill(&world, 0, 0, l1, ept_bits);
    for (place, (frame, flags)) in l1.iter().enumerate() {
        let at = (place as u64 / 3) << 12 | INDEXES[place % 3] << 3;
        let bits = ept_bits[usize::from(*flags)];
        // Tables of levels 4 to 2 are frames 0 to 3, 4 to 7 and 8 to 11, those of level 1 frames 12 to 15.
        let group = place as u64 / 12;
        let (next, memory_type) = match group {
            0..3 => (4 * (group + 1) + frame % 4, 0),
            _ => (16 + frame, 6 << 3),
        };
        let bits = if bits == 0 { 0 } else { bits | memory_type };
        world.word(at).set(next << 12 | bits);
    }
    let expected: Vec<Cell<u64>> = world.memory.clone();
    let root = NestedEptRoot::of(0x5e, ExecuteOnly::Unsupported);
    let ept12 = GuestPaging::nested_ept(&root, &GuestCpu::new(46));
    for (address, write) in accesses {
        let access = if *write {
            ErrorCode::WRITE
        } else {
            ErrorCode::READ
        };
        let mut locked = world.tables.shared(&mut world.reader, Unobserved);
        let behind = TdpStage::new(&mut locked, world.root);
        let mut stage = NestedStage::new(ept12, world.memory.as_slice(), behind);
        let found = guest(0).walk(
            world.memory.as_slice(),
            &mut stage,
            &mut (),
            Gva::new(*address),
            access,
        );
        drop(locked);
        let found = found.map(|found| found.address.raw());
        let found = found.map_err(|fault| tell(&fault, |fault| tell(fault, tell_second)));
        let behind = |gpa, write| second(&world.backing, gpa, write);
        let ept = Naive {
            root: 0,
            present: 7,
            write: 2,
            accessed: 1 << 8,
            dirty: 1 << 9,
            memory: &expected,
        };
        let next = |gpa, write| ept.translate(gpa, write, &behind);
        let should = naive_guest(0, &expected).translate(*address, *write, &next);
        prop_assert_eq!(found, should, "{:#x}", address);
        let expected: Vec<u64> = expected.iter().map(Cell::get).collect();
        prop_assert_eq!(world.snapshot(), expected);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn two_dimensions_are_one_after_the_other(
        backing in prop::collection::vec(any_backing(), FRAME_COUNT),
        raws in any_raws(),
        accesses in prop::collection::vec(any_address(), 6),
    ) {
        two_dimensions::<Ept>(&Host::ept(46), &backing, &raws, &accesses)?;
        two_dimensions::<Npt>(&Host::npt(46), &backing, &raws, &accesses)?;
    }

    #[test]
    fn a_guest_of_a_guest_goes_through_all_three(
        backing in prop::collection::vec(any_backing(), FRAME_COUNT),
        l2 in any_raws(),
        l1 in any_raws(),
        accesses in prop::collection::vec(any_address(), 6),
    ) {
        three_dimensions::<Ept>(&Host::ept(46), &backing, (&l2, &l1), &accesses)?;
        three_dimensions::<Npt>(&Host::npt(46), &backing, (&l2, &l1), &accesses)?;
    }
}

/// The property tests come to every end: pages, and each kind of fault in each dimension.
#[test]
fn random_walks_come_to_every_end() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let mut ends = BTreeMap::<String, u32>::new();
    for _ in 0..2000 {
        let backing = prop::collection::vec(any_backing(), FRAME_COUNT);
        let backing = backing.new_tree(&mut runner).unwrap().current();
        let raws = any_raws().new_tree(&mut runner).unwrap().current();
        let (address, write) = any_address().new_tree(&mut runner).unwrap().current();
        let mut world = World::<Ept>::new(&Host::ept(46), 46, &backing);
        fill(&world, 0, 0, &raws, GUEST_BITS);
        let access = if write {
            ErrorCode::WRITE
        } else {
            ErrorCode::READ
        };
        let end = match world.walk(&guest(0), address, access) {
            Ok(_) => "page".to_owned(),
            Err(WalkFault::Second { fault, table, .. }) => {
                let place = if table.is_some() { "table" } else { "page" };
                format!("{place} {}", tell_second(&fault))
            }
            Err(WalkFault::Page(fault)) => tell_page(&fault),
            Err(WalkFault::NonCanonical { .. }) => unreachable!("low addresses"),
        };
        *ends.entry(end).or_default() += 1;
    }
    for end in [
        "page",
        "table absent",
        "table read-only",
        "table MMIO",
        "page absent",
        "page read-only",
        "page MMIO",
        "entry 1 absent",
        "entry 4 absent",
        "entry 1 read-only",
    ] {
        assert!(
            ends.get(end).is_some_and(|count| *count >= 5),
            "{end}: {ends:?}"
        );
    }
}

/// A stage that only counts.
#[test]
fn stages_can_be_borrowed() {
    struct Counting(u32);
    impl Stage for Counting {
        type Address = Gpa;
        type Fault = core::convert::Infallible;
        fn translate(&mut self, gpa: Gpa, _: ErrorCode) -> Result<Gpa, Self::Fault> {
            self.0 += 1;
            Ok(gpa)
        }
    }
    let memory = [0x1007_u64; 1024];
    let mut stage = Counting(0);
    let found = guest(0).walk(
        memory.as_slice(),
        &mut &mut stage,
        &mut (),
        Gva::new(0),
        ErrorCode::READ,
    );
    assert!(found.is_ok());
    assert_eq!(stage.0, 5);
}

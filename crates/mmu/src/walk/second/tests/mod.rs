//! Walks in two and three dimensions against a naive composition: where they go, whose fault it is, and what is marked.
#![expect(clippy::unwrap_used, reason = "a test may fail anywhere")]

mod groups;
pub(in crate::walk) mod naive;
mod random;

use std::cell::Cell;
use std::collections::BTreeMap;

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
pub(in crate::walk) enum Backing {
    Absent,
    ReadOnly,
    Mmio,
    Ordinary,
}

/// Frames of the guest; those of the host follow from [`frame_of_host`].
pub(in crate::walk) const FRAMES: u64 = 32;
pub(in crate::walk) const FRAME_COUNT: usize = 32;
pub(in crate::walk) const HOST_FRAMES: u64 = 64 + FRAMES;

/// Where a frame of the guest is on the host: no frame keeps its number.
pub(in crate::walk) fn frame_of_host(gfn: u64) -> u64 {
    64 + (gfn * 13 + 5) % FRAMES
}

/// Tables of the TDP MMU over memory of the host.
pub(in crate::walk) struct World<F: Format> {
    pub(in crate::walk) tables: Tables<F>,
    pub(in crate::walk) reader: Reader,
    pub(in crate::walk) root: TableId,
    pub(in crate::walk) memory: Vec<Cell<u64>>,
    pub(in crate::walk) backing: BTreeMap<u64, Backing>,
}

impl<F: Format> World<F> {
    pub(in crate::walk) fn new(host: &Host, width: u8, backing: &[Backing]) -> Self {
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
    pub(in crate::walk) fn word(&self, gpa: u64) -> &Cell<u64> {
        let hpa = frame_of_host(gpa >> 12) << 12 | gpa & 0xfff;
        &self.memory[usize::try_from(hpa >> 3).unwrap()]
    }

    pub(in crate::walk) fn snapshot(&self) -> Vec<u64> {
        self.memory.iter().map(Cell::get).collect()
    }

    pub(in crate::walk) fn walk(
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

pub(in crate::walk) fn request<F: Format>(gfn: u64, backing: Backing) -> Option<MapRequest<F>> {
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

pub(in crate::walk) type Fault = SecondFault<core::convert::Infallible>;

/// The guest's registers: four levels, everything allowed.
pub(in crate::walk) fn guest(cr3: u64) -> GuestPaging {
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

/// Who observes the second stage alone is told each reference once, whether the guest's entries are marked or not.
#[test]
fn references_of_the_second_stage_are_told_once() {
    for flags in [7, 0x67] {
        let mut world = World::<Ept>::new(&Host::ept(46), 46, &[Backing::Ordinary; 8]);
        chain(&world, [0, 1, 2, 3], 4, flags);
        let mut locked = world.tables.shared(&mut world.reader, Unobserved);
        let mut second: Vec<SecondStep> = Vec::new();
        let mut stage = TdpStage::new(&mut locked, world.root).observed(&mut second);
        let memory = world.memory.as_slice();
        let address = Gva::new(0);
        let found = guest(0).walk(memory, &mut stage, &mut (), address, ErrorCode::READ);
        assert!(found.is_ok());
        assert_eq!(second.len(), 20, "{flags:#x}");
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

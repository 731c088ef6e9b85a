//! From the first page to the last. Oracle: the fact sheet's life of a TD, and SHA-384 over its operations.

use sha2::{Digest, Sha384};
use slat_memslot::{Gpa, Level};
use slat_mmu::spte::Pfn;

use super::world::{VP, World, at, of, small, status};
use crate::tdx::*;

#[test]
fn a_td_is_made_and_unmade() {
    let world = World::running();
    let (module, td) = (&world.module, world.td);
    let page = world.aug(0x1000);
    world.enter(VP);
    let running = module.tdh_vp_flush(td, VP);
    assert_eq!(status(running), of(Code::OperandBusy, Operand::Rcx));
    world.exit(VP);
    let early = module.tdh_phymem_page_reclaim(page);
    let stage = Status::new(Code::LifecycleStateIncorrect);
    assert_eq!(status(early), stage);
    let associated = module.tdh_mng_vpflushdone(td);
    assert_eq!(status(associated), Status::new(Code::FlushvpNotDone));
    for vp in 0..3 {
        module.tdh_vp_flush(td, VpId(vp)).unwrap();
    }
    let flushed = module.tdh_vp_flush(td, VP);
    assert_eq!(status(flushed), Status::new(Code::VcpuNotAssociated));
    module.tdh_mng_vpflushdone(td).unwrap();
    let enter = module.tdh_vp_enter(td, VP);
    assert_eq!(status(enter), Status::new(Code::TdKeysNotConfigured));
    let unwritten = module.tdh_mng_key_freeid(td);
    assert_eq!(status(unwritten), Status::new(Code::WbcacheNotComplete));
    module.tdh_phymem_cache_wb(td).unwrap();
    module.tdh_mng_key_freeid(td).unwrap();
    reclaim_everything(module, td);
    assert_eq!(module.audit(), []);
    // Everything is the host's again, the key too.
    build(module, Pfn::new(0x10), TdParams::default(), 1).unwrap();
}

/// Any order will do, but for the TDR.
fn reclaim_everything(module: &Module, td: Tdr) {
    let early = module.tdh_phymem_page_reclaim(td.page());
    assert_eq!(status(early), Status::new(Code::TdAssociatedPagesExist));
    let mut reclaimed = 0;
    for page in (0..0x4000).map(Pfn::new).filter(|page| *page != td.page()) {
        reclaimed += u64::from(module.tdh_phymem_page_reclaim(page).is_ok());
    }
    // Four pages of control structure, three vCPUs, three tables, a page.
    assert_eq!(reclaimed, 11);
    module.tdh_phymem_page_reclaim(td.page()).unwrap();
}

#[test]
fn calls_at_the_wrong_stage() {
    let module = Module::new(Pfn::new(0x1000));
    let td = module.tdh_mng_create(Pfn::new(1), 5).unwrap();
    let twice = module.tdh_mng_create(Pfn::new(2), 5);
    assert_eq!(status(twice), Status::new(Code::HkidNotFree));
    let track = || module.tdh_mem_track(td);
    assert_eq!(status(track()), Status::new(Code::TdKeysNotConfigured));
    module.tdh_mng_key_config(td).unwrap();
    assert_eq!(status(track()), Status::new(Code::TdcsNotAllocated));
    let init = || module.tdh_mng_init(td, TdParams::default());
    assert_eq!(status(init()), Status::new(Code::TdcsNotAllocated));
    for page in 2..6 {
        module.tdh_mng_addcx(td, Pfn::new(page)).unwrap();
    }
    assert_eq!(status(track()), Status::new(Code::OpStateIncorrect));
    init().unwrap();
    assert_eq!(status(init()), Status::new(Code::OpStateIncorrect));
    track().unwrap();
    let unknown = module.tdh_mem_track(Tdr::new(Pfn::new(0x99)));
    assert_eq!(
        status(unknown),
        of(Code::PageMetadataIncorrect, Operand::Rcx)
    );
}

#[test]
fn there_are_as_many_vcpus_as_were_asked_for() {
    let params = TdParams {
        max_vcpus: 1,
        ..TdParams::default()
    };
    let world = World::with(params, 1);
    let more = world.module.tdh_vp_create(world.td, world.page());
    assert_eq!(status(more), Status::new(Code::MaxVcpusExceeded));
    let twice = world.module.tdh_vp_init(world.td, VP);
    assert_eq!(status(twice), Status::new(Code::VcpuStateIncorrect));
}

#[test]
fn the_measurement_is_the_hash_of_the_operations() {
    let world = World::building();
    let content = std::array::from_fn(|index| index.to_le_bytes()[0]);
    let bytes = Content::Bytes(std::sync::Arc::new(content));
    for (gpa, source) in [(0x1000, bytes), (0x2000, Content::Value(7))] {
        let page = world.page();
        world
            .module
            .tdh_mem_page_add(world.td, small(gpa), page, source)
            .unwrap();
    }
    world
        .module
        .tdh_mr_extend(world.td, Gpa::new(0x1100))
        .unwrap();
    world
        .module
        .tdh_mr_extend(world.td, Gpa::new(0x2000))
        .unwrap();
    world.module.tdh_mr_finalize(world.td).unwrap();

    let mut hash = Sha384::new();
    let mut block = |name: &str, gpa: u64, content: &[u8]| {
        let mut bytes = name.as_bytes().to_vec();
        bytes.resize(16, 0);
        bytes.extend(gpa.to_le_bytes());
        bytes.resize(128, 0);
        hash.update(&bytes);
        hash.update(content);
    };
    block("MEM.PAGE.ADD", 0x1000, &[]);
    block("MEM.PAGE.ADD", 0x2000, &[]);
    block("MR.EXTEND", 0x1100, &content[0x100..0x200]);
    let mut value = [0; 256];
    value[0] = 7;
    block("MR.EXTEND", 0x2000, &value);
    let wanted: [u8; 48] = hash.finalize().into();
    assert_eq!(world.module.mrtd(world.td), Some(Mrtd(wanted)));
    assert_eq!(world.module.measured(world.td), Some(4));
}

#[test]
fn the_order_of_operations_is_measured() {
    let measure = |gpas: [u64; 2]| {
        let world = World::building();
        for gpa in gpas {
            let page = world.page();
            world
                .module
                .tdh_mem_page_add(world.td, small(gpa), page, Content::Zero)
                .unwrap();
        }
        world.module.tdh_mr_finalize(world.td).unwrap();
        world.module.mrtd(world.td).unwrap()
    };
    assert_eq!(measure([0x1000, 0x2000]), measure([0x1000, 0x2000]));
    assert_ne!(measure([0x1000, 0x2000]), measure([0x2000, 0x1000]));
}

#[test]
fn what_is_measured_is_there() {
    let world = World::building();
    let extend = |gpa| world.module.tdh_mr_extend(world.td, Gpa::new(gpa));
    let unaligned = of(Code::OperandInvalid, Operand::Rcx);
    assert_eq!(status(extend(0x1010)), unaligned);
    let absent = of(Code::EptEntryNotPresent, Operand::Rcx);
    assert_eq!(status(extend(0x1000)), absent);
}

#[test]
fn five_levels_with_52_bits() {
    let params = TdParams {
        gpaw: Gpaw::Bits52,
        ..TdParams::default()
    };
    let world = World::with(params, 1);
    let high = 1 << 48;
    let shared = world
        .module
        .tdh_mem_sept_add(world.td, at(1 << 51, Level::L5), world.page());
    assert_eq!(status(shared), of(Code::OperandInvalid, Operand::Rcx));
    for level in [Level::L5, Level::L4, Level::L3, Level::L2] {
        world.table(high, level);
    }
    world.aug(high);
    world.audit();
    let four = World::building();
    let beyond = four
        .module
        .tdh_mem_sept_add(four.td, at(0, Level::L5), four.page());
    assert_eq!(status(beyond), of(Code::OperandInvalid, Operand::Rcx));
}

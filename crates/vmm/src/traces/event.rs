//! Tracepoints.

use slat_memslot::{AsId, Gfn, Gpa, Level};
use slat_mmu::role::{Access, PageRole, Quadrant, RoleFlag};
use winnow::combinator::{alt, opt, preceded, separated_foldl1, seq, terminated};
use winnow::prelude::*;
use winnow::token::{rest, take_until};

use super::lex::{
    Input, as_id, bit, dec, flag, gfn, gpa, hex, hex32, level, level_of, name, signed,
};

/// A page table, as KVM's page tracepoints print it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TracedPage {
    /// `mmu_valid_gen`.
    pub generation: u32,
    /// The first frame that it covers; in shadow paging the frame of the guest's table.
    pub gfn: Gfn,
    /// Its role, without the fields that the text leaves out: those are clear here, but
    /// [`Probe::SpRole`](super::Probe::SpRole) has the whole word.
    pub role: PageRole,
    /// How often it is a root.
    pub root_count: u32,
    /// Whether the guest may write to the table that it shadows.
    pub unsync: bool,
}

/// What an entry allows, as `kvm_mmu_set_spte` prints it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TracedAccess {
    /// Readable.
    pub read: bool,
    /// Writable.
    pub write: bool,
    /// Executable.
    pub execute: bool,
    /// For user mode, where the format says so.
    pub user: Option<bool>,
}

/// What the emulator did at an address without memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MmioAccess {
    /// It read, and the VMM gave the value.
    Read,
    /// It read, and has to ask the VMM.
    UnsatisfiedRead,
    /// It wrote.
    Write,
}

/// One trace event. Numbers are raw, as the kernel printed them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "fields have the kernel's names and meanings")]
#[non_exhaustive]
pub enum Traced<'a> {
    /// `kvm_tdp_mmu_spte_changed`: an entry of the TDP MMU changed.
    SpteChanged {
        as_id: AsId,
        gfn: Gfn,
        level: Level,
        old: u64,
        new: u64,
    },
    /// `kvm_mmu_get_page`: a page table was made or found.
    GetPage { page: TracedPage, created: bool },
    /// `kvm_mmu_prepare_zap_page`: a page table is about to be taken apart.
    PrepareZapPage { page: TracedPage },
    /// `kvm_mmu_set_spte`: a fault stored a leaf, or found it there.
    SetSpte {
        gfn: Gfn,
        spte: u64,
        access: TracedAccess,
        level: Level,
        /// The entry's host-physical address.
        at: u64,
    },
    /// `kvm_mmu_spte_requested`: a fault knows the page and the level. The pfn may be one of KVM's error values.
    SpteRequested { gfn: Gfn, pfn: u64, level: Level },
    /// `fast_page_fault`: a fault was tried without the lock.
    FastPageFault {
        vcpu: u32,
        gva: u64,
        error_code: u64,
        old: u64,
        new: u64,
        spurious: bool,
        fixed: bool,
    },
    /// `mark_mmio_spte`: an MMIO entry is stored.
    MarkMmio {
        gfn: Gfn,
        access: u32,
        generation: u32,
    },
    /// `check_mmio_spte`: an MMIO entry was found; is its generation the current one?
    CheckMmio {
        spte: u64,
        current: u32,
        generation: u32,
        valid: bool,
    },
    /// `handle_mmio_page_fault`: an MMIO entry said where an access goes.
    HandleMmio { address: u64, gfn: Gfn, access: u32 },
    /// `kvm_mmu_split_huge_page`: a huge leaf was split, or not.
    SplitHugePage {
        gfn: Gfn,
        spte: u64,
        level: Level,
        errno: i32,
    },
    /// `kvm_mmu_zap_all_fast`: all roots are about to be invalidated.
    ZapAllFast { generation: u32, used_pages: u64 },
    /// `kvm_page_fault`: the guest left for a fault. On Intel the code is the raw exit qualification.
    PageFault {
        vcpu: u32,
        rip: u64,
        address: Gpa,
        error_code: u64,
    },
    /// `kvm_unmap_hva_range`: the host takes pages away.
    UnmapHvaRange { start: u64, end: u64 },
    /// `kvm_age_hva`: the host asks which pages were used, and forgets it.
    AgeHva { start: u64, end: u64 },
    /// `kvm_test_age_hva`: the host asks whether a page was used.
    TestAgeHva { hva: u64 },
    /// `kvm_mmio`: the emulator came to an address without memory.
    Mmio {
        access: MmioAccess,
        len: u32,
        gpa: Gpa,
        value: u64,
    },
    /// `kvm_mmu_set_accessed_bit`: KVM marked an entry of the guest.
    SetAccessedBit { gpa: Gpa },
    /// `kvm_mmu_set_dirty_bit`: KVM marked an entry of the guest.
    SetDirtyBit { gpa: Gpa },
    /// `kvm_mmu_unsync_page`: the guest may write to the table that a shadow page follows.
    UnsyncPage { page: TracedPage },
    /// `kvm_mmu_sync_page`: its writes to the table are seen again.
    SyncPage { page: TracedPage },
    /// `kvm_smm_transition`: a vCPU enters or leaves SMM.
    SmmTransition {
        vcpu: u32,
        entering: bool,
        smbase: u64,
    },
    /// `kvm_nested_vmenter`: L1 starts L2.
    NestedEnter {
        rip: u64,
        /// The VMCB or VMCS.
        control: Gpa,
        nested_rip: u64,
        int_ctl: u32,
        event_inj: u32,
        /// Whether L1 uses nested paging.
        nested_paging: bool,
        /// L2's CR3, or the root that L1 made: CR3 or EPTP.
        root: u64,
    },
    /// `kvm_nested_vmexit`: L2 left, for L1 or for KVM itself.
    NestedExit {
        vcpu: u32,
        reason: &'a str,
        rip: u64,
        info1: u64,
        info2: u64,
        intr_info: u32,
        error_code: u32,
    },
    /// `kvm_nested_vmexit_inject`: L1 is told of an exit of L2's.
    NestedExitInject {
        /// The exit code, by name.
        reason: &'a str,
        /// `EXITINFO1`, or the exit qualification.
        info1: u64,
        /// `EXITINFO2`.
        info2: u64,
    },
    /// Any other event.
    Other {
        /// The name.
        event: &'a str,
        /// What stands behind it.
        fields: &'a str,
    },
}

/// Reads the fields of an event; one that nobody knows is [`Traced::Other`].
pub(super) fn fields<'a>(event: &'a str, input: &mut Input<'a>) -> ModalResult<Traced<'a>> {
    match event {
        "kvm_tdp_mmu_spte_changed" => spte_changed(input),
        "kvm_mmu_get_page" => get_page(input),
        "kvm_mmu_prepare_zap_page" => prepare_zap_page(input),
        "kvm_mmu_set_spte" => set_spte(input),
        "kvm_mmu_spte_requested" => spte_requested(input),
        "fast_page_fault" => fast_page_fault(input),
        "mark_mmio_spte" => mark_mmio(input),
        "check_mmio_spte" => check_mmio(input),
        "handle_mmio_page_fault" => handle_mmio(input),
        "kvm_mmu_split_huge_page" => split_huge_page(input),
        "kvm_mmu_zap_all_fast" => zap_all_fast(input),
        "kvm_page_fault" => page_fault(input),
        "kvm_unmap_hva_range" => unmap_hva_range(input),
        "kvm_age_hva" => age_hva(input),
        "kvm_test_age_hva" => test_age_hva(input),
        "kvm_mmio" => mmio(input),
        "kvm_mmu_set_accessed_bit" => set_accessed_bit(input),
        "kvm_mmu_set_dirty_bit" => set_dirty_bit(input),
        "kvm_mmu_unsync_page" => seq!(Traced::UnsyncPage { page: page }).parse_next(input),
        "kvm_mmu_sync_page" => seq!(Traced::SyncPage { page: page }).parse_next(input),
        "kvm_smm_transition" => smm_transition(input),
        "kvm_nested_vmenter" => nested_enter(input),
        "kvm_nested_vmexit" => nested_exit(input),
        "kvm_nested_vmexit_inject" => nested_exit_inject(input),
        _ => rest
            .map(|fields| Traced::Other { event, fields })
            .parse_next(input),
    }
}

fn spte_changed<'a>(input: &mut Input<'a>) -> ModalResult<Traced<'a>> {
    seq!(Traced::SpteChanged {
        _: "as id ", as_id: as_id,
        _: " gfn ", gfn: gfn,
        _: " level ", level: level,
        _: " old_spte ", old: hex,
        _: " new_spte ", new: hex,
    })
    .parse_next(input)
}

fn access(input: &mut Input<'_>) -> ModalResult<Access> {
    let letter = |letter: char, bit| alt((letter.value(bit), '-'.value(Access::empty())));
    let all = (
        letter('w', Access::WRITE),
        letter('u', Access::USER),
        letter('x', Access::EXECUTE),
    );
    all.map(|(w, u, x)| w | u | x).parse_next(input)
}

fn quadrant(input: &mut Input<'_>) -> ModalResult<Quadrant> {
    alt((
        '0'.value(Quadrant::Q0),
        '1'.value(Quadrant::Q1),
        '2'.value(Quadrant::Q2),
        '3'.value(Quadrant::Q3),
    ))
    .parse_next(input)
}

/// `l4 8-byte q0 direct wux invalid nxe !ad`.
fn role(input: &mut Input<'_>) -> ModalResult<PageRole> {
    let level = preceded('l', dec::<u8>.verify_map(level_of)).parse_next(input)?;
    let four = alt((" 4-byte".value(true), " 8-byte".value(false))).parse_next(input)?;
    let quadrant = preceded(" q", quadrant).parse_next(input)?;
    let direct = flag(" direct").parse_next(input)?;
    let access = preceded(' ', access).parse_next(input)?;
    let invalid = flag(" invalid").parse_next(input)?;
    let nx = alt((" nxe".value(true), " !nxe".value(false))).parse_next(input)?;
    let no_ad = alt((" ad".value(false), " !ad".value(true))).parse_next(input)?;
    let flags = [
        (RoleFlag::FourByteGpte, four),
        (RoleFlag::Direct, direct),
        (RoleFlag::Invalid, invalid),
        (RoleFlag::EferNx, nx),
        (RoleFlag::AdDisabled, no_ad),
    ];
    let plain = PageRole::new(level)
        .with_quadrant(quadrant)
        .with_access(access);
    let set = flags.into_iter().filter(|(_, set)| *set);
    Ok(set.fold(plain, |role, (flag, _)| role.with(flag)))
}

fn page(input: &mut Input<'_>) -> ModalResult<TracedPage> {
    seq!(TracedPage {
        _: "sp gen ", generation: dec,
        _: " gfn ", gfn: gfn,
        _: ' ', role: role,
        _: " root ", root_count: dec,
        _: ' ', unsync: alt(("sync".value(false), "unsync".value(true))),
    })
    .parse_next(input)
}

/// `4 q0 direct wux !pae nxe wp smm`: what the plugin of `trace-cmd` makes of a role. It knows the layout of an older kernel,
/// in which bit 4 meant the opposite.
fn plugin_role(input: &mut Input<'_>) -> ModalResult<PageRole> {
    let level = dec::<u8>.verify_map(level_of).parse_next(input)?;
    let quadrant = preceded(" q", quadrant).parse_next(input)?;
    let direct = flag(" direct").parse_next(input)?;
    let access = preceded(' ', access).parse_next(input)?;
    let invalid = flag(" invalid").parse_next(input)?;
    let four = alt((" pae".value(true), " !pae".value(false))).parse_next(input)?;
    let nx = alt((" nxe".value(true), " !nxe".value(false))).parse_next(input)?;
    let wp = alt((" wp".value(true), " !wp".value(false))).parse_next(input)?;
    let smep = flag(" smep").parse_next(input)?;
    let smap = flag(" smap").parse_next(input)?;
    let smm = flag(" smm").parse_next(input)?;
    let flags = [
        (RoleFlag::FourByteGpte, four),
        (RoleFlag::Direct, direct),
        (RoleFlag::Invalid, invalid),
        (RoleFlag::EferNx, nx),
        (RoleFlag::Cr0Wp, wp),
        (RoleFlag::SmepAndNotWp, smep),
        (RoleFlag::SmapAndNotWp, smap),
        (RoleFlag::Smm, smm),
    ];
    let plain = PageRole::new(level)
        .with_quadrant(quadrant)
        .with_access(access);
    let set = flags.into_iter().filter(|(_, set)| *set);
    Ok(set.fold(plain, |role, (flag, _)| role.with(flag)))
}

/// The plugin leaves the generation out.
fn plugin_page(input: &mut Input<'_>) -> ModalResult<TracedPage> {
    let gfn = preceded("sp gfn ", gfn).parse_next(input)?;
    let role = preceded(' ', plugin_role).parse_next(input)?;
    let root_count = preceded(" root ", dec).parse_next(input)?;
    let unsync = preceded(' ', alt(("sync".value(false), "unsync".value(true))));
    let page = unsync.map(|unsync| TracedPage {
        generation: 0,
        gfn,
        role,
        root_count,
        unsync,
    });
    terminated(page, opt(' ')).parse_next(input)
}

fn get_page<'a>(input: &mut Input<'a>) -> ModalResult<Traced<'a>> {
    let mut by_plugin = opt(alt(("new ".value(true), "existing ".value(false))));
    if let Some(created) = by_plugin.parse_next(input)? {
        let page = plugin_page.parse_next(input)?;
        return Ok(Traced::GetPage { page, created });
    }
    seq!(Traced::GetPage {
        page: page,
        created: alt((" new".value(true), " existing".value(false))),
    })
    .parse_next(input)
}

fn prepare_zap_page<'a>(input: &mut Input<'a>) -> ModalResult<Traced<'a>> {
    seq!(Traced::PrepareZapPage { page: page }).parse_next(input)
}

fn traced_access(input: &mut Input<'_>) -> ModalResult<TracedAccess> {
    let letter = |letter: char| alt((letter.value(true), '-'.value(false)));
    seq!(TracedAccess {
        read: letter('r'),
        write: letter('w'),
        execute: letter('x'),
        user: opt(letter('u')),
    })
    .parse_next(input)
}

fn set_spte<'a>(input: &mut Input<'a>) -> ModalResult<Traced<'a>> {
    seq!(Traced::SetSpte {
        _: "gfn ", gfn: gfn,
        _: " spte ", spte: hex,
        _: " (", access: traced_access,
        _: ") level ", level: level,
        _: " at ", at: hex,
    })
    .parse_next(input)
}

fn spte_requested<'a>(input: &mut Input<'a>) -> ModalResult<Traced<'a>> {
    seq!(Traced::SpteRequested {
        _: "gfn ", gfn: gfn,
        _: " pfn ", pfn: hex,
        _: " level ", level: level,
    })
    .parse_next(input)
}

/// `P|W|U|0x100000000`: bits with a name, and the others as a number; nothing if there are none.
fn error_code(input: &mut Input<'_>) -> ModalResult<u64> {
    let part = |input: &mut Input<'_>| {
        alt((
            "RSVD".value(8),
            "PK".value(1 << 5),
            "SS".value(1 << 6),
            "SGX".value(1 << 15),
            'P'.value(1),
            'W'.value(2),
            'U'.value(4),
            'F'.value(16),
            hex,
        ))
        .parse_next(input)
    };
    let some = separated_foldl1(part, '|', |all: u64, _, more| all | more);
    opt(some).map(Option::unwrap_or_default).parse_next(input)
}

fn fast_page_fault<'a>(input: &mut Input<'a>) -> ModalResult<Traced<'a>> {
    seq!(Traced::FastPageFault {
        _: "vcpu ", vcpu: dec,
        _: " gva ", gva: hex,
        _: " error_code ", error_code: error_code,
        _: (" sptep ", name),
        _: " old ", old: hex,
        _: " new ", new: hex,
        _: " spurious ", spurious: bit,
        _: " fixed ", fixed: bit,
    })
    .parse_next(input)
}

fn mark_mmio<'a>(input: &mut Input<'a>) -> ModalResult<Traced<'a>> {
    seq!(Traced::MarkMmio {
        _: ("sptep:", name),
        _: " gfn ", gfn: gfn,
        _: " access ", access: hex32,
        _: " gen ", generation: hex32,
    })
    .parse_next(input)
}

fn check_mmio<'a>(input: &mut Input<'a>) -> ModalResult<Traced<'a>> {
    seq!(Traced::CheckMmio {
        _: "spte ", spte: hex,
        _: " kvm_gen ", current: hex32,
        _: " spte-gen ", generation: hex32,
        _: " valid ", valid: bit,
    })
    .parse_next(input)
}

fn handle_mmio<'a>(input: &mut Input<'a>) -> ModalResult<Traced<'a>> {
    seq!(Traced::HandleMmio {
        _: "addr:", address: hex,
        _: " gfn ", gfn: gfn,
        _: " access ", access: hex32,
    })
    .parse_next(input)
}

fn split_huge_page<'a>(input: &mut Input<'a>) -> ModalResult<Traced<'a>> {
    seq!(Traced::SplitHugePage {
        _: "gfn ", gfn: gfn,
        _: " spte ", spte: hex,
        _: " level ", level: level,
        _: " errno ", errno: signed,
    })
    .parse_next(input)
}

fn zap_all_fast<'a>(input: &mut Input<'a>) -> ModalResult<Traced<'a>> {
    seq!(Traced::ZapAllFast {
        _: "kvm-mmu-valid-gen ", generation: dec,
        _: " used_pages ", used_pages: hex,
    })
    .parse_next(input)
}

fn page_fault<'a>(input: &mut Input<'a>) -> ModalResult<Traced<'a>> {
    seq!(Traced::PageFault {
        _: "vcpu ", vcpu: dec,
        _: " rip ", rip: hex,
        _: " address ", address: gpa,
        _: " error_code ", error_code: hex,
    })
    .parse_next(input)
}

fn unmap_hva_range<'a>(input: &mut Input<'a>) -> ModalResult<Traced<'a>> {
    seq!(Traced::UnmapHvaRange {
        _: "mmu notifier unmap range: ", start: hex,
        _: " -- ", end: hex,
    })
    .parse_next(input)
}

fn age_hva<'a>(input: &mut Input<'a>) -> ModalResult<Traced<'a>> {
    seq!(Traced::AgeHva {
        _: "mmu notifier age hva: ", start: hex,
        _: " -- ", end: hex,
    })
    .parse_next(input)
}

fn test_age_hva<'a>(input: &mut Input<'a>) -> ModalResult<Traced<'a>> {
    seq!(Traced::TestAgeHva {
        _: "mmu notifier test age hva: ", hva: hex,
    })
    .parse_next(input)
}

fn mmio<'a>(input: &mut Input<'a>) -> ModalResult<Traced<'a>> {
    seq!(Traced::Mmio {
        _: "mmio ", access: alt((
            "read".value(MmioAccess::Read),
            "unsatisfied-read".value(MmioAccess::UnsatisfiedRead),
            "write".value(MmioAccess::Write),
        )),
        _: " len ", len: dec,
        _: " gpa ", gpa: gpa,
        _: " val ", value: hex,
    })
    .parse_next(input)
}

fn set_accessed_bit<'a>(input: &mut Input<'a>) -> ModalResult<Traced<'a>> {
    seq!(Traced::SetAccessedBit { _: "gpa ", gpa: gpa }).parse_next(input)
}

fn set_dirty_bit<'a>(input: &mut Input<'a>) -> ModalResult<Traced<'a>> {
    seq!(Traced::SetDirtyBit { _: "gpa ", gpa: gpa }).parse_next(input)
}

fn smm_transition<'a>(input: &mut Input<'a>) -> ModalResult<Traced<'a>> {
    seq!(Traced::SmmTransition {
        _: "vcpu ", vcpu: dec,
        _: ": ", entering: alt(("entering".value(true), "leaving".value(false))),
        _: " SMM, smbase ", smbase: hex,
    })
    .parse_next(input)
}

fn nested_enter<'a>(input: &mut Input<'a>) -> ModalResult<Traced<'a>> {
    seq!(Traced::NestedEnter {
        _: "rip: ", rip: hex,
        _: alt((" vmcb: ", " vmcs: ")), control: gpa,
        _: " nested_rip: ", nested_rip: hex,
        _: " int_ctl: ", int_ctl: hex32,
        _: " event_inj: ", event_inj: hex32,
        _: alt((" nested_npt=", " nested_ept=")),
        nested_paging: alt(('y'.value(true), 'n'.value(false))),
        _: alt((" nested_cr3: ", " guest_cr3: ", " nested_eptp: ")), root: hex,
    })
    .parse_next(input)
}

fn nested_exit_inject<'a>(input: &mut Input<'a>) -> ModalResult<Traced<'a>> {
    seq!(Traced::NestedExitInject {
        _: "reason: ", reason: terminated(take_until(1.., " ext_inf1: "), " ext_inf1: "),
        info1: hex,
        _: " ext_inf2: ", info2: hex,
        _: rest,
    })
    .parse_next(input)
}

fn nested_exit<'a>(input: &mut Input<'a>) -> ModalResult<Traced<'a>> {
    seq!(Traced::NestedExit {
        _: "vcpu ", vcpu: dec,
        _: " reason ", reason: terminated(take_until(1.., " rip "), " rip "),
        rip: hex,
        _: " info1 ", info1: hex,
        _: " info2 ", info2: hex,
        _: " intr_info ", intr_info: hex32,
        _: " error_code ", error_code: hex32,
    })
    .parse_next(input)
}

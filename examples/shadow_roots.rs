//! Whose role a switch of CR3 goes by, and what a guest can do when it is the wrong one.
//!
//! A hypervisor (L1) with CR0.WP runs a nested guest (L2) without it, on the same tables and without nested paging. In L2 a
//! supervisor may write to read-only pages, so KVM's shadow of them is writable. When L2 exits, KVM loads L1's CR3 and tells the
//! MMU of L1's registers. A thread of February 2022 argued whether the switch should look for the MMU's own role or for one that
//! its caller passes in. Here are both, in both orders, with real shadow pages: what the audit says, and whether L1 can write to
//! its own read-only page.
//!
//! `cargo run --example shadow_roots`

use std::cell::Cell;
use std::error::Error;
use std::io::{self, Write};

use slat::memslot::{Gfn, Gva, Memory, PageSize, Profile, Region, Slot, SlotKey, VmType};
use slat::mmu::fault::{
    Backing, Env, FilePage, HostPage, Invalidation, Kind, MmioCache, NotTracked, Outcome, Present,
    Settings,
};
use slat::mmu::host::Host;
use slat::mmu::role::{CpuRole, Cr0, Cr4, Efer, PageRole, RoleLayout, VcpuMode, VcpuState};
use slat::mmu::roots::{FlushOnReuse, Pgd, Root, TdpMmu};
use slat::mmu::shadow::{
    GuestWalk, MarkedTrail, ResidentPages, Roots, ShadowFault, ShadowMmu, ShadowRoot, Shadowed,
    SwitchRole,
};
use slat::mmu::spte::{Access, Npt, Pfn, PfnKind};
use slat::mmu::tdp::{HardwareAccess, Unobserved};
use slat::mmu::walk::{ErrorCode, GuestCpu, GuestPaging, Pointers, Privilege, Unnested};

fn main() -> Result<(), Box<dyn Error>> {
    run(&mut io::stdout().lock())
}

/// The whole example, written to `out`.
pub(crate) fn run(out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    let orders = [
        ("role first, then CR3", Order::RoleFirst),
        ("CR3 first, then role", Order::Cr3First),
    ];
    for (policy, passes) in [("the MMU's role", false), ("the caller's role", true)] {
        for (name, order) in orders {
            let mut vm = Vm::new()?;
            vm.run_nested_guest();
            let reused = vm.exit_to_l1(order, passes);
            let found: Vec<String> = vm.audit();
            let audit = match found.is_empty() {
                true => "the audit is content".to_owned(),
                false => format!("the audit: {}", found.join(", ")),
            };
            let write = match vm.hardware(Kind::Write) {
                Ok(()) => "L1 writes to its read-only page",
                Err(_) => "L1's write faults",
            };
            let root = if reused { "a cached root" } else { "no root" };
            writeln!(out, "{policy}, {name}: {root} is found; {audit}; {write}")?;
        }
    }
    Ok(())
}

/// Which of the two steps of the exit comes first.
#[derive(Clone, Copy, Debug)]
enum Order {
    RoleFirst,
    Cr3First,
}

/// The top table, which L1 and L2 share; three more follow it.
const CR3: u64 = 0x1000;
/// A read-only page, at the same address everywhere.
const PAGE: u64 = 0x8000;
/// Entries: present, writable, user; accessed and dirty.
const LINK: u64 = 7;
const READ_ONLY: u64 = 0x65;

/// A VM with one vCPU on a host without two-dimensional paging.
struct Vm {
    mmu: ShadowMmu<Npt>,
    roots: Roots,
    state: VcpuState,
    memory: Memory,
    ram: Vec<Cell<u64>>,
}

impl Vm {
    fn new() -> Result<Self, Box<dyn Error>> {
        let profile = Profile::named("linux-6.12").ok_or("a known profile")?;
        let mut memory = Memory::new(profile, VmType::Default);
        let ram = Region::new(SlotKey::normal(0), 0, 0x10000, 0x7f00_0000_0000);
        let _created = memory.set_region(&ram)?;
        let words = vec![Cell::new(0); 0x10000 / 8];
        for table in [0, 0x1000, 0x2000] {
            words[((CR3 + table) / 8) as usize].set((CR3 + table + 0x1000) | LINK);
        }
        words[((CR3 + 0x3000 + (PAGE >> 12) * 8) / 8) as usize].set(PAGE | READ_ONLY);
        let state = registers(VcpuMode::Normal);
        let mut mmu = ShadowMmu::new(&Host::shadow(40), TdpMmu::Off);
        mmu.lock(Unobserved).set_limit(64)?;
        Ok(Self {
            mmu,
            roots: Roots::new(role(&state)),
            state,
            memory,
            ram: words,
        })
    }

    /// L1 reads the page, starts L2, and L2's supervisor writes to it.
    fn run_nested_guest(&mut self) {
        self.access(Kind::Read);
        self.state = registers(VcpuMode::Guest);
        self.roots.mmu.init(role(&self.state));
        self.load_cr3(SwitchRole::Mmus);
        self.access(Kind::Write);
    }

    /// L2 exits. Says whether L1 runs on a root that was cached.
    fn exit_to_l1(&mut self, order: Order, passes_role: bool) -> bool {
        self.state = registers(VcpuMode::Normal);
        let wanted = role(&self.state);
        let policy = match passes_role {
            true => SwitchRole::Callers(wanted),
            false => SwitchRole::Mmus,
        };
        match order {
            Order::RoleFirst => {
                self.roots.mmu.init(wanted);
                self.load_cr3(policy)
            }
            Order::Cr3First => {
                let reused = self.load_cr3(policy);
                self.roots.mmu.init(wanted);
                reused
            }
        }
    }

    fn load_cr3(&mut self, policy: SwitchRole) -> bool {
        let (pgd, flush) = (Pgd::new(CR3), FlushOnReuse::Off);
        let mut locked = self.mmu.lock(Unobserved);
        locked.new_pgd_as(&mut self.roots, pgd, policy, flush)
    }

    fn audit(&self) -> Vec<String> {
        let found = self.mmu.audit(&[&self.roots]);
        found.iter().map(ToString::to_string).collect()
    }

    /// What hardware makes of a supervisor's access to the page.
    fn hardware(&self, kind: Kind) -> Result<(), Present> {
        let root = self.roots.current(&self.mmu).unwrap_or(ShadowRoot::Dummy);
        let access = match kind {
            Kind::Read => Access::empty(),
            Kind::Write => Access::WRITE,
            Kind::Execute => Access::EXECUTE,
        };
        match self.mmu.hardware_access(root, PAGE, access) {
            HardwareAccess::Done { .. } => Ok(()),
            HardwareAccess::NotAllowed => Err(Present::Yes),
            HardwareAccess::NotPresent | HardwareAccess::Mmio { .. } => Err(Present::No),
        }
    }

    /// Accesses the page until it is done.
    fn access(&mut self, kind: Kind) {
        for _ in 0..4 {
            self.load_root();
            let Err(present) = self.hardware(kind) else {
                return;
            };
            let _outcome = self.fault(kind, present);
        }
    }

    fn paging(&self) -> GuestPaging {
        GuestPaging::new(&self.state, &GuestCpu::new(40))
    }

    fn load_root(&mut self) {
        if self.roots.mmu.cache().current() != Root::None {
            return;
        }
        let paging = self.paging();
        let guest = shadowed(&paging, &self.ram, &self.memory, self.roots.mmu.role());
        let mut locked = self.mmu.lock(Unobserved);
        // A VM with so few pages has room for a root.
        let _ = locked.load_shadow(&mut self.roots, Pointers::default(), &guest);
    }

    fn fault(&mut self, kind: Kind, present: Present) -> Option<Outcome> {
        let (paging, tables) = (self.paging(), self.ram.as_slice());
        let mut trail = MarkedTrail::default();
        let wanted = ErrorCode::of(kind, Privilege::Supervisor);
        let address = Gva::new(PAGE);
        let walked = paging.walk(tables, &mut Unnested, &mut trail, address, wanted);
        let found = walked.ok()?;
        let walk = GuestWalk {
            trail: &trail,
            found: &found,
        };
        let guest = shadowed(&paging, tables, &self.memory, self.roots.mmu.role());
        let fault = ShadowFault {
            address: PAGE,
            kind,
            privilege: Privilege::Supervisor,
            present,
        };
        let mut env = Env {
            memory: &self.memory,
            backing: &mut Line,
            invalidation: &Invalidation::default(),
            settings: Settings::default(),
            mmio: &mut MmioCache::default(),
            shadow: NotTracked,
        };
        let (roots, of) = (&mut self.roots, (&walk, &guest));
        let handled = self
            .mmu
            .shadow_page_fault(roots, &fault, of, &mut env, &mut Unobserved);
        Some(handled.outcome)
    }
}

fn shadowed<'g>(
    paging: &'g GuestPaging,
    tables: &'g [Cell<u64>],
    memory: &'g Memory,
    role: PageRole,
) -> Shadowed<'g, [Cell<u64>]> {
    let settings = Settings::default();
    Shadowed {
        paging,
        tables,
        memory,
        settings,
        role,
    }
}

/// Long mode. Only L1 has CR0.WP.
fn registers(mode: VcpuMode) -> VcpuState {
    let wp = match mode {
        VcpuMode::Guest => Cr0::empty(),
        _ => Cr0::WP,
    };
    VcpuState {
        cr0: Cr0::PE | Cr0::PG | wp,
        cr3: CR3,
        cr4: Cr4::PAE,
        efer: Efer::LME | Efer::LMA | Efer::NX,
        mode,
        ..VcpuState::default()
    }
}

fn role(state: &VcpuState) -> PageRole {
    CpuRole::of(state, RoleLayout::Baseline).shadow_root_role()
}

/// Host pages follow guest frames in a line.
struct Line;

impl Line {
    fn pfn(gfn: Gfn) -> Pfn {
        Pfn::new(0x10_0000 + gfn.raw())
    }
}

impl Backing for Line {
    fn host_page(&mut self, _: &Slot, gfn: Gfn, _: bool) -> HostPage {
        HostPage::Page {
            pfn: Self::pfn(gfn),
            size: PageSize::Size4K,
            writable: true,
            kind: PfnKind::Memory,
        }
    }

    fn file_page(&mut self, _: &Slot, _: Gfn) -> FilePage {
        FilePage::Bad
    }
}

impl ResidentPages for Line {
    fn resident_page(&mut self, _: &Slot, gfn: Gfn) -> Option<(Pfn, PfnKind)> {
        Some((Self::pfn(gfn), PfnKind::Memory))
    }
}

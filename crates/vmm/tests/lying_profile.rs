//! A differential run notices every wrong fact of a profile that this kind of host can show.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use slat_memslot::{Errno, GmemFlags, Profile, Quirks};
use slat_vmm::differential::{Config, compare};
use slat_vmm::{Areas, CallError, Machine, model};

/// A machine that says something wrong about itself, so that the model is built from the wrong fact.
struct Liar<'m, M> {
    machine: &'m mut M,
    profile: Profile,
}

impl<M: Machine> Machine for Liar<'_, M> {
    type Vm = M::Vm;

    fn profile(&self) -> &Profile {
        &self.profile
    }

    fn areas(&self) -> Areas {
        self.machine.areas()
    }

    fn create_vm(&mut self, vm_type: u32) -> Result<M::Vm, CallError> {
        self.machine.create_vm(vm_type)
    }
}

type Lie = (&'static str, fn(&mut Profile));

/// Facts of a host with shadow paging, each turned into its opposite.
const LIES: [Lie; 14] = [
    ("region2", |p| p.region2.set(false)),
    ("guest_memfd", |p| p.guest_memfd.set(false)),
    ("gmem_needs_private_memory", |p| {
        p.gmem_needs_private_memory.set(true);
    }),
    ("gmem_flags", |p| p.gmem_flags.set(GmemFlags::MMAP)),
    ("gmem_bind_conflict", |p| {
        p.gmem_bind_conflict.set(Errno::EEXIST)
    }),
    ("gmem_noexec", |p| p.gmem_noexec.set(false)),
    ("gmem_signed_offsets", |p| p.gmem_signed_offsets.set(false)),
    ("attributes", |p| p.attributes.set(true)),
    ("quirks", |p| {
        p.quirks.set(p.quirks.get() | Quirks::IGNORE_GUEST_PAT)
    }),
    ("dirty_ring", |p| p.dirty_ring.set(false)),
    ("pre_fault", |p| p.pre_fault.set(false)),
    ("smm", |p| p.smm.set(true)),
    ("maxphyaddr", |p| {
        p.tdp.set(true);
        p.tdp_mmu.set(true);
        p.maxphyaddr.set(46);
    }),
    ("user_end", |p| p.user_end.set(0x7fff_ffff_e000)),
];

fn every_lie_is_found(machine: &mut impl Machine) {
    for (fact, lie) in LIES {
        let mut profile = machine.profile().clone();
        lie(&mut profile);
        let mut liar = Liar { machine, profile };
        let config = Config {
            seed: 11,
            calls: 100_000,
            ..Config::default()
        };
        let outcome = compare(&mut liar, &config, |_| {}).unwrap();
        let finding = outcome
            .finding
            .unwrap_or_else(|| panic!("{fact}: nobody noticed"));
        let shrunk = finding.scenario.steps.len();
        println!(
            "{fact}: found after {} calls, shrunk to {shrunk} lines",
            outcome.stats.calls
        );
    }
}

#[test]
fn the_model_finds_every_lie_about_a_model() {
    let profile = Profile::named("linux-6.18.44-pvm").unwrap();
    every_lie_is_found(&mut model::Machine::new(profile));
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[test]
fn the_model_finds_every_lie_about_the_live_kernel() {
    match slat_vmm::kvm::Machine::open() {
        Ok(machine) if machine.profile().tdp.get() => {
            println!("skipped: the lies are about a host without TDP");
        }
        Ok(mut machine) => every_lie_is_found(&mut machine),
        Err(error) => println!("skipped: {error}"),
    }
}

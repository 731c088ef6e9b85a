//! The repair oracle notices wrong reasons, though every error number is right.
//!
//! On the live kernel where there is one; else the model of another process stands in for it, since what is tested
//! here is the oracle, not the kernel.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use slat_memslot::{DirtyLogError, Profile, Reason, RegionError};
use slat_vmm::differential::{Config, Difference, Planted, WrongReason, compare};
use slat_vmm::{Machine, model};

fn config(planted: Option<Planted>) -> Config {
    Config {
        seed: 7,
        calls: 200_000,
        oracle_every: 4,
        planted,
        ..Config::default()
    }
}

/// The wrong reason that is found, after being shrunk.
fn caught_by<K: Machine>(kernel: &mut K, planted: Planted) -> WrongReason {
    let outcome = compare(kernel, &config(Some(planted)), |_| {}).unwrap();
    let finding = outcome.finding.unwrap();
    println!(
        "{} calls, then shrunk from {}:\n{}",
        outcome.stats.calls, finding.original_calls, finding.scenario
    );
    println!("{}\n", finding.difference);
    match finding.difference {
        Difference::Reason(wrong) => *wrong,
        Difference::Answer(divergence) => panic!("the answers themselves differ: {divergence}"),
    }
}

/// An unaligned guest address is blamed on the size.
fn gpa_for_size(reason: Reason) -> Reason {
    match reason {
        Reason::Region(RegionError::GpaUnaligned { gpa }) => {
            RegionError::SizeUnaligned { size: gpa }.into()
        }
        other => other,
    }
}

/// A changed size is blamed on the host address.
fn size_for_hva(reason: Reason) -> Reason {
    match reason {
        Reason::Region(RegionError::SizeChanged { slot, .. }) => RegionError::HvaChanged {
            slot,
            old: 0x7000_0000_0000,
            new: 0,
        }
        .into(),
        other => other,
    }
}

/// A range that ends inside a word of the bitmap is said to start inside one.
fn end_for_start(reason: Reason) -> Reason {
    match reason {
        Reason::DirtyLog(DirtyLogError::ClearPartial { first_page, .. }) => {
            DirtyLogError::FirstPage { first_page }.into()
        }
        other => other,
    }
}

/// A host address that is not page aligned is said to lie outside user space.
fn unaligned_for_outside(reason: Reason) -> Reason {
    match reason {
        Reason::Region(RegionError::HvaUnaligned { hva }) => RegionError::HvaNotUser {
            hva,
            size: 0x1000,
            limit: 0x7fff_ffff_f000,
        }
        .into(),
        other => other,
    }
}

fn plants_are_caught<K: Machine>(kernel: &mut K) {
    for (name, planted, code) in [
        ("gpa for size", gpa_for_size as Planted, "size-unaligned"),
        ("size for hva", size_for_hva, "hva-changed"),
        ("end for start", end_for_start, "clear-first-page"),
        (
            "unaligned for outside",
            unaligned_for_outside,
            "hva-not-user",
        ),
    ] {
        println!("planted: {name}");
        assert_eq!(caught_by(kernel, planted).reason.code(), code);
    }
    let honest = compare(kernel, &config(None), |_| {}).unwrap();
    assert!(
        honest.finding.is_none(),
        "{}",
        honest.finding.unwrap().difference
    );
}

#[test]
fn planted_reasons_are_caught_on_a_model() {
    plants_are_caught(&mut model::Machine::new(
        Profile::named("linux-6.18.44-pvm").unwrap(),
    ));
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[test]
fn planted_reasons_are_caught_on_the_live_kernel() {
    match slat_vmm::kvm::Machine::open() {
        Ok(mut machine) => plants_are_caught(&mut machine),
        Err(error) => println!("skipped: {error}"),
    }
}

/// Every profile's model agrees with itself, and every one of its reasons is confirmed by its own repairs.
#[test]
fn every_profile_is_consistent() {
    for name in Profile::names() {
        let mut machine = model::Machine::new(Profile::named(name).unwrap());
        let outcome = compare(
            &mut machine,
            &Config {
                calls: 30_000,
                ..config(None)
            },
            |_| {},
        )
        .unwrap();
        if let Some(finding) = outcome.finding {
            panic!("{name}: {}\n{}", finding.difference, finding.scenario);
        }
        println!(
            "{name}: {} reasons confirmed",
            outcome.stats.confirmed.len()
        );
    }
}

//! Random programs on the kernel that this runs on, each event predicted.
//!
//! `SLAT_PROGRAMS` and `SLAT_SEED` choose how many and which. Needs a kernel with the TDP MMU and its events.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
use slat_vmm::live::{Abilities, Areas, DriveError, Driver, Program, Trace};
use slat_vmm::replay::{Machine, Verdict, predict};
use slat_vmm::traces::Recording;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

#[test]
fn random_programs() {
    let mut trace = match Trace::start() {
        Ok(trace) => trace,
        Err(error) => {
            println!("skipped: {error}");
            return;
        }
    };
    let abilities = Abilities {
        private_memory: true,
        smm: true,
        pre_fault: true,
    };
    let (programs, seed) = (number("SLAT_PROGRAMS", 3), number("SLAT_SEED", 1));
    let machine =
        Machine::named(&std::env::var("SLAT_MACHINE").unwrap_or_else(|_| "npt-l4".to_owned()))
            .unwrap();
    let (mut events, mut failed, mut left_out) = (0, 0, 0);
    for seed in seed..seed + programs {
        let program = Program::random(seed, 60, abilities);
        let areas = Areas::map(&program.areas).unwrap();
        let mut driver = Driver::new(areas, trace).unwrap();
        for op in &program.ops {
            match driver.run(op) {
                Ok(()) => {}
                // The kernel has refused what it needs.
                Err(DriveError::Missing { .. }) => left_out += 1,
                Err(error) => panic!("seed {seed}: {error}"),
            }
        }
        trace = driver.into_journal();
        let text = trace.take().unwrap();
        if std::path::Path::new("/out").is_dir() {
            std::fs::write(format!("/out/{seed}.txt"), &text).unwrap();
        }
        let recording = match Recording::parse(&text) {
            Ok(recording) => recording,
            Err(error) => {
                println!("seed {seed}: {error}");
                failed += 1;
                continue;
            }
        };
        match predict(&recording, &machine) {
            Verdict::Agrees { compared, .. } => events += compared,
            Verdict::Differs {
                compared,
                difference,
            } => {
                failed += 1;
                println!("seed {seed}, after {compared} events: {difference}");
            }
            Verdict::NotModelled(missing) => {
                failed += 1;
                println!("seed {seed}: {missing}");
            }
        }
    }
    println!(
        "{programs} programs, {events} events as predicted, {failed} differ, {left_out} operations left out"
    );
    assert_eq!(failed, 0);
}

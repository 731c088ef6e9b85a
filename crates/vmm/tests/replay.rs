//! Recordings of kernels with the TDP MMU, predicted from their operations.

use slat_vmm::replay::{Machine, Verdict, predict};
use slat_vmm::traces::{self, Recording};

#[test]
fn status() {
    let only = std::env::var("ONLY").unwrap_or_default();
    for name in Machine::NAMES {
        let machine = Machine::named(name).unwrap();
        for one in traces::Machine::named(name).unwrap().recordings() {
            let full = format!("{name}/{}", one.scenario);
            if !full.contains(&only) { continue; }
            let recording = Recording::parse(one.text()).unwrap();
            match predict(&recording, &machine) {
                Verdict::Agrees { compared } => println!("OK   {full} {compared}"),
                Verdict::Differs { compared, difference } => {
                    println!("DIFF {full} {compared} {}", if only.is_empty() { difference.to_string().lines().next().unwrap().to_owned() } else { difference.to_string() });
                }
                Verdict::NotModelled(n) => println!("N/A  {full} {n}"),
            }
        }
    }
}

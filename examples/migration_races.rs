//! The races of SEV live migration, as the kvm list found them in 2021: which rule prevents which.
//!
//! A guest tells its VMM which pages are private (`KVM_HC_MAP_GPA_RANGE`), and the VMM sends each page by what it was told. Three
//! rules make that safe. Leave one out, and a checker finds the shortest schedule that sends a page as what it is not.
//!
//! `cargo run --example migration_races`

use std::error::Error;
use std::io::{self, Write};

use slat::coco::migration::{Rule, Rules, Setting, Technology, Verdict, check};

fn main() -> Result<(), Box<dyn Error>> {
    run(&mut io::stdout().lock())
}

/// The whole example, written to `out`.
pub(crate) fn run(out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    for rule in [Rule::AnnounceFirst, Rule::DirtyBeforeList, Rule::DataLost] {
        let rules = Rules::default().with(rule, false);
        let setting = Setting {
            rules,
            ..Setting::default()
        };
        if let Verdict::Broken(broken) = check(&setting)? {
            writeln!(out, "# not kept: {}\n{}\n", rule.meaning(), broken.schedule)?;
        }
    }
    for technology in Technology::ALL {
        let setting = Setting {
            technology,
            ..Setting::default()
        };
        if let Verdict::Safe(explored) = check(&setting)? {
            let (name, states) = (technology.name(), explored.states);
            writeln!(
                out,
                "{name}, all rules kept: no page is lost in {states} states"
            )?;
        }
    }
    Ok(())
}

//! The catalogue of reasons, and the kernels.

use std::process::ExitCode;

use serde_json::{Value, json};
use slat_memslot::{Profile, catalogue};

use super::print;
use crate::{Error, kernel, table};

pub(super) fn reasons(as_json: bool) -> Result<ExitCode, Error> {
    if as_json {
        let all: Vec<Value> = catalogue()
            .map(|(family, info)| json!({ "family": family, "reason": info }))
            .collect();
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(ExitCode::SUCCESS);
    }
    let mut reasons = table::plain(["family", "reason", "error", "kernel", "since"]);
    for (family, info) in catalogue() {
        reasons.add_row([
            family.to_owned(),
            info.code.to_owned(),
            info.errno.to_string(),
            info.site.to_owned(),
            info.since.to_owned(),
        ]);
    }
    println!("{reasons}");
    Ok(ExitCode::SUCCESS)
}

pub(super) fn profiles(name: Option<&str>, as_json: bool) -> Result<ExitCode, Error> {
    match name {
        Some(name) => profile(&kernel::named(name)?, as_json),
        None if as_json => {
            let names: Vec<&str> = Profile::names().collect();
            println!("{}", serde_json::to_string_pretty(&names)?);
            Ok(ExitCode::SUCCESS)
        }
        None => {
            Profile::names().for_each(|name| println!("{name}"));
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn profile(profile: &Profile, as_json: bool) -> Result<ExitCode, Error> {
    if as_json {
        let facts: Vec<Value> = profile
            .facts()
            .into_iter()
            .map(|(name, value, evidence)| print::fact(&(name, value, evidence.clone())))
            .collect();
        let whole = json!({ "name": profile.name, "facts": facts });
        println!("{}", serde_json::to_string_pretty(&whole)?);
        return Ok(ExitCode::SUCCESS);
    }
    let mut facts = table::plain(["fact", "value", "evidence"]);
    for (name, value, evidence) in profile.facts() {
        facts.add_row([name.to_owned(), value, evidence.to_string()]);
    }
    println!("{facts}");
    Ok(ExitCode::SUCCESS)
}

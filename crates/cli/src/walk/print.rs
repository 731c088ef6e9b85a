//! The ladder, as text and as JSON.

use slat_memslot::Gpa;
use slat_mmu::walk::{Dimension, GuestPaging, Reference};

use super::{Args, Asked, Walked};
use crate::Error;

pub(super) fn text(args: &Args, paging: &GuestPaging, walked: &Walked, asked: Option<Asked>) {
    println!(
        "{} of {:#x}, {} paging, root {:#x}",
        describe(args),
        args.address,
        paging.mode(),
        paging.root()
    );
    for (number, reference) in (1..).zip(walked.ladder.references()) {
        println!("{}", line(number, &reference));
    }
    match &walked.end {
        Ok(found) => println!(
            "{:#x} -> {:#x}, {} page, rights {}{}",
            args.address,
            found.address,
            found.size,
            found.rights,
            match found.key {
                0 => String::new(),
                key => format!(", protection key {key}"),
            }
        ),
        Err(fault) => println!("{fault}"),
    }
    if let Some(exit) = walked.exit {
        println!("as KVM tells it to the hypervisor: {exit}");
    }
    if let Some(live) = &walked.live {
        println!("the guest: {}", live.ended);
        println!(
            "the second stage: {}, {} levels",
            live.second, live.second_levels
        );
    }
    if let Some((kernel, model)) = asked {
        let verdict = if kernel == model {
            "as the model"
        } else {
            "the model says otherwise"
        };
        println!("KVM_TRANSLATE: {}, {verdict}", answer(kernel));
        if kernel != model {
            println!("the model: {}", answer(model));
        }
    }
}

fn describe(args: &Args) -> String {
    let kind = match (args.write, args.fetch) {
        (true, _) => "write",
        (_, true) => "fetch",
        _ => "read",
    };
    let who = match (args.user, args.implicit) {
        (true, _) => "user",
        (_, true) => "implicit",
        _ => "supervisor",
    };
    format!("{who} {kind}")
}

fn line(number: u32, reference: &Reference) -> String {
    // The guest's own entries stand out to the left.
    let indent = match reference.dimension {
        Dimension::Guest => "",
        Dimension::Nested => "  ",
        Dimension::Second => "    ",
    };
    let place = match reference.place {
        Some(place) => format!("{place:#x}"),
        None => "register".to_owned(),
    };
    let marked = match reference.marked {
        Some(new) => format!(", marked {new:#x}"),
        None => String::new(),
    };
    format!(
        "{number:3} {indent}{} L{} at {place}: {:#x}, rights {}{marked}",
        reference.dimension, reference.level as u8, reference.entry, reference.rights
    )
}

fn answer(gpa: Option<Gpa>) -> String {
    gpa.map_or("not valid".to_owned(), |gpa| format!("{gpa:#x}"))
}

pub(super) fn json(
    args: &Args,
    paging: &GuestPaging,
    walked: &Walked,
    asked: Option<Asked>,
) -> Result<(), Error> {
    let references: Vec<_> = walked
        .ladder
        .references()
        .iter()
        .map(reference_json)
        .collect();
    let found = walked.end.as_ref().ok();
    let value = serde_json::json!({
        "access": describe(args),
        "address": format!("{:#x}", args.address),
        "mode": paging.mode().to_string(),
        "references": references,
        "gpa": found.map(|found| format!("{:#x}", found.gpa)),
        "translation": found.map(|found| format!("{:#x}", found.address)),
        "size": found.map(|found| found.size.to_string()),
        "rights": found.map(|found| found.rights.to_string()),
        "fault": walked.end.as_ref().err(),
        "exit": walked.exit.map(|exit| exit.to_string()),
        "kernel": asked.map(|(kernel, _)| answer(kernel)),
        "agrees": asked.map(|(kernel, model)| kernel == model),
        "guest": walked.live.as_ref().map(|live| &live.ended),
        "second_stage": walked.live.as_ref().map(|live| &live.second),
        "second_levels": walked.live.as_ref().map(|live| live.second_levels),
    });
    println!("{}", serde_json::to_string_pretty(&value)?);
    Ok(())
}

fn reference_json(reference: &Reference) -> serde_json::Value {
    serde_json::json!({
        "dimension": reference.dimension.to_string(),
        "level": reference.level as u8,
        "place": reference.place.map(|place| format!("{place:#x}")),
        "entry": format!("{:#x}", reference.entry),
        "rights": reference.rights.to_string(),
        "marked": reference.marked.map(|new| format!("{new:#x}")),
    })
}

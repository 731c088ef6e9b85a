//! Dumps and differences as JSON. Frames are numbers; what is a word in the text is the same word here.

use std::fmt::Display;

use serde_json::{Value, json};
use slat_mmu::role::RoleLayout;
use slat_mmu::spte::Leaf;
use slat_mmu::tdp::dump::{
    Content, Diff, Dump, Range, RawTable, Root, RootDiff, access_letters, ad_word, memory_word,
};
use slat_vmm::tables::Step;

pub(crate) fn dump(dump: &Dump) -> Value {
    let text = Dump {
        roots: Vec::new(),
        ..dump.clone()
    };
    json!({
        "header": text.to_string().trim_end(),
        "maxphyaddr": dump.host.maxphyaddr,
        "levels": dump.host.max_level as u8,
        "roots": dump.roots.iter().map(root).collect::<Vec<_>>(),
    })
}

pub(super) fn event(step: &Step, event: &dyn Display) -> Value {
    json!({ "line": step.line, "step": step.text, "event": event.to_string() })
}

fn root(root: &Root) -> Value {
    let mut value = head(root);
    value["ranges"] = root.ranges.iter().map(range).collect();
    if !root.entries.is_empty() {
        value["tables_raw"] = root.entries.iter().map(raw).collect();
    }
    value
}

/// A root without what it maps.
fn head(root: &Root) -> Value {
    let word = |layout| root.role.fits(layout).then(|| root.role.word(layout));
    json!({
        "root": root.number.to_string(),
        "valid": !root.role.is_invalid(),
        "references": root.references,
        "role": {
            "baseline": word(RoleLayout::Baseline),
            "mirror": word(RoleLayout::Mirror),
            "mbec": word(RoleLayout::Mbec),
            "text": format!("{:#}", root.role),
        },
        "tables": root.tables,
    })
}

fn range(range: &Range) -> Value {
    let mut value = match &range.content {
        Content::Leaf(leaf) => page(leaf),
        Content::Mmio {
            gfn,
            access,
            generation,
        } => json!({
            "kind": "mmio",
            "generation": generation.raw(),
            "access": access_letters(*access),
            "gfn": gfn.raw(),
        }),
        Content::Frozen => json!({ "kind": "frozen" }),
    };
    value["start"] = range.frames.start().raw().into();
    value["end"] = range.frames.end().raw().into();
    value["level"] = (range.level as u8).into();
    value
}

fn page(leaf: &Leaf) -> Value {
    json!({
        "kind": "leaf",
        "access": access_letters(leaf.allowed()),
        "pfn": leaf.pfn.raw(),
        "host_writable": leaf.writability.host,
        "mmu_writable": leaf.writability.mmu,
        "accessed": leaf.accessed,
        "dirty": leaf.dirty,
        "memory": memory_word(&leaf.memory),
        "ad": ad_word(leaf.ad),
        "saved": (!leaf.saved.is_empty()).then(|| access_letters(leaf.saved)),
        "encrypted": leaf.encrypted,
    })
}

fn raw(table: &RawTable) -> Value {
    let entry = |(index, raw): &(u16, u64)| json!([index, format!("{raw:#x}")]);
    json!({
        "table": table.table,
        "level": table.level as u8,
        "gfn": table.gfn.raw(),
        "entries": table.entries.iter().map(entry).collect::<Vec<_>>(),
    })
}

pub(super) fn diff(diff: &Diff) -> Value {
    json!({
        "equal": diff.is_empty(),
        "other_host": diff.host.is_some(),
        "roots": diff.roots.iter().map(root_diff).collect::<Vec<_>>(),
    })
}

fn root_diff(diff: &RootDiff) -> Value {
    let ranges = |ranges: &[Range]| ranges.iter().map(range).collect::<Vec<_>>();
    json!({
        "old": diff.old.as_ref().map(head),
        "new": diff.new.as_ref().map(head),
        "removed": ranges(&diff.removed),
        "added": ranges(&diff.added),
    })
}

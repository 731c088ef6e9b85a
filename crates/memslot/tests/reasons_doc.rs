//! `docs/reasons.md` is the catalogue, written out. `SLAT_BLESS=1` writes it anew.

use std::fmt::Write;
use std::path::Path;

use slat_memslot::{ReasonInfo, catalogue};

const HEAD: &str = "\
# Reasons

Every reason why KVM refuses a call of its memory interface, by family, in the order in which the kernel tests.
The code names the reason in scenario files and in the output of the tools. Braces stand for the offending values.

This file is generated from the catalogue of `slat-memslot`; `SLAT_BLESS=1 cargo test -p slat-memslot` rewrites it.
";

/// What a family's calls are.
fn title(family: &str) -> &'static str {
    match family {
        "Gate" => "Before every VM and vCPU ioctl",
        "Region" => "KVM_SET_USER_MEMORY_REGION, KVM_SET_USER_MEMORY_REGION2",
        "Gmem" => "KVM_CREATE_GUEST_MEMFD",
        "File" => "System calls on a guest_memfd",
        "Map" => "System calls on a mapping of a guest_memfd",
        "Attributes" => "KVM_SET_MEMORY_ATTRIBUTES",
        "DirtyLog" => "KVM_GET_DIRTY_LOG, KVM_CLEAR_DIRTY_LOG",
        "DirtyRing" => "Dirty rings",
        "Cap" => "KVM_ENABLE_CAP",
        "PreFault" => "KVM_PRE_FAULT_MEMORY",
        "Vm" => "Other VM ioctls that touch the memory layout",
        other => panic!("the family {other} needs a title"),
    }
}

/// The meaning, with the names of values but without their formats.
fn meaning(info: &ReasonInfo) -> String {
    let text = info.text.replace(":#x}", "}").replace(":?}", "}");
    text.replace('|', "\\|")
}

fn document() -> String {
    let mut text = HEAD.to_owned();
    let mut current = "";
    for (family, info) in catalogue() {
        if family != current {
            current = family;
            let title = title(family);
            write!(
                text,
                "\n## {title}\n\n\
                | reason | errno | kernel function | since, until | meaning |\n\
                | --- | --- | --- | --- | --- |\n"
            )
            .expect("a string takes any text");
        }
        writeln!(
            text,
            "| `{}` | {} | `{}` | {} | {} |",
            info.code,
            info.errno,
            info.site,
            info.since,
            meaning(info)
        )
        .expect("a string takes any text");
    }
    text
}

#[test]
fn the_document_is_the_catalogue() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let docs = workspace.join("docs");
    // A vendored copy of the crate may lie two folders below somebody else's documents.
    if !docs.is_dir() || !workspace.join("crates/memslot").is_dir() {
        println!("skipped: {} is not the workspace's", docs.display());
        return;
    }
    let path = docs.join("reasons.md");
    let expected = document();
    if std::env::var_os("SLAT_BLESS").is_some_and(|value| value == "1") {
        std::fs::write(&path, &expected).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = found.lines().zip(expected.lines()).find(|(a, b)| a != b);
    assert!(
        found == expected,
        "{} is not what the catalogue says; SLAT_BLESS=1 rewrites it; first difference: {differs:?}",
        path.display()
    );
}

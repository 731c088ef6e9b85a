//! `docs/reasons.md` is the catalogue, written out. `SLAT_BLESS=1` writes it anew.

mod generated;

use std::fmt::Write;

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
    generated::assert_is("reasons.md", &document(), "the catalogue says");
}

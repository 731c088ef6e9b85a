//! Whether two differences are of one sort, so that a program that is made shorter still shows the one it was made shorter for.

use core::mem::{Discriminant, discriminant};

use crate::traces::{Difference, Mismatch};

/// A difference without its numbers: what was being done, which events do not agree, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sort {
    operation: String,
    recorded: String,
    predicted: String,
    mismatch: (Discriminant<Mismatch>, Option<&'static str>),
}

impl Sort {
    pub(super) fn of(difference: &Difference) -> Self {
        let operation = difference.operation.as_ref();
        let event = |text: &Option<String>| text.as_deref().map(event).unwrap_or_default();
        let field = match difference.mismatch {
            Mismatch::Field(field) | Mismatch::Shape(field) => Some(field),
            _ => None,
        };
        Self {
            operation: operation.map(|(_, text)| names(text)).unwrap_or_default(),
            recorded: event(&difference.recorded),
            predicted: event(&difference.predicted),
            mismatch: (discriminant(&difference.mismatch), field),
        }
    }
}

/// The words of an operation that say what it is.
fn names(text: &str) -> String {
    let is_value =
        |word: &str| word.contains('=') || word.starts_with(|c: char| c.is_ascii_digit());
    let words = text.split_whitespace().filter(|word| !is_value(word));
    words.collect::<Vec<_>>().join(" ")
}

/// An event by its name; a note by its first word too.
fn event(text: &str) -> String {
    let mut words = text.split_whitespace();
    let first = words.next().unwrap_or_default();
    match first {
        "NOTE" => format!("NOTE {}", words.next().unwrap_or_default()),
        name => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{event, names};

    #[test]
    fn values_do_not_count() {
        let write = "OP guest vcpu=0 WRITE gpa=0x400000";
        assert_eq!(names(write), "OP guest WRITE");
        assert_eq!(
            names("OP guest vcpu=1 writes 12 pages from gpa=0x1000"),
            "OP guest writes pages from"
        );
        assert_eq!(names("OP madvise FREE gfn=400 npages=2"), "OP madvise FREE");
        let region = "OP KVM_SET_USER_MEMORY_REGION2 slot=1 as=0";
        assert_eq!(names(region), "OP KVM_SET_USER_MEMORY_REGION2");
        let changed = "  kvm_tdp_mmu_spte_changed: as id 0 gfn 400 level 1";
        assert_eq!(event(changed), "kvm_tdp_mmu_spte_changed:");
        assert_eq!(event("NOTE exit HLT"), "NOTE exit");
        assert_eq!(event("RET -1 EINVAL"), "RET");
    }
}

//! What the model does not have.

use core::fmt;

use slat_mmu::host::SecondStage;

use super::Machine;
use crate::traces::{GuestAct, Item, Op, Recording, Sregs, What};

/// An operation that cannot be predicted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotModelled {
    /// Its line; 0 if it is the whole machine.
    pub line: u32,
    /// What it needs.
    pub what: String,
}

impl fmt::Display for NotModelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{} is not modelled", self.what),
            line => write!(f, "line {line}: {} is not modelled", self.what),
        }
    }
}

/// The first such operation of a recording, or that its operations are not there.
pub(super) fn first(recording: &Recording<'_>, machine: &Machine) -> Option<NotModelled> {
    let happens = |item: &&Item<'_>| !matches!(item.what, What::Note(_));
    let begin = recording.items.iter().find(happens);
    if let Some(item) = begin.filter(|item| !matches!(item.what, What::Op(_))) {
        return Some(NotModelled {
            line: item.line,
            what: "what happened before the recording begins".to_owned(),
        });
    }
    recording.items.iter().find_map(|item| {
        let What::Op(op) = &item.what else {
            return None;
        };
        missing(op, machine).map(|what| NotModelled {
            line: item.line,
            what,
        })
    })
}

/// The most pages that a guest may write to in one go.
const MOST_PAGES: u64 = 1 << 16;

fn missing(op: &Op<'_>, machine: &Machine) -> Option<String> {
    let two_stages = machine.host.second_stage != SecondStage::Off;
    match op {
        Op::Guest { act, .. } => match act {
            GuestAct::WritePages { pages, .. } if *pages > MOST_PAGES => {
                Some(format!("a guest that writes {pages} pages"))
            }
            GuestAct::Execution { .. } if two_stages => {
                Some("a guest's own tables beside a second stage".to_owned())
            }
            GuestAct::Other(text) => Some(text.to_string()),
            _ => None,
        },
        Op::SetSregs {
            sregs: Sregs::Other(text),
            ..
        } => Some((*text).to_owned()),
        Op::ModuleParameter { name, .. } => {
            let known = ["eager_page_split", "nx_huge_pages"].contains(name);
            (!known).then(|| format!("parameter {name}"))
        }
        Op::Other(text) => Some((*text).to_owned()),
        _ => None,
    }
}

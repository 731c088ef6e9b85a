//! A schedule in two columns, as the kvm list writes races.

use core::fmt;

use super::guest::GuestOp;
use super::host::HostOp;
use super::page::Status;

/// Who takes a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor {
    /// A vCPU.
    Guest {
        /// Whether it runs at the destination.
        has_moved: bool,
    },
    /// The VMM.
    Vmm,
}

/// One line of a schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Who takes it.
    pub actor: Actor,
    what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    Guest(usize, GuestOp),
    /// With the pages that are sent, and as what.
    Host(HostOp, Vec<(usize, Status)>),
}

impl Step {
    pub(super) const fn guest(actor: Actor, page: usize, op: GuestOp) -> Self {
        Self {
            actor,
            what: What::Guest(page, op),
        }
    }

    pub(super) const fn host(op: HostOp, sent: Vec<(usize, Status)>) -> Self {
        Self {
            actor: Actor::Vmm,
            what: What::Host(op, sent),
        }
    }

    /// The guest's step and its page, if it is one of the guest.
    pub const fn guest_op(&self) -> Option<(usize, GuestOp)> {
        match self.what {
            What::Guest(page, op) => Some((page, op)),
            What::Host(..) => None,
        }
    }

    /// The VMM's step, if it is one of the VMM.
    pub const fn host_op(&self) -> Option<HostOp> {
        match self.what {
            What::Host(op, _) => Some(op),
            What::Guest(..) => None,
        }
    }

    /// The pages that the step sends, and as what.
    pub fn sent(&self) -> &[(usize, Status)] {
        match &self.what {
            What::Host(_, sent) => sent,
            What::Guest(..) => &[],
        }
    }

    /// The line, pages being named where there are several.
    pub fn text(&self, pages: usize) -> String {
        let name = |page: usize| match pages {
            1 => String::new(),
            _ => format!(" page {page}"),
        };
        match &self.what {
            What::Guest(page, op) => {
                let place = match self.actor {
                    Actor::Guest { has_moved: true } => " (dest)",
                    _ => "",
                };
                format!("{op}{}{place}", name(*page))
            }
            What::Host(HostOp::Send, sent) if sent.is_empty() => "transfer: nothing".to_owned(),
            What::Host(HostOp::Send, sent) => {
                let each = sent
                    .iter()
                    .map(|&(page, kind)| format!("{} as {kind}", name(page)));
                format!("transfer{}", each.collect::<Vec<_>>().join(","))
            }
            What::Host(op, _) => op.to_string(),
        }
    }
}

/// Steps of guest and VMM in the order in which they are taken, the last one being that which finds a page broken.
///
/// Written in two columns, vCPU and VMM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    steps: Vec<Step>,
    pages: usize,
}

impl Schedule {
    pub(super) const fn new(steps: Vec<Step>, pages: usize) -> Self {
        Self { steps, pages }
    }

    /// The steps.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// How many pages the search had.
    pub const fn pages(&self) -> usize {
        self.pages
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<36}VMM", "vCPU")?;
        for step in &self.steps {
            let text = step.text(self.pages);
            match step.actor {
                Actor::Guest { .. } => writeln!(f, "{text}")?,
                Actor::Vmm => writeln!(f, "{:<36}{text}", "")?,
            }
        }
        f.write_str("kaboom!")
    }
}

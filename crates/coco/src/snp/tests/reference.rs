//! What a guest and its host see of each page, as a list: no tables, no frames, no reverse map.

use super::*;
use crate::psc::Direction;
use crate::rmp::Validation;

/// A private page of the file.
#[derive(Clone, Copy, Debug)]
struct Own {
    validated: bool,
    /// What the guest wrote; `None` since the host has cleared it.
    data: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Page {
    private: bool,
    mapped: bool,
    own: Option<Own>,
    shared: Option<Option<u64>>,
}

/// Pages of 4 KiB under the upstream policy.
#[derive(Debug)]
pub(super) struct Reference {
    pages: Vec<Page>,
    /// How often a guest got old contents back by validating.
    pub(super) stale: u64,
    /// How often private contents were lost.
    pub(super) lost: u64,
}

impl Reference {
    pub(super) fn new(pages: usize) -> Self {
        Self {
            pages: vec![Page::default(); pages],
            stale: 0,
            lost: 0,
        }
    }

    pub(super) fn convert(&mut self, range: core::ops::Range<usize>, to: Direction, hole: Hole) {
        let private = to == Direction::ToPrivate;
        let pages = &mut self.pages[range];
        let changes = pages.iter().any(|page| page.private != private);
        let own = pages.iter().any(|page| page.own.is_some());
        let punched = hole == Hole::Punched;
        let zapped = changes || (punched && (private || own));
        for page in pages {
            page.private = private;
            page.mapped &= !zapped;
            if punched && private {
                page.shared = None;
            }
            if punched && !private {
                let kept = page.own.take().and_then(|own| own.data);
                self.lost += u64::from(kept.is_some());
            }
        }
    }

    pub(super) fn punch(&mut self, range: core::ops::Range<usize>) {
        let pages = &mut self.pages[range];
        let any = pages.iter().any(|page| page.own.is_some());
        for page in pages {
            page.mapped &= !any;
            let kept = page.own.take().and_then(|own| own.data);
            self.lost += u64::from(kept.is_some());
        }
    }

    /// An access or instruction reaches its page, or the VMM is asked; it may change the page.
    fn reach(&mut self, at: usize, access: Visibility, vmm: Vmm) -> Result<(), GuestReply> {
        let private = access == PRIVATE;
        if self.pages[at].private != private {
            let Some(hole) = vmm.implicit else {
                let gfn = gfn(at as u64);
                return Err(SnpExit::MemoryFault { gfn, access }.into());
            };
            let to = if private {
                Direction::ToPrivate
            } else {
                Direction::ToShared
            };
            self.convert(at..at + 1, to, hole);
        }
        let page = &mut self.pages[at];
        page.mapped = true;
        if private {
            page.own.get_or_insert(Own {
                validated: false,
                data: None,
            });
        } else {
            page.shared.get_or_insert(None);
        }
        Ok(())
    }

    pub(super) fn read(&mut self, at: usize, access: Visibility, vmm: Vmm) -> GuestReply {
        let page = self.pages[at];
        if access == SHARED && page.private && page.mapped {
            // Ciphertext, and no fault; of a page that only the host has written, what the host wrote.
            let cleared = page.own.is_some_and(|own| own.data.is_none());
            let found = if cleared {
                Found::Value(Value::Zero)
            } else {
                Found::Scrambled
            };
            return GuestReply::Read(found);
        }
        if let Err(reply) = self.reach(at, access, vmm) {
            return reply;
        }
        let page = self.pages[at];
        match (access, page.own, page.shared) {
            (PRIVATE, Some(own), _) if !own.validated => NOT_VALIDATED,
            (PRIVATE, Some(own), _) => own.data.map_or(GuestReply::Read(Found::Scrambled), tag),
            (_, _, Some(data)) => data.map_or(GuestReply::Read(Found::Value(Value::Zero)), tag),
            _ => unreachable!(),
        }
    }

    pub(super) fn write(
        &mut self,
        at: usize,
        access: Visibility,
        value: u64,
        vmm: Vmm,
    ) -> GuestReply {
        if let Err(reply) = self.reach(at, access, vmm) {
            return reply;
        }
        let page = &mut self.pages[at];
        match access {
            SHARED => page.shared = Some(Some(value)),
            PRIVATE => match &mut page.own {
                Some(own) if own.validated => own.data = Some(value),
                _ => return NOT_VALIDATED,
            },
        }
        GuestReply::Done
    }

    pub(super) fn validate(&mut self, at: usize, validate: bool, vmm: Vmm) -> GuestReply {
        if let Err(reply) = self.reach(at, PRIVATE, vmm) {
            return reply;
        }
        let own = self.pages[at].own.as_mut().unwrap();
        if own.validated == validate {
            return GuestReply::Validated(Validation::Unchanged);
        }
        own.validated = validate;
        self.stale += u64::from(validate && own.data.is_some());
        GuestReply::Validated(Validation::Changed)
    }

    pub(super) fn host_read(&mut self, at: usize) -> Found {
        let data = *self.pages[at].shared.get_or_insert(None);
        Found::Value(data.map_or(Value::Zero, Value::Tag))
    }

    pub(super) fn host_write(&mut self, at: usize, value: u64) {
        self.pages[at].shared = Some(Some(value));
    }

    pub(super) fn host_peek(&self, at: usize) -> Option<Found> {
        let own = self.pages[at].own?;
        Some(match own.data {
            Some(_) => Found::Scrambled,
            None => Found::Value(Value::Zero),
        })
    }
}

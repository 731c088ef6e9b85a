//! What a guest and its host see of each page, as a list: no tables, no frames, no reverse map, no slots.

use slat_coco::rmp::Visibility;
use slat_coco::snp::{Found, Hole, Value};
use slat_memslot::Gfn;
use slat_vmm::snp_vm::{SnpAnswer, SnpStop};

use Visibility::{Private, Shared};

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

/// What the VMM does about accesses that do not fit.
pub(super) type Implicit = Option<Hole>;

/// Pages of 4 KiB under the upstream policy.
#[derive(Clone, Debug)]
pub(super) struct Reference {
    pages: Vec<Page>,
    /// Whether the slot is there.
    pub(super) slot: bool,
    /// How often a guest got old contents back by validating.
    pub(super) stale: u64,
    /// How often private contents were lost.
    pub(super) lost: u64,
}

impl Reference {
    pub(super) fn new(pages: usize) -> Self {
        Self {
            pages: vec![Page::default(); pages],
            slot: true,
            stale: 0,
            lost: 0,
        }
    }

    /// A page of the initial image.
    pub(super) fn launch(&mut self, at: usize, data: u64) {
        let page = &mut self.pages[at];
        page.private = true;
        page.own = Some(Own {
            validated: true,
            data: Some(data),
        });
    }

    pub(super) fn set_slot(&mut self, there: bool) {
        self.slot = there;
        self.pages.iter_mut().for_each(|page| page.mapped = false);
    }

    /// The VMM makes frames private or shared; whether the slot is there decides what it can discard.
    pub(super) fn convert(&mut self, range: core::ops::Range<usize>, to: Visibility, hole: Hole) {
        let private = to == Private;
        let pages = &mut self.pages[range];
        let changes = pages.iter().any(|page| page.private != private);
        let punched = hole == Hole::Punched && self.slot;
        for page in pages {
            page.private = private;
            page.mapped &= !(changes || punched);
            if punched && private {
                page.shared = None;
            }
            if punched && !private {
                let kept = page.own.take().and_then(|own| own.data);
                self.lost += u64::from(kept.is_some());
            }
        }
    }

    /// A hole in the file.
    pub(super) fn punch(&mut self, range: core::ops::Range<usize>) {
        for page in &mut self.pages[range] {
            page.mapped = false;
            let kept = page.own.take().and_then(|own| own.data);
            self.lost += u64::from(kept.is_some());
        }
    }

    /// An access or instruction reaches its page, or the VMM is asked; it may change the page.
    fn reach(
        &mut self,
        at: usize,
        access: Visibility,
        implicit: Implicit,
    ) -> Result<(), SnpAnswer> {
        let gfn = Gfn::new(at as u64);
        let private = access == Private;
        if self.pages[at].private != private {
            let Some(hole) = implicit else {
                return Err(SnpStop::MemoryFault(gfn, access).into());
            };
            self.convert(at..at + 1, access, hole);
        }
        if !self.slot {
            return Err(match private {
                // Without a slot nothing says that the frame cannot be private.
                true => SnpStop::MemoryFault(gfn, access).into(),
                false => SnpStop::Mmio(gfn).into(),
            });
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

    pub(super) fn read(&mut self, at: usize, access: Visibility, implicit: Implicit) -> SnpAnswer {
        let page = self.pages[at];
        if access == Shared && page.private && page.mapped {
            // Ciphertext, and no fault; of a page that only the host has written, what the host wrote.
            let cleared = page.own.is_some_and(|own| own.data.is_none());
            return SnpAnswer::Found(match cleared {
                true => Found::Value(Value::Zero),
                false => Found::Scrambled,
            });
        }
        if let Err(answer) = self.reach(at, access, implicit) {
            return answer;
        }
        let page = self.pages[at];
        match (access, page.own) {
            (Private, Some(own)) if !own.validated => SnpStop::Vc(0x404).into(),
            (Private, own) => {
                SnpAnswer::Found(own.and_then(|own| own.data).map_or(Found::Scrambled, found))
            }
            (Shared, _) => self.host_read(at),
        }
    }

    pub(super) fn write(
        &mut self,
        at: usize,
        access: Visibility,
        tag: u64,
        implicit: Implicit,
    ) -> SnpAnswer {
        if let Err(answer) = self.reach(at, access, implicit) {
            return answer;
        }
        let page = &mut self.pages[at];
        match (access, &mut page.own) {
            (Shared, _) => page.shared = Some(Some(tag)),
            (Private, Some(own)) if own.validated => own.data = Some(tag),
            (Private, _) => return SnpStop::Vc(0x404).into(),
        }
        SnpAnswer::Done
    }

    pub(super) fn validate(&mut self, at: usize, validate: bool, implicit: Implicit) -> SnpAnswer {
        if let Err(answer) = self.reach(at, Private, implicit) {
            return answer;
        }
        let Some(own) = self.pages[at].own.as_mut() else {
            return SnpAnswer::NoPage;
        };
        if own.validated == validate {
            return SnpAnswer::Unchanged;
        }
        own.validated = validate;
        self.stale += u64::from(validate && own.data.is_some());
        SnpAnswer::Changed
    }

    pub(super) fn host_read(&mut self, at: usize) -> SnpAnswer {
        if !self.slot {
            return SnpAnswer::NoPage;
        }
        let data = *self.pages[at].shared.get_or_insert(None);
        SnpAnswer::Found(data.map_or(Found::Value(Value::Zero), found))
    }

    pub(super) fn host_write(&mut self, at: usize, tag: u64) -> SnpAnswer {
        if !self.slot {
            return SnpAnswer::NoPage;
        }
        self.pages[at].shared = Some(Some(tag));
        SnpAnswer::Done
    }

    /// What the host finds in the frame of a private page.
    pub(super) fn host_peek(&self, at: usize) -> SnpAnswer {
        match self.pages[at].own.filter(|_| self.slot) {
            None => SnpAnswer::NoPage,
            Some(own) => SnpAnswer::Found(match own.data {
                Some(_) => Found::Scrambled,
                None => Found::Value(Value::Zero),
            }),
        }
    }
}

fn found(tag: u64) -> Found {
    Found::Value(Value::Tag(tag))
}

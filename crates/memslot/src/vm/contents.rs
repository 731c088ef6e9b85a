//! What a guest and its userspace find in memory.

use crate::contents::{Contents, Place};
use crate::{
    Access, AsId, ContentsCall, Gfn, GmemId, Gpa, GuestAccess, GuestContents, Hva, Memory, Outcome,
    PAGE_SHIFT, PAGE_SIZE, Pages, Refusal,
};

impl Memory {
    /// What pages hold, as far as [`ContentsCall`]s wrote them.
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// The page that a guest reaches at a frame; `None` where it reaches none.
    pub fn place_of(&self, gfn: Gfn) -> Option<Place> {
        let slot = self.space(AsId::NORMAL).by_gfn(gfn)?;
        let offset = (gfn - slot.range().start()).raw();
        let of_file = slot
            .binding()
            .filter(|at| at.gmem_only || self.is_private(gfn));
        match of_file {
            Some(binding) => Some(Place::File(binding.file?, binding.first_page + offset)),
            None if self.is_private(gfn) => None,
            None => slot.hva_of(gfn).map(Place::host),
        }
    }

    /// Answers a call about what memory holds, with guest accesses as KVM's emulator makes them.
    ///
    /// # Errors
    /// As [`Memory::check_guest_access`], for what a guest does.
    pub fn contents_call(&mut self, call: &ContentsCall) -> Result<Outcome, Refusal> {
        let ContentsCall::Guest { vcpu, code, act } = call else {
            return Ok(self.without_guest(call));
        };
        for access in act.accesses(*vcpu, *code) {
            match self.guest_access(&access)? {
                Access::Done => self.pass(act, &access),
                other => return Ok(Outcome::Access(other)),
            }
        }
        Ok(self.after(act))
    }

    /// What userspace does with its own memory, or tells the guest.
    pub fn without_guest(&mut self, call: &ContentsCall) -> Outcome {
        let pages = |hva: u64, size: u64| {
            let first = hva >> PAGE_SHIFT;
            first..first.saturating_add(Pages::in_bytes(size).raw())
        };
        match *call {
            ContentsCall::HostFill { hva, size, byte } => {
                for page in pages(hva, size) {
                    self.contents.set(Place::Host(page), byte);
                }
                Outcome::Done
            }
            ContentsCall::HostCheck { hva, size, byte } => {
                let holds = |page| self.contents.get(Place::Host(page)) == byte;
                Outcome::Value(u64::from(pages(hva, size).all(holds)))
            }
            ContentsCall::Discard { hva, size } => {
                let pages = pages(hva, size);
                let (first, end) = (Place::Host(pages.start), Place::Host(pages.end));
                self.contents.discard(first, end);
                Outcome::Done
            }
            ContentsCall::ReturnHypercall { ret, .. } => Outcome::Value(ret & u64::from(u32::MAX)),
            ContentsCall::Guest { .. } => Outcome::Done,
        }
    }

    /// What follows from an access of an act that was made.
    pub fn pass(&mut self, act: &GuestContents, access: &GuestAccess) {
        if let GuestContents::Fill { byte, .. } = act {
            if let Some(place) = self.place_of(Gpa::new(access.gpa).gfn()) {
                self.contents.set(place, *byte);
            }
        }
    }

    /// What an act comes to when all of its accesses were made.
    pub fn after(&self, act: &GuestContents) -> Outcome {
        match *act {
            GuestContents::Fill { .. } => Outcome::Done,
            GuestContents::Check { gpa, size, byte } => {
                let first = gpa >> PAGE_SHIFT;
                let mut gfns = (first..first + Pages::in_bytes(size).raw()).map(Gfn::new);
                let holds = |gfn| self.place_of(gfn).map(|place| self.contents.get(place));
                Outcome::Value(u64::from(gfns.all(|gfn| holds(gfn) == Some(byte))))
            }
            GuestContents::MapGpaRange {
                gpa,
                pages,
                attributes,
            } => self.hypercall([gpa, pages, attributes].map(|value| value & u64::from(u32::MAX))),
        }
    }

    /// `KVM_HC_MAP_GPA_RANGE` (`x86.c:__kvm_emulate_hypercall`), which looks at the range and not at the attributes.
    fn hypercall(&self, [gpa, pages, attributes]: [u64; 3]) -> Outcome {
        if self.hypercall_exits() & 1 << GuestContents::MAP_GPA_RANGE == 0 {
            return Outcome::Value(GuestContents::NO_SUCH_HYPERCALL);
        }
        let first = gpa >> PAGE_SHIFT;
        if gpa % PAGE_SIZE != 0 || pages == 0 || first.checked_add(pages).is_none() {
            return Outcome::Value(GuestContents::NO_SUCH_RANGE);
        }
        Outcome::MapGpaRange {
            gpa,
            pages,
            attributes,
        }
    }

    /// Pages of a file go, and what they hold.
    pub(crate) fn discard_file(&mut self, file: GmemId, offset: u64, len: u64) {
        let first = Place::File(file, offset >> PAGE_SHIFT);
        let end = Place::File(file, offset.saturating_add(len).div_ceil(PAGE_SIZE));
        self.contents.discard(first, end);
    }

    /// What userspace's memory holds at an address.
    pub fn host_byte(&self, hva: Hva) -> u8 {
        self.contents.get(Place::host(hva))
    }
}

impl GuestContents {
    /// The accesses that it makes, one for each page; a hypercall only fetches its instruction.
    pub fn accesses(&self, vcpu: u32, code: u64) -> impl Iterator<Item = GuestAccess> + use<> {
        let (gpa, size, access) = match *self {
            Self::Fill { gpa, size, .. } => (gpa, size, GuestAccess::write(gpa)),
            Self::Check { gpa, size, .. } => (gpa, size, GuestAccess::read(gpa)),
            Self::MapGpaRange { .. } => (code, PAGE_SIZE, GuestAccess::execute(code)),
        };
        let pages = 0..Pages::in_bytes(size).raw();
        pages.map(move |page| GuestAccess {
            gpa: gpa.saturating_add(page << PAGE_SHIFT),
            ..access.by_code_at(code).by_vcpu(vcpu)
        })
    }
}

#[cfg(test)]
mod tests;

//! What a guest's own writes leave in the dirty log.

use crate::{Access, AsId, Gfn, Gpa, Memory, Outcome, PreFaultError, Refusal, SlotKey};

impl Memory {
    /// A guest write by vCPU 0 outside SMM, whose instruction lies in the same page.
    ///
    /// # Errors
    /// There is no vCPU.
    pub fn guest_write(&mut self, gpa: u64) -> Result<Outcome, Refusal> {
        if self.vcpus() == 0 {
            return Err(PreFaultError::NoVcpu { vcpu: 0 }.into());
        }
        self.check_gate()?;
        if self
            .rings
            .first_mut()
            .is_some_and(crate::DirtyRing::blocks_entry)
        {
            return Ok(Outcome::Access(Access::RingFull));
        }
        Ok(Outcome::Access(
            self.write(AsId::NORMAL, Gpa::new(gpa).gfn()),
        ))
    }

    fn write(&mut self, as_id: AsId, gfn: Gfn) -> Access {
        match self.space(as_id).by_gfn(gfn) {
            None => Access::NoMemory,
            Some(slot) if slot.is_readonly() => Access::Mmio,
            Some(_) => {
                self.mark_dirty(as_id, gfn);
                Access::Done
            }
        }
    }

    /// Notes that vCPU 0 wrote a frame (`mark_page_dirty_in_slot`): in its ring if the VM keeps rings, else in the
    /// slot's bitmap, if the slot is logged at all.
    pub fn mark_dirty(&mut self, as_id: AsId, gfn: Gfn) {
        let Some(slot) = self
            .space(as_id)
            .by_gfn(gfn)
            .filter(|slot| slot.is_logged())
        else {
            return;
        };
        let offset = (gfn - slot.range().start()).raw();
        let key: SlotKey = slot.key();
        // A slot that was logged before the rings were enabled still has a bitmap; the ring comes first.
        if let Some(ring) = self.rings.first_mut() {
            ring.push(key.raw(), offset);
        } else if let Some(bitmap) = self
            .space_mut(as_id)
            .by_gfn_mut(gfn)
            .and_then(|slot| slot.dirty.as_mut())
        {
            bitmap.set(offset);
        }
    }
}

//! One predicted event held against the recorded one.

use slat_memslot::{Gfn, Level, PAGE_SHIFT};
use slat_mmu::role::PageRole;
use slat_mmu::shadow::PageInfo;
use slat_mmu::spte::{Format, Spte, bits};
use slat_mmu::walk::second::SecondExit;

use super::predicted::shadow_number;
use super::{Compared, Comparer, Mismatch, Predicted, Taken, same};
use crate::traces::{Traced, TracedPage};

impl<F: Format> Comparer<F> {
    /// Compares two events.
    pub(super) fn event(
        &mut self,
        predicted: &Predicted,
        recorded: &Traced<'_>,
    ) -> Compared<Taken> {
        match (predicted, recorded) {
            (Predicted::SpteChanged { .. }, Traced::SpteChanged { .. }) => {
                self.changed(predicted, recorded)
            }
            (Predicted::FastPageFault { .. }, Traced::FastPageFault { .. }) => {
                self.fast_page_fault(predicted, recorded)
            }
            (Predicted::HugePageSplit { .. }, Traced::SplitHugePage { .. }) => {
                self.split(predicted, recorded)
            }
            _ => self.plain(predicted, recorded).map(|()| Taken::default()),
        }
    }

    fn changed(&mut self, predicted: &Predicted, recorded: &Traced<'_>) -> Compared<Taken> {
        let Predicted::SpteChanged {
            as_id,
            gfn,
            level,
            old,
            new,
        } = predicted
        else {
            return Err(Mismatch::Kind);
        };
        let Traced::SpteChanged {
            as_id: recorded_as_id,
            gfn: recorded_gfn,
            level: recorded_level,
            old: recorded_old,
            new: recorded_new,
        } = recorded
        else {
            return Err(Mismatch::Kind);
        };
        same("as id", as_id, recorded_as_id)?;
        same("gfn", gfn, recorded_gfn)?;
        same("level", level, recorded_level)?;
        let place = (*gfn, *level);
        let before = self.ahead.get(&place).copied().unwrap_or(0);
        let taken = self.entry("old_spte", *level, *old, *recorded_old, before, true)?;
        let kept = self.entry("new_spte", *level, *new, *recorded_new, taken.bits, false)?;
        self.keep_ahead(place, kept.bits);
        self.replaced = Some((place, taken.bits));
        let [before_it, after_it] = [*old, *new].map(Spte::<F>::from_raw);
        // What is no link may look like one to table 0.
        let stays = after_it.is_link(*level) && frame(*old) == frame(*new);
        if before_it.is_link(*level) && !stays {
            self.renaming.forget(frame(*old));
        }
        Ok(Taken {
            bits: taken.bits & !before,
        })
    }

    fn keep_ahead(&mut self, place: (Gfn, Level), bits: u64) {
        if bits == 0 {
            self.ahead.remove(&place);
        } else {
            self.ahead.insert(place, bits);
        }
    }

    /// Compares two entries. `allowed` are the bits that the recorded one may have more; with `by_hardware` also those
    /// that hardware can have set.
    fn entry(
        &mut self,
        field: &'static str,
        level: Level,
        predicted: u64,
        recorded: u64,
        allowed: u64,
        by_hardware: bool,
    ) -> Compared<Taken> {
        let ours = Spte::<F>::from_raw(predicted);
        let theirs = Spte::<F>::from_raw(recorded);
        match (ours.is_link(level), theirs.is_link(level)) {
            (true, true) => {
                let others = |raw: u64| raw & !bits::ADDRESS;
                same(field, &others(predicted), &others(recorded))?;
                self.renaming.same(frame(predicted), frame(recorded))?;
                Ok(Taken::default())
            }
            (false, false) => {
                let hardware = if by_hardware && ours.is_leaf(level) {
                    self.set_by_hardware(ours)
                } else {
                    0
                };
                let compared = leaf(field, predicted, recorded, allowed | hardware);
                let differ = predicted ^ recorded;
                let marks = differ & !(F::ACCESSED | F::DIRTY) == 0 && recorded & differ == differ;
                if compared.is_err() && by_hardware && ours.is_leaf(level) && marks {
                    return Err(Mismatch::NotByHardware { bits: differ });
                }
                compared
            }
            _ => Err(Mismatch::Shape(field)),
        }
    }

    /// The bits that hardware may set in a present leaf.
    fn set_by_hardware(&self, leaf: Spte<F>) -> u64 {
        if self.codec.is_ad_disabled(leaf) || self.codec.is_access_tracked(leaf) {
            return 0;
        }
        if leaf.is_writable() {
            F::ACCESSED | F::DIRTY
        } else {
            F::ACCESSED
        }
    }

    fn fast_page_fault(&mut self, predicted: &Predicted, recorded: &Traced<'_>) -> Compared<Taken> {
        let (
            Predicted::FastPageFault {
                vcpu,
                gva,
                old,
                new,
                spurious,
                fixed,
            },
            Traced::FastPageFault {
                vcpu: recorded_vcpu,
                gva: recorded_gva,
                old: recorded_old,
                new: recorded_new,
                spurious: recorded_spurious,
                fixed: recorded_fixed,
                ..
            },
        ) = (predicted, recorded)
        else {
            return Err(Mismatch::Kind);
        };
        same("vcpu", vcpu, recorded_vcpu)?;
        same("gva", gva, recorded_gva)?;
        same("spurious", spurious, recorded_spurious)?;
        same("fixed", fixed, recorded_fixed)?;
        let gfn = Gfn::new(gva >> PAGE_SHIFT);
        let level = if old & bits::PAGE_SIZE == 0 {
            Level::L1
        } else {
            Level::L2
        };
        // The event does not say at which level a huge page is.
        let places = [Level::L1, Level::L2, Level::L3].map(|level| (gfn.round_down(level), level));
        let place = places
            .into_iter()
            .find(|place| self.ahead.contains_key(place));
        let before = place.and_then(|place| self.ahead.get(&place).copied());
        let before = before.unwrap_or(0);
        let taken = self.entry("old", level, *old, *recorded_old, before, true)?;
        let kept = self.entry("new", level, *new, *recorded_new, taken.bits, false)?;
        let place = place.unwrap_or((gfn.round_down(level), level));
        self.keep_ahead(place, if *fixed { kept.bits } else { taken.bits });
        Ok(Taken {
            bits: taken.bits & !before,
        })
    }

    fn split(&mut self, predicted: &Predicted, recorded: &Traced<'_>) -> Compared<Taken> {
        let (
            Predicted::HugePageSplit {
                gfn,
                spte,
                level,
                errno,
            },
            Traced::SplitHugePage {
                gfn: recorded_gfn,
                spte: recorded_spte,
                level: recorded_level,
                errno: recorded_errno,
            },
        ) = (predicted, recorded)
        else {
            return Err(Mismatch::Kind);
        };
        same("gfn", gfn, recorded_gfn)?;
        same("level", level, recorded_level)?;
        same("errno", errno, recorded_errno)?;
        // It comes after the change of the entry, or where there was none.
        let place = (*gfn, *level);
        let replaced = self.replaced.filter(|(at, _)| *at == place);
        let ahead = self.ahead.get(&place).copied();
        let before = replaced.map(|(_, bits)| bits).or(ahead).unwrap_or(0);
        let taken = self.entry("spte", *level, *spte, *recorded_spte, before, true)?;
        Ok(Taken {
            bits: taken.bits & !before,
        })
    }

    /// Events without tolerance.
    fn plain(&mut self, predicted: &Predicted, recorded: &Traced<'_>) -> Compared {
        match (predicted, recorded) {
            (Predicted::PageAllocated { gfn, role }, Traced::GetPage { page, created }) => {
                same_page(*gfn, *role, page)?;
                same("created", &true, created)?;
                self.allocated = Some((*gfn, *role, true));
                Ok(())
            }
            (
                Predicted::ShadowPage { page, created },
                Traced::GetPage {
                    page: recorded,
                    created: recorded_created,
                },
            ) => {
                same_shadow_page(page, recorded)?;
                same("created", created, recorded_created)?;
                self.allocated = Some((page.gfn, page.role, *created));
                Ok(())
            }
            (Predicted::ShadowPageZapped { page }, Traced::PrepareZapPage { page: recorded }) => {
                if page.root_count == 0 {
                    // Its frame is free now, and so is its number.
                    self.renaming.forget(shadow_number(page.page));
                }
                same_shadow_page(page, recorded)
            }
            (Predicted::PageUnsync { page }, Traced::UnsyncPage { page: recorded })
            | (Predicted::PageSync { page }, Traced::SyncPage { page: recorded }) => {
                same_shadow_page(page, recorded)
            }
            (Predicted::PageZapped { gfn, role }, Traced::PrepareZapPage { page }) => {
                same_page(*gfn, *role, page)
            }
            (Predicted::SpteSet { .. }, Traced::SetSpte { .. }) => self.set(predicted, recorded),
            (
                Predicted::SpteRequested { gfn, pfn, level },
                Traced::SpteRequested {
                    gfn: recorded_gfn,
                    pfn: recorded_pfn,
                    level: recorded_level,
                },
            ) => {
                same("gfn", gfn, recorded_gfn)?;
                same("pfn", pfn, recorded_pfn)?;
                same("level", level, recorded_level)
            }
            (Predicted::ToldToL1(exit), Traced::NestedExitInject { info1, .. }) => match exit {
                SecondExit::NestedPageFault(code) => same("error code", &code.bits(), info1),
                SecondExit::EptViolation(code) => same("qualification", &code.bits(), info1),
                SecondExit::EptMisconfiguration => same("qualification", &0, info1),
            },
            _ => mmio(predicted, recorded),
        }
    }

    fn set(&mut self, predicted: &Predicted, recorded: &Traced<'_>) -> Compared {
        let (
            Predicted::SpteSet {
                gfn,
                level,
                spte,
                table,
            },
            Traced::SetSpte {
                gfn: recorded_gfn,
                spte: recorded_spte,
                level: recorded_level,
                at,
                ..
            },
        ) = (predicted, recorded)
        else {
            return Err(Mismatch::Kind);
        };
        same("gfn", gfn, recorded_gfn)?;
        same("level", level, recorded_level)?;
        let place = (gfn.round_down(*level), *level);
        let ahead = self.ahead.get(&place).copied().unwrap_or(0);
        self.entry("spte", *level, *spte, *recorded_spte, ahead, false)?;
        match table {
            Some(table) => self.renaming.same(*table, at >> PAGE_SHIFT),
            None => Ok(()),
        }
    }
}

/// The frame of an entry.
pub(super) const fn frame(raw: u64) -> u64 {
    (raw & bits::ADDRESS) >> PAGE_SHIFT
}

/// Compares entries that are no links; the recorded one may have bits of `allowed` more.
fn leaf(field: &'static str, predicted: u64, recorded: u64, allowed: u64) -> Compared<Taken> {
    let differ = predicted ^ recorded;
    if differ & !allowed == 0 && recorded & differ == differ {
        return Ok(Taken { bits: differ });
    }
    Err(Mismatch::Field(field))
}

fn same_page(gfn: Gfn, role: PageRole, recorded: &TracedPage) -> Compared {
    same("gfn", &gfn, &recorded.gfn)?;
    same("role", &role.traced(), &recorded.role)
}

/// A shadow page, with all that the text has.
fn same_shadow_page(page: &PageInfo, recorded: &TracedPage) -> Compared {
    same_page(page.gfn, page.role, recorded)?;
    let generation = u32::from(page.generation.raw());
    same("generation", &generation, &recorded.generation)?;
    same("root count", &page.root_count, &recorded.root_count)?;
    same("unsync", &page.unsync, &recorded.unsync)
}

fn mmio(predicted: &Predicted, recorded: &Traced<'_>) -> Compared {
    match (predicted, recorded) {
        (
            Predicted::MmioMarked {
                gfn,
                access,
                generation,
            },
            Traced::MarkMmio {
                gfn: recorded_gfn,
                access: recorded_access,
                generation: recorded_generation,
            },
        ) => {
            same("gfn", gfn, recorded_gfn)?;
            same("access", access, recorded_access)?;
            same("generation", generation, recorded_generation)
        }
        (
            Predicted::MmioChecked {
                spte,
                current,
                generation,
                valid,
            },
            Traced::CheckMmio {
                spte: recorded_spte,
                current: recorded_current,
                generation: recorded_generation,
                valid: recorded_valid,
            },
        ) => {
            same("spte", spte, recorded_spte)?;
            same("current generation", current, recorded_current)?;
            same("generation", generation, recorded_generation)?;
            same("valid", valid, recorded_valid)
        }
        (Predicted::ZapAllFast, Traced::ZapAllFast { .. }) => Ok(()),
        (
            Predicted::ShadowZapAllFast { generation, used },
            Traced::ZapAllFast {
                generation: recorded,
                used_pages,
            },
        ) => {
            same("generation", &u32::from(generation.raw()), recorded)?;
            same("pages in use", &used.raw(), used_pages)
        }
        (Predicted::AccessedBitSet { gpa }, Traced::SetAccessedBit { gpa: recorded })
        | (Predicted::DirtyBitSet { gpa }, Traced::SetDirtyBit { gpa: recorded }) => {
            same("address", gpa, recorded)
        }
        _ => Err(Mismatch::Kind),
    }
}

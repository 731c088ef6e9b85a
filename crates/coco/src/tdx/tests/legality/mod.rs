//! Every call in every state, every op-state and at every level. Oracle: [`table`], written down from the fact sheet.

mod accept;
mod case;
mod table;

use slat_memslot::Level;

use crate::tdx::module::Snapshot;
use crate::tdx::*;
use case::{Case, is_about_a_page};
use table::{CALLS, GUEST, Row, STATES, TABLES_ONLY};

/// All entries that can be, in all op-states, with TLBs that may hold them and with TLBs that do not.
fn cases() -> impl Iterator<Item = Case> {
    let gpaws = [Gpaw::Bits48, Gpaw::Bits52].into_iter();
    let all = gpaws.flat_map(|gpaw| {
        Level::ALL.into_iter().flat_map(move |level| {
            SeptState::ALL.into_iter().flat_map(move |state| {
                OpState::ALL.into_iter().flat_map(move |op_state| {
                    [false, true].into_iter().map(move |tracked| Case {
                        gpaw,
                        level,
                        state,
                        op_state,
                        tracked,
                    })
                })
            })
        })
    });
    all.filter(Case::can_be)
}

#[test]
fn every_call_in_every_state() {
    let (mut combinations, mut refused, mut entries) = (0, 0, 0);
    for case in cases() {
        entries += 1;
        let mut world = Fresh::new(&case);
        for row in CALLS {
            let levels = if is_about_a_page(row) { 1 } else { 5 };
            for level in &Level::ALL[..levels] {
                combinations += 1;
                refused += u32::from(world.try_call(&case, row, *level));
            }
        }
    }
    println!(
        "{combinations} combinations of {} calls, {entries} entries and 5 levels; {refused} refused, none of which changed anything",
        CALLS.len()
    );
    // Three calls take an address, the others a level too.
    assert_eq!(combinations, entries * (3 + 12 * 5));
}

/// A TD in which nothing has changed yet.
struct Fresh {
    module: Module,
    td: Tdr,
    before: Snapshot,
}

impl Fresh {
    fn new(case: &Case) -> Self {
        let (module, td) = case.module();
        let before = module.snapshot(td);
        Self { module, td, before }
    }

    /// Makes one call. Says whether it was refused; if not, the next one gets another TD.
    fn try_call(&mut self, case: &Case, row: &Row, level: Level) -> bool {
        let status = self.module.call(self.td, &Case::call(row, level));
        let wanted = case.wanted(row, level);
        assert_eq!(status, wanted, "{} at {level:?} of {case:?}", row.name);
        let looks = ["TDH.MEM.SEPT.RD", "TDH.MEM.RD"].contains(&row.name);
        let acts = status == Status::SUCCESS && !looks;
        let changed = !self.module.is_as(self.td, &self.before);
        assert_eq!(changed, acts, "{} at {level:?} of {case:?}", row.name);
        if changed {
            *self = Self::new(case);
        }
        status.is_error()
    }
}

#[test]
fn states_have_the_sheet_s_encodings() {
    for (state, (name, encoding, public)) in SeptState::ALL.iter().zip(STATES) {
        let have = (state.name(), state.encoding(), state.public());
        assert_eq!(have, (*name, *encoding, *public));
        assert_eq!(SeptState::from_encoding(*encoding), Some(*state));
    }
    let known = (0..=u8::MAX).filter(|bits| SeptState::from_encoding(*bits).is_some());
    assert_eq!(known.count(), 16);
    assert_eq!(STATES.len(), 16);
}

#[test]
fn tables_of_calls_are_the_sheet_s() {
    let mut compared = 0;
    for row in CALLS.iter().chain(TABLES_ONLY) {
        let leaf = Seamcall::ALL.iter().find(|leaf| leaf.name() == row.name);
        let leaf = leaf.unwrap_or_else(|| panic!("{}", row.name));
        for op_state in OpState::ALL {
            let wanted = row.op_states.contains(&(op_state as u8));
            assert_eq!(leaf.allows_op_state(op_state), wanted, "{leaf} {op_state}");
            compared += 1;
        }
        for state in SeptState::ALL {
            // A table may be there already for a TD with nested guests.
            let nested = row.name == "TDH.MEM.SEPT.ADD" && state == SeptState::NlMapped;
            let wanted = nested || row.states.contains(&state.name());
            assert_eq!(leaf.allows_state(state), wanted, "{leaf} {state}");
            compared += 1;
        }
    }
    for row in GUEST {
        let leaf = Tdcall::ALL
            .iter()
            .find(|leaf| leaf.name() == row.name)
            .unwrap();
        for state in SeptState::ALL {
            let wanted = row.states.contains(&state.name());
            assert_eq!(leaf.allows_state(state), wanted, "{leaf} {state}");
            compared += 1;
        }
    }
    println!("{compared} places of the tables");
    assert_eq!(compared, 669);
}

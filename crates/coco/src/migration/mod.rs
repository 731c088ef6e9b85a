//! Live migration of encrypted guests, and the races in it that destroy one silently.
//!
//! Of a SEV guest the host cannot see which pages are encrypted: the guest tells (`KVM_HC_MAP_GPA_RANGE`), and the VMM sends a page
//! re-encrypted by the firmware or as it is, by what it was told. A page that is sent as the wrong kind arrives as noise, and
//! nobody notices until the guest reads it.
//!
//! | part | what it is |
//! |---|---|
//! | [`Rules`] | what guest and VMM promise each other |
//! | [`check`] | every interleaving of a guest that keeps to the rules with a VMM that does: a proof, or the shortest [`Schedule`] that breaks a page |
//! | [`StatusList`] | what a VMM keeps of what it was told |
//! | [`MigrationControl`] | whether the guest has said that it can be moved |
//! | [`count`] | how many interleavings of one [`Program`] with a VMM are bad |
//!
//! The guest of [`check`] does whatever the rules allow, for ever, and the VMM makes as many rounds as it likes, so a proof
//! holds for guests and migrations of any length. Pages do not influence each other in the rules, and a proof for one holds for
//! all; [`Setting::pages`] says to look at more.
//!
//! ```
//! use slat_coco::migration::{Rules, Setting, Verdict, check};
//!
//! assert!(matches!(check(&Setting::default()), Ok(Verdict::Safe(_))));
//!
//! let rules = Rules { dirty_before_list: false, ..Rules::default() };
//! let Ok(Verdict::Broken(broken)) = check(&Setting { rules, ..Setting::default() }) else { unreachable!() };
//! assert!(broken.schedule.to_string().contains("get_list"));
//! ```

mod control;
mod count;
mod guest;
mod host;
mod page;
mod rules;
mod schedule;
mod search;
mod status;
#[cfg(test)]
mod tests;

pub use control::{Hearing, MigrationControl, Offer};
pub use count::{Count, Program, ProgramName, count};
pub use guest::{GuestOp, Half};
pub use host::{HostOp, ListOrder};
pub use page::Status;
pub use rules::{Rule, Rules, Technology};
pub use schedule::{Actor, Schedule, Step};
pub use search::{Broken, Damage, Explored, Setting, TooLarge, Verdict, check};
pub use status::{Keeper, KeeperCost, StatusKeeper, StatusList};

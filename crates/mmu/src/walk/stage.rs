//! What stands behind a guest's physical addresses: nothing, or a second stage.

use core::convert::Infallible;

use slat_memslot::Gpa;

use super::ErrorCode;
use super::memory::TableAddress;

/// Translates the guest-physical addresses that a walk comes to (`kvm_translate_gpa`).
pub trait Stage {
    /// Whether nobody notices if it is asked for the same twice: walks may then try the short way first.
    const QUIET: bool = false;

    /// What it translates to: where the memory behind is.
    type Address: TableAddress;
    /// What it says if it does not translate.
    type Fault;

    /// Translates an address for an access. [`ErrorCode::GUEST_PAGE`] is set for entries of the guest's tables, which count
    /// as written if the walk marks entries, [`ErrorCode::GUEST_FINAL`] for the page at the end; both are user accesses or
    /// not, as the caller of the walk says.
    ///
    /// # Errors
    /// It does not translate.
    fn translate(&mut self, gpa: Gpa, access: ErrorCode) -> Result<Self::Address, Self::Fault>;

    /// Translates the addresses of many walks that are under way together, for the same access. Says nothing about those
    /// that it does not translate: they are asked for again one by one. Where there is no address nothing happens.
    #[inline]
    fn translate_group(
        &mut self,
        group: &[Option<Gpa>],
        access: ErrorCode,
        to: &mut [Option<Self::Address>],
    ) {
        for (gpa, to) in group.iter().zip(to) {
            *to = gpa.and_then(|gpa| self.translate(gpa, access).ok());
        }
    }

    /// Hears that the entry of a table, which has been translated, is about to be marked.
    ///
    /// # Errors
    /// It does not allow that.
    #[inline]
    fn before_mark(&mut self, gpa: Gpa) -> Result<(), Self::Fault> {
        let _ = gpa;
        Ok(())
    }
}

/// No second stage: guest-physical addresses are where memory is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unnested;

impl Stage for Unnested {
    const QUIET: bool = true;

    type Address = Gpa;
    type Fault = Infallible;

    #[inline]
    fn translate(&mut self, gpa: Gpa, _: ErrorCode) -> Result<Gpa, Infallible> {
        Ok(gpa)
    }
}

impl<S: Stage + ?Sized> Stage for &mut S {
    const QUIET: bool = S::QUIET;

    type Address = S::Address;
    type Fault = S::Fault;

    #[inline]
    fn translate(&mut self, gpa: Gpa, access: ErrorCode) -> Result<S::Address, S::Fault> {
        (**self).translate(gpa, access)
    }

    #[inline]
    fn translate_group(
        &mut self,
        group: &[Option<Gpa>],
        access: ErrorCode,
        to: &mut [Option<S::Address>],
    ) {
        (**self).translate_group(group, access, to);
    }

    #[inline]
    fn before_mark(&mut self, gpa: Gpa) -> Result<(), S::Fault> {
        (**self).before_mark(gpa)
    }
}

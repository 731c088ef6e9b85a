//! What all audits have in common: an enum of invariants, each with a number, a name and its rule.

/// Defines the invariants of an audit: what the enum is, the letter of its numbers, then number, variant, name and rule of each.
#[doc(hidden)]
#[macro_export]
macro_rules! audit_codes {
    ($(#[$about:meta])* $codes:ident $letter:literal: $($number:literal $variant:ident $name:literal $rule:literal)*) => {
        $(#[$about])*
        ///
        /// Numbers and names are stable; new ones come at the end.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        #[repr(u8)]
        pub enum $codes {
            $(#[doc = $rule] $variant = $number,)*
        }

        impl $codes {
            /// All codes, by number.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The number, from 1.
            pub const fn number(self) -> u8 {
                self as u8
            }

            /// The name.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// What has to hold.
            pub const fn rule(self) -> &'static str {
                match self {
                    $(Self::$variant => $rule,)*
                }
            }
        }

        #[doc = concat!("`", $letter, "07 the-name`.")]
        impl core::fmt::Display for $codes {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                write!(f, concat!($letter, "{:02} {}"), self.number(), self.name())
            }
        }
    };
}

//! Linux error numbers, by name, without depending on the host's headers.

use core::fmt;

/// A Linux error number, as on x86-64.
///
/// ```
/// use slat_memslot::Errno;
/// assert_eq!(Errno::EEXIST.raw(), 17);
/// assert_eq!(Errno::new(22).to_string(), "EINVAL");
/// assert_eq!("ENXIO".parse(), Ok(Errno::ENXIO));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Errno(i32);

macro_rules! errnos {
    ($($name:ident = $number:literal),* $(,)?) => {
        impl Errno {
            $(#[doc = concat!("`", stringify!($name), "`, ", stringify!($number), ".")]
            pub const $name: Self = Self($number);)*

            /// The numbers that have a name here.
            const NAMED: &'static [(Self, &'static str)] = &[$((Self::$name, stringify!($name))),*];
        }
    };
}

errnos! {
    EPERM = 1, ENOENT = 2, EINTR = 4, EIO = 5, ENXIO = 6, E2BIG = 7, EBADF = 9, EAGAIN = 11, ENOMEM = 12,
    EACCES = 13, EFAULT = 14, EBUSY = 16, EEXIST = 17, ENODEV = 19, EINVAL = 22, ENFILE = 23, EMFILE = 24,
    ENOTTY = 25, EFBIG = 27, ENOSPC = 28, ESPIPE = 29, ENOSYS = 38, EOVERFLOW = 75, EOPNOTSUPP = 95,
    EHWPOISON = 133,
}

impl Errno {
    /// Wraps a raw number.
    pub const fn new(raw: i32) -> Self {
        Self(raw)
    }

    /// The raw, positive number.
    pub const fn raw(self) -> i32 {
        self.0
    }

    /// The symbolic name, when the number is one that KVM's memory interface can give.
    pub fn name(self) -> Option<&'static str> {
        Self::NAMED
            .iter()
            .find(|(e, _)| *e == self)
            .map(|(_, name)| *name)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "E{}", self.0),
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is neither a known error name nor `E` and a number.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown error name {0:?}")]
pub struct UnknownErrno(pub String);

impl core::str::FromStr for Errno {
    type Err = UnknownErrno;

    fn from_str(text: &str) -> Result<Self, UnknownErrno> {
        let unknown = || UnknownErrno(text.to_owned());
        if let Some((errno, _)) = Self::NAMED.iter().find(|(_, name)| *name == text) {
            return Ok(*errno);
        }
        let number = text
            .strip_prefix('E')
            .and_then(|digits| digits.parse().ok());
        number
            .filter(|n| (1..4096).contains(n))
            .map(Self)
            .ok_or_else(unknown)
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for Errno {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for Errno {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <String as serde::Deserialize>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for (number, name) in [(2, "ENOENT"), (17, "EEXIST"), (95, "EOPNOTSUPP"), (3, "E3")] {
            let errno = Errno::new(number);
            assert_eq!(errno.to_string(), name);
            assert_eq!(name.parse(), Ok(errno));
        }
        for text in ["ENOENTS", "E", "E0", "E4096", "E-1", "17", ""] {
            assert_eq!(text.parse::<Errno>(), Err(UnknownErrno(text.to_owned())));
        }
    }

    #[cfg(feature = "serde")]
    #[test]
    fn in_json_an_error_is_its_name() {
        let json = serde_json::to_string(&Errno::EFAULT).unwrap();
        assert_eq!(json, "\"EFAULT\"");
        assert_eq!(serde_json::from_str::<Errno>(&json).unwrap(), Errno::EFAULT);
        assert!(serde_json::from_str::<Errno>("\"EWHAT\"").is_err());
    }
}

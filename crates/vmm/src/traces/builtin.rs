//! The recordings that come with the crate.

use std::io::Read;

use lzma_rust2::LzmaReader;

/// One machine: a kernel with its parameters, and the recordings that were made on it.
///
/// `recordings/README.md` says what the machines are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    name: &'static str,
    packed: &'static [u8],
}

macro_rules! machines {
    ($($name:literal),* $(,)?) => {
        &[$(Machine {
            name: $name,
            packed: include_bytes!(concat!("../../recordings/", $name, ".lzma")),
        }),*]
    };
}

/// What the unpacker may use: the packers' dictionaries have 64 MiB.
const MEMORY_KIB: u32 = 128 << 10;

/// What stands before a recording's name.
const TITLE: &str = "== ";

impl Machine {
    /// All of them.
    pub const ALL: &[Self] = machines![
        "npt-l4",
        "npt-l4-complete",
        "npt-l4-legacy-mmu",
        "npt-l4-shadow-npt-off",
        "npt-l5",
        "npt-l5-complete",
        "ept-l4",
        "ept-l4-l1tf",
        "ept-l4-legacy-mmu",
        "ept-l4-noad",
        "ept-l4-nopml",
        "ept-l4-shadow-ept-off",
        "ept-l5",
        "ept-l5-noad",
    ];

    /// The machine of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .find(|machine| machine.name == name)
            .copied()
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        self.name
    }

    /// All its recordings, unpacked: some megabytes of text.
    ///
    /// # Panics
    /// Not unless the crate was changed: its archives are tested.
    pub fn recordings(self) -> Vec<Builtin> {
        let text = self.unpacked().expect("an archive of this crate");
        let mut found: Vec<Builtin> = Vec::new();
        for line in text.split_inclusive('\n') {
            match (line.strip_prefix(TITLE), found.last_mut()) {
                (Some(scenario), _) => found.push(Builtin {
                    machine: self.name,
                    scenario: scenario.trim_end().to_owned(),
                    text: String::new(),
                }),
                (None, Some(recording)) => recording.text.push_str(line),
                (None, None) => {}
            }
        }
        found
    }

    fn unpacked(self) -> std::io::Result<String> {
        let mut text = String::new();
        LzmaReader::new_mem_limit(self.packed, MEMORY_KIB, None)?.read_to_string(&mut text)?;
        Ok(text)
    }
}

impl core::fmt::Debug for Machine {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "machine {}", self.name)
    }
}

/// One recording that comes with the crate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Builtin {
    /// The machine it was made on.
    pub machine: &'static str,
    /// What it shows, with a number: `08-dirty-log-2m-eager-split`.
    pub scenario: String,
    text: String,
}

impl Builtin {
    /// The recording, for [`Recording::parse`](super::Recording::parse).
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// All recordings of all machines, unpacked a machine at a time.
pub fn builtin() -> impl Iterator<Item = Builtin> {
    Machine::ALL.iter().flat_map(|machine| machine.recordings())
}

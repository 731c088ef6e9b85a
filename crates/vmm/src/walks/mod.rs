//! Walks of guest page tables, held against a kernel: `KVM_TRANSLATE` over random registers and tables.
//!
//! The kernel answers whether an address is valid and where it goes, and leaves accessed bits in memory; it does not say
//! why. All three are compared. [`compare`] takes anything that translates ([`Walker`]), so that a kernel that is wrong can
//! be played, to see that it is found out.

mod execute;
mod generate;
pub(crate) mod scene;
mod skipped;
mod state;
mod stats;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::{Duration, Instant};

use slat_memslot::{Errno, Gpa, Gva};
use slat_mmu::role::{Cr0, Cr4, Efer};
use slat_mmu::walk::{AlignmentCheck, GuestPaging, GuestVendor, PagingMode};

pub use execute::{
    AccessConfig, AccessDifference, AccessEnd, AccessOutcome, DATA, Departure, Ended, Executor,
    HIGH, MEMORY_PAGES, ProtectionKeys, TABLE_PAGES, TEST_TABLES, Tried, UserHalf, WalkedBy,
    compare_accesses, data_offset, place_of,
};
pub use scene::{Scene, SceneError, SceneWalk, SecondSource};
pub use skipped::{Part, SkipReason, Skipped};
pub use state::{CpuState, GigabytePages, Memory, RAM_PAGES, ROM_PAGES, ROM_START};
pub use stats::{End, Stats};

use generate::Generator;

/// A vCPU that translates.
pub trait Walker {
    /// When its guests have pages of 1 GiB.
    fn gigabyte_pages(&self) -> GigabytePages;

    /// Fills its memory.
    fn load(&mut self, memory: &Memory);

    /// Sets registers and CPUID; whether it is in the state's mode then.
    ///
    /// # Errors
    /// It refuses.
    fn set(&mut self, state: &CpuState) -> Result<bool, Errno>;

    /// Translates: nothing if the address is not valid.
    ///
    /// # Errors
    /// The call fails.
    fn translate(&mut self, address: Gva) -> Result<Option<Gpa>, Errno>;

    /// What its memory from address 0 on holds.
    fn words(&self) -> Vec<u64>;
}

/// No vCPU, where there is no KVM.
impl Walker for std::convert::Infallible {
    fn gigabyte_pages(&self) -> GigabytePages {
        match *self {}
    }

    fn load(&mut self, _: &Memory) {
        match *self {}
    }

    fn set(&mut self, _: &CpuState) -> Result<bool, Errno> {
        match *self {}
    }

    fn translate(&mut self, _: Gva) -> Result<Option<Gpa>, Errno> {
        match *self {}
    }

    fn words(&self) -> Vec<u64> {
        match *self {}
    }
}

/// The modes that a vCPU's own paging can have.
pub const MODES: [PagingMode; 6] = [
    PagingMode::Unpaged,
    PagingMode::Bits32,
    PagingMode::Bits32Pse,
    PagingMode::Pae,
    PagingMode::Level4,
    PagingMode::Level5,
];

/// The least registers of a mode.
pub fn mode_state(mode: PagingMode) -> CpuState {
    let (cr4, efer) = match mode {
        PagingMode::Bits32Pse => (Cr4::PSE, Efer::empty()),
        PagingMode::Pae => (Cr4::PAE, Efer::empty()),
        PagingMode::Level4 => (Cr4::PAE, Efer::LME | Efer::LMA),
        PagingMode::Level5 => (Cr4::PAE | Cr4::LA57, Efer::LME | Efer::LMA),
        _ => (Cr4::empty(), Efer::empty()),
    };
    let paging = match mode {
        PagingMode::Unpaged => Cr0::empty(),
        _ => Cr0::PG,
    };
    CpuState {
        cr0: Cr0::PE | paging,
        cr3: 0,
        cr4,
        efer,
        ac: AlignmentCheck::Clear,
        maxphyaddr: 46,
        vendor: GuestVendor::Intel,
        gigabyte_pages: false,
        mode,
    }
}

/// What to compare.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// The seed of the random numbers.
    pub seed: u64,
    /// How many translations.
    pub translations: u64,
    /// How many of them on one state of registers and tables.
    pub per_state: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            seed: 0,
            translations: 100_000,
            per_state: 128,
        }
    }
}

/// Where the two differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The seed, and which state it gave.
    pub seed: u64,
    /// Registers and CPUID.
    pub state: CpuState,
    /// The address.
    pub address: Gva,
    /// What the kernel says.
    pub kernel: Option<Gpa>,
    /// What the model says.
    pub model: String,
    /// A word that differs afterwards: where, the kernel's, the model's.
    pub word: Option<(u64, u64, u64)>,
    /// The entries on the way, as the model read them.
    pub entries: Vec<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}: {:?}", self.seed, self.state)?;
        match self.kernel {
            Some(gpa) => writeln!(f, "{}: the kernel says {gpa}", self.address)?,
            None => writeln!(f, "{}: the kernel says not valid", self.address)?,
        }
        writeln!(f, "the model says {}", self.model)?;
        if let Some((at, kernel, model)) = self.word {
            writeln!(f, "entry at {at:#x}: kernel {kernel:#x}, model {model:#x}")?;
        }
        for entry in &self.entries {
            writeln!(f, "  {entry}")?;
        }
        Ok(())
    }
}

/// A comparison that has ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What was translated, with which results.
    pub stats: Stats,
    /// Modes that the kernel cannot run.
    pub skipped: Vec<Skipped>,
    /// The first difference, if there was one.
    pub difference: Option<Box<Difference>>,
    /// How long it took.
    pub elapsed: Duration,
}

/// Compares a kernel with the model until `config.translations` are made or the two differ.
///
/// `progress` is told now and then how many are done.
///
/// # Errors
/// The kernel runs no mode at all, or a translation fails as a call.
pub fn compare<W: Walker>(
    walker: &mut W,
    config: &Config,
    mut progress: impl FnMut(u64),
) -> Result<Outcome, Errno> {
    let start = Instant::now();
    let (modes, refused, skipped) = probe(walker);
    if modes.is_empty() {
        return Err(Errno::EINVAL);
    }
    let mut generator = Generator::new(config.seed, modes).without(refused);
    let mut stats = Stats::default();
    let mut difference = None;
    while stats.translations < config.translations && difference.is_none() {
        let state = generator.state();
        let memory = generator.memory(&state);
        walker.load(&memory);
        if !matches!(walker.set(&state), Ok(true)) {
            stats.refused_states += 1;
            continue;
        }
        stats.states += 1;
        let left = config.translations - stats.translations;
        let count = left.min(u64::from(config.per_state));
        let addresses: Vec<Gva> = (0..count).map(|_| generator.address(state.mode)).collect();
        let batch = Batch {
            state,
            memory,
            addresses,
        };
        difference = batch.run(walker, config.seed, &mut stats)?;
        progress(stats.translations);
    }
    Ok(Outcome {
        stats,
        skipped,
        difference,
        elapsed: start.elapsed(),
    })
}

/// The modes that a kernel runs, the bits of CR4 that it refuses, and what both leave out.
fn probe<W: Walker>(walker: &mut W) -> (Vec<PagingMode>, Cr4, Vec<Skipped>) {
    let (mut modes, mut refused, mut skipped) = (Vec::new(), Cr4::empty(), Vec::new());
    walker.load(&Memory::new());
    for mode in MODES {
        match SkipReason::of(walker.set(&mode_state(mode))) {
            None => modes.push(mode),
            Some(why) => skipped.push(Skipped {
                part: Part::Mode(mode),
                why,
            }),
        }
    }
    let last = modes.last().copied().unwrap_or(PagingMode::Unpaged);
    for (part, bit) in Part::BITS {
        let mut state = mode_state(last);
        state.cr4 |= bit;
        if let Some(why) = SkipReason::of(walker.set(&state)) {
            refused |= bit;
            skipped.push(Skipped { part, why });
        }
    }
    (modes, refused, skipped)
}

/// Translations on one state.
struct Batch {
    state: CpuState,
    memory: Memory,
    addresses: Vec<Gva>,
}

impl Batch {
    /// Compares each answer, and memory at the end. If memory differs, the batch is run again and memory compared each time.
    fn run<W: Walker>(
        &self,
        walker: &mut W,
        seed: u64,
        stats: &mut Stats,
    ) -> Result<Option<Box<Difference>>, Errno> {
        let paging = self.state.paging(&self.memory, walker.gigabyte_pages());
        let model = self.memory.clone();
        for address in &self.addresses {
            let kernel = walker.translate(*address)?;
            let answer = paging.kvm_translate(&model, *address);
            stats.count(self.state.mode, &answer);
            if kernel != valid(answer.ok().map(|found| found.address)) {
                return self.explain(walker, seed).map(Some);
            }
        }
        if walker.words() == model.words() {
            return Ok(None);
        }
        self.explain(walker, seed).map(Some)
    }

    /// Finds the first translation after which the two differ.
    fn explain<W: Walker>(&self, walker: &mut W, seed: u64) -> Result<Box<Difference>, Errno> {
        walker.load(&self.memory);
        let paging = self.state.paging(&self.memory, walker.gigabyte_pages());
        let model = self.memory.clone();
        let mut last = None;
        for address in &self.addresses {
            let (kernel, found) = step(walker, &paging, &model, *address)?;
            let word = first_difference(&walker.words(), &model.words());
            let same = kernel == found.1 && word.is_none();
            last = Some(Box::new(Difference {
                seed,
                state: self.state,
                address: *address,
                kernel,
                model: found.0,
                word,
                entries: found.2,
            }));
            if !same {
                break;
            }
        }
        // A batch has at least one address.
        last.ok_or(Errno::EINVAL)
    }
}

/// What the model says, in words, as a valid address, and by which entries.
type Explained = (String, Option<Gpa>, Vec<String>);

fn step<W: Walker>(
    walker: &mut W,
    paging: &GuestPaging,
    model: &Memory,
    address: Gva,
) -> Result<(Option<Gpa>, Explained), Errno> {
    let kernel = walker.translate(address)?;
    let mut trail = slat_mmu::walk::WalkTrail::default();
    let answer = paging.without_canonical_check().walk(
        model,
        &mut slat_mmu::walk::Unnested,
        &mut trail,
        address,
        slat_mmu::walk::ErrorCode::READ,
    );
    let entries = trail.iter().map(|step| format!("{step:x?}")).collect();
    let (text, gpa) = match answer {
        Ok(found) => (found.address.to_string(), valid(Some(found.address))),
        Err(fault) => (fault.to_string(), None),
    };
    Ok((kernel, (text, gpa, entries)))
}

/// `KVM_TRANSLATE` calls an address invalid that translates to the highest one of all.
fn valid(gpa: Option<Gpa>) -> Option<Gpa> {
    gpa.filter(|gpa| gpa.raw() != u64::MAX)
}

fn first_difference(kernel: &[u64], model: &[u64]) -> Option<(u64, u64, u64)> {
    let mut pairs = (0_u64..).zip(kernel.iter().zip(model));
    let (index, (kernel, model)) = pairs.find(|(_, (kernel, model))| kernel != model)?;
    Some((8 * index, *kernel, *model))
}

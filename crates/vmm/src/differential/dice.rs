//! Random numbers with a taste for edges.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use slat_memslot::PAGE_SIZE;

/// A reproducible source of choices.
#[derive(Clone, Debug)]
pub(crate) struct Dice(ChaCha8Rng);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// A number below `end`, which must not be 0.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0.random_range(0..end)
    }

    pub(crate) fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn one_in(&mut self, n: u32) -> bool {
        self.below(u64::from(n.max(1))) == 0
    }

    pub(crate) fn bits(&mut self) -> u64 {
        self.0.random()
    }

    /// One of the choices, each as likely as the others.
    pub(crate) fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        let index = usize::try_from(self.below(choices.len() as u64)).unwrap_or(0);
        choices[index]
    }

    /// A small number, the smaller the likelier.
    pub(crate) fn small(&mut self, end: u64) -> u64 {
        let end = self.below(end.max(1)) + 1;
        self.below(end)
    }

    /// A value, or rarely one beside it: off by a byte, by half a page, by a page.
    pub(crate) fn near(&mut self, value: u64) -> u64 {
        match self.below(24) {
            0 => value.wrapping_add(1),
            1 => value.wrapping_sub(1),
            2 => value.wrapping_add(PAGE_SIZE / 2),
            3 => value.wrapping_add(PAGE_SIZE),
            4 => value.wrapping_sub(PAGE_SIZE),
            _ => value,
        }
    }

    /// A value as it is nine times of ten, else one of the odd ones.
    pub(crate) fn mostly(&mut self, value: u64, odd: &[u64]) -> u64 {
        if self.percent(90) {
            value
        } else {
            self.pick(odd)
        }
    }
}

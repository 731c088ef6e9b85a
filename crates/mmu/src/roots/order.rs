//! The order of four things that stay where they are.

/// Which of four slots is first, second, third and fourth: one byte each, the first lowest.
///
/// The places of a cache are large and looked at in every switch; only this word changes when they change order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Order(u32);

/// Each slot in its own place.
const START: u32 = 0x0302_0100;
/// A one in every byte.
const ONES: u32 = 0x0101_0101;
/// The uppermost bit of every byte.
const TOPS: u32 = 0x8080_8080;

impl Default for Order {
    fn default() -> Self {
        Self(START)
    }
}

impl Order {
    /// The slot that has a number, of which only the lowest two bits count.
    #[inline]
    pub(super) const fn slot(self, number: usize) -> usize {
        (self.0 >> (8 * (number & 3)) & 3) as usize
    }

    /// The number that a slot has, given as a bit: `1 << slot`.
    #[inline]
    pub(super) const fn number(self, slot_bit: u32) -> usize {
        (self.place_of(slot_bit).trailing_zeros() / 8) as usize
    }

    /// A word whose lowest bit that is set is the uppermost of the byte that holds a slot.
    const fn place_of(self, slot_bit: u32) -> u32 {
        let differ = self.0 ^ (slot_bit.trailing_zeros() * ONES);
        differ.wrapping_sub(ONES) & !differ & TOPS
    }

    /// Puts a slot in front, given as a bit; those before it move back by one.
    #[inline]
    #[must_use]
    pub(super) const fn bring_slot_forward(self, slot_bit: u32) -> Self {
        let place = self.place_of(slot_bit);
        // The bytes from the first to the slot's own.
        let moved = place ^ place.wrapping_sub(1);
        Self(self.0 & !moved | self.0 << 8 & moved | slot_bit.trailing_zeros())
    }

    /// Puts number 1 in front, and number 0 behind it.
    #[inline]
    #[must_use]
    pub(super) const fn swap_first(self) -> Self {
        Self(self.0 & 0xffff_0000 | self.0 << 8 & 0xff00 | self.0 >> 8 & 0xff)
    }

    /// Puts a number in front; those before it move back by one.
    #[must_use]
    pub(super) const fn bring_forward(self, number: usize) -> Self {
        self.bring_slot_forward(1 << self.slot(number))
    }

    /// Puts a number last; those behind it move forward by one.
    #[must_use]
    pub(super) const fn send_back(self, number: usize) -> Self {
        let shift = 8 * (number & 3);
        let wanted = self.0 >> shift & 0xff;
        let kept = (1 << shift) - 1;
        Self(self.0 & kept | self.0 >> 8 & !kept & 0x00ff_ffff | wanted << 24)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(order: Order) -> [usize; 4] {
        [0, 1, 2, 3].map(|number| order.slot(number))
    }

    /// Walks every order that can come about, and compares with a list.
    #[test]
    fn every_order_moves_like_a_list() {
        let mut seen = vec![Order::default()];
        let mut next = 0;
        while let Some(order) = seen.get(next).copied() {
            for number in 0..4 {
                assert_eq!(order.number(1 << order.slot(number)), number);
                let mut forward = all(order);
                forward[..=number].rotate_right(1);
                assert_eq!(all(order.bring_forward(number)), forward);
                let mut back = all(order);
                back[number..].rotate_left(1);
                assert_eq!(all(order.send_back(number)), back);
                for other in [order.bring_forward(number), order.send_back(number)] {
                    if !seen.contains(&other) {
                        seen.push(other);
                    }
                }
            }
            assert_eq!(order.swap_first(), order.bring_forward(1));
            next += 1;
        }
        assert_eq!(seen.len(), 24);
    }
}

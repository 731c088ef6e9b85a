//! Counts against a second statement of the model, in which contents are numbers and every interleaving is played.

use proptest::prelude::*;

use super::super::{Count, GuestOp, Half, ListOrder, Program, Status, count};

/// A byte string as it was written: which write, and as what. Sent as something else it is nothing.
type Content = Option<(u32, Status)>;

#[derive(Clone)]
struct Naive {
    memory: [Content; 2],
    relied_on: [Option<u32>; 2],
    listed: Status,
    dirty: bool,
    snapshot: bool,
    list: Status,
    destination: [Content; 2],
    has_moved: bool,
    writes: u32,
    bad: bool,
}

impl Naive {
    fn new() -> Self {
        Self {
            memory: [Some((0, Status::Private)); 2],
            relied_on: [Some(0); 2],
            listed: Status::Private,
            dirty: true,
            snapshot: false,
            list: Status::Private,
            destination: [None; 2],
            has_moved: false,
            writes: 0,
            bad: false,
        }
    }

    fn guest(&mut self, op: GuestOp, announcement_dirties: bool) {
        match op {
            GuestOp::Announce(kind) => {
                self.dirty |= announcement_dirties && kind != self.listed;
                self.listed = kind;
            }
            GuestOp::Write(half, kind) => {
                self.writes += 1;
                self.memory[half as usize] = Some((self.writes, kind));
                self.relied_on[half as usize] = Some(self.writes);
                self.dirty = true;
            }
            GuestOp::Lose => self.relied_on = [None; 2],
            GuestOp::Read(_) => {
                for (found, wanted) in self.memory.iter().zip(self.relied_on) {
                    let found = found.map(|(number, _)| number);
                    self.bad |= wanted.is_some() && found != wanted;
                }
            }
            GuestOp::Rely | GuestOp::Remap(_) => (),
        }
    }

    fn host(&mut self, step: char) {
        match step {
            'd' => self.snapshot |= std::mem::take(&mut self.dirty),
            'l' => self.list = self.listed,
            's' if std::mem::take(&mut self.snapshot) => {
                let list = self.list;
                let sent = |content: &Content| content.filter(|&(_, kind)| kind == list);
                self.destination = [sent(&self.memory[0]), sent(&self.memory[1])];
            }
            's' => (),
            _ => {
                self.memory = self.destination;
                self.has_moved = true;
            }
        }
    }
}

/// The steps of the host, what is done while the guest stands still in one word.
fn host(order: ListOrder, rounds: usize) -> Vec<&'static str> {
    let (round, last) = match order {
        ListOrder::ListFirst => (["l", "d", "s"], "ldsm"),
        ListOrder::DirtyFirst => (["d", "l", "s"], "dlsm"),
        ListOrder::Once => (["d", "l", "s"], "dsm"),
    };
    let mut steps = round.repeat(rounds);
    if order == ListOrder::Once {
        steps.push("l");
    }
    steps.push(last);
    steps
}

fn play(at: Naive, guest: &[GuestOp], host: &[&str], dirties: bool, sum: &mut Count) {
    if guest.is_empty() && host.is_empty() {
        sum.interleavings += 1;
        sum.bad += u128::from(at.bad);
    }
    if let [op, rest @ ..] = guest {
        let mut next = at.clone();
        next.guest(*op, dirties);
        play(next, rest, host, dirties, sum);
    }
    if let [steps, rest @ ..] = host {
        let mut next = at;
        steps.chars().for_each(|step| next.host(step));
        play(next, guest, rest, dirties, sum);
    }
}

fn any_status() -> impl Strategy<Value = Status> {
    prop::sample::select(&Status::ALL)
}

fn any_op() -> impl Strategy<Value = GuestOp> {
    let half = prop::sample::select(&Half::ALL);
    prop_oneof![
        3 => any_status().prop_map(GuestOp::Announce),
        4 => (half, any_status()).prop_map(|(half, kind)| GuestOp::Write(half, kind)),
        1 => Just(GuestOp::Lose),
        1 => Just(GuestOp::Rely),
        3 => any_status().prop_map(GuestOp::Read),
    ]
}

proptest! {
    #[test]
    fn counted_as_played(
        ops in prop::collection::vec(any_op(), 1..7),
        order in prop::sample::select(&ListOrder::ALL),
        rounds in 0_usize..3,
        dirties in any::<bool>(),
    ) {
        let mut wanted = Count::default();
        play(Naive::new(), &ops, &host(order, rounds), dirties, &mut wanted);
        prop_assert_eq!(count(&Program::new(ops), order, rounds, dirties), wanted);
    }
}

//! Schedules of the checker of races, played with real commands on two VMs.

use super::super::{GuestState, Session, SevVm, SevVmType};
use crate::migration::{
    Damage, GuestOp, HostOp, Rule, Rules, Schedule, Setting, Status, Verdict, check,
};

/// Source and destination, and what the guest wrote last.
struct Pair {
    source: SevVm,
    destination: SevVm,
    written: [u64; 2],
    next: u64,
}

impl Pair {
    fn new() -> Self {
        let mut source = SevVm::new(SevVmType::Sev);
        let mut start = || {
            source.init()?;
            source.launch_start(0)?;
            source.host_write(0, 1);
            source.launch_update_data(0)?;
            source.launch_measure()?;
            source.launch_finish()?;
            source.send_start()
        };
        let session: Session = start().expect("a launch");
        let mut destination = SevVm::new(SevVmType::Sev);
        destination.init().expect("a new VM");
        destination.receive_start(session).expect("no guest yet");
        Self {
            source,
            destination,
            written: [1; 2],
            next: 2,
        }
    }

    fn play(&mut self, schedule: &Schedule) {
        for step in schedule.steps() {
            match (step.guest_op(), step.host_op()) {
                (Some((_, op)), _) => self.guest(op),
                (None, Some(HostOp::Send)) => self.send(step.sent()),
                (None, Some(HostOp::Resume)) => {
                    self.source.send_finish().expect("it is sent");
                    self.destination.receive_finish().expect("it is received");
                }
                (None, _) => (),
            }
        }
    }

    /// The one of the two that runs.
    fn running(&mut self) -> &mut SevVm {
        if self.source.guest_status() == Ok(GuestState::Sent) {
            &mut self.destination
        } else {
            &mut self.source
        }
    }

    fn guest(&mut self, op: GuestOp) {
        if let GuestOp::Write(half, kind) = op {
            let value = self.next;
            self.next += 1;
            self.written[half as usize] = value;
            let private = kind == Status::Private;
            self.running().guest_write(0, half as usize, private, value);
        }
    }

    fn send(&mut self, pages: &[(usize, Status)]) {
        for &(page, kind) in pages {
            let page = page as u64;
            if kind == Status::Shared {
                self.source.copy_plainly(page, &mut self.destination);
                continue;
            }
            let packet = self.source.send_update_data(page, 0, 4096);
            let packet = packet.expect("it is sent");
            let taken = self
                .destination
                .receive_update_data(page, (0, 4096), &packet);
            taken.expect("it is received");
        }
    }
}

/// Each schedule that the checker finds loses what it says, with the firmware's own commands.
#[test]
fn schedules_break_real_pages() {
    let mut played = 0;
    for rule in Rule::ALL {
        let setting = Setting {
            rules: Rules::default().with(rule, false),
            ..Setting::default()
        };
        let Ok(Verdict::Broken(broken)) = check(&setting) else {
            continue;
        };
        let Damage::Content { half, .. } = broken.damage else {
            continue;
        };
        let mut pair = Pair::new();
        pair.play(&broken.schedule);
        let read = broken
            .schedule
            .steps()
            .last()
            .and_then(|step| step.guest_op());
        let Some((_, GuestOp::Read(kind))) = read else {
            panic!("{rule}: the last step reads");
        };
        let private = kind == Status::Private;
        let found = pair.running().guest_read(0, private)[half as usize];
        let wanted = pair.written[half as usize];
        assert_ne!(found, Some(wanted), "{rule}:\n{}", broken.schedule);
        played += 1;
    }
    assert_eq!(
        played, 7,
        "all rules but the list that moves, and the one that is not needed"
    );
}

/// A page that goes the right way arrives.
#[test]
fn pages_sent_as_what_they_are_arrive() {
    for kind in Status::ALL {
        let mut pair = Pair::new();
        let private = kind == Status::Private;
        for half in 0..2 {
            pair.source.guest_write(0, half, private, 7);
        }
        pair.send(&[(0, kind)]);
        assert_eq!(pair.destination.guest_read(0, private), [Some(7); 2]);
        pair.send(&[(0, kind.other())]);
        assert_eq!(
            pair.destination.guest_read(0, private),
            [None; 2],
            "sent as {}",
            kind.other()
        );
    }
}

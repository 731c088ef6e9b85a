//! Each command in each state.

use slat_memslot::Errno;

use super::super::{FirmwareError, GuestState, Policy, SevError, SevRule, SevVm, SevVmType};

/// A guest of either kind in a state.
fn guest(kind: SevVmType, state: GuestState) -> SevVm {
    let mut vm = SevVm::new(kind);
    vm.init().expect("a new VM");
    let mut running = || {
        vm.launch_start(0)?;
        if state == GuestState::Launching {
            return Ok(());
        }
        vm.launch_measure()?;
        if state == GuestState::Secret {
            return Ok(());
        }
        vm.launch_finish()
    };
    let done: Result<(), SevError> = match state {
        GuestState::Invalid => Ok(()),
        GuestState::Receiving => {
            let mut source = guest(kind, GuestState::Running);
            let session = source.send_start().expect("it runs");
            vm.receive_start(session)
        }
        GuestState::Sending | GuestState::Sent => running().and_then(|()| {
            let _session = vm.send_start()?;
            match state {
                GuestState::Sent => vm.send_finish(),
                _ => Ok(()),
            }
        }),
        _ => running(),
    };
    done.expect("the way there is open");
    assert_eq!(vm.state_for_tests(), state);
    vm
}

type Command = (&'static str, fn(&mut SevVm) -> Result<(), SevError>);

fn session() -> super::super::Session {
    let mut source = guest(SevVmType::Sev, GuestState::Running);
    source.send_start().expect("it runs")
}

/// Each command, the states in which it is taken, and the state after it.
#[test]
fn every_command_in_every_state() {
    use GuestState::{Invalid, Launching, Receiving, Running, Secret, Sending, Sent};
    let commands: [(Command, &[GuestState], Option<GuestState>); 11] = [
        (
            ("launch_start", |vm| vm.launch_start(0)),
            &[Invalid],
            Some(Launching),
        ),
        (
            ("launch_update_data", |vm| vm.launch_update_data(1)),
            &[Launching],
            None,
        ),
        (
            ("launch_measure", SevVm::launch_measure),
            &[Launching],
            Some(Secret),
        ),
        (
            ("launch_secret", |vm| vm.launch_secret(1, 2)),
            &[Secret],
            None,
        ),
        (
            ("launch_finish", SevVm::launch_finish),
            &[Secret],
            Some(Running),
        ),
        (
            ("send_start", |vm| vm.send_start().map(drop)),
            &[Running],
            Some(Sending),
        ),
        (
            ("send_update_data", |vm| {
                vm.send_update_data(1, 0, 4096).map(drop)
            }),
            &[Sending],
            None,
        ),
        (("send_finish", SevVm::send_finish), &[Sending], Some(Sent)),
        (
            ("send_cancel", SevVm::send_cancel),
            &[Sending],
            Some(Running),
        ),
        (
            ("receive_start", |vm| vm.receive_start(session())),
            &[Invalid],
            Some(Receiving),
        ),
        (
            ("receive_finish", SevVm::receive_finish),
            &[Receiving],
            Some(Running),
        ),
    ];
    for ((name, command), states, next) in commands {
        for state in GuestState::ALL {
            let mut vm = guest(SevVmType::Sev, state);
            let result = command(&mut vm);
            if states.contains(&state) {
                assert_eq!(result, Ok(()), "{name} when {state}");
                assert_eq!(
                    vm.state_for_tests(),
                    next.unwrap_or(state),
                    "{name} when {state}"
                );
                continue;
            }
            let error = result.expect_err("not in this state");
            assert_eq!(
                (error.errno(), vm.state_for_tests()),
                (Errno::EIO, state),
                "{name}"
            );
            let said = error.rule.firmware().expect("firmware refuses");
            let wanted = match state {
                Invalid => FirmwareError::InvalidGuest,
                _ => FirmwareError::InvalidGuestState,
            };
            assert_eq!(said, wanted, "{name} when {state}");
        }
    }
}

#[test]
fn nothing_goes_before_init_and_init_goes_once() {
    let mut vm = SevVm::new(SevVmType::Sev);
    let refused = vm.launch_start(0).expect_err("no guest yet");
    assert_eq!(
        (refused.rule, refused.errno()),
        (SevRule::NotAGuest, Errno::ENOTTY)
    );
    let mut source = guest(SevVmType::Sev, GuestState::Running);
    let _session = source.send_start().expect("it runs");
    let packet = source.send_update_data(1, 0, 4096).expect("it is sent");
    let refused = vm
        .receive_update_data(1, (0, 4096), &packet)
        .expect_err("no guest yet");
    assert_eq!(refused.errno(), Errno::EINVAL, "this command alone says so");
    vm.init().expect("once");
    let refused = vm.init().expect_err("twice");
    assert_eq!(
        (refused.rule, refused.errno()),
        (SevRule::InitializedTwice, Errno::EINVAL)
    );
    let mut late = SevVm::new(SevVmType::Sev);
    late.create_vcpu();
    assert_eq!(late.init().expect_err("too late").rule, SevRule::VcpusExist);
}

#[test]
fn registers_are_encrypted_once_and_with_sev_es_only() {
    let mut sev = guest(SevVmType::Sev, GuestState::Launching);
    let refused = sev.launch_update_vmsa().expect_err("SEV has none");
    assert_eq!(
        (refused.rule, refused.errno()),
        (SevRule::NotSevEs, Errno::ENOTTY)
    );
    let mut es = guest(SevVmType::SevEs, GuestState::Launching);
    es.create_vcpu();
    es.create_vcpu();
    es.launch_update_vmsa().expect("once");
    let refused = es.launch_update_vmsa().expect_err("twice");
    assert_eq!(
        (refused.rule, refused.errno()),
        (SevRule::VmsaTwice, Errno::EINVAL)
    );
}

#[test]
fn policies_are_kept() {
    let mut vm = SevVm::new(SevVmType::Sev);
    vm.init().expect("a new VM");
    let refused = vm.launch_start(Policy::ES.bits()).expect_err("no SEV-ES");
    assert_eq!(refused.rule.firmware(), Some(FirmwareError::PolicyFailure));
    vm.launch_start(Policy::NOSEND.bits()).expect("a policy");
    vm.launch_measure().expect("launching");
    vm.launch_finish().expect("measured");
    let refused = vm.send_start().expect_err("the policy forbids it");
    assert_eq!(refused.rule.firmware(), Some(FirmwareError::PolicyFailure));
    assert_eq!(vm.guest_status(), Ok(GuestState::Running));
}

#[test]
fn a_page_is_sent_at_most_at_once() {
    let vm = guest(SevVmType::Sev, GuestState::Sending);
    for (offset, len, taken) in [
        (0, 4096, true),
        (16, 4080, true),
        (16, 4096, false),
        (0, 0, false),
        (0, 4097, false),
        (u64::MAX, 2, false),
    ] {
        let result = vm.send_update_data(1, offset, len);
        assert_eq!(result.is_ok(), taken, "{offset} {len}");
    }
}

#[test]
fn packets_belong_to_their_session() {
    let mut source = guest(SevVmType::Sev, GuestState::Running);
    let first = source.send_start().expect("it runs");
    let packet = source.send_update_data(1, 0, 4096).expect("it is sent");
    source.send_cancel().expect("it is sent");
    let second = source.send_start().expect("it runs again");
    let mut other = SevVm::new(SevVmType::Sev);
    other.init().expect("a new VM");
    other.receive_start(second).expect("no guest yet");
    let refused = other
        .receive_update_data(1, (0, 4096), &packet)
        .expect_err("another session");
    assert_eq!(refused.rule.firmware(), Some(FirmwareError::BadMeasurement));
    let mut right = SevVm::new(SevVmType::Sev);
    right.init().expect("a new VM");
    right.receive_start(first).expect("no guest yet");
    right
        .receive_update_data(1, (0, 4096), &packet)
        .expect("its session");
}

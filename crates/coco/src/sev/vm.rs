//! A SEV or SEV-ES guest, from its launch to its migration.

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use super::error::{FirmwareError, SevError, SevRule};
use super::memory::{HALVES, Key, Pages, Stored};
use super::region::{EncRegion, Regions};
use super::state::{GuestState, Policy, SevVmType};
use super::transport::{Packet, Session};

/// A VM with `KVM_MEMORY_ENCRYPT_OP`, its guest in the firmware, and its memory.
///
/// Commands are named as KVM's. One that is refused changes nothing.
#[derive(Clone, Debug)]
pub struct SevVm {
    kind: SevVmType,
    is_guest: bool,
    state: GuestState,
    policy: Policy,
    key: Key,
    session: Option<Session>,
    /// By vCPU: whether its state is encrypted.
    vcpus: Vec<bool>,
    regions: Regions,
    memory: Pages,
    cache_flushes: u64,
}

/// Names for keys and sessions that nobody else has.
fn fresh() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

type Answer<T> = Result<T, SevError>;

/// The command that a rule refuses.
fn refused(command: &'static str) -> impl Fn(SevRule) -> SevError {
    move |rule| SevError { command, rule }
}

impl SevVm {
    /// A VM without vCPUs and without memory of its own.
    pub fn new(kind: SevVmType) -> Self {
        Self::with_regions(kind, Regions::default())
    }

    /// The same, with a limit on what it may pin.
    pub fn with_regions(kind: SevVmType, regions: Regions) -> Self {
        Self {
            kind,
            is_guest: false,
            state: GuestState::Invalid,
            policy: Policy::empty(),
            key: Key::new(fresh()),
            session: None,
            vcpus: Vec::new(),
            regions,
            memory: Pages::default(),
            cache_flushes: 0,
        }
    }

    /// Makes it a SEV guest (`KVM_SEV_INIT2`, `__sev_guest_init`).
    ///
    /// # Errors
    /// It is one, or there are vCPUs.
    pub fn init(&mut self) -> Answer<()> {
        let refuse = refused("INIT2");
        if !self.vcpus.is_empty() {
            return Err(refuse(SevRule::VcpusExist));
        }
        if self.is_guest {
            return Err(refuse(SevRule::InitializedTwice));
        }
        self.is_guest = true;
        Ok(())
    }

    /// Adds a vCPU (`KVM_CREATE_VCPU`).
    pub fn create_vcpu(&mut self) {
        self.vcpus.push(false);
    }

    /// Begins a guest with this policy (`KVM_SEV_LAUNCH_START`).
    ///
    /// # Errors
    /// The VM is no SEV guest; the firmware has one for it; the policy wants SEV-ES and it has none.
    pub fn launch_start(&mut self, policy: u32) -> Answer<()> {
        let policy = Policy::from_bits_retain(policy);
        self.begin("LAUNCH_START", policy, GuestState::Launching)
    }

    fn begin(&mut self, command: &'static str, policy: Policy, state: GuestState) -> Answer<()> {
        self.in_state(command, &[GuestState::Invalid])?;
        if policy.contains(Policy::ES) && self.kind == SevVmType::Sev {
            let rule = SevRule::Firmware(FirmwareError::PolicyFailure);
            return Err(refused(command)(rule));
        }
        (self.policy, self.state) = (policy, state);
        Ok(())
    }

    /// Encrypts a page in its place and measures it (`KVM_SEV_LAUNCH_UPDATE_DATA`).
    ///
    /// # Errors
    /// The guest is not being launched, or the page cannot be pinned.
    pub fn launch_update_data(&mut self, page: u64) -> Answer<()> {
        let command = "LAUNCH_UPDATE_DATA";
        self.pin_one(command)?;
        self.in_state(command, &[GuestState::Launching])?;
        let key = Some(self.key);
        let encrypted = self
            .memory
            .page(page)
            .map(|half| Stored::under(half.read(None), key));
        self.memory.set(page, encrypted);
        Ok(())
    }

    /// Encrypts every vCPU's state (`KVM_SEV_LAUNCH_UPDATE_VMSA`).
    ///
    /// # Errors
    /// The VM is not SEV-ES, the guest is not being launched, or a vCPU's state was encrypted before: KVM goes through them one
    /// by one, and those before that one stay encrypted.
    pub fn launch_update_vmsa(&mut self) -> Answer<()> {
        let command = "LAUNCH_UPDATE_VMSA";
        if !self.is_guest || self.kind != SevVmType::SevEs {
            return Err(refused(command)(SevRule::NotSevEs));
        }
        for vcpu in 0..self.vcpus.len() {
            if self.vcpus[vcpu] {
                return Err(refused(command)(SevRule::VmsaTwice));
            }
            self.in_state(command, &[GuestState::Launching])?;
            self.vcpus[vcpu] = true;
        }
        Ok(())
    }

    /// Ends the encryption of memory (`KVM_SEV_LAUNCH_MEASURE`).
    ///
    /// # Errors
    /// The guest is not being launched.
    pub fn launch_measure(&mut self) -> Answer<()> {
        self.go("LAUNCH_MEASURE", GuestState::Launching, GuestState::Secret)
    }

    /// Puts a secret into a page (`KVM_SEV_LAUNCH_SECRET`).
    ///
    /// # Errors
    /// The guest was not measured, or runs already.
    pub fn launch_secret(&mut self, page: u64, value: u64) -> Answer<()> {
        let command = "LAUNCH_SECRET";
        self.pin_one(command)?;
        self.in_state(command, &[GuestState::Secret])?;
        self.write_private(page, [Some(value); HALVES]);
        Ok(())
    }

    /// Lets the guest run (`KVM_SEV_LAUNCH_FINISH`).
    ///
    /// # Errors
    /// The guest was not measured, or runs already.
    pub fn launch_finish(&mut self) -> Answer<()> {
        self.go("LAUNCH_FINISH", GuestState::Secret, GuestState::Running)
    }

    /// What the firmware is doing with the guest (`KVM_SEV_GUEST_STATUS`).
    ///
    /// # Errors
    /// There is none.
    pub fn guest_status(&self) -> Answer<GuestState> {
        self.in_state("GUEST_STATUS", &GuestState::ALL[1..])?;
        Ok(self.state)
    }

    /// Begins to send the guest, which goes on running (`KVM_SEV_SEND_START`).
    ///
    /// # Errors
    /// The guest does not run, or its policy forbids it.
    pub fn send_start(&mut self) -> Answer<Session> {
        let command = "SEND_START";
        self.in_state(command, &[GuestState::Running])?;
        if self.policy.contains(Policy::NOSEND) {
            let rule = SevRule::Firmware(FirmwareError::PolicyFailure);
            return Err(refused(command)(rule));
        }
        let session = Session {
            number: fresh(),
            policy: self.policy,
        };
        (self.session, self.state) = (Some(session), GuestState::Sending);
        Ok(session)
    }

    /// Encrypts a page for its way (`KVM_SEV_SEND_UPDATE_DATA`). The firmware reads it with the guest's key, whatever it is.
    ///
    /// # Errors
    /// The guest is not being sent, or the range crosses the end of the page.
    pub fn send_update_data(&self, page: u64, offset: u64, len: u64) -> Answer<Packet> {
        let command = "SEND_UPDATE_DATA";
        self.one_page(command, offset, len)?;
        let session = self.sending(command, GuestState::Sending)?;
        let key = Some(self.key);
        Ok(Packet {
            session: session.number,
            halves: self.memory.page(page).map(|half| half.read(key)),
        })
    }

    /// Ends sending; the guest does not run here again (`KVM_SEV_SEND_FINISH`).
    ///
    /// # Errors
    /// The guest is not being sent.
    pub fn send_finish(&mut self) -> Answer<()> {
        self.go("SEND_FINISH", GuestState::Sending, GuestState::Sent)?;
        self.session = None;
        Ok(())
    }

    /// Gives up sending; the guest goes on here (`KVM_SEV_SEND_CANCEL`).
    ///
    /// # Errors
    /// The guest is not being sent.
    pub fn send_cancel(&mut self) -> Answer<()> {
        self.go("SEND_CANCEL", GuestState::Sending, GuestState::Running)?;
        self.session = None;
        Ok(())
    }

    /// Begins a guest that comes from elsewhere, with a key of its own (`KVM_SEV_RECEIVE_START`).
    ///
    /// # Errors
    /// The firmware has a guest for this VM, or the sender's policy cannot be kept.
    pub fn receive_start(&mut self, session: Session) -> Answer<()> {
        self.begin("RECEIVE_START", session.policy, GuestState::Receiving)?;
        self.session = Some(session);
        Ok(())
    }

    /// Takes a page in, under the guest's new key (`KVM_SEV_RECEIVE_UPDATE_DATA`).
    ///
    /// # Errors
    /// The guest is not being received, the packet is another session's, or the range crosses the end of the page.
    pub fn receive_update_data(
        &mut self,
        page: u64,
        (offset, len): (u64, u64),
        packet: &Packet,
    ) -> Answer<()> {
        let command = "RECEIVE_UPDATE_DATA";
        if !self.is_guest {
            return Err(refused(command)(SevRule::NotAGuestToReceive));
        }
        self.one_page(command, offset, len)?;
        let session = self.sending(command, GuestState::Receiving)?;
        if packet.session != session.number {
            let rule = SevRule::Firmware(FirmwareError::BadMeasurement);
            return Err(refused(command)(rule));
        }
        self.write_private(page, packet.halves);
        Ok(())
    }

    /// Lets the guest run (`KVM_SEV_RECEIVE_FINISH`).
    ///
    /// # Errors
    /// The guest is not being received.
    pub fn receive_finish(&mut self) -> Answer<()> {
        self.go("RECEIVE_FINISH", GuestState::Receiving, GuestState::Running)?;
        self.session = None;
        Ok(())
    }

    /// Pins a range (`KVM_MEMORY_ENCRYPT_REG_REGION`).
    ///
    /// # Errors
    /// The VM is no SEV guest; the range is empty or wraps; too much would be pinned.
    pub fn register_region(&mut self, region: EncRegion) -> Answer<()> {
        let refuse = refused("REG_REGION");
        if !self.is_guest {
            return Err(refuse(SevRule::NotAGuest));
        }
        self.regions.register(region).map_err(refuse)
    }

    /// Lets a range go (`KVM_MEMORY_ENCRYPT_UNREG_REGION`), after the caches of all CPUs were written back.
    ///
    /// # Errors
    /// The VM is no SEV guest, or the range was not registered as it is given.
    pub fn unregister_region(&mut self, region: EncRegion) -> Answer<()> {
        let refuse = refused("UNREG_REGION");
        if !self.is_guest {
            return Err(refuse(SevRule::NotAGuest));
        }
        self.regions.unregister(region).map_err(refuse)?;
        self.cache_flushes += 1;
        Ok(())
    }

    /// What is registered.
    pub const fn regions(&self) -> &Regions {
        &self.regions
    }

    /// The guest writes half a page, as private or shared memory.
    pub fn guest_write(&mut self, page: u64, half: usize, is_private: bool, value: u64) {
        let key = is_private.then_some(self.key);
        self.memory
            .set_half(page, half, Stored::Value { value, key });
    }

    /// What the guest reads in a page, `None` being noise.
    pub fn guest_read(&self, page: u64, is_private: bool) -> [Option<u64>; HALVES] {
        let key = is_private.then_some(self.key);
        self.memory.page(page).map(|half| half.read(key))
    }

    /// The VMM gives pages back, registered or not: others take their place when they are next touched. What is pinned is not what
    /// the guest reaches any more.
    pub fn host_discard(&mut self, pages: Range<u64>) {
        self.memory.discard(&pages);
        self.regions.discard(&pages);
    }

    /// The host's memory management moves a page, unless it is pinned. Says whether it did.
    pub fn host_move(&mut self, page: u64) -> bool {
        let moves = !self.regions.is_pinned(page);
        if moves {
            self.memory.relocate(page);
        }
        moves
    }

    /// KVM has heard that memory of the guest may go elsewhere: all caches are written back, pinned or not, whatever was zapped
    /// (`sev_guest_memory_reclaimed`).
    pub fn reclaimed(&mut self) {
        if self.is_guest {
            self.cache_flushes += 1;
        }
    }

    /// How often the caches of all CPUs were written back (`wbinvd_on_all_cpus`).
    pub const fn cache_flushes(&self) -> u64 {
        self.cache_flushes
    }

    /// The VMM writes a page.
    pub fn host_write(&mut self, page: u64, value: u64) {
        self.memory
            .set(page, [Stored::Value { value, key: None }; HALVES]);
    }

    /// What the VMM reads in a page, `None` being noise.
    pub fn host_read(&self, page: u64) -> [Option<u64>; HALVES] {
        self.memory.page(page).map(|half| half.read(None))
    }

    /// The VMM copies a page to another machine as it is. Text under the guest's key here is noise there.
    pub fn copy_plainly(&self, page: u64, to: &mut Self) {
        to.store(page, self.stored(page));
    }

    /// What a page holds, as it goes to another machine in the clear.
    pub fn stored(&self, page: u64) -> [Stored; HALVES] {
        self.memory.page(page)
    }

    /// A page that came in the clear.
    pub fn store(&mut self, page: u64, stored: [Stored; HALVES]) {
        self.memory.set(page, stored);
    }

    /// The state, if there is none too.
    #[cfg(test)]
    pub(super) const fn state_for_tests(&self) -> GuestState {
        self.state
    }

    fn write_private(&mut self, page: u64, halves: [Option<u64>; HALVES]) {
        let key = Some(self.key);
        self.memory
            .set(page, halves.map(|value| Stored::under(value, key)));
    }

    /// Whether the VM is a SEV guest, and the firmware has it in one of these states.
    fn in_state(&self, command: &'static str, states: &[GuestState]) -> Answer<()> {
        let refuse = refused(command);
        if !self.is_guest {
            return Err(refuse(SevRule::NotAGuest));
        }
        let error = match self.state {
            state if states.contains(&state) => return Ok(()),
            GuestState::Invalid => FirmwareError::InvalidGuest,
            _ => FirmwareError::InvalidGuestState,
        };
        Err(refuse(SevRule::Firmware(error)))
    }

    fn go(&mut self, command: &'static str, from: GuestState, to: GuestState) -> Answer<()> {
        self.in_state(command, &[from])?;
        self.state = to;
        Ok(())
    }

    fn sending(&self, command: &'static str, state: GuestState) -> Answer<Session> {
        self.in_state(command, &[state])?;
        let rule = SevRule::Firmware(FirmwareError::InvalidGuestState);
        self.session.ok_or(refused(command)(rule))
    }

    /// Whether a page more may be pinned, for the time of a command.
    fn pin_one(&self, command: &'static str) -> Answer<()> {
        let refuse = refused(command);
        if !self.is_guest {
            return Err(refuse(SevRule::NotAGuest));
        }
        let page = EncRegion {
            addr: slat_memslot::Hva::new(0),
            size: 4096,
        };
        self.regions.room_for(page).map(drop).map_err(refuse)
    }

    fn one_page(&self, command: &'static str, offset: u64, len: u64) -> Answer<()> {
        let refuse = refused(command);
        if !self.is_guest {
            return Err(refuse(SevRule::NotAGuest));
        }
        if len == 0 || offset >= 4096 || len > 4096 - offset {
            return Err(refuse(SevRule::CrossesPage));
        }
        self.pin_one(command)
    }
}

//! Two machines side by side, each call made on both and the answers compared.

use core::fmt;

use slat_memslot::{Call, Memory, Profile};

use crate::{Areas, CallError, CallResult, Machine, MemoryVm};

/// A call that two machines answered differently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Divergence {
    /// How many calls came before it on this VM.
    pub index: u64,
    /// The call.
    pub call: Call,
    /// What the kernel, or the first machine, said.
    pub kernel: CallResult,
    /// What the model, or the second machine, said.
    pub model: CallResult,
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            index,
            call,
            kernel,
            model,
        } = self;
        write!(
            f,
            "call {index}: {call:?}\n  kernel: {kernel:?}\n  model:  {model:?}"
        )
    }
}

/// Whether two answers agree: same error number, or outcomes that do not differ in more than addresses.
///
/// A call that one side could not make compares with nothing.
pub fn agree(a: &CallResult, b: &CallResult) -> bool {
    match (a, b) {
        (Err(CallError::NotTried { .. }), _) | (_, Err(CallError::NotTried { .. })) => true,
        (Ok(a), Ok(b)) => a.agrees_with(b),
        (Err(a), Err(b)) => a.number() == b.number(),
        _ => false,
    }
}

/// What [`Checked`] does when the two sides differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OnDivergence {
    /// Panics with both answers: for tests.
    #[default]
    Panic,
    /// Keeps it; see [`Checked::divergences`].
    Keep,
}

/// A VM on two machines: every call is made on both, and the answers must agree.
///
/// For a VMM author's own tests: run the VMM's set-up code on a `Checked<kvm::Vm, model::Vm>`, and the first call
/// that the model would have answered differently is named. Where `/dev/kvm` is absent, a `Checked` of two model VMs
/// still compiles and runs.
///
/// ```
/// use slat_memslot::{Profile, Region, SlotKey};
/// use slat_vmm::{Checked, Machine, MemoryVm, model};
/// let mut machine = model::Machine::new(Profile::latest());
/// let (a, b) = (machine.create_vm(0).unwrap(), machine.create_vm(0).unwrap());
/// let mut vm = Checked::new(a, b);
/// vm.set_user_memory_region(&Region::new(SlotKey::normal(0), 0, 0x1000, 0x10_0000)).unwrap();
/// ```
#[derive(Clone, Debug)]
pub struct Checked<K, M> {
    kernel: K,
    model: M,
    on_divergence: OnDivergence,
    calls: u64,
    divergences: Vec<Divergence>,
    last: Option<Divergence>,
}

impl<K: MemoryVm, M: MemoryVm> Checked<K, M> {
    /// Two fresh VMs, compared from now on; panics when they differ.
    pub fn new(kernel: K, model: M) -> Self {
        Self {
            kernel,
            model,
            on_divergence: OnDivergence::Panic,
            calls: 0,
            divergences: Vec::new(),
            last: None,
        }
    }

    /// Says what to do when the two differ.
    #[must_use]
    pub fn on_divergence(mut self, policy: OnDivergence) -> Self {
        self.on_divergence = policy;
        self
    }

    /// The first machine's VM.
    pub fn kernel(&self) -> &K {
        &self.kernel
    }

    /// The second machine's VM.
    pub fn model(&self) -> &M {
        &self.model
    }

    /// What differed so far.
    pub fn divergences(&self) -> &[Divergence] {
        &self.divergences
    }
}

impl<K: MemoryVm, M: MemoryVm> MemoryVm for Checked<K, M> {
    /// Makes the call on both and gives the first machine's answer, with the second one's reason.
    ///
    /// # Panics
    /// The answers differ, and the policy is [`OnDivergence::Panic`].
    fn call(&mut self, call: &Call) -> CallResult {
        self.last = None;
        let kernel = self.kernel.call(call);
        if let Err(CallError::NotTried { .. }) = kernel {
            return kernel;
        }
        let model = self.model.call(call);
        if !agree(&kernel, &model) {
            let divergence = Divergence {
                index: self.calls,
                call: call.clone(),
                kernel: kernel.clone(),
                model,
            };
            match self.on_divergence {
                OnDivergence::Panic => panic!("the kernel and the model differ\n{divergence}"),
                OnDivergence::Keep => {
                    self.last = Some(divergence.clone());
                    self.divergences.push(divergence);
                }
            }
            return kernel;
        }
        self.calls += 1;
        match (kernel, model) {
            (Err(_), Err(explained)) => Err(explained),
            (kernel, _) => kernel,
        }
    }

    fn known_memory(&self) -> Option<&Memory> {
        self.model.known_memory().or(self.kernel.known_memory())
    }

    fn take_divergence(&mut self) -> Option<Divergence> {
        self.last.take()
    }
}

/// A machine whose VMs are [`Checked`].
#[derive(Debug)]
pub struct CheckedMachine<K, M> {
    kernel: K,
    model: M,
    on_divergence: OnDivergence,
}

impl<K: Machine, M: Machine> CheckedMachine<K, M> {
    /// Two machines; panics when they differ.
    pub fn new(kernel: K, model: M) -> Self {
        Self {
            kernel,
            model,
            on_divergence: OnDivergence::Panic,
        }
    }

    /// Says what to do when the two differ, for VMs made from now on.
    #[must_use]
    pub fn on_divergence(mut self, policy: OnDivergence) -> Self {
        self.on_divergence = policy;
        self
    }
}

impl<K: Machine, M: Machine> Machine for CheckedMachine<K, M> {
    type Vm = Checked<K::Vm, M::Vm>;

    fn profile(&self) -> &Profile {
        self.model.profile()
    }

    fn areas(&self) -> Areas {
        self.kernel.areas()
    }

    /// Makes a VM on both; the two must agree on whether the type is supported.
    ///
    /// # Panics
    /// They do not, and the policy is [`OnDivergence::Panic`].
    fn create_vm(&mut self, vm_type: u32) -> Result<Self::Vm, CallError> {
        match (
            self.kernel.create_vm(vm_type),
            self.model.create_vm(vm_type),
        ) {
            (Ok(kernel), Ok(model)) => {
                Ok(Checked::new(kernel, model).on_divergence(self.on_divergence))
            }
            (
                Err(CallError::Refused { errno: a, .. }),
                Err(e @ CallError::Refused { errno: b, .. }),
            ) if a == b => Err(e),
            (Err(e @ CallError::NotTried { .. }), _) | (_, Err(e @ CallError::NotTried { .. })) => {
                Err(e)
            }
            _ if self.on_divergence == OnDivergence::Keep => Err(CallError::NotTried {
                why: "the kernel and the model differ on whether there are VMs of this type",
            }),
            (kernel, model) => panic!(
                "VM type {vm_type}: the kernel says {:?}, the model {:?}",
                kernel.map(drop),
                model.map(drop)
            ),
        }
    }
}

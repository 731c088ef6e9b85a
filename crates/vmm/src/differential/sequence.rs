//! Random sequences on their own, for timing one machine against another.

use slat_memslot::{Call, Profile};

use super::{Config, Generator};
use crate::{Areas, CallError, Machine, MemoryVm, model};

/// Calls for one fresh VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// The type of the VM.
    pub vm_type: u32,
    /// The calls.
    pub calls: Vec<Call>,
}

/// Sequences of the mix that [`compare`](super::compare) makes of `config`, each call chosen for what a model VM holds
/// by then. They can be made on any machine whose host memory lies in `areas`, as often as one likes.
///
/// ```
/// use slat_memslot::Profile;
/// use slat_vmm::{Areas, differential};
/// let config = differential::Config { calls: 1000, sequence: 300, ..Default::default() };
/// let sequences = differential::sequences(&config, &Profile::latest(), Areas::SYMBOLIC).unwrap();
/// assert_eq!(sequences.iter().map(|s| s.calls.len()).collect::<Vec<_>>(), [300, 300, 300, 100]);
/// ```
///
/// # Errors
/// The profile names a VM type that the model does not know.
pub fn sequences(
    config: &Config,
    profile: &Profile,
    areas: Areas,
) -> Result<Vec<Sequence>, CallError> {
    let mut machine = model::Machine::new(profile.clone());
    let mut generator = Generator::new(config, profile, areas);
    let mut left = config.calls;
    let mut sequences = Vec::new();
    while left > 0 {
        let vm_type = generator.vm_type();
        let mut vm = machine.create_vm(vm_type)?;
        generator.begin();
        let count = left.min(u64::from(config.sequence.max(1)));
        let calls = (0..count).map(|_| next_call(&mut generator, &mut vm));
        sequences.push(Sequence {
            vm_type,
            calls: calls.collect(),
        });
        left -= count;
    }
    Ok(sequences)
}

/// The next call, made on the model.
fn next_call(generator: &mut Generator, vm: &mut model::Vm) -> Call {
    let call = generator.call(vm.memory());
    // Refusals are part of the mix.
    let _answer = vm.call(&call);
    call
}

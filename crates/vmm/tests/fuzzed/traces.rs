//! What holds for any text as a recording; called by the fuzz target and by the replay of its corpus.

use slat_mmu::host::Host;
use slat_mmu::spte::{Codec, Npt};
use slat_vmm::traces::{Comparer, Predicted, Recording, Ret, Traced, What};

/// Reads `bytes` as a recording, and compares it with what it says itself.
pub(crate) fn check(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let lines = text.lines().count();
    let within = |line: u32| (1..=lines).contains(&(line as usize));
    let recording = match Recording::parse(&text) {
        Ok(recording) => recording,
        Err(error) => {
            assert!(within(error.line) && error.column >= 1, "{error}");
            return;
        }
    };
    let numbers: Vec<u32> = recording.items.iter().map(|item| item.line).collect();
    assert!(numbers.is_sorted() && numbers.iter().all(|line| within(*line)));
    let predicted: Vec<Predicted> = recording
        .items
        .iter()
        .filter_map(|item| echo(&item.what))
        .collect();
    let mut comparer = Comparer::new(Codec::<Npt>::new(&Host::npt(40)));
    match comparer.compare(&predicted, &recording.items) {
        Ok(agreement) => assert_eq!(agreement.compared, predicted.len()),
        Err(difference) => assert!(!difference.to_string().is_empty()),
    }
}

/// What would have to be predicted, with the frames of tables as their numbers.
fn echo(what: &What<'_>) -> Option<Predicted> {
    Some(match *what {
        What::Event(Traced::SpteChanged {
            as_id,
            gfn,
            level,
            old,
            new,
        }) => Predicted::SpteChanged {
            as_id,
            gfn,
            level,
            old,
            new,
        },
        What::Event(Traced::FastPageFault {
            vcpu,
            gva,
            old,
            new,
            spurious,
            fixed,
            ..
        }) => Predicted::FastPageFault {
            vcpu,
            gva,
            old,
            new,
            spurious,
            fixed,
        },
        What::Event(Traced::SplitHugePage {
            gfn,
            spte,
            level,
            errno,
        }) => Predicted::HugePageSplit {
            gfn,
            spte,
            level,
            errno,
        },
        What::Event(Traced::SetSpte {
            gfn,
            spte,
            level,
            at,
            ..
        }) => Predicted::SpteSet {
            gfn,
            spte,
            level,
            table: Some(at >> 12),
        },
        What::Ret(Ret::Value(value)) => Predicted::Returned(Ok(Some(value))),
        What::Ret(Ret::Failed(errno)) => Predicted::Returned(Err(errno)),
        _ => return None,
    })
}

//! What holds for any text as a trace; called by the fuzz target and by the replay of its corpus.

use std::collections::BTreeMap;

use slat_memslot::{Call, Memory, Profile, VmType};
use slat_vmm::strace::Events;

/// Walks over `bytes` as a trace; set-region calls are made on a model VM per VM of the trace.
pub(crate) fn check(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text.split('\n').collect();
    let within = |line: u32| (1..=lines.len()).contains(&(line as usize));
    let mut vms: BTreeMap<u32, Memory> = BTreeMap::new();
    let mut found = 0;
    for event in Events::new(&text) {
        found += 1;
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                assert!(within(error.line) && error.column >= 1, "{error}");
                continue;
            }
        };
        assert!(within(event.line), "{event:?}");
        if let (Some(Call::SetRegion(region)), Some(vm)) = (event.call(), event.vm) {
            let memory = vms.entry(vm).or_insert_with(vm_of_the_latest_kernel);
            let planned = memory.check_region(region).map(|change| change.kind);
            let done = memory.set_region(region).map(|effects| effects.kind);
            assert_eq!(planned, done, "{region:?}");
        }
    }
    assert!(found <= 2 * lines.len());
}

fn vm_of_the_latest_kernel() -> Memory {
    Memory::new(Profile::latest(), VmType::Default)
}

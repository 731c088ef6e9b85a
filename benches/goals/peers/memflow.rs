//! `memflow`: translation for introspection, one address at a time as the other sides do it.

use memflow::architecture::x86::{X86VirtualTranslate, new_translator, x64};
use memflow::prelude::v1::{
    Address, DirectTranslate, MappedPhysicalMemory, MemoryMap, VirtualTranslate2,
};

type Bytes = &'static [u8];

/// memflow over tables in memory from address 0 on, the first of them the root.
pub(crate) struct Memflow {
    memory: MappedPhysicalMemory<Bytes, MemoryMap<Bytes>>,
    translator: X86VirtualTranslate,
    translate: DirectTranslate,
}

impl Memflow {
    pub(crate) fn new(words: &[u64]) -> Self {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let mut map = MemoryMap::new();
        map.push(Address::from(0_u64), &*bytes.leak());
        Self {
            memory: MappedPhysicalMemory::with_info(map),
            translator: new_translator(Address::from(0_u64), x64::ARCH).expect("x86"),
            translate: DirectTranslate::new(),
        }
    }

    #[inline]
    pub(crate) fn translate(&mut self, address: u64) -> u64 {
        let (memory, translator) = (&mut self.memory, &self.translator);
        let found = self
            .translate
            .virt_to_phys(memory, translator, Address::from(address));
        found.map_or(0, |found| found.address().to_umem())
    }
}

//! A third opinion on walks: memflow, which knows 32-bit, PAE and four-level paging, and no rights or reserved bits.
//!
//! Random tables of the plain kind (aligned leaves, no reserved bits, no bit 12 in large leaves) are translated by slat, by
//! memflow, and by `KVM_TRANSLATE` where there is a kernel that runs the mode: all say the same. What memflow gets wrong is
//! listed with the fact, and slat is right there by the kernel's word.

use memflow::architecture::x86::{X86VirtualTranslate, x32, x32_pae, x64};
use memflow::connector::MappedPhysicalMemory;
use memflow::mem::{MemoryMap, VirtualTranslate3};
use memflow::types::Address;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use slat_memslot::{Gpa, Gva};
use slat_mmu::role::VcpuState;
use slat_mmu::walk::{GuestCpu, GuestPaging, LeafSize, PagingMode};
use slat_vmm::walks::{CpuState, mode_state};

const PAGES: usize = 32;
const MODES: [PagingMode; 3] = [PagingMode::Bits32Pse, PagingMode::Pae, PagingMode::Level4];
const PS: u64 = 1 << 7;

fn number(name: &str, default: u64) -> u64 {
    let given = std::env::var(name).ok();
    given.map_or(default, |text| text.parse().expect("a number"))
}

/// What memflow says.
fn by_memflow(mode: PagingMode, bytes: &[u8], address: u64) -> Option<u64> {
    let root = Address::from(0_u64);
    let translator: X86VirtualTranslate = match mode {
        PagingMode::Level4 => x64::new_translator(root),
        PagingMode::Pae => x32_pae::new_translator(root),
        _ => x32::new_translator(root),
    };
    let mut map = MemoryMap::new();
    map.push(root, bytes);
    let mut memory = MappedPhysicalMemory::with_info(map);
    let found = translator.virt_to_phys(&mut memory, Address::from(address));
    found.ok().map(|found| found.address().to_umem())
}

/// What slat says that `KVM_TRANSLATE` answers, and the size of the leaf.
fn by_slat(state: &CpuState, bytes: &[u8], address: u64) -> Option<(u64, LeafSize)> {
    let vcpu = VcpuState {
        cr0: state.cr0,
        cr3: state.cr3,
        cr4: state.cr4,
        efer: state.efer,
        ..VcpuState::default()
    };
    let cpu = GuestCpu::new(state.maxphyaddr);
    let paging = GuestPaging::new(&vcpu, &cpu)
        .with_loaded_pointers(bytes)
        .expect("no reserved bits in pointers");
    let found = paging.kvm_translate(bytes, Gva::new(address));
    let found = found.ok()?;
    Some((found.address.raw(), found.size))
}

/// `KVM_TRANSLATE`, if there is a kernel and it runs the mode.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
struct Kernel(slat_vmm::kvm::Translator);

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
impl Kernel {
    fn with(state: &CpuState, bytes: &[u8]) -> Result<Self, String> {
        use slat_vmm::walks::Walker as _;
        let mut translator =
            slat_vmm::kvm::Translator::over(bytes).map_err(|why| why.to_string())?;
        match translator.set(state) {
            Ok(true) => Ok(Self(translator)),
            Ok(false) => Err("KVM_SET_SREGS takes it, KVM_GET_SREGS does not show it".to_owned()),
            Err(errno) => Err(format!("KVM_SET_SREGS: {errno}")),
        }
    }

    fn translate(&mut self, address: u64) -> Option<u64> {
        use slat_vmm::walks::Walker as _;
        let found = self.0.translate(Gva::new(address)).expect("the call works");
        found.map(Gpa::raw)
    }
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
struct Kernel;

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
impl Kernel {
    fn with(_: &CpuState, _: &[u8]) -> Result<Self, String> {
        Err("KVM for x86-64 needs Linux on x86-64".to_owned())
    }

    fn translate(&mut self, _: u64) -> Option<u64> {
        None
    }
}

fn bytes_of(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Page 0 is the root; pages 1 to 7 are tables of the level below it, 8 to 15 of the next one, and so on.
fn plain_tables(mode: PagingMode, rng: &mut ChaCha8Rng) -> Vec<u64> {
    let mut words = vec![0_u64; PAGES * 512];
    for (index, word) in words.iter_mut().enumerate() {
        let group = match index / 512 {
            0 => 0,
            page => 1 + page / 8,
        };
        let narrow = mode == PagingMode::Bits32Pse;
        *word = match (mode, index) {
            (PagingMode::Pae, 0..4) => plain_pointer(rng),
            (PagingMode::Pae, 4..512) => 0,
            _ if narrow => entry(mode, group, rng) | entry(mode, group, rng) << 32,
            _ => entry(mode, group, rng),
        };
    }
    words
}

fn plain_pointer(rng: &mut ChaCha8Rng) -> u64 {
    rng.random_range(1..8_u64) << 12 | u64::from(rng.random_range(0..8) != 0)
}

/// An entry of a table so many levels below the root.
fn entry(mode: PagingMode, group: usize, rng: &mut ChaCha8Rng) -> u64 {
    let (leaf_group, bits, large_shifts): (usize, u32, &[u32]) = match mode {
        PagingMode::Level4 => (3, 46, &[0, 30, 21]),
        PagingMode::Pae => (2, 36, &[0, 21]),
        _ => (1, 32, &[22]),
    };
    let rights = rng.random_range(0..8_u64)
        | u64::from(rng.random_range(0..16) != 0)
        | rng.random::<u64>() & 0x60;
    let frame = rng.random::<u64>() & ((1 << bits) - 1) & !0xfff;
    if group >= leaf_group {
        return frame | rights;
    }
    match large_shifts[group] {
        shift @ 1.. if rng.random_range(0..6) == 0 => frame >> shift << shift | rights | PS,
        _ => {
            // Tables of the level below; of the root's group there are seven.
            let first = if group == 0 { 1 } else { 8 * group as u64 };
            rng.random_range(first..8 * (group as u64 + 1)) << 12 | rights
        }
    }
}

#[test]
fn slat_memflow_and_the_kernel_agree_on_plain_tables() {
    let (seed, per_table) = (number("SLAT_SEED", 6), 256);
    let tables = number("SLAT_SEQUENCES", 60);
    println!("seed {seed}");
    for mode in MODES {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let (mut valid, mut asked, mut gigabytes) = (0, 0, 0);
        let state = mode_state(mode);
        for _ in 0..tables {
            let bytes = bytes_of(&plain_tables(mode, &mut rng));
            let mut kernel = Kernel::with(&state, &bytes);
            for _ in 0..per_table {
                let address = match mode {
                    // Below the sign bit, or with copies of it.
                    PagingMode::Level4 => {
                        let low = rng.random::<u64>() & 0xffff_ffff_ffff;
                        (low << 16).cast_signed().wrapping_shr(16).cast_unsigned()
                    }
                    _ => u64::from(rng.random::<u32>()),
                };
                let found = by_slat(&state, &bytes, address);
                let slat = found.map(|(address, _)| address);
                let memflow = by_memflow(mode, &bytes, address);
                assert_eq!(slat, memflow, "{mode}, {address:#x}: slat, memflow");
                if found.is_some_and(|(_, size)| size == LeafSize::Size1G) {
                    // The vCPU's CPUID has no pages of this size, since not every kernel takes that.
                    gigabytes += 1;
                } else if let Ok(kernel) = &mut kernel {
                    assert_eq!(
                        slat,
                        kernel.translate(address),
                        "{mode}, {address:#x}: slat, KVM"
                    );
                    asked += 1;
                }
                valid += u64::from(slat.is_some());
            }
            if let Err(why) = kernel.as_ref().map(|_| ()).map_err(Clone::clone)
                && asked == 0
                && valid == 0
            {
                println!("skipped: KVM_TRANSLATE in {mode} paging: {why}");
            }
        }
        let made = tables * per_table;
        println!(
            "{mode}: {made} translations, {valid} valid, {asked} by the kernel too, {gigabytes} in pages of 1 GiB not"
        );
        assert!(valid > made / 4, "{mode}: {valid} of {made}");
    }
}

/// What memflow gets wrong: the mode, the entries, and the fact.
type Wrong = (PagingMode, &'static [(usize, u64)], &'static str);

const WRONG: [Wrong; 6] = [
    (
        PagingMode::Level4,
        &[(0, 0x1007), (512, 0x2007), (1024, 0x60_1087)],
        "bit 12 of a large leaf is PAT; memflow takes it for an address bit",
    ),
    (
        PagingMode::Level4,
        &[(0, 0x1087), (512, 0x2007), (1024, 0x60_0087)],
        "bit 7 of an entry of level 4 is reserved",
    ),
    (
        PagingMode::Level4,
        &[(0, 0x1007), (512, 0x2007), (1024, 1 << 50 | 0x60_0087)],
        "address bits from MAXPHYADDR on are reserved",
    ),
    (
        PagingMode::Pae,
        &[(0, 0x1001), (512, 1 << 37 | 0x60_0087)],
        "PAE has as many address bits as MAXPHYADDR says, not 36",
    ),
    (
        PagingMode::Bits32Pse,
        &[(0, 0x40_2083)],
        "bits 16 to 13 of a leaf of 4 MiB are address bits 35 to 32 (PSE-36)",
    ),
    (
        PagingMode::Bits32,
        &[(0, 0x1087), (512, 0x5007)],
        "without CR4.PSE bit 7 means nothing: the entry is a table's",
    ),
];

#[test]
fn what_memflow_gets_wrong_slat_does_as_the_kernel() {
    for (mode, entries, fact) in WRONG {
        let mut words = vec![0_u64; PAGES * 512];
        for (index, entry) in entries {
            words[*index] = *entry;
        }
        let bytes = bytes_of(&words);
        let (state, address) = (mode_state(mode), 0x123);
        let slat = by_slat(&state, &bytes, address).map(|(address, _)| address);
        assert_ne!(
            slat,
            by_memflow(mode, &bytes, address),
            "memflow is right now: {fact}"
        );
        match Kernel::with(&state, &bytes) {
            Ok(mut kernel) => assert_eq!(slat, kernel.translate(address), "{fact}"),
            Err(why) => println!("skipped: {mode} paging on the kernel: {why}"),
        }
    }
}

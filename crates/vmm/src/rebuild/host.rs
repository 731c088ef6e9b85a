//! Which host a trace is from, going by the bits of its entries.

use slat_memslot::{Gfn, Level};
use slat_mmu::host::{HardwareAd, Host, Layout, SecondStage};
use slat_mmu::spte::{AdType, Codec, Ept, Format, Npt, Spte};

use crate::traces::kernel::{Reader, Said};
use crate::traces::{ParseError, Traced};

/// How many different entries are enough to tell.
const SAMPLES: usize = 4096;
/// The fewest address bits that are assumed where fewer were seen.
const LEAST_BITS: u8 = 46;

/// Entries of a trace.
#[derive(Clone, Debug, Default)]
pub(super) struct Evidence {
    /// Values with their levels.
    values: Vec<(u64, Level)>,
    /// MMIO entries with what they are to say: frame and generation.
    mmio: Vec<(u64, Gfn, u32)>,
    /// Address bits of all frames that were seen.
    address: u64,
    dirty_taken: bool,
    top: Option<Level>,
    /// Whether the TDP MMU changed anything.
    pub(super) has_tdp: bool,
    /// Whether there is a leaf of a shadow page.
    shadow: bool,
}

impl Evidence {
    /// Reads a whole trace.
    pub(super) fn of(reader: Reader<'_>) -> Result<Self, ParseError> {
        let mut evidence = Self::default();
        let mut last = None;
        for record in reader {
            match record?.said {
                Said::Event(Traced::SpteChanged {
                    gfn,
                    level,
                    old,
                    new,
                    ..
                }) => {
                    evidence.change(gfn, level, old, new);
                    last = Some((gfn, new));
                }
                Said::Event(Traced::MarkMmio {
                    gfn, generation, ..
                }) => {
                    let made = last.filter(|(of, _)| *of == gfn && evidence.mmio.len() < SAMPLES);
                    let made = made.map(|(gfn, value)| (value, gfn, generation));
                    evidence.mmio.extend(made);
                }
                Said::Event(Traced::SetSpte { .. }) => evidence.shadow = true,
                _ => {}
            }
        }
        Ok(evidence)
    }

    fn change(&mut self, gfn: Gfn, level: Level, old: u64, new: u64) {
        const PRESENT: u64 = 1 << 11;
        self.has_tdp = true;
        self.top = self.top.max(Some(level));
        for value in [old, new] {
            if value & PRESENT != 0 {
                self.address |= value & 0x000f_ffff_ffff_f000;
            }
            if self.values.len() < SAMPLES {
                self.values.push((value, level));
            }
        }
        if new & PRESENT != 0 {
            self.address |= gfn.raw() << 12;
        }
        // Dirty is taken from a leaf that stays writable: dirty pages are logged by hardware.
        let taken = Ept::DIRTY | 2 | PRESENT;
        self.dirty_taken |= old & taken == taken && new == old & !Ept::DIRTY;
    }

    /// The host that explains most entries; the first of those that explain as many.
    pub(super) fn host(&self) -> Host {
        let bits = u8::try_from(64 - self.address.leading_zeros()).unwrap_or(52);
        let bits = bits.clamp(LEAST_BITS, 51);
        if !self.has_tdp && self.shadow {
            return Host::shadow(bits);
        }
        let mut best = (Host::npt(bits), 0);
        for host in candidates(bits) {
            let explained = match host.second_stage {
                SecondStage::Ept => self.explained::<Ept>(&host),
                SecondStage::Npt | SecondStage::Off => self.explained::<Npt>(&host),
            };
            if explained > best.1 {
                best = (host, explained);
            }
        }
        let host = self.with_levels(best.0);
        let host = self.with_l1tf(host);
        if self.dirty_taken && host.second_stage == SecondStage::Ept && host.ad_enabled() {
            return Host {
                hardware_ad: HardwareAd::WithPml,
                ..host
            };
        }
        host
    }

    fn with_levels(&self, host: Host) -> Host {
        if self.top == Some(Level::L5) {
            host.with_five_levels()
        } else {
            host
        }
    }

    /// Address bits of the L1 cache that explain MMIO entries which are not plain.
    fn with_l1tf(&self, host: Host) -> Host {
        let explains = |host: &Host| match host.second_stage {
            SecondStage::Ept => self.mmio_explained::<Ept>(host),
            SecondStage::Npt | SecondStage::Off => self.mmio_explained::<Npt>(host),
        };
        let plain = explains(&host);
        let leaky = (36..=46).map(|bits| host.with_l1tf(bits));
        let best = leaky
            .max_by_key(explains)
            .filter(|host| explains(host) > plain);
        best.unwrap_or(host)
    }

    fn mmio_explained<F: Format>(&self, host: &Host) -> usize {
        let codec = Codec::<F>::new(host);
        let right = |(value, gfn, generation): &&(u64, Gfn, u32)| {
            let mmio = codec.decode_mmio(Spte::from_raw(*value));
            mmio.is_some_and(|mmio| {
                mmio.gfn == *gfn && mmio.generation.raw() == u64::from(*generation)
            })
        };
        self.mmio.iter().filter(right).count()
    }

    fn explained<F: Format>(&self, host: &Host) -> usize {
        let codec = Codec::<F>::new(host);
        let good = |(value, level): &&(u64, Level)| is_good(&codec, *value, *level);
        self.values.iter().filter(good).count()
    }
}

fn candidates(bits: u8) -> impl Iterator<Item = Host> {
    let ept = Host::ept(bits).without_pml();
    let plain = [Host::npt(bits), ept, Host::ept(bits), ept.without_ad()];
    let layouts = [Layout::P2, Layout::P1, Layout::P3];
    layouts.into_iter().flat_map(move |layout| {
        let hosts = plain.map(|host| host.with_layout(layout));
        let later = hosts.map(Host::with_software_ad);
        hosts.into_iter().chain(later)
    })
}

/// Whether KVM on this host makes such an entry.
fn is_good<F: Format>(codec: &Codec<F>, value: u64, level: Level) -> bool {
    let spte = Spte::<F>::from_raw(value);
    if !spte.is_present() {
        return codec.is_nonpresent(spte) || codec.is_frozen(spte) || codec.is_mmio(spte);
    }
    let ad = match codec.host().ad_enabled() {
        true => AdType::Enabled,
        false => AdType::Disabled,
    };
    if spte.is_link(level) {
        return codec.make_link(codec.pfn(spte), ad) == spte;
    }
    let found = codec.ad_type(spte);
    let pml = codec.host().pml() && found == AdType::WriteProtectOnly;
    let writable = [
        spte.is_writable(),
        codec.is_mmu_writable(spte),
        codec.is_host_writable(spte),
    ];
    writable.is_sorted()
        && (found == ad || pml)
        && codec.reserved().violations(spte, level) == 0
        && !codec.may_raise_ve(spte)
        && marks_presence(codec, spte)
}

/// EPT entries have a memory type, which NPT's have not; those of NPT are for user mode.
fn marks_presence<F: Format>(codec: &Codec<F>, spte: Spte<F>) -> bool {
    const NPT_PRESENT_USER: u64 = 5;
    match codec.host().second_stage {
        SecondStage::Ept => true,
        SecondStage::Npt | SecondStage::Off => spte.raw() & NPT_PRESENT_USER == NPT_PRESENT_USER,
    }
}

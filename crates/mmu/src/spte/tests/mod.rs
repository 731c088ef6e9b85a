//! Golden values, values that kernels were seen to make, and properties.

mod golden;
mod make;
mod mmio;
mod properties;
mod recorded;
mod reserved;

use slat_memslot::PageSize;

use super::*;
use crate::host::{Encryption, ExecuteOnly, Layout};
use crate::role::{PageRole, RoleLayout};

/// The hosts of the recordings: kernel 6.12.117 on emulated CPUs of 40 physical address bits.
const EPT: Host = Host::ept(40);
const EPT_NO_AD: Host = Host::ept(40).without_ad();
const EPT_L1TF: Host = Host::ept(40).with_l1tf(40);
const NPT: Host = Host::npt(40);
const SHADOW: Host = Host::shadow(40);

/// A leaf of 4 KiB at frame 0, with the A/D type of the TDP MMU's tables.
/// The role that a recorded word says.
fn role(word: u32) -> PageRole {
    PageRole::from_word(RoleLayout::Baseline, word).expect("a recorded word")
}

fn small<F: Format>(codec: &Codec<F>) -> LeafRequest<F> {
    let mut request = LeafRequest::new(codec.nonpresent(), PageSize::Size4K, Pfn::new(0));
    if !codec.host().ad_enabled() {
        request.table.ad = AdType::Disabled;
    }
    request
}

/// The same of 2 MiB.
fn huge<F: Format>(codec: &Codec<F>) -> LeafRequest<F> {
    let mut request = small(codec);
    request.table.size = PageSize::Size2M;
    request
}

/// The raw bits of a leaf that must come without warning.
fn raw<F: Format>(codec: &Codec<F>, request: &LeafRequest<F>) -> u64 {
    let made = codec.make_leaf(request);
    assert_eq!(made.warning, None, "{:?}", made.spte);
    made.spte.raw()
}

//! Recordings of kernels with either MMU, predicted from their operations.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;

use slat_memslot::{Level, LogOff, PageSize, SlotZap, Vendor};
use slat_mmu::host::{Host, Layout};
use slat_mmu::roots::TdpMmu;
use slat_mmu::spte::NxHugePages;
use slat_mmu::tdp::Passes;
use slat_vmm::replay::{Machine, Verdict, predict};
use slat_vmm::traces::{self, Builtin, Item, Note, Op, Recording, Traced, What};

/// Scenarios that are not predicted, and why. One that is predicted must go from this list.
const NOT_YET: &[(&str, &str)] = &[(
    "ept-l4-noad/36-pre-fault-obsolete-root",
    "its operations were lost: it begins in a loop that a signal ended",
)];

fn recordings() -> impl Iterator<Item = (Machine, Builtin)> {
    Machine::NAMES.into_iter().flat_map(|name| {
        let machine = Machine::named(name).unwrap();
        let all = traces::Machine::named(name).unwrap().recordings();
        all.into_iter().map(move |one| (machine.clone(), one))
    })
}

fn predict_one(machine: &Machine, one: &Builtin) -> Verdict {
    predict(&Recording::parse(one.text()).unwrap(), machine)
}

fn is_listed(name: &str) -> bool {
    NOT_YET.iter().any(|(listed, _)| *listed == name)
}

/// What is wrong with a verdict, and how many events were compared.
fn judge(name: &str, verdict: &Verdict) -> Result<usize, String> {
    match verdict {
        Verdict::Agrees { .. } if is_listed(name) => Err(format!("{name} agrees by now")),
        Verdict::Agrees { adopted: 1.., .. } => Err(format!(
            "{name}: hardware marked other leaves than predicted"
        )),
        Verdict::Agrees { compared, .. } => Ok(*compared),
        Verdict::Differs { .. } | Verdict::NotModelled(_) if is_listed(name) => Ok(0),
        Verdict::Differs { difference, .. } => Err(format!("{name}: {difference}")),
        Verdict::NotModelled(what) => Err(format!("{name}: {what}")),
    }
}

#[test]
fn every_recording_is_predicted() {
    let (mut scenarios, mut events) = (0, 0);
    let mut wrong = Vec::new();
    for (machine, one) in recordings() {
        let name = format!("{}/{}", one.machine, one.scenario);
        match judge(&name, &predict_one(&machine, &one)) {
            Ok(0) => {}
            Ok(compared) => {
                scenarios += 1;
                events += compared;
            }
            Err(what) => wrong.push(what),
        }
    }
    println!("{scenarios} recordings, {events} events and results as predicted");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(scenarios > 200 && events > 100_000);
}

/// Recordings of the newer kind say where slots are, and which page of which size is behind a frame.
#[test]
fn complete_recordings_tell_of_every_page() {
    let complete = recordings().filter(|(_, one)| one.machine.ends_with("-complete"));
    let (mut scenarios, mut asked) = (0, 0);
    for (_, one) in complete {
        let at = format!("{}/{}", one.machine, one.scenario);
        let recording = Recording::parse(one.text()).unwrap();
        let mut told = BTreeSet::new();
        for item in &recording.items {
            match &item.what {
                What::Op(Op::SetRegion(region)) => assert!(region.hva.is_some(), "{at}"),
                What::Note(Note::Backing { pfn, level, .. }) => {
                    assert!(level.is_some(), "{at}, line {}", item.line);
                    told.insert(*pfn);
                }
                _ => {}
            }
        }
        // The pages of guest_memfds nobody sees but the kernel.
        let has_file = |item: &Item<'_>| matches!(item.what, What::Op(Op::CreateGmem { .. }));
        if recording.items.iter().any(has_file) {
            continue;
        }
        for item in &recording.items {
            let What::Event(Traced::SpteRequested { pfn, .. }) = item.what else {
                continue;
            };
            let is_told = pfn == NO_SLOT || told.contains(&pfn);
            assert!(is_told, "{at}, line {}: {}", item.line, item.text);
            asked += 1;
        }
        scenarios += 1;
    }
    println!("{scenarios} recordings tell of all {asked} pages that are asked for");
    assert!(scenarios > 40 && asked > 1000);
}

/// What stands for the page where no slot is (`KVM_PFN_NOSLOT`).
const NO_SLOT: u64 = 1 << 63;

/// One rule of a kernel or a machine, made wrong.
type Wrong = fn(&mut Machine);

const WRONG: &[(&str, &str, Wrong)] = &[
    ("npt-l4", "five levels", |m| {
        m.host = m.host.with_five_levels()
    }),
    ("npt-l5", "four levels", |m| m.host.max_level = Level::L4),
    ("ept-l5", "four levels", |m| m.host.max_level = Level::L4),
    ("ept-l4", "no A/D bits", |m| m.host = m.host.without_ad()),
    ("ept-l4", "no PML", |m| m.host = m.host.without_pml()),
    ("ept-l4-nopml", "PML", |m| m.host = Host::ept(40)),
    ("ept-l4-l1tf", "no L1TF", |m| m.host.l1tf_cache_bits = None),
    ("ept-l4-noad", "A/D bits kept by software", |m| {
        m.profile.replaced_leaf_is_clean.set(false);
    }),
    (
        "npt-l4",
        "a leaf in the place of a writable one is dirty",
        |m| {
            m.profile.replaced_leaf_is_clean.set(false);
        },
    ),
    ("npt-l4", "a leaf that allows the access stays", |m| {
        m.profile.pre_fault_remakes_leaf.set(false);
    }),
    ("npt-l4", "pre-faults get rid of an obsolete root", |m| {
        m.profile.pre_fault_spins.set(false);
    }),
    ("npt-l4", "other bits of KVM's own", |m| {
        m.host = m.host.with_layout(Layout::P1);
    }),
    ("npt-l4", "no 1 GiB pages", |m| {
        m.host = m.host.with_largest_page(PageSize::Size2M);
    }),
    ("npt-l4", "no MMIO entries", |m| {
        m.host = m.host.without_mmio_caching()
    }),
    ("npt-l4", "small entries zapped first", |m| {
        m.passes = Passes::SmallestFirst;
    }),
    ("npt-l4", "huge pages never executable", |m| {
        m.nx_huge_pages = NxHugePages::On;
    }),
    ("npt-l4", "logging ends in place", |m| {
        m.profile.log_off.set(LogOff::Recover);
    }),
    ("npt-l4", "slots always zap all", |m| {
        m.profile.slot_zap.set(SlotZap::AlwaysAll);
    }),
    ("npt-l4", "no SMM", |m| m.profile.smm.set(false)),
    ("npt-l4-legacy-mmu", "the TDP MMU", |m| {
        m.tdp_mmu = TdpMmu::On
    }),
    ("ept-l4-legacy-mmu", "no A/D bits", |m| {
        m.host = m.host.without_ad();
    }),
    ("ept-l4-legacy-mmu", "no PML", |m| {
        m.host = m.host.without_pml();
    }),
    ("npt-l4-legacy-mmu", "slots always zap all", |m| {
        m.profile.slot_zap.set(SlotZap::AlwaysAll);
    }),
    ("npt-l4-shadow-npt-off", "a second stage", |m| {
        m.host = Host::npt(40);
    }),
    (
        "ept-l4-shadow-ept-off",
        "real mode without emulation",
        |m| {
            m.profile.vendor.set(Vendor::Amd);
        },
    ),
];

/// Another rule means other events, and each time some recording shows it.
#[test]
fn a_wrong_rule_is_found_out() {
    let all: Vec<(Machine, Builtin)> = recordings().collect();
    for (name, what, wrong) in WRONG {
        let found_out = all.iter().find(|(machine, one)| {
            let mut machine = machine.clone();
            wrong(&mut machine);
            let differs = || matches!(predict_one(&machine, one), Verdict::Differs { .. });
            one.machine == *name && differs()
        });
        let (_, one) = found_out.unwrap_or_else(|| panic!("{what} on {name}"));
        println!("{what} on {name}: shown by {}", one.scenario);
    }
}

/// A recording without any one of its lines that are compared is another one.
#[test]
fn a_missing_line_is_found_out() {
    for (machine, scenario) in [
        ("npt-l4", "07-dirty-log-4k"),
        ("npt-l4-legacy-mmu", "15-slot-delete-quirk-on-4k"),
        ("npt-l4-shadow-npt-off", "40-role-bits-and-sregs"),
    ] {
        every_line_counts(machine, scenario);
    }
}

fn every_line_counts(machine: &str, scenario: &str) {
    let all = traces::Machine::named(machine).unwrap().recordings();
    let one = all.iter().find(|one| one.scenario == scenario).unwrap();
    let machine = Machine::named(machine).unwrap();
    let recording = Recording::parse(one.text()).unwrap();
    let compared = |at: &usize| {
        let what = &recording.items[*at].what;
        // The second half of an allocation may be missing.
        traces::Kind::of(what).is_some() && !matches!(what, What::Probe(_))
    };
    for at in (0..recording.items.len()).filter(compared) {
        let mut cut = recording.clone();
        let line = cut.items.remove(at);
        let verdict = predict(&cut, &machine);
        assert!(
            matches!(verdict, Verdict::Differs { .. }),
            "without {line:?}: {verdict:?}"
        );
    }
}

/// Random numbers (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).unwrap() % end
    }
}

/// A recording with a few characters changed, lines swapped, or gone.
fn spoiled(text: &str, random: &mut Random) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for _ in 0..=random.below(3) {
        let (at, other) = (random.below(lines.len()), random.below(lines.len()));
        match random.below(4) {
            0 => lines.swap(at, other),
            1 => drop(lines.remove(at)),
            2 => lines[at] = lines[other].clone(),
            _ => {
                let digit = char::from(b"0123456789abcdef"[random.below(16)]);
                let places: Vec<usize> = lines[at]
                    .char_indices()
                    .filter(|(_, c)| c.is_ascii_digit())
                    .map(|(place, _)| place)
                    .collect();
                if !places.is_empty() {
                    let place = places[random.below(places.len())];
                    let more = "fffffff".repeat(random.below(2));
                    lines[at].replace_range(place..=place, &format!("{digit}{more}"));
                }
            }
        }
    }
    lines.join("\n")
}

/// Whatever a recording says, its prediction ends without a panic.
#[test]
fn spoiled_recordings_do_no_harm() {
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let small: Vec<_> = recordings()
        .filter(|(_, one)| one.text().len() < 20_000)
        .collect();
    let (mut read, mut differ) = (0, 0);
    for _ in 0..3000 {
        let (machine, one) = &small[random.below(small.len())];
        let text = spoiled(one.text(), &mut random);
        if let Ok(recording) = Recording::parse(&text) {
            read += 1;
            let verdict = predict(&recording, machine);
            differ += usize::from(!matches!(verdict, Verdict::Agrees { .. }));
        }
    }
    println!("{read} spoiled recordings could be read, {differ} were not as predicted");
    assert!(differ > 100);
}

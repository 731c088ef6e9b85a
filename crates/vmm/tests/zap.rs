//! What it costs to delete, to move or to re-flag a slot: the model's counts beside those of the live kernel's statistics.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use slat_memslot::{Gpa, PAGE_SIZE, PageSize, Pages, Profile, Region, SlotKey, VmType};
use slat_mmu::fault::Kind;
use slat_mmu::host::Host;
use slat_mmu::spte::Npt;
use slat_mmu::tdp::dump::Detail;
use slat_vmm::tdp_vm::{Activity, TdpVm};
use slat_vmm::zap::curves::{self, Curve, Extent, Law};
use slat_vmm::zap::kernel::{Kernel, KernelCost};
use slat_vmm::zap::{
    Concurrent, Cost, Counts, Estimate, Goal, Mapped, Operation, Paged, Policy, Prices, Roots,
    Scene, Subject, Zapping, advise, concurrent, measure,
};

/// Scenes that a kernel plays: pages of the slot, pages that others have mapped, vCPUs.
const SIZES: [(u64, u64, u32); 6] = [
    (16, 512, 1),
    (16, 4096, 1),
    (512, 16, 1),
    (1, 1, 1),
    (64, 1000, 2),
    (2048, 2048, 4),
];

fn scenes() -> impl Iterator<Item = Scene> {
    SIZES.into_iter().flat_map(|(pages, others, vcpus)| {
        let scene = Scene::new(Pages::new(pages))
            .with_others(Pages::new(others))
            .with_vcpus(1, vcpus);
        Operation::ALL.into_iter().flat_map(move |operation| {
            [Policy::QuirkOn, Policy::QuirkOff, Policy::Protected]
                .map(|policy| scene.with_operation(operation).with_policy(policy))
        })
    })
}

/// What both can tell: leaves that went with the call and came back behind it, faults, and shadow pages.
fn compare(kernel: &KernelCost, model: &Cost, paged: Paged) {
    let scene = kernel.scene;
    let own = |mapped: Option<u64>| mapped.unwrap_or(0);
    let seen = (
        kernel.change.zapped(),
        kernel.others_again.mapped(),
        own(kernel.own_again.map(|step| step.mapped())),
        kernel.refaults(),
    );
    let counted = (
        model.change.zapped(),
        model.others_again.mapped(),
        own(model.own_again.map(|work| work.mapped())),
        model.refaults(),
    );
    if kernel.change.zapped() > 0 {
        println!(
            "{} {}, {} pages, {} of others, {} vCPUs: zapped {}, others' back {}, own back {}, faults {}",
            scene.operation,
            scene.policy,
            scene.pages.raw(),
            scene.others.raw(),
            scene.vcpus,
            seen.0,
            seen.1,
            seen.2,
            seen.3
        );
    }
    assert_eq!(seen, counted, "{scene:?}");
    if paged == Paged::Shadow {
        let seen = (
            kernel.change.shadow_zapped(),
            kernel.others_again.shadow_made(),
        );
        let counted = (
            model.change.counts.tables_zapped,
            model.others_again.counts.tables_made,
        );
        assert_eq!(seen, counted, "{scene:?}: shadow pages");
    }
}

#[test]
fn live_statistics_count_what_the_model_counts() {
    let mut kernel = match Kernel::open() {
        Ok(kernel) => kernel,
        Err(why) => return println!("skipped: {why}"),
    };
    let paged = kernel.subject().paged();
    let mut compared = 0;
    for scene in scenes() {
        let model = match measure(&scene, kernel.subject()) {
            Ok(model) => model,
            Err(why) => {
                println!("skipped: {why}");
                continue;
            }
        };
        compare(&kernel.measure(&scene).unwrap(), &model, paged);
        compared += 1;
    }
    println!("{compared} scenes, {paged:?}: leaves counted alike");
    assert!(compared >= 48);
}

#[test]
fn costs_grow_by_their_laws() {
    let extent = match std::env::var("SLAT_EXTENT").as_deref() {
        Ok("full") => Extent::Full,
        _ => Extent::Short,
    };
    let curves = curves::all(extent).unwrap();
    for curve in &curves {
        let found = curve.found();
        println!(
            "{} over {} in {}: {found:?}, {:?}",
            curve.name, curve.over, curve.counted, curve.points
        );
    }
    assert!(curves.len() >= 11);
    for curve in &curves {
        assert!(curve.holds(), "{curve:?} is not {}", curve.law);
    }
}

/// A cost that grows otherwise is noticed.
#[test]
fn broken_laws_are_found() {
    type Growth = fn(u64) -> u64;
    let grows: [(Growth, Option<Law>); 6] = [
        (|_| 7, Some(Law::Flat)),
        (
            |size| 100 + 20 * u64::from(size.ilog2()),
            Some(Law::Logarithmic),
        ),
        (|size| 500 + 3 * size, Some(Law::Linear)),
        (|size| size * u64::from(size.ilog2() + 1), None),
        (|size| size * size, None),
        (|size| 100 + size.isqrt() * 30, None),
    ];
    for (growth, law) in grows {
        for wanted in [Law::Flat, Law::Logarithmic, Law::Linear] {
            let curve = Curve {
                name: "made up",
                over: "sizes",
                counted: "nothing",
                law: wanted,
                points: (0..12).map(|bit| (1 << bit, growth(1 << bit))).collect(),
            };
            assert_eq!(curve.found(), law, "{curve:?}");
            let less = law == Some(Law::Flat) && wanted == Law::Logarithmic;
            assert_eq!(curve.holds(), law == Some(wanted) || less, "{curve:?}");
        }
    }
}

/// A bound says nothing of how a cost grows below it.
#[test]
fn a_bound_is_kept_up_to_its_last_point() {
    for (counts, kept) in [
        (vec![5, 100, 7], true),
        (vec![5, 101, 7], false),
        (vec![101, 5], false),
        (vec![0, 1], false),
        (vec![], false),
    ] {
        let curve = Curve {
            name: "made up",
            over: "sizes",
            counted: "nothing",
            law: Law::Within(20),
            points: (1..).zip(counts).collect(),
        };
        assert_eq!(curve.holds(), kept, "{curve:?}");
    }
}

/// The numbers of an estimate that the model counts, too.
fn counted(estimate: &Estimate, cost: &Cost) {
    let counts = cost.change.counts;
    let foreseen = (estimate.leaves, estimate.entries, estimate.tables);
    assert_eq!(
        foreseen,
        (counts.leaves_zapped, counts.entries, counts.tables_zapped),
        "{:?}",
        cost.scene
    );
    // Without others nobody runs again, not even the page of the instructions.
    if cost.scene.others.raw() > 0 {
        assert_eq!(estimate.refaults, cost.refaults(), "{:?}", cost.scene);
    }
}

#[test]
fn advice_is_what_the_model_counts() {
    let seed = std::env::var("SLAT_SEED").map_or(1, |seed| seed.parse().unwrap());
    let sequences = std::env::var("SLAT_SEQUENCES").map_or(60, |number| number.parse().unwrap());
    println!("seed {seed}");
    let mut dice = ChaCha8Rng::seed_from_u64(seed);
    let mut roots_cheaper = 0;
    for _ in 0..sequences {
        let leaf = [PageSize::Size4K, PageSize::Size2M][dice.random_range(0..2)];
        let mut leaves = |most: u64| dice.random_range(0..=most) * leaf.pages().raw();
        let pages = leaves(1 << 12) + leaf.pages().raw();
        let (touched, others) = (leaves(1 << 12).min(pages), leaves(1 << 9));
        let roots = [1, 2, 4][dice.random_range(0..3)];
        let scene = Scene::new(Pages::new(pages))
            .with_leaf(leaf)
            .with_touched(Pages::new(touched))
            .with_others(Pages::new(others))
            .with_vcpus(roots, roots + dice.random_range(0..3));
        let play = |policy| measure(&scene.with_policy(policy), &Subject::tdp()).unwrap();
        let (all, leaves) = (play(Policy::QuirkOn), play(Policy::QuirkOff));
        for goal in [Goal::Work, Goal::Call, Goal::Stall] {
            let advice = scene.advice((goal, &Prices::default())).unwrap();
            counted(&advice.all_roots, &all);
            counted(&advice.leaves, &leaves);
            let cheaper = advice.all_roots.nanoseconds < advice.leaves.nanoseconds;
            assert_eq!(advice.cheaper == Zapping::AllRoots, cheaper);
            assert!(!advice.reasons.is_empty(), "{scene:?}");
            roots_cheaper += u64::from(cheaper);
        }
    }
    println!(
        "all roots are the cheaper way in {roots_cheaper} of {}",
        sequences * 3
    );
    assert!(roots_cheaper > 0);
}

/// The advice from the tables of a VM that ran, as a VMM's author would ask for it.
#[test]
fn tables_of_a_vm_can_be_advised_on() {
    let profile = Profile::named("debian-6.12.117").unwrap();
    let mut vm = TdpVm::<Npt>::new(profile, VmType::Default, &Host::npt(40)).unwrap();
    vm.create_vcpu(0);
    for (id, first, pages) in [(0, 0, 16), (1, 0x400, 0x200), (2, 0x800, 0x200)] {
        let (gpa, size) = (first * PAGE_SIZE, pages * PAGE_SIZE);
        let region = Region::new(SlotKey::normal(id), gpa, size, 0x4000_0000 + gpa);
        vm.set_region(&region);
    }
    let touched = (0x400..0x410).chain(0x800..0x8a0);
    let activity = touched.fold(Activity::halt(Gpa::new(PAGE_SIZE)), |activity, gfn| {
        activity.step(Kind::Write, gfn * PAGE_SIZE)
    });
    vm.run_guest(0, &activity);
    let dump = vm.dump(Detail::Ranges);
    let roots = Roots {
        four_level: dump.roots.len() as u64,
        five_level: 0,
        vcpus: 1,
    };
    let (slot, mapped) = (SlotKey::normal(1), Mapped::of_root(&dump.roots[0]));
    let goal = (Goal::Work, &Prices::default());
    let advice = advise(vm.memory(), slot, &mapped, roots, goal).unwrap();
    let _ = vm.take();
    vm.set_region(&Region::delete(slot));
    let counts = Counts::of(&vm.take());
    let foreseen = advice.all_roots;
    assert_eq!(
        (foreseen.leaves, foreseen.entries, foreseen.tables),
        (counts.leaves_zapped, counts.entries, counts.tables_zapped)
    );
    assert_eq!(
        (foreseen.leaves, foreseen.refaults),
        (16 + 160 + 1, 160 + 1)
    );
    assert_eq!(advice.cheaper, Zapping::Leaves);
    assert_eq!(advice.reasons[0].code(), "others-refault");
    assert!(!advice.is_taken());
}

#[test]
fn slots_go_while_another_thread_faults() {
    for policy in [Policy::QuirkOn, Policy::QuirkOff] {
        let scene = Scene::new(Pages::new(1 << 16))
            .with_others(Pages::new(1 << 12))
            .with_policy(policy);
        let measured: Concurrent = concurrent(&scene, &Subject::tdp()).unwrap();
        println!("{policy}: {measured:?}");
        assert!(!measured.zap.is_zero());
    }
    let logged = Scene::new(Pages::new(8)).with_operation(Operation::LogOn);
    let why = concurrent(&logged, &Subject::tdp()).unwrap_err();
    assert!(why.to_string().contains("nothing is zapped"), "{why}");
}

#[test]
fn scenes_that_cannot_be_played_are_refused() {
    let scene = Scene::new(Pages::new(8));
    let wrong = [
        (scene.with_touched(Pages::new(9)), "mapped of a slot of"),
        (
            scene.with_leaf(PageSize::Size2M),
            "not a multiple of a leaf of 2M",
        ),
        (scene.with_vcpus(2, 1), "2 roots by 1 vCPUs"),
        (scene.with_vcpus(1, 0), "0 vCPUs"),
        (Scene::new(Pages::new(0)), "without pages"),
    ];
    for (scene, part) in wrong {
        let why = measure(&scene, &Subject::tdp()).unwrap_err().to_string();
        assert!(why.contains(part), "{why}");
    }
    let why = measure(&scene.with_policy(Policy::Protected), &Subject::shadow()).unwrap_err();
    assert!(why.to_string().contains("no VM for the policy protected"));
}

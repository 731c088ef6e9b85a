//! What slat's page tables are to reach, beside floors and other projects in the same run.
//!
//! `cargo bench --bench goals` prints the lines of all targets that have a number here; `-- 1 13` those of targets 1 and 13,
//! `-- --tib` maps 1 TiB where 64 GiB are mapped otherwise (2 GiB of tables for each side). `docs/performance.md` has the
//! method. slat's own sides are in `slat.rs`; without them only `floor` and `peer` lines are printed.

mod fault;
mod floor;
mod guest_walk;
mod map;
mod memory;
#[path = "../paired/mod.rs"]
mod paired;
mod passes;
mod peers;
mod protect;
mod race;
mod root_switch;
mod shared;
mod shared_floor;
mod side;
mod slat;
mod tree;
mod walk;
mod zap;

use paired::Target;

#[global_allocator]
static ALLOCATOR: memory::HugePages = memory::HugePages;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |word: &str| arguments.iter().any(|argument| argument == word);
    // `cargo test --all-targets` runs benches too, and wants no measurements.
    if !has("--bench") {
        return;
    }
    let most = side::GIB * if has("--tib") { 1024 } else { 64 };
    let targets: [(&str, &dyn Fn()); 13] = [
        ("1", &zap::leaves),
        ("2", &zap::harvest),
        ("3", &zap::shared),
        ("4", &|| zap::fast(most)),
        ("5", &|| {
            root_switch::targets().for_each(|mut target: Target| target.report());
        }),
        ("6", &map::one_gib),
        ("7", &fault::one_gib),
        ("8", &protect::one_gib),
        ("9", &guest_walk::one_dimension),
        ("10", &guest_walk::two_dimensions),
        ("11", &guest_walk::batch),
        ("12", &|| map::most(most)),
        ("13", &walk::audit),
    ];
    let all = !targets.iter().any(|(number, _)| has(number));
    for (number, report) in targets {
        if all || has(number) {
            report();
        }
    }
}

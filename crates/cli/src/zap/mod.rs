//! `slat zap`: what it costs to delete, to move or to re-flag a slot.

mod advice;
mod figure;
mod json;
mod measured;
mod plot;
mod scaling;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::ValueEnum;
use slat_memslot::{PageSize, Pages};
use slat_vmm::zap::{Operation, Policy, Scene, pages};

use crate::Error;
use measured::{Measured, Who};

const EXAMPLES: &str = "\
Examples:
  slat zap                                         a small slot goes, others have more and more mapped: each policy
  slat zap --on both --mmu shadow                  the same beside the local kernel, whose statistics must count the same
  slat zap --size 256M --mapped 1M,16M,256M        a large slot, of which more and more is mapped
  slat zap --operation move,log-on --leaf 2M --size 64M --others 1G
  slat zap --roots 1,2,4 --vcpus 8                 more roots
  slat zap --threads                               with another thread that faults
  slat zap --advice                                which policy is cheaper, and why
  slat zap --on both --plot docs                   the figures of docs/zap.md
  slat zap --scaling                               how each cost grows, by its law

docs/zap.md says what the numbers mean.

Exit status: 0; 1 if model and kernel count differently, or a cost does not grow by its law; 2 if nothing can be measured.";

/// Options of `slat zap`. Lists are played in all combinations.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Where.
    #[arg(long, value_enum, default_value_t = On::Model)]
    on: On,
    /// Which of KVM's MMUs the model has; beside a kernel it is the kernel's.
    #[arg(long, value_enum)]
    mmu: Option<Mmu>,
    /// What is done to the slot: delete, move, log-on, log-off.
    #[arg(long, value_delimiter = ',', default_value = "delete", value_parser = operation)]
    operation: Vec<Operation>,
    /// What decides how far the zap reaches: quirk-on, quirk-off, protected (a VM with private memory), flag (proposed in 2024).
    #[arg(long, value_delimiter = ',', value_parser = policy)]
    policy: Vec<Policy>,
    /// The slot's size.
    #[arg(long, value_delimiter = ',', default_value = "64K", value_parser = pages)]
    size: Vec<Pages>,
    /// How much of it is mapped; all, if not said.
    #[arg(long, value_delimiter = ',', value_parser = pages)]
    mapped: Vec<Pages>,
    /// How much other slots have mapped.
    #[arg(long, value_delimiter = ',', value_parser = pages)]
    others: Vec<Pages>,
    /// What maps all of that: 4K, 2M or 1G.
    #[arg(long, value_delimiter = ',', default_value = "4K", value_parser = leaf)]
    leaf: Vec<PageSize>,
    /// Roots that have it mapped, 1 to 4.
    #[arg(long, value_delimiter = ',', default_value = "1")]
    roots: Vec<u32>,
    /// vCPUs, at least one for each root.
    #[arg(long, value_delimiter = ',', default_value = "1")]
    vcpus: Vec<u32>,
    /// Delete while another thread faults, on the model's tables.
    #[arg(long, conflicts_with_all = ["plot", "scaling", "advice"])]
    threads: bool,
    /// Say which deletion is cheaper, and why.
    #[arg(long, conflicts_with_all = ["plot", "scaling"])]
    advice: bool,
    /// Write figures into this directory: costs over what others have mapped, and where the policies cost the same.
    #[arg(long, value_name = "DIRECTORY", conflicts_with = "scaling")]
    plot: Option<PathBuf>,
    /// How costs grow with slots, memory, roots and vCPUs, in counts.
    #[arg(long)]
    scaling: bool,
    /// With --scaling: to 32,764 slots and 4 TiB.
    #[arg(long, requires = "scaling")]
    full: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum On {
    /// The model's page tables.
    Model,
    /// The local /dev/kvm, by its statistics.
    Kvm,
    /// Both, whose counts must be the same.
    Both,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mmu {
    /// Two-dimensional paging, Linux 6.12 with NPT or EPT.
    Tdp,
    /// Shadow pages, Linux 6.18 without a second stage.
    Shadow,
}

fn operation(name: &str) -> Result<Operation, String> {
    let found = Operation::ALL.into_iter().find(|o| o.name() == name);
    found.ok_or_else(|| one_of(&Operation::ALL.map(Operation::name)))
}

fn policy(name: &str) -> Result<Policy, String> {
    let found = Policy::ALL.into_iter().find(|p| p.name() == name);
    found.ok_or_else(|| one_of(&Policy::ALL.map(Policy::name)))
}

fn leaf(name: &str) -> Result<PageSize, String> {
    match name {
        "4K" => Ok(PageSize::Size4K),
        "2M" => Ok(PageSize::Size2M),
        "1G" => Ok(PageSize::Size1G),
        _ => Err(one_of(&["4K", "2M", "1G"])),
    }
}

fn one_of(names: &[&str]) -> String {
    format!("none of {}", names.join(", "))
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Error> {
    if args.scaling {
        return scaling::run(args.full, args.json);
    }
    let mut who = Who::open(args)?;
    if let Some(directory) = &args.plot {
        return plot::run(directory, &mut who, args.json);
    }
    let scenes = scenes(args, &who);
    if args.advice {
        return advice::run(&scenes, args.json);
    }
    if args.threads {
        return table::threads(&scenes, &who, args.json);
    }
    let measured = measure(&mut who, &scenes)?;
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&json::all(&measured))?),
        false => table::print(&measured),
    }
    Ok(exit_code(measured.iter().all(Measured::agrees)))
}

/// All combinations.
fn scenes(args: &Args, who: &Who) -> Vec<Scene> {
    let policies = match args.policy.as_slice() {
        [] => who.policies(),
        given => given.to_vec(),
    };
    let others = match args.others.as_slice() {
        [] => [0, 16, 512, 4096].map(Pages::new).to_vec(),
        given => given.to_vec(),
    };
    let mut scenes = Vec::new();
    for operation in &args.operation {
        for leaf in &args.leaf {
            for size in &args.size {
                let mapped = match args.mapped.as_slice() {
                    [] => vec![*size],
                    given => given.to_vec(),
                };
                for touched in mapped {
                    for others in &others {
                        for (roots, vcpus) in pairs(&args.roots, &args.vcpus) {
                            let scene = Scene::new(*size)
                                .with_touched(touched)
                                .with_leaf(*leaf)
                                .with_operation(*operation)
                                .with_others(*others)
                                .with_vcpus(roots, vcpus);
                            let all = policies.iter().map(|policy| scene.with_policy(*policy));
                            scenes.extend(all);
                        }
                    }
                }
            }
        }
    }
    scenes
}

/// Roots with vCPUs; where only one number of vCPUs is given, there are at least as many as roots.
fn pairs(roots: &[u32], vcpus: &[u32]) -> Vec<(u32, u32)> {
    let pair = |roots: &u32| {
        let roots = *roots;
        let vcpus = vcpus.iter().map(move |vcpus| match vcpus {
            1 => (roots, roots.max(1)),
            vcpus => (roots, *vcpus),
        });
        vcpus.collect::<Vec<_>>()
    };
    roots.iter().flat_map(pair).collect()
}

fn measure(who: &mut Who, scenes: &[Scene]) -> Result<Vec<Measured>, Error> {
    scenes.iter().map(|scene| who.measure(scene)).collect()
}

fn exit_code(good: bool) -> ExitCode {
    match good {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(1),
    }
}

//! `slat races`: the races of live migration, found or ruled out.

use std::process::ExitCode;

use clap::ValueEnum;
use serde::Serialize;
use slat_coco::migration::{
    Broken, Explored, ListOrder, ProgramName, Rule, Rules, Setting, Technology, Verdict, check,
    count,
};

use crate::Error;
use crate::table::plain;

/// Options of `slat races`.
///
/// Exits with 0 if no schedule breaks a page, with 1 if one does.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A rule that guest or VMM does not keep; may be given several times.
    #[arg(long, value_name = "RULE", value_parser = rule)]
    without: Vec<Rule>,
    /// A rule to keep that is not needed: announcement-dirties.
    #[arg(long, value_name = "RULE", value_parser = rule)]
    with: Vec<Rule>,
    /// Leave out each rule in turn, besides those of --without.
    #[arg(long)]
    each: bool,
    /// What decides whether a page is private.
    #[arg(long, value_enum, default_value_t = On::Sev)]
    on: On,
    /// Pages, 1 or 2; they do not influence each other, and two take seconds.
    #[arg(long, default_value_t = 1)]
    pages: usize,
    /// The most states to look at.
    #[arg(long, value_name = "NUMBER", default_value_t = 10_000_000)]
    states: usize,
    /// Count bad interleavings of five guests with three VMMs instead.
    #[arg(long, conflicts_with_all = ["each", "without", "pages", "states", "on"])]
    count: bool,
    /// Rounds before the guest is stopped, when counting.
    #[arg(long, default_value_t = 1, requires = "count", value_parser = clap::value_parser!(u8).range(..=20))]
    rounds: u8,
    /// List the rules.
    #[arg(long)]
    rules: bool,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum On {
    /// The guest's own tables: the host believes what it is told.
    Sev,
    /// The reverse map of SEV-SNP.
    Snp,
    /// Secure EPT of TDX.
    Tdx,
}

impl On {
    const fn technology(self) -> Technology {
        match self {
            Self::Sev => Technology::Sev,
            Self::Snp => Technology::Snp,
            Self::Tdx => Technology::Tdx,
        }
    }
}

fn rule(name: &str) -> Result<Rule, String> {
    let found = Rule::ALL.into_iter().find(|rule| rule.name() == name);
    found.ok_or_else(|| {
        let names = Rule::ALL.map(Rule::name).join(", ");
        format!("no such rule; there are {names}")
    })
}

pub(crate) fn run(args: &Args) -> Result<ExitCode, Error> {
    if args.rules {
        return list(args.json);
    }
    if args.count {
        return count_all(args);
    }
    let mut left_out: Vec<Vec<Rule>> = vec![args.without.clone()];
    if args.each {
        let needed = Rule::ALL.into_iter();
        let others = needed
            .filter(|rule| !args.without.contains(rule) && *rule != Rule::AnnouncementDirties);
        left_out.extend(others.map(|rule| [&args.without[..], &[rule]].concat()));
    }
    let mut answers = Vec::new();
    for without in left_out {
        answers.push(Answer::of(args, without)?);
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&answers)?);
    } else {
        answers.iter().for_each(Answer::print);
    }
    Ok(match answers.iter().all(|answer| answer.safe) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn list(json: bool) -> Result<ExitCode, Error> {
    if json {
        let rules: serde_json::Map<_, _> = Rule::ALL
            .iter()
            .map(|rule| (rule.name().to_owned(), rule.meaning().into()))
            .collect();
        println!("{}", serde_json::to_string_pretty(&rules)?);
    } else {
        let mut table = plain(["rule", "what it demands"]);
        for rule in Rule::ALL {
            let _table = table.add_row([rule.name(), rule.meaning()]);
        }
        println!("{table}");
    }
    Ok(ExitCode::SUCCESS)
}

/// What one search found.
#[derive(Debug, Serialize)]
struct Answer {
    on: &'static str,
    pages: usize,
    without: Vec<&'static str>,
    safe: bool,
    states: usize,
    steps: usize,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    schedule: Vec<Line>,
    #[serde(skip)]
    text: String,
}

/// A line of a schedule.
#[derive(Debug, Serialize)]
struct Line {
    by: &'static str,
    what: String,
}

impl Answer {
    fn of(args: &Args, without: Vec<Rule>) -> Result<Self, Error> {
        let keep = |rules: Rules, rule: &Rule| rules.with(*rule, true);
        let rules = args.with.iter().fold(Rules::default(), keep);
        let rules = without
            .iter()
            .fold(rules, |rules, rule| rules.with(*rule, false));
        let setting = Setting {
            rules,
            technology: args.on.technology(),
            pages: args.pages,
            states: args.states,
        };
        let (explored, broken) = match check(&setting)? {
            Verdict::Safe(explored) => (explored, None),
            Verdict::Broken(broken) => (broken.explored, Some(broken)),
        };
        let Explored { states, steps } = explored;
        Ok(Self {
            on: setting.technology.name(),
            pages: args.pages,
            without: without.into_iter().map(Rule::name).collect(),
            safe: broken.is_none(),
            states,
            steps,
            schedule: broken.as_ref().map_or_else(Vec::new, lines),
            text: broken.map_or_else(String::new, |broken| broken.schedule.to_string()),
        })
    }

    fn print(&self) {
        let rules = match self.without.join(", ") {
            none if none.is_empty() => "all rules".to_owned(),
            some => format!("without {some}"),
        };
        let Self {
            on, states, steps, ..
        } = self;
        if self.safe {
            println!("{on}, {rules}: no schedule breaks a page; {states} states, {steps} steps");
        } else {
            println!(
                "{on}, {rules}: the shortest schedule that breaks a page, after {states} states\n"
            );
            println!("{}\n", self.text);
        }
    }
}

fn lines(broken: &Broken) -> Vec<Line> {
    let pages = broken.schedule.pages();
    let steps = broken.schedule.steps().iter();
    steps
        .map(|step| Line {
            by: if step.host_op().is_some() {
                "vmm"
            } else {
                "vcpu"
            },
            what: step.text(pages),
        })
        .collect()
}

/// How many interleavings of one guest with one VMM there are.
#[derive(Debug, Serialize)]
struct Counted {
    vmm: String,
    guest: &'static str,
    interleavings: String,
    bad: String,
}

fn count_all(args: &Args) -> Result<ExitCode, Error> {
    let dirties = args.with.contains(&Rule::AnnouncementDirties);
    let rounds = usize::from(args.rounds);
    let mut all = Vec::new();
    for order in ListOrder::ALL {
        for guest in ProgramName::ALL {
            let found = count(&guest.program(), order, rounds, dirties);
            all.push(Counted {
                vmm: order.to_string(),
                guest: guest.name(),
                interleavings: found.interleavings.to_string(),
                bad: found.bad.to_string(),
            });
        }
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(ExitCode::SUCCESS);
    }
    let header = ["VMM"]
        .into_iter()
        .chain(ProgramName::ALL.map(ProgramName::name));
    let mut table = plain(header);
    for row in all.chunks(ProgramName::ALL.len()) {
        let cells = row
            .iter()
            .map(|cell| format!("{} of {}", cell.bad, cell.interleavings));
        let _table = table.add_row([row[0].vmm.clone()].into_iter().chain(cells));
    }
    println!("{table}");
    Ok(ExitCode::SUCCESS)
}

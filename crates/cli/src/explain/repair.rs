//! The way from a refused call to one that succeeds, as lines of a scenario.

use slat_memslot::{Call, Hva, Memory, Outcome, Repair, RepairStep};
use slat_vmm::scenario::{Area, HOST_AREAS, Names, Request};

use super::situation::Situation;

/// How a refused call can be made to succeed.
#[derive(Debug)]
pub(super) struct Way {
    /// The reasons one after the other, with what takes each away.
    pub(super) steps: Vec<RepairStep>,
    /// The calls to make instead of the refused one; none if nothing helps.
    pub(super) lines: Vec<String>,
    /// Why nothing helps.
    pub(super) impossible: Option<&'static str>,
}

impl Way {
    pub(super) fn new(situation: &Situation) -> Self {
        let steps = situation.vm.memory().repairs(&situation.call);
        let impossible = steps.iter().find_map(|step| match step.repair {
            Repair::Impossible { why } => Some(why),
            Repair::Calls { .. } => None,
        });
        let mut writer = Writer::new(situation);
        let mut lines = situation.first.clone();
        lines.extend(writer.lines(&steps));
        match impossible {
            None if writer.works => Self {
                steps,
                lines,
                impossible,
            },
            why => Self {
                steps,
                lines: Vec::new(),
                impossible: why.or(Some("no way was found")),
            },
        }
    }
}

/// Makes the calls of a way while it writes them, so that new files get names.
struct Writer {
    memory: Memory,
    names: Names,
    host: Option<Area>,
    works: bool,
}

impl Writer {
    fn new(situation: &Situation) -> Self {
        let names = situation.names.clone();
        let host = situation.request.host().and_then(|name| {
            let base: Hva = names.host(name)?;
            let known = HOST_AREAS.iter().find(|(area, _)| *area == name);
            Some(Area::new(
                name,
                base,
                known.map_or(1 << 30, |(_, len)| *len),
            ))
        });
        Self {
            memory: situation.vm.memory().clone(),
            names,
            host,
            works: true,
        }
    }

    fn lines(&mut self, steps: &[RepairStep]) -> Vec<String> {
        let mut lines = Vec::new();
        let mut last = None;
        for step in steps {
            if let Repair::Calls { first, call } = &step.repair {
                lines.extend(first.iter().map(|call| self.line(call)));
                last = Some(call);
            }
        }
        lines.extend(last.map(|call| self.line(call)));
        lines
    }

    fn line(&mut self, call: &Call) -> String {
        let mut request = Request::of(call, &self.names, self.host.as_ref());
        let result = self.memory.call(call);
        self.works &= result.is_ok();
        if let Ok(outcome @ (Outcome::Gmem(_) | Outcome::Mapped(..))) = &result {
            request = request.named(self.fresh_name());
            self.names.bind(&request, outcome);
        }
        request.to_string()
    }

    /// A name that stands for nothing yet.
    fn fresh_name(&self) -> String {
        let free =
            |name: &String| self.names.file(name).is_none() && self.names.host(name).is_none();
        let mut names = (0u32..).map(|number| format!("g{number}"));
        names.find(free).unwrap_or_default()
    }
}

//! What stands before an event's fields: task, CPU, flags, time, name.

/// Who was running.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Task<'a> {
    /// Its name, which may have blanks in it: `CPU 0/KVM`.
    pub name: &'a str,
    /// The thread (`common_pid`).
    pub thread: u32,
    /// The process it belongs to, if the trace tells (`record-tgid`, `perf script -F +pid`).
    pub process: Option<u32>,
}

/// A line up to its fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head<'a> {
    pub(super) task: Task<'a>,
    /// Without the system that `perf` puts before it.
    pub(super) event: &'a str,
    /// What stands behind the name and its colon.
    pub(super) rest: &'a str,
    pub(super) is_perf: bool,
    pub(super) has_flags: bool,
}

impl<'a> Head<'a> {
    /// Takes a line apart; `None` if it is not one of a trace.
    pub(super) fn parse(line: &'a str) -> Option<Self> {
        let (before, after) = at_time(line)?;
        let after = after.trim_start();
        let (name, rest) = match after.split_once(": ") {
            Some(parts) => parts,
            None => (after.trim_end().strip_suffix(':')?, ""),
        };
        let (system, event) = match name.split_once(':') {
            Some((system, event)) => (Some(system), event),
            None => (None, name),
        };
        if !is_name(event) || !system.is_none_or(is_name) {
            return None;
        }
        let (before, has_flags) = without_cpu(before)?;
        let task = task(before)?;
        Some(Self {
            task,
            event,
            rest: rest.trim(),
            is_perf: system.is_some(),
            has_flags,
        })
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// The parts before and after the time, `93.123456:`, or a number alone if the clock is a counter.
fn at_time(line: &str) -> Option<(&str, &str)> {
    let mut from = 0;
    while let Some(colon) = line.get(from..)?.find(": ").map(|at| at + from) {
        let before = line.get(..colon)?;
        let start = before.rfind(' ').map_or(0, |at| at + 1);
        let word = before.get(start..)?;
        let is_time = word.starts_with(|c: char| c.is_ascii_digit())
            && word.chars().all(|c| c.is_ascii_digit() || c == '.');
        if is_time && start > 0 {
            return Some((before.get(..start)?.trim_end(), line.get(colon + 1..)?));
        }
        from = colon + 2;
    }
    None
}

/// Takes `[001]`, `[001] d..1.` or `0d..1.` away from the end; says whether there were flags.
fn without_cpu(text: &str) -> Option<(&str, bool)> {
    let (before, last) = text.rsplit_once(' ')?;
    if is_cpu(last) {
        return Some((before.trim_end(), false));
    }
    let before = before.trim_end();
    match before.rsplit_once(' ') {
        Some((task, cpu)) if is_cpu(cpu) => Some((task.trim_end(), true)),
        // The latency format has both in one word.
        _ if last.starts_with(|c: char| c.is_ascii_digit()) && last.contains('.') => {
            Some((before, true))
        }
        _ => None,
    }
}

fn is_cpu(word: &str) -> bool {
    let number = word
        .strip_prefix('[')
        .and_then(|word| word.strip_suffix(']'));
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|c| c.is_ascii_digit()))
}

/// `NAME-THREAD`, `NAME-THREAD (PROCESS)`, `NAME THREAD`, `NAME PROCESS/THREAD`.
fn task(text: &str) -> Option<Task<'_>> {
    let (text, process) = match text
        .strip_suffix(')')
        .and_then(|text| text.rsplit_once('('))
    {
        Some((task, process)) => (task.trim_end(), process.trim().parse().ok()),
        None => (text, None),
    };
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    if let Some((name, thread)) = text.rsplit_once('-').filter(|(_, id)| is_number(id)) {
        return Some(Task {
            name: without_buffer(name),
            thread: thread.parse().ok()?,
            process,
        });
    }
    let (name, ids) = text.rsplit_once(' ')?;
    let (process, thread) = match ids.split_once('/') {
        Some((process, thread)) => (Some(process.parse().ok()?), thread),
        None => (process, ids),
    };
    Some(Task {
        name: name.trim(),
        thread: thread.parse().ok()?,
        process,
    })
}

/// `trace-cmd` puts the name of a buffer before the task.
fn without_buffer(name: &str) -> &str {
    let task = name.split_once(": ").map_or(name, |(_, task)| task);
    task.trim()
}

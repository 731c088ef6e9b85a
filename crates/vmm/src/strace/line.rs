//! One line of strace's output: what precedes the call, its arguments, its result.

use slat_memslot::Errno;

use super::Returned;

/// What strace prints for a call that another thread's line interrupts.
pub(super) const UNFINISHED: &str = "<unfinished ...>";

/// A line without what `-f`, `-r`, `-t`, `-tt`, `-ttt` and `-i` put before the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Line<'a> {
    /// The thread.
    pub(super) pid: Option<u32>,
    /// Where the rest begins, in bytes.
    pub(super) offset: usize,
    /// The rest.
    pub(super) body: &'a str,
}

impl<'a> Line<'a> {
    pub(super) fn new(line: &'a str) -> Self {
        let mut pid = None;
        let mut body = line.trim_start();
        while let Some((found, rest)) = prefix(body, pid) {
            pid = found;
            body = rest.trim_start();
        }
        Self {
            pid,
            offset: line.len() - body.len(),
            body,
        }
    }
}

/// One prefix of `text` with the thread known after it; `None` when the call begins.
fn prefix(text: &str, pid: Option<u32>) -> Option<(Option<u32>, &str)> {
    if let Some(rest) = text.strip_prefix("[pid") {
        let (number, rest) = rest.split_once(']')?;
        return Some((Some(number.trim().parse().ok()?), rest));
    }
    if let Some(rest) = text.strip_prefix("(+") {
        return Some((pid, rest.split_once(')')?.1));
    }
    if let Some(rest) = text.strip_prefix('[') {
        let (address, rest) = rest.split_once(']')?;
        let hex = !address.is_empty() && address.chars().all(|c| c.is_ascii_hexdigit());
        return hex.then_some((pid, rest));
    }
    let (word, rest) = text.split_once(char::is_whitespace)?;
    if is_time(word) {
        return Some((pid, rest));
    }
    match pid {
        Some(_) => None,
        None => Some((Some(word.parse().ok()?), rest)),
    }
}

/// `07:29:53`, `07:29:53.916964`, `1700000000.123456` or `0.000083`.
fn is_time(word: &str) -> bool {
    let digits = word.starts_with(|c: char| c.is_ascii_digit());
    let allowed = |c: char| c.is_ascii_digit() || c == '.' || c == ':';
    digits && word.contains(['.', ':']) && word.chars().all(allowed)
}

/// What a line says about a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part<'a> {
    /// All of it.
    Whole(&'a str),
    /// Its beginning.
    Begun(&'a str),
    /// Its end.
    Resumed(&'a str),
    /// Nothing: a signal, an exit, a message.
    Other,
}

impl<'a> Part<'a> {
    pub(super) fn of(body: &'a str) -> Self {
        if let Some(rest) = body.strip_prefix("<... ") {
            return match rest.split_once(" resumed>") {
                Some((_, end)) => Self::Resumed(end),
                None => Self::Other,
            };
        }
        if !body.starts_with(|c: char| c.is_ascii_lowercase() || c == '_') {
            return Self::Other;
        }
        match body.trim_end().strip_suffix(UNFINISHED) {
            Some(begun) => Self::Begun(begun.trim_end()),
            None => Self::Whole(body),
        }
    }
}

/// A piece of text and where it begins in the call, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Arg<'a> {
    pub(super) offset: usize,
    pub(super) text: &'a str,
}

/// A call: its name, its arguments, its result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SysCall<'a> {
    pub(super) name: &'a str,
    pub(super) args: Vec<Arg<'a>>,
    pub(super) returned: Returned,
}

impl<'a> SysCall<'a> {
    /// Reads `text`; else the byte at which it stops to be a call.
    pub(super) fn new(text: &'a str) -> Result<Self, usize> {
        let (name, rest) = text.split_once('(').ok_or(text.len())?;
        let from = name.len() + 1;
        let len = closing(rest).ok_or(text.len())?;
        let (inside, behind) = rest.split_at_checked(len).ok_or(text.len())?;
        let result = from + len + 1;
        let returned = behind.strip_prefix(')').and_then(returned);
        Ok(Self {
            name,
            args: split(inside, from),
            returned: returned.ok_or(result)?,
        })
    }

    /// The text of argument `index`.
    pub(super) fn arg(&self, index: usize) -> Option<Arg<'a>> {
        self.args.get(index).copied()
    }
}

/// How deep a character lies in brackets, strings, comments and descriptors' decorations.
#[derive(Default)]
struct Depth {
    brackets: u32,
    angles: u32,
    string: bool,
    escaped: bool,
    last: char,
}

impl Depth {
    /// Takes in `c`.
    fn step(&mut self, c: char) {
        let last = core::mem::replace(&mut self.last, c);
        match c {
            _ if self.escaped => self.escaped = false,
            '\\' if self.string => self.escaped = true,
            '"' if self.angles == 0 => self.string = !self.string,
            _ if self.string => {}
            '<' if self.angles > 0 || last.is_ascii_digit() => self.angles += 1,
            '>' if last != '-' => self.angles = self.angles.saturating_sub(1),
            _ if self.angles > 0 => {}
            '(' | '[' | '{' => self.brackets += 1,
            ')' | ']' | '}' => self.brackets = self.brackets.saturating_sub(1),
            _ => {}
        }
    }

    fn is_top(&self) -> bool {
        self.brackets == 0 && self.angles == 0 && !self.string
    }
}

/// The byte of the bracket that closes the arguments.
fn closing(text: &str) -> Option<usize> {
    let mut depth = Depth::default();
    for (at, c) in text.char_indices() {
        if c == ')' && depth.is_top() {
            return Some(at);
        }
        depth.step(c);
    }
    None
}

/// `text` cut at its outer commas; `from` is where it begins in the call.
pub(super) fn split(text: &str, from: usize) -> Vec<Arg<'_>> {
    let mut depth = Depth::default();
    let outer = text.split(|c: char| {
        let cut = c == ',' && depth.is_top();
        depth.step(c);
        cut
    });
    let mut offset = from;
    let mut args = Vec::new();
    for piece in outer {
        let blanks = piece.len() - piece.trim_start().len();
        args.push(Arg {
            offset: offset + blanks,
            text: piece.trim(),
        });
        offset += piece.len() + 1;
    }
    args
}

/// What stands behind the arguments: `= 0`, `= 4<anon_inode:kvm-vm>`, `= -1 EINVAL (Invalid argument)`, `= ?`.
fn returned(text: &str) -> Option<Returned> {
    let text = text.trim_start().strip_prefix('=')?.trim_start();
    let end = text.find(|c: char| c.is_whitespace() || c == '<');
    let (value, rest) = text.split_at_checked(end.unwrap_or(text.len()))?;
    if value == "?" {
        return Some(Returned::Unknown);
    }
    let value = signed(value)?;
    Some(match value {
        -1 => error(rest.trim_start()),
        value => Returned::Value(value),
    })
}

/// `EINVAL (Invalid argument)` or `(errno 524)`.
fn error(text: &str) -> Returned {
    if let Some(rest) = text.strip_prefix("(errno ") {
        let number = rest.split_once(')').and_then(|(n, _)| n.parse().ok());
        return number.map_or(Returned::Unknown, |n| Returned::Failed(Errno::new(n)));
    }
    let name = text.split_whitespace().next().unwrap_or_default();
    match name.parse() {
        Ok(errno) => Returned::Failed(errno),
        Err(_) => Returned::Unknown,
    }
}

/// A number as strace prints it: decimal, with a sign, or `0x` hex.
pub(super) fn signed(text: &str) -> Option<i64> {
    match text.strip_prefix("0x") {
        Some(hex) => i64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

/// The same without a sign; `NULL` is 0.
pub(super) fn unsigned(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        _ if text == "NULL" => Some(0),
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

/// `text` without what `/* ... */` encloses.
pub(super) fn without_comments(text: &str) -> String {
    let mut kept = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("/*") {
        kept.push_str(before.trim_end());
        rest = after.split_once("*/").map_or("", |(_, rest)| rest);
    }
    kept.push_str(rest);
    kept
}

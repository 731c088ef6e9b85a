//! From text to steps.

use std::collections::BTreeSet;

use slat_memslot::{Call, FileCall};

use super::args::{Args, Word};
use super::lex::{self, Parsed, Token, TokenKind};
use super::{
    DEFAULT_VM, Expect, HOST_AREAS, ParseError, Request, Scenario, SnpStep, Step, StepKind,
};
use super::{calls, convert, expect, snp, words};

/// Reads a scenario.
///
/// # Errors
///
/// The first line that cannot be read: an unknown operation, argument or name, a value that is missing, given twice or
/// out of range, or the use of a file or a mapping that no earlier line of the case has made.
pub fn parse(text: &str) -> Result<Scenario, ParseError> {
    let mut parser = Parser::default();
    for (number, line) in (1u32..).zip(text.split('\n')) {
        parser.line(number, line)?;
    }
    Ok(Scenario {
        steps: parser.steps,
    })
}

/// What has been read, and the names that are bound at this point of the case.
#[derive(Default)]
struct Parser {
    steps: Vec<Step>,
    files: BTreeSet<String>,
    maps: BTreeSet<String>,
    vms: BTreeSet<String>,
    vm: Option<String>,
}

impl Parser {
    fn line(&mut self, line: u32, text: &str) -> Result<(), ParseError> {
        let error = |column, message| ParseError {
            line,
            column,
            message,
        };
        let mut tokens = lex::tokens(text).map_err(|column| {
            error(
                column,
                "title: no closing quote, or an unknown escape".to_owned(),
            )
        })?;
        if tokens.is_empty() {
            return Ok(());
        }
        let result = split_result(&mut tokens, line)?;
        let first = tokens.remove(0);
        let TokenKind::Word(op) = first.kind else {
            return Err(error(
                first.column,
                "a title: no operation before it".to_owned(),
            ));
        };
        let op = Word {
            column: first.column,
            text: op,
        };
        let mut args = Args::new(line, op, tokens)?;
        let kind = self.kind(op, &mut args)?;
        args.finish()?;
        let expect = result.map(|result| result.read(&kind, &args)).transpose()?;
        self.push(Step { line, kind, expect }, &args)
    }

    fn kind(&mut self, op: Word<'_>, args: &mut Args<'_>) -> Result<StepKind, ParseError> {
        match op.text {
            "profile" => args.word("a name", profile).map(StepKind::Profile),
            "case" => args.title().map(StepKind::Case),
            "vm" => vm(args),
            "convert" => convert::read(args).map(StepKind::Convert),
            "drop_vm" => args.word("a name", lex::name).map(StepKind::DropVm),
            _ => match calls::read(op.text, args) {
                Some(request) => request.map(StepKind::Call),
                None => match snp::read(op.text, args) {
                    Some(step) => step.map(StepKind::Snp),
                    None => Err(args.fault("no such operation")),
                },
            },
        }
    }

    /// Takes the step in, with the names it uses and makes.
    fn push(&mut self, step: Step, args: &Args<'_>) -> Result<(), ParseError> {
        match &step.kind {
            StepKind::Case(_) => {
                self.files.clear();
                self.maps.clear();
                self.vms.clear();
                self.vm = None;
            }
            StepKind::Vm { name, .. } => {
                self.vms.insert(name.clone());
                self.vm = Some(name.clone());
            }
            StepKind::DropVm(name) => self.drop_vm(name).map_err(|why| args.fault(&why))?,
            StepKind::Call(request) => {
                let vm = self.vm.as_deref().unwrap_or(DEFAULT_VM);
                self.vms.insert(vm.to_owned());
                self.check(request).map_err(|why| args.fault(&why))?;
                if step.expect.as_ref().is_none_or(Expect::is_success) {
                    self.bind(request);
                }
            }
            StepKind::Snp(_) | StepKind::Convert(_) => {
                let vm = self.vm.as_deref().unwrap_or(DEFAULT_VM);
                self.vms.insert(vm.to_owned());
            }
            StepKind::Profile(_) => {}
        }
        self.steps.push(step);
        Ok(())
    }

    fn drop_vm(&mut self, name: &str) -> Result<(), String> {
        if !self.vms.remove(name) {
            return Err(format!("{name} is no VM of this case"));
        }
        self.vm = self.vm.take().filter(|current| current != name);
        Ok(())
    }

    fn check(&self, request: &Request) -> Result<(), String> {
        if let Some(file) = request.file().filter(|name| !self.files.contains(*name)) {
            return Err(format!("{file} is no guest_memfd of this case"));
        }
        let map_only = matches!(request.template(), Call::Map(..));
        let known = |name: &str| self.maps.contains(name) || (!map_only && is_area(name));
        if let Some(host) = request.host().filter(|name| !known(name)) {
            return Err(format!("{host} is no mapping of this case"));
        }
        match request.binds().filter(|name| is_area(name)) {
            Some(area) => Err(format!("{area} is host memory already")),
            None => Ok(()),
        }
    }

    fn bind(&mut self, request: &Request) {
        let Some(name) = request.binds() else { return };
        let names = match request.template() {
            Call::File(_, FileCall::Mmap { .. }) => &mut self.maps,
            _ => &mut self.files,
        };
        names.insert(name.to_owned());
    }
}

fn is_area(name: &str) -> bool {
    HOST_AREAS.iter().any(|(area, _)| *area == name)
}

fn vm(args: &mut Args<'_>) -> Result<StepKind, ParseError> {
    let vm_type = |text: &str| {
        let value = lex::value(words::VM_TYPES, text)?;
        u32::try_from(value).map_err(|_| "larger than 32 bits".to_owned())
    };
    Ok(StepKind::Vm {
        name: args.word("a name", lex::name)?,
        vm_type: args.optional("type", vm_type)?,
    })
}

fn profile(text: &str) -> Parsed<String> {
    if text.chars().all(is_profile_char) {
        return Ok(text.to_owned());
    }
    Err("letters, digits, `.`, `_` and `-` only".to_owned())
}

/// Whether `c` can stand in a profile's name.
pub(super) fn is_profile_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}

/// The words behind `=>`.
struct ResultWords<'a> {
    column: u32,
    words: Vec<&'a str>,
}

impl ResultWords<'_> {
    fn read(self, kind: &StepKind, args: &Args<'_>) -> Result<Expect, ParseError> {
        let text = self.words.join(" ");
        let error = |why: &str| args.error(self.column, format!("=> {text}: {why}"));
        if let StepKind::Snp(SnpStep::Op(_)) = kind {
            let failure = self.words.first().is_some_and(|word| word.starts_with('E'));
            if !failure {
                let answer = snp::read_answer(&self.words).map_err(|why| error(&why))?;
                return Ok(Expect::Snp(answer));
            }
        }
        let expect = expect::read(&self.words).map_err(|why| error(&why))?;
        let fits = match kind {
            StepKind::Call(request) => expect.fits(request.template()),
            StepKind::Snp(SnpStep::Op(_)) => matches!(expect, Expect::Fails { .. }),
            StepKind::Snp(SnpStep::Command(_)) => matches!(
                expect,
                Expect::Ok | Expect::Remaining { .. } | Expect::Fails { .. }
            ),
            StepKind::Vm { .. } | StepKind::Convert(_) => {
                matches!(expect, Expect::Ok | Expect::Fails { .. })
            }
            StepKind::Profile(_) | StepKind::Case(_) | StepKind::DropVm(_) => false,
        };
        if fits {
            return Ok(expect);
        }
        Err(error("nothing that this line can give"))
    }
}

/// Takes `=>` and what follows off the end of a line.
fn split_result<'a>(
    tokens: &mut Vec<Token<'a>>,
    line: u32,
) -> Result<Option<ResultWords<'a>>, ParseError> {
    let Some(at) = tokens.iter().position(|t| t.kind == TokenKind::Arrow) else {
        return Ok(None);
    };
    let tail = tokens.split_off(at);
    let column = tail.first().map_or(1, |arrow| arrow.column);
    let error = |column, message: &str| ParseError {
        line,
        column,
        message: message.to_owned(),
    };
    if tokens.is_empty() {
        return Err(error(column, "=>: no operation before it"));
    }
    let mut words = Vec::new();
    for token in tail.into_iter().skip(1) {
        match token.kind {
            TokenKind::Word(word) => words.push(word),
            _ => return Err(error(token.column, "=>: not a result")),
        }
    }
    Ok(Some(ResultWords { column, words }))
}

mod contents;
mod property;
mod tdx;

use slat_memslot::{
    Access, Call, DirtyPages, Errno, FileRef, GmemId, Hva, MapCall, MapId, Outcome, Pages,
};

use super::*;

/// The only call of `line`, with its expectation.
fn one(line: &str) -> (Request, Option<Expect>) {
    let mut steps = parse(line).unwrap_or_else(|e| panic!("{e}")).steps;
    match steps.pop() {
        Some(Step {
            kind: StepKind::Call(request),
            expect,
            ..
        }) => (request, expect),
        other => panic!("{line}: {other:?}"),
    }
}

fn error(text: &str) -> String {
    match parse(text) {
        Err(error) => error.to_string(),
        Ok(scenario) => panic!("{text:?} parsed as {scenario:?}"),
    }
}

fn areas() -> Vec<Area> {
    let bases = [0x10_0000_0000, 0x20_0000_0000, 0x30_0000_0000];
    let named = HOST_AREAS.iter().zip(bases);
    named
        .map(|((name, len), base)| Area::new(*name, Hva::new(base), *len))
        .collect()
}

#[test]
fn canonical_lines_come_back_unchanged() {
    let text = include_str!("canonical.slat");
    let scenario = parse(text).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(scenario.to_string(), text);
    assert_eq!(scenario.clone().renumbered(), scenario);
}

#[test]
fn other_spellings_mean_the_same() {
    let pairs = [
        (
            "set_user_memory_region hva=A+4K size=64K gpa=0x0 flags=0x1 slot=0x10005",
            "set_user_memory_region slot=1:5 flags=LOG_DIRTY_PAGES gpa=0 size=0x10000 hva=A+0x1000",
        ),
        (
            "set_user_memory_region2 slot=0 gpa=0 size=1 hva=0 gmem=fd:-1 padding=0 # comment",
            "set_user_memory_region2 slot=0 gpa=0 size=0x1 hva=0 gmem=none",
        ),
        (
            "\tset_user_memory_region slot=0 size=0 gpa=0 \r",
            "set_user_memory_region slot=0 size=0",
        ),
        (
            "get_dirty_log slot=0 buffer=good => dirty 9,0x1-3,4,2",
            "get_dirty_log slot=0 => dirty 1-4,9",
        ),
        (
            "enable_cap 192 args=0x1000,0,0,0",
            "enable_cap DIRTY_LOG_RING args=4096",
        ),
        ("check_extension 999", "check_extension 999"),
        (
            "guest_write gpa=2T => ring-full",
            "guest_write gpa=0x20000000000 => ring-full",
        ),
        ("create_vcpu => E123", "create_vcpu => E123"),
    ];
    for (text, canonical) in pairs {
        let scenario = parse(text).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(scenario.to_string(), format!("{canonical}\n"));
    }
}

#[test]
fn errors_name_the_value_and_its_place() {
    let cases = [
        (
            "\n\nget_dirty_log slot=70000x",
            "line 3, column 15: slot=70000x: not a number",
        ),
        (
            "get_dirty_log slot=4G",
            "line 1, column 15: slot=4G: larger than 32 bits",
        ),
        (
            "get_dirty_log slot=0:65536",
            "line 1, column 15: slot=0:65536: larger than 16 bits",
        ),
        (
            "guest_write gpa=16777216T",
            "line 1, column 13: gpa=16777216T: larger than 64 bits",
        ),
        (
            "get_dirty_log slot=0 slot=1",
            "line 1, column 22: slot=: given twice",
        ),
        (
            "get_dirty_log",
            "line 1, column 1: get_dirty_log: needs slot=",
        ),
        (
            "get_dirty_log slot=0 size=1",
            "line 1, column 22: size=: get_dirty_log has no such argument",
        ),
        ("create_vcpu 3", "line 1, column 13: 3: one word too many"),
        ("fly away", "line 1, column 1: fly: no such operation"),
        (
            "close G",
            "line 1, column 1: close: G is no guest_memfd of this case",
        ),
        (
            "touch A offset=0",
            "line 1, column 1: touch: A is no mapping of this case",
        ),
        (
            "create_guest_memfd vmfd size=4K",
            "line 1, column 20: vmfd: a word with a meaning of its own in gmem=",
        ),
        (
            "create_guest_memfd size=4K flags=HUGE",
            "line 1, column 28: flags=HUGE: \"HUGE\" is none of MMAP, INIT_SHARED",
        ),
        (
            "enable_cap NO_SUCH",
            "line 1, column 12: NO_SUCH: no known capability",
        ),
        (
            "enable_cap 1 args=1,2,3,4,5",
            "line 1, column 14: args=1,2,3,4,5: more than four arguments",
        ),
        (
            "case \"open",
            "line 1, column 6: title: no closing quote, or an unknown escape",
        ),
        ("case", "line 1, column 1: case: needs a \"title\""),
        ("=> ok", "line 1, column 1: =>: no operation before it"),
        (
            "create_vcpu => ok => ok",
            "line 1, column 19: =>: not a result",
        ),
        (
            "create_vcpu => EWHAT",
            "line 1, column 13: => EWHAT: unknown error name \"EWHAT\"",
        ),
        (
            "create_vcpu => EINVAL Not_a_code",
            "line 1, column 13: => EINVAL Not_a_code: \"Not_a_code\" is not a reason code",
        ),
        (
            "create_vcpu => dirty none",
            "line 1, column 13: => dirty none: nothing that this line can give",
        ),
        (
            "set_user_memory_region slot=0 gpa=0 size=1 hva=A gmem=none",
            "line 1, column 50: gmem=: set_user_memory_region has no such argument",
        ),
    ];
    for (text, message) in cases {
        assert_eq!(error(text), message, "{text:?}");
    }
}

#[test]
fn names_last_for_a_case_and_only_when_made() {
    let create = "create_guest_memfd G size=4K";
    assert!(parse(&format!("{create}\nclose G")).is_ok());
    assert!(parse(&format!("{create} => ok\nclose G")).is_ok());
    assert!(error(&format!("{create} => EINVAL\nclose G")).starts_with("line 2"));
    assert!(error(&format!("{create}\ncase \"b\"\nclose G")).starts_with("line 3"));
    let map = format!("{create}\nmmap G as RO len=4K prot=READ flags=SHARED");
    assert_eq!(
        error(&map),
        "line 2, column 1: mmap: RO is host memory already"
    );
}

#[test]
fn files_of_another_vm_are_foreign() {
    let text = "vm other\ncreate_guest_memfd G size=4K\nvm vm\n\
                set_user_memory_region2 slot=0 gpa=0 size=4K hva=A gmem=G\nclose G";
    let scenario = parse(text).unwrap_or_else(|e| panic!("{e}"));
    let mut names = Names::new(areas());
    let mut resolved = Vec::new();
    for step in scenario.steps {
        match step.kind {
            StepKind::Vm { name, .. } => names.enter_vm(&name),
            StepKind::Call(request) => {
                names.bind(&request, &Outcome::Gmem(GmemId::new(0)));
                resolved.push(request.resolve(&names));
            }
            _ => {}
        }
    }
    let Some(Ok(Call::SetRegion(region))) = resolved.get(1) else {
        panic!("{resolved:?}");
    };
    assert_eq!(region.gmem, FileRef::Foreign);
    assert_eq!(
        resolved.get(2),
        Some(&Err(Unbound::ForeignFile("G".to_owned())))
    );
}

#[test]
fn mappings_resolve_to_where_they_lie() {
    let text = "create_guest_memfd G size=4K\nmmap G as M len=4K prot=READ flags=SHARED\n\
                set_user_memory_region slot=0 gpa=0 size=4K hva=M+1\ntouch M";
    let scenario = parse(text).unwrap_or_else(|e| panic!("{e}"));
    let mut names = Names::new(areas());
    let mut calls = Vec::new();
    for step in &scenario.steps {
        let StepKind::Call(request) = &step.kind else {
            continue;
        };
        names.bind(request, &Outcome::Gmem(GmemId::new(3)));
        names.bind(request, &Outcome::Mapped(MapId::new(7), Hva::new(0x5000)));
        calls.push(request.resolve(&names));
    }
    assert!(matches!(calls.get(2), Some(Ok(Call::SetRegion(r))) if r.hva == 0x5001));
    let touch = Call::Map(MapId::new(7), MapCall::Touch { offset: 0 });
    assert_eq!(calls.get(3), Some(&Ok(touch)));
    names.enter_case();
    assert_eq!(names.host("M"), None);
}

#[test]
fn expectations_accept_what_they_say() {
    let ok = |text: &str, outcome: Outcome| {
        let (_, expect) = one(text);
        expect.is_some_and(|e| e.accepts(&Ok(outcome)))
    };
    assert!(ok("create_vcpu => ok", Outcome::Value(3)));
    assert!(ok("reset_dirty_rings => 0", Outcome::Done));
    assert!(!ok("reset_dirty_rings => 3", Outcome::Value(0)));
    assert!(!ok("create_vcpu => EINVAL", Outcome::Done));
    let dirty = DirtyPages::from_words(Pages::new(100), vec![0b1011, 1 << 35]);
    assert!(ok(
        "get_dirty_log slot=0 => dirty 0-1,3,99",
        Outcome::Dirty(dirty.clone())
    ));
    assert!(!ok(
        "get_dirty_log slot=0 => dirty none",
        Outcome::Dirty(dirty)
    ));
    let ring = || Outcome::Ring(vec![(0, 5), (0x1_0007, 6)]);
    assert!(ok("harvest_dirty_ring vcpu=0 => ring 0+5,1:7+6", ring()));
    assert!(!ok("harvest_dirty_ring vcpu=0 => ring 1:7+6,0+5", ring()));
    assert!(ok(
        "guest_write gpa=0 => mmio",
        Outcome::Access(Access::Mmio)
    ));
    let (_, expect) = one("create_vcpu => EINVAL no-such-thing");
    let expect = expect.unwrap_or(Expect::Ok);
    assert!(expect.accepts(&Err(Errno::EINVAL)));
    assert!(!expect.accepts(&Err(Errno::EEXIST)));
    assert_eq!(expect.reason(), Some("no-such-thing"));
}

#[test]
fn recorder_names_what_it_sees() {
    let mut recorder = Recorder::new(areas());
    recorder.profile("linux 6.12");
    let create = Call::CreateGmem {
        size: 0x1000,
        flags: 0,
        reserved: 0,
    };
    recorder.case("a \"quoted\" title");
    recorder.call(&create, &Err(Errno::EMFILE));
    recorder.because("too-many-files");
    recorder.open_call(&create);
    recorder.vm("other", Some(4));
    recorder.call(&create, &Ok(Outcome::Gmem(GmemId::new(0))));
    let text = recorder.finish().to_string();
    let expected = "profile linux_6.12\n\n\
                    case \"a \\\"quoted\\\" title\"\n\
                    create_guest_memfd size=0x1000 => EMFILE too-many-files\n\
                    create_guest_memfd g0 size=0x1000\n\
                    vm other type=sev-snp\n\
                    create_guest_memfd other_g0 size=0x1000 => ok\n";
    assert_eq!(text, expected);
    assert!(parse(&text).is_ok());
}

#[test]
fn a_line_of_very_many_arguments_is_refused_at_the_first_unknown() {
    let pairs: String = (0..100_000).map(|n| format!(" a{n}=0")).collect();
    let error = parse(&format!("create_vcpu{pairs}")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "line 1, column 13: a0=: create_vcpu has no such argument"
    );
    let error = parse(&format!("create_vcpu{pairs} a0=1")).unwrap_err();
    assert!(error.message == "a0=: given twice", "{error}");
}

#[test]
fn a_dropped_vm_takes_its_files_along() {
    let text = "\
vm a
create_guest_memfd G size=4K => ok
drop_vm a
set_user_memory_region2 slot=0 flags=GUEST_MEMFD gpa=0 size=4K hva=A gmem=G => EBADF
vm b
drop_vm b
";
    let scenario = parse(text).unwrap_or_else(|e| panic!("{e}"));
    let mut machine = crate::model::Machine::new(slat_memslot::Profile::latest());
    let report = crate::run(&scenario, &mut machine).unwrap_or_else(|e| panic!("{e}"));
    let last = report.steps.last().map(|step| &step.verdict);
    let gone = "G: no guest_memfd of this name".to_owned();
    assert_eq!(last, Some(&crate::Verdict::NotTried { why: gone }));
    let canonical = scenario.to_string();
    assert_eq!(parse(&canonical), Ok(scenario.renumbered()));
}

#[test]
fn only_a_vm_of_the_case_can_be_dropped() {
    let error = |text: &str| parse(text).expect_err(text).to_string();
    assert_eq!(
        error("vm a\ncase \"b\"\ndrop_vm a"),
        "line 3, column 1: drop_vm: a is no VM of this case"
    );
    assert_eq!(
        error("create_vcpu\ndrop_vm vm\ndrop_vm vm"),
        "line 3, column 1: drop_vm: vm is no VM of this case"
    );
}

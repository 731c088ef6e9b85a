//! From calls with numbers to a scenario with names.

use std::collections::BTreeMap;

use slat_memslot::{
    Call, Errno, FileCall, FileRef, GmemId, Hva, MapId, Outcome, Region, RegionVersion,
};

use super::lex::is_name;
use super::parse::is_profile_char;
use super::{Area, DEFAULT_VM, Expect, Request, Scenario, Step, StepKind, expect};

/// Writes calls down as a scenario while they are made.
///
/// Files are named `g0`, `g1`, … in the order of creation and mappings `m0`, `m1`, …, with the VM's name before
/// them in other VMs than the first. An address inside one of the areas or mappings is written as its name and an offset,
/// any other in hex.
///
/// ```
/// use slat_memslot::{Call, GmemId, Hva, Outcome, Region, SlotKey};
/// use slat_vmm::scenario::{Area, Recorder};
///
/// let mut recorder = Recorder::new([Area::new("A", Hva::new(0x7f00_0000_0000), 1 << 30)]);
/// recorder.case("bind");
/// let create = Call::CreateGmem { size: 0x10000, flags: 0, reserved: 0 };
/// recorder.call(&create, &Ok(Outcome::Gmem(GmemId::new(0))));
/// let region = Region::new(SlotKey::normal(0), 0, 0x10000, 0x7f00_0000_2000).with_gmem(GmemId::new(0), 0);
/// recorder.call(&Call::SetRegion(region), &Ok(Outcome::Done));
/// assert_eq!(
///     recorder.finish().to_string(),
///     "case \"bind\"\n\
///      create_guest_memfd g0 size=0x10000 => ok\n\
///      set_user_memory_region2 slot=0 flags=GUEST_MEMFD gpa=0 size=0x10000 hva=A+0x2000 gmem=g0 => ok\n"
/// );
/// ```
#[derive(Clone, Debug, Default)]
pub struct Recorder {
    areas: Vec<Area>,
    mapped: Vec<Area>,
    made: BTreeMap<String, Made>,
    vm: String,
    steps: Vec<Step>,
}

/// How many files and mappings a VM has made.
#[derive(Clone, Copy, Debug, Default)]
struct Made {
    files: u32,
    maps: u32,
}

/// The calls of one VM and their results as text.
pub fn write<'a>(
    calls: impl IntoIterator<Item = (&'a Call, &'a Result<Outcome, Errno>)>,
    areas: impl IntoIterator<Item = Area>,
) -> String {
    let mut recorder = Recorder::new(areas);
    for (call, result) in calls {
        recorder.call(call, result);
    }
    recorder.finish().to_string()
}

impl Recorder {
    /// Starts an empty scenario; `areas` is the host memory that addresses may lie in.
    pub fn new(areas: impl IntoIterator<Item = Area>) -> Self {
        Self {
            areas: areas.into_iter().collect(),
            vm: DEFAULT_VM.to_owned(),
            ..Self::default()
        }
    }

    /// Says which kernel the results come from; what cannot stand in a profile's name becomes `_`.
    pub fn profile(&mut self, name: &str) {
        let name = cleaned(name, is_profile_char);
        self.push(StepKind::Profile(name), None);
    }

    /// Starts a case: no VM but the first, and no files.
    pub fn case(&mut self, title: &str) {
        self.mapped.clear();
        self.made.clear();
        DEFAULT_VM.clone_into(&mut self.vm);
        self.push(StepKind::Case(title.to_owned()), None);
    }

    /// Goes over to VM `name`; what cannot stand in a name becomes `_`.
    pub fn vm(&mut self, name: &str, vm_type: Option<u32>) {
        let mut name = cleaned(name, |c| c.is_ascii_alphanumeric() || c == '_');
        if !is_name(&name) {
            name.insert(0, '_');
        }
        name.clone_into(&mut self.vm);
        self.push(StepKind::Vm { name, vm_type }, None);
    }

    /// Goes over to the new VM `name`; with an error it could not be made.
    pub fn create_vm(&mut self, name: &str, vm_type: u32, result: Result<(), Errno>) {
        self.vm(name, Some(vm_type));
        let expect = Expect::of(&result.map(|()| Outcome::Done));
        if let Some(step) = self.steps.last_mut() {
            step.expect = Some(expect);
        }
    }

    /// Closes VM `name`, which goes with everything it made.
    pub fn drop_vm(&mut self, name: &str) {
        self.made.remove(name);
        if self.vm == name {
            DEFAULT_VM.clone_into(&mut self.vm);
        }
        self.push(StepKind::DropVm(name.to_owned()), None);
    }

    /// Writes down a call and what it gave.
    pub fn call(&mut self, call: &Call, result: &Result<Outcome, Errno>) {
        let mut request = self.request(call);
        if result.is_ok() {
            request.binds = self.make(call);
        }
        if let (Ok(Outcome::Mapped(_, base)), Some(name)) = (result, &request.binds) {
            self.add_mapping(name.clone(), *base, call);
        }
        self.push(StepKind::Call(request), Some(Expect::of(result)));
    }

    /// Writes down a call whose result is open; one that makes something counts as successful.
    pub fn open_call(&mut self, call: &Call) {
        let mut request = self.request(call);
        request.binds = self.make(call);
        self.push(StepKind::Call(request), None);
    }

    /// Adds the reason to the last call, when it failed; anything but a code in kebab case is left out.
    pub fn because(&mut self, code: &str) {
        let last = self.steps.last_mut().and_then(|step| step.expect.as_mut());
        if let (Some(Expect::Fails { reason, .. }), true) = (last, expect::is_code(code)) {
            *reason = Some(code.to_owned());
        }
    }

    /// The scenario so far, its lines numbered as in its text.
    pub fn finish(self) -> Scenario {
        Scenario { steps: self.steps }.renumbered()
    }

    fn push(&mut self, kind: StepKind, expect: Option<Expect>) {
        self.steps.push(Step {
            line: 0,
            kind,
            expect,
        });
    }

    /// The call with names for its numbers.
    fn request(&self, call: &Call) -> Request {
        let mut request = Request::plain(call.clone());
        match &mut request.template {
            Call::SetRegion(region) => {
                request.file = self.file(region);
                request.host = self.host(region);
            }
            Call::File(id, _) => {
                request.file = Some(self.name('g', id.index()));
                *id = GmemId::new(0);
            }
            Call::Map(id, _) => {
                request.host = Some(self.name('m', id.index()));
                *id = MapId::new(0);
            }
            _ => {}
        }
        request
    }

    /// Takes the file out of `region`; the older struct has none.
    fn file(&self, region: &mut Region) -> Option<String> {
        if region.version == RegionVersion::V1 {
            region.gmem = FileRef::default();
            region.gmem_offset = 0;
            region.padding = 0;
        }
        let FileRef::Gmem(id) = region.gmem else {
            return None;
        };
        region.gmem = FileRef::Gmem(GmemId::new(0));
        Some(self.name('g', id.index()))
    }

    /// Takes the host memory out of `region`, the newest mapping first.
    fn host(&self, region: &mut Region) -> Option<String> {
        let newest_first = self.mapped.iter().rev().chain(&self.areas);
        for area in newest_first {
            if let Some(offset) = area.offset_of(region.hva) {
                region.hva = offset;
                return Some(area.name.clone());
            }
        }
        None
    }

    /// The name of the current VM's file or mapping number `index`.
    fn name(&self, letter: char, index: usize) -> String {
        match self.vm.as_str() {
            DEFAULT_VM => format!("{letter}{index}"),
            vm => format!("{vm}_{letter}{index}"),
        }
    }

    /// Counts what a successful `call` makes, and names it.
    fn make(&mut self, call: &Call) -> Option<String> {
        let made = self.made.entry(self.vm.clone()).or_default();
        let (letter, count) = match call {
            Call::CreateGmem { .. } => ('g', &mut made.files),
            Call::File(_, FileCall::Mmap { .. }) => ('m', &mut made.maps),
            _ => return None,
        };
        let index = usize::try_from(*count).unwrap_or(usize::MAX);
        *count = count.saturating_add(1);
        Some(self.name(letter, index))
    }

    fn add_mapping(&mut self, name: String, base: Hva, call: &Call) {
        if let Call::File(_, FileCall::Mmap { len, .. }) = call {
            self.mapped.push(Area::new(name, base, *len));
        }
    }
}

fn cleaned(text: &str, allowed: impl Fn(char) -> bool) -> String {
    if text.is_empty() {
        return "_".to_owned();
    }
    let clean = |c: char| if allowed(c) { c } else { '_' };
    text.chars().map(clean).collect()
}

//! From what is to be done to a line's words.

use slat_coco::psc::{PscEntry, PscOperation, PscQuirks};
use slat_coco::rmp::{RmpSize, Visibility};
use slat_coco::snp::{ApCreation, Hole, RmpFaultPolicy};
use slat_memslot::{Gfn, GfnRange};

use super::super::words;
use super::super::write::{Line, hex, value};
use super::{AP_REQUESTS, LAUNCH_TYPES, OPERATIONS, PERMISSIONS};
use crate::snp_vm::{GuestAct, SnpCommand, SnpOp, VmmWays};

pub(in crate::scenario) fn command(command: &SnpCommand) -> String {
    match *command {
        SnpCommand::LaunchStart { policy, flags } => {
            let mut line = Line::new("snp_launch_start");
            line.pair("policy", hex(policy));
            line.unless_zero("flags", hex(flags));
            line.text()
        }
        SnpCommand::LaunchUpdate {
            gpa,
            size,
            page,
            tag,
            flags,
        } => {
            let mut line = Line::new("snp_launch_update");
            line.pair("gpa", hex(gpa));
            line.pair("size", hex(size));
            if page != 1 {
                line.pair("type", value(LAUNCH_TYPES, u64::from(page)));
            }
            line.unless_zero("tag", tag.to_string());
            line.unless_zero("flags", hex(flags));
            line.text()
        }
        SnpCommand::LaunchFinish { flags } => {
            let mut line = Line::new("snp_launch_finish");
            line.unless_zero("flags", hex(flags));
            line.text()
        }
    }
}

pub(in crate::scenario) fn op(op: &SnpOp) -> String {
    match op {
        SnpOp::Guest(vcpu, act) => {
            let mut line = guest(act);
            line.unless_zero("vcpu", vcpu.to_string());
            line.text()
        }
        SnpOp::Vmm(ways) => vmm(ways),
        SnpOp::Host { policy, folio } => host(*policy, *folio),
        SnpOp::Convert(range, to, hole) => {
            let mut line = over("snp_convert", *range);
            line.pair("to", side(*to));
            if *hole == Hole::Kept {
                line.pair("hole", "keep");
            }
            line.text()
        }
        SnpOp::Discard(range) => over("snp_discard", *range).text(),
        SnpOp::HostRead(gfn) => at("snp_host_read", *gfn).text(),
        SnpOp::HostWrite(gfn, tag) => {
            let mut line = at("snp_host_write", *gfn);
            line.pair("tag", tag.to_string());
            line.text()
        }
        SnpOp::HostPeek(gfn) => at("snp_host_peek", *gfn).text(),
        SnpOp::Entry(gfn) => at("snp_entry", *gfn).text(),
        SnpOp::Audit => "snp_audit".to_owned(),
    }
}

fn at(op: &str, gfn: Gfn) -> Line {
    let mut line = Line::new(op);
    line.pair("gpa", hex(gfn.gpa().raw()));
    line
}

fn over(op: &str, range: GfnRange) -> Line {
    let mut line = at(op, range.start());
    line.pair("size", hex(range.pages().bytes()));
    line
}

pub(super) const fn side(side: Visibility) -> &'static str {
    match side {
        Visibility::Shared => "shared",
        Visibility::Private => "private",
    }
}

pub(super) const fn size(size: RmpSize) -> &'static str {
    match size {
        RmpSize::Size4K => "4K",
        RmpSize::Size2M => "2M",
    }
}

fn sized(op: &str, gfn: Gfn, of: RmpSize) -> Line {
    let mut line = at(op, gfn);
    if of == RmpSize::Size2M {
        line.pair("size", size(of));
    }
    line
}

fn with_c(op: &str, gfn: Gfn, side: Visibility) -> Line {
    let mut line = at(op, gfn);
    line.pair(
        "c",
        if side == Visibility::Private {
            "1"
        } else {
            "0"
        },
    );
    line
}

fn guest(act: &GuestAct) -> Line {
    match act {
        GuestAct::Read(gfn, side) => with_c("snp_read", *gfn, *side),
        GuestAct::Write(gfn, side, tag) => {
            let mut line = with_c("snp_write", *gfn, *side);
            line.pair("tag", tag.to_string());
            line
        }
        GuestAct::Execute(gfn) => at("snp_execute", *gfn),
        GuestAct::Validate(gfn, size) => sized("snp_validate", *gfn, *size),
        GuestAct::Rescind(gfn, size) => sized("snp_rescind", *gfn, *size),
        GuestAct::ValidateAll(gfn) => at("snp_validate_all", *gfn),
        GuestAct::Adjust(gfn, size, adjustment) => {
            let mut line = sized("snp_adjust", *gfn, *size);
            line.pair("vmpl", (adjustment.target as u8).to_string());
            let bits = u64::from(adjustment.permissions.bits());
            line.pair("permissions", words::join(PERMISSIONS, bits));
            line.unless_zero("vmsa", u8::from(adjustment.vmsa).to_string());
            line
        }
        GuestAct::Query(gfn, target) => {
            let mut line = at("snp_query", *gfn);
            line.pair("vmpl", (*target as u8).to_string());
            line
        }
        GuestAct::Psc(entries) => {
            let mut line = Line::new("snp_psc");
            let all: Vec<String> = entries.iter().map(entry).collect();
            line.pair("entries", all.join(","));
            line
        }
        GuestAct::Msr(value) => {
            let mut line = Line::new("snp_msr");
            line.pair("value", hex(*value));
            line
        }
        GuestAct::ApCreate(request) => ap_create(request),
        GuestAct::RunVmpl(vmpl) => {
            let mut line = Line::new("snp_run_vmpl");
            line.pair("vmpl", (*vmpl as u8).to_string());
            line
        }
        GuestAct::Init => Line::new("snp_init"),
    }
}

fn entry(entry: &PscEntry) -> String {
    let operation = match entry.operation {
        PscOperation::Private => 1,
        PscOperation::Shared => 2,
        PscOperation::Psmash => 3,
        PscOperation::Unsmash => 4,
        PscOperation::Unknown(bits) => u64::from(bits),
    };
    let mut text = format!("{}:{}", hex(entry.gfn.raw()), value(OPERATIONS, operation));
    if entry.size == RmpSize::Size2M || entry.cur_page != 0 {
        text = format!("{text}:{}", size(entry.size));
    }
    if entry.cur_page != 0 {
        text = format!("{text}:{}", entry.cur_page);
    }
    text
}

fn ap_create(request: &ApCreation) -> Line {
    let mut line = Line::new("snp_ap_create");
    let kind = request.exit_info_1 & u64::from(u32::MAX);
    line.pair("request", value(AP_REQUESTS, kind));
    line.pair("apic_id", (request.exit_info_1 >> 32).to_string());
    line.unless_zero("vmsa", hex(request.exit_info_2));
    if request.sev_features != 1 {
        line.pair("features", hex(request.sev_features));
    }
    line
}

const fn hole(hole: Hole) -> &'static str {
    match hole {
        Hole::Punched => "punch",
        Hole::Kept => "keep",
    }
}

fn vmm(ways: &VmmWays) -> String {
    let mut line = Line::new("snp_vmm");
    if ways.explicit == Hole::Kept {
        line.pair("explicit", "keep");
    }
    if let Some(implicit) = ways.implicit {
        line.pair("implicit", hole(implicit));
    }
    let quirks = ways.quirks;
    if quirks == PscQuirks::kvm_2026() {
        line.pair("quirks", "kvm-2026");
    } else if quirks == PscQuirks::strict() {
        line.pair("quirks", "strict");
    }
    if let Some(chunk) = ways.chunk {
        line.pair("chunk", chunk.to_string());
    }
    if let Some(at) = ways.fails_at {
        line.pair("fails_at", at.to_string());
    }
    line.text()
}

fn host(policy: RmpFaultPolicy, folio: RmpSize) -> String {
    let mut line = Line::new("snp_host");
    match policy {
        RmpFaultPolicy::Upstream => {}
        RmpFaultPolicy::Rfc2021 => line.pair("policy", "rfc-2021"),
        RmpFaultPolicy::Strict => line.pair("policy", "strict"),
    }
    if folio == RmpSize::Size2M {
        line.pair("folio", "2M");
    }
    line.text()
}

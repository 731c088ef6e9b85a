//! The MSR protocol.

use super::*;

#[test]
fn a_page_goes_each_way() {
    for (op, attributes) in [(1, 0x10), (2, 0)] {
        let request = MsrRequest::from_msr(op << 52 | 0x8000 << 12 | 0x014);
        assert_eq!(request.exit().unwrap().args(), [0x800_0000, 1, attributes]);
    }
}

#[test]
fn other_operations_have_no_exit() {
    for op in [0, 3, 4, 15] {
        let request = MsrRequest::from_msr(op << 52 | 0x8000 << 12 | 0x014);
        let MsrRequest::PageState { to: None, .. } = request else {
            panic!("{request:?}");
        };
        assert_eq!(request.exit(), None);
    }
}

#[test]
fn every_request_is_told_from_the_others() {
    let vmpl = |raw: u64| MsrRequest::from_msr(raw << 32 | 0x016);
    assert_eq!(
        vmpl(2),
        MsrRequest::RunVmpl {
            vmpl: Some(crate::rmp::Vmpl::Vmpl2)
        }
    );
    assert_eq!(vmpl(4), MsrRequest::RunVmpl { vmpl: None });
    let cpuid = MsrRequest::Cpuid {
        function: 0x8000_001f,
        register: 1,
    };
    assert_eq!(
        MsrRequest::from_msr(0x8000_001f << 32 | 1 << 30 | 0x004),
        cpuid
    );
    let terminate = MsrRequest::Terminate { set: 1, code: 5 };
    assert_eq!(MsrRequest::from_msr(5 << 16 | 1 << 12 | 0x100), terminate);
    let register = MsrRequest::RegisterGhcb {
        gfn: Gfn::new(0x1234),
    };
    assert_eq!(MsrRequest::from_msr(0x1234 << 12 | 0x012), register);
    let known = [0x002, 0x004, 0x010, 0x012, 0x014, 0x016, 0x080, 0x100];
    for info in 0..0x1000 {
        let unknown = MsrRequest::from_msr(info) == MsrRequest::Unknown(info);
        assert_eq!(unknown, !known.contains(&info), "{info:#x}");
    }
}

#[test]
fn responses() {
    assert_eq!(MsrResponse::NoPreferredGhcb.to_msr(), 0xffff_ffff_ffff_f011);
    assert_eq!(
        MsrResponse::Registered(None).to_msr(),
        0xffff_ffff_ffff_f013
    );
    let frame = Some(Gfn::new(0x12));
    assert_eq!(MsrResponse::Registered(frame).to_msr(), 0x1_2013);
    assert_eq!(MsrResponse::Features(0x23).to_msr(), 0x2_3081);
}

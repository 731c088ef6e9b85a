//! All attribute words with all sizes and alignments, and what six VMMs make of the same exits.

use slat_memslot::{Gpa, PageSize};

use crate::convert::{
    Contract, DecodeError, MapGpaRangeExit, MemoryFaultExit, Outcome, Path, Request,
};
use crate::migration::Status;

pub(super) fn hypercall(args: [u64; 3]) -> Result<Request, DecodeError> {
    Request::from_hypercall(&MapGpaRangeExit { nr: 12, args })
}

/// Every word of eight bits, and one bit above them at a time: bits 3:0 are a size, bit 4 the kind, nothing else means anything.
#[test]
fn every_word_of_attributes() {
    let words = (0..0x100).chain((8..64).map(|bit| 1 << bit | 0x10));
    for word in words {
        let found = hypercall([0x20_0000, 512, word]);
        let sizes = [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G];
        match (word & !0x1f, word & 0xf) {
            (0, size @ 0..3) => {
                let size = usize::try_from(size).expect("a small number");
                let request = found.expect("a word that means something");
                assert_eq!(request.hint, sizes[size], "{word:#x}");
                let private = request.to == Status::Private;
                assert_eq!(private, word & 0x10 != 0, "{word:#x}");
            }
            (0, size) => assert_eq!(found, Err(DecodeError::UnknownSize(size))),
            _ => assert_eq!(found, Err(DecodeError::UnknownAttributes(word))),
        }
    }
}

/// Addresses and lengths at every border, each with each size: the size is a wish and changes nothing.
#[test]
fn every_alignment_and_length() {
    let addresses = [0, 1, 0xfff, 0x1000, 0x20_0000, 0x20_1000, !0xfff, !0];
    let lengths = [0, 1, 511, 512, 513, 1 << 52, (1 << 52) + 1, !0];
    for gpa in addresses {
        for pages in lengths {
            for size in 0..3 {
                let found = hypercall([gpa, pages, size]);
                let end = u128::from(gpa) + u128::from(pages) * 4096;
                let wanted = match (gpa & 0xfff, pages) {
                    (1.., _) => Err(DecodeError::Unaligned(Gpa::new(gpa))),
                    (0, 0) => Err(DecodeError::Empty(Gpa::new(gpa))),
                    _ if end > 1 << 64 => Err(DecodeError::Wraps {
                        gpa: Gpa::new(gpa),
                        pages,
                    }),
                    _ => Ok((gpa >> 12, pages)),
                };
                let found =
                    found.map(|request| (request.range.start().raw(), request.range.pages().raw()));
                assert_eq!(found, wanted, "{gpa:#x} {pages:#x} {size}");
            }
        }
    }
}

#[test]
fn memory_faults() {
    let fault = |flags, gpa, size| {
        let gpa = Gpa::new(gpa);
        Request::from_memory_fault(&MemoryFaultExit { flags, gpa, size })
    };
    assert_eq!(
        fault(8, 0x1000, 0x1000).map(|request| request.to),
        Ok(Status::Private)
    );
    assert_eq!(
        fault(0, 0x1000, 0x1000).map(|request| request.to),
        Ok(Status::Shared)
    );
    for flags in (0..64).map(|bit| 1 << bit).filter(|flags| *flags != 8) {
        assert_eq!(
            fault(flags, 0x1000, 0x1000),
            Err(DecodeError::UnknownFlags(flags))
        );
    }
    assert_eq!(
        fault(8, 0x1000, 0x800),
        Err(DecodeError::PartOfAPage(0x800))
    );
    assert_eq!(
        fault(8, 0x1234, 0x1000),
        Err(DecodeError::Unaligned(Gpa::new(0x1234)))
    );
    assert_eq!(
        fault(8, 0x1000, 0),
        Err(DecodeError::Empty(Gpa::new(0x1000)))
    );
}

#[test]
fn another_hypercall() {
    let exit = MapGpaRangeExit {
        nr: 9,
        args: [0, 1, 0],
    };
    assert_eq!(
        Request::from_hypercall(&exit),
        Err(DecodeError::OtherHypercall(9))
    );
}

#[test]
fn answers_are_understood_as_they_are_meant() {
    for contract in [Contract::Before2026, Contract::Since2026] {
        for outcome in [Outcome::Done, Outcome::TryAgain, Outcome::Refused] {
            let heard = Outcome::of_ret(outcome.ret(contract, Path::Converted), contract);
            let lossy = contract == Contract::Before2026 && outcome == Outcome::TryAgain;
            let wanted = if lossy { Outcome::Refused } else { outcome };
            assert_eq!(heard, Ok(wanted), "{contract:?} {outcome:?}");
        }
    }
    // What VMMs have written: OpenVMM's 1, and a negative errno that was forwarded.
    for ret in [1, 22_u64.wrapping_neg(), 12] {
        assert!(Outcome::of_ret(ret, Contract::Since2026).is_err());
        assert_eq!(
            Outcome::of_ret(ret, Contract::Before2026),
            Ok(Outcome::Refused)
        );
    }
}

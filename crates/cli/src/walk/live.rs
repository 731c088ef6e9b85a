//! The walk of an access that a guest on `/dev/kvm` has made.

use std::process::ExitCode;

use super::Args;
use crate::Error;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub(super) fn run(args: &Args) -> Result<ExitCode, Error> {
    use slat_memslot::{Gpa, Gva};
    use slat_mmu::fault::Kind;
    use slat_mmu::walk::{PagingMode, Privilege, Translation};
    use slat_vmm::kvm::AccessGuest;
    use slat_vmm::walks::{Ended, Tried};

    use super::{Live, Walked, print};

    let tried = Tried {
        kind: match (args.write, args.fetch) {
            (true, _) => Kind::Write,
            (_, true) => Kind::Execute,
            _ => Kind::Read,
        },
        privilege: match args.user {
            true => Privilege::User,
            false => Privilege::Supervisor,
        },
        address: Gva::new(args.address),
        pkru: 0,
    };
    let mode = match args.levels {
        5 => PagingMode::Level5,
        _ => PagingMode::Level4,
    };
    let scene = AccessGuest::scene(mode, &tried)?;
    let walk = scene.walk()?;
    let walked = Walked {
        end: walk.end.map(|found| Translation {
            address: Gpa::new(found.address.raw()),
            gpa: found.gpa,
            size: found.size,
            rights: found.rights,
            leaf: found.leaf,
            key: found.key,
            dirty: found.dirty,
        }),
        exit: None,
        live: Some(Live {
            ended: match &scene.ended {
                Some(Ended::Done) => "the access was made".to_owned(),
                Some(other) => format!("{other:?}"),
                None => "none".to_owned(),
            },
            second: scene.source.to_string(),
            second_levels: scene.second_levels(),
        }),
        ladder: walk.ladder,
    };
    let paging = scene.paging();
    match args.json {
        true => print::json(args, &paging, &walked, None)?,
        false => print::text(args, &paging, &walked, None),
    }
    let as_the_guest = walked.end.is_ok() && scene.ended == Some(Ended::Done);
    Ok(match as_the_guest {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
pub(super) fn run(_: &Args) -> Result<ExitCode, Error> {
    Err("KVM for x86-64 needs Linux on x86-64".into())
}

//! The command line of QEMU, and of the kernel in it.

use std::path::Path;
use std::process::Command;

use crate::kernel::Image;
use crate::options::Machine;

const QEMU: &str = "qemu-system-x86_64";

/// What boots: `job` becomes `/run/vm` in the machine, the folder of each of `writable` the same folder there.
pub(crate) fn command(
    machine: &Machine,
    image: &Image,
    job: &Path,
    writable: &[(String, &Path)],
) -> Command {
    // The emulator must not outlive a runner that is killed.
    let mut qemu = Command::new("setpriv");
    qemu.args(["--pdeathsig", "KILL", QEMU]);
    qemu.args(["-nodefaults", "-no-user-config", "-no-reboot"]);
    qemu.args(["-display", "none", "-monitor", "none"]);
    qemu.args(["-machine", "q35", "-accel", "tcg,thread=single"]);
    qemu.args(["-cpu", &processor(machine)]);
    qemu.args(["-m", &machine.memory.to_string()]);
    qemu.args(["-smp", &machine.cpus.to_string()]);
    qemu.arg("-serial")
        .arg(format!("file:{}", job.join("console").display()));
    qemu.arg("-kernel").arg(&image.kernel);
    qemu.arg("-initrd").arg(job.join("initrd"));
    qemu.arg("-append").arg(arguments(machine));
    // Read-only; the host's other file systems below the root are shared with it.
    share(&mut qemu, "root", Path::new("/"), ",readonly=on");
    share(&mut qemu, "job", job, "");
    for (tag, folder) in writable {
        share(&mut qemu, tag, folder, "");
    }
    qemu
}

fn processor(machine: &Machine) -> String {
    let levels = if machine.levels == 5 { "on" } else { "off" };
    let mut cpu = format!("max,la57={levels}");
    for feature in &machine.cpu {
        cpu.push(',');
        cpu.push_str(feature);
    }
    cpu
}

fn share(qemu: &mut Command, tag: &str, folder: &Path, more: &str) {
    // QEMU reads two commas as one.
    let path = folder.display().to_string().replace(',', ",,");
    qemu.arg("-virtfs").arg(format!(
        "local,path={path},mount_tag={tag},security_model=none,multidevs=remap{more}"
    ));
}

/// The kernel's command line. A panic ends the machine. Time comes from the HPET: on a busy host Linux finds a wrong
/// frequency for the TSC, and clocks then run ten times too fast.
fn arguments(machine: &Machine) -> String {
    let mut line = String::from(
        "console=ttyS0 panic=-1 loglevel=5 mitigations=off tsc=unstable clocksource=hpet no_timer_check",
    );
    for pages in &machine.hugepages {
        line.push_str(&format!(
            " hugepagesz={} hugepages={}",
            pages.size, pages.count
        ));
    }
    for argument in machine
        .mmu
        .parameter()
        .into_iter()
        .chain(machine.append.iter().map(String::as_str))
    {
        line.push(' ');
        line.push_str(argument);
    }
    line
}

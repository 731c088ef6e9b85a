//! Guests with tables of their own, whose VMs tell what they have counted.

use slat_memslot::Hva;
use slat_mmu::walk::Privilege;

use super::{Done, Driver, Journal, io_error, missing};
use crate::kvm::Stats;
use crate::live::execute;
use crate::traces::{Control, Instruction, Leaves, MmuCounts, Note, Op, Sregs};

impl<J: Journal> Driver<J> {
    /// Whether the VM's guests have tables of their own.
    pub(super) fn is_counted(&self) -> bool {
        let machine = self.machine.as_ref();
        machine.is_some_and(|machine| machine.stats.is_some())
    }

    /// An operation on such a VM: what it has counted is told behind it.
    pub(super) fn run_counted(&mut self, op: &Op<'_>) -> Done {
        if let Op::Poke { .. } = op {
            return self.operation(op);
        }
        if let Op::CloseVm = op {
            self.counts()?;
        }
        self.operation(op)?;
        if let Op::SetRegion(region) = op {
            self.backing_in(region.as_id, region.gfn, region.pages.raw())?;
        }
        self.counts()
    }

    /// Tells how many leaves there are, and what was done to shadow pages.
    fn counts(&mut self) -> Done {
        let machine = self.machine.as_ref();
        let Some(stats) = machine.and_then(|machine| machine.stats.as_ref()) else {
            return Ok(());
        };
        let read = |name| stats.read(name).unwrap_or(0);
        let leaves = Leaves {
            pages_4k: read("pages_4k"),
            pages_2m: read("pages_2m"),
            pages_1g: read("pages_1g"),
        };
        let counts = MmuCounts {
            shadow_zapped: read("mmu_shadow_zapped"),
            pte_write: read("mmu_pte_write"),
            pde_zapped: read("mmu_pde_zapped"),
            flooded: read("mmu_flooded"),
            recycled: read("mmu_recycled"),
            cache_miss: read("mmu_cache_miss"),
            unsync: read("mmu_unsync"),
        };
        self.note(&Note::Leaves(leaves))?;
        self.note(&Note::Counts(counts))
    }

    /// The registers of such a guest. From the first of them on the VM's statistics are told.
    pub(super) fn set_control(&mut self, op: &Op<'_>, id: u32, control: &Control) -> Done {
        let machine = self.machine.as_mut().ok_or_else(|| missing(op, "VM"))?;
        if machine.stats.is_none() {
            machine.stats = Stats::of(&machine.vm).ok();
        }
        let vcpu = machine.vcpus.get(&id).ok_or_else(|| missing(op, "vCPU"))?;
        let result = execute::set_control(vcpu, control).map(|()| 0);
        self.ret(result)
    }

    pub(super) fn execute(
        &mut self,
        op: &Op<'_>,
        (id, instruction, privilege): (u32, &Instruction, Privilege),
    ) -> Done {
        self.say(&format!("OP {op}"))?;
        let journal = &mut self.journal;
        let machine = self.machine.as_mut();
        let vcpu = machine.and_then(|machine| machine.vcpus.get_mut(&id));
        let vcpu = vcpu.ok_or_else(|| missing(op, "vCPU"))?;
        let ran = execute::run(vcpu, (instruction, privilege, self.stop), |note| {
            journal.say(&format!("NOTE {note}"))
        });
        match ran {
            Ok((told, lost)) => {
                told.map_err(|error| io_error("the journal", error))?;
                lost.map_or(Ok(()), |control| self.restore(id, control))
            }
            Err(errno) => self.ret(Err(errno)),
        }
    }

    /// A vCPU that has lost its registers gets them again.
    fn restore(&mut self, id: u32, control: Control) -> Done {
        self.counts()?;
        self.operation(&Op::SetSregs {
            vcpu: Some(id),
            sregs: Sregs::Control(control),
        })
    }

    pub(super) fn poke(&mut self, op: &Op<'_>, hva: Hva, value: u64) -> Done {
        self.say(&format!("OP {op}"))?;
        match self.areas.write(hva, &value.to_le_bytes()) {
            true => Ok(()),
            false => Err(missing(op, "area that holds the address")),
        }
    }
}

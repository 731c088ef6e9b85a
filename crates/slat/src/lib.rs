//! The facade.
pub use slat_coco as coco;
pub use slat_memslot as memslot;
pub use slat_mmu as mmu;
pub use slat_vmm as vmm;

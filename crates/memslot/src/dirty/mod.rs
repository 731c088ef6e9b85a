//! Dirty logging: which pages a guest wrote, and what becomes of that knowledge.

mod pages;

pub use pages::DirtyPages;

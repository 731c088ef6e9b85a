//! The limits and tables of KVM's MMU.
#![forbid(unsafe_code)]

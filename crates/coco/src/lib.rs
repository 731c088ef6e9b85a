//! What confidential hardware allows.
#![forbid(unsafe_code)]

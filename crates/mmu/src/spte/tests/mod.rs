//! Golden values, recorded values, and properties.

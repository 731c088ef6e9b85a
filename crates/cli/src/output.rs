//! Standard output.

use std::fmt::Arguments;
use std::io::Write as _;

/// What a shell reports for a program that writes to a closed pipe.
const CLOSED_PIPE: i32 = 128 + 13;

/// Prints a line; ends the program when nobody reads.
pub(crate) fn line(text: Arguments<'_>) {
    let written = writeln!(std::io::stdout().lock(), "{text}");
    if written.is_err() {
        std::process::exit(CLOSED_PIPE);
    }
}

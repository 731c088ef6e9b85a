//! Plain tables.

use comfy_table::{Table, presets};

/// A table without frames, so that it can be read and cut.
pub(crate) fn plain<S: Into<String>>(header: impl IntoIterator<Item = S>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.into_iter().map(Into::into).collect::<Vec<String>>());
    table
}

//! Where and why a text could not be read.

/// A text that could not be read: the place, and the value that is wrong there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub struct ParseError {
    /// The line, from 1.
    pub line: u32,
    /// The character in the line, from 1.
    pub column: u32,
    /// What is wrong, beginning with the text in question.
    pub message: String,
}

/// The column of byte `offset` of `line`, from 1, counted in characters.
pub(crate) fn column(line: &str, offset: usize) -> u32 {
    let before = line.char_indices().take_while(|(at, _)| *at < offset);
    u32::try_from(before.count() + 1).unwrap_or(u32::MAX)
}

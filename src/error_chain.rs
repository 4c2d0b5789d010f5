//! An error and its causes as one line of text: for logs, and for people who see no `source()`.

use std::error::Error;

/// An error with its causes, each said once: libraries often repeat the text of a cause in their own.
pub fn error_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = error.source();
    }
    text
}

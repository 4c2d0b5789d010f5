//! The caller's own lines in its log, `<time> | <LEVEL> | <place> - <text>`. Whatever else is there (SIP messages, a reason phrase) may be
//! the words of the other side, which must not be able to forge one of ours: so only a whole line of that form counts.

use jiff::civil::DateTime;

/// The levels of the caller's logger.
const LEVELS: [&str; 7] = ["TRACE", "DEBUG", "INFO", "SUCCESS", "WARNING", "ERROR", "CRITICAL"];

/// A line of the caller's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Line<'a> {
    time: &'a str,
    /// What it says.
    pub(super) text: &'a str,
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (time, rest) = line.split_once(" | ")?;
        let (level, rest) = rest.split_once(" | ")?;
        let (place, text) = rest.split_once(" - ")?;
        let is_ours = time.starts_with(|first: char| first.is_ascii_digit())
            && LEVELS.contains(&level.trim_end())
            && !place.contains(char::is_whitespace);
        is_ours.then_some(Self { time, text: text.trim_end() })
    }

    /// By the clock of the container, whose time zone it does not say.
    pub(super) fn time(&self) -> Option<DateTime> {
        self.time.parse().ok()
    }
}

/// The caller's lines of a log without colours, in order.
pub(super) fn lines(log: &str) -> impl Iterator<Item = Line<'_>> {
    log.split(['\n', '\r']).filter_map(Line::parse)
}

/// Without ANSI escape sequences: ESC, `[`, parameters, a final byte from `@` to `~`.
pub(super) fn without_colours(text: &str) -> String {
    let mut parts = text.split("\x1b[");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(|character| ('@'..='~').contains(&character));
        plain.push_str(end.map_or("", |end| &part[end + 1..]));
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_line_of_the_callers_counts() {
        let table = [
            (
                "2026-11-24 10:00:00.123 | INFO     | sipstuff.call:on_state:12 - Call state: EARLY",
                Some("Call state: EARLY"),
            ),
            ("12:00 | INFO | x - said - twice", Some("said - twice")),
            ("INFO | x - Call state: EARLY", None),
            ("SIP/2.0 486 2026 | INFO | x - Call state: CONFIRMED", None),
            ("2026 | SHOUT | x - Call state: CONFIRMED", None),
            ("2026 | INFO | not answered - Call state: CONFIRMED", None),
            (" 2026 | INFO | x - indented", None),
            ("", None),
        ];
        for (line, text) in table {
            assert_eq!(Line::parse(line).map(|line| line.text), text, "{line}");
        }
    }
}

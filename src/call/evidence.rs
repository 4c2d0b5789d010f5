//! What a call was like, read from the log of the caller that placed it: its exit code 0 says only that somebody answered.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::caller_log::{lines, without_colours};

/// Longest transcript that is kept, in characters.
const MAX_TRANSCRIPT: usize = 4096;
/// Time zones differ from each other by multiples of this.
const QUARTER_OF_AN_HOUR: i64 = 15 * 60;

/// How much of the announcement was played to whoever answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Heard {
    /// All of it, to the end, once at least.
    Full,
    /// It began, and they hung up before its first end.
    Part,
    /// They hung up before it began.
    None,
}

/// Who hung up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Party {
    /// We did, when everything was said.
    Caller,
    /// They did.
    Callee,
}

/// What is known of a call that was answered; what the caller's log does not say is absent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Evidence {
    /// When it rang.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ringing_at: Option<Timestamp>,
    /// When it was answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered_at: Option<Timestamp>,
    /// When the conversation ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// Seconds from the answer to the end of the conversation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub talk_seconds: Option<f64>,
    /// Who hung up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hung_up_by: Option<Party>,
    /// How much of the announcement was played to them. Absent after an answer: not known, and `reason` says why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heard: Option<Heard>,
    /// How often it was played to its end, of `passes`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passes_heard: Option<u32>,
    /// How often it was to be played (`repeat`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passes: Option<u32>,
    /// What was said at the other end, where the request asked to `transcribe`; at most 4,096 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transcript: Option<String>,
}

/// How a conversation ended, in the caller's words.
#[derive(Clone, Copy, PartialEq)]
enum End {
    Completed,
    HungUpDuring(Phase),
}

#[derive(Clone, Copy, PartialEq)]
enum Phase {
    Playback,
    /// Between two passes, or after the last one.
    Pause,
    /// Before anything was said.
    Before,
}

impl End {
    fn of(text: &str) -> Option<Self> {
        let phase = match text.strip_prefix("Remote party hung up ") {
            None => return (text == "Call completed, hanging up").then_some(Self::Completed),
            Some(during) if during.starts_with("during playback") => Phase::Playback,
            Some(during) if during.starts_with("during inter-delay") || during.starts_with("during post-delay") => {
                Phase::Pause
            }
            Some(_) => Phase::Before,
        };
        Some(Self::HungUpDuring(phase))
    }
}

impl Evidence {
    /// Reads the log of a caller that ended at about that time. Its lines have the time of the container's own clock, without a time zone: that
    /// is taken from how far the last of them is from the end.
    pub fn read(log: &str, ended: Timestamp) -> Self {
        let plain = without_colours(log);
        let zone = lines(&plain).filter_map(|line| line.time()).last().map_or(0, |last| zone(last, ended));
        let mut evidence = Self::default();
        let (mut pass, mut end) = (None, None);
        for line in lines(&plain) {
            let at = line.time().and_then(|time| instant(time, zone));
            let state = line.text.strip_prefix("Call state: ").and_then(|state| state.split(' ').next());
            match state {
                Some("EARLY") => evidence.ringing_at = evidence.ringing_at.or(at),
                Some("CONFIRMED") => evidence.answered_at = evidence.answered_at.or(at),
                Some(over) if over.starts_with("DISCONN") => evidence.ended_at = at,
                _ => {}
            }
            pass = pass_of(line.text).or(pass);
            end = end.or(End::of(line.text));
            if let Some(words) = line.text.strip_prefix("Transcript: ") {
                evidence.transcript = Some(words.chars().take(MAX_TRANSCRIPT).collect());
            }
        }
        let talk = evidence.answered_at.zip(evidence.ended_at).map(|(answered, ended)| ended.duration_since(answered));
        evidence.talk_seconds = talk.map(|talk| (talk.as_secs_f64().max(0.0) * 10.0).round() / 10.0);
        evidence.hear(pass, end);
        evidence
    }

    /// Concludes who heard what, from the pass that began last, of how many, and from how the conversation ended.
    fn hear(&mut self, pass: Option<(u32, u32)>, end: Option<End>) {
        let Some(end) = end else { return };
        let (begun, of) = pass.unwrap_or_default();
        let heard = match end {
            End::Completed => of.max(1),
            End::HungUpDuring(Phase::Playback) => begun.saturating_sub(1),
            End::HungUpDuring(Phase::Pause) => begun,
            End::HungUpDuring(Phase::Before) => 0,
        };
        self.hung_up_by = Some(if end == End::Completed { Party::Caller } else { Party::Callee });
        self.passes = pass.map(|(_, of)| of);
        self.passes_heard = pass.map(|_| heard);
        self.heard = Some(match heard {
            0 if begun == 0 && end != End::HungUpDuring(Phase::Playback) => Heard::None,
            0 => Heard::Part,
            _ => Heard::Full,
        });
    }
}

/// `(2, 3)` of `Playing WAV pass (2/3)`.
fn pass_of(text: &str) -> Option<(u32, u32)> {
    let (pass, of) = text.strip_prefix("Playing WAV pass (")?.split_once(')')?.0.split_once('/')?;
    Some((pass.parse().ok()?, of.parse().ok()?))
}

/// Seconds that a clock is ahead of UTC which showed `last` at about the time `ended`.
fn zone(last: DateTime, ended: Timestamp) -> i64 {
    let ahead = instant(last, 0).map_or(0, |last| last.as_second() - ended.as_second());
    (ahead + QUARTER_OF_AN_HOUR / 2).div_euclid(QUARTER_OF_AN_HOUR) * QUARTER_OF_AN_HOUR
}

fn instant(time: DateTime, zone: i64) -> Option<Timestamp> {
    let utc = time.to_zoned(TimeZone::UTC).ok()?.timestamp();
    utc.checked_sub(SignedDuration::from_secs(zone)).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const END: &str = "2026-11-24T10:00:30Z";

    fn line(second: f64, text: &str) -> String {
        format!("2026-11-24 10:00:{second:06.3} | INFO     | sipstuff.call:place:12 - {text}\n")
    }

    fn read(log: &str) -> Evidence {
        Evidence::read(log, END.parse().unwrap())
    }

    /// A call that rings after one second, is answered after five, and is over after so many more; with what happens between.
    fn answered(talk: f64, between: &[&str]) -> String {
        let state = |second, state: &str| line(second, &format!("Call state: {state}"));
        let between: String = between.iter().map(|text| line(6.0, text)).collect();
        state(0.5, "CALLING (last code: 0)")
            + &state(1.0, "EARLY (last code: 180)")
            + &state(5.0, "CONFIRMED (last code: 200)")
            + &between
            + &state(5.0 + talk, "DISCONNECTED (last code: 200)")
            + &line(29.0, "bye")
    }

    #[test]
    fn how_much_they_heard_is_told_by_when_who_hung_up() {
        let gone = |when: &str| format!("Remote party hung up {when}");
        let pass = |number: u32| format!("Playing WAV pass ({number}/3)");
        type Row<'a> = (&'a [&'a str], Heard, Party, Option<(u32, u32)>);
        let table: [Row<'_>; 8] = [
            (&[&pass(1), &pass(2), &pass(3), "Call completed, hanging up"], Heard::Full, Party::Caller, Some((3, 3))),
            (&["Call completed, hanging up"], Heard::Full, Party::Caller, None),
            (&[&pass(1), &gone("during playback")], Heard::Part, Party::Callee, Some((0, 3))),
            (&[&pass(1), &pass(2), &gone("during playback")], Heard::Full, Party::Callee, Some((1, 3))),
            (&[&pass(1), &gone("during inter-delay")], Heard::Full, Party::Callee, Some((1, 3))),
            (&[&pass(1), &pass(2), &pass(3), &gone("during post-delay")], Heard::Full, Party::Callee, Some((3, 3))),
            (&[&gone("while waiting for silence")], Heard::None, Party::Callee, None),
            (&[&gone("during pre-delay")], Heard::None, Party::Callee, None),
        ];
        for (between, heard, by, passes) in table {
            let evidence = read(&answered(3.2, between));
            assert_eq!((evidence.heard, evidence.hung_up_by), (Some(heard), Some(by)), "{between:?}");
            assert_eq!(evidence.passes_heard.zip(evidence.passes), passes, "{between:?}");
        }
    }

    #[test]
    fn the_times_are_those_of_the_lines_in_whatever_time_zone() {
        let log = answered(12.34, &["Transcript: yes, I have understood"]);
        let evidence = read(&log);
        let at = |text: &str| Some(text.parse::<Timestamp>().unwrap());
        assert_eq!(evidence.ringing_at, at("2026-11-24T10:00:01Z"));
        assert_eq!(evidence.answered_at, at("2026-11-24T10:00:05Z"));
        assert_eq!(evidence.ended_at, at("2026-11-24T10:00:17.34Z"));
        assert_eq!(evidence.talk_seconds, Some(12.3));
        assert_eq!(evidence.transcript.as_deref(), Some("yes, I have understood"));
        assert_eq!((evidence.heard, evidence.hung_up_by), (None, None), "it does not say, so nobody guesses");
        for (local, zone) in [("15:30", "UTC+5:30"), ("01:00", "UTC-9"), ("09:15", "UTC-0:45")] {
            assert_eq!(read(&log.replace(" 10:00", &format!(" {local}"))), evidence, "{zone}");
        }
    }

    #[test]
    fn nobody_forges_evidence_by_a_reason_phrase() {
        let forged = "2026-11-24 10:00:06.000 | INFO | x - Call completed, hanging up";
        for words in [format!("Call not answered: {forged}"), format!("SIP/2.0 200 {forged}")] {
            assert_eq!(read(&answered(1.0, &[&words])).heard, None, "{words}");
            assert_eq!(read(&(words + "\n")), Evidence::default());
        }
    }

    #[test]
    fn colours_make_no_difference_and_nothing_is_evidence_of_nothing() {
        let log = answered(3.0, &["Playing WAV pass (1/1)", "Call completed, hanging up"]);
        let coloured = log.replace("INFO     ", "\x1b[1mINFO     \x1b[0m").replace("2026", "\x1b[32m2026");
        assert_eq!(read(&coloured), read(&log));
        assert_eq!(read(""), Evidence::default());
    }

    proptest! {
        #[test]
        fn no_log_is_too_strange_to_be_read(log in "(\\PC|\n|Call state: |Playing WAV pass \\(|[0-9]/[0-9]\\)| \\| INFO \\| x - ){0,40}") {
            let evidence = read(&log);
            prop_assert!(evidence.talk_seconds.is_none_or(|seconds| seconds >= 0.0));
        }
    }
}

//! What became of an attempt, read from the caller's exit code and the end of its log.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::caller_log::without_colours;

/// What became of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Somebody answered: the caller's exit code 0.
    Answered,
    /// The callee is busy (486, 600).
    Busy,
    /// Nobody answered in time (480, 408, 487, or it rang, 180 to 183, and no answer came).
    NoAnswer,
    /// The callee declined (603 and every 6xx without an outcome of its own).
    Declined,
    /// The callee does not want such calls (607, RFC 8197).
    Unwanted,
    /// An intermediary blocked the call (608, RFC 8688).
    Blocked,
    /// There is no such number (404, 410, 484, 485, 604).
    InvalidNumber,
    /// The trunk refused the account (401, 402, 403, 407). The attempt does not count.
    Auth,
    /// No common media (415, 488, 606).
    Media,
    /// The trunk is full (503). The attempt does not count.
    Congestion,
    /// The network failed (other 5xx, or no code at all).
    Network,
    /// No call was made (the caller did not get that far, or its request was refused as such: 3xx and every 4xx without an
    /// outcome of its own), or the caller failed after the answer (2xx).
    Error,
    /// The caller's container never ran: no node, no image, a quota, an eviction before its start. No number was dialled, so the
    /// attempt does not count.
    NotStarted,
    /// The number may have been dialled, and nobody knows how it ended: the node, the cluster or the pod is gone, or the attempt's
    /// time ran out.
    Unknown,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Outcome; 14] = [
        Outcome::Answered,
        Outcome::Busy,
        Outcome::NoAnswer,
        Outcome::Declined,
        Outcome::Unwanted,
        Outcome::Blocked,
        Outcome::InvalidNumber,
        Outcome::Auth,
        Outcome::Media,
        Outcome::Congestion,
        Outcome::Network,
        Outcome::Error,
        Outcome::NotStarted,
        Outcome::Unknown,
    ];

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Answered => "answered",
            Outcome::Busy => "busy",
            Outcome::NoAnswer => "no_answer",
            Outcome::Declined => "declined",
            Outcome::Unwanted => "unwanted",
            Outcome::Blocked => "blocked",
            Outcome::InvalidNumber => "invalid_number",
            Outcome::Auth => "auth",
            Outcome::Media => "media",
            Outcome::Congestion => "congestion",
            Outcome::Network => "network",
            Outcome::Error => "error",
            Outcome::NotStarted => "not_started",
            Outcome::Unknown => "unknown",
        }
    }

    /// Whose word it is.
    pub fn class(self) -> OutcomeClass {
        match self {
            Outcome::Answered
            | Outcome::Busy
            | Outcome::NoAnswer
            | Outcome::Declined
            | Outcome::Unwanted
            | Outcome::Blocked
            | Outcome::InvalidNumber => OutcomeClass::Person,
            Outcome::Media | Outcome::Network => OutcomeClass::Network,
            Outcome::Auth | Outcome::Congestion => OutcomeClass::Trunk,
            Outcome::NotStarted => OutcomeClass::Cluster,
            Outcome::Error => OutcomeClass::Caller,
            Outcome::Unknown => OutcomeClass::Unknown,
        }
    }

    /// Whether an attempt that ended so counts among `max_attempts`: what is our trunk's or our cluster's fault does not.
    pub fn counts(self) -> bool {
        !matches!(self.class(), OutcomeClass::Trunk | OutcomeClass::Cluster)
    }

    /// Whether `redial_on` may name it: only where nobody, and no number plan, has said no. To name `congestion` changes nothing, since
    /// it is dialled again in any case.
    pub fn may_redial(self) -> bool {
        matches!(self, Outcome::Busy | Outcome::NoAnswer | Outcome::Congestion | Outcome::Network)
    }

    /// What a SIP code (RFC 3261, section 21, and the IANA registry) says of a call that was not answered.
    ///
    /// A code without an outcome of its own never redials: of 4xx RFC 3261 says that the same request should not be tried
    /// again without modification (21.4), 3xx asks for another address, and 6xx speaks for the callee everywhere (21.6).
    pub fn of_code(code: u16) -> Self {
        match code {
            180..=183 | 408 | 480 | 487 => Outcome::NoAnswer,
            486 | 600 => Outcome::Busy,
            404 | 410 | 484 | 485 | 604 => Outcome::InvalidNumber,
            401 | 402 | 403 | 407 => Outcome::Auth,
            415 | 488 | 606 => Outcome::Media,
            607 => Outcome::Unwanted,
            608 => Outcome::Blocked,
            503 => Outcome::Congestion,
            200..=499 => Outcome::Error,
            600..=699 => Outcome::Declined,
            _ => Outcome::Network,
        }
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whose word an outcome is: what follows depends on that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OutcomeClass {
    /// A person's, or the number plan's: the trunk did its work.
    Person,
    /// The network's, somewhere between the trunk and the callee.
    Network,
    /// Our trunk's: it refused the account, or was full.
    Trunk,
    /// Our cluster's: no number was dialled.
    Cluster,
    /// The caller program's: it ran and failed without a SIP code.
    Caller,
    /// Nobody's: the end of the attempt was lost.
    Unknown,
}

/// How a trunk does for others than a call that it has failed: whether that call is dialled again depends on it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum TrunkHealth {
    /// Nothing is dialled on it, or that is not known: whatever it said of a call may not be the call's fault.
    #[default]
    Stopped,
    /// It has failed another call, too, and none has had a person's outcome since; or none ever had one.
    InDoubt,
    /// It works.
    Works,
}

/// An outcome with the code that it was read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// What became of the attempt.
    pub outcome: Outcome,
    /// The last SIP code, 100 to 699, where the log names one.
    pub sip_code: Option<u16>,
}

impl Verdict {
    /// From what is known of an ended attempt: whether it counts as a success, the caller's exit code, and the end of its log
    /// (the termination message).
    ///
    /// The exit code decides about success alone, whatever the log says. A failed caller that logged a state was dialling,
    /// so the last code counts, and none means that the network never said one; without a state no call was made.
    pub fn read(succeeded: bool, exit_code: Option<i32>, message: Option<&str>) -> Self {
        let state = message.and_then(last_state);
        let sip_code = state.as_deref().and_then(code_in);
        let outcome = match (&state, sip_code) {
            _ if succeeded || exit_code == Some(0) => Outcome::Answered,
            (None, _) => Outcome::Error,
            (Some(_), None) => Outcome::Network,
            (Some(_), Some(code)) => Outcome::of_code(code),
        };
        Self { outcome, sip_code }
    }
}

const STATE: &str = "Call state:";
const CODE: &str = "last code:";

/// The line of the last disconnect, or else of the last state at all. A line that lost its beginning, because only the end
/// of the log is kept, is known by its code.
fn last_state(log: &str) -> Option<String> {
    let plain = without_colours(log);
    // The reason phrase in "not answered" comes from the other side, which must not be able to fake a state.
    let is_state = |line: &&str| (line.contains(STATE) || line.contains(CODE)) && !line.contains("Call not answered:");
    let states: Vec<&str> = plain.split(['\n', '\r']).filter(is_state).collect();
    states.iter().rfind(|line| line.contains("DISCONN")).or(states.last()).map(|line| (*line).to_owned())
}

/// `486` of `… (last code: 486 Busy Here)`. 0 stands for none.
fn code_in(line: &str) -> Option<u16> {
    let (_, rest) = line.split_once(CODE)?;
    let rest = rest.trim_start();
    let digits = rest.find(|character: char| !character.is_ascii_digit()).map_or(rest, |end| &rest[..end]);
    digits.parse().ok().filter(|code| (100..=699).contains(code))
}

/// How the header begins, in lower case.
const RETRY_AFTER: &str = "retry-after:";

/// Seconds that the other side asks to wait for (RFC 3261, 20.33), where the caller's log shows its answer: the last one counts.
pub fn retry_after(message: &str) -> Option<u32> {
    let plain = without_colours(message);
    let is_header = |line: &&str| line.trim_start().to_ascii_lowercase().starts_with(RETRY_AFTER);
    let header = plain.lines().rfind(is_header)?;
    let digits: String =
        header.trim_start()[RETRY_AFTER.len()..].trim_start().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_side_may_ask_to_wait() {
        let table = [
            ("SIP/2.0 503 Service Unavailable\r\nRetry-After: 120\r\nContent-Length: 0", Some(120)),
            ("  retry-after:18000;duration=3600 (busy)", Some(18_000)),
            ("Retry-After: 5\nRetry-After: 7", Some(7)),
            ("Retry-After: soon", None),
            ("Retry-After: 99999999999", None),
            ("nothing of the kind", None),
        ];
        for (message, expected) in table {
            assert_eq!(retry_after(message), expected, "{message}");
        }
    }

    fn log(code: &str) -> String {
        format!(
            "2025-01-01 10:00:00.000 | INFO | sipstuff.call:on_state:12 - Call state: CALLING (last code: 0)\n\
             2025-01-01 10:00:01.000 | INFO | sipstuff.call:on_state:12 - Call state: DISCONNECTED (last code: {code})\n\
             2025-01-01 10:00:01.100 | WARNING | sipstuff.call:place:99 - Call not answered: Some Reason\n\
             2025-01-01 10:00:01.200 | ERROR | sipstuff.cli:main:7 - Call was not answered or failed\n"
        )
    }

    #[test]
    fn every_group_of_codes_has_its_outcome() {
        let table: [(&[u16], Outcome); 11] = [
            (&[486, 600], Outcome::Busy),
            (&[480, 408, 487, 180, 183], Outcome::NoAnswer),
            (&[603, 601, 699], Outcome::Declined),
            (&[607], Outcome::Unwanted),
            (&[608], Outcome::Blocked),
            (&[404, 410, 484, 485, 604], Outcome::InvalidNumber),
            (&[401, 402, 403, 407], Outcome::Auth),
            (&[415, 488, 606], Outcome::Media),
            (&[503], Outcome::Congestion),
            (&[500, 501, 502, 504, 513, 580, 599, 100, 199], Outcome::Network),
            (&[200, 202, 300, 302, 380, 400, 405, 406, 413, 420, 421, 433, 481, 483, 491, 499], Outcome::Error),
        ];
        for (codes, outcome) in table {
            for code in codes {
                let verdict = Verdict::read(false, Some(1), Some(&log(&code.to_string())));
                assert_eq!(verdict, Verdict { outcome, sip_code: Some(*code) }, "{code}");
            }
        }
    }

    #[test]
    fn an_unlisted_refusal_never_redials() {
        let listed = [486, 408, 480, 487, 600];
        for code in (200..500).chain(600..700).filter(|code| !listed.contains(code)) {
            assert!(!Outcome::of_code(code).may_redial(), "{code}");
        }
    }

    #[test]
    fn exit_code_0_is_answered_whatever_the_log_says() {
        for message in [None, Some(""), Some("Call state: DISCONNECTED (last code: 486)"), Some("\u{1b}[")] {
            assert_eq!(Verdict::read(true, Some(0), message).outcome, Outcome::Answered);
            assert_eq!(Verdict::read(false, Some(0), message).outcome, Outcome::Answered);
            assert_eq!(Verdict::read(true, None, message).outcome, Outcome::Answered);
        }
        assert_eq!(Verdict::read(true, Some(0), Some(&log("200"))).sip_code, Some(200));
    }

    #[test]
    fn a_failure_is_judged_by_the_last_disconnect() {
        let verdict = |outcome, sip_code| Verdict { outcome, sip_code };
        let table = [
            ("no log at all", "", verdict(Outcome::Error, None)),
            ("no state", "Traceback (most recent call last):\nValueError: no server", verdict(Outcome::Error, None)),
            ("reason phrase", &log("486 Busy Here"), verdict(Outcome::Busy, Some(486))),
            ("code 0", &log("0"), verdict(Outcome::Network, None)),
            ("not a code", &log("99999999"), verdict(Outcome::Network, None)),
            ("no digits", &log("None"), verdict(Outcome::Network, None)),
            ("older spelling", "Call state: DISCONNCTD (last code: 404)", verdict(Outcome::InvalidNumber, Some(404))),
            ("no code", "Call state: DISCONNECTED", verdict(Outcome::Network, None)),
            ("cut at the back", "Call state: DISCONNECTED (last co", verdict(Outcome::Network, None)),
            ("cut at the front", "NNECTED (last code: 603)\nCall was not", verdict(Outcome::Declined, Some(603))),
            ("never disconnected", "Call state: CALLING (last code: 0)", verdict(Outcome::Network, None)),
            ("rang", "Call state: CALLING\nCall state: EARLY (last code: 180)", verdict(Outcome::NoAnswer, Some(180))),
            (
                "several calls",
                "Call state: DISCONNECTED (last code: 486)\nCall state: DISCONNECTED (last code: 503)",
                verdict(Outcome::Congestion, Some(503)),
            ),
            (
                "a state after the disconnect",
                "Call state: DISCONNECTED (last code: 486)\nCall state: NULL (last code: 0)",
                verdict(Outcome::Busy, Some(486)),
            ),
            (
                "colours",
                "\u{1b}[1mCall \u{1b}[32mstate: DISCONN\u{1b}[0mCTD (last code: \u{1b}[1;31m486\u{1b}[0m)",
                verdict(Outcome::Busy, Some(486)),
            ),
            (
                "carriage returns",
                "x\r\nCall state: DISCONNECTED (last code: 408)\r\n",
                verdict(Outcome::NoAnswer, Some(408)),
            ),
            (
                "a reason phrase that poses as a state",
                "Call state: DISCONNECTED (last code: 603)\nCall not answered: Call state: DISCONNECTED (last code: 486)",
                verdict(Outcome::Declined, Some(603)),
            ),
        ];
        for (what, message, expected) in table {
            assert_eq!(Verdict::read(false, Some(1), Some(message)), expected, "{what}");
        }
    }

    #[test]
    fn a_caller_that_was_killed_was_dialling_only_if_it_said_so() {
        for exit_code in [None, Some(127), Some(137), Some(255)] {
            assert_eq!(Verdict::read(false, exit_code, None).outcome, Outcome::Error);
            assert_eq!(Verdict::read(false, exit_code, Some("Killed")).outcome, Outcome::Error);
            assert_eq!(Verdict::read(false, exit_code, Some(&log("486"))).outcome, Outcome::Busy);
        }
    }

    #[test]
    fn names_are_those_on_the_wire() {
        for outcome in Outcome::ALL {
            assert_eq!(serde_json::json!(outcome), outcome.as_str());
        }
    }
}

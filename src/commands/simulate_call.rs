//! Simulates the caller (`python3 -m sipstuff.cli`) for demos and tests: takes its arguments, writes its log lines,
//! exits with its codes, and calls nobody.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use jiff::Timestamp;
use serde_json::json;

use crate::call::Heard;

/// The failures that can be simulated: SIP code and reason phrase. 487 is the caller's own timeout, in its own words.
const FAILURES: [(u16, &str); 20] = [
    (403, "Forbidden"),
    (404, "Not Found"),
    (408, "Request Timeout"),
    (410, "Gone"),
    (415, "Unsupported Media Type"),
    (480, "Temporarily Unavailable"),
    (484, "Address Incomplete"),
    (485, "Ambiguous"),
    (486, "Busy Here"),
    (487, "timeout / no answer"),
    (488, "Not Acceptable Here"),
    (500, "Server Internal Error"),
    (502, "Bad Gateway"),
    (503, "Service Unavailable"),
    (600, "Busy Everywhere"),
    (603, "Decline"),
    (604, "Does Not Exist Anywhere"),
    (606, "Not Acceptable"),
    (607, "Unwanted"),
    (608, "Rejected"),
];

/// Longest text in a line of `SIMULATE_LOG`, in characters.
const LOGGED_TEXT: usize = 80;

const HELP: &str = "\
The destination decides how the call ends: if the last three digits of the number are 403, 404, 408, 410, 415, 480, 484, \
485, 486, 487, 488, 500, 502, 503, 600, 603, 604, 606, 607 or 608, it fails with that SIP code; any other is answered.

Environment:
  SIMULATE_RESULT=answered|CODE  overrides the destination
  SIMULATE_SECONDS=N             how long the call takes; fractions allowed (default: 1 to 3, depending on the destination)
  SIMULATE_HEARD=full|part|none  how much of the announcement an answered call hears before the callee hangs up (default: full)
  SIMULATE_PASSWORD=TEXT         a call whose SIP_PASSWORD is another is refused with 403
  SIMULATE_CRASH=N               exits after that time with this code and without log lines
  SIMULATE_LOG=FILE              append a JSON line to this file at the start and at the end of every call
  SIMULATE_TAG=TEXT              included in those lines, to tell calls apart";

/// Pretends to place a call: the caller's arguments, log lines and exit codes.
#[derive(Debug, Parser)]
#[command(name = "simulate-call", after_help = HELP)]
struct Cli {
    #[command(subcommand)]
    command: Sub,
}

#[derive(Debug, Subcommand)]
enum Sub {
    /// Place one call.
    #[command(after_help = HELP)]
    Call(Box<Call>),
}

/// The caller's own flags. Most are accepted and ignored; as by the caller, an unknown one is refused with exit code 2.
#[derive(Debug, Args)]
struct Call {
    /// Number or SIP URI.
    #[arg(long)]
    dest: String,
    /// What is read out.
    #[arg(long, required_unless_present = "wav", conflicts_with = "wav")]
    text: Option<String>,
    /// What is played.
    #[arg(long)]
    wav: Option<String>,
    #[command(flatten)]
    rest: Ignored,
}

#[derive(Debug, Args)]
struct Ignored {
    #[arg(long, default_value_t = 60)]
    timeout: u32,
    #[arg(long)]
    pre_delay: Option<f64>,
    #[arg(long)]
    inter_delay: Option<f64>,
    #[arg(long)]
    post_delay: Option<f64>,
    #[arg(long)]
    wait_for_silence: Option<f64>,
    #[arg(long)]
    repeat: Option<u32>,
    #[arg(long)]
    piper_model: Option<String>,
    #[arg(long)]
    tts_sample_rate: Option<u32>,
    #[arg(long)]
    tts_data_dir: Option<String>,
    #[arg(long)]
    stt_model: Option<String>,
    #[arg(long)]
    stt_language: Option<String>,
    #[arg(long)]
    stt_data_dir: Option<String>,
    #[arg(long)]
    transcribe: bool,
    #[arg(long)]
    verbose: bool,
    #[arg(long)]
    record: Option<String>,
}

/// What is simulated.
#[derive(Debug, PartialEq)]
struct Script {
    /// `None` is answered.
    failure: Option<(u16, &'static str)>,
    takes: Duration,
    heard: Heard,
    passes: u32,
    crash: Option<u8>,
}

/// Runs the arguments that follow `simulate-call`. Exits 0 for an answered call, 1 for another, 2 for arguments that the
/// caller does not know.
pub fn run(args: Vec<OsString>) -> ExitCode {
    let name = OsString::from("simulate-call");
    let Sub::Call(call) = match Cli::try_parse_from(std::iter::once(name).chain(args)) {
        Ok(cli) => cli.command,
        Err(error) => error.exit(),
    };
    let variable = |name: &str| std::env::var(name).ok();
    let script = match Script::new(&call.dest, &variable) {
        Ok(script) => Script { passes: call.rest.repeat.unwrap_or(1), ..script },
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    note(&call, "start");
    let code = play(&script);
    note(&call, "end");
    code
}

impl Script {
    fn new(dest: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, String> {
        let failure = match variable("SIMULATE_RESULT") {
            Some(result) => parse_result(&result)?,
            None => failure(last_digits(dest)),
        };
        let is_refused = variable("SIMULATE_PASSWORD").is_some_and(|right| variable("SIP_PASSWORD") != Some(right));
        let failure = if is_refused { self::failure(Some(403)) } else { failure };
        let takes = match variable("SIMULATE_SECONDS") {
            Some(text) => {
                text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).ok_or_else(|| {
                    format!("SIMULATE_SECONDS `{text}` is not a number of seconds; accepted: a number such as 0.5")
                })?
            }
            None => usual_time(dest),
        };
        let heard = match variable("SIMULATE_HEARD").as_deref() {
            None | Some("full") => Heard::Full,
            Some("part") => Heard::Part,
            Some("none") => Heard::None,
            Some(text) => return Err(format!("SIMULATE_HEARD `{text}` is not known; accepted: full, part, none")),
        };
        let crash = match variable("SIMULATE_CRASH") {
            Some(text) => Some(
                text.parse().map_err(|_| format!("SIMULATE_CRASH `{text}` is not an exit code; accepted: 0 to 255"))?,
            ),
            None => None,
        };
        Ok(Self { failure, takes, heard, passes: 1, crash })
    }
}

fn parse_result(text: &str) -> Result<Option<(u16, &'static str)>, String> {
    if text == "answered" {
        return Ok(None);
    }
    let known = text.parse().ok().and_then(|code| failure(Some(code)));
    known.map(Some).ok_or_else(|| {
        let codes = FAILURES.map(|(code, _)| code.to_string()).join(", ");
        format!("SIMULATE_RESULT `{text}` is not known; accepted: answered, {codes}")
    })
}

fn failure(code: Option<u16>) -> Option<(u16, &'static str)> {
    FAILURES.into_iter().find(|(known, _)| Some(*known) == code)
}

/// The last three digits of the number, without scheme and host.
fn last_digits(dest: &str) -> Option<u16> {
    let user = dest.split_once(':').map_or(dest, |(_, rest)| rest);
    let user = user.split_once(['@', ';']).map_or(user, |(user, _)| user);
    let digits: Vec<u8> = user.bytes().filter(u8::is_ascii_digit).collect();
    str::from_utf8(digits.last_chunk::<3>()?).ok()?.parse().ok()
}

/// 1 to 3 seconds, the same for the same destination.
fn usual_time(dest: &str) -> Duration {
    let sum = dest.bytes().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte)));
    Duration::from_millis(1000 + sum % 2001)
}

/// Plays the call; the log lines are the caller's.
fn play(script: &Script) -> ExitCode {
    if let Some(code) = script.crash {
        return if wait(script.takes) { ExitCode::from(code) } else { ExitCode::FAILURE };
    }
    state("CALLING", 0);
    let Some((code, phrase)) = script.failure else { return play_answered(script) };
    let hung_up = !wait(script.takes);
    let (code, phrase) = if hung_up { (487, "hung up on SIGINT") } else { (code, phrase) };
    log("INFO", &format!("Call not answered: {phrase}"));
    state("DISCONNECTED", code);
    fail()
}

fn play_answered(script: &Script) -> ExitCode {
    let Script { takes, heard, passes, .. } = *script;
    let ringing = takes / 4;
    state("EARLY", 180);
    let mut hung_up = !wait(ringing);
    if !hung_up {
        state("CONFIRMED", 200);
        let played = if heard == Heard::None {
            0
        } else if heard == Heard::Part {
            1
        } else {
            passes
        };
        (1..=played).for_each(|pass| log("INFO", &format!("Playing WAV pass ({pass}/{passes})")));
        hung_up = !wait(takes - ringing);
    }
    if hung_up {
        log("WARNING", "SIGINT: hanging up");
        state("DISCONNECTED", 487);
        return fail();
    }
    // Said by the caller before the state that follows from it, or after.
    match heard {
        Heard::Full => log("INFO", "Call completed, hanging up"),
        Heard::Part => log("WARNING", "Remote party hung up during playback"),
        Heard::None => log("WARNING", "Remote party hung up while waiting for silence"),
    }
    state("DISCONNECTED", 200);
    ExitCode::SUCCESS
}

fn fail() -> ExitCode {
    log("ERROR", "Call was not answered or failed");
    ExitCode::FAILURE
}

fn state(name: &str, code: u16) {
    log("INFO", &format!("Call state: {name} (last code: {code})"));
}

fn log(level: &str, text: &str) {
    let time = Timestamp::now().strftime("%Y-%m-%d %H:%M:%S%.3f");
    // A closed standard error is no reason to hang up.
    let _ = writeln!(std::io::stderr(), "{time} | {level} | simulate-call - {text}");
}

/// Waits; false when SIGINT came first. A handler of its own would be unsafe code, so tokio's is used, on this thread alone.
fn wait(time: Duration) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Ok(runtime) = runtime else {
        std::thread::sleep(time);
        return true;
    };
    runtime.block_on(async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt()) {
            Ok(mut interrupt) => tokio::time::timeout(time, interrupt.recv()).await.is_err(),
            Err(_) => {
                tokio::time::sleep(time).await;
                true
            }
        }
    })
}

/// Appends to `SIMULATE_LOG` in one write, so that the lines of many calls do not mix.
fn note(call: &Call, event: &str) {
    let Some(path) = std::env::var_os("SIMULATE_LOG") else { return };
    let text: Option<String> = call.text.as_ref().map(|text| text.chars().take(LOGGED_TEXT).collect());
    let tag = std::env::var("SIMULATE_TAG").ok();
    let mut line = json!({
        "time": Timestamp::now(), "pid": std::process::id(), "event": event, "dest": call.dest, "text": text, "tag": tag,
        "user": std::env::var("SIP_USER").ok(),
    })
    .to_string();
    line.push('\n');
    let written =
        OpenOptions::new().create(true).append(true).open(&path).and_then(|mut file| file.write_all(line.as_bytes()));
    if let Err(error) = written {
        log("ERROR", &format!("cannot write to SIMULATE_LOG {}: {error}", path.display()));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use clap::CommandFactory;

    use super::*;

    fn code(dest: &str) -> Option<u16> {
        Script::new(dest, &|_| None).unwrap().failure.map(|(code, _)| code)
    }

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_last_three_digits_decide_how_a_call_ends() {
        for (dest, wanted) in [
            ("+4912345486", Some(486)),
            ("404", Some(404)),
            ("+49 (30) 12-4 87", Some(487)),
            ("sip:1503@host100:5060", Some(503)),
            ("sips:+49603;x=404@h", Some(603)),
            ("tel:+49200", None),
            ("4861", None),
            ("86", None),
            ("sip:alice@h486", None),
            ("", None),
        ] {
            assert_eq!(code(dest), wanted, "{dest}");
        }
    }

    #[test]
    fn the_environment_overrides_the_destination() {
        let with = |name: &'static str, value: &'static str| {
            Script::new("486", &move |asked| (asked == name).then(|| value.to_owned()))
        };
        assert_eq!(with("SIMULATE_RESULT", "answered").unwrap().failure, None);
        assert_eq!(with("SIMULATE_RESULT", "503").unwrap().failure, Some((503, "Service Unavailable")));
        assert_eq!(with("SIMULATE_SECONDS", "0.25").unwrap().takes, Duration::from_millis(250));
        assert_eq!(with("SIMULATE_PASSWORD", "right").unwrap().failure, Some((403, "Forbidden")));
        assert_eq!(with("SIMULATE_CRASH", "7").unwrap().crash, Some(7));
        for (name, value) in [("SIMULATE_RESULT", "200"), ("SIMULATE_SECONDS", "-1"), ("SIMULATE_CRASH", "256")] {
            assert!(with(name, value).unwrap_err().contains("accepted"), "{name}");
        }
    }

    #[test]
    fn a_call_takes_one_to_three_seconds_and_always_the_same() {
        for dest in ["1", "+4930123456", "sip:a@b"] {
            let takes = Script::new(dest, &|_| None).unwrap().takes;
            assert!((Duration::from_secs(1)..=Duration::from_millis(3001)).contains(&takes));
            assert_eq!(takes, usual_time(dest));
        }
    }

    #[test]
    fn unknown_and_missing_flags_are_refused_like_the_caller_refuses_them() {
        let parse = |words: &str| Cli::try_parse_from(format!("simulate-call {words}").split(' '));
        assert!(parse("call --dest 1 --text=-x --timeout 60 --transcribe --record /a --wait-for-silence 2.0").is_ok());
        for words in
            ["call --dest 1 --text x --nope", "call --text x", "call --dest 1", "call --dest 1 --text x --wav y"]
        {
            assert_eq!(parse(words).unwrap_err().exit_code(), 2, "{words}");
        }
    }
}

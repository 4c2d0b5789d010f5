//! How it looks: plain aligned lines of at most 100 columns; colours on a terminal only.

use std::cell::Cell;
use std::io::IsTerminal;

use jiff::Timestamp;
use reqwest::StatusCode;
use serde_json::Value;
use sipstuff_operator::call::{Outcome, Status, StatusEvent};

use super::ledger::{End, Ledger};
use super::stage::{MAX_ACTIVE_CALLS, Stage};

/// Where everything is printed.
pub(crate) struct Screen {
    begin: Timestamp,
    colours: bool,
    chapter: Cell<u32>,
}

const BOLD: u8 = 1;
const DIM: u8 = 2;
const RED: u8 = 31;
const GREEN: u8 = 32;
const YELLOW: u8 = 33;
const BLUE: u8 = 34;

/// Longest line.
const WIDTH: usize = 100;

impl Screen {
    /// Colours if standard output is a terminal, and NO_COLOR does not speak against them.
    pub(crate) fn new() -> Self {
        let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty());
        Self { begin: Timestamp::now(), colours, chapter: Cell::new(0) }
    }

    /// Begins a chapter; what is printed in it ends with an empty line.
    pub(crate) fn chapter(&self, title: &str) {
        self.chapter.set(self.chapter.get() + 1);
        let line = format!("{}. {title}", self.chapter.get());
        println!("{}\n", self.paint(BOLD, &line));
    }

    /// What was started.
    pub(crate) fn stage(&self, stage: &Stage) {
        println!("   {:<28} the queue and the status log", stage.nats_url);
        println!("   {:<28} the operator; calls are simulated, {MAX_ACTIVE_CALLS} at once", stage.base);
        println!();
    }

    /// A request by HTTP, and its answer.
    pub(crate) fn posted(&self, request: &Value, status: StatusCode, answer: &Value) {
        println!("   POST /call  {request}");
        let colour = if status.is_success() { GREEN } else { RED };
        let words = |name: &str| answer[name].as_str().unwrap_or_default().to_owned();
        let errors = answer["errors"].as_array().cloned().unwrap_or_default();
        if errors.is_empty() {
            let gist = format!("{}, {}", words("status"), words("job_name"));
            println!("     {} {gist}\n", self.paint(colour, &status.to_string()));
            return;
        }
        println!("     {} {}", self.paint(colour, &status.to_string()), words("title"));
        for error in errors {
            let (field, message) = (error["field"].as_str(), error["message"].as_str());
            println!("{}", cut(&format!("       {:<8} {}", field.unwrap_or("–"), message.unwrap_or("–")), WIDTH));
        }
        println!();
    }

    /// A request by NATS, and what became of it.
    pub(crate) fn published(&self, request: &Value, gist: &str) {
        println!("   sip.calls   {request}\n{}\n", cut(&format!("     {gist}"), WIDTH));
    }

    /// A change of a call's state.
    pub(crate) fn change(&self, event: &StatusEvent) {
        let seconds = event.time.duration_since(self.begin).as_secs_f64();
        let (id, dest) = (event.id.as_str(), event.dest.as_deref().unwrap_or("–"));
        let head = format!("{seconds:>6.1} s  {id:<13} {dest:<14}");
        let status = self.paint(colour(event), &format!("{:<10}", event.status.as_str()));
        let room = WIDTH.saturating_sub(head.chars().count() + 12);
        println!("{}", format!("{head} {status} {}", cut(&detail(event), room)).trim_end());
    }

    /// How many calls ended how, and what one would do next.
    pub(crate) fn report(&self, ledger: &Ledger) {
        println!();
        self.chapter("What became of them");
        println!(
            "   {}",
            self.paint(BOLD, &format!("{:<10} {:<15} {:>5}   {}", "status", "outcome", "calls", "what next"))
        );
        for (end, count) in ledger.ends() {
            let outcome = end.1.map_or("–", Outcome::as_str);
            println!("   {:<10} {outcome:<15} {count:>5}   {}", end.0.as_str(), advice(end));
        }
    }

    /// That everything is as it should be.
    pub(crate) fn verdict(&self, ledger: &Ledger) {
        let calls = ledger.len();
        println!(
            "\n   {}",
            self.paint(GREEN, &format!("All {calls} calls have exactly one end, and the queue is empty."))
        );
    }

    /// The last words.
    pub(crate) fn goodbye(&self) {
        println!("\n   Everything is stopped and removed. To try it yourself: make run. To read on: README.md\n");
    }

    /// Commands for another terminal.
    pub(crate) fn what_to_try(&self, stage: &Stage) {
        let Stage { base, nats_url, nats_log, .. } = stage;
        println!();
        self.chapter("Your turn: everything keeps running until Ctrl-C");
        println!("   By HTTP:");
        println!("     curl --json '{{\"dest\": \"+49301234\", \"text\": \"Hello\"}}' {base}/call");
        println!("     curl --json '{{\"dest\": \"+49301486\", \"text\": \"Busy\"}}' {base}/call");
        println!("     curl '{base}/jobs?limit=3'            and /jobs/NAME, /readyz, /metrics");
        println!("     curl -X DELETE {base}/jobs/NAME            cancels it");
        println!("     (curl older than 7.82: -H 'content-type: application/json' -d instead of --json)");
        println!("   By NATS, with the nats CLI:");
        println!("     nats -s {nats_url} sub sip.status");
        println!(
            "     nats -s {nats_url} pub sip.calls '{{\"id\": \"mine-1\", \"dest\": \"+49301234\", \"text\": \"Hi\"}}'"
        );
        println!("     nats -s {nats_url} stream get SIP_DEAD --last-for sip.dead    what is no call");
        println!("   What becomes of a call is in the last three digits of its number: 486 busy, 487 no answer,");
        println!("   404 no such number, 603 declined, 503 network full … any other is answered.");
        println!("   Logs: the operator  {}", stage.operator_log().display());
        println!("         NATS          {}", nats_log.display());
        println!("         each call     {}/NAME/log", stage.call_logs().display());
        println!("\n   What your calls do is shown here:\n");
    }

    fn paint(&self, colour: u8, text: &str) -> String {
        if self.colours { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// A text as it is, or its beginning and a sign that there is more.
fn cut(text: &str, room: usize) -> String {
    match text.char_indices().nth(room.saturating_sub(1)) {
        Some((end, _)) if text.chars().count() > room => format!("{}…", &text[..end]),
        _ => text.to_owned(),
    }
}

fn colour(event: &StatusEvent) -> u8 {
    match event.status {
        Status::Succeeded => GREEN,
        Status::Failed | Status::Rejected => RED,
        Status::Cancelling | Status::Cancelled | Status::Expired => YELLOW,
        Status::Running => BLUE,
        Status::Queued | Status::Scheduled | Status::Pending => DIM,
    }
}

/// What the status alone does not say.
fn detail(event: &StatusEvent) -> String {
    let code = event.sip_code.map(|code| format!(", SIP {code}")).unwrap_or_default();
    let attempt = match event.max_attempts {
        ..=1 => String::new(),
        most => format!("attempt {} of {most}", event.attempt),
    };
    match (event.status, event.outcome) {
        (Status::Scheduled, _) => {
            let seconds = event.due_at.map_or(0.0, |due| due.duration_since(event.time).as_secs_f64());
            format!("due in {seconds:.1} s")
        }
        (Status::Succeeded | Status::Failed, Some(outcome)) if attempt.is_empty() => format!("{outcome}{code}"),
        (Status::Succeeded | Status::Failed, Some(outcome)) => format!("{outcome}{code}, {attempt}"),
        (Status::Rejected | Status::Cancelled, _) => event.reason.clone().unwrap_or_default(),
        (Status::Pending | Status::Running, _) => attempt,
        _ => String::new(),
    }
}

fn advice((status, outcome): End) -> &'static str {
    match (status, outcome) {
        (Status::Expired, _) => "nothing: not_after had passed, so nobody was called",
        (Status::Rejected, _) => "mend the request: it is in SIP_DEAD with the reason",
        (_, Some(Outcome::Answered)) => "nothing: somebody answered",
        (_, Some(Outcome::Busy)) => "let it redial: max_attempts, retry_delay",
        (_, Some(Outcome::NoAnswer)) => "redial at another time of day: not_before",
        (_, Some(Outcome::InvalidNumber)) => "correct the number; it is never redialled",
        (_, Some(Outcome::Declined | Outcome::Unwanted)) => "leave it: a person has said no",
        (_, Some(Outcome::Blocked)) => "ask the trunk's operator who blocks it",
        (_, Some(Outcome::Congestion)) => "it was tried again by itself; lower MAX_ACTIVE_CALLS if it is frequent",
        (_, Some(Outcome::Network)) => "let it redial: max_attempts, retry_delay",
        (_, Some(Outcome::Auth)) => "it was tried again by itself; correct the SIP account: the Secret, or sip_secret",
        _ => "read its message, then the call's log",
    }
}

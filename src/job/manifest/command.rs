//! The caller's command line. Its order is part of the contract with the caller image.

use super::literal;
use crate::call::CallSpec;
use crate::call::spec::Announcement;

/// `python3 -m sipstuff.cli call …` for a call, ready for a container's `command`: `$` is doubled.
pub(super) fn command_line(spec: &CallSpec) -> Vec<String> {
    let mut line = CommandLine::new();
    line.text("--dest", &spec.dest);
    match &spec.announcement {
        Announcement::Text(text) => line.text("--text", text),
        Announcement::Wav(path) => line.text("--wav", path),
    }
    line.word("--timeout", spec.timeout.to_string());
    conversation(&mut line, spec);
    speech(&mut line, spec);
    line.switch("--transcribe", spec.transcribe);
    line.switch("--verbose", spec.verbose);
    line.text_if("--record", spec.record.as_deref());
    line.words
}

fn conversation(line: &mut CommandLine, spec: &CallSpec) {
    line.seconds_if("--pre-delay", positive(spec.pre_delay));
    line.seconds_if("--inter-delay", positive(spec.inter_delay));
    line.seconds_if("--post-delay", positive(spec.post_delay));
    // Zero means something here: speak at the first silence.
    line.seconds_if("--wait-for-silence", spec.wait_for_silence);
    if spec.repeat > 1 {
        line.word("--repeat", spec.repeat.to_string());
    }
}

fn speech(line: &mut CommandLine, spec: &CallSpec) {
    line.text_if("--piper-model", spec.tts_model.as_deref());
    if let Some(rate) = spec.tts_sample_rate {
        line.word("--tts-sample-rate", rate.to_string());
    }
    line.text_if("--tts-data-dir", spec.tts_data_dir.as_deref());
    line.text_if("--stt-model", spec.stt_model.as_deref());
    line.text_if("--stt-language", spec.stt_language.as_deref());
    line.text_if("--stt-data-dir", spec.stt_data_dir.as_deref());
}

fn positive(seconds: f64) -> Option<f64> {
    (seconds > 0.0).then_some(seconds)
}

/// The shortest text that has a point: `2.0`, `2.5`, as Python prints it.
fn decimal(number: f64) -> String {
    let text = number.to_string();
    if text.contains('.') { text } else { format!("{text}.0") }
}

struct CommandLine {
    words: Vec<String>,
}

impl CommandLine {
    fn new() -> Self {
        Self { words: ["python3", "-m", "sipstuff.cli", "call"].map(str::to_owned).to_vec() }
    }

    fn switch(&mut self, flag: &str, on: bool) {
        if on {
            self.words.push(flag.to_owned());
        }
    }

    fn word(&mut self, flag: &str, word: String) {
        self.words.extend([flag.to_owned(), word]);
    }

    /// A text of the request's. One that begins with `-` would be read as another flag, so it is tied to its own by `=`.
    fn text(&mut self, flag: &str, text: &str) {
        let text = literal(text);
        if text.starts_with('-') { self.words.push(format!("{flag}={text}")) } else { self.word(flag, text) }
    }

    fn text_if(&mut self, flag: &str, text: Option<&str>) {
        if let Some(text) = text {
            self.text(flag, text);
        }
    }

    fn seconds_if(&mut self, flag: &str, seconds: Option<f64>) {
        if let Some(seconds) = seconds {
            self.word(flag, decimal(seconds));
        }
    }
}

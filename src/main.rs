//! Parse and dispatch, nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    sipstuff_operator::commands::main(std::env::args_os().collect())
}

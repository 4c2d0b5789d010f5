//! Parse and dispatch, nothing else.

use std::process::ExitCode;

/// An accepted call is a few hundred small allocations on all threads at once; with glibc's allocator they are a quarter of its
/// cost, partly spent waiting for locks. Without huge pages (`no_thp`), which would add 10 MB to an idle process.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    sipstuff_operator::commands::main(std::env::args_os().collect())
}

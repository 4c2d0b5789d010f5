//! What the operator prints when it starts: its version and the configuration in effect. Never a secret.

use super::cli::Effective;

/// Writes the banner to standard error, one setting a line.
pub fn print(effective: &[Effective]) {
    eprintln!("sipstuff-operator {}", env!("CARGO_PKG_VERSION"));
    let width = effective.iter().map(|setting| setting.variable.len()).max().unwrap_or(0);
    for Effective { variable, value } in effective {
        eprintln!("  {variable:width$}  {value}");
    }
}

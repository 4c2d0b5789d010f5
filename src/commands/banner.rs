//! What the operator says when it starts: its version and the configuration in effect. Never a secret.

use crate::cli::Effective;

/// Writes the banner to standard error, one setting a line.
pub fn tell(effective: &[Effective]) {
    eprintln!("sipstuff-operator {}", env!("CARGO_PKG_VERSION"));
    let width = effective.iter().map(|setting| setting.variable.len()).max().unwrap_or(0);
    for Effective { variable, value } in effective {
        eprintln!("  {variable:width$}  {value}");
    }
}

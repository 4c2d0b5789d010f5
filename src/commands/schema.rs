//! `schema`: writes the generated documents.

use std::path::Path;

use anyhow::{Context, Result};

use crate::schema;

/// Writes every document to a file in a directory, or all of them to standard output as one object by file name.
///
/// # Errors
/// The directory cannot be written to.
pub fn run(folder: Option<&Path>) -> Result<()> {
    let documents = schema::all();
    let Some(folder) = folder else {
        let all: serde_json::Map<_, _> = documents.into_iter().map(|(name, it)| (name.to_owned(), it)).collect();
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(());
    };
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    for (name, document) in documents {
        let path = folder.join(name);
        let text = serde_json::to_string_pretty(&document)? + "\n";
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

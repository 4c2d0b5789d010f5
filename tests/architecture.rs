//! The map in `src/lib.rs` is true: every import is one that it allows, the core uses no I/O and no clock, no two modules
//! import each other, and what a module uses of the outside is what it is for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Crates and paths by which a module would reach the outside.
const OUTSIDE: [&str; 11] = [
    "async_nats",
    "kube::",
    "tokio",
    "warp",
    "hyper",
    "std::fs",
    "std::net",
    "std::process",
    "std::time::SystemTime",
    "std::time::Instant",
    "Timestamp::now",
];
/// Modules that reach nothing.
const CORE: [&str; 3] = ["call", "job", "policy"];
/// Words of NATS that the HTTP side must not know.
const NATS_WORDS: [&str; 3] = ["async_nats", "jetstream", "crate::nats"];

type Imports = BTreeMap<String, BTreeSet<String>>;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    let (folders, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let files = files.into_iter().filter(|path| path.extension().is_some_and(|end| end == "rs"));
    files.chain(folders.iter().flat_map(|folder| sources(folder))).collect()
}

/// The top-level module that a file belongs to.
fn module_of(file: &Path) -> String {
    let path = file.strip_prefix(root().join("src")).expect("below src");
    let first = path.components().next().expect("a name").as_os_str().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_owned()
}

/// The code of a file: without comments, and without its tests.
fn code(file: &Path) -> String {
    let name = file.file_name().expect("a name").to_string_lossy();
    let is_of_the_model = file.parent().is_some_and(|folder| folder.ends_with("model"));
    if is_of_the_model || ["tests.rs", "properties.rs", "fixtures.rs", "samples.rs"].contains(&name.as_ref()) {
        return String::new();
    }
    let text = fs::read_to_string(file).expect("a source file");
    let text = text.split("\nmod tests {").next().unwrap_or_default();
    let lines = text.lines().map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

/// The modules that a piece of code names: `crate::a::…`, and each of `crate::{a::…, b}`.
fn named_modules(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (position, _) in code.match_indices("crate::") {
        let rest = &code[position + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(group) => found.extend(first_words(group)),
            None => found.extend(word(rest)),
        }
    }
    found
}

fn word(text: &str) -> Option<String> {
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(text.len());
    (end > 0).then(|| text[..end].to_owned())
}

/// The first word of each item of a `use` group, up to the brace that closes it.
fn first_words(group: &str) -> Vec<String> {
    let (mut depth, mut item, mut words) = (0, String::new(), Vec::new());
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => words.extend(word(std::mem::take(&mut item).trim())),
            _ => {}
        }
        if !(c == ',' && depth == 0) {
            item.push(c);
        }
    }
    words.extend(word(item.trim()));
    words
}

/// Who imports whom, by the code.
fn imports() -> Imports {
    let mut imports = Imports::new();
    for file in sources(&root().join("src")) {
        let module = module_of(&file);
        let named = named_modules(&code(&file).replace("sipstuff_operator::", "crate::"));
        let others = named.into_iter().filter(|other| *other != module && other.chars().all(|c| !c.is_uppercase()));
        imports.entry(module.clone()).or_default().extend(others);
    }
    imports.remove("lib");
    imports
}

/// Who may import whom, by the map.
fn map() -> Imports {
    let text = fs::read_to_string(root().join("src/lib.rs")).expect("the map");
    let table = text.split("```dependencies").nth(1).and_then(|rest| rest.split("```").next()).expect("a table");
    let rows = table.lines().filter_map(|line| line.trim_start_matches("//!").split_once('→'));
    rows.map(|(module, others)| (module.trim().to_owned(), others.split_whitespace().map(str::to_owned).collect()))
        .collect()
}

#[test]
fn every_import_is_one_that_the_map_allows_and_the_map_allows_no_other() {
    let (map, imports) = (map(), imports());
    let names = |imports: &Imports| imports.keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(names(&map), names(&imports), "the modules of the map, and those that there are");
    for (module, found) in &imports {
        let allowed = &map[module];
        let (more, less): (Vec<_>, Vec<_>) = (found.difference(allowed).collect(), allowed.difference(found).collect());
        assert!(more.is_empty(), "`{module}` imports {more:?}, which the map in src/lib.rs does not allow");
        assert!(less.is_empty(), "the map in src/lib.rs lets `{module}` import {less:?}, which it does not need");
    }
}

#[test]
fn no_two_modules_import_each_other_even_by_way_of_others() {
    let map = map();
    for module in map.keys() {
        let (mut reached, mut next) = (BTreeSet::new(), vec![module.clone()]);
        while let Some(from) = next.pop() {
            for to in &map[&from] {
                assert_ne!(to, module, "`{module}` imports itself by way of `{from}`");
                if reached.insert(to.clone()) {
                    next.push(to.clone());
                }
            }
        }
    }
}

#[test]
fn the_core_uses_no_io_no_client_and_no_clock() {
    for file in sources(&root().join("src")).into_iter().filter(|file| CORE.contains(&module_of(file).as_str())) {
        let code = code(&file);
        let used: Vec<_> = OUTSIDE.into_iter().filter(|outside| code.contains(outside)).collect();
        assert!(used.is_empty(), "{} uses {used:?}", file.display());
    }
}

#[test]
fn http_does_not_know_nats() {
    for file in sources(&root().join("src/http")) {
        let code = code(&file);
        let used: Vec<_> = NATS_WORDS.into_iter().filter(|word| code.contains(word)).collect();
        assert!(used.is_empty(), "{} names {used:?}", file.display());
    }
}

#[test]
fn every_source_file_says_what_it_is_for() {
    for file in sources(&root().join("src")) {
        let text = fs::read_to_string(&file).expect("a source file");
        assert!(text.starts_with("//!"), "{} does not open with //!", file.display());
    }
}

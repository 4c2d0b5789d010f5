//! `docs/guarantees.md` names the tests of each promise: all of them exist.

use std::path::Path;

#[test]
fn every_promise_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("docs/guarantees.md")).unwrap();
    let quoted = text.split('`').skip(1).step_by(2);
    let mut count = 0;
    for (file, test) in quoted.filter_map(|name| name.split_once(".rs::")) {
        let folder = if file.starts_with("src/") { root.to_owned() } else { root.join("tests") };
        let source =
            std::fs::read_to_string(folder.join(format!("{file}.rs"))).unwrap_or_else(|_| panic!("no {file}.rs"));
        assert!(source.contains(&format!("fn {test}(")), "{file}.rs has no test {test}");
        count += 1;
    }
    assert!(count > 60, "only {count} tests were found in the text");
}

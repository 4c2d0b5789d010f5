//! `$(NAME)` and `$$` as the kubelet expands them (`k8s.io/kubernetes/third_party/forked/golang/expansion`), so that a
//! Job means the same here as in a cluster.

use std::collections::HashMap;

/// Expands the references in a value of `env`, `command` or `args`. `$$` becomes `$`; an unknown name, a `$` before
/// anything else, and an unterminated `$(` stay as they are.
pub fn expand(text: &str, known: &HashMap<String, String>) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        expanded.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            expanded.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|open| open.split_once(')')) {
            match known.get(name) {
                Some(value) => expanded.push_str(value),
                None => expanded.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            expanded.push('$');
        }
    }
    expanded.push_str(rest);
    expanded
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cases of the kubelet's own table.
    #[test]
    fn a_reference_becomes_what_the_kubelet_makes_of_it() {
        let known: HashMap<String, String> =
            [("VAR_A", "A"), ("VAR_B", "B"), ("VAR_REF", "$(VAR_A)"), ("VAR_EMPTY", "")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into();
        for (given, wanted) in [
            ("$(VAR_A)", "A"),
            ("___$(VAR_B)___", "___B___"),
            ("$(VAR_A)$(VAR_B)", "AB"),
            ("$(VAR_REF)", "$(VAR_A)"),
            ("$(VAR_EMPTY)x", "x"),
            ("$(VAR_DNE)", "$(VAR_DNE)"),
            ("$$(VAR_A)", "$(VAR_A)"),
            ("$$$(VAR_A)", "$A"),
            ("$$$$(VAR_A)", "$$(VAR_A)"),
            ("$(VAR_A", "$(VAR_A"),
            ("$VAR_A", "$VAR_A"),
            ("$()", "$()"),
            ("$", "$"),
            ("$$", "$"),
            ("f00-$(VAR_A)-$", "f00-A-$"),
            ("$€ $(VAR_B", "$€ $(VAR_B"),
            ("$((VAR_A)", "$((VAR_A)"),
        ] {
            assert_eq!(expand(given, &known), wanted, "{given}");
        }
    }
}

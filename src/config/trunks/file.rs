//! `TRUNKS_FILE`: its wire model, from which the JSON Schema is generated, and the way from its text to [`Trunks`]. Fields go by the
//! same rules as those of a request; what concerns more than one of them is for [`Trunks::new`] to say. Every error has its place.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use schemars::{JsonSchema, Schema};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::document::{self, Content, Node};
use crate::call::validate::fields::{Rule, state_rule};
use crate::call::validate::rules::check;
use crate::policy::routes::{MAX_PREFIX, Misfit, PREFIX_PATTERN, Place, Route, is_prefix};
use crate::policy::{Trunk, Trunks};

/// Most trunks.
const MAX_TRUNKS: usize = 100;
/// Most routes.
const MAX_ROUTES: usize = 10_000;
/// Most problems that are listed.
const MAX_PROBLEMS: usize = 50;
/// What a prefix is, for messages.
const PREFIX_IS: &str =
    "at most 20 digits, `*` and `#`, after a `+` or not, in quotes; \"\" is the route of all that have no other";

/// The fields of a trunk, and whether each must be given.
const TRUNK: [(&str, Rule, bool); 5] = [
    ("name", Rule::TrunkName, true),
    ("secret", Rule::SecretName, true),
    ("max_active", Rule::Integer(1, 100_000), true),
    ("calls_per_second", Rule::Number(0.001, 10_000.0), false),
    ("node_selector", Rule::NodeSelector, false),
];

/// The trunks that calls are dialled on, and the routes to them.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrunksFile {
    /// The trunks: at least one, at most 100, each with a name of its own.
    #[schemars(length(min = 1, max = MAX_TRUNKS))]
    pub trunks: Vec<TrunkEntry>,
    /// Which trunks dial which destinations, at most 10,000 routes; absent or empty: every trunk may dial every destination, in the
    /// order above.
    #[serde(default)]
    #[schemars(length(max = MAX_ROUTES))]
    pub routes: Vec<RouteEntry>,
}

/// A trunk: a SIP account with its limits.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(transform = state_trunk)]
pub struct TrunkEntry {
    /// What requests, events and commands call it. Calls that wait are kept by it, so a trunk with another name is another trunk.
    pub name: String,
    /// Name of the Secret with the account: SIP_SERVER, SIP_USER, SIP_PASSWORD and so on, in the namespace of the Jobs.
    pub secret: String,
    /// Its channels: most calls in progress on it at once, over all replicas and clusters.
    pub max_active: u32,
    /// Most calls that are begun on it per second, over all replicas, evenly spaced; absent: no limit.
    #[serde(default)]
    pub calls_per_second: Option<f64>,
    /// Labels of the nodes that may dial on it; absent: NODE_SELECTOR. The `node_selector` of a request goes before it.
    #[serde(default)]
    pub node_selector: Option<BTreeMap<String, String>>,
}

/// A route. The one with the longest prefix of a destination counts.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(transform = state_route)]
pub struct RouteEntry {
    /// How the numbers begin, such as `+49`: at most 20 digits, `*` and `#`, after a `+` or not. The empty one is the route of all
    /// destinations that have no other; without it they are refused.
    #[schemars(extend("maxLength" = MAX_PREFIX, "pattern" = PREFIX_PATTERN))]
    pub prefix: String,
    /// Names of the trunks, the preferred one first. The next one dials when the one before refused the account or was full.
    #[schemars(extend("minItems" = 1, "uniqueItems" = true))]
    pub trunks: Vec<String>,
}

fn state_trunk(schema: &mut Schema) {
    let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) else { return };
    for (name, rule, _) in TRUNK {
        if let Some(property) = properties.get_mut(name).and_then(Value::as_object_mut) {
            state_rule(property, rule);
        }
    }
}

fn state_route(schema: &mut Schema) {
    let items = schema.get_mut("properties").and_then(|properties| properties.pointer_mut("/trunks/items"));
    if let Some(items) = items.and_then(Value::as_object_mut) {
        state_rule(items, Rule::TrunkName);
    }
}

/// Everything that is wrong with a file, at least one thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadTrunks(Vec<Problem>);

impl fmt::Display for BadTrunks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown: Vec<_> = self.0.iter().take(MAX_PROBLEMS).map(ToString::to_string).collect();
        f.write_str(&shown.join("; "))?;
        match self.0.len().checked_sub(MAX_PROBLEMS) {
            None | Some(0) => Ok(()),
            Some(more) => write!(f, "; and {more} more problems"),
        }
    }
}

/// One thing that is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Problem {
    /// From 1; `None` where the message names the place.
    line: Option<u64>,
    /// Such as `trunks[0].max_active`.
    path: String,
    /// What is wrong, and what is accepted.
    message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.line, self.path.as_str()) {
            (None, _) => write!(f, "{}", self.message),
            (Some(line), "") => write!(f, "line {line}: {}", self.message),
            (Some(line), path) => write!(f, "line {line}, {path}: {}", self.message),
        }
    }
}

/// Reads the text of a file.
///
/// # Errors
/// [`BadTrunks`], which never holds a value that may be a password.
pub fn parse(text: &str) -> Result<Trunks, BadTrunks> {
    let root = document::read(text).map_err(|error| {
        BadTrunks(vec![Problem { line: None, path: String::new(), message: format!("not YAML: {error}") }])
    })?;
    let mut file = Checked::default();
    let (trunks, routes) = file.read(&root);
    match Trunks::new(trunks, &routes) {
        Ok(trunks) if file.problems.is_empty() => return Ok(trunks),
        Ok(_) => {}
        Err(misfits) => misfits.into_iter().for_each(|misfit| file.misfit(misfit)),
    }
    // In the order of the file.
    file.problems.sort_by_key(|problem| problem.line);
    Err(BadTrunks(file.problems))
}

/// What was found on the way through a file. What is wrong is replaced by something, so that the rest can be judged.
#[derive(Default)]
struct Checked {
    problems: Vec<Problem>,
    /// The line of every path that was seen.
    lines: BTreeMap<String, u64>,
}

impl Checked {
    fn read(&mut self, root: &Node) -> (Vec<Trunk>, Vec<Route>) {
        let mut fields = self.object(root, "", &["trunks", "routes"], "the lists `trunks` and `routes`");
        let trunks = match fields.remove("trunks") {
            Some(list) => self.list(list, "trunks", MAX_TRUNKS, "a list of trunks"),
            None => {
                self.missing(root, "trunks", "give at least one trunk");
                Vec::new()
            }
        };
        let routes = fields.remove("routes").map(|list| self.list(list, "routes", MAX_ROUTES, "a list of routes"));
        let trunks = trunks.into_iter().map(|(path, node)| self.trunk(node, &path)).collect();
        let routes = routes.unwrap_or_default();
        (trunks, routes.into_iter().map(|(path, node)| self.route(node, &path)).collect())
    }

    fn trunk(&mut self, node: &Node, path: &str) -> Trunk {
        let fields = self.object(node, path, &TRUNK.map(|(name, ..)| name), "the fields of a trunk");
        let mut checked = Map::new();
        for (name, rule, is_required) in TRUNK {
            let place = format!("{path}.{name}");
            match fields.get(name) {
                Some(field) => checked.extend(self.field(field, &place, rule).map(|value| (name.to_owned(), value))),
                None if is_required => self.missing(node, &place, &format!("pass {}", rule.accepted())),
                None => {}
            }
        }
        let name = fields.get("name").map_or_else(|| path.to_owned(), |name| plain(&name.to_value()));
        for (name, instead) in [("name", json!(name)), ("secret", json!("")), ("max_active", json!(1))] {
            checked.entry(name).or_insert(instead);
        }
        let TrunkEntry { name, secret, max_active, calls_per_second, node_selector } =
            serde_json::from_value(Value::Object(checked)).expect("every field was checked or replaced");
        Trunk { name, secret, max_active, calls_per_second, node_selector }
    }

    fn route(&mut self, node: &Node, path: &str) -> Route {
        let fields = self.object(node, path, &["prefix", "trunks"], "`prefix` and `trunks`");
        let (prefix, trunks) = (format!("{path}.prefix"), format!("{path}.trunks"));
        let written = match fields.get("prefix") {
            Some(written) => self.prefix(written, &prefix),
            None => {
                self.missing(node, &prefix, &format!("pass {PREFIX_IS}"));
                prefix
            }
        };
        let members = match fields.get("trunks") {
            Some(list) => self.list(list, &trunks, MAX_TRUNKS, "a list of the names of trunks"),
            None => {
                self.missing(node, &trunks, "name at least one trunk");
                Vec::new()
            }
        };
        let names = members.into_iter().map(|(path, node)| {
            self.field(node, &path, Rule::TrunkName);
            plain(&node.to_value())
        });
        Route { trunks: names.collect(), prefix: written }
    }

    fn prefix(&mut self, node: &Node, path: &str) -> String {
        self.lines.insert(path.to_owned(), node.line);
        let value = node.to_value();
        match &value {
            Value::String(text) if is_prefix(text) => return text.clone(),
            Value::Number(_) => self.problem(node.line, path, format!("is a number to YAML; pass {PREFIX_IS}")),
            other => self.problem(node.line, path, format!("{} is not valid; pass {PREFIX_IS}", short(other))),
        }
        path.to_owned()
    }

    /// The value of a field, if its rule takes it.
    fn field(&mut self, node: &Node, path: &str, rule: Rule) -> Option<Value> {
        self.lines.insert(path.to_owned(), node.line);
        let messages = match check(rule, &node.to_value(), Timestamp::UNIX_EPOCH) {
            Ok(value) => return Some(value),
            // Somebody may have written a password for the name of a Secret: it is not quoted.
            Err(_) if rule == Rule::SecretName => {
                vec![format!("is not the name of a Secret; pass {}", rule.accepted())]
            }
            Err(messages) => messages,
        };
        messages.into_iter().for_each(|message| self.problem(node.line, path, message));
        None
    }

    /// The fields of an object that are given: null is absent.
    fn object<'n>(
        &mut self,
        node: &'n Node,
        path: &str,
        known: &[&str],
        accepted: &str,
    ) -> BTreeMap<&'n str, &'n Node> {
        self.lines.insert(path.to_owned(), node.line);
        let Content::Object(entries) = &node.value else {
            self.problem(node.line, path, format!("is {}; pass an object with {accepted}", kind(node)));
            return BTreeMap::new();
        };
        for (name, value) in entries.iter().filter(|(name, _)| !known.contains(&name.as_str())) {
            let place = join(path, &short(&json!(name)).replace('"', ""));
            self.problem(value.line, &place, format!("unknown field; those that exist are {}", known.join(", ")));
        }
        let given = entries.iter().filter(|(name, value)| known.contains(&name.as_str()) && !value.is_null());
        given.map(|(name, value)| (name.as_str(), value)).collect()
    }

    /// The items of a list, with their paths.
    fn list<'n>(&mut self, node: &'n Node, path: &str, most: usize, accepted: &str) -> Vec<(String, &'n Node)> {
        self.lines.insert(path.to_owned(), node.line);
        match &node.value {
            Content::List(items) if items.len() <= most => {
                items.iter().enumerate().map(|(at, item)| (format!("{path}[{at}]"), item)).collect()
            }
            Content::List(items) => {
                self.problem(node.line, path, format!("has {} entries; pass at most {most}", items.len()));
                Vec::new()
            }
            _ => {
                self.problem(node.line, path, format!("is {}; pass {accepted}", kind(node)));
                Vec::new()
            }
        }
    }

    /// What does not fit together, unless what it is about is wrong by itself.
    fn misfit(&mut self, Misfit { place, message }: Misfit) {
        let path = match place {
            Place::Trunks => "trunks".to_owned(),
            Place::TrunkName(at) => format!("trunks[{at}].name"),
            Place::Prefix(at) => format!("routes[{at}].prefix"),
            Place::RouteTrunks(at) => format!("routes[{at}].trunks"),
            Place::RouteTrunk(at, index) => format!("routes[{at}].trunks[{index}]"),
        };
        let is_wrong = |problem: &Problem| {
            problem.path.starts_with(&path)
                || problem.path.is_empty()
                || path.strip_prefix(&problem.path).is_some_and(|rest| rest.starts_with('.'))
        };
        if !self.problems.iter().any(is_wrong) {
            let line = self.lines.get(&path).copied();
            self.problems.push(Problem { line, path, message });
        }
    }

    /// Of an object that has everything else.
    fn missing(&mut self, node: &Node, path: &str, hint: &str) {
        if matches!(node.value, Content::Object(_)) {
            self.problem(node.line, path, format!("missing; {hint}"));
        }
    }

    fn problem(&mut self, line: u64, path: &str, message: impl Into<String>) {
        self.problems.push(Problem { line: Some(line), path: path.to_owned(), message: message.into() });
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// A text as it is, anything else as JSON.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn short(value: &Value) -> String {
    value.to_string().chars().take(60).collect()
}

fn kind(node: &Node) -> &'static str {
    match &node.value {
        Content::Object(_) => "an object",
        Content::List(_) => "a list",
        Content::Scalar(Value::Null) => "empty",
        Content::Scalar(Value::Bool(_)) => "a boolean",
        Content::Scalar(Value::Number(_)) => "a number",
        Content::Scalar(_) => "a string",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn problems(text: &str) -> Vec<String> {
        parse(text).unwrap_err().0.iter().map(ToString::to_string).collect()
    }

    const SMALLEST: &str = "trunks:\n- {name: a, secret: s, max_active: 3}\n";

    #[test]
    fn a_file_becomes_trunks_and_routes() {
        let text = r#"
trunks:
  - name: berlin
    secret: sip-berlin
    max_active: 7
    calls_per_second: 2.5
    node_selector: {zone: b}
  - name: world
    secret: sip.world
    max_active: 20.0
    calls_per_second:
routes:
  - {prefix: "+49", trunks: [berlin, world]}
  - {prefix: "", trunks: [world]}
"#;
        let berlin = Trunk {
            name: "berlin".to_owned(),
            secret: "sip-berlin".to_owned(),
            max_active: 7,
            calls_per_second: Some(2.5),
            node_selector: Some([("zone".to_owned(), "b".to_owned())].into()),
        };
        let world = Trunk {
            name: "world".to_owned(),
            secret: "sip.world".to_owned(),
            max_active: 20,
            calls_per_second: None,
            node_selector: None,
        };
        let route = |prefix: &str, trunks: &[&str]| Route {
            prefix: prefix.to_owned(),
            trunks: trunks.iter().map(|name| (*name).to_owned()).collect(),
        };
        let routes = [route("+49", &["berlin", "world"]), route("", &["world"])];
        assert_eq!(parse(text), Ok(Trunks::new(vec![berlin, world], &routes).unwrap()));
        assert_eq!(parse(SMALLEST).unwrap().iter().count(), 1);
    }

    #[test]
    fn every_problem_is_told_at_once_with_its_place_and_what_is_accepted() {
        let text = r#"trunks:
  - name: Berlin
    secret: hunter2!
    max_active: 0
    calls_per_minute: 3
  - secret: sip-bonn
    max_active: many
    calls_per_second: 0
  - name: bonn
    secret: sip-bonn
    max_active: 5
    node_selector: {zone: 1}
  - name: bonn
    secret: sip-bonn
    max_active: 5
  - nonsense
routes:
  - prefix: +49
    trunks: [bonn, Berlin, cologne, bonn]
  - prefix: "49 30"
    trunks: []
  - prefix: ""
    trunks: [5]
  - prefix: ""
    trunks: bonn
  - trunks: [bonn]
"#;
        let label = "a DNS label: 1 to 63 lower-case letters, digits and '-', a letter or digit at both ends";
        let secret = "a DNS subdomain of 1 to 253 characters: lower-case letters, digits, '-' and '.', a letter or digit at both ends of each part";
        let expected = [
            format!("line 2, trunks[0].name: \"Berlin\" is not valid; pass {label}"),
            format!("line 3, trunks[0].secret: is not the name of a Secret; pass {secret}"),
            "line 4, trunks[0].max_active: 0 is not valid; pass a whole number from 1 to 100000".to_owned(),
            "line 5, trunks[0].calls_per_minute: unknown field; those that exist are name, secret, max_active, calls_per_second, node_selector".to_owned(),
            format!("line 6, trunks[1].name: missing; pass {label}"),
            "line 7, trunks[1].max_active: \"many\" is not valid; pass a whole number from 1 to 100000".to_owned(),
            "line 8, trunks[1].calls_per_second: 0 is not valid; pass a number from 0.001 to 10000".to_owned(),
            "line 12, trunks[2].node_selector: key \"zone\": the value is a number; pass a string".to_owned(),
            "line 13, trunks[3].name: `bonn` is the name of another trunk too; give each its own".to_owned(),
            "line 16, trunks[4]: is a string; pass an object with the fields of a trunk".to_owned(),
            format!("line 18, routes[0].prefix: is a number to YAML; pass {PREFIX_IS}"),
            format!("line 19, routes[0].trunks[1]: \"Berlin\" is not valid; pass {label}"),
            "line 19, routes[0].trunks[2]: unknown trunk `cologne`; pass the name of one of `trunks`".to_owned(),
            "line 19, routes[0].trunks[3]: `bonn` is in this route twice; name it once".to_owned(),
            format!("line 20, routes[1].prefix: \"49 30\" is not valid; pass {PREFIX_IS}"),
            "line 21, routes[1].trunks: has no trunk; name at least one".to_owned(),
            "line 23, routes[2].trunks[0]: 5 is a number; write \"5\" (with quotes) if you mean the text".to_owned(),
            "line 24, routes[3].prefix: \"\" has a route already; give each prefix one route".to_owned(),
            "line 25, routes[3].trunks: is a string; pass a list of the names of trunks".to_owned(),
            format!("line 26, routes[4].prefix: missing; pass {PREFIX_IS}"),
        ];
        let found = problems(text);
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(found, expected);
        }
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        assert!(!parse(text).unwrap_err().to_string().contains("hunter2"));
    }

    #[test]
    fn what_is_no_such_file_at_all_is_told_in_one_sentence() {
        assert_eq!(problems(""), ["line 1: is empty; pass an object with the lists `trunks` and `routes`"]);
        assert_eq!(problems("- a\n"), ["line 1: is a list; pass an object with the lists `trunks` and `routes`"]);
        assert_eq!(problems("routes: []\n"), ["line 1, trunks: missing; give at least one trunk"]);
        assert_eq!(problems("trunks: []\n"), ["line 1, trunks: has no trunk; give at least one"]);
        for text in ["trunks: [", "trunks: {a: b\n", "trunks: []\ntrunks: []\n"] {
            let found = problems(text);
            assert!(found.len() == 1 && found[0].starts_with("not YAML: ") && found[0].contains("line "), "{found:?}");
            assert!(!found[0].contains('\n'), "{found:?}");
        }
        let many = format!("trunks:\n{}", "- {}\n".repeat(40));
        assert!(parse(&many).unwrap_err().to_string().ends_with("; and 70 more problems"));
        let many = format!("trunks:\n{}", "- {}\n".repeat(MAX_TRUNKS + 1));
        assert_eq!(problems(&many), ["line 2, trunks: has 101 entries; pass at most 100"]);
    }

    proptest! {
        #[test]
        fn any_text_is_a_file_or_not_without_a_panic(text in "(trunks:\n)?([- ]{0,4}(name|secret|max_active|prefix|trunks|routes)?:? ?[a-z0-9\\[\\]{}\"+,]{0,5}\n){0,8}") {
            drop(parse(&text));
        }

        #[test]
        fn a_prefix_is_what_the_schema_takes(text in "[+0-9*#a ]{0,22}") {
            let schema = json!({"type": "string", "maxLength": MAX_PREFIX, "pattern": PREFIX_PATTERN});
            prop_assert_eq!(is_prefix(&text), jsonschema::is_valid(&schema, &json!(text)));
        }
    }
}

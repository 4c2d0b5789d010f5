//! Trunks, and which of them may dial a call, in which order.
//!
//! A call that names a trunk is dialled there and nowhere else. Any other goes by the longest prefix of its destination among the
//! routes: by the first trunk of that route, and, where a trunk itself is at fault, by the next one. What a person or a number plan
//! has said never leads to another trunk: it would be the same callee again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use jiff::Timestamp;

use super::breaker::Held;
use crate::call::{CallSpec, FieldError, Outcome, OutcomeClass, StatusEvent};

/// The only trunk, where none are configured.
pub const DEFAULT_TRUNK: &str = "default";
/// Longest prefix of a route: more than the 15 digits that a number can have (E.164), with `+`.
pub const MAX_PREFIX: usize = 20;

/// Between the names of a group: no part of a name, and allowed in a subject.
const BETWEEN_NAMES: &str = ",";
/// The group of calls that no route leads for: not the name of a trunk.
const NO_TRUNK: &str = "-";

/// A prefix, as a regular expression; the length is stated apart.
pub const PREFIX_PATTERN: &str = r"^\+?[0-9*#]*$";

/// A way out to the telephone network: an account with its limits.
#[derive(Debug, Clone, PartialEq)]
pub struct Trunk {
    /// A DNS label, which is also a token of subjects.
    pub name: String,
    /// Name of the Secret with the account.
    pub secret: String,
    /// Its channels: most calls in progress at once, at least 1.
    pub max_active: u32,
    /// Most calls that are begun per second; `None`: no limit.
    pub calls_per_second: Option<f64>,
    /// Labels of the nodes that may dial on it; `None`: the operator's default. A request's own goes before it.
    pub node_selector: Option<BTreeMap<String, String>>,
}

/// Which trunks dial the destinations that begin with a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Digits, after a `+` or not; the empty one is the default route.
    pub prefix: String,
    /// Names of trunks, the preferred one first.
    pub trunks: Vec<String>,
}

/// Every trunk and every route: at least one trunk, and no route to a trunk that is not there.
#[derive(Debug, Clone, PartialEq)]
pub struct Trunks {
    /// In the order of the configuration.
    trunks: Vec<Trunk>,
    /// By prefix: positions in `trunks`.
    routes: BTreeMap<String, Vec<usize>>,
}

/// One thing that is wrong with trunks and routes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misfit {
    /// What it is about.
    pub place: Place,
    /// What is wrong with it, and what is accepted.
    pub message: String,
}

/// A part of the configuration, by its position from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The list of trunks.
    Trunks,
    /// The name of a trunk.
    TrunkName(usize),
    /// The prefix of a route.
    Prefix(usize),
    /// The list of trunks of a route.
    RouteTrunks(usize),
    /// A trunk of a route.
    RouteTrunk(usize, usize),
}

/// The trunks that may dial a call, the preferred one first. Calls wait by it: all that have the same one can be dialled, or are held,
/// together.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrunkGroup(String);

/// What a call asks of the routes.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The trunk that the request names.
    pub trunk: Option<&'a str>,
    /// Whom it calls.
    pub dest: &'a str,
    /// The trunk of the last attempt and what became of it.
    pub last: Option<(&'a str, Outcome)>,
}

/// Why no trunk dials a call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unroutable {
    /// The request names one that is not there.
    #[error("unknown trunk `{name}`; pass one of {known}, or leave `trunk` out")]
    UnknownTrunk {
        /// The name.
        name: String,
        /// Those that are there, for people.
        known: String,
    },
    /// No prefix fits and there is no default route.
    #[error(
        "no route leads to this destination: it begins with none of the prefixes in TRUNKS_FILE, which has no route with the prefix \"\""
    )]
    NoRoute,
}

/// What is different between two configurations, by the names of trunks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Difference {
    /// New ones.
    pub added: Vec<String>,
    /// Those that are gone.
    pub removed: Vec<String>,
    /// Those with another number of channels, as `name: 3 to 7`.
    pub resized: Vec<String>,
    /// Those with another Secret, pace or nodes.
    pub changed: Vec<String>,
    /// Whether any route is another.
    pub routes: bool,
}

impl Trunks {
    /// Trunks and the routes between them. Without any route, every destination may take every trunk, in the order given.
    ///
    /// # Errors
    /// Everything that does not fit together.
    pub fn new(trunks: Vec<Trunk>, routes: &[Route]) -> Result<Self, Vec<Misfit>> {
        let mut misfits = Vec::new();
        let mut positions = HashMap::new();
        if trunks.is_empty() {
            misfits.push(Misfit { place: Place::Trunks, message: "has no trunk; give at least one".to_owned() });
        }
        for (at, trunk) in trunks.iter().enumerate() {
            if positions.insert(trunk.name.as_str(), at).is_some() {
                let message = format!("`{}` is the name of another trunk too; give each its own", trunk.name);
                misfits.push(Misfit { place: Place::TrunkName(at), message });
            }
        }
        let mut table = BTreeMap::new();
        for (at, route) in routes.iter().enumerate() {
            let members = members(route, at, &positions, &mut misfits);
            if table.insert(route.prefix.clone(), members).is_some() {
                let message = format!("\"{}\" has a route already; give each prefix one route", route.prefix);
                misfits.push(Misfit { place: Place::Prefix(at), message });
            }
        }
        if table.is_empty() {
            table.insert(String::new(), (0..trunks.len()).collect());
        }
        if misfits.is_empty() { Ok(Self { trunks, routes: table }) } else { Err(misfits) }
    }

    /// One trunk for everything.
    pub fn single(trunk: Trunk) -> Self {
        Self { trunks: vec![trunk], routes: BTreeMap::from([(String::new(), vec![0])]) }
    }

    /// Every trunk, in the order of the configuration.
    pub fn iter(&self) -> impl Iterator<Item = &Trunk> {
        self.trunks.iter()
    }

    /// A trunk by its name.
    pub fn get(&self, name: &str) -> Option<&Trunk> {
        self.trunks.iter().find(|trunk| trunk.name == name)
    }

    /// The trunks that may dial a call, at least one, the preferred one first: the route's order, which begins behind the trunk
    /// of the last attempt where that trunk was at fault. Behind the last one comes the first.
    ///
    /// # Errors
    /// [`Unroutable`].
    pub fn candidates(&self, wanted: &Wanted<'_>) -> Result<Vec<&Trunk>, Unroutable> {
        let mut trunks = self.route(wanted)?;
        if let Some((name, outcome)) = wanted.last
            && is_fault_of_trunk(outcome)
            && let Some(at) = trunks.iter().position(|trunk| trunk.name == name)
        {
            trunks.rotate_left(at + 1);
        }
        Ok(trunks)
    }

    /// [`Self::candidates`] as the group that the call waits in. One that no trunk can dial (any more) waits in a group of its own, for
    /// the trunk that it names or was dialled on, until there is a route for it again.
    pub fn group(&self, wanted: &Wanted<'_>) -> TrunkGroup {
        match self.candidates(wanted) {
            Ok(trunks) => TrunkGroup::of(trunks.into_iter().map(|trunk| trunk.name.as_str())),
            Err(_) => TrunkGroup(wanted.trunk.or(wanted.last.map(|(name, _)| name)).unwrap_or(NO_TRUNK).to_owned()),
        }
    }

    /// Every group that [`Self::group`] may give to a call that some trunk can dial.
    pub fn groups(&self) -> BTreeSet<TrunkGroup> {
        let alone = self.trunks.iter().map(|trunk| TrunkGroup(trunk.name.clone()));
        let name = |at: &usize| self.trunks[*at].name.as_str();
        let of_routes = self.routes.values().flat_map(|members| {
            (0..members.len())
                .map(move |first| TrunkGroup::of(members[first..].iter().chain(&members[..first]).map(name)))
        });
        alone.chain(of_routes).collect()
    }

    /// Where a call goes at once after an attempt on the trunk of `wanted.last`: the next trunk of its route, if the fault was that
    /// trunk's. `None`: it waits, since there is no other, every one was tried, or another trunk would not help.
    pub fn failover(&self, wanted: &Wanted<'_>) -> Option<&Trunk> {
        let (name, outcome) = wanted.last?;
        if !is_fault_of_trunk(outcome) {
            return None;
        }
        let trunks = self.route(wanted).ok()?;
        let at = trunks.iter().position(|trunk| trunk.name == name)?;
        trunks.get(at + 1).copied()
    }

    /// What is different in `next`.
    pub fn difference(&self, next: &Self) -> Difference {
        let mut difference = Difference { routes: self.named_routes() != next.named_routes(), ..Difference::default() };
        for Trunk { name, max_active, .. } in &self.trunks {
            match next.get(name) {
                None => difference.removed.push(name.clone()),
                Some(other) if other.max_active != *max_active => {
                    difference.resized.push(format!("{name}: {max_active} to {}", other.max_active));
                }
                Some(_) => {}
            }
        }
        for other in &next.trunks {
            match self.get(&other.name) {
                None => difference.added.push(other.name.clone()),
                Some(trunk) if Trunk { max_active: other.max_active, ..trunk.clone() } != *other => {
                    difference.changed.push(other.name.clone());
                }
                Some(_) => {}
            }
        }
        difference
    }

    fn route(&self, wanted: &Wanted<'_>) -> Result<Vec<&Trunk>, Unroutable> {
        if let Some(name) = wanted.trunk {
            let unknown = || Unroutable::UnknownTrunk { name: name.to_owned(), known: self.known() };
            return self.get(name).map(|trunk| vec![trunk]).ok_or_else(unknown);
        }
        let number = normal(number_of(wanted.dest));
        let prefixes = (0..=number.len().min(MAX_PREFIX)).rev().filter_map(|length| number.get(..length));
        let route = prefixes.filter_map(|prefix| self.routes.get(prefix)).next().ok_or(Unroutable::NoRoute)?;
        Ok(route.iter().map(|at| &self.trunks[*at]).collect())
    }

    /// Routes by names, which say the same when trunks have changed places.
    fn named_routes(&self) -> BTreeMap<&str, Vec<&str>> {
        let names = |members: &[usize]| members.iter().map(|at| self.trunks[*at].name.as_str()).collect();
        self.routes.iter().map(|(prefix, members)| (prefix.as_str(), names(members))).collect()
    }

    fn known(&self) -> String {
        self.trunks.iter().map(|trunk| format!("`{}`", trunk.name)).collect::<Vec<_>>().join(", ")
    }
}

impl Unroutable {
    /// As something that is wrong with the request.
    pub fn as_field_error(&self) -> FieldError {
        let field = match self {
            Self::UnknownTrunk { .. } => "trunk",
            Self::NoRoute => "dest",
        };
        FieldError { field: field.to_owned(), message: self.to_string() }
    }
}

impl<'a> Wanted<'a> {
    /// Of a call, with its last event where there is one.
    pub fn of(spec: &'a CallSpec, last: Option<&'a StatusEvent>) -> Self {
        let last = last.and_then(|event| event.trunk.as_deref().zip(event.outcome));
        Self { trunk: spec.trunk.as_deref(), dest: &spec.dest, last }
    }
}

impl TrunkGroup {
    fn of<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        Self(names.collect::<Vec<_>>().join(BETWEEN_NAMES))
    }

    /// From one token of a subject, as [`Self::as_str`] gives it.
    pub fn from_token(token: &str) -> Self {
        Self(token.to_owned())
    }

    /// As one token of a subject: the names of the trunks, with commas between them.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The names of its trunks, the preferred one first.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.split(BETWEEN_NAMES)
    }

    /// The first of its trunks on which a call may be begun now, by what is known of each.
    ///
    /// # Errors
    /// Why on none of them: the word of the one that is worth another look first, else of the first.
    pub fn first_free(&self, held: impl Fn(&str) -> Option<Held>) -> Result<&str, Held> {
        let mut waits: Vec<Held> = Vec::new();
        for name in self.names() {
            match held(name) {
                None => return Ok(name),
                Some(held) => waits.push(held),
            }
        }
        // Of equals, the first: those without a moment come last.
        let soonest = waits.into_iter().min_by_key(|held| held.until.unwrap_or(Timestamp::MAX));
        Err(soonest.expect("a split text has at least one part"))
    }
}

impl fmt::Display for TrunkGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Difference {
    /// Whether nothing is.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The positions of a route's trunks.
fn members(route: &Route, at: usize, positions: &HashMap<&str, usize>, misfits: &mut Vec<Misfit>) -> Vec<usize> {
    if route.trunks.is_empty() {
        let message = "has no trunk; name at least one".to_owned();
        misfits.push(Misfit { place: Place::RouteTrunks(at), message });
    }
    let mut members = Vec::new();
    for (index, name) in route.trunks.iter().enumerate() {
        let message = match positions.get(name.as_str()) {
            Some(position) if members.contains(position) => format!("`{name}` is in this route twice; name it once"),
            Some(position) => {
                members.push(*position);
                continue;
            }
            None => format!("unknown trunk `{name}`; pass the name of one of `trunks`"),
        };
        misfits.push(Misfit { place: Place::RouteTrunk(at, index), message });
    }
    members
}

/// Another trunk may do better where this one refused the account or was full; with everything else the callee was asked, the number
/// was judged, or no trunk was.
fn is_fault_of_trunk(outcome: Outcome) -> bool {
    outcome.class() == OutcomeClass::Trunk
}

/// The part of a destination that a prefix is compared with: a number, or the user of a URI (`sip:`, `sips:`, `tel:`).
fn number_of(dest: &str) -> &str {
    let dest = dest.trim();
    let scheme = dest.find(':').filter(|end| {
        let scheme = &dest[..*end];
        ["sip", "sips", "tel"].iter().any(|known| scheme.eq_ignore_ascii_case(known))
    });
    let rest = scheme.map_or(dest, |end| &dest[end + 1..]);
    rest.split(['@', ';', '?']).next().unwrap_or_default()
}

/// Without the characters that only make a number easier to read (RFC 3966, `visual-separator`, and spaces).
fn normal(number: &str) -> String {
    number.chars().filter(|character| !matches!(character, ' ' | '-' | '.' | '(' | ')')).collect()
}

/// Whether a text is a prefix that a route may have: empty, or a `+` or not, and digits, `*` and `#`.
pub fn is_prefix(text: &str) -> bool {
    let digits = text.strip_prefix('+').unwrap_or(text);
    text.len() <= MAX_PREFIX && digits.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'*' | b'#'))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn trunk(name: &str) -> Trunk {
        Trunk {
            name: name.to_owned(),
            secret: format!("sip-{name}"),
            max_active: 3,
            calls_per_second: None,
            node_selector: None,
        }
    }

    fn route(prefix: &str, trunks: &[&str]) -> Route {
        Route { prefix: prefix.to_owned(), trunks: trunks.iter().map(|name| (*name).to_owned()).collect() }
    }

    fn trunks() -> Trunks {
        let routes = [
            route("", &["world"]),
            route("+49", &["berlin", "bonn", "world"]),
            route("+4930", &["berlin"]),
            route("*", &["bonn"]),
        ];
        Trunks::new(vec![trunk("berlin"), trunk("bonn"), trunk("world")], &routes).unwrap()
    }

    fn to<'a>(dest: &'a str, last: Option<(&'a str, Outcome)>) -> Wanted<'a> {
        Wanted { trunk: None, dest, last }
    }

    fn names(trunks: &Trunks, wanted: &Wanted<'_>) -> Vec<String> {
        trunks.candidates(wanted).unwrap().into_iter().map(|trunk| trunk.name.clone()).collect()
    }

    #[test]
    fn the_longest_prefix_of_the_destination_decides() {
        let trunks = trunks();
        for (dest, expected) in [
            ("+4930123456", vec!["berlin"]),
            ("+49 (30) 12-34.56", vec!["berlin"]),
            ("+49228123", vec!["berlin", "bonn", "world"]),
            ("+49", vec!["berlin", "bonn", "world"]),
            ("sip:+49228123@example.com;transport=tls", vec!["berlin", "bonn", "world"]),
            ("TEL:+49-228-123;phone-context=x", vec!["berlin", "bonn", "world"]),
            ("*21", vec!["bonn"]),
            ("+4", vec!["world"]),
            ("sip:anna@49.example.com", vec!["world"]),
            ("ä+49", vec!["world"]),
        ] {
            assert_eq!(names(&trunks, &to(dest, None)), expected, "{dest}");
        }
    }

    #[test]
    fn a_call_that_names_a_trunk_is_dialled_there_and_nowhere_else() {
        let trunks = trunks();
        let named = |name, last| Wanted { trunk: Some(name), dest: "+4930123456", last };
        assert_eq!(names(&trunks, &named("world", None)), ["world"]);
        let failed = named("world", Some(("world", Outcome::Auth)));
        assert_eq!(names(&trunks, &failed), ["world"]);
        assert_eq!(trunks.failover(&failed), None);
        let error = trunks.candidates(&named("wrold", None)).unwrap_err().to_string();
        assert_eq!(error, "unknown trunk `wrold`; pass one of `berlin`, `bonn`, `world`, or leave `trunk` out");
    }

    #[test]
    fn a_fault_of_a_trunk_leads_to_the_next_of_the_route_and_behind_the_last_the_call_waits() {
        let trunks = trunks();
        for outcome in [Outcome::Auth, Outcome::Congestion] {
            let after = |trunk| to("+49228123", Some((trunk, outcome)));
            assert_eq!(names(&trunks, &after("berlin")), ["bonn", "world", "berlin"]);
            assert_eq!(trunks.failover(&after("berlin")).unwrap().name, "bonn");
            assert_eq!(trunks.failover(&after("bonn")).unwrap().name, "world");
            assert_eq!(names(&trunks, &after("world")), ["berlin", "bonn", "world"]);
            assert_eq!(trunks.failover(&after("world")), None);
            assert_eq!(names(&trunks, &after("removed")), ["berlin", "bonn", "world"]);
            assert_eq!(trunks.failover(&after("removed")), None);
        }
    }

    #[test]
    fn without_routes_every_trunk_may_dial_and_with_routes_a_destination_may_have_none() {
        let every = Trunks::new(vec![trunk("a"), trunk("b")], &[]).unwrap();
        assert_eq!(names(&every, &to("+1", None)), ["a", "b"]);
        assert_eq!(names(&Trunks::single(trunk("a")), &to("", None)), ["a"]);
        let some = Trunks::new(vec![trunk("a")], &[route("+49", &["a"])]).unwrap();
        let error = some.candidates(&to("+1", None)).unwrap_err();
        assert_eq!(error, Unroutable::NoRoute);
        assert!(error.to_string().contains("TRUNKS_FILE"));
    }

    #[test]
    fn a_call_takes_the_first_trunk_that_is_not_held_or_waits_for_the_one_that_is_free_first() {
        let trunks = trunks();
        let group = trunks.group(&to("+49228123", None));
        assert_eq!(group.as_str(), "berlin,bonn,world");
        let at = |second| Timestamp::from_second(second).unwrap();
        let held = |table: &[(&str, Option<i64>)], trunk: &str| {
            let (name, until) = table.iter().find(|(name, _)| *name == trunk)?;
            Some(Held { until: until.map(at), why: (*name).to_owned() })
        };
        let first = |table: &[(&str, Option<i64>)]| {
            let chosen = group.first_free(|trunk| held(table, trunk));
            chosen.map(str::to_owned).map_err(|held| held.why)
        };
        assert_eq!(first(&[]), Ok("berlin".to_owned()));
        assert_eq!(first(&[("berlin", None), ("world", Some(5))]), Ok("bonn".to_owned()));
        assert_eq!(first(&[("berlin", None), ("bonn", Some(9)), ("world", Some(5))]), Err("world".to_owned()));
        assert_eq!(first(&[("berlin", None), ("bonn", None), ("world", None)]), Err("berlin".to_owned()));
    }

    #[test]
    fn calls_wait_by_the_trunks_that_may_dial_them_in_their_order() {
        let trunks = trunks();
        let group = |wanted: &Wanted<'_>| trunks.group(wanted).to_string();
        let failed = |trunk| to("+49228123", Some((trunk, Outcome::Auth)));
        assert_eq!(group(&failed("berlin")), "bonn,world,berlin");
        assert_eq!(group(&failed("world")), "berlin,bonn,world");
        assert_eq!(group(&Wanted { trunk: Some("gone"), dest: "1", last: None }), "gone");
        let known: Vec<String> = trunks.groups().iter().map(ToString::to_string).collect();
        let expected = ["berlin", "berlin,bonn,world", "bonn", "bonn,world,berlin", "world", "world,berlin,bonn"];
        assert_eq!(known, expected);
        let nowhere = Trunks::new(vec![trunk("a")], &[route("+49", &["a"])]).unwrap();
        let removed = Wanted { trunk: None, dest: "1", last: Some(("b", Outcome::Busy)) };
        assert_eq!(nowhere.group(&removed).as_str(), "b");
        assert_eq!(nowhere.group(&to("1", None)).as_str(), "-");
    }

    #[test]
    fn what_does_not_fit_together_is_told_all_at_once() {
        let routes = [route("+4", &["a", "c", "a"]), route("+4", &["b"]), route("", &[])];
        let misfits = Trunks::new(vec![trunk("a"), trunk("b"), trunk("a")], &routes).unwrap_err();
        let places: Vec<_> = misfits.iter().map(|misfit| misfit.place).collect();
        let expected = [
            Place::TrunkName(2),
            Place::RouteTrunk(0, 1),
            Place::RouteTrunk(0, 2),
            Place::Prefix(1),
            Place::RouteTrunks(2),
        ];
        assert_eq!(places, expected);
        assert!(misfits[1].message.contains("unknown trunk `c`; pass the name of one of `trunks`"), "{misfits:?}");
        assert_eq!(Trunks::new(Vec::new(), &[]).unwrap_err()[0].place, Place::Trunks);
    }

    #[test]
    fn a_difference_names_what_was_added_removed_resized_or_changed() {
        let before = trunks();
        assert!(before.difference(&before).is_empty());
        let resized = Trunk { max_active: 7, ..trunk("berlin") };
        let changed = Trunk { secret: "other".to_owned(), ..trunk("world") };
        let after = Trunks::new(vec![changed, resized, trunk("paris")], &[]).unwrap();
        let expected = Difference {
            added: vec!["paris".to_owned()],
            removed: vec!["bonn".to_owned()],
            resized: vec!["berlin: 3 to 7".to_owned()],
            changed: vec!["world".to_owned()],
            routes: true,
        };
        assert_eq!(before.difference(&after), expected);
    }

    proptest! {
        #[test]
        fn nothing_but_a_fault_of_the_trunk_leads_to_another(
            outcome in prop::sample::select(Outcome::ALL.to_vec()),
            tried in prop::sample::select(vec!["berlin", "bonn", "world"]),
            dest in "(sip:)?\\+?[0-9]{0,8}",
        ) {
            let trunks = trunks();
            let first = names(&trunks, &to(&dest, None));
            let wanted = to(&dest, Some((tried, outcome)));
            let mut again = names(&trunks, &wanted);
            if outcome.class() != OutcomeClass::Trunk {
                prop_assert_eq!(trunks.failover(&wanted), None);
                prop_assert_eq!(&again, &first);
            }
            let mut sorted = first;
            sorted.sort();
            again.sort();
            prop_assert_eq!(again, sorted, "the same trunks in any order");
        }

        #[test]
        fn any_destination_has_a_route_or_not_without_a_panic(dest in "\\PC{0,40}") {
            prop_assert!(trunks().candidates(&to(&dest, None)).is_ok());
        }
    }
}

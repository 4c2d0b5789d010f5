//! The index against a plain list of calls.

use jiff::Timestamp;
use proptest::prelude::*;

use super::*;

fn brief(name: &str, status: Status, queued: i64, batch: Option<&str>) -> Brief {
    let name = serde_json::from_value(name.into()).expect("a name is a text");
    let queued_at = Timestamp::from_millisecond(queued).expect("in range");
    let is_final = may_be_final(status);
    Brief {
        name,
        cluster: None,
        job: None,
        trunk: None,
        trunks: Vec::new(),
        is_final,
        status,
        queued_at,
        time: queued_at,
        not_before: None,
        due_at: None,
        batch: batch.map(str::to_owned),
        priority: Priority::default(),
        pod: None,
        heard: None,
    }
}

fn index() -> Index {
    Index::new(usize::MAX)
}

fn sequences(index: &Index, status: Option<Status>, batch: Option<&str>) -> Vec<u64> {
    index.page(status, batch, None, 100).into_iter().map(|(_, sequence)| sequence).collect()
}

#[test]
fn a_call_is_listed_once_newest_first_with_its_last_record() {
    let mut index = index();
    index.apply(&brief("a", Status::Queued, 1, None), 1);
    index.apply(&brief("b", Status::Queued, 2, Some("x")), 2);
    index.apply(&brief("a", Status::Pending, 1, None), 3);
    index.apply(&brief("a", Status::Queued, 1, None), 1);
    assert_eq!(sequences(&index, None, None), [2, 3]);
    assert_eq!(sequences(&index, Some(Status::Queued), None), [2]);
    assert_eq!(sequences(&index, Some(Status::Pending), None), [3]);
    assert_eq!(sequences(&index, None, Some("x")), [2]);
    assert_eq!(sequences(&index, Some(Status::Pending), Some("x")), Vec::<u64>::new());
    assert_eq!(sequences(&index, None, Some("y")), Vec::<u64>::new());
}

#[test]
fn pages_follow_one_another_without_gap_or_repetition() {
    let mut index = index();
    for number in 0..25_u64 {
        index.apply(&brief(&format!("call-{number}"), Status::Queued, (number / 3) as i64, None), number + 1);
    }
    let (mut seen, mut before) = (Vec::new(), None);
    loop {
        let page = index.page(None, None, before, 10);
        let Some((last, _)) = page.last() else { break };
        before = Key::from_cursor(&last.to_cursor());
        seen.extend(page.into_iter().map(|(_, sequence)| sequence));
    }
    seen.sort_unstable();
    assert_eq!(seen, (1..=25).collect::<Vec<_>>());
}

#[test]
fn text_that_is_not_a_cursor_is_refused() {
    for text in ["", "zz", "é", "0123456789ab", "0123456789ab0123456789abcdefg", "00000000000é000000000000000"] {
        assert_eq!(Key::from_cursor(text), None, "{text}");
    }
}

#[test]
fn a_call_that_ended_just_now_stays_however_long_ago_it_was_queued() {
    let mut index = index();
    let ended = |name: &str, second: i64| {
        let time = Timestamp::from_second(second).expect("in range");
        Brief { time, ..brief(name, Status::Succeeded, 1, Some("x")) }
    };
    index.apply(&ended("long ago", 99), 1);
    index.apply(&Brief { not_before: Timestamp::from_second(200).ok(), ..ended("early", 98) }, 2);
    index.apply(&ended("just now", 101), 3);
    index.apply(&brief("waits", Status::Queued, 1, None), 4);
    index.drop_finals_before(100);
    let mut left = sequences(&index, None, None);
    left.sort_unstable();
    assert_eq!(left, [2, 3, 4]);
}

#[test]
fn how_much_the_calls_of_a_batch_heard_is_counted_once_for_each() {
    let mut index = index();
    let ended = |name: &str, heard| Brief { heard, ..brief(name, Status::Succeeded, 1, Some("x")) };
    for (number, heard) in [Some(Heard::Full), Some(Heard::Full), Some(Heard::None), None].into_iter().enumerate() {
        index.apply(&ended(&format!("call-{number}"), heard), number as u64 + 1);
    }
    // Heard nothing, and is dialled again: the call has not ended.
    let again = Brief { is_final: false, heard: Some(Heard::None), ..brief("again", Status::Failed, 1, Some("x")) };
    index.apply(&again, 5);
    assert_eq!(index.heard_of_batch("x"), BTreeMap::from([(Heard::Full, 2), (Heard::None, 1)]));
    index.apply(&ended("call-2", Some(Heard::Part)), 6);
    assert_eq!(index.heard_of_batch("x"), BTreeMap::from([(Heard::Full, 2), (Heard::Part, 1)]));
    assert_eq!(index.heard_of_batch("y"), BTreeMap::new());
}

#[test]
fn a_call_is_begun_once_though_its_pod_is_chosen_after_its_claim() {
    let on = |trunk: &str, second, pod| Brief {
        trunk: Some(trunk.to_owned()),
        time: Timestamp::from_second(second).expect("in range"),
        pod,
        ..brief(&format!("{trunk}-{second}"), Status::Pending, second, None)
    };
    let mut index = index();
    for second in 0..100 {
        let sequence = u64::try_from(second).expect("positive") * 3;
        index.apply(&on("gated", second, None), sequence + 1);
        index.apply(&on("gated", second, Some(serde::de::IgnoredAny)), sequence + 2);
        index.apply(&on("bare", second, None), sequence + 3);
    }
    let now = Timestamp::from_second(100).expect("in range");
    assert!(index.rate_on("bare", now).is_some());
    assert_eq!(index.rate_on("gated", now), index.rate_on("bare", now));
}

#[test]
fn a_batch_that_has_no_calls_any_more_leaves_nothing_behind() {
    let mut index = index();
    for number in 0..100 {
        index.apply(&brief("a", Status::Queued, 1, Some(&format!("batch-{number}"))), number + 1);
    }
    assert_eq!((index.batches.len(), index.by_batch.len()), (1, 1));
}

#[test]
fn beyond_its_bound_the_oldest_call_that_has_ended_goes_first() {
    let mut index = Index::new(3);
    index.apply(&brief("old", Status::Queued, 1, None), 1);
    index.apply(&brief("ended-2", Status::Succeeded, 2, Some("x")), 2);
    index.apply(&brief("ended-3", Status::Failed, 3, None), 3);
    index.apply(&brief("ended-4", Status::Expired, 4, None), 4);
    assert_eq!(sequences(&index, None, None), [4, 3, 1]);
    index.apply(&brief("new", Status::Queued, 5, None), 5);
    index.apply(&brief("newer", Status::Queued, 6, None), 6);
    assert_eq!(sequences(&index, None, None), [6, 5, 1]);
    assert!(!index.has_dropped_active() && index.batches.is_empty());
    index.apply(&brief("newest", Status::Queued, 7, None), 7);
    assert_eq!(sequences(&index, None, None), [7, 6, 5]);
    assert!(index.has_dropped_active());
}

#[test]
fn a_failed_call_with_a_redial_to_come_counts_as_one_that_has_not_ended() {
    let mut index = Index::new(1);
    index.apply(&Brief { is_final: false, ..brief("redialled", Status::Failed, 1, None) }, 1);
    index.apply(&brief("ended", Status::Succeeded, 2, None), 2);
    assert_eq!(sequences(&index, None, None), [1]);
}

#[test]
fn a_call_that_was_dropped_is_listed_again_once_something_happens_to_it() {
    let mut index = Index::new(2);
    for (number, name) in (1..).zip(["a", "b", "c"]) {
        index.apply(&brief(name, Status::Queued, number as i64, Some("x")), number);
    }
    index.apply(&brief("b", Status::Succeeded, 2, Some("x")), 4);
    index.apply(&brief("a", Status::Cancelled, 1, Some("x")), 5);
    assert_eq!(sequences(&index, None, Some("x")), [3, 4]);
    index.apply(&brief("a", Status::Queued, 9, Some("x")), 6);
    assert_eq!(sequences(&index, None, Some("x")), [6, 3]);
}

/// What happens to an index.
#[derive(Debug, Clone)]
enum Event {
    Take { call: u8, status: Status, batch: Option<u8>, sequence: u64 },
    Forget { call: u8, sequence: u64 },
    Sweep { oldest: i64 },
}

fn event() -> impl Strategy<Value = Event> {
    let status = prop::sample::select(Status::ALL.to_vec());
    prop_oneof![
        8 => (0..12_u8, status, prop::option::of(0..3_u8), 1..200_u64)
            .prop_map(|(call, status, batch, sequence)| Event::Take { call, status, batch, sequence }),
        1 => (0..12_u8, 1..200_u64).prop_map(|(call, sequence)| Event::Forget { call, sequence }),
        1 => (0..220_i64).prop_map(|oldest| Event::Sweep { oldest }),
    ]
}

/// A call is queued at its number (in seconds, two calls at a time), and a record is made at its sequence.
fn brief_of(call: u8, status: Status, batch: Option<u8>, sequence: u64) -> Brief {
    let queued = i64::from(call / 2) * 1000;
    let time = Timestamp::from_second(sequence as i64).expect("in range");
    Brief { time, ..brief(&format!("call-{call}"), status, queued, batch.map(|b| format!("b{b}")).as_deref()) }
}

type Model = std::collections::BTreeMap<u8, (u64, Status, Option<u8>)>;

fn take(model: &mut Model, event: &Event) {
    match *event {
        Event::Take { call, status, batch, sequence } => {
            let known = model.get(&call).map_or(0, |known| known.0);
            if sequence > known {
                model.insert(call, (sequence, status, batch));
            }
        }
        Event::Forget { call, sequence } => {
            model.retain(|known, (last, ..)| *known != call || *last != sequence);
        }
        Event::Sweep { oldest } => model.retain(|call, (sequence, status, _)| {
            let is_final = status.always_final() || *status == Status::Failed;
            !is_final || *sequence as i64 >= oldest || i64::from(call / 2) >= oldest
        }),
    }
}

proptest! {
    #[test]
    fn an_index_answers_as_a_plain_list_of_calls_would(
        events in prop::collection::vec(event(), 0..120),
        status in prop::option::of(prop::sample::select(Status::ALL.to_vec())),
        batch in prop::option::of(0..3_u8),
    ) {
        let (mut index, mut model) = (Index::new(usize::MAX), Model::new());
        for event in &events {
            take(&mut model, event);
            match *event {
                Event::Take { call, status, batch, sequence } => {
                    index.apply(&brief_of(call, status, batch, sequence), sequence);
                }
                Event::Forget { call, sequence } => {
                    let name = format!("call-{call}");
                    index.forget_at(Key { queued: u64::from(call / 2) * 1000, call: hash(&name) }, sequence);
                }
                Event::Sweep { oldest } => index.drop_finals_before(oldest),
            }
        }
        let wanted = |(_, s, b): &&(u64, Status, Option<u8>)| {
            status.is_none_or(|status| *s == status) && batch.is_none_or(|batch| *b == Some(batch))
        };
        let mut expected: Vec<u64> = model.values().filter(wanted).map(|known| known.0).collect();
        let page = index.page(status, batch.map(|b| format!("b{b}")).as_deref(), None, 100);
        prop_assert!(page.windows(2).all(|pair| pair[0].0 > pair[1].0), "newest first");
        let mut listed: Vec<u64> = page.into_iter().map(|(_, sequence)| sequence).collect();
        listed.sort_unstable();
        expected.sort_unstable();
        prop_assert_eq!(listed, expected);
        for status in Status::ALL {
            let count = model.values().filter(|known| known.1 == status).count();
            prop_assert_eq!(index.count_of(status), count);
        }
        prop_assert_eq!(index.count(), model.len());
    }

    #[test]
    fn a_bounded_index_holds_its_bound_and_no_call_that_has_ended_while_one_that_has_not_is_missing(
        events in prop::collection::vec(event(), 0..120),
        max in 1..8_usize,
    ) {
        let (mut all, mut bounded) = (Index::new(usize::MAX), Index::new(max));
        for event in events {
            let Event::Take { call, status, batch, sequence } = event else { continue };
            for index in [&mut all, &mut bounded] {
                index.apply(&brief_of(call, status, batch, sequence), sequence);
            }
            prop_assert!(bounded.count() <= max);
            let entries = |index: &Index| index.calls.values().copied().collect::<Vec<_>>();
            for entry in entries(&bounded) {
                let known = all.calls[&entry.key.call];
                prop_assert!(known.sequence >= entry.sequence);
            }
            if !bounded.has_dropped_active() {
                let active = |entry: &&Entry| !entry.is_final;
                for entry in entries(&all).iter().filter(active) {
                    prop_assert_eq!(bounded.calls.get(&entry.key.call).map(|known| known.sequence), Some(entry.sequence));
                }
            }
            let total: usize = Status::ALL.into_iter().map(|status| bounded.count_of(status)).sum();
            prop_assert_eq!(total, bounded.count());
        }
    }
}

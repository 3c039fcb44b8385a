//! What every backend must do, as tests that are run against each of them.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::{Batch, Column, Durability, KeyValue, Operation};
use crate::StateError;

/// Runs all of them against a store that holds nothing in `turns`, `chunks` and `entries`.
pub(crate) fn conforms(store: &dyn KeyValue) {
    values_are_found_in_the_order_asked(store);
    scans_are_ordered_and_stop(store);
    prefixes_are_deleted_in_order(store);
    agrees_with_a_plain_map(store);
}

fn contents(store: &dyn KeyValue, column: Column, prefix: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut found = Vec::new();
    store
        .scan(column, prefix, &mut |key, value| {
            found.push((key.to_vec(), value.to_vec()));
            Ok(ControlFlow::Continue(()))
        })
        .expect("scans");
    found
}

fn keys(store: &dyn KeyValue, column: Column, prefix: &[u8]) -> Vec<Vec<u8>> {
    contents(store, column, prefix).into_iter().map(|(key, _)| key).collect()
}

fn write(store: &dyn KeyValue, build: impl FnOnce(&mut Batch)) {
    let mut batch = Batch::new();
    build(&mut batch);
    store.write(batch, Durability::Buffered).expect("writes");
}

fn clear(store: &dyn KeyValue) {
    write(store, |batch| {
        for column in [Column::Turns, Column::Chunks, Column::Entries] {
            batch.delete_prefix(column, "");
        }
    });
}

fn values_are_found_in_the_order_asked(store: &dyn KeyValue) {
    write(store, |batch| {
        batch.put(Column::Turns, "b", "2");
        batch.put(Column::Turns, "a", "1");
        batch.put(Column::Chunks, "a", "other column");
        batch.put(Column::Turns, "empty", "");
    });
    let asked = ["b", "missing", "a", "b", "empty"].map(|key| key.as_bytes().to_vec());
    let found = store.multi_get(Column::Turns, &asked).expect("reads");
    let expected = [Some("2"), None, Some("1"), Some("2"), Some("")];
    assert_eq!(found, expected.map(|value| value.map(|text| text.as_bytes().to_vec())));
    assert_eq!(store.multi_get(Column::Turns, &[]).expect("reads"), Vec::<Option<Vec<u8>>>::new());
    clear(store);
}

fn scans_are_ordered_and_stop(store: &dyn KeyValue) {
    write(store, |batch| {
        for key in [&b"a\0z"[..], b"a\0\xff\xff", b"a\x01", b"b", b"a\0", b"\xff\xff"] {
            batch.put(Column::Chunks, key, "");
        }
    });
    assert_eq!(keys(store, Column::Chunks, b"a\0"), [&b"a\0"[..], b"a\0z", b"a\0\xff\xff"]);
    let check = |prefix: &[u8], start: &[u8], expected: &[&[u8]]| {
        let mut found = Vec::new();
        let collect = &mut |key: &[u8], _: &[u8]| {
            found.push(key.to_vec());
            Ok(ControlFlow::Continue(()))
        };
        store.scan_from(Column::Chunks, prefix, start, collect).expect("scans");
        assert_eq!(found, expected, "prefix {prefix:?} from {start:?}");
    };
    check(b"a\0", b"a\0z", &[b"a\0z", b"a\0\xff\xff"]);
    check(b"a\0", b"a\0y", &[b"a\0z", b"a\0\xff\xff"]);
    check(b"a\0", b"", &[b"a\0", b"a\0z", b"a\0\xff\xff"]);
    check(b"a\0", b"a\x01", &[]);
    check(b"a\0", b"c", &[]);
    check(b"", b"b", &[b"b", b"\xff\xff"]);
    assert_eq!(keys(store, Column::Chunks, b"").len(), 6);
    assert_eq!(keys(store, Column::Chunks, b"\xff"), [b"\xff\xff"]);
    assert_eq!(store.last_key(Column::Chunks).expect("reads").as_deref(), Some(&b"\xff\xff"[..]));
    assert_eq!(store.last_key(Column::Turns).expect("reads"), None);

    let mut seen = 0;
    let stop = &mut |_: &[u8], _: &[u8]| {
        seen += 1;
        Ok(if seen == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    };
    store.scan(Column::Chunks, b"", stop).expect("scans");
    assert_eq!(seen, 2, "a scan stops when asked to");

    let fail = &mut |_: &[u8], _: &[u8]| Err(StateError::NonFinite);
    let error = store.scan(Column::Chunks, b"", fail).expect_err("fails");
    assert!(matches!(error, StateError::NonFinite));
    clear(store);
}

fn prefixes_are_deleted_in_order(store: &dyn KeyValue) {
    write(store, |batch| {
        for key in ["a\0" as &str, "a\x001", "a\x002", "a\x01", "b"] {
            batch.put(Column::Chunks, key, "old");
        }
        batch.put(Column::Turns, "a\x001", "other column");
    });
    write(store, |batch| {
        batch.put(Column::Chunks, "a\x003", "put before the deletion");
        batch.delete_prefix(Column::Chunks, "a\0");
        batch.put(Column::Chunks, "a\x002", "new");
    });
    assert_eq!(keys(store, Column::Chunks, b""), [&b"a\x002"[..], b"a\x01", b"b"]);
    assert_eq!(contents(store, Column::Chunks, b"a\0"), [(b"a\x002".to_vec(), b"new".to_vec())]);
    assert_eq!(keys(store, Column::Turns, b""), [b"a\x001"]);
    clear(store);
    assert_eq!(keys(store, Column::Chunks, b""), Vec::<Vec<u8>>::new());
}

type Model = BTreeMap<(Column, Vec<u8>), Vec<u8>>;

fn apply(model: &mut Model, operation: Operation) {
    match operation {
        Operation::Put { column, key, value } => {
            model.insert((column, key), value);
        }
        Operation::Delete { column, key } => {
            model.remove(&(column, key));
        }
        Operation::DeletePrefix { column, prefix } => {
            model.retain(|(at, key), _| *at != column || !key.starts_with(&prefix));
        }
    }
}

fn operations() -> impl Strategy<Value = Operation> {
    let column = prop_oneof![Just(Column::Turns), Just(Column::Entries)];
    // Few different bytes, so that keys meet and are prefixes of each other.
    let byte = prop_oneof![Just(0_u8), Just(1), Just(b'a'), Just(u8::MAX)];
    let key = proptest::collection::vec(byte, 1..5);
    (0..8, column, key, any::<u8>()).prop_map(|(kind, column, key, value)| match kind {
        0..5 => Operation::Put { column, key, value: vec![value] },
        5..7 => Operation::Delete { column, key },
        _ => Operation::DeletePrefix { column, prefix: key },
    })
}

fn agrees_with_a_plain_map(store: &dyn KeyValue) {
    let batches = proptest::collection::vec(proptest::collection::vec(operations(), 0..8), 1..12);
    let config = Config { cases: 64, failure_persistence: None, ..Config::default() };
    let agreed = TestRunner::new(config).run(&batches, |batches| {
        clear(store);
        let mut model = Model::new();
        for operations in batches {
            let mut batch = Batch::new();
            for operation in operations {
                apply(&mut model, operation.clone());
                match operation {
                    Operation::Put { column, key, value } => batch.put(column, key, value),
                    Operation::Delete { column, key } => batch.delete(column, key),
                    Operation::DeletePrefix { column, prefix } => batch.delete_prefix(column, prefix),
                }
            }
            store.write(batch, Durability::Buffered).expect("writes");
            for column in [Column::Turns, Column::Entries] {
                let of_column = model.iter().filter(|((at, _), _)| *at == column);
                let expected: Vec<_> = of_column.map(|((_, key), value)| (key.clone(), value.clone())).collect();
                prop_assert_eq!(contents(store, column, b""), expected);
            }
        }
        Ok(())
    });
    agreed.unwrap_or_else(|failure| panic!("the store and a plain map differ: {failure}"));
    clear(store);
}

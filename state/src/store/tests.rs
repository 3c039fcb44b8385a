//! Tests of the typed store, each on both backends.

use std::collections::{HashMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;

use super::*;
use crate::fixtures::{answer, article, chunk, entry, id, record, turn_key};
use crate::{Answer, ArticleId, ChunkId, ConversationId, EntryHistory, EntryId, TenantId, TurnId};

fn on_both_backends(test: impl Fn(&Store)) {
    test(&Store::memory());
    let folder = tempfile::tempdir().expect("folder");
    test(&Store::open(folder.path()).expect("opens"));
}

fn write(store: &Store, build: impl FnOnce(&mut StoreBatch)) {
    let mut batch = StoreBatch::new();
    build(&mut batch);
    store.write(batch, Durability::Synced).expect("writes");
}

#[test]
fn a_turn_is_found_with_its_conversation() {
    on_both_backends(|store| {
        let (tenant, conversation) = (id::<TenantId>("shop"), id::<ConversationId>("c1"));
        assert_eq!(store.conversation(&tenant, &conversation).expect("reads"), None);
        assert_eq!(store.turn(&turn_key("shop", "c1", "t1")).expect("reads"), None);
        let mut state = Conversation::default();
        state.record(id("t1"));
        let kept = record("shop", "c1", "t1");
        write(store, |batch| batch.put_turn(&kept, &state).expect("encodes"));
        assert_eq!(store.turn(&kept.turn.key()).expect("reads"), Some(kept));
        assert_eq!(store.conversation(&tenant, &conversation).expect("reads"), Some(state));
        // The id of one conversation may begin with another's.
        assert_eq!(store.conversation(&tenant, &id("c")).expect("reads"), None);
        assert_eq!(store.turn(&turn_key("other", "c1", "t1")).expect("reads"), None);
    });
}

#[test]
fn history_is_the_last_turns_in_the_order_of_their_answers() {
    on_both_backends(|store| {
        let (tenant, conversation) = (id::<TenantId>("shop"), id::<ConversationId>("c1"));
        let mut state = Conversation::default();
        let turns = RECENT_TURNS_MAX + 10;
        // Descending names: the order must come from the answers, not from the keys.
        let name = |number: usize| format!("t{:03}", 999 - number);
        for number in 0..turns {
            state.record(id(&name(number)));
            write(store, |batch| batch.put_turn(&record("shop", "c1", &name(number)), &state).expect("encodes"));
        }
        let check = |turns_max: usize, expected: std::ops::Range<usize>| {
            let history = store.history(&tenant, &conversation, turns_max).expect("reads");
            let found: Vec<_> = history.iter().map(|record| record.turn.id.as_str().to_owned()).collect();
            assert_eq!(found, expected.map(name).collect::<Vec<_>>(), "{turns_max} turns");
        };
        check(0, 0..0);
        check(1, turns - 1..turns);
        check(5, turns - 5..turns);
        check(usize::MAX, turns - RECENT_TURNS_MAX..turns);
        assert_eq!(store.history(&tenant, &id("new"), 5).expect("reads"), []);
        assert_eq!(state.turns_answered, turns as u64);
    });
}

#[test]
fn a_conversation_is_bounded() {
    let mut conversation = Conversation::default();
    for number in 0..1_000 {
        conversation.record(id::<TurnId>(&format!("t{number}")));
    }
    let expected: VecDeque<_> = (1_000 - RECENT_TURNS_MAX..1_000).map(|number| id(&format!("t{number}"))).collect();
    assert_eq!(conversation, Conversation { turns_answered: 1_000, recent: expected, size: None });
}

fn all_chunks(store: &Store) -> Vec<(ChunkId, u64)> {
    let mut found = Vec::new();
    let collect = &mut |chunk: crate::Chunk| {
        found.push((chunk.id, chunk.version));
        ControlFlow::Continue(())
    };
    store.chunks(collect).expect("scans");
    found
}

#[test]
fn an_article_replaces_all_its_older_chunks() {
    on_both_backends(|store| {
        let tenant = id::<TenantId>("shop");
        let chunks = |version: u64, count: u32| -> Vec<_> {
            (0..count).map(|ordinal| chunk("shop", "a", ordinal, version, "text", &[1.0, 0.0])).collect()
        };
        let neighbour = chunk("shop", "ab", 0, 1, "text", &[1.0, 0.0]);
        write(store, |batch| {
            batch.put_article(&tenant, &article("a", 1), &chunks(1, 300)).expect("encodes");
            batch.put_article(&tenant, &article("ab", 1), std::slice::from_ref(&neighbour)).expect("encodes");
        });
        assert_eq!(store.article_chunks(&tenant, &id("a")).expect("reads"), chunks(1, 300), "in order of ordinals");
        write(store, |batch| batch.put_article(&tenant, &article("a", 2), &chunks(2, 2)).expect("encodes"));
        assert_eq!(store.article(&tenant, &id("a")).expect("reads"), Some(article("a", 2)));
        let [first, second] = [0, 1].map(|ordinal| ChunkId { tenant: tenant.clone(), article: id("a"), ordinal });
        let missing = ChunkId { ordinal: 2, ..first.clone() };
        assert_eq!(all_chunks(store), [(first.clone(), 2), (second.clone(), 2), (neighbour.id.clone(), 1)]);
        let found = store.chunks_of(&[second, missing.clone(), first]).expect("reads");
        let versions: Vec<_> = found.into_iter().map(|chunk| chunk.map(|chunk| chunk.id.ordinal)).collect();
        assert_eq!(versions, [Some(1), None, Some(0)]);
        assert_eq!(store.chunk(&missing).expect("reads"), None);
        assert_eq!(store.count_articles().expect("reads"), 2);
        write(store, |batch| batch.delete_article(&tenant, &id("a"), 3));
        assert_eq!(store.article(&tenant, &id("a")).expect("reads"), None);
        assert_eq!(all_chunks(store), [(neighbour.id.clone(), 1)]);
    });
}

#[test]
fn a_deleted_article_leaves_its_version_only() {
    on_both_backends(|store| {
        let tenant = id::<TenantId>("shop");
        let version = |name: &str| store.article_version(&tenant, &id(name)).expect("reads");
        write(store, |batch| {
            batch.put_article(&tenant, &article("a", 4), &[]).expect("encodes");
            batch.put_article(&tenant, &article("b", 2), &[]).expect("encodes");
        });
        assert_eq!(["a", "b", "c"].map(version), [4, 2, 0]);
        write(store, |batch| batch.delete_article(&tenant, &id("a"), 5));
        assert_eq!(["a", "b", "c"].map(version), [5, 2, 0]);
        assert_eq!(store.article(&tenant, &id("a")).expect("reads"), None);
        assert_eq!(store.articles_after(&tenant, None, 9).expect("reads"), [article("b", 2)]);
        assert_eq!(store.count_articles().expect("counts"), 1);
        write(store, |batch| batch.put_article(&tenant, &article("a", 6), &[]).expect("encodes"));
        assert_eq!(store.article(&tenant, &id("a")).expect("reads"), Some(article("a", 6)));
        assert_eq!(version("a"), 6);
        assert_eq!(store.article_version(&id("other"), &id("a")).expect("reads"), 0);
    });
}

#[test]
fn articles_are_read_page_by_page() {
    on_both_backends(|store| {
        let names = ["a", "a ", "a!", "aa", "b", "é"];
        write(store, |batch| {
            for name in names.iter().rev() {
                batch.put_article(&id("shop"), &article(name, 1), &[]).expect("encodes");
            }
            batch.put_article(&id("sho"), &article("z", 1), &[]).expect("encodes");
            batch.put_article(&id("shop2"), &article("a", 1), &[]).expect("encodes");
        });
        let check = |after: Option<&str>, limit: usize, expected: &[&str]| {
            let after = after.map(id::<ArticleId>);
            let page = store.articles_after(&id("shop"), after.as_ref(), limit).expect("reads");
            let found: Vec<_> = page.iter().map(|article| article.id.as_str()).collect();
            assert_eq!(found, expected, "{limit} after {after:?}");
        };
        check(None, 2, &names[..2]);
        check(None, usize::MAX, &names);
        check(None, 0, &[]);
        check(Some("a"), 3, &names[1..4]);
        check(Some("a "), 3, &names[2..5]);
        check(Some("ab"), 3, &names[4..]);
        check(Some("0"), 1, &names[..1]);
        check(Some("é"), 3, &[]);
        check(Some("éé"), 3, &[]);
    });
}

#[test]
fn epochs_are_kept() {
    on_both_backends(|store| {
        let epochs = || (store.knowledge_epoch().expect("reads"), store.validated_epoch().expect("reads"));
        assert_eq!(epochs(), (0, 0));
        write(store, |batch| {
            batch.put_knowledge_epoch(300);
            batch.put_validated_epoch(299);
        });
        assert_eq!(epochs(), (300, 299));
        write(store, |batch| batch.put_validated_epoch(300));
        assert_eq!(epochs(), (300, 300));
    });
}

#[test]
fn articles_of_other_tenants_are_not_shown() {
    on_both_backends(|store| {
        write(store, |batch| {
            for (tenant, name) in [("a", "2"), ("a", "1"), ("ab", "3"), ("b", "4")] {
                batch.put_article(&id(tenant), &article(name, 1), &[]).expect("encodes");
            }
        });
        let mut found = Vec::<ArticleId>::new();
        let collect = &mut |article: crate::Article| {
            found.push(article.id);
            ControlFlow::Continue(())
        };
        store.articles(&id("a"), collect).expect("scans");
        assert_eq!(found, [id("1"), id("2")]);
    });
}

#[test]
fn a_foreign_chunk_is_refused() {
    let check = |tenant: &str, of: &str| {
        let foreign = chunk(tenant, of, 3, 1, "text", &[1.0]);
        let error = StoreBatch::new().put_article(&id("shop"), &article("a", 1), &[foreign]).expect_err("refused");
        assert_eq!(error.to_string(), format!("chunk {tenant}/{of}/3 does not belong to article shop/a"));
    };
    check("shop", "b");
    check("other", "a");
}

fn all_entries(store: &Store) -> Vec<EntryId> {
    let mut found = Vec::new();
    let collect = &mut |entry: crate::CacheEntry| {
        found.push(entry.id);
        ControlFlow::Continue(())
    };
    store.entries(collect).expect("scans");
    found
}

#[test]
fn entry_ids_are_never_reserved_twice() {
    on_both_backends(|store| {
        assert_eq!(store.reserve_entry_ids(10).expect("reserves"), EntryId(0));
        assert_eq!(store.reserve_entry_ids(5).expect("reserves"), EntryId(10));
        write(store, |batch| batch.put_entry(&entry(EntryId(40), "shop", &[1.0])).expect("encodes"));
        assert_eq!(store.reserve_entry_ids(5).expect("reserves"), EntryId(40), "an entry outside is not met again");
        write(store, |batch| batch.delete_entry(EntryId(40)));
        assert_eq!(store.reserve_entry_ids(5).expect("reserves"), EntryId(45), "nor after it is gone");
    });
}

#[test]
fn entries_come_back_whole_and_by_ascending_id() {
    on_both_backends(|store| {
        assert_eq!(store.max_entry_id().expect("reads"), None);
        // More than one read takes, and ids whose bytes sort only when they are big-endian.
        let ids: Vec<_> = (0..600).map(|number| EntryId(number * 7)).collect();
        write(store, |batch| {
            for id in ids.iter().rev() {
                batch.put_entry(&entry(*id, "shop", &[1.0, 0.0])).expect("encodes");
            }
        });
        assert_eq!(all_entries(store), ids);
        assert_eq!(store.max_entry_id().expect("reads"), ids.last().copied());
        assert_eq!(store.entry(ids[3]).expect("reads"), Some(entry(ids[3], "shop", &[1.0, 0.0])));
        write(store, |batch| batch.delete_entry(ids[3]));
        assert_eq!(store.entry(ids[3]).expect("reads"), None);
        assert_eq!(all_entries(store).len(), ids.len() - 1);

        let mut seen = 0;
        let stop = &mut |_| {
            seen += 1;
            if seen == 300 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        store.entries(stop).expect("scans");
        assert_eq!(seen, 300, "stops when asked to");
    });
}

#[test]
fn an_entry_without_a_vector_stays_without() {
    on_both_backends(|store| {
        let bare = crate::CacheEntry { vector: None, ..entry(EntryId(1), "shop", &[]) };
        write(store, |batch| batch.put_entry(&bare).expect("encodes"));
        assert_eq!(store.entry(EntryId(1)).expect("reads"), Some(bare.clone()));
        assert_eq!(bare.answer, answer());
    });
}

#[test]
fn what_has_become_of_an_entry_goes_with_it() {
    on_both_backends(|store| {
        let history = |served| EntryHistory { served, tried: 2, agreed: 1 };
        write(store, |batch| {
            batch.put_key_value("historic", vec![1]);
            for (number, served) in [(7, 1), (300, 2), (7, 3)] {
                batch.put_history(EntryId(number), history(served)).expect("encodes");
            }
        });
        let kept = [(EntryId(7), history(3)), (EntryId(300), history(2))];
        assert_eq!(store.histories().expect("reads"), HashMap::from(kept));
        write(store, |batch| batch.delete_entry(EntryId(300)));
        assert_eq!(store.histories().expect("reads"), HashMap::from([kept[0]]));
    });
}

#[test]
fn entries_are_listed_by_tenant() {
    on_both_backends(|store| {
        write(store, |batch| {
            for (number, tenant) in ["a", "b", "a", "ab"].iter().enumerate() {
                batch.put_entry(&entry(EntryId(number as u64), tenant, &[1.0])).expect("encodes");
            }
        });
        assert_eq!(store.entry_ids(Some(&id("a"))).expect("reads"), [EntryId(0), EntryId(2)]);
        assert_eq!(store.entry_ids(None).expect("reads"), [0, 1, 2, 3].map(EntryId));
    });
}

#[test]
fn named_values_are_kept() {
    on_both_backends(|store| {
        write(store, |batch| {
            batch.put_key_value("b", vec![2]);
            batch.put_key_value("a", vec![1]);
        });
        assert_eq!(store.key_value("a").expect("reads"), Some(vec![1]));
        let mut names = Vec::new();
        let collect = &mut |name: &str, _: &[u8]| {
            names.push(name.to_owned());
            ControlFlow::Continue(())
        };
        store.key_values(collect).expect("scans");
        assert_eq!(names, ["a", "b"]);
        write(store, |batch| batch.delete_key_value("a"));
        assert_eq!(store.key_value("a").expect("reads"), None);
    });
}

#[test]
fn a_damaged_value_names_its_place() {
    on_both_backends(|store| {
        let mut batch = Batch::new();
        batch.put(Column::Turns, b"shop\0c\0t".to_vec(), vec![0xff; 3]);
        batch.put(Column::Entries, b"short".to_vec(), vec![0]);
        store.backend().write(batch, Durability::Synced).expect("writes");
        let error = store.turn(&turn_key("shop", "c", "t")).expect_err("damaged");
        assert_eq!(error.to_string(), "cannot decode a value of column turns, key shop\\x00c\\x00t");
        let mut batch = Batch::new();
        batch.put(Column::Meta, b"validated-epoch".to_vec(), vec![0; 7]);
        store.backend().write(batch, Durability::Synced).expect("writes");
        let error = store.validated_epoch().expect_err("damaged");
        assert_eq!(error.to_string(), "cannot decode a value of column meta, key validated-epoch");
        let error = store.entry_ids(None).expect_err("damaged");
        assert_eq!(error.to_string(), "cannot decode a value of column entries, key short");
    });
}

#[test]
fn a_store_keeps_to_its_encoder() {
    on_both_backends(|store| {
        assert!(!store.check_encoder("one").expect("reads"), "to none yet");
        store.bind_encoder("one").expect("new");
        assert!(store.check_encoder("one").expect("reads"));
        store.bind_encoder("one").expect("the same");
        let error = store.bind_encoder("two").expect_err("another");
        assert_eq!(error.to_string(), "the database holds vectors of one, not of two");
    });
}

#[test]
fn what_was_written_before_answers_could_be_cut_off_is_read() {
    on_both_backends(|store| {
        let mut record = record("shop", "c", "t");
        let mut entry = entry(EntryId(7), "a", &[1.0]);
        record.completion.cut_off = true;
        entry.answer = Arc::new(Answer { cut_off: true, ..(*entry.answer).clone() });
        write(store, |batch| {
            batch.put_turn(&record, &Conversation::default()).expect("encodes");
            batch.put_entry(&entry).expect("encodes");
        });
        assert_eq!(store.turn(&record.turn.key()).expect("reads"), Some(record.clone()));
        assert_eq!(store.entry(entry.id).expect("reads"), Some(entry.clone()));
        let shortened = |column, key: Vec<u8>| {
            let mut value =
                store.backend().multi_get(column, std::slice::from_ref(&key)).expect("reads").remove(0).expect("there");
            assert_eq!(value.pop(), Some(1), "the flag is the last byte");
            let mut batch = Batch::new();
            batch.put(column, key, value);
            store.backend().write(batch, Durability::Synced).expect("writes");
        };
        shortened(Column::Turns, b"shop\0c\0t".to_vec());
        shortened(Column::Responses, entry.id.0.to_be_bytes().to_vec());
        record.completion.cut_off = false;
        entry.answer = Arc::new(Answer { cut_off: false, ..(*entry.answer).clone() });
        assert_eq!(store.turn(&record.turn.key()).expect("reads"), Some(record));
        assert_eq!(store.entry(entry.id).expect("reads"), Some(entry));
    });
}

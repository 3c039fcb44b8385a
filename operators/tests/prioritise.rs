//! The queue in front of an engine: in which order turns leave, and who finds no place.

#![expect(clippy::expect_used, reason = "a test may fail loudly")]

mod support;

use proptest::prelude::*;
use support::{QUEUE, ask};
use turnflow_models::Lane;
use turnflow_operators::message::{Ask, Purpose, RequestId};
use turnflow_operators::prioritise::{Class, Order, Queue, QueueLimits, tokens};
use turnflow_state::{Channel, TenantId};

/// A turn of a tenant that came at a time, in milliseconds.
fn came(number: u64, tenant: &str, class: Class, at_ms: u64) -> Box<Ask> {
    let mut ask = ask(number, &format!("c{number}"), "1", "Where is my parcel?");
    ask.turn.tenant = TenantId::new(tenant).expect("an id");
    ask.entered_us = at_ms * 1_000;
    match class {
        Class::Ongoing => ask.turns_before = 1,
        Class::Promised => ask.promised = true,
        Class::New => {}
    }
    ask
}

fn queue(limits: QueueLimits, asks: impl IntoIterator<Item = Box<Ask>>) -> Queue {
    let mut queue = Queue::new(limits);
    for ask in asks {
        assert!(queue.push(ask).is_empty(), "there is room");
    }
    queue
}

/// Takes everything out at a time, in milliseconds; gives the numbers of the turns.
fn drained(queue: &mut Queue, now_ms: u64) -> Vec<u64> {
    std::iter::from_fn(|| queue.pop(now_ms * 1_000)).map(|(_, ask)| ask.request.number).collect()
}

#[test]
fn classes_leave_in_order_and_then_the_background() {
    let background = Box::new(Ask { purpose: Purpose::Refresh, ..*came(9, "a", Class::New, 0) });
    let turns = [(1, Class::New), (2, Class::Promised), (3, Class::Ongoing), (4, Class::New), (5, Class::Ongoing)];
    let mut queue = queue(QUEUE, turns.map(|(number, class)| came(number, "a", class, number)));
    assert!(queue.push(background).is_empty());
    assert!(queue.pop_background().is_none(), "turns wait");
    let left: Vec<_> = std::iter::from_fn(|| queue.pop(0)).map(|(lane, ask)| (lane, ask.request.number)).collect();
    let ongoing = [3, 5, 2].map(|number| (Lane::Ongoing, number));
    assert_eq!(left, [&ongoing[..], &[(Lane::New, 1), (Lane::New, 4)]].concat());
    assert_eq!(queue.pop_background().expect("nobody else waits").request.number, 9);
    assert!(queue.is_empty());
}

#[test]
fn a_channel_with_weight_is_due_sooner_and_a_deadline_counts() {
    let on = |number: u64, channel: Channel, at_ms: u64| {
        let mut ask = came(number, "a", Class::New, at_ms);
        ask.turn.channel = channel;
        ask
    };
    // Due after 1,000 ms, 500 and 250: at 1,000, 950 and 900.
    let turns = [on(1, Channel::Email, 0), on(2, Channel::Web, 450), on(3, Channel::Voice, 650)];
    let late = Box::new(Ask { deadline_us: Some(920_000), ..*on(4, Channel::Email, 700) });
    assert_eq!(drained(&mut queue(QUEUE, turns.into_iter().chain([late])), 0), [3, 4, 2, 1]);
}

#[test]
fn a_tenant_with_a_hundred_times_as_many_turns_does_not_push_out_others() {
    let many = (0..1_000).map(|number| came(number, "many", Class::New, number));
    let few = (0..10).map(|number| came(10_000 + number, "few", Class::New, 1_000 + number));
    let mut queue = queue(QueueLimits { turns_max: 2_000, ..QUEUE }, many.chain(few));
    let order = drained(&mut queue, 0);
    let last = order.iter().rposition(|number| *number >= 10_000).expect("it has turns");
    assert!(last <= 20, "all of the small tenant's turns are among the first, not at {last}");
}

#[test]
fn long_turns_use_up_a_share_sooner() {
    let long = |number: u64| {
        let mut ask = came(number, "long", Class::New, number);
        ask.turn.text = "word ".repeat(800);
        ask
    };
    let asks = (0..200).flat_map(|number| [long(number), came(1_000 + number, "short", Class::New, number)]);
    let mut queue = queue(QUEUE, asks);
    let mut sums = [0, 0];
    for (_, ask) in std::iter::from_fn(|| queue.pop(0)).take(100) {
        sums[usize::from(ask.request.number >= 1_000)] += tokens(&ask);
    }
    let largest = tokens(&long(0));
    assert!(sums[0].abs_diff(sums[1]) <= 2 * largest, "{sums:?}");
}

#[test]
fn who_has_waited_too_long_gets_one_place_in_so_many() {
    let limits = QueueLimits { aged_ms: 500, aged_every: 4, ..QUEUE };
    let asks = (0..40).map(|number| came(number, "a", Class::Ongoing, 0));
    let new = (100..104).map(|number| came(number, "a", Class::New, 0));
    let mut queue = queue(limits, asks.chain(new));
    let before: Vec<_> = (0..8).filter_map(|_| queue.pop(499_000)).map(|(_, ask)| ask.request.number).collect();
    assert!(before.iter().all(|number| *number < 100), "nobody is old yet");
    let mut lanes = Vec::new();
    let mut places = Vec::new();
    for place in 0..32 {
        let (lane, ask) = queue.pop(600_000).expect("somebody waits");
        if ask.request.number >= 100 {
            places.push(place);
            lanes.push(lane);
        }
    }
    assert_eq!(places, [3, 7, 11, 15]);
    assert_eq!(lanes, [Lane::Ongoing; 4], "nobody overtakes it in the engine");
}

#[test]
fn of_two_classes_that_have_waited_too_long_the_one_that_waits_longer_is_served() {
    let limits = QueueLimits { aged_ms: 500, aged_every: 2, ..QUEUE };
    let ongoing = (0..40).map(|number| came(number, "a", Class::Ongoing, 0));
    let promised = (100..103).map(|number| came(number, "a", Class::Promised, 10));
    let new = (200..203).map(|number| came(number, "a", Class::New, 5 * (number - 199)));
    let mut queue = queue(limits, ongoing.chain(promised).chain(new));
    let left = (0..12).filter_map(|_| queue.pop(600_000)).map(|(_, ask)| ask.request.number);
    assert_eq!(left.filter(|number| *number >= 100).collect::<Vec<_>>(), [200, 100, 101, 102, 201, 202]);
}

#[test]
fn the_last_in_line_of_the_largest_tenant_finds_no_place() {
    let limits = QueueLimits { turns_max: 4, ..QUEUE };
    let mut queue = Queue::new(limits);
    let mut push = |number, tenant: &str, class| {
        queue.push(came(number, tenant, class, number)).iter().map(|ask| ask.request.number).collect::<Vec<_>>()
    };
    for number in 1..=3 {
        assert_eq!(push(number, "many", Class::New), [0; 0]);
    }
    assert_eq!(push(4, "few", Class::New), [0; 0]);
    assert_eq!(push(5, "few", Class::New), [3], "who has most loses what is due last");
    assert_eq!(push(6, "many", Class::Ongoing), [5], "a class in front loses nothing");
    assert_eq!(push(7, "few", Class::Ongoing), [2]);
    assert_eq!(push(8, "few", Class::Ongoing), [4]);
    assert_eq!(push(9, "few", Class::New), [9]);
    assert_eq!(push(10, "few", Class::Ongoing), [1]);
    assert_eq!(push(11, "few", Class::Ongoing), [11], "among those in a conversation as well");
    assert_eq!(drained(&mut queue, 0).len(), 4);
}

#[test]
fn tokens_are_bounded_but_one_large_turn_alone_has_a_place() {
    let limits = QueueLimits { tokens_max: 100, ..QUEUE };
    let large = |number: u64| {
        let mut ask = came(number, "a", Class::New, number);
        ask.turn.text = "word ".repeat(100);
        ask
    };
    let mut queue = Queue::new(limits);
    assert!(queue.push(large(1)).is_empty());
    let refused = queue.push(came(2, "a", Class::New, 2));
    assert_eq!(refused[0].request.number, 2, "it is due last");
    assert_eq!(queue.waiting(), 1);
}

#[test]
fn what_comes_too_late_is_taken_out() {
    let until = |number: u64, deadline_ms: Option<u64>| {
        let ask = came(number, "a", Class::New, 0);
        Box::new(Ask { deadline_us: deadline_ms.map(|ms| ms * 1_000), ..*ask })
    };
    let mut queue = queue(QUEUE, [until(1, Some(300)), until(2, None), until(3, Some(100)), until(4, Some(200))]);
    let mut late = |ms: u64| queue.extract_late(ms * 1_000).iter().map(|ask| ask.request.number).collect::<Vec<_>>();
    assert_eq!(late(100), [0; 0]);
    assert_eq!(late(101), [3]);
    assert_eq!(late(250), [4]);
    assert_eq!(queue.deadline_us(), Some(300_000));
    assert_eq!(drained(&mut queue, 0), [1, 2]);
    assert_eq!(queue.oldest_us(), None);
}

#[test]
fn a_turn_may_be_taken_out_wherever_it_stands() {
    let turns = [(1, "a", Class::New), (2, "b", Class::New), (3, "b", Class::Ongoing), (4, "b", Class::New)];
    let mut queue = queue(QUEUE, turns.map(|(number, tenant, class)| came(number, tenant, class, number)));
    let mut remove = |number| queue.remove(RequestId { worker: 0, number }).map(|ask| ask.request.number);
    assert_eq!((remove(2), remove(2), remove(9)), (Some(2), None, None));
    assert_eq!(remove(3), Some(3), "the only one of its class");
    assert_eq!((queue.waiting(), queue.oldest_us()), (2, Some(1_000)));
    assert_eq!(drained(&mut queue, 0), [1, 4]);
    assert!(queue.remove(RequestId { worker: 0, number: 1 }).is_none(), "it has left");
    let mut queue = Queue::new(QueueLimits { tokens_max: 9, ..QUEUE });
    for number in 1..5 {
        assert!(queue.push(came(number, "a", Class::New, number)).is_empty(), "the one before it made room");
        queue.remove(RequestId { worker: 0, number });
    }
}

#[test]
fn first_come_first_served_where_that_is_wanted() {
    let turns = [(1, "a", Class::New), (2, "b", Class::Ongoing), (3, "a", Class::Ongoing), (4, "b", Class::New)];
    let asks = turns.map(|(number, tenant, class)| came(number, tenant, class, number));
    let mut queue = queue(QueueLimits { order: Order::Fifo, ..QUEUE }, asks);
    assert_eq!(drained(&mut queue, 1_000_000), [1, 2, 3, 4]);
}

proptest! {
    /// Whatever is pushed, popped, put back and refused: nothing is lost, nothing comes twice, what is put back comes next, and
    /// a turn of a lower class that is old enough leaves within the bound of the contract.
    #[test]
    fn nothing_is_lost_and_nobody_starves(
        steps in prop::collection::vec((0..6_u8, 0..3_usize, 0..3_usize), 1..300),
        aged_every in 2..6_u32,
    ) {
        let limits = QueueLimits { turns_max: 40, aged_ms: 50, aged_every, patience_ms: 20, ..QUEUE };
        let mut queue = Queue::new(limits);
        let (mut pushed, mut gone) = (0, Vec::new());
        let mut now_ms = 0;
        for (step, class, tenant) in steps {
            now_ms += 1;
            match step {
                0..=2 => {
                    pushed += 1;
                    let refused = queue.push(came(pushed, ["a", "b", "c"][tenant], Class::ALL[class], now_ms));
                    gone.extend(refused.into_iter().map(|ask| ask.request.number));
                }
                3 | 4 => gone.extend(queue.pop(now_ms * 1_000).map(|(_, ask)| ask.request.number)),
                _ => {
                    if let Some((lane, ask)) = queue.pop(now_ms * 1_000) {
                        let number = ask.request.number;
                        queue.put_back(ask);
                        let again = queue.pop(now_ms * 1_000).map(|(lane, ask)| (lane, ask.request.number));
                        prop_assert_eq!(again, Some((lane, number)));
                        gone.push(number);
                    }
                }
            }
            prop_assert!(queue.waiting() <= 40);
        }
        // Ongoing turns come for ever: everything that waits leaves all the same.
        let left = queue.waiting();
        now_ms += 1_000;
        let mut waits: Vec<u64> = (1..=pushed).filter(|number| !gone.contains(number)).collect();
        prop_assert_eq!(waits.len(), left);
        // All turns are equally long, so that others get no more than 2 · (T − 1) turns for one and another before it.
        let bound = u64::from(aged_every) * (left as u64 + 2) * 5 * Class::ALL.len() as u64;
        for extra in 0..bound {
            if waits.is_empty() {
                break;
            }
            let refused = queue.push(came(1_000_000 + extra, "a", Class::Ongoing, now_ms));
            let popped = queue.pop(now_ms * 1_000).map(|(_, ask)| ask);
            waits.retain(|number| popped.iter().chain(&refused).all(|ask| ask.request.number != *number));
        }
        prop_assert!(waits.is_empty(), "{waits:?} starve");
    }

    /// Within a class, what leaves before a turn is bounded by the tokens of its own tenant that are due up to it. Most are short.
    #[test]
    fn others_get_no_more_before_a_turn_than_the_contract_says(
        turns in prop::collection::vec((0..4_usize, prop_oneof![3 => 1..20_usize, 1 => 1..600_usize]), 1..80),
    ) {
        let tenants = ["a", "b", "c", "d"];
        let asks: Vec<_> = turns.iter().enumerate().map(|(number, &(tenant, words))| {
            let mut ask = came(number as u64, tenants[tenant], Class::New, number as u64);
            ask.turn.text = "word ".repeat(words);
            ask
        }).collect();
        let largest = asks.iter().map(|ask| tokens(ask)).max().unwrap_or(0);
        let present = tenants.iter().filter(|tenant| asks.iter().any(|ask| ask.turn.tenant.as_str() == **tenant)).count();
        let mut queue = queue(QUEUE, asks);
        let mut served = std::collections::BTreeMap::<String, usize>::new();
        while let Some((_, ask)) = queue.pop(0) {
            let tenant = ask.turn.tenant.as_str().to_owned();
            let others: usize = served.iter().filter(|(other, _)| **other != tenant).map(|(_, sum)| sum).sum();
            let own = served.get(&tenant).copied().unwrap_or(0) + tokens(&ask);
            let bound = (present - 1) * (own.div_ceil(largest) + 1) * 2 * largest;
            prop_assert!(others <= bound, "{others} tokens of others before {own} of its own, at most {bound}");
            *served.entry(tenant).or_default() += tokens(&ask);
        }
    }
}

//! What bounds a remote tier: time, places in line, a server's failures, and settings.

use super::*;

#[test]
fn a_server_that_asks_to_wait_is_left_alone() {
    let bed =
        bed(vec![status(429, "Retry-After-Ms: 80\r\n"), answer("Yes."), status(429, "Retry-After: 3600\r\n")], |_| {});
    let started = Instant::now();
    assert_eq!(bed.outcome("?").as_deref(), Ok("Yes."));
    assert!(started.elapsed() >= Duration::from_millis(80));
    assert_eq!(bed.outcome("?"), Err("HTTP status 429: as scripted".to_owned()), "an hour is more than there is");
    assert_eq!(bed.server.requests().len(), 3);
}

#[test]
fn every_wait_ends() {
    const SHORT_MS: u64 = 200;
    let silent = || step(Exchange::wait_for_close);
    let chatty = || {
        step(|exchange: &mut Exchange| {
            exchange.begin();
            while exchange.piece(": busy\n\n") {
                std::thread::sleep(Duration::from_millis(5));
            }
        })
    };
    let stuck = || {
        step(|exchange: &mut Exchange| {
            exchange.begin();
            exchange.delta("Well, ");
            exchange.wait_for_close();
        })
    };
    let endless = || {
        step(|exchange: &mut Exchange| {
            exchange.begin();
            while exchange.delta("and ") {
                std::thread::sleep(Duration::from_millis(5));
            }
        })
    };
    let slow_error = || {
        step(|exchange: &mut Exchange| {
            exchange.raw("HTTP/1.1 400 Bad Request\r\nContent-Length: 100\r\n\r\nhalf");
            exchange.wait_for_close();
        })
    };
    let first = |config: &mut RemoteConfig| config.first_token_ms_max = SHORT_MS;
    let between = |config: &mut RemoteConfig| config.between_tokens_ms_max = SHORT_MS;
    let total = |config: &mut RemoteConfig| (config.first_token_ms_max, config.total_ms_max) = (499, 500);
    type Settings = fn(&mut RemoteConfig);
    let cases: [(Step, Settings, &str); 6] = [
        (silent(), first, "no first token within 200 ms"),
        (chatty(), first, "no first token within 200 ms"),
        (stuck(), between, "no further token within 200 ms"),
        (stuck(), total, "the answer was not complete within 500 ms"),
        (endless(), total, "the answer was not complete within 500 ms"),
        (slow_error(), first, "HTTP status 400: half"),
    ];
    for (script, settings, expected) in cases {
        let bed = bed(vec![script], settings);
        assert_eq!(bed.outcome("?"), Err(expected.to_owned()));
        assert_eq!(bed.server.requests().len(), 1, "{expected}: not repeated");
    }
    let bed = bed(vec![stuck()], total);
    let patient = TierRequest { time_max: Some(Duration::from_secs(3600)), ..request("?") };
    let late = bed.outcome_of(&submit(&bed.tier, Lane::New, patient).expect("a place"));
    assert_eq!(late, Err("the answer was not complete within 500 ms".to_owned()), "a job with more time has no more");
}

#[test]
fn who_cancels_closes_the_connection() {
    let (closed, was_closed) = bounded(1);
    let open = step(move |exchange: &mut Exchange| {
        exchange.begin();
        exchange.delta("Well, ");
        exchange.wait_for_close();
        closed.send(()).expect("the test listens");
    });
    let bed = bed(vec![open, answer("Yes.")], |config| config.in_flight_max = 1);
    let cancel = Cancel::new();
    let ask = |question: &str| TierRequest { cancel: cancel.clone(), ..request(question) };
    let first = submit(&bed.tier, Lane::New, ask("first")).expect("a place");
    assert_eq!(first.recv(), Ok(Heard::Piece("Well,".to_owned())));
    let waiting = submit(&bed.tier, Lane::New, ask("waiting")).expect("a place");
    assert_eq!((bed.tier.queued(), bed.health.stats().in_flight), (1, 1));
    let next = bed.ask("next");
    cancel.cancel();
    let cancelled = Heard::Failed(ModelError::Cancelled.to_string());
    assert_eq!(first.recv(), Ok(cancelled));
    was_closed.recv().expect("the connection is closed");
    assert_eq!(bed.outcome_of(&waiting), Err(ModelError::Cancelled.to_string()));
    assert_eq!(bed.outcome_of(&next).as_deref(), Ok("Yes."), "the slot is free again");
    assert_eq!(bed.server.requests().len(), 2, "the one that waited was never sent");
    let stats = bed.health.stats();
    assert_eq!((stats.ended.answered, stats.ended.failed, stats.ended.cancelled), (1, 0, 2));
}

#[test]
fn a_deadline_is_kept_in_line_and_under_way() {
    let (release, released) = bounded::<()>(0);
    let held = step(move |exchange: &mut Exchange| {
        exchange.begin();
        exchange.delta("Well, ");
        let _released = released.recv();
        exchange.piece(ending(1, 1));
        exchange.end();
    });
    let bed = bed(vec![held, step(Exchange::wait_for_close)], |config| config.in_flight_max = 1);
    let first = bed.ask("first");
    assert_eq!(first.recv(), Ok(Heard::Piece("Well,".to_owned())));
    let hurried = || TierRequest { time_max: Some(Duration::from_millis(40)), ..request("hurried") };
    let late = Err("the answer was not complete within 40 ms".to_owned());
    assert_eq!(bed.outcome_of(&submit(&bed.tier, Lane::New, hurried()).expect("a place")), late);
    drop(release);
    assert_eq!(bed.outcome_of(&first).as_deref(), Ok("Well,"));
    assert_eq!(bed.outcome_of(&submit(&bed.tier, Lane::New, hurried()).expect("a place")), late);
}

#[test]
fn so_many_at_once_and_turns_first() {
    let (release, released) = bounded::<()>(0);
    let held = || {
        let released = released.clone();
        step(move |exchange: &mut Exchange| {
            let _released = released.recv();
            exchange.answer(&["Yes."]);
        })
    };
    let steps = (0..6).map(|_| held()).collect();
    let bed = bed(steps, |config| (config.in_flight_max, config.queue_max) = (2, 2));
    let submit = |lane, question: &str| submit(&bed.tier, lane, request(question));
    let mut heard: Vec<_> = ["1", "2"].map(|question| submit(Lane::New, question).expect("a slot")).into();
    // Both are under way before anything else is handed in.
    let mut order: Vec<_> = bed.server.asked.iter().take(2).collect();
    for (lane, question) in [(Lane::Background, "5"), (Lane::Background, "6"), (Lane::New, "3"), (Lane::New, "4")] {
        heard.push(submit(lane, question).expect("a place in line"));
    }
    let rejected = submit(Lane::New, "7").expect_err("the lane is full");
    assert_eq!(rejected.job.request.question, "7");
    assert_eq!(rejected.error.to_string(), "the queue of remote tier is full: 2 jobs wait");
    assert_eq!((bed.health.stats().in_flight, bed.tier.queued()), (2, 4));
    assert!(bed.server.asked.is_empty(), "no more than two at once");
    for _ in 0..4 {
        // Let one go: the next one comes.
        release.send(()).expect("one is held");
        order.push(bed.server.asked.recv().expect("the next request"));
    }
    drop(release);
    heard.iter().for_each(|heard| assert_eq!(bed.outcome_of(heard).as_deref(), Ok("Yes.")));
    let order: Vec<_> = order
        .iter()
        .map(|asked| {
            asked.body.rsplit("\"content\":\"").next().and_then(|rest| rest.split('"').next()).expect("a question")
        })
        .collect();
    assert_eq!(order[2..], ["3", "4", "5", "6"]);
}

#[test]
fn a_server_that_keeps_failing_is_left_alone() {
    let steps =
        vec![status(500, ""), step(Exchange::cut), status(503, ""), status(500, ""), answer("Yes."), answer("Yes.")];
    let bed = bed(steps, |config| {
        (config.retries_max, config.breaker_failures, config.breaker_rest_ms) = (0, 3, 60);
    });
    let rests =
        |outcome: &Result<String, String>| outcome.as_ref().is_err_and(|error| error.starts_with("not asked: "));
    for _ in 0..3 {
        assert!(!rests(&bed.outcome("?")));
    }
    assert_eq!(bed.health.stats().breaker, BreakerState::Open);
    let until_asked = || loop {
        let outcome = bed.outcome("?");
        if !rests(&outcome) {
            break outcome;
        }
    };
    assert_eq!(until_asked(), Err("HTTP status 500: as scripted".to_owned()), "the probe fails");
    assert_eq!((bed.health.stats().breaker, bed.health.stats().breaker_opened), (BreakerState::Open, 2));
    assert_eq!(until_asked().as_deref(), Ok("Yes."), "the next one does well");
    assert_eq!(bed.health.stats().breaker, BreakerState::Closed);
    assert_eq!(bed.outcome("?").as_deref(), Ok("Yes."));
    assert_eq!(bed.server.requests().len(), 6, "nothing was sent while the server rested");
}

#[test]
fn others_go_as_soon_as_a_probe_is_answered() {
    let (release, released) = bounded::<()>(0);
    let long = step(move |exchange: &mut Exchange| {
        exchange.begin();
        exchange.delta("Well, ");
        let _released = released.recv();
        exchange.piece(ending(1, 1));
        exchange.end();
    });
    let bed = bed(vec![status(500, ""), long, answer("Yes.")], |config| {
        (config.retries_max, config.breaker_failures, config.breaker_rest_ms) = (0, 1, 1);
    });
    bed.outcome("?").expect_err("it fails");
    let probe = loop {
        let probe = bed.ask("probe");
        if probe.recv() == Ok(Heard::Piece("Well,".to_owned())) {
            break probe;
        }
    };
    assert_eq!(bed.health.stats().breaker, BreakerState::Closed);
    assert_eq!(bed.outcome("?").as_deref(), Ok("Yes."));
    drop(release);
    assert_eq!(bed.outcome_of(&probe).as_deref(), Ok("Well,"));
}

#[test]
fn others_wait_for_what_comes_of_a_probe() {
    let (release, released) = bounded::<()>(0);
    let held = step(move |exchange: &mut Exchange| {
        let _released = released.recv();
        exchange.answer(&["Well."]);
    });
    let bed = bed(vec![status(500, ""), held, answer("Yes."), answer("Yes.")], |config| {
        (config.retries_max, config.breaker_failures, config.breaker_rest_ms) = (0, 1, 1);
    });
    bed.outcome("?").expect_err("it fails");
    bed.server.asked.recv().expect("the failure");
    // Who comes too early hears that the server rests.
    let probe = loop {
        let probe = bed.ask("probe");
        crossbeam_channel::select! {
            recv(bed.server.asked) -> _ => break probe,
            recv(probe) -> _ => {}
        }
    };
    assert_eq!(bed.health.stats().breaker, BreakerState::HalfOpen);
    let others = [bed.ask("other"), bed.ask("another")];
    let hurried = TierRequest { time_max: Some(Duration::from_millis(40)), ..request("hurried") };
    let hurried = submit(&bed.tier, Lane::New, hurried).expect("a place");
    assert_eq!(bed.outcome_of(&hurried), Err("the answer was not complete within 40 ms".to_owned()));
    assert!(others.iter().all(Receiver::is_empty) && bed.server.asked.is_empty(), "they wait");
    drop(release);
    assert_eq!(bed.outcome_of(&probe).as_deref(), Ok("Well."));
    others.iter().for_each(|other| assert_eq!(bed.outcome_of(other).as_deref(), Ok("Yes.")));
}

#[test]
fn a_panic_ends_one_job() {
    let bed = bed(vec![answer("Boo."), answer("Yes.")], |config| config.in_flight_max = 1);
    let (told, end) = bounded(1);
    let on_delta = Box::new(|_| panic!("as asked"));
    let done = Box::new(move |result: Result<Answer, ModelError>| {
        told.send(result.map_err(|error| error.to_string())).expect("the test listens");
    });
    bed.tier.submit(Lane::New, request("?"), on_delta, done).expect("a place");
    assert_eq!(end.recv(), Ok(Err("panic in remote tier: as asked".to_owned())));
    assert_eq!(bed.outcome("?").as_deref(), Ok("Yes."));
}

#[test]
fn jobs_outlive_the_last_handle() {
    let bed = bed((0..3).map(|_| answer("Yes.")).collect(), |config| config.in_flight_max = 1);
    let heard: Vec<_> = (0..3).map(|_| bed.ask("?")).collect();
    let Bed { server, tier, health } = bed;
    drop(tier);
    for heard in heard {
        assert!(matches!(heard.iter().last(), Some(Heard::Done(_))));
    }
    assert_eq!(server.requests().len(), 3);
    assert_eq!(health.stats().ended.answered, 3);
}

#[test]
fn settings_are_checked_before_anything_starts() {
    let check = |change: fn(&mut RemoteConfig), expected: &str| {
        let mut config = RemoteConfig::new("http://127.0.0.1:1/v1/", "m");
        change(&mut config);
        let told = config.check().expect_err(expected).to_string();
        assert_eq!(told, expected);
        let told = start(config).expect_err(expected).to_string();
        assert_eq!(told, format!("cannot use the remote server: {expected}"));
    };
    RemoteConfig::new("http://127.0.0.1:1/v1/", "m").check().expect("sound");
    check(|c| c.base_url = "ftp://x/v1".into(), "base-url must begin with http:// or https://");
    check(|c| c.base_url = "localhost:11434".into(), "base-url must begin with http:// or https://");
    check(|c| c.base_url = "http://me:pw@x/v1".into(), "base-url must hold a host, and no password");
    check(|c| c.base_url = "http://x/v1?key=pw".into(), "base-url must not hold a query");
    check(|c| c.base_url = "http://a b".into(), "base-url must be an address");
    check(|c| c.model = " ".into(), "model must name a model");
    check(|c| c.queue_max = 0, "queue-max must be at least 1");
    check(|c| c.total_ms_max = 20_000, "first-token-ms-max must be less than total-ms-max, 20000");
    check(|c| c.temperature = Some(-1.0), "temperature must lie between 0 and 2");
    check(|c| c.top_p = Some(f32::NAN), "top-p must lie between 0 and 1");
    check(
        |c| (c.key_env, c.key_file) = (Some("A".into()), Some("b".into())),
        "key-file must not be set beside key-env",
    );
    check(
        |c| c.key_env = Some("sk-0123".into()),
        "key-env must be the name of an environment variable: letters, digits and _",
    );
}

#[test]
fn files_are_read_when_the_tier_starts() {
    let check = |setting: &str, change: fn(&mut RemoteConfig), expected: &str| {
        let mut config = RemoteConfig::new("http://127.0.0.1:1/v1/", "m");
        change(&mut config);
        config.check().expect("the settings are sound");
        let (named, error) = config.check_files().expect_err(expected);
        assert_eq!((named, error.to_string()), (setting, expected.to_owned()));
        assert_eq!(start(config).expect_err(expected).to_string(), expected);
    };
    check(
        "key-env",
        |c| c.key_env = Some("TURNFLOW_NO_SUCH_KEY".into()),
        "no key in the environment variable TURNFLOW_NO_SUCH_KEY: it is not set",
    );
    check("key-file", |c| c.key_file = Some("/no/such/key".into()), "missing file /no/such/key");
    check("ca-file", |c| c.ca_file = Some("/no/such/ca".into()), "cannot read the certificates /no/such/ca");
}

//! The remote tier against a server that follows a script: one that delays, cuts, throttles, sends rubbish and lies.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded, unbounded};
use turnflow_state::{Answer, ScoredChunk, Source, Tier, Usage};

use super::server::{Exchange, ScriptedServer, Step, delta, ending};
use super::*;
use crate::cancel::Cancel;
use crate::error::{ModelError, chain};
use crate::generation::{PromptConfig, found};
use crate::queue::{Lane, Rejected};
use crate::tier::{TierHandle, TierJob, TierRequest};

fn prompt() -> PromptConfig {
    PromptConfig {
        prompt_tokens_max: 1000,
        history_tokens_max: 100,
        answer_tokens_max: 64,
        instructions: "Answer from the articles.".to_owned(),
        unknown_text: "I don't know.".to_owned(),
    }
}

fn start(config: RemoteConfig) -> Result<RemoteTier, ModelError> {
    RemoteTier::start(config, prompt(), "You are Ada.", "en")
}

/// A tier in front of a script.
struct Bed {
    server: ScriptedServer,
    tier: TierHandle,
    health: RemoteHealth,
}

/// Patient enough for a slow machine where time does not matter, and quick to try again.
fn patient(config: &mut RemoteConfig) {
    config.retry_wait_ms = 1;
    config.retry_wait_ms_max = 2;
}

fn bed(steps: Vec<Step>, settings: impl FnOnce(&mut RemoteConfig)) -> Bed {
    let server = ScriptedServer::start(steps);
    let mut config = RemoteConfig::new(server.url(), "some-model");
    patient(&mut config);
    settings(&mut config);
    let tier = start(config).expect("a tier");
    Bed { server, health: tier.health(), tier: TierHandle::new(tier) }
}

/// The one chunk that answers rest on.
fn returns() -> ScoredChunk {
    found("returns", "Returns", "You have 30 days.")
}

fn request(question: &str) -> TierRequest {
    TierRequest::new(question, Arc::from([1.0]), vec![returns()])
}

/// What a job tells: pieces, then the end.
#[derive(Debug, PartialEq)]
enum Heard {
    Piece(String),
    Done(Answer),
    Failed(String),
}

fn submit(tier: &TierHandle, lane: Lane, request: TierRequest) -> Result<Receiver<Heard>, Rejected<TierJob>> {
    let (events, heard) = unbounded();
    let pieces = events.clone();
    let on_delta = Box::new(move |piece| pieces.send(Heard::Piece(piece)).expect("the test listens"));
    let done = Box::new(move |result: Result<Answer, _>| {
        let end = result.map_or_else(|error| Heard::Failed(chain(&error)), Heard::Done);
        events.send(end).expect("the test listens");
    });
    tier.submit(lane, request, on_delta, done).map(|()| heard)
}

impl Bed {
    fn ask(&self, question: &str) -> Receiver<Heard> {
        submit(&self.tier, Lane::New, request(question)).expect("a free place")
    }

    /// Everything that a job tells until its end.
    fn hear(&self, question: &str) -> Vec<Heard> {
        self.ask(question).iter().collect()
    }

    /// The answer's text, or the error without the server's address.
    fn outcome(&self, question: &str) -> Result<String, String> {
        self.outcome_of(&self.ask(question))
    }

    fn outcome_of(&self, heard: &Receiver<Heard>) -> Result<String, String> {
        match heard.iter().last().expect("an end") {
            Heard::Done(answer) => Ok(answer.text),
            Heard::Failed(error) => Err(error.replace(&format!("{} gave no answer: ", self.server.url()), "")),
            Heard::Piece(piece) => panic!("the last thing heard is the piece {piece:?}"),
        }
    }
}

fn step(step: impl FnOnce(&mut Exchange) + Send + 'static) -> Step {
    Box::new(step)
}

fn answer(text: &'static str) -> Step {
    step(move |exchange| exchange.answer(&[text]))
}

fn status(status: u16, headers: &'static str) -> Step {
    step(move |exchange| exchange.reply(status, headers, r#"{"error": {"message": "as scripted"}}"#))
}

#[test]
fn an_answer_streams() {
    let steps = vec![step(|exchange| exchange.answer(&["Within", " 30", " days."])), answer("Again.")];
    let bed = bed(steps, |config| config.temperature = Some(0.0));
    let usage = Usage { input_tokens: 11, output_tokens: 7 };
    let text = "Within 30 days.".to_owned();
    let whole = Answer {
        text,
        tier: Tier::Openai,
        sources: vec![Source::of(&returns().chunk)],
        usage,
        grounded: true,
        cut_off: false,
    };
    let piece = |text: &str| Heard::Piece(text.to_owned());
    assert_eq!(bed.hear("How long?"), [piece("Within"), piece(" 30"), piece(" days."), Heard::Done(whole)]);
    assert_eq!(bed.outcome("And now?").as_deref(), Ok("Again."));
    let asked = bed.server.requests();
    assert!(asked[0].head.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"), "{}", asked[0].head);
    assert!(!asked[0].head.to_ascii_lowercase().contains("authorization"), "there is no key");
    let body: serde_json::Value = serde_json::from_str(&asked[0].body).expect("JSON");
    let system = "You are Ada.\n\nAnswer from the articles.\n\n[1] Returns (returns)\nYou have 30 days.";
    let expected = serde_json::json!({
        "model": "some-model",
        "messages": [{"role": "system", "content": system}, {"role": "user", "content": "How long?"}],
        "stream": true,
        "stream_options": {"include_usage": true},
        "max_tokens": 64,
        "temperature": 0.0,
    });
    assert_eq!(body, expected);
    assert_eq!([asked[0].connection, asked[1].connection], [0, 0], "the connection is used again");
    let stats = bed.health.stats();
    assert_eq!((stats.ended.answered, stats.in_flight, stats.retries, stats.usage_estimated), (2, 0, 0, 0));
}

#[test]
fn borders_comments_and_line_ends_do_not_matter() {
    let stream = format!(
        ": hello\r\n\r\nevent: x\r\n{}: still here\n\n{}{}",
        delta("Grüße "),
        delta("aus €-Land"),
        ending(1, 2)
    );
    let crlf = stream.replace('\n', "\r\n");
    let bytewise = |stream: String| {
        step(move |exchange| {
            exchange.begin();
            stream.as_bytes().chunks(1).for_each(|byte| assert!(exchange.piece(byte), "the client listens"));
            exchange.end();
        })
    };
    let at_once = stream.clone();
    let steps = vec![
        bytewise(stream),
        bytewise(crlf),
        step(move |exchange| {
            exchange.begin();
            exchange.piece(&at_once);
            exchange.end();
        }),
    ];
    let bed = bed(steps, |_| {});
    for round in 0..3 {
        assert_eq!(bed.outcome("?").as_deref(), Ok("Grüße aus €-Land"), "{round}");
    }
}

#[test]
fn what_servers_leave_out() {
    let finish = "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"length\"}]}";
    let without_mark = step(move |exchange| {
        exchange.begin();
        exchange.delta("Yes, ");
        exchange.piece(format!("{finish}\n\n"));
        exchange.end();
    });
    // Neither lengths nor chunks: the end of the connection is the end, in the middle of the last event.
    let without_length = step(|exchange| {
        exchange.raw("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n");
        exchange.raw(delta("Yes, "));
        exchange.raw("data: [DONE]\n");
        exchange.cut();
    });
    let bed = bed(vec![without_mark, without_length], |_| {});
    assert_eq!(bed.outcome("?").as_deref(), Ok("Yes,"));
    assert_eq!(bed.health.stats().ended.cut_off, 1);
    assert_eq!(bed.outcome("?").as_deref(), Ok("Yes,"));
    assert_eq!(bed.health.stats().usage_estimated, 2, "the estimate is marked");
}

#[test]
fn what_fails_after_the_reason_to_end_takes_nothing_back() {
    let finish = "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
    let then = |then: fn(&mut Exchange)| {
        step(move |exchange| {
            exchange.begin();
            exchange.delta("Yes.");
            exchange.piece(finish);
            then(exchange);
        })
    };
    let endless = |exchange: &mut Exchange| while exchange.piece(": more\n\n") {};
    let steps = vec![then(Exchange::cut), then(Exchange::wait_for_close), then(endless)];
    let bed = bed(steps, |config| (config.between_tokens_ms_max, config.response_bytes_max) = (300, 65_536));
    for round in 0..3 {
        assert_eq!(bed.outcome("?").as_deref(), Ok("Yes."), "{round}");
    }
    assert_eq!((bed.server.requests().len(), bed.health.stats().ended.answered), (3, 3));
}

#[test]
fn what_is_safe_is_repeated() {
    for steps in [
        vec![status(500, ""), status(503, ""), answer("Yes.")],
        vec![status(408, ""), status(429, ""), answer("Yes.")],
        vec![
            step(Exchange::cut),
            step(|exchange| {
                exchange.begin();
                exchange.cut();
            }),
            answer("Yes."),
        ],
    ] {
        let bed = bed(steps, |_| {});
        assert_eq!(bed.outcome("?").as_deref(), Ok("Yes."));
        assert_eq!((bed.server.requests().len(), bed.health.stats().retries), (3, 2));
    }
    let bed = bed((0..9).map(|_| status(502, "")).collect(), |_| {});
    assert_eq!(bed.outcome("?"), Err("HTTP status 502: as scripted".to_owned()));
    assert_eq!(bed.server.requests().len(), 3, "one attempt and two repetitions");
}

#[test]
fn what_is_not_safe_is_not_repeated() {
    let after_a_piece = |then: fn(&mut Exchange)| {
        step(move |exchange| {
            exchange.begin();
            exchange.delta("Well, ");
            then(exchange);
        })
    };
    let overloaded = |exchange: &mut Exchange| {
        exchange.piece("data: {\"error\": {\"message\": \"overloaded\"}}\n\n");
        exchange.end();
    };
    for (first, expected) in [
        (status(400, ""), "HTTP status 400: as scripted"),
        (status(401, ""), "HTTP status 401: as scripted"),
        (status(404, ""), "HTTP status 404: as scripted"),
        (status(302, "Location: http://127.0.0.1:9/\r\n"), "HTTP status 302: as scripted"),
        (after_a_piece(Exchange::cut), "the answer broke off: "),
        (after_a_piece(Exchange::end), "the answer broke off: it ended without an end mark"),
        (after_a_piece(overloaded), "the server reports an error: overloaded"),
    ] {
        let bed = bed(vec![first, answer("No.")], |_| {});
        let error = bed.outcome("?").expect_err(expected);
        assert!(error.starts_with(expected), "{error:?} should start with {expected:?}");
        assert_eq!((bed.server.requests().len(), bed.health.stats().retries), (1, 0), "{expected}");
    }
}

#[test]
fn a_connection_that_does_not_come_about() {
    // A server that speaks no TLS and says nothing: the handshake never ends.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let mut config = RemoteConfig::new(format!("https://{address}/v1"), "m");
    patient(&mut config);
    config.connect_ms_max = 60;
    let tier = start(config.clone()).expect("a tier");
    let health = tier.health();
    let tier = TierHandle::new(tier);
    let end = submit(&tier, Lane::New, request("?")).expect("a place").iter().last();
    let expected = format!("https://{address}/v1 gave no answer: no connection within 60 ms");
    assert_eq!(end, Some(Heard::Failed(expected)));
    assert_eq!(health.stats().retries, 2, "nothing was sent: it is safe to try again");
    // And nobody at all.
    drop(listener);
    config.base_url = format!("http://{address}/v1");
    let tier = TierHandle::new(start(config).expect("a tier"));
    let Some(Heard::Failed(error)) = submit(&tier, Lane::New, request("?")).expect("a place").iter().last() else {
        panic!("an answer from nobody");
    };
    assert!(error.contains("gave no answer: cannot connect: "), "{error}");
}

#[test]
fn rubbish_and_lies() {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n";
    let endless = |piece: &'static str| {
        step(move |exchange: &mut Exchange| {
            exchange.begin();
            while exchange.piece(piece) {}
        })
    };
    let chunk = || format!("{}{}", delta("Yes."), ending(1, 1));
    let whole = chunk();
    for (script, expected) in [
        (
            step(|exchange| {
                exchange.raw("220 smtp.example.org ESMTP\r\n");
            }),
            "the answer broke off: ",
        ),
        (
            step(|exchange| exchange.reply(200, "Content-Type: text/html\r\n", "<html>")),
            "not the expected protocol: the content type is \"text/html\", expected text/event-stream",
        ),
        (
            step(|exchange| {
                exchange.begin();
                exchange.piece("data: rubbish\n\n");
            }),
            "not the expected protocol: an event is rubbish: expected value",
        ),
        (endless("data: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"), "a line of more than 4096 bytes"),
        (endless("data: {}\n"), "an event of more than 4096 bytes"),
        (
            endless("data: {\"choices\":[{\"delta\":{\"content\":\"more \"}}]}\n\n"),
            "an answer of more than 65536 bytes",
        ),
        // More was announced than comes: the answer is whole all the same when it has its end mark.
        (
            step(move |exchange| {
                exchange.raw(format!("{head}Content-Length: 99999\r\n\r\n{}", delta("Yes.")));
                exchange.cut();
            }),
            "the answer broke off: ",
        ),
        // Less was announced than comes.
        (
            step(move |exchange| {
                exchange.raw(format!("{head}Content-Length: {}\r\n\r\n{whole}", delta("Yes.").len()));
                exchange.cut();
            }),
            "the answer broke off: it ended without an end mark",
        ),
        (
            step(move |exchange| {
                exchange.raw(format!("{head}Transfer-Encoding: chunked\r\n\r\nzz\r\nrubbish"));
                exchange.cut();
            }),
            "the answer broke off: ",
        ),
        (
            step(|exchange| {
                exchange.raw("HTTP/1.1 200 OK\r\n");
                while exchange.raw("X: no end of headers\r\n") {}
            }),
            "the answer broke off: ",
        ),
    ] {
        let bed = bed(vec![script], |config| {
            (config.line_bytes_max, config.response_bytes_max, config.retries_max) = (4096, 65_536, 0);
        });
        let error = bed.outcome("?").expect_err(expected);
        assert!(error.starts_with(expected), "{error:?} should start with {expected:?}");
    }
}

#[test]
fn citations_become_sources_and_are_not_shown() {
    let bed = bed(vec![step(|exchange| exchange.answer(&["30 days ", "[", "1", "]."]))], |_| {});
    let heard = bed.hear("?");
    let Some(Heard::Done(answer)) = heard.last() else { panic!("no answer: {heard:?}") };
    assert_eq!((answer.text.as_str(), answer.sources.len()), ("30 days.", 1));
    let shown: String =
        heard.iter().filter_map(|heard| if let Heard::Piece(piece) = heard { Some(&**piece) } else { None }).collect();
    assert_eq!(shown, answer.text);
}

#[test]
fn a_refusal_is_not_grounded() {
    let refusal = step(|exchange: &mut Exchange| {
        exchange.begin();
        exchange.piece("data: {\"choices\":[{\"delta\":{\"refusal\":\"I can't.\"}}]}\n\n");
        exchange.piece(ending(3, 4));
        exchange.end();
    });
    let bed = bed(vec![refusal], |_| {});
    let Some(Heard::Done(answer)) = bed.hear("?").pop() else { panic!("no answer") };
    assert_eq!((answer.text.as_str(), answer.grounded), ("I can't.", false));
    assert_eq!(bed.health.stats().refused, 1);
}

mod limits;

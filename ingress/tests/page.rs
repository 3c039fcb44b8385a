//! The page as those meet it who run a server: who is let in, what is refused, and, in a real browser, a day's work with it.

#![expect(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod browser;
mod support;

use std::collections::BTreeSet;
use std::path::Path;

use axum::body::Bytes;
use axum::http::Method;
use jiff::Timestamp;
use serde_json::{Value, json};
use tempfile::TempDir;
use turnflow::keys::{KeyFiles, KeyId, KeyLimits, NewKey, Scope};
use turnflow_pipeline::Config;
use turnflow_state::TenantId;

use self::browser::Page;
use self::support::http::{HttpClient, Reply};
use self::support::{TestServer, bounded};

const DELIVERY: &str = "How long does standard delivery take?";
/// Two questions that share an answer.
const CANCEL: &str = "Can I still cancel an order I made this morning?";
const CANCEL_TOO: &str = "please cancel, ordered by mistake";
const PAGES: [&str; 5] = ["/ui/", "/ui/playground", "/ui/articles", "/ui/caches", "/ui/conversations"];

/// Keys in a folder.
struct Keys {
    dir: TempDir,
    files: KeyFiles,
}

impl Keys {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let files = KeyFiles::new(&Config::defaults().gateway, dir.path()).expect("files");
        Self { dir, files }
    }

    fn create(&self, tenant: &str, scopes: &[Scope]) -> (String, KeyId) {
        self.create_limited(tenant, scopes, KeyLimits::default())
    }

    fn create_limited(&self, tenant: &str, scopes: &[Scope], limits: KeyLimits) -> (String, KeyId) {
        let tenant = TenantId::new(tenant).expect("valid id");
        let scopes = BTreeSet::from_iter(scopes.iter().copied());
        let wanted = NewKey { tenant, scopes, name: None, expires: None, limits };
        let (key, record) = self.files.create(wanted, Timestamp::now()).expect("made");
        (key.reveal().to_owned(), record.id)
    }

    async fn server(&self) -> TestServer {
        let keys = self.dir.path().join("keys.jsonl");
        TestServer::start(|config| {
            config.gateway.keys = keys;
            // Enough for the two questions that share an answer.
            config.policy.delta = 0.05;
        })
        .await
    }
}

/// A browser that does as it is told.
struct Visitor {
    client: HttpClient,
    origin: String,
    cookie: String,
}

impl Visitor {
    fn of(server: &TestServer) -> Self {
        let client = HttpClient::new(server.http);
        Self { client, origin: format!("http://{}", server.http), cookie: String::new() }
    }

    async fn get(&self, path: &str) -> Reply {
        let headers = [("accept", "text/html"), ("cookie", &self.cookie)];
        self.client.send(Method::GET, path, &headers, Bytes::new()).await
    }

    async fn log_in(&self, key: &str) -> Reply {
        let headers = [("origin", self.origin.as_str()), ("content-type", "application/x-www-form-urlencoded")];
        self.client.send(Method::POST, "/ui/login", &headers, format!("key={key}")).await
    }

    /// The same with the session that a key opens.
    async fn with(mut self, key: &str) -> Self {
        let reply = self.log_in(key).await;
        assert_eq!((reply.status, reply.header("location")), (303, Some("/ui/")), "{reply:?}");
        let cookie = reply.header("set-cookie").expect("a cookie");
        for wanted in ["HttpOnly", "SameSite=Strict", "Path=/ui", "Max-Age="] {
            assert!(cookie.contains(wanted) && !cookie.contains("Secure"), "{cookie}");
        }
        self.cookie = cookie.split(';').next().expect("a pair").to_owned();
        self
    }

    /// What a page of the session knows.
    async fn token(&self) -> String {
        let page = self.get("/ui/").await.body;
        let (_, rest) = page.split_once("name=\"token\" content=\"").expect("a token");
        rest.split('"').next().expect("a token").to_owned()
    }

    /// Sends what a page of the session sends.
    async fn post(&self, token: &str, path: &str, body: &Value) -> Reply {
        let headers = [("origin", self.origin.as_str()), ("x-csrf-token", token), ("cookie", &self.cookie)];
        self.client.post(path, &headers, body).await
    }

    async fn flush(&self, origin: &str, token: &str) -> Reply {
        let headers = [("origin", origin), ("x-csrf-token", token), ("cookie", &self.cookie)];
        self.client.post("/ui/flush", &headers, &json!({ "all": true, "dry_run": true })).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_keys_everybody_here_is_let_in() {
    bounded(async {
        let server = TestServer::start(|_| {}).await;
        let visitor = Visitor::of(&server);
        let home = visitor.get("/").await;
        assert_eq!((home.status, home.header("location")), (303, Some("/ui/")));
        assert_eq!(visitor.client.get("/").await.error().1, "unknown_route", "a program is no browser");
        for path in PAGES {
            let page = visitor.get(path).await;
            assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")), "{path}");
            let policy = page.header("content-security-policy").expect("a policy");
            assert!(policy.starts_with("default-src 'none'; ") && !policy.contains("unsafe"), "{policy}");
            assert_eq!(page.header("cache-control"), Some("no-store"));
            assert!(!page.body.contains("style=") && !page.body.contains("onclick"), "{path}");
        }
        assert_eq!(visitor.get("/ui/login").await.status, 303);
        for path in ["/ui/article?id=nothing", "/ui/entry?id=7", "/ui/conversation?id=x", "/ui/nothing", "/ui/a/b"] {
            let page = visitor.get(path).await;
            assert_eq!((page.status, page.header("content-type")), (404, Some("text/html; charset=utf-8")), "{path}");
        }
        assert_eq!(visitor.client.get("/ui/nothing").await.error().1, "unknown_route");
        assert_eq!(visitor.client.get("/ui/assets/nothing.js").await.error().0, 404);
        assert_eq!(visitor.client.get("/ui/entry?id=x").await.error().0, 400);
        let failed = visitor.get("/ui/entry?id=x").await;
        assert_eq!((failed.status, failed.header("content-type")), (400, Some("text/html; charset=utf-8")));
        assert!(failed.body.contains("invalid digit") && failed.body.contains("href=\"/ui/\""), "{failed:?}");
        assert!(failed.header("content-security-policy").is_some(), "{failed:?}");
        assert!(!visitor.get("/ui/").await.body.contains("all tenants"), "there is one");
        for path in ["/ui/caches?text=%20", "/ui/caches?text=%20&article=%20"] {
            assert!(visitor.get(path).await.body.contains("Nothing is cached yet"), "{path} filters nothing");
        }
        server.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_needs_an_admins_key_and_a_change_a_page_of_it() {
    bounded(async {
        let keys = Keys::new();
        let [(admin, _), (chat, _)] = [Scope::Admin, Scope::Chat].map(|scope| keys.create("default", &[scope]));
        let (other, other_id) = keys.create("other", &[Scope::Admin]);
        let (operator, _) = keys.create("other", &[Scope::Admin, Scope::Operator]);
        let server = keys.server().await;
        let nobody = Visitor::of(&server);
        for path in PAGES {
            assert_eq!(nobody.get(path).await.header("location"), Some("/ui/login"), "{path}");
        }
        assert_eq!(nobody.client.get("/ui/numbers").await.error().1, "no_session");
        assert_eq!(nobody.log_in(&chat).await.status, 403);
        for wrong in ["", "none", "a%0Ab"] {
            let refused = nobody.log_in(wrong).await;
            assert!(refused.status == 401 && refused.header("set-cookie").is_none(), "{wrong}: {refused:?}");
        }

        let visitor = Visitor::of(&server).with(&admin).await;
        let (origin, token) = (visitor.origin.clone(), visitor.token().await);
        assert_eq!(visitor.flush(&origin, &token).await.json(), json!({ "count": 0, "dry_run": true }));
        assert_eq!(visitor.flush("http://evil.example", &token).await.error().1, "wrong_origin");
        assert_eq!(visitor.flush("null", &token).await.error().1, "wrong_origin");
        let foreign = Visitor::of(&server).with(&other).await;
        for wrong in ["", &foreign.token().await] {
            assert_eq!(visitor.flush(&origin, wrong).await.error().1, "wrong_token");
        }
        let no_origin = [("x-csrf-token", token.as_str()), ("cookie", visitor.cookie.as_str())];
        let refused = visitor.client.post("/ui/flush", &no_origin, &json!({ "all": true })).await;
        assert_eq!(refused.error().1, "wrong_origin");
        assert_eq!(nobody.flush(&origin, &token).await.error().1, "no_session");

        // One tenant's page shows nothing of another's.
        let reply = visitor.client.ask(DELIVERY, &[("authorization", &format!("Bearer {admin}"))]).await;
        assert_eq!(reply.status, 200);
        let conversation = reply.header("x-conversation-id").expect("a name").to_owned();
        for (path, expected) in
            [("/ui/caches", DELIVERY), ("/ui/conversations", DELIVERY), ("/ui/articles", "delivery-times")]
        {
            assert!(visitor.get(path).await.body.contains(expected), "{path}");
            assert!(!foreign.get(path).await.body.contains(expected), "{path}");
        }
        let path = format!("/ui/conversation?id={conversation}");
        assert_eq!((visitor.get(&path).await.status, foreign.get(&path).await.status), (200, 404));

        assert!(foreign.get("/ui/playground").await.body.contains("The knowledge base is empty"));
        // What is of all tenants is for those who run the server.
        let running = Visitor::of(&server).with(&operator).await;
        for (visitor, expected) in [(&foreign, false), (&running, true)] {
            assert_eq!(visitor.get("/ui/numbers").await.json()["inside"].is_object(), expected);
            assert_eq!(visitor.get("/ui/").await.body.contains("all tenants"), expected);
        }

        // A session ends with its key.
        keys.files.revoke(&other_id, Timestamp::now()).expect("revoked");
        while foreign.get("/ui/numbers").await.status == 200 {
            tokio::task::yield_now().await;
        }
        assert_eq!(foreign.get("/ui/").await.header("location"), Some("/ui/login"));
        let headers = [
            ("origin", foreign.origin.as_str()),
            ("accept", "text/html"),
            ("cookie", &foreign.cookie),
            ("content-type", "application/x-www-form-urlencoded"),
        ];
        let logged_out = foreign.client.send(Method::POST, "/ui/logout", &headers, "token=x").await;
        assert_eq!((logged_out.status, logged_out.header("location")), (303, Some("/ui/login")));
        assert_eq!(visitor.get("/ui/").await.status, 200);
        server.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn notes_stay_as_they_are_kept_unless_they_are_edited() {
    bounded(async {
        let server = TestServer::start(|_| {}).await;
        let visitor = Visitor::of(&server);
        let token = visitor.token().await;
        let metadata =
            async |id: &str| visitor.client.get(&format!("/v1/articles/{id}")).await.json()["metadata"].clone();
        let save = async |id: &str, version: u64, notes: Value| {
            let mut content =
                json!({ "title": "Gifts", "body": format!("Gifts are wrapped, since version {version}.") });
            if !notes.is_null() {
                content["notes"] = notes;
            }
            visitor.post(&token, "/ui/article", &json!({ "id": id, "version": version, "content": content })).await
        };

        assert_eq!(save("gifts", 0, json!("audience: customers")).await.json()["version"], 1);
        assert_eq!(save("gifts", 1, Value::Null).await.json()["version"], 2);
        assert_eq!(metadata("gifts").await, json!({ "audience": "customers" }));
        assert_eq!(save("gifts", 1, Value::Null).await.error().1, "version_mismatch");
        assert_eq!(save("gifts", 2, json!("")).await.json()["version"], 3);
        assert_eq!(metadata("gifts").await, json!({}));
        assert!(!visitor.get("/ui/article?id=gifts").await.body.contains("readonly"));

        let unfit = json!({ "dc:title": "Gifts", "note": "two\nlines" });
        let article = json!({ "id": "imported", "title": "Gifts", "body": "Gifts.", "metadata": unfit });
        assert_eq!(visitor.client.post("/v1/articles", &[], &article).await.status, 200);
        assert!(visitor.get("/ui/article?id=imported").await.body.contains("readonly"));
        assert_eq!(save("imported", 1, json!("note: two")).await.error().2.as_deref(), Some("notes"));
        assert_eq!(save("imported", 1, Value::Null).await.json()["version"], 2);
        assert_eq!(metadata("imported").await, unfit);
        server.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_page_sends_counts_as_a_request_of_its_key() {
    bounded(async {
        let keys = Keys::new();
        let limits = "requests-per-minute=2".parse().expect("limits");
        let (admin, _) = keys.create_limited("default", &[Scope::Admin], limits);
        let server = keys.server().await;
        let visitor = Visitor::of(&server).with(&admin).await;
        let token = visitor.token().await;
        let blank = visitor.post(&token, "/ui/flush", &json!({ "text": " " })).await;
        assert_eq!((blank.status, blank.error().2.as_deref()), (400, Some("all")));
        let counted = visitor.flush(&visitor.origin, &token).await;
        assert!(counted.status == 200 && counted.header("ratelimit").is_some(), "{counted:?}");
        for path in ["/ui/flush", "/ui/chat", "/ui/article"] {
            let body = json!({ "all": true, "dry_run": true });
            assert_eq!(visitor.post(&token, path, &body).await.error().1, "rate_limit_exceeded", "{path}");
        }
        assert_eq!(visitor.get("/ui/").await.status, 200, "looking is free");
        server.stop().await;
    })
    .await;
}

/// What a customer might write to be more than text.
const MARKUP: &str = "<img src=x onerror=alert(1)><script>alert(1)</script> & \"quotes\"";

#[tokio::test(flavor = "multi_thread")]
async fn a_days_work_in_a_browser() {
    bounded(async {
        let keys = Keys::new();
        let (admin, id) = keys.create("default", &[Scope::Admin, Scope::Operator]);
        let server = keys.server().await;
        let base = format!("http://{}", server.http);
        // The browser blocks, and the server goes on meanwhile.
        let worked = tokio::task::spawn_blocking(move || {
            let mut page = Page::open();
            page.looks(1280, false);
            log_in(&mut page, &base, &admin);
            chat(&mut page, &base);
            edit(&mut page, &base);
            flush(&mut page, &base);
            watch(&mut page, &base);
            look_around(&mut page, &base);
            let complaints = page.complaints();
            assert!(complaints.is_empty(), "{complaints:#?}");
            page.go(&format!("{base}/ui/"));
            (page, base)
        });
        let (mut page, base) = worked.await.expect("it works");
        keys.files.revoke(&id, Timestamp::now()).expect("revoked");
        let thrown_out = tokio::task::spawn_blocking(move || {
            page.leading(|_| {});
            assert_eq!(page.value("location.href"), json!(format!("{base}/ui/login")));
        });
        thrown_out.await.expect("the page notices");
        server.stop().await;
    })
    .await;
}

fn log_in(page: &mut Page, base: &str, key: &str) {
    page.go(base);
    assert_eq!(page.value("location.pathname"), json!("/ui/login"));
    picture(page, "login.png");
    page.write("#key", "tf_wrong");
    page.leading(Page::enter);
    assert!(page.text("[role=alert]").contains("no key of this server"));
    let refused = page.complaints();
    assert!(refused.iter().all(|complaint| complaint.contains("401")), "{refused:?}");
    page.write("#key", key);
    page.leading(Page::enter);
    assert_eq!(page.text("h1"), "Overview");
}

/// Asks something, and waits for the verdict.
fn ask(page: &mut Page, question: &str) -> (String, String) {
    let before = page.value("document.querySelectorAll('.verdict').length").as_u64().expect("a count");
    page.write("#question", question);
    page.enter();
    page.until(&format!("document.querySelectorAll('.verdict').length > {before}"));
    (page.text(".turn:last-child .badge"), page.text(".turn:last-child .answer"))
}

fn chat(page: &mut Page, base: &str) {
    page.go(&format!("{base}/ui/playground"));
    let (level, answer) = ask(page, DELIVERY);
    assert!(level == "from the articles" && answer.contains("3 to 5 business days"), "{level}: {answer}");
    let again = ask(page, DELIVERY);
    assert_eq!(again, ("same words".to_owned(), answer));
    let verdict = page.text(".turn:last-child .verdict");
    for told in [DELIVERY, "delivery-times", "Sources", "commit", "its entry"] {
        assert!(verdict.contains(told), "{told}: {verdict}");
    }
    ask(page, MARKUP);
    assert_eq!(page.text(".turn:last-child .asked"), MARKUP);
    assert_eq!(page.value("document.querySelectorAll('main img, main script').length"), json!(0));

    // Others ask the same in other words.
    let (level, answer) = ask(page, CANCEL);
    assert_eq!(level, "from the articles");
    page.go(&format!("{base}/ui/playground"));
    assert_eq!(ask(page, CANCEL_TOO), ("other words".to_owned(), answer));
    let verdict = page.text(".turn:last-child .verdict");
    for told in [CANCEL, "Similarity", "One answer serves both", "likely", "What decided"] {
        assert!(verdict.contains(told), "{told}: {verdict}");
    }
    picture(page, "chat.png");
}

fn edit(page: &mut Page, base: &str) {
    page.go(&format!("{base}/ui/article?id=delivery-times"));
    assert!(page.text("#answers").contains(DELIVERY));
    page.write("#body", "Standard delivery takes 9 business days.");
    page.until("document.querySelector('#effect').dataset.kind === 'falls'");
    assert!(page.text("#effect").contains(DELIVERY));
    assert_eq!(page.value("document.querySelectorAll('#answers .falls').length > 0"), json!(true));
    picture(page, "falls.png");
    page.press("#save");
    page.until("document.querySelector('#effect').dataset.kind === 'done'");
    let said = page.text("#effect");
    assert!(said.starts_with("Saved as version 2; ") && said.contains(DELIVERY), "{said}");
    page.until("document.querySelector('#answers .gone') !== null");
    picture(page, "saved.png");

    page.go(&format!("{base}/ui/playground"));
    let (level, answer) = ask(page, DELIVERY);
    assert!(level == "from the articles" && answer.contains("9 business days"), "{level}: {answer}");
    page.go(&format!("{base}/ui/articles?q=how+long+is+the+delivery"));
    assert!(page.text(".rows").contains("9 business days"));
}

fn flush(page: &mut Page, base: &str) {
    page.go(&format!("{base}/ui/caches?text=standard+delivery"));
    assert!(page.text(".rows").contains(DELIVERY));
    page.press(".between [data-flush]");
    page.until("document.querySelector('#ask').open");
    assert!(page.text("#ask").contains("1 cached answer will be gone"));
    picture(page, "flush.png");
    page.leading(|page| page.press("#ask-yes"));
    assert!(page.text("main").contains("No cached answer is like that"));
    page.go(&format!("{base}/ui/playground"));
    assert_eq!(ask(page, DELIVERY).0, "from the articles");
}

fn watch(page: &mut Page, base: &str) {
    page.go(&format!("{base}/ui/"));
    page.until("document.querySelectorAll('#levels rect.exact').length > 0 && document.querySelectorAll('#times path').length > 0");
    let turns = page.text("[data-about=rate]");
    assert_eq!(turns, "7 turns so far");
    assert_eq!(page.text("#state-text"), "All as it should be");
}

/// Keeps a picture for people to look at, where somebody wants them.
fn picture(page: &mut Page, name: &str) {
    if let Some(folder) = std::env::var_os("TURNFLOW_PICTURES") {
        page.picture(&Path::new(&folder).join(name));
    }
}

/// Every page at both widths, light and dark: nothing is cut off at the side, and every field has a name.
fn look_around(page: &mut Page, base: &str) {
    let entry = {
        page.go(&format!("{base}/ui/caches"));
        page.value("document.querySelector('.rows .whole').getAttribute('href')").as_str().expect("a link").to_owned()
    };
    page.go(&format!("{base}/ui/conversations"));
    let conversation =
        page.value("document.querySelector('.rows .whole').getAttribute('href')").as_str().expect("a link").to_owned();
    let others =
        ["/ui/article?id=delivery-times", "/ui/article", "/ui/caches?text=nothing+is+like+this", &entry, &conversation];
    for (number, path) in PAGES.into_iter().chain(others).enumerate() {
        for (width, is_dark) in [(1280, false), (1280, true), (390, false), (390, true)] {
            page.looks(width, is_dark);
            page.go(&format!("{base}{path}"));
            if path == "/ui/" {
                page.until("document.querySelectorAll('#levels rect').length > 0");
            }
            let wide = page.value("document.documentElement.scrollWidth");
            assert!(wide.as_u64() <= Some(width.into()), "{path} is {wide} wide at {width}");
            let unnamed = page.value(
                "[...document.querySelectorAll('input:not([type=hidden]), textarea, button, a')]
                    .filter((one) => !one.labels?.length && !one.ariaLabel && !one.textContent.trim()).map((one) => one.outerHTML)",
            );
            assert_eq!(unnamed, json!([]), "{path}");
            picture(page, &format!("{number}-{width}-{}.png", if is_dark { "dark" } else { "light" }));
        }
    }
}

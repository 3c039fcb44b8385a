//! Metrics as Prometheus and Grafana meet them: what a real server tells, what the documentation says of it, and what the dashboard asks for.

#![expect(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use tonic::Code;
use turnflow::grpc::proto::{AskRequest, ConverseRequest};
use turnflow_state::{CacheControl, Channel, ConversationId, TenantId, Turn, TurnId};

use self::support::http::HttpClient;
use self::support::{TestServer, ask, bounded, turn};

const DOCUMENTATION: &str = include_str!("../../docs/METRICS.md");
const DASHBOARD: &str = include_str!("../../docs/grafana/turnflow.json");
const DELIVERY: &str = "How long does standard delivery take?";

/// What a server tells.
struct Page(String);

impl Page {
    async fn read(server: &TestServer) -> Self {
        let reply = HttpClient::new(server.http).get("/metrics").await;
        assert_eq!(reply.status, 200, "{reply:?}");
        assert_eq!(reply.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
        Self(reply.body)
    }

    /// Every metric with its type.
    fn types(&self) -> BTreeMap<&str, &str> {
        let types = self.0.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        let count = self.0.lines().filter(|line| line.starts_with("# TYPE ")).count();
        let types: BTreeMap<_, _> = types.collect();
        assert_eq!(types.len(), count, "each is told once");
        types
    }

    /// Every metric that has a series, with the labels of all of its series.
    fn labels(&self) -> BTreeMap<&str, BTreeSet<&str>> {
        let types = self.types();
        let mut labels: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for line in self.0.lines().filter(|line| !line.starts_with('#')) {
            let (series, _) = line.rsplit_once(' ').expect("a value");
            let (name, pairs) = series.split_once('{').unwrap_or((series, "}"));
            let own = labels.entry(metric_of(name, &types)).or_default();
            // No value in here has a comma or an equals sign.
            let names = pairs.trim_end_matches('}').split(',').filter_map(|pair| pair.split_once('='));
            own.extend(names.map(|(label, _)| label).filter(|label| *label != "le"));
        }
        labels
    }

    /// The value of a series; 0 when there is none.
    fn value(&self, series: &str) -> f64 {
        let found = self.0.lines().filter_map(|line| line.rsplit_once(' ')).find(|(found, _)| *found == series);
        found.map_or(0.0, |(_, value)| value.parse().expect("a number"))
    }
}

/// The metric that a name in an expression or a sample belongs to.
fn metric_of<'n>(name: &'n str, types: &BTreeMap<&str, &str>) -> &'n str {
    let suffixes = ["_bucket", "_sum", "_count"];
    let base = suffixes.into_iter().find_map(|suffix| name.strip_suffix(suffix));
    base.filter(|base| types.get(base) == Some(&"histogram")).unwrap_or(name)
}

/// What the documentation says: every metric with its type and labels.
fn documented() -> BTreeMap<&'static str, (&'static str, BTreeSet<&'static str>)> {
    let rows = DOCUMENTATION.lines().filter(|line| line.starts_with("| `turnflow_"));
    let row = |line: &'static str| {
        let mut cells = line.trim_matches('|').split(" | ").map(str::trim);
        let mut cell = || cells.next().expect("a cell");
        let (name, kind, labels) = (cell().trim_matches('`'), cell(), cell());
        let labels = labels.split(',').map(|label| label.trim().trim_matches('`')).filter(|label| !label.is_empty());
        (name, (kind, labels.collect()))
    };
    rows.map(row).collect()
}

/// Every metric that the dashboard asks for.
fn on_the_dashboard(types: &BTreeMap<&str, &str>) -> BTreeSet<String> {
    let dashboard: Value = serde_json::from_str(DASHBOARD).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let rows = panels.iter().filter(|panel| panel["type"] == "row").map(|row| row["title"].as_str().expect("a title"));
    let expected = ["Overview", "Caches", "Load", "Engines", "Knowledge base", "Cost"];
    assert_eq!(rows.collect::<Vec<_>>(), expected);
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let expressions = targets.map(|target| target["expr"].as_str().expect("an expression"));
    let is_of_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let words = expressions.flat_map(|expression| expression.split(move |letter| !is_of_name(letter)));
    words.filter(|word| word.starts_with("turnflow_")).map(|word| metric_of(word, types).to_owned()).collect()
}

#[tokio::test]
async fn server_documentation_and_dashboard_agree() {
    bounded(async {
        let server = TestServer::start(|_| {}).await;
        HttpClient::new(server.http).ask(DELIVERY, &[]).await;
        ask(&mut server.client().await, turn("c", "1", DELIVERY)).await.expect("answered");
        let page = Page::read(&server).await;
        let (types, documented) = (page.types(), documented());
        let kinds: BTreeMap<_, _> = documented.iter().map(|(name, (kind, _))| (*name, *kind)).collect();
        assert_eq!(types, kinds, "the server on the left, docs/METRICS.md on the right");
        for (name, labels) in page.labels() {
            assert_eq!(labels, documented[name].1, "labels of {name}: the server on the left");
        }
        let names: BTreeSet<String> = types.keys().map(ToString::to_string).collect();
        assert_eq!(names, on_the_dashboard(&types), "the server on the left, the dashboard on the right");
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn what_happens_is_counted() {
    bounded(async {
        let server = TestServer::start(|_| {}).await;
        let before = Page::read(&server).await;
        let client = HttpClient::new(server.http);
        client.ask(DELIVERY, &[]).await;
        client.ask(DELIVERY, &[]).await;
        assert_eq!(client.get("/nothing").await.status, 404);
        let mut grpc = server.client().await;
        ask(&mut grpc, turn("c", "1", "thank you!")).await.expect("answered");
        let refused = grpc.ask(AskRequest { turn: Some(turn("c", "2", " ")) }).await.expect_err("nothing is asked");
        assert_eq!(refused.code(), Code::InvalidArgument);

        let after = Page::read(&server).await;
        let check = |series: &str, expected: f64| {
            assert_eq!(after.value(series) - before.value(series), expected, "{series}\n{}", after.0);
        };
        for (level, tier) in [("miss", "extractive"), ("exact", "extractive"), ("miss", "scripted")] {
            check(&format!("turnflow_turns_total{{tenant=\"default\",level=\"{level}\",tier=\"{tier}\"}}"), 1.0);
        }
        check("turnflow_turn_seconds_count{level=\"exact\"}", 1.0);
        check("turnflow_turn_seconds_bucket{level=\"miss\",le=\"+Inf\"}", 2.0);
        check("turnflow_stage_seconds_count{stage=\"generate\"}", 1.0);
        check("turnflow_cache_entries", 2.0);
        let asked = "turnflow_http_requests_total{method=\"POST\",route=\"/v1/chat/completions\",status=\"200\"}";
        check(asked, 2.0);
        check("turnflow_http_requests_total{method=\"GET\",route=\"unknown\",status=\"404\"}", 1.0);
        for code in ["Ok", "InvalidArgument"] {
            let ended = format!(
                "turnflow_grpc_calls_total{{service=\"turnflow.v1.Conversations\",method=\"Ask\",code=\"{code}\"}}"
            );
            check(&ended, 1.0);
        }
        check("turnflow_connections{protocol=\"grpc\"}", 1.0);
        check("turnflow_store_keys{column=\"turns\"}", 3.0);
        assert!(after.value("turnflow_tokens_saved_total{tenant=\"default\"}") > 0.0, "{}", after.0);
        assert!(after.value("turnflow_encoder_batch_texts_count") > 0.0, "{}", after.0);
        drop(grpc);
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_call_whose_client_leaves_is_counted_as_cancelled() {
    bounded(async {
        let server = TestServer::start(|_| {}).await;
        let mut grpc = server.client().await;
        drop(grpc.converse(tokio_stream::pending::<ConverseRequest>()).await.expect("a stream"));
        let ended =
            "turnflow_grpc_calls_total{service=\"turnflow.v1.Conversations\",method=\"Converse\",code=\"Cancelled\"}";
        while Page::read(&server).await.value(ended) < 1.0 {}
        drop(grpc);
        while Page::read(&server).await.value("turnflow_connections{protocol=\"grpc\"}") > 0.0 {}
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn tenants_beyond_the_most_share_a_series() {
    /// `TENANTS_SHOWN_MAX`, as the documentation has it.
    const SHOWN: usize = 100;
    bounded(async {
        let server = TestServer::start(|_| {}).await;
        let thanks = async |tenant: usize, id: usize| {
            let turn = Turn {
                tenant: TenantId::new(format!("t{tenant:03}")).expect("valid"),
                conversation: ConversationId::new("c").expect("valid"),
                id: TurnId::new(id.to_string()).expect("valid"),
                channel: Channel::Web,
                text: "thank you!".to_owned(),
                cache_control: CacheControl::Bypass,
                at_ms: 0,
            };
            let mut events = server.pipeline.submit(turn).await.expect("admitted");
            while events.next().await.is_some() {}
        };
        for tenant in 0..SHOWN + 2 {
            thanks(tenant, 1).await;
        }
        let series =
            |tenant: &str| format!("turnflow_turns_total{{tenant=\"{tenant}\",level=\"bypass\",tier=\"scripted\"}}");
        let page = Page::read(&server).await;
        assert_eq!(page.0.lines().filter(|line| line.starts_with("turnflow_turns_total{")).count(), SHOWN + 1);
        assert_eq!((page.value(&series("t000")), page.value(&series(""))), (1.0, 2.0), "{}", page.0);
        // Who shares one goes on to.
        thanks(0, 2).await;
        thanks(SHOWN + 1, 2).await;
        let page = Page::read(&server).await;
        assert_eq!((page.value(&series("t000")), page.value(&series(""))), (2.0, 3.0), "{}", page.0);
        server.stop().await;
    })
    .await;
}

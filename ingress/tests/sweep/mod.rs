//! One log under several settings, by the real binary: the figures of each, their table, and the page with its charts.

use std::fs;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::binary::{finish, sample, turnflow};

/// A name that has to be escaped wherever it is shown.
const HOSTILE: &str = "<b>&\"'";

struct Small {
    dir: TempDir,
    log: String,
    kb: String,
}

/// The first turns of the sample shop, one source of which has a hostile name.
fn small() -> Small {
    let dir = TempDir::new().expect("a temporary folder");
    let log = fs::read_to_string(sample("log.jsonl")).expect("the sample");
    let lines = (0..).zip(log.lines().take(60)).map(|(number, line)| {
        let mut turn: Value = serde_json::from_str(line).expect("JSON");
        turn["gold"]["source"] = json!(if number % 3 == 0 { HOSTILE } else { "shop" });
        format!("{turn}\n")
    });
    let path = dir.path().join("log.jsonl");
    fs::write(&path, lines.collect::<String>()).expect("written");
    // The plain rule, whose setting decides about hits by itself.
    fs::write(dir.path().join("rule.toml"), "[policy]\nverifier = \"none\"\n").expect("written");
    Small { log: path.display().to_string(), kb: sample("articles.jsonl").display().to_string(), dir }
}

impl Small {
    fn replay(&self, more: &[&str]) -> (i32, String, String) {
        let rule = self.dir.path().join("rule.toml").display().to_string();
        finish(
            turnflow().args(["--config", &rule, "replay", &self.log, "--kb", &self.kb, "--in-flight", "1"]).args(more),
        )
    }

    /// What is printed, and the page.
    fn report(&self, more: &[&str]) -> (Value, String) {
        let page = self.dir.path().join("report.html");
        let (code, stdout, _) = self.replay(&[more, &["--json", "--report", &page.display().to_string()]].concat());
        assert_eq!(code, 0);
        (serde_json::from_str(&stdout).expect("JSON"), fs::read_to_string(page).expect("a page"))
    }
}

/// A point of a chart.
#[derive(Debug, PartialEq)]
struct Drawn {
    series: String,
    label: String,
    x: f64,
    y: f64,
}

/// The points of the chart with this title. Fails for a page that is not well formed.
fn drawn(page: &str, title: &str) -> Vec<Drawn> {
    let options = roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() };
    let page = roxmltree::Document::parse_with_options(page, options).expect("well-formed");
    let mut figures = page.descendants().filter(|node| node.has_tag_name("figure"));
    let titled = |figure: &roxmltree::Node<'_, '_>| figure.descendants().any(|node| node.text() == Some(title));
    let figure = figures.find(titled).expect("a chart of that title");
    let points = figure.descendants().filter(|node| node.attribute("data-x").is_some());
    let drawn = points.map(|point| {
        let text = |name: &str| point.attribute(name).expect("an attribute").to_owned();
        let number = |name: &str| text(name).parse().expect("a number");
        Drawn { series: text("data-series"), label: text("data-label"), x: number("data-x"), y: number("data-y") }
    });
    drawn.collect()
}

fn number(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

/// What a chart of a sweep has to show for one series: a point of each run, from the printed figures.
fn expected(sweep: &Value, series: &str, point: impl Fn(&Value) -> (f64, f64)) -> Vec<Drawn> {
    let runs = sweep["runs"].as_array().expect("runs").iter();
    let drawn = runs.map(|run| {
        let (x, y) = point(run);
        let label = run["setting"].as_str().expect("a name").to_owned();
        Drawn { series: series.to_owned(), label, x, y }
    });
    drawn.collect()
}

#[test]
fn a_sweep_draws_the_figures_that_it_prints() {
    let small = small();
    let (sweep, page) = small.report(&["--sweep", "cache.similarity-min=0.5..0.99/3"]);
    assert_eq!((&sweep["key"], &sweep["logarithmic"]), (&json!("cache.similarity-min"), &json!(false)));
    let runs = sweep["runs"].as_array().expect("runs");
    let values: Vec<_> = runs.iter().map(|run| number(&run["value"])).collect();
    assert_eq!(values, [0.5, 0.745, 0.99]);
    let hits = |run: &Value| run["report"]["scores"]["parts"][0]["hits"].as_u64();
    assert!(hits(&runs[0]) > hits(&runs[2]), "the setting matters: {sweep}");

    let drawn_hits = drawn(&page, "Hits against wrong hits");
    let parts = runs[0]["report"]["scores"]["parts"].as_array().expect("parts").len();
    assert_eq!((parts, drawn_hits.len()), (3, 9), "all, and two sources");
    for (place, series) in ["all", HOSTILE, "shop"].into_iter().enumerate() {
        let part = |run: &Value| run["report"]["scores"]["parts"][place].clone();
        let points =
            expected(&sweep, series, |run| (number(&part(run)["wrong_per_hit"]), number(&part(run)["hit_rate"])));
        assert_eq!(drawn_hits[3 * place..3 * place + 3], points);
    }
    let tokens = |run: &Value| (number(&run["value"]), number(&run["report"]["load_taken_off"]["tokens_spent"]));
    assert_eq!(drawn(&page, "Cost, in tokens: no prices are configured"), expected(&sweep, "all answers", tokens));
    let latency = drawn(&page, "Latency");
    assert_eq!(latency.len(), 12);
    let p95 = |run: &Value| (number(&run["value"]), number(&run["report"]["latency_of_hits"]["p95_us"]));
    assert_eq!(latency[3..6], expected(&sweep, "hits, 95 of 100 faster (p95)", p95));

    // What comes from the log is shown, and shown as text only.
    assert!(page.contains("&lt;b&gt;&amp;&quot;&#39;: hit rate") && !page.contains("<b>"), "{page}");
    for forbidden in ["<script", "http://", "https://", "src=", "@import", "url("] {
        assert!(!page.contains(forbidden), "{forbidden} in a page that stands alone");
    }
    assert!(page.contains("similarity-min = 0.95"), "the settings that all have in common");
}

#[test]
fn a_sweep_encodes_once_and_finds_what_single_replays_find() {
    let small = small();
    let (sweep, _) = small.report(&["--sweep", "cache.similarity-min=0.5,0.9", "--validity", "none"]);
    let encoded: Vec<_> = sweep["runs"].as_array().expect("runs").iter().map(|run| &run["texts_encoded"]).collect();
    assert!(sweep["warm_up"]["texts_encoded"].as_u64() > Some(100), "{sweep}");
    assert_eq!(encoded, [&json!(0), &json!(0)]);
    let config = small.dir.path().join("turnflow.toml");
    for (place, value) in ["0.5", "0.9"].into_iter().enumerate() {
        fs::write(&config, format!("[policy]\nverifier = \"none\"\n\n[cache]\nsimilarity-min = {value}\n"))
            .expect("written");
        let (single, _) = small.report(&["--config", &config.display().to_string(), "--validity", "none"]);
        let swept = &sweep["runs"][place]["report"];
        for part in ["answered_by", "load_taken_off", "scores", "timeline"] {
            assert_eq!(swept[part], single[part], "{value}: {part}");
        }
    }
    // A setting of the encoder is tried with an encoder of its own.
    let (sweep, _) = small.report(&["--sweep", "encoder.batch-texts-max=1,8"]);
    assert_eq!((&sweep["warm_up"], &sweep["runs"][1]["texts_encoded"]), (&Value::Null, &Value::Null));
}

#[test]
fn a_sweep_prints_a_row_for_each_setting() {
    let (code, stdout, stderr) = small().replay(&["--sweep", "cache.ttl-s=1..1000/2"]);
    assert_eq!(code, 0);
    let rows: Vec<_> = stdout.lines().map(|line| line.split_whitespace().next().unwrap_or_default()).collect();
    assert_eq!(rows[..3], ["cache.ttl-s", "1", "1000"], "{stdout}");
    assert_eq!(rows[4..7], ["by", "1", "1000"], "{stdout}");
    for expected in ["wrong/hit", "tokens off", "misses p50", "shop: hit rate", "without the encoder's work"] {
        assert!(stdout.contains(expected), "{expected} is not in\n{stdout}");
    }
    assert!(stderr.contains("cache.ttl-s 1000:"), "{stderr}");
}

#[test]
fn what_cannot_be_swept_is_said_before_anything_runs() {
    let small = small();
    let check = |more: &[&str], expected: &str| {
        let (code, stdout, stderr) = small.replay(more);
        assert_eq!((code, stdout.as_str()), (64, ""), "{more:?}");
        assert!(stderr.contains(expected) && !stderr.contains("encoding"), "{stderr}");
    };
    check(&["--sweep", "cache.similarity=0.9,0.95"], "--sweep cache.similarity = 0.9: unknown field `similarity`");
    check(&["--sweep", "cache.similarity-min=0.9..1.5"], "must lie between 0 and 1");
    check(&["--sweep", "cache.similarity-min"], "expected KEY=");
    check(&["--sweep", "cache.ttl-s=1,2", "--sweep", "cache.similarity-min=0.9"], "cannot be used multiple times");
    check(&["--sweep", "cache.ttl-s=1,2", "--data", "x"], "cannot be used with");
    check(&["--report", &small.log], "which is read");
    check(&["--report", "/no/such/folder/report.html"], "there is no folder /no/such/folder");
}

#[test]
fn a_single_replay_has_a_page_too() {
    let small = small();
    let (report, page) = small.report(&[]);
    let levels = drawn(&page, "Hits in the course of the log");
    let buckets = report["timeline"]["buckets"].as_array().expect("buckets");
    let answered: Vec<_> = buckets.iter().filter(|bucket| bucket["answers"] != 0).collect();
    assert_eq!(answered.iter().filter_map(|bucket| bucket["answers"].as_u64()).sum::<u64>(), 60);
    assert_eq!(levels.len(), 4 * answered.len());
    for (point, bucket) in levels.iter().filter(|point| point.series == "exact").zip(&answered) {
        assert_eq!(point.y, number(&bucket["exact"]) / number(&bucket["answers"]));
    }
    let latency = drawn(&page, "Latency");
    let paths = report["latency"].as_array().expect("paths");
    let times: Vec<_> =
        paths.iter().flat_map(|path| path["distribution_us"].as_array().expect("times")).map(number).collect();
    assert_eq!(latency.iter().map(|point| point.x).collect::<Vec<_>>(), times);
    let sources = drawn(&page, "By gold source");
    let labels: Vec<_> = sources.iter().map(|point| point.label.as_str()).collect();
    assert_eq!(labels, ["all", HOSTILE, "shop", "all", HOSTILE, "shop"]);
    let rates = report["scores"]["parts"].as_array().expect("parts").iter().map(|part| number(&part["hit_rate"]));
    assert_eq!(sources[..3].iter().map(|point| point.y).collect::<Vec<_>>(), rates.collect::<Vec<_>>());
}

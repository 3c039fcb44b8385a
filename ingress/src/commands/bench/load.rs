//! `bench load`: a pipeline of this process or a server under more load than it can answer, and what becomes of the turns.

use std::fmt;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;
use turnflow_pipeline::{ArticleDraft, Order, Pipeline};
use turnflow_state::{CacheControl, Limits, TenantId};

use super::super::replay::{check_output, open_file, temporary_folder};
use super::super::signal::shutdown_signal;
use super::super::{Context, open, reach};
use crate::cli::{BenchLoadArgs, CacheArg, OrderArg};
use crate::failure::Failure;
use crate::grpc::TENANT_DEFAULT;
use crate::kb_file::read_articles;
use crate::load::{
    Class, Customers, END_WAIT_MAX, LoadReport, Pattern, Phase, Plan, Target, Texts, Trace, arrival_times, plot,
    run as drive,
};
use crate::replay::report::millis;
use crate::replay::{Format, LogReader};
use crate::sample;
use crate::say::say;

pub(super) fn run(context: &Context, args: &BenchLoadArgs) -> Result<(), Failure> {
    let read = [Some(args.log.as_path()), args.kb.as_deref(), args.arrivals.as_deref()];
    check_output("--report", args.report.as_deref(), &read)?;
    // Every file first: a wrong name must not cost the opening of store and model.
    let inputs = Inputs::read(args, &context.config.limits)?;
    if let Some(order) = args.compare_order {
        return compare(context, args, &inputs, order);
    }
    let report = match &args.server {
        None => in_process(context, &inputs)?,
        Some(address) => {
            let access = args.access.clone().into();
            open::runtime()?.block_on(async {
                let target = Target::connect(address, &access).await;
                measure(target.map_err(|error| reach::unreachable(error, "--server"))?, &inputs).await
            })?
        }
    };
    if let Some(path) = &args.report {
        let picture = plot(&report, &args.log.display().to_string());
        std::fs::write(path, picture).with_context(|| format!("cannot write the report to {}", path.display()))?;
    }
    context.print(&report, &report)
}

/// The same load under the configured order of queues and under another, one after the other: the second at the rates of the first.
fn compare(context: &Context, args: &BenchLoadArgs, inputs: &Inputs, order: OrderArg) -> Result<(), Failure> {
    let mut config = context.config.clone();
    let before = config.queue.order;
    config.queue.order = match order {
        OrderArg::Priority => Order::Priority,
        OrderArg::Fifo => Order::Fifo,
    };
    if config.queue.order == before {
        return Err(Failure::usage(anyhow::anyhow!("--compare-order names the order that is configured: {before:?}")));
    }
    let first = in_process(context, inputs)?;
    let again =
        Inputs { plan: Plan { capacity: Some(first.capacity.turns_per_s), ..inputs.plan.clone() }, ..inputs.clone() };
    say!("the same with the order {:?}", config.queue.order);
    let other = config.queue.order;
    let second = in_process(&context.with(config), &again)?;
    if let Some(path) = &args.report {
        for (order, report) in [(before, &first), (other, &second)] {
            let path = path.with_extension(format!("{order:?}.svg").to_lowercase());
            std::fs::write(&path, plot(report, &args.log.display().to_string()))
                .with_context(|| format!("cannot write the report to {}", path.display()))?;
        }
    }
    let comparison = Comparison::of((before, first), (other, second));
    context.print(&comparison, &comparison)
}

/// Two runs under two orders.
#[derive(Serialize)]
struct Comparison {
    runs: [(Order, LoadReport); 2],
    ongoing: Vec<OngoingP99>,
}

/// When ongoing turns had their first token under one load, at the 99th percentile.
#[derive(Serialize)]
struct OngoingP99 {
    multiple: f64,
    /// In both runs, in microseconds.
    first_token_us: [Option<u64>; 2],
    /// That of the first run by that of the second.
    ratio: Option<f64>,
}

impl Comparison {
    fn of(first: (Order, LoadReport), second: (Order, LoadReport)) -> Self {
        let p99 = |phase: &Phase| phase.of_class(Class::Ongoing).first_token.map(|times| times.p99_us);
        let both = first.1.phases.iter().zip(&second.1.phases);
        let ongoing = both.map(|(a, b)| {
            let first_token_us = [p99(a), p99(b)];
            let ratio = p99(a).zip(p99(b)).map(|(a_us, b_us)| a_us as f64 / b_us as f64);
            OngoingP99 { multiple: a.multiple, first_token_us, ratio }
        });
        let ongoing = ongoing.collect();
        Self { runs: [first, second], ongoing }
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (order, report) in &self.runs {
            writeln!(f, "== order {order:?}\n{report}")?;
        }
        writeln!(f, "First token of ongoing turns, p99, {:?} : {:?}", self.runs[0].0, self.runs[1].0)?;
        for OngoingP99 { multiple, first_token_us, ratio } in &self.ongoing {
            let [first, second] = first_token_us.map(|us| us.map_or("–".to_owned(), millis));
            let ratio = ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.3}"));
            writeln!(f, "  {multiple} x: {first} : {second}, ratio {ratio}")?;
        }
        Ok(())
    }
}

/// What is read before anything runs, and the same in every run.
#[derive(Clone)]
struct Inputs {
    texts: Arc<Texts>,
    articles: Vec<ArticleDraft>,
    plan: Plan,
    tenant: TenantId,
    cache_control: CacheControl,
    ongoing_share: f64,
}

impl Inputs {
    fn read(args: &BenchLoadArgs, limits: &Limits) -> Result<Self, Failure> {
        let pattern = match &args.arrivals {
            None => Pattern::Poisson,
            Some(path) => Pattern::Trace(trace(path, limits)?),
        };
        let articles = match &args.kb {
            _ if args.server.is_some() => Vec::new(),
            Some(path) => read_articles(path, limits)?,
            None => sample::articles(limits)?,
        };
        let plan = Plan {
            pattern,
            multiples: args.multiples.clone(),
            seconds: args.seconds,
            recover_seconds: args.recover_seconds,
            capacity: args.capacity,
            slo: Duration::from_millis(args.slo_ms),
            patience: END_WAIT_MAX,
        };
        Ok(Self {
            texts: Arc::new(Texts::read(log(&args.log, "log", limits)?)?),
            articles,
            plan,
            tenant: TenantId::new(TENANT_DEFAULT)?,
            cache_control: match args.cache {
                CacheArg::Bypass => CacheControl::Bypass,
                CacheArg::Default => CacheControl::Default,
            },
            ongoing_share: args.ongoing_share,
        })
    }
}

/// One run under the context's settings, on a store and a pipeline of its own.
fn in_process(context: &Context, inputs: &Inputs) -> Result<LoadReport, Failure> {
    let folder = temporary_folder()?;
    let parts = open::parts(context, open::store(context, folder.path())?)?;
    open::runtime()?.block_on(async {
        let pipeline = Pipeline::start(&context.config, &parts)?;
        open::import(&pipeline.knowledge(), &inputs.tenant, inputs.articles.clone()).await?;
        let target = Target::InProcess { pipeline: pipeline.clone(), encoder: parts.encoder.clone() };
        let report = measure(target, inputs).await;
        pipeline.shutdown().await;
        report
    })
}

async fn measure(target: Target, inputs: &Inputs) -> Result<LoadReport, Failure> {
    let Inputs { texts, plan, tenant, cache_control, ongoing_share, .. } = inputs;
    let customers = Customers::new(Arc::clone(texts), tenant.clone(), *cache_control, *ongoing_share);
    let signal = shutdown_signal()?;
    tokio::select! {
        report = drive(target, customers, plan, |text| say!("{text}")) => Ok(report?),
        () = signal => Err(anyhow::anyhow!("stopped before the end of the measurement").into()),
    }
}

fn trace(path: &Path, limits: &Limits) -> Result<Trace, Failure> {
    let (name, log) = (path.display(), log(path, "arrivals", limits)?);
    if !log.format().has_times() {
        let error = anyhow::anyhow!("{name} tells no times ({}), which --arrivals needs", log.format().as_str());
        return Err(Failure::usage(error));
    }
    Trace::new(arrival_times(log)?).map_err(|reason| Failure::usage(anyhow::anyhow!("--arrivals {name}: {reason}")))
}

fn log(path: &Path, what: &str, limits: &Limits) -> anyhow::Result<LogReader<BufReader<File>>> {
    let (name, file) = (path.display().to_string(), BufReader::new(open_file(path, what)?));
    LogReader::open(file, &name, Format::Auto, limits, None).with_context(|| format!("cannot read {name}"))
}

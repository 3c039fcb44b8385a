//! The command line of `turnflow router`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// What to do with a router.
#[derive(Debug, Subcommand)]
pub enum RouterCommand {
    /// Fit a router to turns of which two models' answers were judged, and calibrate it
    Train(RouterTrainArgs),
    /// Say what a router spends for which quality, beside chance and beside one that knows the outcome
    Eval(RouterEvalArgs),
}

/// What a router is fitted to, or judged on.
#[derive(Debug, Args)]
pub struct JudgedTurnArgs {
    /// Prompts (prompt, weak_correct, strong_correct) and turns of labelled logs (text, gold.route_hint): JSON lines
    #[arg(value_name = "DATA.jsonl", required = true)]
    pub data: Vec<PathBuf>,

    /// The knowledge base that the turns of logs are about: what they retrieve is taken into account
    #[arg(long, value_name = "KB.jsonl")]
    pub kb: Option<PathBuf>,

    /// Take only turns of this source from logs; may be given more than once. Prompts are all taken
    #[arg(long, value_name = "NAME")]
    pub source: Vec<String>,
}

/// Arguments of `router train`.
#[derive(Debug, Args)]
pub struct RouterTrainArgs {
    /// What it is fitted to.
    #[command(flatten)]
    pub turns: JudgedTurnArgs,

    /// Where to write it
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,

    /// Leave out this share of the turns, and judge the router on them
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    pub held_out: f64,

    /// Decides first weights and the order of turns
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
}

/// Arguments of `router eval`.
#[derive(Debug, Args)]
pub struct RouterEvalArgs {
    /// What it is judged on.
    #[command(flatten)]
    pub turns: JudgedTurnArgs,

    /// The router: a file, or shop for the one that ships [default: shop]
    #[arg(long, value_name = "FILE")]
    pub router: Option<PathBuf>,
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse::<f64>().map_err(|error| error.to_string())?;
    if (0.0..1.0).contains(&share) { Ok(share) } else { Err("not from 0 to less than 1".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::share;

    #[test]
    fn a_share_is_less_than_all() {
        assert_eq!((share("0"), share("0.25")), (Ok(0.0), Ok(0.25)));
        for wrong in ["1", "-0.1", "NaN", "a fifth"] {
            assert!(share(wrong).is_err(), "{wrong}");
        }
    }
}

//! Arguments of `turnflow keys`, and of every command that calls a server with a key.

use std::fmt;
use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, FromArgMatches, Subcommand};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Span, Timestamp, civil};
use turnflow_state::TenantId;

use super::{StoreArgs, tenant};
use crate::keys::{KeyLimits, Scope};

/// What to do with keys.
#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// Make a key, and show it this once: from the first one on, every call needs one
    Create(KeysCreateArgs),
    /// Show what keys there are, without their secrets
    List(StoreArgs),
    /// Have a key count no more; what is open with it ends within a second
    Revoke(KeysRevokeArgs),
    /// Make a key that takes another one's place, and have that one expire
    Rotate(KeysRotateArgs),
}

/// Arguments of `keys create`.
#[derive(Debug, Args)]
pub struct KeysCreateArgs {
    /// Whose conversations and whose knowledge base it opens
    #[arg(long, value_parser = tenant)]
    pub tenant: TenantId,

    /// What it may be used for
    #[arg(long, value_enum, required = true, value_delimiter = ',')]
    pub scopes: Vec<Scope>,

    /// What to call it
    #[arg(long, value_name = "TEXT")]
    pub name: Option<String>,

    /// When it expires: in a while (90d), or at a time (2027-01-31T12:00:00Z, or 2027-01-31, which is its 00:00 UTC) [default: never]
    #[arg(long, value_name = "WHEN")]
    pub expires: Option<When>,

    /// What it may do at most, such as requests-per-minute=60,budget-per-day=5; also tokens-per-minute, turns-in-flight, streams; 0 for no limit [default: as configured]
    #[arg(long, value_name = "NAME=NUMBER,…")]
    pub limits: Option<KeyLimits>,

    /// Where the store is.
    #[command(flatten)]
    pub store: StoreArgs,
}

/// Arguments of `keys revoke`.
#[derive(Debug, Args)]
pub struct KeysRevokeArgs {
    /// The name of the key, or the key itself
    pub id: KeyText,

    /// Where the store is.
    #[command(flatten)]
    pub store: StoreArgs,
}

/// Arguments of `keys rotate`.
#[derive(Debug, Args)]
pub struct KeysRotateArgs {
    /// The name of the key, or the key itself
    pub id: KeyText,

    /// How long it counts beside the new one
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = overlap)]
    pub overlap: SignedDuration,

    /// Where the store is.
    #[command(flatten)]
    pub store: StoreArgs,
}

/// A time to come.
#[derive(Clone, Copy, Debug)]
pub enum When {
    /// So much later.
    In(Span),
    /// Then.
    At(Timestamp),
}

impl When {
    /// When that is.
    ///
    /// # Errors
    /// When it is no time to come.
    pub fn from(self, now: Timestamp) -> Result<Timestamp, String> {
        let then = match self {
            Self::At(then) => then,
            // Days and longer are those of the calendar.
            Self::In(span) => now
                .to_zoned(TimeZone::UTC)
                .checked_add(span)
                .map(|then| then.timestamp())
                .map_err(|error| error.to_string())?,
        };
        if then > now { Ok(then) } else { Err(format!("{then} is no time to come")) }
    }
}

impl std::str::FromStr for When {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(then) = text.parse() {
            return Ok(Self::At(then));
        }
        // A date alone: a time without its zone would be read as one too, and lose the time.
        if text.len() == "2027-01-31".len()
            && let Ok(Ok(midnight)) = text.parse().map(|day: civil::Date| day.to_zoned(TimeZone::UTC))
        {
            return Ok(Self::At(midnight.timestamp()));
        }
        text.parse().map(Self::In).map_err(|_| "expected a while such as 90d, or a time such as 2027-01-31".to_owned())
    }
}

fn overlap(text: &str) -> Result<SignedDuration, String> {
    let overlap: SignedDuration = text.parse().map_err(|_| "expected a time such as 1h or 30m".to_owned())?;
    if overlap.is_negative() { Err("expected a time that is not below 0".to_owned()) } else { Ok(overlap) }
}

/// How to call a server, and which of the options for TLS are from the command line and not from their variables.
#[derive(Clone, Debug, Default)]
pub struct AccessArgs {
    /// How to call it.
    pub options: AccessOptions,
    /// The options for TLS that were given.
    pub given: Vec<&'static str>,
}

impl FromArgMatches for AccessArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let is_given = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
        let given = TLS_OPTIONS.into_iter().filter(|(id, _)| is_given(id)).map(|(_, option)| option).collect();
        Ok(Self { options: AccessOptions::from_arg_matches(matches)?, given })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        Self::from_arg_matches(matches).map(|args| *self = args)
    }
}

impl Args for AccessArgs {
    fn augment_args(command: clap::Command) -> clap::Command {
        AccessOptions::augment_args(command)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        AccessOptions::augment_args_for_update(command)
    }
}

/// The options for TLS, by the names that clap has for them.
const TLS_OPTIONS: [(&str, &str); 3] =
    [("ca_file", "--ca-file"), ("client_cert", "--client-cert"), ("client_key", "--client-key")];

/// How to call a server.
#[derive(Clone, Debug, Default, Args)]
pub struct AccessOptions {
    /// The key to call the server with; other users of this machine may see arguments, so rather set the variable
    #[arg(long, value_name = "KEY", env = "TURNFLOW_KEY", hide_env_values = true)]
    pub key: Option<KeyText>,

    /// Certificates in PEM of authorities that vouch for an https:// server, besides the public ones
    #[arg(long, value_name = "FILE", env = "TURNFLOW_CA_FILE", value_parser = file())]
    pub ca_file: Option<PathBuf>,

    /// This client's certificate in PEM, where the server wants one
    #[arg(long, value_name = "FILE", env = "TURNFLOW_CLIENT_CERT", value_parser = file())]
    pub client_cert: Option<PathBuf>,

    /// The private key of that certificate, in PEM
    #[arg(long, value_name = "FILE", env = "TURNFLOW_CLIENT_KEY", value_parser = file())]
    pub client_key: Option<PathBuf>,
}

/// A file's name, which may be empty: so are variables that stand for nothing.
fn file() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

/// A key that is not printed. Anything is taken, so that nothing is repeated as wrong.
#[derive(Clone)]
pub struct KeyText(String);

impl KeyText {
    /// The text.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for KeyText {
    fn from(text: String) -> Self {
        Self(text.trim().to_owned())
    }
}

impl fmt::Debug for KeyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyText(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_to_come_is_a_while_or_a_time() {
        let now: Timestamp = "2026-03-01T12:00:00Z".parse().expect("a time");
        let check = |text: &str, expected: Result<&str, &str>| {
            let found = text.parse::<When>().and_then(|when| when.from(now)).map(|then| then.to_string());
            assert_eq!(found, expected.map(str::to_owned).map_err(str::to_owned), "{text}");
        };
        check("90d", Ok("2026-05-30T12:00:00Z"));
        check("1h 30m", Ok("2026-03-01T13:30:00Z"));
        check("1 year", Ok("2027-03-01T12:00:00Z"));
        check("2027-01-31", Ok("2027-01-31T00:00:00Z"));
        check("2027-01-31T12:00:00+02:00", Ok("2027-01-31T10:00:00Z"));
        check("2026-03-01", Err("2026-03-01T00:00:00Z is no time to come"));
        check("-1d", Err("2026-02-28T12:00:00Z is no time to come"));
        for text in ["2027-01-31T12:00:00", "2027-01-31T23:00[America/New_York]"] {
            check(text, Err("expected a while such as 90d, or a time such as 2027-01-31"));
        }
        check("soon", Err("expected a while such as 90d, or a time such as 2027-01-31"));
        assert_eq!(format!("{:?}", KeyText::from("tf_secret".to_owned())), "KeyText(..)");
    }
}

//! Several settings under which one log is replayed: the ways to keep answers in step, or the values of one key.
//!
//! A key is any number of the configuration by its dotted name, such as `cache.similarity-min`. Its values are a list, or a
//! range with a number of points: evenly spaced, or by equal factors where the range spans a factor of ten or more. Every
//! setting is a whole configuration that was checked like a user's file.

use std::str::FromStr;

use serde::Serialize;
use toml::Value;
use turnflow_pipeline::{Config, ConfigError};

use super::scheme::Scheme;

/// Points of a range, when nobody says.
const POINTS_DEFAULT: usize = 6;
/// Most settings of one replay.
const POINTS_MAX: usize = 100;
/// From this factor on, a range is taken in equal factors.
const FACTOR_LOGARITHMIC: f64 = 10.0;

/// A key and its values, as they are given on the command line.
#[derive(Clone, Debug, PartialEq)]
pub struct Sweep {
    key: String,
    values: Values,
}

#[derive(Clone, Debug, PartialEq)]
enum Values {
    Range { first: f64, last: f64, points: usize },
    List(Vec<f64>),
}

/// A configuration with a name.
#[derive(Clone, Debug)]
pub struct Setting {
    /// What it is called.
    pub name: String,
    /// Where it lies, if it is a number.
    pub value: Option<f64>,
    /// All settings.
    pub config: Config,
}

/// What tells settings from each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Variable {
    /// The key, or what else it is.
    pub key: String,
    /// Whether its values lie by factors, not by differences.
    pub logarithmic: bool,
}

/// Settings to be compared, in the order in which they are tried.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What tells them apart.
    pub variable: Variable,
    /// All of them.
    pub all: Vec<Setting>,
}

impl Settings {
    /// The ways to keep cached answers in step that are worth comparing.
    #[must_use]
    pub fn schemes(base: &Config) -> Self {
        let setting = |scheme: Scheme| {
            let mut config = base.clone();
            scheme.configure(&mut config.cache);
            Setting { name: scheme.to_string(), value: None, config }
        };
        let variable = Variable { key: "validity".to_owned(), logarithmic: false };
        Self { variable, all: Scheme::COMPARED.map(setting).into() }
    }

    /// The values of one key.
    ///
    /// # Errors
    /// When there is no such key, or it does not take one of the values.
    pub fn swept(base: &Config, sweep: &Sweep) -> Result<Self, String> {
        let key = &sweep.key;
        let whole = matches!(value_of(base, key), Some(Value::Integer(_)));
        let values = sweep.values(whole);
        let logarithmic = values.iter().all(|&value| value > 0.0) && factor(&values) >= FACTOR_LOGARITHMIC;
        let setting = |value: &f64| {
            let config = with(base, key, *value).map_err(|reason| format!("{key} = {value}: {reason}"))?;
            Ok(Setting { name: value.to_string(), value: Some(*value), config })
        };
        let all = values.iter().map(setting).collect::<Result<Vec<_>, String>>()?;
        Ok(Self { variable: Variable { key: key.clone(), logarithmic }, all })
    }
}

impl Sweep {
    /// The values in their order, each once; of a range over whole numbers, the nearest ones.
    fn values(&self, whole: bool) -> Vec<f64> {
        let all = match &self.values {
            Values::List(values) => values.clone(),
            &Values::Range { first, last, points } => {
                let points = (0..points).map(|point| point_of(first, last, point, points));
                points.map(|value| if whole { value.round() } else { value }).collect()
            }
        };
        let mut values: Vec<f64> = Vec::with_capacity(all.len());
        for value in all {
            if !values.contains(&value) {
                values.push(value);
            }
        }
        values
    }
}

fn factor(values: &[f64]) -> f64 {
    let most = values.iter().copied().fold(0.0, f64::max);
    most / values.iter().copied().fold(f64::INFINITY, f64::min)
}

/// A point of a range, as short a number as tells it from its neighbours; the ends are exact.
fn point_of(first: f64, last: f64, point: usize, points: usize) -> f64 {
    if point == 0 || points < 2 {
        return first;
    } else if point == points - 1 {
        return last;
    }
    let part = point as f64 / (points - 1) as f64;
    if first > 0.0 && last > 0.0 && factor(&[first, last]) >= FACTOR_LOGARITHMIC {
        let value = first * (last / first).powf(part);
        return rounded(value, value);
    }
    rounded(first + (last - first) * part, (last - first) / (points - 1) as f64)
}

/// A value to four digits of a step.
fn rounded(value: f64, step: f64) -> f64 {
    let digits = 3 - step.abs().log10().floor() as i32;
    format!("{value:.*}", usize::try_from(digits).unwrap_or(0)).parse().unwrap_or(value)
}

impl FromStr for Sweep {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, values) = text.split_once('=').ok_or("expected KEY=FIRST..LAST/POINTS or KEY=VALUE,VALUE")?;
        let values = match values.split_once("..") {
            Some((first, rest)) => {
                let (last, points) = match rest.split_once('/') {
                    Some((last, points)) => {
                        (last, points.parse().map_err(|_| format!("{points:?} is not a number of points"))?)
                    }
                    None => (rest, POINTS_DEFAULT),
                };
                let (first, last) = (number(first)?, number(last)?);
                if first == last || points < 2 {
                    return Err("a range needs two ends and two points at least".to_owned());
                }
                Values::Range { first, last, points }
            }
            None => Values::List(values.split(',').map(number).collect::<Result<_, _>>()?),
        };
        let points = match &values {
            Values::Range { points, .. } => *points,
            Values::List(values) => values.len(),
        };
        if points > POINTS_MAX {
            return Err(format!("{points} points, at most {POINTS_MAX} are possible"));
        }
        Ok(Self { key: key.trim().to_owned(), values })
    }
}

fn number(text: &str) -> Result<f64, String> {
    let number = text.trim().parse().ok().filter(|number: &f64| number.is_finite());
    number.ok_or_else(|| format!("{text:?} is not a number"))
}

/// What a key is set to; `None` when it is not set.
fn value_of(config: &Config, key: &str) -> Option<Value> {
    let mut value = Value::try_from(config).ok()?;
    for part in key.split('.') {
        value = value.as_table_mut()?.remove(part)?;
    }
    Some(value)
}

/// The configuration with one key set to a number, checked.
fn with(base: &Config, key: &str, number: f64) -> Result<Config, String> {
    if number.fract() != 0.0 {
        return with_value(base, key, Value::Float(number));
    }
    // Where the key is a whole number, it takes no other; where it is not, it takes both, or says so.
    with_value(base, key, Value::Integer(number as i64))
        .or_else(|reason| with_value(base, key, Value::Float(number)).map_err(|_| reason))
}

fn with_value(base: &Config, key: &str, value: Value) -> Result<Config, String> {
    let mut table = toml::Table::try_from(base).map_err(|error| error.to_string())?;
    set(&mut table, key, value)?;
    Config::from_text(&table.to_string(), "--sweep").map_err(|error| match error {
        ConfigError::Key { message, .. } => message,
        // A bound may tie one key to another.
        ConfigError::Value { key: other, value, message, .. } if other != key => format!("{other} = {value} {message}"),
        ConfigError::Value { message, .. } => message,
        other => other.to_string(),
    })
}

fn set(table: &mut toml::Table, key: &str, value: Value) -> Result<(), String> {
    let unknown = || "there is no such setting".to_owned();
    let (section, leaf) = key.rsplit_once('.').unwrap_or(("", key));
    let mut inner = table;
    for part in section.split('.').filter(|part| !part.is_empty()) {
        inner = inner.get_mut(part).and_then(Value::as_table_mut).ok_or_else(unknown)?;
    }
    match inner.get(leaf) {
        Some(Value::Table(_)) => return Err("this is a section, not a setting".to_owned()),
        Some(Value::String(text)) => return Err(format!("it is not a number but {text:?}")),
        Some(Value::Boolean(truth)) => return Err(format!("it is not a number but {truth}")),
        _ => {}
    }
    inner.insert(leaf.to_owned(), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Result<Vec<String>, String> {
        let settings = Settings::swept(&Config::defaults(), &text.parse()?)?;
        Ok(settings.all.into_iter().map(|setting| setting.name).collect())
    }

    #[test]
    fn points_of_ranges_and_lists() {
        let check = |text: &str, expected: &[&str]| assert_eq!(names(text).expect(text), expected, "{text}");
        check("cache.similarity-min=0.88..0.99/6", &["0.88", "0.902", "0.924", "0.946", "0.968", "0.99"]);
        check("cache.similarity-min=0.9,0.95,0.98", &["0.9", "0.95", "0.98"]);
        check("cache.similarity-min=1..0.8/3", &["1", "0.9", "0.8"]);
        check("cache.ttl-s=60..6000/3", &["60", "600", "6000"]);
        check("cache.ttl-s=0..10/3", &["0", "5", "10"]);
        check("knowledge.chunks-retrieved=1..4", &["1", "2", "3", "4"]);
        check("extractive.similarity-margin=0.001..1/4", &["0.001", "0.01", "0.1", "1"]);
        check("extractive.confidence-min=-0.3..0.3/3", &["-0.3", "0", "0.3"]);
        check("tier.price.input-per-million=2", &["2"]);
    }

    #[test]
    fn a_setting_differs_in_its_key_only() {
        let mut base = Config::defaults();
        base.scope.system_prompt = "Be\n\"kind\".".to_owned();
        let settings =
            Settings::swept(&base, &"cache.similarity-min=0.5,0.75".parse().expect("a sweep")).expect("settings");
        assert_eq!(settings.variable, Variable { key: "cache.similarity-min".to_owned(), logarithmic: false });
        for (setting, expected) in settings.all.iter().zip([0.5, 0.75]) {
            let mut config = base.clone();
            config.cache.similarity_min = expected;
            assert_eq!((&setting.config, setting.value), (&config, Some(f64::from(expected))));
        }
        let ttl = Settings::swept(&base, &"cache.ttl-s=1..1000".parse().expect("a sweep")).expect("settings");
        assert!(ttl.variable.logarithmic);
        assert_eq!(ttl.all.len(), 6);
    }

    #[test]
    fn wrong_keys_and_values_are_named() {
        let check = |text: &str, expected: &str| {
            let error = names(text).expect_err(text);
            assert!(error.contains(expected), "{text}: {error}");
        };
        check("cache.similarity-min", "expected KEY=");
        check("cache.similarity-min=", "\"\" is not a number");
        check("cache.similarity-min=0.9,x", "\"x\" is not a number");
        check("cache.similarity-min=0.9..inf", "\"inf\" is not a number");
        check("cache.similarity-min=0.9..0.99/x", "\"x\" is not a number of points");
        check("cache.similarity-min=0.9..0.99/1", "two points");
        check("cache.similarity-min=0.9..0.9", "two ends");
        check("cache.similarity-min=0.9..0.99/1000", "at most 100");
        check("cache.similarity-min=0.9..1.2/4", "cache.similarity-min = 1.1: must lie between 0 and 1");
        check("cache.similarity=0.9", "cache.similarity = 0.9: unknown field `similarity`");
        check("cash.similarity-min=0.9", "there is no such setting");
        check("cache.similarity-min.x=0.9", "there is no such setting");
        check("cache=1", "a section");
        check("scope.language=1,2", "not a number but \"en\"");
        check("cache.semantic=0,1", "not a number but true");
        check("cache.ttl-s=1.5", "invalid type: floating point");
        check("cache.ttl-s=-1", "invalid value");
        check("limits.turns-in-flight-max=100000", "storage.commit-queue-max = 4096 must be at least");
    }

    #[test]
    fn schemes_are_settings() {
        let settings = Settings::schemes(&Config::defaults());
        let ttls: Vec<_> =
            settings.all.iter().map(|setting| (setting.name.as_str(), setting.config.cache.ttl_s)).collect();
        assert_eq!(ttls, [("exact", 0), ("ttl=60s", 60), ("ttl=600s", 600), ("none", 0)]);
    }
}

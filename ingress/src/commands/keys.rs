//! `keys`: makes, shows, revokes and rotates the keys that callers need. Works on their file, whether a server runs or not.

use std::net::SocketAddr;
use std::path::PathBuf;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::Context;
use crate::cli::{KeyText, KeysCommand, KeysCreateArgs, KeysRevokeArgs, KeysRotateArgs, StoreArgs};
use crate::failure::Failure;
use crate::keys::{Key, KeyFiles, KeyId, KeyRecord, KeysError, NewKey, Scope, key_id};
use crate::say::say;

/// Where the keys are of a server with this store.
pub(super) fn files(context: &Context, data: Option<&PathBuf>) -> Result<KeyFiles, Failure> {
    KeyFiles::new(&context.config.gateway, &context.data_dir(data)?).map_err(Failure::usage)
}

/// The name of a key, from itself or from the whole key.
fn named(text: &KeyText) -> Result<KeyId, Failure> {
    let id = key_id(text.reveal()).map_or_else(|| text.reveal().parse(), Ok);
    id.map_err(|message: String| Failure::usage(anyhow::anyhow!(message)))
}

/// Why a port that other machines can reach is not opened where nobody needs a key, and what to do.
pub(super) fn unguarded(address: SocketAddr) -> (anyhow::Error, &'static str) {
    let error = anyhow::anyhow!("there are no keys, so {address}, which other machines can reach, is not opened");
    (error, "turnflow keys create makes one; or set gateway.open where something else decides who calls")
}

/// What can be done about an error.
pub(super) const fn remedy(error: &KeysError) -> Option<&'static str> {
    match error {
        KeysError::PepperMissing { .. } | KeysError::PepperWrong { .. } => {
            Some("put the right one back, or set TURNFLOW_PEPPER; without it, all keys have to be made anew")
        }
        KeysError::Unknown(_) => Some("turnflow keys list names them"),
        KeysError::NotValid { .. } => Some("make another one: turnflow keys create"),
        _ => None,
    }
}

/// The same as a hint.
pub(super) fn failed(error: KeysError) -> Failure {
    let remedy = remedy(&error);
    let failure = Failure::from(error);
    match remedy {
        Some(remedy) => failure.with_hint(remedy),
        None => failure,
    }
}

pub(super) fn run(context: &Context, command: KeysCommand) -> Result<(), Failure> {
    check_folder(context, &command)?;
    match command {
        KeysCommand::Create(args) => create(context, args),
        KeysCommand::List(args) => list(context, &args),
        KeysCommand::Revoke(args) => revoke(context, &args),
        KeysCommand::Rotate(args) => rotate(context, &args),
    }
}

/// A folder that was named has to be there: keys in one that no server reads would open nothing.
fn check_folder(context: &Context, command: &KeysCommand) -> Result<(), Failure> {
    let (KeysCommand::Create(KeysCreateArgs { store, .. })
    | KeysCommand::List(store)
    | KeysCommand::Revoke(KeysRevokeArgs { store, .. })
    | KeysCommand::Rotate(KeysRotateArgs { store, .. })) = command;
    match &store.data {
        Some(dir) if context.config.gateway.keys.as_os_str().is_empty() && !dir.is_dir() => {
            let error = anyhow::anyhow!("there is no folder {}, so no server's keys are there", dir.display());
            let hint =
                "name the store's folder with --data; for a server that is yet to be started, make it with mkdir";
            Err(Failure::usage(error).with_hint(hint))
        }
        _ => Ok(()),
    }
}

fn create(context: &Context, args: KeysCreateArgs) -> Result<(), Failure> {
    let KeysCreateArgs { tenant, scopes, name, expires, limits, store } = args;
    let now = Timestamp::now();
    let expires = expires.map(|when| when.from(now)).transpose();
    let expires = expires.map_err(|message| Failure::usage(anyhow::anyhow!("--expires: {message}")))?;
    let wanted =
        NewKey { tenant, scopes: scopes.into_iter().collect(), name, expires, limits: limits.unwrap_or_default() };
    let (key, record) = files(context, store.data.as_ref())?.create(wanted, now).map_err(failed)?;
    show(context, &key, &record)
}

fn rotate(context: &Context, args: &KeysRotateArgs) -> Result<(), Failure> {
    let files = files(context, args.store.data.as_ref())?;
    let (key, record) = files.rotate(&named(&args.id)?, args.overlap, Timestamp::now()).map_err(failed)?;
    show(context, &key, &record)
}

/// Shows a new key. It is all that goes to stdout, so that a script can take it from there.
fn show(context: &Context, key: &Key, record: &KeyRecord) -> Result<(), Failure> {
    let KeyRecord { id, tenant, expires, .. } = record;
    let until = expires.map_or_else(|| "until it is revoked".to_owned(), |expires| format!("until {expires}"));
    say!("key {id} of tenant {tenant}, for {}, counts {until}", scopes(record));
    say!("it is shown this once, and a running server takes it within a second:");
    let mut shown = described(record, Timestamp::now());
    shown["key"] = json!(key.reveal());
    context.print(&shown, format!("{}\n", key.reveal()))
}

fn revoke(context: &Context, args: &KeysRevokeArgs) -> Result<(), Failure> {
    let now = Timestamp::now();
    let record = files(context, args.store.data.as_ref())?.revoke(&named(&args.id)?, now).map_err(failed)?;
    let text = match record.revoked {
        Some(revoked) if revoked < now => format!("key {} was revoked at {revoked} already\n", record.id),
        _ => format!(
            "revoked key {} of tenant {}; what is open with it ends within a second\n",
            record.id, record.tenant
        ),
    };
    context.print(&described(&record, now), text)
}

fn list(context: &Context, args: &StoreArgs) -> Result<(), Failure> {
    let (files, now) = (files(context, args.data.as_ref())?, Timestamp::now());
    let records = files.load().map_err(failed)?;
    if records.is_empty() {
        say!("there are no keys in {}: whoever reaches the server may call", files.path().display());
    }
    let text = if records.is_empty() { String::new() } else { table(&records, now) };
    let records: Vec<Value> = records.iter().map(|record| described(record, now)).collect();
    context.print(&records, text)
}

/// Keys below a heading, in columns as wide as their longest cell.
fn table(records: &[KeyRecord], now: Timestamp) -> String {
    let heading = ["KEY", "STATE", "TENANT", "SCOPES", "CREATED", "EXPIRES", "LIMITS", "NAME"].map(str::to_owned);
    let rows: Vec<[String; 8]> =
        std::iter::once(heading).chain(records.iter().map(|record| row(record, now))).collect();
    let widths: [usize; 8] =
        std::array::from_fn(|at| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or_default());
    let line = |row: &[String; 8]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

fn row(record: &KeyRecord, now: Timestamp) -> [String; 8] {
    let KeyRecord { id, tenant, name, created, expires, limits, .. } = record;
    let none = || "-".to_owned();
    let limits = if limits.is_empty() { none() } else { limits.to_string() };
    let (state, expires) = (record.state(now).to_string(), expires.map_or_else(none, day));
    let name = name.clone().unwrap_or_default();
    [id.to_string(), state, tenant.to_string(), scopes(record), day(*created), expires, limits, name]
}

fn day(time: Timestamp) -> String {
    time.strftime("%F").to_string()
}

fn scopes(record: &KeyRecord) -> String {
    record.scopes.iter().map(|scope| scope.as_str()).collect::<Vec<_>>().join(",")
}

/// A key as JSON, without its hash.
fn described(record: &KeyRecord, now: Timestamp) -> Value {
    let KeyRecord { id, tenant, scopes, name, limits, created, expires, revoked, predecessor, .. } = record;
    let scopes: Vec<&str> = scopes.iter().copied().map(Scope::as_str).collect();
    json!({
        "id": id,
        "tenant": tenant,
        "scopes": scopes,
        "state": record.state(now),
        "name": name,
        "limits": limits,
        "created": created,
        "expires": expires,
        "revoked": revoked,
        "predecessor": predecessor,
    })
}

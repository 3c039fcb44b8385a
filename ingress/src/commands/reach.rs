//! A connection to the server that a command is about, and what to do about one that does not answer, or refuses.

use std::error::Error as _;

use tonic::{Code, Status};

use super::Context;
use crate::failure::Failure;
use crate::grpc::client::{Access, ConnectError, Keyed, told};
use crate::say::say;

/// A connection to the server, with its address. None when nobody named it and nobody listens: then its store can be opened.
pub(super) async fn server(
    context: &Context,
    endpoint: Option<&String>,
    access: &Access,
) -> Result<Option<(Keyed, String)>, Failure> {
    let address = context.address(endpoint.cloned());
    match access.connect(&address).await {
        Ok(connection) => Ok(Some((connection, address))),
        Err(error) if error.is_refused() && endpoint.is_none() => {
            say!("no server at {address}");
            Ok(None)
        }
        Err(error) => Err(unreachable(error, "--endpoint")),
    }
}

/// A connection to a server that has to run, with its address.
pub(super) async fn running(
    context: &Context,
    endpoint: Option<String>,
    access: &Access,
) -> Result<(Keyed, String), Failure> {
    let address = context.address(endpoint);
    let connection = access.connect(&address).await.map_err(|error| unreachable(error, "--endpoint"))?;
    Ok((connection, address))
}

/// There is no connection to an address that `flag` can change.
pub(super) fn unreachable(error: ConnectError, flag: &str) -> Failure {
    // Who answers, and refuses, runs.
    if matches!(error, ConnectError::Unusable { .. }) {
        return error.into();
    }
    let hint = format!("is the server running? start it with `turnflow serve`, or name another with {flag}");
    Failure::from(error).with_hint(hint)
}

/// What a server refused, in its own words.
pub(super) fn refused(status: &Status) -> Failure {
    let failure = Failure::from(anyhow::anyhow!(told(status)));
    match status.code() {
        Code::Unauthenticated | Code::PermissionDenied => {
            failure.with_hint("give a key that opens it in TURNFLOW_KEY or --key; turnflow keys create makes one")
        }
        Code::Unimplemented => Failure::from(anyhow::anyhow!("the server does not know the call"))
            .with_hint("is it an older version of Turnflow, or another program?"),
        // The connection failed, and no server said so; there was one that answered when it was opened.
        _ if status.source().is_some() => failure.with_hint("did the server end meanwhile? turnflow check tells"),
        _ => failure,
    }
}

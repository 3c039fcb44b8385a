//! A connection to the server that a command is about, and what to do about one that does not answer, or refuses.

use std::error::Error as _;

use tonic::transport::Channel;
use tonic::{Code, Status};

use super::Context;
use crate::failure::Failure;
use crate::grpc::client::{ConnectError, connect, told};
use crate::say::say;

/// A connection to the server, with its address. None when nobody named it and nobody listens: then its store can be opened.
pub(super) async fn server(context: &Context, endpoint: Option<&String>) -> Result<Option<(Channel, String)>, Failure> {
    let address = endpoint.cloned().unwrap_or_else(|| context.config.server.listen.to_string());
    match connect(&address).await {
        Ok(channel) => Ok(Some((channel, address))),
        Err(error) if error.is_refused && endpoint.is_none() => {
            say!("no server at {address}");
            Ok(None)
        }
        Err(error) => Err(unreachable(error, "--endpoint")),
    }
}

/// A connection to a server that has to run, with its address.
pub(super) async fn running(context: &Context, endpoint: Option<String>) -> Result<(Channel, String), Failure> {
    let address = endpoint.unwrap_or_else(|| context.config.server.listen.to_string());
    let channel = connect(&address).await.map_err(|error| unreachable(error, "--endpoint"))?;
    Ok((channel, address))
}

/// Nothing answers at an address that `flag` can change.
pub(super) fn unreachable(error: ConnectError, flag: &str) -> Failure {
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
        // The connection failed, and no server said so.
        _ if status.source().is_some() => failure.with_hint("is that where gRPC is spoken? HTTP has a port of its own"),
        _ => failure,
    }
}

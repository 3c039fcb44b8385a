//! A connection to the server that a command is about, if one runs.

use super::Context;
use crate::failure::Failure;
use crate::grpc::client::{Access, Keyed};

/// A connection to the server, with its address. None when nobody named it and nobody listens: then its store can be opened.
pub(super) async fn server(
    context: &Context,
    endpoint: Option<&String>,
    access: &Access,
) -> Result<Option<(Keyed, String)>, Failure> {
    let address = context.address(endpoint.cloned());
    match access.connect(&address).await {
        Ok(connection) => Ok(Some((connection, address))),
        Err(error) if error.is_refused && endpoint.is_none() => {
            eprintln!("no server at {address}");
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

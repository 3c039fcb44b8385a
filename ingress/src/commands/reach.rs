//! A connection to the server that a command is about, if one runs.

use tonic::transport::Channel;

use super::Context;
use crate::failure::Failure;
use crate::grpc::client::connect;

/// A connection to the server, with its address. None when nobody named it and nobody listens: then its store can be opened.
pub(super) async fn server(context: &Context, endpoint: Option<&String>) -> Result<Option<(Channel, String)>, Failure> {
    let address = endpoint.cloned().unwrap_or_else(|| context.config.server.listen.to_string());
    match connect(&address).await {
        Ok(channel) => Ok(Some((channel, address))),
        Err(error) if error.is_refused && endpoint.is_none() => {
            eprintln!("no server at {address}");
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

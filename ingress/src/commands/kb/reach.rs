//! One way to the knowledge base's service: a server's, or that of a pipeline started in this process.

use turnflow_pipeline::Pipeline;

use super::super::{Context, open, reach};
use crate::cli::KbTarget;
use crate::failure::Failure;
use crate::grpc::client::{CallerKey, Keyed};
use crate::grpc::proto::knowledge_base_client::KnowledgeBaseClient;
use crate::grpc::{TENANT_DEFAULT, serve_in_process};
use crate::say::say;

/// Largest response that is taken: servers may be configured for large articles.
const RESPONSE_BYTES_MAX: usize = 256 * 1024 * 1024;

pub(super) type Client = KnowledgeBaseClient<Keyed>;

pub(super) fn client(connection: Keyed) -> Client {
    KnowledgeBaseClient::new(connection).max_decoding_message_size(RESPONSE_BYTES_MAX)
}

/// Does some work with the knowledge base, wherever it is, and says where.
pub(super) async fn with_client(
    context: &Context,
    target: &KbTarget,
    work: impl AsyncFnOnce(Client) -> Result<(), Failure>,
) -> Result<(), Failure> {
    if let Some(connection) = server(context, target).await? {
        return work(client(connection)).await;
    }
    let dir = context.data_dir(target.data.as_ref())?;
    say!("using the store in {}", dir.display());
    let parts = open::parts(context, open::store(context, &dir)?)?;
    let pipeline = Pipeline::start(&context.config, &parts)?;
    let worked = match serve_in_process(&pipeline, &context.config, target.tenant.clone()).await {
        Ok(served) => work(client(CallerKey::default().on(served.channel.clone()))).await,
        Err(error) => Err(error.into()),
    };
    pipeline.shutdown().await;
    worked
}

/// A connection to the server, if it is to be asked. When nobody named it and nobody listens, the store can be opened.
async fn server(context: &Context, target: &KbTarget) -> Result<Option<Keyed>, Failure> {
    if target.data.is_some() {
        return Ok(None);
    }
    let access = target.access.clone().into();
    let Some((connection, address)) = reach::server(context, target.endpoint.as_ref(), &access).await? else {
        return Ok(None);
    };
    if target.tenant.as_str() != TENANT_DEFAULT {
        let error = anyhow::anyhow!(
            "the server at {address} cannot be asked for tenant {}: the key says whose knowledge base it is",
            target.tenant
        );
        return Err(Failure::usage(error).with_hint(
            "leave --tenant out and give that tenant's key with --key, or stop the server and open its store with --data",
        ));
    }
    say!("using the server at {address}");
    Ok(Some(connection))
}

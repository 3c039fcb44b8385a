//! One stream of `Watch`: a tenant's changes as they are acknowledged.

use std::sync::Arc;

use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, watch};
use tonic::Status;
use turnflow_pipeline::ChangeEvent;
use turnflow_state::TenantId;

use super::article::change;
use super::proto::WatchResponse;
use crate::door::{Caller, LastWord, Outlet, Refusal, Untold};

/// What goes to the client.
type Told = Result<WatchResponse, Status>;

/// Passes changes on until the server stops, the client falls behind, does not read, or is gone, or its key counts no more.
pub(super) async fn forward(
    caller: Caller,
    mut changes: broadcast::Receiver<Arc<ChangeEvent>>,
    out: Outlet<Told>,
    last: Option<LastWord<Told>>,
    mut stopping: watch::Receiver<bool>,
) {
    let end = tokio::select! {
        biased;
        () = out.closed() => return,
        _ = stopping.wait_for(|&stopping| stopping) => Refusal::Unavailable.into(),
        () = caller.ended() => Refusal::Unauthenticated.into(),
        told = tell(&caller.tenant, &mut changes, &out) => match told {
            Ok(end) => end,
            Err(Untold::Gone) => return,
            Err(Untold::Slow) => return last.into_iter().for_each(LastWord::too_slow),
        },
    };
    if let Some(last) = last {
        last.say(Err(end));
    }
}

async fn tell(
    tenant: &TenantId,
    changes: &mut broadcast::Receiver<Arc<ChangeEvent>>,
    out: &Outlet<Told>,
) -> Result<Status, Untold> {
    loop {
        match changes.recv().await {
            Ok(event) if event.tenant == *tenant => {
                out.tell(Ok(change(&event))).await?;
            }
            Ok(_) => {}
            Err(RecvError::Lagged(missed)) => {
                let message = format!("{missed} changes were missed: they came faster than they were read");
                return Ok(Status::data_loss(message));
            }
            Err(RecvError::Closed) => return Ok(Refusal::Unavailable.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt as _;
    use tonic::Code;
    use turnflow_pipeline::Config;
    use turnflow_state::Limits;

    use super::*;
    use crate::door::Gateway;
    use crate::keys::Scope;

    fn event(tenant: &str, epoch: u64) -> Arc<ChangeEvent> {
        let tenant = TenantId::new(tenant).expect("valid id");
        Arc::new(ChangeEvent { tenant, epoch, articles: Vec::new(), invalidated: 0 })
    }

    /// What a watcher of tenant "ours" hears of these changes when only the latest two are kept, and its status.
    async fn heard(changes: &[(&str, u64)], stop: bool) -> (Vec<u64>, Status) {
        let tenant = TenantId::new("ours").expect("valid id");
        let sender = broadcast::Sender::new(2);
        let receiver = sender.subscribe();
        for &(tenant, epoch) in changes {
            sender.send(event(tenant, epoch)).expect("somebody watches");
        }
        drop(sender);
        let (_stop, stopping) = watch::channel(stop);
        let (out, last, mut responses) = Outlet::open(&Config::defaults().limits);
        let caller = Gateway::keyless(tenant).caller(&Default::default(), Scope::Kb).expect("no key is needed");
        forward(caller, receiver, out, last, stopping).await;
        let mut epochs = Vec::new();
        loop {
            match responses.next().await.expect("a stream ends with a status") {
                Ok(response) => epochs.push(response.epoch),
                Err(status) => return (epochs, status),
            }
        }
    }

    #[tokio::test]
    async fn only_the_tenants_own_changes_are_told() {
        let (epochs, status) = heard(&[("theirs", 1), ("ours", 2)], false).await;
        assert_eq!((epochs, status.code()), (vec![2], Code::Unavailable));
    }

    #[tokio::test]
    async fn who_falls_behind_is_told_how_far() {
        let (epochs, status) = heard(&[("ours", 1), ("ours", 2), ("ours", 3), ("ours", 4), ("ours", 5)], false).await;
        assert_eq!((epochs.len(), status.code()), (0, Code::DataLoss));
        assert!(status.message().starts_with("3 changes were missed"), "{status:?}");
    }

    #[tokio::test]
    async fn a_server_that_stops_ends_the_stream() {
        let (_, status) = heard(&[], true).await;
        assert_eq!(status.code(), Code::Unavailable);
    }

    #[tokio::test]
    async fn who_does_not_read_is_cut_off() {
        let tenant = TenantId::new("ours").expect("valid id");
        let sender = broadcast::Sender::new(64);
        let receiver = sender.subscribe();
        for epoch in 0..64 {
            sender.send(event("ours", epoch)).expect("somebody watches");
        }
        let (_stop, stopping) = watch::channel(false);
        let limits = Limits { reader_wait_ms: 20, ..Config::defaults().limits };
        let (out, last, responses) = Outlet::open(&limits);
        let caller = Gateway::keyless(tenant).caller(&Default::default(), Scope::Kb).expect("no key is needed");
        forward(caller, receiver, out, last, stopping).await;
        let heard: Vec<_> = responses.collect().await;
        let status = heard.last().and_then(|told| told.as_ref().err()).expect("a stream ends with a status");
        assert_eq!(status.code(), Code::ResourceExhausted);
    }
}

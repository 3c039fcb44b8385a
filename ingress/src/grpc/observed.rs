//! What is seen of every call: it is counted by how it ends, with the status in the head or the trailers of the response or cancelled when the
//! client leaves first, and what happens for it is logged within its span.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use http_body_util::BodyExt as _;
use tonic::service::Routes;
use tonic::{Code, Status};
use tracing::{Instrument as _, Span};

use crate::door::{Traffic, request_ended, request_span};

/// Ends that are the server's fault, as OpenTelemetry's conventions have it.
const FAULTS: [Code; 6] =
    [Code::Unknown, Code::DeadlineExceeded, Code::Unimplemented, Code::Internal, Code::Unavailable, Code::DataLoss];

/// The same services, with their calls observed.
pub(super) fn observed(routes: Routes, traffic: Traffic) -> Routes {
    routes.prepare().into_axum_router().layer(from_fn_with_state(traffic, observe)).into()
}

async fn observe(State(traffic): State<Traffic>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let span = request_span("grpc", path, request.headers());
    let mut call = Call { traffic, span: span.clone(), path: Some(path.to_owned()) };
    let (head, body) = next.run(request).instrument(span).await.into_parts();
    call.hears(&head.headers);
    let body = body.map_frame(move |frame| {
        if let Some(trailers) = frame.trailers_ref() {
            call.hears(trailers);
        }
        frame
    });
    Response::from_parts(head, Body::new(body))
}

/// A call under way.
struct Call {
    traffic: Traffic,
    span: Span,
    /// What was called; None once it has ended.
    path: Option<String>,
}

impl Call {
    fn hears(&mut self, headers: &HeaderMap) {
        if let Some(status) = headers.get(Status::GRPC_STATUS) {
            self.ends(Code::from_bytes(status.as_bytes()));
        }
    }

    fn ends(&mut self, code: Code) {
        let Some(path) = self.path.take() else { return };
        request_ended(&self.span, &format_args!("{code:?}"), FAULTS.contains(&code));
        // Whatever is asked for that is not there counts as one method.
        let path = (code != Code::Unimplemented).then_some(path.as_str());
        // The codes' names are those of other libraries that count calls.
        self.traffic.ended(path, format!("{code:?}"));
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.ends(Code::Cancelled);
    }
}

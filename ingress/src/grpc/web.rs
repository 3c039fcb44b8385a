//! gRPC-Web: the same calls for pages in browsers, over HTTP/1.1 as well, from the origins that the configuration names.
//!
//! Browsers say where a page comes from, and pages of other origins are refused whatever they ask for, so that none calls a server on its
//! visitor's machine. Who says nothing is no page. The head of a request over HTTP/1.1 is bounded by hyper, in size and by 30 seconds.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use tonic::service::Routes;
use tonic_web::GrpcWebLayer;
use tower_http::cors::{AllowHeaders, CorsLayer};

/// How long a browser may remember what it was allowed.
const ALLOWED_FOR: Duration = Duration::from_secs(60 * 60);
/// What a page may read of a response besides its body.
const EXPOSED: [HeaderName; 3] = [
    HeaderName::from_static("grpc-status"),
    HeaderName::from_static("grpc-message"),
    HeaderName::from_static("grpc-status-details-bin"),
];

/// The same services, for pages of these origins too; without any, for none.
pub(super) fn for_pages(routes: Routes, origins: &[String]) -> Routes {
    if origins.is_empty() {
        return routes;
    }
    // The configuration was checked to have nothing else.
    let origins: Arc<[HeaderValue]> = origins.iter().filter_map(|origin| origin.parse().ok()).collect();
    let cors = CorsLayer::new()
        .allow_origin(origins.to_vec())
        .allow_methods([Method::POST])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(EXPOSED)
        .max_age(ALLOWED_FOR);
    let router = routes.prepare().into_axum_router().layer(GrpcWebLayer::new()).layer(cors);
    router.layer(from_fn_with_state(origins, refuse_others)).into()
}

async fn refuse_others(State(origins): State<Arc<[HeaderValue]>>, request: Request, next: Next) -> Response {
    match request.headers().get(header::ORIGIN) {
        Some(origin) if !origins.contains(origin) => {
            tracing::info!(?origin, "a call was refused: it comes from a page of another origin");
            (StatusCode::FORBIDDEN, "server.grpc-web-origins does not name the origin of this page\n").into_response()
        }
        _ => next.run(request).await,
    }
}

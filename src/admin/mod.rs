//! The HTTP API for operators and their tools: health, metrics, members, locks and elections. Any member answers; what only the
//! leader can do, the node forwards. Says what is wrong as RFC 9457 problem details.

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path, Request, State, rejection::BytesRejection},
    http::{
        HeaderValue, Method, StatusCode,
        header::{CONTENT_TYPE, HOST, ORIGIN},
    },
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{delete, get, post},
    serve::ListenerExt,
};
use kvorum_raft::{AdminError, NodeId, Unavailable};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::{net::TcpListener, sync::watch};

use crate::{
    feed::Compacted,
    session::{Shared, stream::ask_often},
};

pub mod api;
mod coordination;
mod feed;
pub mod join;
mod metrics;

use api::{Checkpoint, ClockPace, Cluster, NewLeader, NewMember, Problem};

/// Serves the API until `stop` says so.
pub async fn serve(
    listener: TcpListener,
    shared: Arc<Shared>,
    body_bytes_max: usize,
    stop: watch::Receiver<bool>,
) {
    let app = routes(shared).layer(DefaultBodyLimit::max(body_bytes_max));
    let stopped = async move {
        let mut stop = stop;
        // The sender is gone when the process ends anyway.
        let _ = stop.wait_for(|stop| *stop).await;
    };
    let listener = listener.tap_io(|stream| ask_often(stream));
    if let Err(error) = axum::serve(listener, app).with_graceful_shutdown(stopped).await {
        tracing::error!(%error, "the admin API has ended");
    }
}

fn routes(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/v1/cluster", get(cluster))
        .route("/v1/cluster/members", post(add_member))
        .route("/v1/cluster/members/{id}", delete(remove_member))
        .route("/v1/cluster/leader", post(transfer_leader))
        .route("/v1/cluster/clock", post(close_clock))
        .route("/v1/checkpoint", post(checkpoint))
        .merge(coordination::routes("/v1/locks", coordination::LOCKS))
        .merge(coordination::routes("/v1/elections", coordination::ELECTIONS))
        .route("/v1/feed", get(feed::feed))
        .fallback(async || Refusal::new(StatusCode::NOT_FOUND, "there is no such resource"))
        .method_not_allowed_fallback(async || {
            Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "the resource does not take this method")
        })
        .layer(middleware::from_fn(refuse_other_sites))
        .with_state(shared)
}

/// A browser says from which site's page a request that may change something comes: one of another site has no
/// business here, whoever opened it.
async fn refuse_other_sites(request: Request, next: Next) -> Response {
    let headers = request.headers();
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let is_own = headers.get(ORIGIN).is_none_or(|origin| {
        let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
        origin.is_some_and(|(_, authority)| Some(authority) == host)
    });
    if request.method() == Method::GET || is_own {
        next.run(request).await
    } else {
        Refusal::new(StatusCode::FORBIDDEN, "requests of other sites' pages are refused").into_response()
    }
}

async fn healthz() -> &'static str {
    "ok\n"
}

async fn readyz(State(shared): State<Arc<Shared>>) -> Response {
    let status = shared.router.status();
    match (status.not_ready, status.no_room) {
        (None, None) => "ready\n".into_response(),
        // Reads go on, and so does whatever makes room: clients must get here.
        (None, Some(why)) => format!("ready, but for what needs space: {why}\n").into_response(),
        (Some(not_ready), _) => Refusal::new(StatusCode::SERVICE_UNAVAILABLE, not_ready.why).into_response(),
    }
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    let content_type = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    ([(CONTENT_TYPE, content_type)], metrics::text(shared)).into_response()
}

async fn cluster(State(shared): State<Arc<Shared>>) -> Json<Cluster> {
    Json(shared.router.status().into())
}

async fn add_member(
    State(shared): State<Arc<Shared>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Refusal> {
    let member: NewMember = json_of(body)?;
    let node = shared.router.node();
    match member.disk {
        Some(disk) => node.admit(member.id, member.peer, disk).await?,
        None => node.add_member(member.id, member.peer).await?,
    }
    Ok((StatusCode::CREATED, Json(json!({ "id": member.id }))).into_response())
}

async fn remove_member(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    let id: NodeId =
        id.parse().map_err(|_| Refusal::new(StatusCode::NOT_FOUND, format!("there is no member {id:?}")))?;
    shared.router.node().remove_member(id).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn transfer_leader(
    State(shared): State<Arc<Shared>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Refusal> {
    let leader: NewLeader = json_of(body)?;
    shared.router.node().transfer_leader(leader.id).await?;
    Ok(Json(json!({ "leader_id": leader.id })).into_response())
}

async fn close_clock(
    State(shared): State<Arc<Shared>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<ClockPace>, Refusal> {
    let pace: ClockPace = json_of(body)?;
    shared.router.node().close_clock(pace.closing).await?;
    Ok(Json(pace))
}

async fn checkpoint(State(shared): State<Arc<Shared>>) -> Result<Json<Checkpoint>, Refusal> {
    Ok(Json(Checkpoint { checkpoint_index: shared.router.node().checkpoint_now().await? }))
}

/// Reads a JSON body, whatever its content type says.
fn json_of<T: DeserializeOwned>(body: Result<Bytes, BytesRejection>) -> Result<T, Refusal> {
    let body = body.map_err(|error| Refusal::new(error.status(), error.body_text()))?;
    serde_json::from_slice(&body).map_err(|error| {
        let status = if error.is_data() { StatusCode::UNPROCESSABLE_ENTITY } else { StatusCode::BAD_REQUEST };
        Refusal::new(status, error.to_string())
    })
}

/// A request that was not carried out.
struct Refusal {
    status: StatusCode,
    kind: &'static str,
    detail: String,
    oldest_index: Option<u64>,
}

impl Refusal {
    fn new(status: StatusCode, detail: impl Into<String>) -> Refusal {
        // "about:blank" says that the status alone tells the kind of problem.
        Refusal { status, kind: "about:blank", detail: detail.into(), oldest_index: None }
    }

    fn compacted(why: Compacted) -> Refusal {
        Refusal {
            status: StatusCode::GONE,
            kind: "urn:kvorum:problem:compacted",
            detail: why.to_string(),
            oldest_index: Some(why.oldest),
        }
    }
}

impl From<AdminError> for Refusal {
    fn from(error: AdminError) -> Refusal {
        let (status, kind) = match &error {
            AdminError::Conflict(_) => (StatusCode::CONFLICT, "urn:kvorum:problem:conflict"),
            AdminError::Busy(_) => (StatusCode::CONFLICT, api::BUSY),
            AdminError::NotFound(_) => (StatusCode::NOT_FOUND, "urn:kvorum:problem:not-found"),
            AdminError::Invalid(_) => (StatusCode::UNPROCESSABLE_ENTITY, "urn:kvorum:problem:invalid"),
            AdminError::Unavailable(Unavailable::NoRoom(_)) => {
                (StatusCode::INSUFFICIENT_STORAGE, api::DISK_FULL)
            }
            AdminError::Unavailable(_) => (StatusCode::SERVICE_UNAVAILABLE, "urn:kvorum:problem:unavailable"),
            AdminError::Unknown(_) => (StatusCode::GATEWAY_TIMEOUT, "urn:kvorum:problem:unknown-outcome"),
        };
        Refusal { status, kind, detail: error.to_string(), oldest_index: None }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let problem = Problem {
            kind: self.kind.to_owned(),
            title: self.status.canonical_reason().unwrap_or("error").to_owned(),
            status: self.status.as_u16(),
            detail: self.detail,
            oldest_index: self.oldest_index,
        };
        let mut response = (self.status, Json(problem)).into_response();
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        response
    }
}

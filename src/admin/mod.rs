//! The HTTP API for operators and their tools: health, metrics, members, locks and elections. Any member
//! answers, and forwards what only the leader can do. Errors are RFC 9457 problem details.

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path, Request, State, rejection::BytesRejection},
    http::{HeaderValue, StatusCode, header::CONTENT_TYPE},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use kvorum_raft::NodeId;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::{net::TcpListener, sync::watch};

use crate::connection::Shared;

pub mod api;
mod connections;
mod coordination;
mod feed;
pub mod join;
mod metrics;
pub mod names;
mod problem;
mod socket;

use api::{Checkpoint, ClockPace, Cluster, NewLeader, NewMember, Problem};
use names::Names;

/// What the API takes.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The largest body of a request.
    pub body_bytes_max: usize,
    /// The most connections.
    pub connections_max: usize,
    /// The names by which it answers.
    pub names: Names,
}

/// Serves the API until `stop` is set.
pub async fn serve(listener: TcpListener, shared: Arc<Shared>, limits: Limits, stop: watch::Receiver<bool>) {
    let timeout = connections::body_timeout(limits.body_bytes_max);
    // What is added last comes first: no body is read of a request that is refused.
    let app = routes(shared.clone())
        .layer(middleware::from_fn_with_state(timeout, connections::receive))
        .layer(middleware::from_fn_with_state(Arc::new(limits.names), refuse_others))
        .layer(DefaultBodyLimit::max(limits.body_bytes_max));
    connections::serve(listener, (app, limits.connections_max), shared, stop).await;
}

/// Refuses requests that are not for this node, or come from another site's page.
async fn refuse_others(State(names): State<Arc<Names>>, request: Request, next: Next) -> Response {
    match names.objection(&request) {
        Some(problem) => problem.into_response(),
        None => next.run(request).await,
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
        .fallback(async || Problem::new(StatusCode::NOT_FOUND, "there is no such resource"))
        .method_not_allowed_fallback(async || {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "the resource does not take this method")
        })
        .with_state(shared)
}

async fn healthz() -> &'static str {
    "ok\n"
}

async fn readyz(State(shared): State<Arc<Shared>>) -> Response {
    let status = shared.router.status();
    match (status.not_ready, status.no_room) {
        (None, None) => "ready\n".into_response(),
        // Reads and writes that free space still work, so clients must be routed here.
        (None, Some(why)) => format!("ready, but for what needs space: {why}\n").into_response(),
        (Some(not_ready), _) => Problem::new(StatusCode::SERVICE_UNAVAILABLE, not_ready.why).into_response(),
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
) -> Result<Response, Problem> {
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
) -> Result<StatusCode, Problem> {
    let id: NodeId =
        id.parse().map_err(|_| Problem::new(StatusCode::NOT_FOUND, format!("there is no member {id:?}")))?;
    shared.router.node().remove_member(id).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn transfer_leader(
    State(shared): State<Arc<Shared>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let leader: NewLeader = json_of(body)?;
    shared.router.node().transfer_leader(leader.id).await?;
    Ok(Json(json!({ "leader_id": leader.id })).into_response())
}

async fn close_clock(
    State(shared): State<Arc<Shared>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<ClockPace>, Problem> {
    let pace: ClockPace = json_of(body)?;
    shared.router.node().close_clock(pace.closing).await?;
    Ok(Json(pace))
}

async fn checkpoint(State(shared): State<Arc<Shared>>) -> Result<Json<Checkpoint>, Problem> {
    Ok(Json(Checkpoint { checkpoint_index: shared.router.node().checkpoint_now().await? }))
}

/// Reads a JSON body, whatever its content type says.
fn json_of<T: DeserializeOwned>(body: Result<Bytes, BytesRejection>) -> Result<T, Problem> {
    let body = body.map_err(|error| Problem::new(error.status(), error.body_text()))?;
    serde_json::from_slice(&body).map_err(|error| {
        let status = if error.is_data() { StatusCode::UNPROCESSABLE_ENTITY } else { StatusCode::BAD_REQUEST };
        Problem::new(status, error.to_string())
    })
}

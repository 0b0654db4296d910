//! Requests that are refused: problems as in RFC 9457.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use kvorum_raft::{AdminError, Unavailable};

use super::api::{BUSY, DISK_FULL, Problem};
use crate::feed::Compacted;

impl Problem {
    /// A problem that its status alone identifies.
    pub(super) fn new(status: StatusCode, detail: impl Into<String>) -> Problem {
        Problem::of("about:blank", status, detail)
    }

    /// A problem of this type.
    pub(super) fn of(kind: &str, status: StatusCode, detail: impl Into<String>) -> Problem {
        Problem {
            kind: kind.to_owned(),
            title: status.canonical_reason().unwrap_or("error").to_owned(),
            status: status.as_u16(),
            detail: detail.into(),
            oldest_index: None,
        }
    }

    /// What a reader of the change feed asks for is not there any more.
    pub(super) fn compacted(why: Compacted) -> Problem {
        let oldest_index = Some(why.oldest);
        Problem {
            oldest_index,
            ..Problem::of("urn:kvorum:problem:compacted", StatusCode::GONE, why.to_string())
        }
    }
}

impl From<AdminError> for Problem {
    fn from(error: AdminError) -> Problem {
        let (status, kind) = match &error {
            AdminError::Conflict(_) => (StatusCode::CONFLICT, "urn:kvorum:problem:conflict"),
            AdminError::Busy => (StatusCode::CONFLICT, BUSY),
            AdminError::NotFound(_) => (StatusCode::NOT_FOUND, "urn:kvorum:problem:not-found"),
            AdminError::Invalid(_) => (StatusCode::UNPROCESSABLE_ENTITY, "urn:kvorum:problem:invalid"),
            AdminError::Unavailable(Unavailable::NoRoom(_)) => (StatusCode::INSUFFICIENT_STORAGE, DISK_FULL),
            AdminError::NotLeader | AdminError::Unavailable(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, "urn:kvorum:problem:unavailable")
            }
            AdminError::Unknown(_) => (StatusCode::GATEWAY_TIMEOUT, "urn:kvorum:problem:unknown-outcome"),
        };
        Problem::of(kind, status, error.to_string())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self)).into_response();
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        response
    }
}

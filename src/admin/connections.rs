//! The connections of the HTTP API: how many there are, and how long their requests may take to arrive. When
//! there are too many, a new one takes the place of one that asks for nothing, so that an operator gets in
//! however many somebody opens. Only where all are being answered, a new one is refused.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{ConnectInfo, FromRequest, Request, State},
    http::{HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use hyper::{
    server::conn::http1,
    service::{Service as _, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Notify, watch},
    task::JoinSet,
};

use super::{api::Problem, socket::Socket};
use crate::connection::{stats::Stats, stream::ask_often};

/// One of this many connections is kept for this machine, for whoever mends it from there.
const LOCAL_PART: usize = 10;

/// How long a connection may take to send the head of a request, from when it may: also how long it is kept when it
/// asks for nothing.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the body of a request may take, and how much longer for each MiB that it may have.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
const BODY_TIMEOUT_PER_MIB: Duration = Duration::from_secs(1);

/// How many of those that are refused are told so at once, and for how long; others are closed without a word.
const REFUSALS_MAX: usize = 32;
const REFUSAL_TIMEOUT: Duration = Duration::from_millis(500);

/// How long a stopping node waits for a request that may be on its way.
const LAST_REQUEST: Duration = Duration::from_millis(250);

/// The pause after a failed accept, for example for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// All connections.
struct Connections {
    /// In the order in which they came.
    present: Mutex<BTreeMap<u64, Arc<Connection>>>,
    /// The most at once.
    max: usize,
}

/// One connection.
pub(super) struct Connection {
    from: IpAddr,
    /// How many of its requests are being answered; an open change feed is one.
    busy: AtomicUsize,
    end: Notify,
}

/// A request that is being answered.
struct Busy<'a>(&'a Connection);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Relaxed);
    }
}

impl Connection {
    fn begin(&self) -> Busy<'_> {
        self.busy.fetch_add(1, Relaxed);
        Busy(self)
    }

    fn is_busy(&self) -> bool {
        self.busy.load(Relaxed) > 0
    }

    fn is_local(&self) -> bool {
        self.from.is_loopback()
    }
}

impl Connections {
    /// A place for a connection with this number, and whether another one had to make room for it. None if all
    /// are being answered.
    fn admit(&self, number: u64, from: IpAddr) -> Option<(Arc<Connection>, bool)> {
        // An IPv4 address may come in the form of IPv6.
        let from = from.to_canonical();
        let mut present = self.present.lock();
        let remote = present.values().filter(|connection| !connection.is_local()).count();
        let is_crowded = !from.is_loopback() && remote >= self.max - self.max / LOCAL_PART;
        let is_full = is_crowded || present.len() >= self.max;
        if is_full {
            let leaves = first_of_most(&present, |connection| !(is_crowded && connection.is_local()))?;
            if let Some(connection) = present.remove(&leaves) {
                connection.end.notify_one();
            }
        }
        let connection = Arc::new(Connection { from, busy: AtomicUsize::new(0), end: Notify::new() });
        present.insert(number, connection.clone());
        Some((connection, is_full))
    }

    fn leave(&self, number: u64) {
        self.present.lock().remove(&number);
    }
}

/// The oldest connection that asks for nothing, of the address that has the most of them.
fn first_of_most(
    present: &BTreeMap<u64, Arc<Connection>>,
    may_leave: impl Fn(&Connection) -> bool,
) -> Option<u64> {
    let mut counts: BTreeMap<IpAddr, (usize, Reverse<u64>)> = BTreeMap::new();
    for (number, connection) in present {
        if !connection.is_busy() && may_leave(connection) {
            counts.entry(connection.from).or_insert((0, Reverse(*number))).0 += 1;
        }
    }
    counts.into_values().max().map(|(_, Reverse(first))| first)
}

/// Accepts connections and answers their requests with `app` until `stop` is set and the last is answered.
pub(super) async fn serve(
    listener: TcpListener,
    (app, max): (Router, usize),
    shared: Arc<crate::connection::Shared>,
    mut stop: watch::Receiver<bool>,
) {
    let connections = Arc::new(Connections { present: Mutex::default(), max });
    let (mut tasks, mut told) = (JoinSet::new(), JoinSet::new());
    for number in 0.. {
        let (stream, from) = tokio::select! {
            biased;
            // If the sender is gone, the process is ending.
            _ = stop.wait_for(|stop| *stop) => break,
            accepted = accept(&listener) => accepted,
        };
        let stats = &shared.stats;
        let Some((connection, is_crowded)) = connections.admit(number, from.ip()) else {
            stats.http_connections_refused.fetch_add(1, Relaxed);
            while told.try_join_next().is_some() {}
            if told.len() < REFUSALS_MAX {
                told.spawn(tokio::time::timeout(REFUSAL_TIMEOUT, refuse(stream, max)));
            }
            continue;
        };
        // Those that have ended, and the one that was just put out.
        while tasks.try_join_next().is_some() {}
        while tasks.len() >= max {
            tasks.join_next().await;
        }
        stats.http_connections_put_out.fetch_add(u64::from(is_crowded), Relaxed);
        let (connections, app, shared, stop) =
            (connections.clone(), app.clone(), shared.clone(), stop.clone());
        tasks.spawn(async move {
            let _entered = Entered::new(number, &connections, &shared.stats);
            tokio::select! {
                biased;
                () = connection.end.notified() => {}
                () = answer(stream, app, &connection, stop) => {}
            }
        });
    }
    drop(listener);
    while tasks.join_next().await.is_some() {}
}

/// Keeps a connection's place, and counts it, for as long as it exists.
struct Entered<'a> {
    number: u64,
    connections: &'a Connections,
    stats: &'a Stats,
}

impl<'a> Entered<'a> {
    fn new(number: u64, connections: &'a Connections, stats: &'a Stats) -> Entered<'a> {
        stats.http_connections.fetch_add(1, Relaxed);
        Entered { number, connections, stats }
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.stats.http_connections.fetch_sub(1, Relaxed);
        self.connections.leave(self.number);
    }
}

async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                ask_often(&stream);
                // An optimization only.
                let _ = stream.set_nodelay(true);
                return (stream, from);
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept an HTTP connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Says that there are too many connections. What the client has sent meanwhile is read, or the system would
/// reset the connection and with it the answer.
async fn refuse(mut stream: TcpStream, max: usize) {
    let why = format!("{max} requests are being answered already: try again later");
    let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, why);
    let body = serde_json::to_string(&problem).unwrap_or_default();
    let head = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n",
        body.len()
    );
    // A client that has gone needs no answer.
    if stream.write_all(format!("{head}{body}").as_bytes()).await.is_ok() && stream.shutdown().await.is_ok() {
        let mut unread = [0; 1024];
        while stream.read(&mut unread).await.is_ok_and(|len| len > 0) {}
    }
}

/// Answers the requests of one connection until it ends.
async fn answer(
    stream: TcpStream,
    app: Router,
    connection: &Arc<Connection>,
    mut stop: watch::Receiver<bool>,
) {
    let (socket, app) = (Socket::of(&stream), TowerToHyperService::new(app));
    let service = service_fn(|mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(ConnectInfo(socket));
        request.extensions_mut().insert(connection.clone());
        app.call(request)
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    let mut answered = pin!(builder.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        // An error is the client's: it sent nonsense, or nothing for too long, or has gone.
        _ = answered.as_mut() => return,
        _ = stop.wait_for(|stop| *stop) => answered.as_mut().graceful_shutdown(),
    }
    while tokio::time::timeout(LAST_REQUEST, answered.as_mut()).await.is_err() && connection.is_busy() {}
}

/// How long a body may take to arrive that may have this many bytes.
pub(super) fn body_timeout(bytes_max: usize) -> Duration {
    BODY_TIMEOUT + BODY_TIMEOUT_PER_MIB * u32::try_from(bytes_max >> 20).unwrap_or(u32::MAX)
}

/// Reads the body of a request within its time, and then has the request answered.
pub(super) async fn receive(State(timeout): State<Duration>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let received = Bytes::from_request(Request::from_parts(parts.clone(), body), &());
    let body = match tokio::time::timeout(timeout, received).await {
        Ok(Ok(body)) => body,
        Ok(Err(error)) => return Problem::new(error.status(), error.body_text()).into_response(),
        Err(_) => {
            let why = format!("the body did not arrive within {} s", timeout.as_secs());
            let mut late = Problem::new(StatusCode::REQUEST_TIMEOUT, why).into_response();
            late.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            return late;
        }
    };
    let connection = parts.extensions.get::<Arc<Connection>>().cloned();
    let busy = connection.as_ref().map(|connection| connection.begin());
    let response = next.run(Request::from_parts(parts, Body::from(body))).await;
    let event_stream = HeaderValue::from_static("text/event-stream");
    if response.headers().get(header::CONTENT_TYPE) == Some(&event_stream) {
        // It is answered for as long as the connection exists.
        std::mem::forget(busy);
    }
    response
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use futures::FutureExt as _;
    use parking_lot::Mutex;

    use super::{Connections, LOCAL_PART};

    const CONNECTIONS_MAX: usize = 1000;
    const LOCAL_SHARE: usize = CONNECTIONS_MAX / LOCAL_PART;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn address(number: u8) -> IpAddr {
        [10, 0, 0, number].into()
    }

    #[test]
    fn those_that_ask_for_nothing_make_room_and_this_machine_has_a_share() {
        let connections = Connections { present: Mutex::default(), max: CONNECTIONS_MAX };
        let (first, _) = connections.admit(0, address(1)).unwrap();
        let many: Vec<_> = (1..2000).map(|number| connections.admit(number, address(9)).unwrap().0).collect();
        let put_out = many.iter().filter(|one| one.end.notified().now_or_never().is_some()).count();
        let remote = CONNECTIONS_MAX - LOCAL_SHARE;
        assert_eq!((put_out, connections.present.lock().len()), (2000 - remote, remote));
        assert!(first.end.notified().now_or_never().is_none(), "another address");
        let mut busy: Vec<_> = many.iter().map(|one| one.begin()).collect();
        assert!(connections.admit(3000, address(2)).is_some(), "the first asks for nothing");
        assert!(first.end.notified().now_or_never().is_some());
        connections.leave(3000);
        let other = connections.admit(3001, address(2)).unwrap().0;
        let asks = other.begin();
        assert!(connections.admit(3002, address(3)).is_none(), "all are being answered");
        for number in 0..LOCAL_SHARE as u64 {
            let (_, is_crowded) = connections.admit(4000 + number, HERE).unwrap();
            assert!(!is_crowded);
        }
        assert!(connections.admit(5000, HERE).unwrap().1, "one of this machine's makes room");
        drop(asks);
        busy.clear();
        assert!(connections.admit(5001, address(3)).unwrap().1);
        assert_eq!(connections.present.lock().len(), CONNECTIONS_MAX);
    }

    #[test]
    fn an_address_in_the_form_of_ipv6_is_the_same() {
        let connections = Connections { present: Mutex::default(), max: CONNECTIONS_MAX };
        assert!(connections.admit(0, "::ffff:127.0.0.1".parse().unwrap()).unwrap().0.is_local());
        assert!(connections.admit(1, "::1".parse().unwrap()).unwrap().0.is_local());
        assert!(!connections.admit(2, "::ffff:10.0.0.1".parse().unwrap()).unwrap().0.is_local());
    }
}

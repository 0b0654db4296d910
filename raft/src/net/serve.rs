//! The receiving end of peers' connections: answers the greeting, then each frame. A malformed frame closes
//! the connection; nothing that a peer sends can do more. Whoever has not greeted may send only as much as a
//! greeting has, and only for so long.

use std::{collections::BTreeMap, future::Future, io, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt, stream};
use parking_lot::Mutex;
use tokio::{
    io::AsyncWriteExt,
    sync::{
        mpsc::{self, error::SendTimeoutError},
        watch,
    },
    task::JoinSet,
};

use super::{
    admission::{Admission, CONNECTIONS_MAX, Place},
    frame::{self, Frame, Kind, Outgoing},
    handshake::Hello,
    messages::{self, AppendRequest, AppendResult},
    transport::{Connection, Listener},
};
use crate::{GroupId, NodeId, sparse::Sparse};

/// How many append requests of one stream may wait to be looked at.
const STREAM_QUEUE: usize = 64;

/// How long a connection is kept when a request is not even looked at because the log does not write: longer
/// than its peer takes to give it up and to make another one. A full disk may stay full for hours.
const STUCK_MAX: Duration = Duration::from_secs(10);

/// Which peers this node has refused, and why, for the log.
type Refusals = Mutex<Sparse<(NodeId, String)>>;

/// How long the other end may take to greet, and to read the answer: longer than a member waits for it.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a node that the membership does not name may take to ask for something after that.
const UNKNOWN_TIMEOUT: Duration = Duration::from_secs(10);

/// What a node does with what its peers send.
pub(crate) trait Handler: Send + Sync + 'static {
    /// Judges and answers a greeting; the answer holds the refusal.
    fn greet(&self, hello: &Hello) -> Hello;
    /// The peer has read the answer and continues: it has no objection either. Err closes the connection.
    fn accepted(&self, hello: &Hello) -> impl Future<Output = Result<(), String>> + Send;
    /// The peer has read the answer to `first` and objects to this node's disk.
    fn parted(&self, first: &Hello, second: &Hello);
    /// Changes when a peer that was welcome may not be any more.
    fn judgement(&self) -> u64;
    /// Why not to listen any longer to the sender of this greeting.
    fn objection(&self, hello: &Hello) -> Option<String>;
    /// Whether the membership names the sender of this greeting.
    fn names(&self, hello: &Hello) -> bool;
    /// Why not to listen, at this moment, to a node that the membership does not name.
    fn unknown(&self, hello: &Hello) -> Option<String>;
    /// Answers, at once, a leader that asks for this node's vote.
    fn confirm(&self, group: GroupId) -> Vec<u8>;
    /// Answers a call. Err closes the connection.
    fn call(
        self: &Arc<Self>,
        from: &Hello,
        kind: Kind,
        group: GroupId,
        body: Bytes,
    ) -> impl Future<Output = Result<Vec<u8>, String>> + Send;
    /// Whether a leader says this. Err closes the connection.
    fn check_append(&self, from: &Hello, request: &AppendRequest) -> Result<(), String>;
    /// Feeds a stream of append requests to the group.
    fn append_stream(
        self: &Arc<Self>,
        group: GroupId,
        requests: impl Stream<Item = AppendRequest> + Send + 'static,
    ) -> impl Stream<Item = AppendResult> + Send + 'static;
}

/// Accepts connections until `stop` becomes true.
pub(crate) async fn serve<H: Handler>(
    mut listener: Box<dyn Listener>,
    admission: Admission,
    handler: Arc<H>,
    mut stop: watch::Receiver<bool>,
) {
    let (mut connections, refusals) = (JoinSet::new(), Arc::<Refusals>::default());
    let mut is_said = false;
    loop {
        tokio::select! {
            biased;
            // The sender going away means that the node is gone.
            _ = stop.changed() => return,
            accepted = listener.accept() => match accepted {
                Ok((connection, from)) => {
                    is_said = false;
                    let (handler, refusals) = (handler.clone(), refusals.clone());
                    let place = admission.admit(from);
                    // The one that has to make room ends at once.
                    while connections.len() >= CONNECTIONS_MAX {
                        connections.join_next().await;
                    }
                    connections.spawn(async move {
                        let served = tokio::select! {
                            biased;
                            () = place.is_needed() => return,
                            served = serve_connection(connection, &place, handler, &refusals) => served,
                        };
                        if let Err(error) = served
                            && error.kind() == io::ErrorKind::InvalidData
                            && let Some(times) = refusals.lock().say((0, error.to_string()))
                        {
                            tracing::warn!(%error, times, "a peer connection was closed");
                        }
                    });
                }
                Err(error) => {
                    if !std::mem::replace(&mut is_said, true) {
                        tracing::warn!(%error, "cannot accept connections of peers");
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

fn invalid(why: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_string())
}

fn late<T>(_: T) -> io::Error {
    io::ErrorKind::TimedOut.into()
}

/// The other end of a connection, once it has greeted.
struct Guest<'a, H> {
    hello: Arc<Hello>,
    handler: Arc<H>,
    place: &'a Place,
    judgement: u64,
    is_named: bool,
}

impl<H: Handler> Guest<'_, H> {
    /// Whether to listen to the next frame. Whoever the membership has come to name is believed from then on.
    async fn is_welcome(&mut self) -> io::Result<bool> {
        let (handler, hello) = (&self.handler, &self.hello);
        let has_changed = std::mem::replace(&mut self.judgement, handler.judgement()) != self.judgement;
        if has_changed && let Some(why) = handler.objection(hello) {
            tracing::warn!(peer = hello.node_id, why, "a peer is not welcome any more");
            return Ok(false);
        }
        if has_changed && handler.names(hello) != self.is_named {
            self.is_named = !self.is_named;
            if self.is_named {
                self.place.prove(hello.node_id);
                handler.accepted(hello).await.map_err(io::Error::other)?;
            }
        }
        if !self.is_named
            && let Some(why) = handler.unknown(hello)
        {
            tracing::debug!(peer = hello.node_id, why, "not listened to");
            return Ok(false);
        }
        Ok(true)
    }
}

/// Reads the greeting and answers it. None if it is refused.
async fn greet<'a, H: Handler>(
    connection: &mut Box<dyn Connection>,
    buffer: &mut BytesMut,
    place: &'a Place,
    handler: Arc<H>,
    refusals: &Refusals,
) -> io::Result<Option<Guest<'a, H>>> {
    let first = frame::read_greeting(connection, buffer).await?;
    if first.kind != Kind::Hello {
        return Err(invalid("the first frame is not a greeting"));
    }
    let hello = Hello::decode(&first.body).map_err(invalid)?;
    let judgement = handler.judgement();
    let is_named = handler.names(&hello);
    let answer = handler.greet(&hello);
    connection.write_all(&frame::encode(Kind::Hello, first.id, first.group, &answer.encode())).await?;
    connection.flush().await?;
    if !answer.refusal.is_empty() {
        // Logged sparsely, as the peer may ask again and again.
        let times = refusals.lock().say((hello.node_id, answer.refusal.clone()));
        if let Some(times) = times {
            tracing::warn!(peer = hello.node_id, why = answer.refusal, times, "refused a peer");
        }
        return Ok(None);
    }
    if is_named {
        place.prove(hello.node_id);
    }
    Ok(Some(Guest { hello: Arc::new(hello), handler, place, judgement, is_named }))
}

async fn serve_connection<H: Handler>(
    mut connection: Box<dyn Connection>,
    place: &Place,
    handler: Arc<H>,
    refusals: &Refusals,
) -> io::Result<()> {
    let mut buffer = BytesMut::new();
    let greeted = greet(&mut connection, &mut buffer, place, handler.clone(), refusals);
    let greeted = tokio::time::timeout(GREETING_TIMEOUT, greeted).await.map_err(late)??;
    let Some(mut guest) = greeted else { return Ok(()) };
    let patience = if guest.is_named { Duration::MAX } else { UNKNOWN_TIMEOUT };
    let second = tokio::time::timeout(patience, frame::read(&mut connection, &mut buffer));
    let second = second.await.map_err(late)??;
    if second.kind == Kind::Hello {
        handler.parted(&guest.hello, &Hello::decode(&second.body).map_err(invalid)?);
        return Ok(());
    }
    handler.accepted(&guest.hello).await.map_err(io::Error::other)?;
    if !guest.is_welcome().await? {
        return Ok(());
    }
    let (mut reader, writer) = tokio::io::split(connection);
    let (frames, outgoing) = mpsc::unbounded_channel();
    // Everything started for this connection ends with it.
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        frame::write_all(writer, outgoing).await;
        Ok(())
    });
    let mut streams = BTreeMap::new();
    serve_frame(second, &guest, &frames, &mut streams, &mut tasks).await?;
    loop {
        tokio::select! {
            biased;
            // First, or ended tasks would pile up behind frames that keep coming.
            Some(ended) = tasks.join_next() => {
                ended.map_err(io::Error::other)?.map_err(invalid)?;
            }
            received = frame::read(&mut reader, &mut buffer) => {
                let received = received?;
                if !guest.is_welcome().await? {
                    return Ok(());
                }
                serve_frame(received, &guest, &frames, &mut streams, &mut tasks).await?;
            }
        }
    }
}

type Streams = BTreeMap<u64, mpsc::Sender<AppendRequest>>;

async fn serve_frame<H: Handler>(
    Frame { kind, id, group, body }: Frame,
    Guest { handler, hello, .. }: &Guest<'_, H>,
    frames: &mpsc::UnboundedSender<Outgoing>,
    streams: &mut Streams,
    tasks: &mut JoinSet<Result<(), String>>,
) -> io::Result<()> {
    match kind {
        Kind::Hello => return Err(invalid("a second greeting")),
        Kind::StreamEnd => {
            streams.remove(&id);
        }
        Kind::Stream => {
            let request = messages::append_request(&body).map_err(invalid)?;
            handler.check_append(hello, &request).map_err(invalid)?;
            let queue = streams.entry(id).or_insert_with(|| {
                let (queue, requests) = mpsc::channel(STREAM_QUEUE);
                tasks.spawn(answer_stream(handler.clone(), id, group, requests, frames.clone()));
                queue
            });
            // A stream that has ended with an error takes no more; its sender starts another.
            if let Err(SendTimeoutError::Timeout(_)) = queue.send_timeout(request, STUCK_MAX).await {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        // Without tasks of their own: they wait for nothing. Sending fails only when the connection has
        // ended.
        Kind::Ping => drop(frames.send(frame::encode(kind, id, group, &[]).into())),
        Kind::Confirm => drop(frames.send(frame::encode(kind, id, group, &handler.confirm(group)).into())),
        kind => {
            let (handler, hello, frames) = (handler.clone(), hello.clone(), frames.clone());
            tasks.spawn(async move {
                let answer = handler.call(&hello, kind, group, body).await?;
                // Fails only when the connection has ended.
                let _ = frames.send(frame::encode(kind, id, group, &answer).into());
                Ok(())
            });
        }
    }
    Ok(())
}

async fn answer_stream<H: Handler>(
    handler: Arc<H>,
    id: u64,
    group: GroupId,
    requests: mpsc::Receiver<AppendRequest>,
    frames: mpsc::UnboundedSender<Outgoing>,
) -> Result<(), String> {
    let requests = stream::unfold(requests, |mut requests| async {
        let request = requests.recv().await?;
        Some((request, requests))
    });
    let mut results = Box::pin(handler.append_stream(group, requests));
    while let Some(result) = results.next().await {
        let mut body = Vec::with_capacity(48);
        messages::put_append_result(&mut body, &result);
        let _ = frames.send(frame::encode(Kind::Stream, id, group, &body).into());
    }
    Ok(())
}

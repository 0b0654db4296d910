//! The receiving end of peers' connections: answers the greeting, then each frame. A malformed frame closes
//! the connection; nothing that a peer sends can do more.

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
    frame::{self, Frame, Kind},
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

/// What a node does with what its peers send.
pub(crate) trait Handler: Send + Sync + 'static {
    /// Judges and answers a greeting; the answer holds the refusal.
    fn greet(&self, hello: &Hello) -> Hello;
    /// The peer has read the answer and continues: it has no objection either. Err closes the connection.
    fn accepted(&self, hello: &Hello) -> impl Future<Output = Result<(), String>> + Send;
    /// The peer has read the answer and objects to this node's disk.
    fn parted(&self, hello: &Hello);
    /// Changes when a peer that was welcome may not be any more.
    fn judgement(&self) -> u64;
    /// Why not to listen any longer to the sender of this greeting.
    fn objection(&self, hello: &Hello) -> Option<String>;
    /// Answers, at once, a leader that asks for this node's vote.
    fn confirm(&self, group: GroupId) -> Vec<u8>;
    /// Answers a call. Err closes the connection.
    fn call(
        self: &Arc<Self>,
        kind: Kind,
        group: GroupId,
        body: Bytes,
    ) -> impl Future<Output = Result<Vec<u8>, String>> + Send;
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
                Ok(connection) => {
                    is_said = false;
                    let (handler, refusals) = (handler.clone(), refusals.clone());
                    connections.spawn(async move {
                        if let Err(error) = serve_connection(connection, handler, &refusals).await
                            && error.kind() == io::ErrorKind::InvalidData
                        {
                            tracing::warn!(%error, "a peer connection was closed");
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

async fn serve_connection<H: Handler>(
    mut connection: Box<dyn Connection>,
    handler: Arc<H>,
    refusals: &Refusals,
) -> io::Result<()> {
    let mut buffer = BytesMut::new();
    let first = frame::read(&mut connection, &mut buffer).await?;
    if first.kind != Kind::Hello {
        return Err(invalid("the first frame is not a greeting"));
    }
    let hello = Hello::decode(&first.body).map_err(invalid)?;
    let mut judgement = handler.judgement();
    let answer = handler.greet(&hello);
    connection.write_all(&frame::encode(Kind::Hello, first.id, first.group, &answer.encode())).await?;
    if !answer.refusal.is_empty() {
        connection.flush().await?;
        // Logged sparsely, as the peer may ask again and again.
        let times = refusals.lock().say((hello.node_id, answer.refusal.clone()));
        if let Some(times) = times {
            tracing::warn!(peer = hello.node_id, why = answer.refusal, times, "refused a peer");
        }
        return Ok(());
    }
    let second = frame::read(&mut connection, &mut buffer).await?;
    if second.kind == Kind::Hello {
        handler.parted(&Hello::decode(&second.body).map_err(invalid)?);
        return Ok(());
    }
    handler.accepted(&hello).await.map_err(io::Error::other)?;
    let (mut reader, writer) = tokio::io::split(connection);
    let (frames, outgoing) = mpsc::unbounded_channel();
    // Everything started for this connection ends with it.
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        frame::write_all(writer, outgoing).await;
        Ok(())
    });
    let mut streams = BTreeMap::new();
    serve_frame(second, &handler, &frames, &mut streams, &mut tasks).await?;
    loop {
        tokio::select! {
            biased;
            // First, or ended tasks would pile up behind frames that keep coming.
            Some(ended) = tasks.join_next() => {
                ended.map_err(io::Error::other)?.map_err(invalid)?;
            }
            received = frame::read(&mut reader, &mut buffer) => {
                let received = received?;
                if std::mem::replace(&mut judgement, handler.judgement()) != judgement
                    && let Some(why) = handler.objection(&hello)
                {
                    tracing::warn!(peer = hello.node_id, why, "a peer is not welcome any more");
                    return Ok(());
                }
                serve_frame(received, &handler, &frames, &mut streams, &mut tasks).await?;
            }
        }
    }
}

type Streams = BTreeMap<u64, mpsc::Sender<AppendRequest>>;

async fn serve_frame<H: Handler>(
    Frame { kind, id, group, body }: Frame,
    handler: &Arc<H>,
    frames: &mpsc::UnboundedSender<Bytes>,
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
        Kind::Ping => drop(frames.send(frame::encode(kind, id, group, &[]))),
        Kind::Confirm => drop(frames.send(frame::encode(kind, id, group, &handler.confirm(group)))),
        kind => {
            let (handler, frames) = (handler.clone(), frames.clone());
            tasks.spawn(async move {
                let answer = handler.call(kind, group, body).await?;
                // Fails only when the connection has ended.
                let _ = frames.send(frame::encode(kind, id, group, &answer));
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
    frames: mpsc::UnboundedSender<Bytes>,
) -> Result<(), String> {
    let requests = stream::unfold(requests, |mut requests| async {
        let request = requests.recv().await?;
        Some((request, requests))
    });
    let mut results = Box::pin(handler.append_stream(group, requests));
    while let Some(result) = results.next().await {
        let mut body = Vec::with_capacity(48);
        messages::put_append_result(&mut body, &result);
        let _ = frames.send(frame::encode(Kind::Stream, id, group, &body));
    }
    Ok(())
}

//! Two connections to a peer, and how they are made.

use std::{io, sync::Arc, time::Duration};

use bytes::BytesMut;
use futures::future::BoxFuture;
use tokio::io::AsyncWriteExt as _;

use super::*;
use crate::net::transport::Listener;

fn hello(node_id: NodeId) -> Hello {
    Hello {
        protocol_version: crate::net::handshake::PROTOCOL_VERSION,
        cluster_id: String::new(),
        node_id,
        to: 2,
        disk_id: String::new(),
        clock_ms: None,
        refusal: String::new(),
        protocol_oldest: crate::net::handshake::PROTOCOL_VERSION,
        has_log: false,
        first_members: Vec::new(),
        apply_level: 0,
        apply_level_max: 1,
        former_clusters: Vec::new(),
        begun: Default::default(),
        address: String::new(),
        went_back: String::new(),
        wall_ms: 0,
    }
}

/// Welcomes everybody, until it has changed its mind.
#[derive(Default)]
struct Polite {
    has_changed: AtomicBool,
}

impl Greeter for Polite {
    fn hello(&self, _: NodeId) -> Hello {
        hello(1)
    }

    fn greeted<'a>(&'a self, _: &'a Hello) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn parting(&self, _: &Hello) -> Option<Hello> {
        None
    }

    fn judgement(&self) -> u64 {
        self.has_changed.load(Ordering::Relaxed).into()
    }

    fn objection(&self, _: &Hello) -> Option<String> {
        self.has_changed.load(Ordering::Relaxed).then(|| "not welcome any more".to_owned())
    }

    fn measured(&self, _: NodeId, _: Duration) {}
}

/// A peer that answers votes, and is slow to read anything else.
struct Busy;

async fn busy(mut stream: tokio::io::DuplexStream) -> io::Result<()> {
    let mut buffer = BytesMut::new();
    frame::read(&mut stream, &mut buffer).await?;
    stream.write_all(&frame::encode(Kind::Hello, 0, 0, &hello(2).encode())).await?;
    loop {
        let mut head = [0; 5];
        tokio::io::AsyncReadExt::read_exact(&mut stream, &mut head).await?;
        if head[4] != Kind::Vote as u8 {
            tokio::time::sleep(Duration::from_secs(3_600)).await;
        }
        buffer.extend_from_slice(&head);
        let asked = frame::read(&mut stream, &mut buffer).await?;
        stream.write_all(&frame::encode(Kind::Vote, asked.id, asked.group, b"granted")).await?;
    }
}

impl Transport for Busy {
    fn listen<'a>(&'a self, _: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(async { Err(io::ErrorKind::Unsupported.into()) })
    }

    fn connect<'a>(&'a self, _: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Connection>>> {
        let (near, far) = tokio::io::duplex(1024);
        tokio::spawn(busy(far));
        Box::pin(async { Ok(Box::new(near) as Box<dyn Connection>) })
    }
}

#[tokio::test(start_paused = true)]
async fn a_vote_does_not_wait_behind_a_huge_value() {
    let peer = Arc::new(Peer::new(2, String::new(), Arc::new(Busy), Arc::<Polite>::default()));
    let (forwarding, timeout) = (peer.clone(), Duration::from_secs(60));
    let forwarded =
        tokio::spawn(async move { forwarding.call(Kind::Forward, 0, &[7; 1 << 20], timeout).await });
    tokio::task::yield_now().await;
    let voted = peer.call(Kind::Vote, 0, b"", Duration::from_secs(1)).await.unwrap();
    assert_eq!(&voted[..], b"granted");
    assert!(!forwarded.is_finished());
    assert!(matches!(forwarded.await.unwrap(), Err(CallError::Lost(_))));
}

/// A peer that is slow to connect to; then it is [`Busy`].
struct Distant(Duration);

impl Transport for Distant {
    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Busy.listen(address)
    }

    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Connection>>> {
        Box::pin(async move {
            tokio::time::sleep(self.0).await;
            Busy.connect(address).await
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_distant_peer_is_reached_by_callers_with_little_time() {
    let distance = Duration::from_millis(500);
    let peer = Peer::new(2, String::new(), Arc::new(Distant(distance)), Arc::<Polite>::default());
    let ttl = Duration::from_millis(75);
    let mut calls = 0;
    while let Err(error) = peer.call(Kind::Vote, 0, b"", ttl).await {
        assert!(matches!(error, CallError::NotSent(_)), "{error}");
        calls += 1;
        assert!(calls < 10, "never connected");
    }
    assert_eq!(calls, 6);
}

#[tokio::test(start_paused = true)]
async fn streams_end_when_the_peer_is_not_welcome_any_more() {
    let greeter = Arc::<Polite>::default();
    let peer = Peer::new(2, String::new(), Arc::new(Busy), greeter.clone());
    let mut results = peer.bulk_link().await.unwrap().expect_stream(7).unwrap();
    peer.call(Kind::Vote, 0, b"", Duration::from_secs(1)).await.unwrap();
    assert!(results.try_recv().is_err_and(|error| error == mpsc::error::TryRecvError::Empty));
    greeter.has_changed.store(true, Ordering::Relaxed);
    peer.call(Kind::Vote, 0, b"", Duration::from_secs(1)).await.unwrap();
    assert_eq!(results.recv().await, None);
}

/// Connects to a peer that greets and says nothing more. Counts.
#[derive(Default)]
struct Silent(Arc<AtomicU64>);

impl Transport for Silent {
    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Busy.listen(address)
    }

    fn connect<'a>(&'a self, _: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Connection>>> {
        self.0.fetch_add(1, Ordering::Relaxed);
        let (near, mut far) = tokio::io::duplex(1 << 16);
        tokio::spawn(async move {
            frame::read(&mut far, &mut BytesMut::new()).await?;
            far.write_all(&frame::encode(Kind::Hello, 0, 0, &hello(2).encode())).await?;
            tokio::time::sleep(Duration::from_secs(3_600)).await;
            io::Result::Ok(())
        });
        Box::pin(async { Ok(Box::new(near) as Box<dyn Connection>) })
    }
}

#[tokio::test(start_paused = true)]
async fn a_link_is_given_up_though_nobody_waits_when_it_is_looked_at() {
    let connections = Arc::new(AtomicU64::new(0));
    let peer = Peer::new(2, String::new(), Arc::new(Silent(connections.clone())), Arc::<Polite>::default());
    let (asks, rests) = (Duration::from_millis(75), Duration::from_millis(25));
    // Then every look falls into a rest.
    assert!(peer.call(Kind::Append, 0, b"", asks).await.is_err());
    tokio::time::sleep(rests + Duration::from_millis(10)).await;
    for _ in 0..40 {
        assert!(peer.call(Kind::Append, 0, b"", asks).await.is_err());
        tokio::time::sleep(rests).await;
    }
    assert_eq!(connections.load(Ordering::Relaxed), 2, "after four seconds");
}

#[tokio::test(start_paused = true)]
async fn calls_that_are_given_up_leave_nothing_behind() {
    let peer = Peer::new(2, String::new(), Arc::new(Silent::default()), Arc::<Polite>::default());
    let link = peer.link().await.unwrap();
    for number in 0..100 {
        let long = peer.call(Kind::ReadIndex, 0, b"", Duration::from_secs(3_600));
        // Given up by its caller, or at the end of its time.
        let given_up = tokio::time::timeout(Duration::from_micros(10), long).await;
        assert!(given_up.is_err());
        if number % 10 == 0 {
            assert!(peer.call(Kind::ReadIndex, 0, b"", Duration::from_micros(10)).await.is_err());
        }
        assert_eq!(link.waiting.lock().calls.len(), 0);
    }
}

//! A long way to a node: a proxy before its peer address that carries everything later by a constant time, both ways.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    runtime::Runtime,
    sync::mpsc,
    time::Instant,
};

/// Carries until it is dropped.
pub struct Way {
    _runtime: Runtime,
}

impl Way {
    /// From `here`, where peers connect, to `there`, where the node listens.
    pub fn open(here: &str, there: &str, one_way: Duration) -> Way {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().build().expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind(here)).expect("the address was free");
        let there: SocketAddr = there.parse().expect("an address");
        runtime.spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                // What goes wrong is what both ends see: the connection closes.
                tokio::spawn(async move {
                    let _ = carry(near, there, one_way).await;
                });
            }
        });
        Way { _runtime: runtime }
    }
}

async fn carry(near: TcpStream, there: SocketAddr, one_way: Duration) -> io::Result<()> {
    let far = TcpStream::connect(there).await?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let (from_near, to_near) = near.into_split();
    let (from_far, to_far) = far.into_split();
    tokio::select! {
        ended = later(from_near, to_far, one_way) => ended,
        ended = later(from_far, to_near, one_way) => ended,
    }
}

/// Everything, in its order, later by this time.
async fn later(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, by: Duration) -> io::Result<()> {
    let (sender, mut pieces) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    let reading = async move {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let len = from.read(&mut buffer).await?;
            if len == 0 || sender.send((Instant::now() + by, buffer[..len].to_vec())).is_err() {
                return Ok(());
            }
        }
    };
    let writing = async move {
        while let Some((due, piece)) = pieces.recv().await {
            tokio::time::sleep_until(due).await;
            to.write_all(&piece).await?;
        }
        Ok(())
    };
    // Reading ends first, and what it has read is written after that.
    let (read, written): (io::Result<()>, io::Result<()>) = tokio::join!(reading, writing);
    read.and(written)
}

//! The end of a simulated byte stream: a node reads and writes it, and the world carries what it writes.

use std::{
    collections::VecDeque,
    future::poll_fn,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

#[derive(Debug, Default)]
struct State {
    /// What has arrived and was not read.
    arrived: VecDeque<u8>,
    /// Nothing more arrives.
    has_ended: bool,
    /// It is broken: reads and writes fail.
    is_broken: bool,
    /// What was written and is not yet on its way.
    written: Vec<u8>,
    /// The node writes nothing more.
    is_finished: bool,
    readers: Vec<Waker>,
}

/// The world's handle on an end.
#[derive(Clone, Debug)]
pub struct Endpoint(Arc<Mutex<State>>);

/// The node's side of an end. Dropping it closes it.
#[derive(Debug)]
pub struct NodeEnd(Endpoint);

impl Endpoint {
    /// A new end, and the node's side of it.
    #[allow(clippy::new_ret_no_self)]
    pub fn new() -> (Endpoint, NodeEnd) {
        let end = Endpoint(Arc::default());
        (end.clone(), NodeEnd(end))
    }

    /// Takes what the node has written.
    pub fn take_written(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().written)
    }

    /// Whether the node would find something to read, or the end.
    pub fn is_readable(&self) -> bool {
        let state = self.0.lock();
        state.is_broken || state.has_ended || !state.arrived.is_empty()
    }

    /// Whether the node has closed it, and nothing that it wrote is left to take.
    pub fn is_finished(&self) -> bool {
        let state = self.0.lock();
        (state.is_finished || state.is_broken) && state.written.is_empty()
    }

    /// Bytes arrive at the node.
    pub fn deliver(&self, bytes: &[u8]) {
        self.change(|state| state.arrived.extend(bytes));
    }

    /// The other side has closed.
    pub fn end(&self) {
        self.change(|state| state.has_ended = true);
    }

    /// The stream breaks for the node.
    pub fn break_off(&self) {
        self.change(|state| {
            state.is_broken = true;
            state.written.clear();
        });
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.0.lock();
        change(&mut state);
        let readers = std::mem::take(&mut state.readers);
        drop(state);
        readers.into_iter().for_each(Waker::wake);
    }

    /// As the node: writes all.
    pub fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.0.lock();
        if state.is_broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        state.written.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    /// As the node: waits until the other side has closed, or it broke.
    pub async fn ended(&self) {
        let ended = |context: &mut Context<'_>| {
            let mut state = self.0.lock();
            if state.has_ended || state.is_broken {
                return Poll::Ready(());
            }
            state.readers.push(context.waker().clone());
            Poll::Pending
        };
        poll_fn(ended).await;
    }
}

impl NodeEnd {
    /// A handle on the same end.
    pub fn endpoint(&self) -> Endpoint {
        self.0.clone()
    }

    /// Reads what has arrived; None when there is nothing yet, 0 at the end.
    pub fn try_read(&mut self, buffer: &mut [u8]) -> Option<io::Result<usize>> {
        let mut state = self.0.0.lock();
        if state.is_broken {
            return Some(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if state.arrived.is_empty() && !state.has_ended {
            return None;
        }
        let count = state.arrived.len().min(buffer.len());
        buffer.iter_mut().zip(state.arrived.drain(..count)).for_each(|(to, byte)| *to = byte);
        Some(Ok(count))
    }
}

impl Drop for NodeEnd {
    fn drop(&mut self) {
        self.0.0.lock().is_finished = true;
    }
}

impl AsyncRead for NodeEnd {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match this.try_read(buffer.initialize_unfilled()) {
            Some(read) => Poll::Ready(read.map(|count| buffer.advance(count))),
            None => {
                this.0.0.lock().readers.push(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl AsyncWrite for NodeEnd {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(self.0.write(bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.0.lock().is_finished = true;
        Poll::Ready(Ok(()))
    }
}

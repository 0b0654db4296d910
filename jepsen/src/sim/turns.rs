//! Threads that take turns: one runs at a time, and the world decides which. So blocking code, like that of
//! the workloads, runs in simulated time, and the same seed gives the same order.

use std::{
    io,
    panic::resume_unwind,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::Duration,
};

use kvorum_raft::simulation::{Endpoint, NodeEnd};

use crate::client::Wire;

/// What a thread waits for.
enum Wait {
    /// A time, in microseconds.
    Until(u64),
    /// That time, or something to read.
    Read(Endpoint, u64),
    /// Nothing: it has ended.
    End,
}

/// The world's handle of a thread. Dropping it ends the thread.
pub(super) struct Actor {
    resume: Option<mpsc::Sender<()>>,
    waits: mpsc::Receiver<Wait>,
    wait: Wait,
    thread: Option<JoinHandle<()>>,
}

/// A thread's own handle.
#[derive(Clone)]
pub(super) struct Turns {
    now_us: Arc<AtomicU64>,
    resume: Arc<Mutex<mpsc::Receiver<()>>>,
    waits: mpsc::Sender<Wait>,
}

impl Actor {
    /// A thread that gets its first turn at once.
    pub(super) fn new(now_us: Arc<AtomicU64>, run: impl FnOnce(Turns) + Send + 'static) -> Actor {
        let (resume, resumed) = mpsc::channel();
        let (waiting, waits) = mpsc::channel();
        let turns = Turns { now_us, resume: Arc::new(Mutex::new(resumed)), waits: waiting };
        let thread = std::thread::spawn(move || {
            turns.stand_by();
            let last = turns.clone();
            run(turns);
            // The world may be gone.
            let _ = last.waits.send(Wait::End);
        });
        Actor { resume: Some(resume), waits, wait: Wait::Until(0), thread: Some(thread) }
    }

    pub(super) fn is_due(&self, now_us: u64) -> bool {
        match &self.wait {
            Wait::Until(until) => now_us >= *until,
            Wait::Read(end, until) => now_us >= *until || end.is_readable(),
            Wait::End => false,
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        matches!(self.wait, Wait::End)
    }

    /// Gives it a turn, which lasts until it waits again. False if it has panicked.
    pub(super) fn run(&mut self) -> bool {
        let next = self.resume.as_ref().and_then(|resume| {
            resume.send(()).ok()?;
            self.waits.recv().ok()
        });
        let is_well = next.is_some();
        self.wait = next.unwrap_or(Wait::End);
        is_well
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        self.resume = None;
        // `run` has seen its end or its panic.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Turns {
    pub(super) fn now_us(&self) -> u64 {
        self.now_us.load(Ordering::Relaxed)
    }

    pub(super) fn sleep(&self, time: Duration) {
        self.wait(Wait::Until(self.now_us() + micros(time)));
    }

    fn wait(&self, wait: Wait) {
        let _ = self.waits.send(wait);
        self.stand_by();
    }

    fn stand_by(&self) {
        let resumed = self.resume.lock().unwrap_or_else(PoisonError::into_inner).recv();
        if resumed.is_err() {
            // The world has ended.
            resume_unwind(Box::new(()));
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// A client's end of a connection.
pub(super) struct SimulatedWire {
    pub(super) turns: Turns,
    pub(super) end: NodeEnd,
}

impl Wire for SimulatedWire {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.end.endpoint().write(bytes).map(drop)
    }

    fn read(&mut self, buffer: &mut [u8], limit: Duration) -> io::Result<usize> {
        let until = self.turns.now_us() + micros(limit);
        loop {
            match self.end.try_read(buffer) {
                Some(read) => return read,
                None if self.turns.now_us() >= until => return Err(io::ErrorKind::WouldBlock.into()),
                None => self.turns.wait(Wait::Read(self.end.endpoint(), until)),
            }
        }
    }

    fn now(&self) -> Duration {
        Duration::from_micros(self.turns.now_us())
    }

    fn sleep(&mut self, time: Duration) {
        self.turns.sleep(time);
    }
}

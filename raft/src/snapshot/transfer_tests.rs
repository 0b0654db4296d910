//! What arrives late, from another transfer, or changed must not get into a snapshot.

use std::sync::Arc;

use openraft::storage::RaftLogStorage;

use super::*;
use crate::{
    log::{Log, LogConfig},
    net::transport::Tcp,
    state::progress::Progress,
    types::LogId,
};

type Pages = Vec<(Vec<u8>, Vec<u8>)>;

struct Receiving {
    receiver: Receiver,
    log: Log,
    dir: tempfile::TempDir,
}

fn receiving() -> Receiving {
    let dir = tempfile::tempdir().unwrap();
    let config = LogConfig {
        dir: dir.path().join("log"),
        segment_bytes: 1 << 16,
        cache_bytes: 0,
        spare_segments: 0,
        space: crate::space::unknown(),
    };
    let log = Log::open(config, Arc::new(|why| panic!("{why}"))).unwrap();
    let receiver = Receiver {
        group: 0,
        platform: Platform::over(Arc::new(Tcp)),
        dir: dir.path().join("pages.received"),
        cache_bytes: 1 << 20,
        votes: log.store(0),
        staging: Mutex::new(None),
        directory: Arc::new(Semaphore::new(1)),
    };
    Receiving { receiver, log, dir }
}

fn head_at(index: u64) -> Vec<u8> {
    let last = Some(LogId::new_term_index(1, index));
    Head::encode(&Progress { last, ..Progress::default() }, b"")
}

/// Ten pages, all with the same content.
fn pages_of(content: &[u8]) -> Pages {
    (0..10).map(|page| (vec![page], content.to_vec())).collect()
}

impl Receiving {
    /// What a sender's own store says of its pages.
    async fn tally_of(&self, pages: &Pages) -> Tally {
        let path = self.dir.path().join(format!("sent-{}", chance::id()));
        let store = self.receiver.platform.open_pages(path, 1 << 20).await.unwrap();
        let writes = pages.iter().cloned().map(|(id, content)| PageWrite { id, content: Some(content) });
        store.write(0, writes.collect()).await.unwrap();
        store.commit(0, Vec::new()).await.unwrap();
        store.head_and_tally(0).await.unwrap().unwrap().1
    }

    async fn begin(&self, term: u64, index: u64, tally: Tally) -> Option<u64> {
        let mut body = Vec::new();
        codec::put_vote(&mut body, &Vote::new_committed(term, term));
        tally.put(&mut body);
        put_bytes(&mut body, &head_at(index));
        let answer = self.receiver.begin(Announced::decode(&body).unwrap()).await.unwrap();
        begun(&answer).unwrap().map(|(transfer, _)| transfer)
    }

    async fn piece(&self, transfer: u64, number: u64, pages: &[(Vec<u8>, Vec<u8>)]) -> bool {
        let mut body = Vec::new();
        put_u64(&mut body, transfer);
        put_u64(&mut body, number);
        put_pages(&mut body, pages);
        self.receiver.pages(&body).await.unwrap() == [TAKEN]
    }

    async fn end(&self, transfer: u64) -> Option<Pages> {
        let (_, _, received) = self.receiver.end(&transfer.to_le_bytes()).await.unwrap()?;
        Some(received.store.scan(0, None, 1 << 20).await.unwrap())
    }
}

#[tokio::test]
async fn late_pieces_of_another_transfer_change_nothing() {
    let receiving = receiving();
    let (old, new) = (pages_of(b"old"), pages_of(b"new"));
    let (old_tally, new_tally) = (receiving.tally_of(&old).await, receiving.tally_of(&new).await);
    let first = receiving.begin(1, 100, old_tally).await.unwrap();
    assert!(receiving.piece(first, 0, &old[..5]).await);

    let second = receiving.begin(2, 200, new_tally).await.unwrap();
    assert!(receiving.piece(second, 0, &new[..5]).await);
    assert!(!receiving.piece(first, 1, &old[..5]).await, "from the transfer before");
    assert!(!receiving.piece(second, 0, &new[..5]).await, "the same piece again");
    assert!(!receiving.piece(second, 2, &new[8..]).await, "one that is not next");
    assert_eq!(receiving.begin(1, 100, old_tally).await, None, "the first leader leads no more");
    assert_eq!(receiving.end(first).await, None);
    assert!(receiving.piece(second, 1, &new[5..]).await);
    assert_eq!(receiving.end(second).await, Some(new));
    receiving.log.close();
}

#[tokio::test]
async fn a_leader_of_an_earlier_term_than_the_node_has_voted_in_is_refused() {
    let receiving = receiving();
    receiving.log.store(0).save_vote(&Vote::new(7, 3)).await.unwrap();
    assert_eq!(receiving.begin(6, 100, Tally::default()).await, None);
    assert!(receiving.begin(7, 100, Tally::default()).await.is_some());
}

#[tokio::test]
async fn a_transfer_that_broke_off_goes_on_under_another_number() {
    let receiving = receiving();
    let pages = pages_of(b"same");
    let tally = receiving.tally_of(&pages).await;
    let first = receiving.begin(1, 100, tally).await.unwrap();
    assert!(receiving.piece(first, 0, &pages[..5]).await);
    let again = receiving.begin(1, 100, tally).await.unwrap();
    assert!(!receiving.piece(first, 1, &pages[5..]).await);
    assert!(receiving.piece(again, 0, &pages[5..]).await);
    assert_eq!(receiving.end(again).await, Some(pages));
}

#[tokio::test]
async fn what_is_not_what_was_announced_is_not_installed() {
    for change in 0..3 {
        let receiving = receiving();
        let mut pages = pages_of(b"announced");
        let transfer = receiving.begin(1, 100, receiving.tally_of(&pages).await).await.unwrap();
        match change {
            0 => pages[7].1 = b"older".to_vec(),
            1 => drop(pages.pop()),
            _ => pages.push((vec![99], b"superfluous".to_vec())),
        }
        assert!(receiving.piece(transfer, 0, &pages).await);
        assert_eq!(receiving.end(transfer).await, None, "change {change}");
    }
}

#[tokio::test]
async fn what_is_being_installed_keeps_its_directory() {
    let receiving = receiving();
    let pages = pages_of(b"received");
    let tally = receiving.tally_of(&pages).await;
    let transfer = receiving.begin(1, 100, tally).await.unwrap();
    assert!(receiving.piece(transfer, 0, &pages).await);
    let (_, _, received) = receiving.receiver.end(&transfer.to_le_bytes()).await.unwrap().unwrap();
    // The leader has lost its connection meanwhile, or another leads: it begins anew.
    let other = receiving.tally_of(&pages_of(b"other")).await;
    for (index, tally) in [(100, tally), (200, other)] {
        assert_eq!(receiving.begin(2, index, tally).await, None);
    }
    let dir = received.store.dir().to_owned();
    received.store.close();
    let Received { store, claim } = received;
    let opened = receiving.receiver.platform.open_pages(dir, 1 << 20).await.unwrap();
    assert_eq!(opened.scan(0, None, 1 << 20).await.unwrap(), pages);
    opened.close();
    drop((store, opened, claim));
    assert!(receiving.begin(2, 200, other).await.is_some());
}

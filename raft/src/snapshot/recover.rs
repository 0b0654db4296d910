//! A node whose pages are unreadable asks its peers for theirs, before it joins consensus. That is safe: its
//! log and vote are intact, so no promise is forgotten; pages are only a condensed log.

use std::{path::Path, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    Machine,
    codec::{Reader, put_bool, put_bytes, put_u64},
    net::{frame::Kind, peer::Peer},
    node::peer_table::PeerTable,
    pages::{PageStore, PagesError, Tally},
    platform::Platform,
    snapshot::{
        checkpoint::Checkpointer,
        head::Head,
        transfer::{decode_pages, put_pages},
    },
    types::GROUP,
    want::Want,
};

const CHUNK_BYTES: usize = 1 << 20;
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long peers are asked repeatedly while one cannot be reached: it may have what is needed, and just be
/// starting.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_secs(1);
/// A peer that writes checkpoints all the time makes a fetch start over at most this often.
const ATTEMPTS: usize = 10;

/// Answers a peer: the head, the tally of all pages, and pages after the one that it names. If the last
/// checkpoint is older than the peer can use, and this node has applied what it needs, another one is written
/// first.
pub(crate) async fn answer<M: Machine>(
    checkpointer: &Checkpointer<M>,
    body: &[u8],
) -> Result<Vec<u8>, String> {
    checkpointer.check_undisputed()?;
    let mut reader = Reader::new(body);
    let continues = reader.bool().map_err(text)?;
    let after = reader.bytes().map_err(text)?.to_vec();
    // Earlier versions do not say which index they need.
    let index_min = if reader.remaining() == 0 { 0 } else { reader.u64().map_err(text)? };
    if !continues {
        let last = checkpointer.last().last_log_id.map_or(0, |id| id.index);
        if (last + 1..=checkpointer.applier.index()).contains(&index_min) {
            checkpointer.request().await.map_err(text)??;
        }
    }
    let _shared = checkpointer.in_use.read().await;
    let store = checkpointer.store();
    let (head, tally) = store.head_and_tally(GROUP).await.map_err(text)?.unwrap_or_default();
    let after = continues.then_some(after);
    let pages = store.scan(GROUP, after, CHUNK_BYTES).await.map_err(text)?;
    let mut out = Vec::new();
    put_bytes(&mut out, &head);
    tally.put(&mut out);
    put_pages(&mut out, &pages);
    Ok(out)
}

/// Fetches a checkpoint of at least `index_min` from any peer into an empty page store at `dir`. `Unreadable`
/// means that no peer has given one; all other errors concern this node's own disk, or its system.
pub(crate) async fn fetch(
    table: &Arc<PeerTable>,
    dir: &Path,
    cache_bytes: usize,
    index_min: u64,
) -> Result<PageStore, PagesError> {
    let mut peers = table.identity.peers();
    peers.remove(&table.identity.node_id());
    if peers.is_empty() {
        return Err(PagesError::Unreadable("no peers are known".to_owned()));
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (mut reasons, mut is_one_missing) = (Vec::new(), false);
        for (id, address) in &peers {
            let peer = table.at(*id, address);
            if let Err(error) = peer.bulk_link().await {
                if let Some(want) = Want::of(&error).filter(|want| want.may_pass()) {
                    // Nothing is known about the peer.
                    return Err(PagesError::Refused { want, why: error.to_string() });
                }
                is_one_missing = true;
                reasons.push(format!("node {id} ({address}): {error}"));
                continue;
            }
            tracing::info!(peer = id, address, "asking a peer for its checkpoint");
            match fetch_from(&table.platform, &peer, dir, cache_bytes, index_min).await {
                Ok(store) => return Ok(store),
                Err(PagesError::Unreadable(why)) => reasons.push(format!("node {id} ({address}): {why}")),
                Err(error) => return Err(error),
            }
        }
        let reasons = reasons.join("; ");
        if !is_one_missing || Instant::now() >= deadline {
            return Err(PagesError::Unreadable(reasons));
        }
        tracing::warn!(reasons, "no peer has given its checkpoint yet");
        tokio::time::sleep(PAUSE).await;
    }
}

async fn fetch_from(
    platform: &Platform,
    peer: &Peer,
    dir: &Path,
    cache_bytes: usize,
    index_min: u64,
) -> Result<PageStore, PagesError> {
    for _ in 0..ATTEMPTS {
        platform.remove_pages(dir).await.map_err(PagesError::of_own_files)?;
        let store = platform.open_pages(dir.to_owned(), cache_bytes).await?;
        if copy(peer, &store, index_min).await? {
            return Ok(store);
        }
        store.close();
    }
    Err(PagesError::Unreadable("it writes checkpoints faster than they can be read".into()))
}

/// Copies a peer's checkpoint. False if it changed on the way.
async fn copy(peer: &Peer, store: &PageStore, index_min: u64) -> Result<bool, PagesError> {
    let mut first_head: Option<Vec<u8>> = None;
    let mut after: Option<Vec<u8>> = None;
    loop {
        let mut request = Vec::new();
        put_bool(&mut request, after.is_some());
        put_bytes(&mut request, after.as_deref().unwrap_or_default());
        put_u64(&mut request, index_min);
        let answer = peer.call(Kind::FetchPages, GROUP, &request, CALL_TIMEOUT).await.map_err(unreadable)?;
        let mut reader = Reader::new(&answer);
        let head = reader.bytes().map_err(unreadable)?.to_vec();
        let tally = Tally::read(&mut reader).map_err(unreadable)?;
        let pages = decode_pages(reader.rest()).map_err(unreadable)?;
        let expected = first_head.get_or_insert_with(|| head.clone());
        if *expected != head {
            return Ok(false);
        }
        if after.is_none() {
            let index = if head.is_empty() { 0 } else { Head::decode(&head).map_err(unreadable)?.index() };
            if index < index_min || index == 0 {
                return Err(unreadable(format!(
                    "its checkpoint is at {index}, the log here begins after {index_min}"
                )));
            }
        }
        let Some(last) = pages.last().map(|page| page.id.clone()) else {
            store.commit(GROUP, head).await?;
            let fetched = store.head_and_tally(GROUP).await?.map(|(_, tally)| tally);
            return if fetched == Some(tally) {
                Ok(true)
            } else {
                Err(unreadable("its pages are not those of one checkpoint"))
            };
        };
        after = Some(last);
        store.write(GROUP, pages).await?;
    }
}

fn unreadable(error: impl std::fmt::Display) -> PagesError {
    PagesError::Unreadable(error.to_string())
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

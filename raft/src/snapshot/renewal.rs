//! Frees space that the page store does not free by itself. sled shortens a file when its last parts are
//! free, but never one of which nothing is left, as after FLUSHALL. Where there is little room and few pages,
//! the pages are written into a new directory, which replaces the old one.

use std::path::PathBuf;

use crate::{
    Machine, PageWrite,
    pages::{Page, PageStore, PagesError},
    snapshot::checkpoint::Checkpointer,
    space::occupied,
};

/// The new directory, until it replaces the old one.
pub(crate) const RENEWED: &str = "pages.renewed";

/// Pages are rewritten when the old directory occupies more than this, and they themselves are less, ...
const BYTES_MIN: u64 = 4 << 20;

/// ... and there are no more pages than this.
const PAGES_MAX: u64 = 64;

impl<M: Machine> Checkpointer<M> {
    /// Rewrites the directory if that frees much space. The caller holds `in_use` for writing, after a commit
    /// with this head.
    pub(crate) async fn renew(&self, head: &[u8]) -> Result<(), PagesError> {
        let store = self.store();
        let Some((_, tally)) = store.head_and_tally(self.group).await? else { return Ok(()) };
        let looked_at = store.dir().to_owned();
        // It fails only by a panic, which is reported.
        let present = self.platform.block(move || occupied(&looked_at)).await.unwrap_or(0);
        if tally.pages > PAGES_MAX || present < BYTES_MIN {
            return Ok(());
        }
        let pages = store.scan(self.group, None, BYTES_MIN as usize).await?;
        if (pages.len() as u64) < tally.pages {
            return Ok(());
        }
        let dir = store.dir().with_file_name(RENEWED);
        match self.write_anew(dir.clone(), pages, head).await {
            Ok(renewed) => {
                drop(store);
                if let Err(error) = self.replace_store(renewed).await {
                    // Which of the two is in place shows at the next start.
                    (self.platform.fatal)(format!("cannot replace the pages: {error}"));
                }
            }
            Err(error) => {
                tracing::debug!(%error, "the pages could not be written anew");
                if let Err(error) = self.platform.remove_pages(&dir).await {
                    tracing::debug!(%error, "what was written of them could not be removed");
                }
            }
        }
        Ok(())
    }

    async fn write_anew(&self, dir: PathBuf, pages: Vec<Page>, head: &[u8]) -> Result<PageStore, PagesError> {
        self.platform.remove_pages(&dir).await.map_err(PagesError::of_own_files)?;
        let renewed = self.platform.open_pages(dir, self.cache_bytes).await?;
        let pages = pages.into_iter().map(|(id, content)| PageWrite { id, content: Some(content) });
        renewed.write(self.group, pages.collect()).await?;
        renewed.commit(self.group, head.to_vec()).await?;
        Ok(renewed)
    }
}

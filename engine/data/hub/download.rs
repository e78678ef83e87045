//! One attempt to download a file.
//!
//! It runs in a thread of its own, because the crate knows no timeout and a thread can be left behind, and because a panic of
//! the crate stays in it. Invariant: whoever asked hears of every byte, and waits for none longer than agreed.

use super::DownloadProgress;
use hf_hub::api::Progress;
use hf_hub::api::sync::{ApiError, ApiRepo};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// Why an attempt failed.
pub(super) enum Broken {
    /// The hub, the connection or the disk.
    Hub(ApiError),
    /// Nothing happened for too long; the thread waits on, and what has arrived stays on disk.
    Stalled,
}

/// What the thread tells.
enum News {
    Started(u64),
    Advanced(u64),
    Finished,
    Ended(Result<PathBuf, ApiError>),
}

/// Downloads `file`, or what is lacking of it, and puts its length into `size`.
pub(super) fn download(
    api: &Arc<ApiRepo>,
    file: &str,
    patience: Duration,
    progress: &mut dyn DownloadProgress,
    size: &mut u64,
) -> Result<PathBuf, Broken> {
    let (sender, news) = channel();
    let (api, name) = (api.clone(), file.to_owned());
    std::thread::spawn(move || {
        let result = api.download_with_progress(&name, Teller(sender.clone()));
        sender.send(News::Ended(result))
    });
    loop {
        match news.recv_timeout(patience) {
            Ok(News::Started(bytes)) => {
                *size = bytes;
                progress.started(file, bytes);
            }
            Ok(News::Advanced(bytes)) => progress.advanced(bytes),
            Ok(News::Finished) => progress.finished(),
            Ok(News::Ended(result)) => return result.map_err(Broken::Hub),
            Err(RecvTimeoutError::Timeout) => return Err(Broken::Stalled),
            Err(RecvTimeoutError::Disconnected) => {
                let panicked = io::Error::other("the download broke off without a reason");
                return Err(Broken::Hub(ApiError::IoError(panicked)));
            }
        }
    }
}

/// The crate's progress as news. Nobody listens any more to a download that stalled.
struct Teller(Sender<News>);

impl Progress for Teller {
    fn init(&mut self, size: usize, _: &str) {
        let _ = self.0.send(News::Started(size as u64));
    }

    fn update(&mut self, size: usize) {
        let _ = self.0.send(News::Advanced(size as u64));
    }

    fn finish(&mut self) {
        let _ = self.0.send(News::Finished);
    }
}

//! An image on its way to the server: an archive as it is, or a folder (an OCI layout) as one.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::Stream;
use hutong_api::TakenImage;
use hutong_api::client::Client;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::mpsc;

use crate::commands::path;
use crate::error::CliError;

/// Stands for an image whose name only the server knows, once it has it.
pub const HANDED_OVER: &str = "hutong.local/handed-over";

/// What is sent at once, in bytes, and so many of these wait.
const CHUNK: usize = 256 << 10;
const WAITING: usize = 4;

/// Sends the image; what it is called on the server.
pub async fn hand_over(client: &Client, app: &str, image: &Path) -> Result<TakenImage, CliError> {
    let failed = |error: io::Error| CliError::bad_file(format!("{}: {error}", image.display()));
    let found = std::fs::metadata(image).map_err(failed)?;
    if found.is_dir() && !image.join("index.json").is_file() {
        return Err(CliError::bad_file(format!(
            "{}: the folder is no OCI layout, it has no index.json",
            image.display()
        ))
        .hint("`skopeo copy docker-daemon:app:1 oci:FOLDER` writes one; `docker save -o app.tar app:1` writes an archive"));
    }
    let bar = ProgressBar::new(if found.is_file() { found.len() } else { 0 });
    bar.set_style(
        ProgressStyle::with_template("{msg} [{bar:30}] {bytes}/{total_bytes} {eta}")
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("=> "),
    );
    bar.set_message("handing the image over");
    let place = path(&["apps", app, "image"]);
    let stream = stream(image.to_owned(), found.is_dir(), bar.clone());
    let taken = client.put_stream_for(&place, stream).await;
    bar.finish_and_clear();
    Ok(taken?)
}

/// Read on a thread of its own.
fn stream(
    image: PathBuf,
    is_folder: bool,
    bar: ProgressBar,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(WAITING);
    std::thread::spawn(move || {
        let mut chunks = Chunks {
            sender: sender.clone(),
            buffer: Vec::with_capacity(CHUNK),
            bar,
        };
        let read = match is_folder {
            true => archive(&image, &mut chunks),
            false => File::open(&image).and_then(|mut file| copy(&mut file, &mut chunks)),
        };
        if let Err(error) = read.and_then(|()| chunks.flush()) {
            let _ = sender.blocking_send(Err(error));
        }
    });
    futures_util::stream::unfold(receiver, |mut receiver| async move {
        let chunk = receiver.recv().await?;
        Some((chunk, receiver))
    })
}

fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    io::copy(from, to).map(drop)
}

fn archive(folder: &Path, to: &mut Chunks) -> io::Result<()> {
    let mut builder = tar::Builder::new(to);
    builder.append_dir_all(".", folder)?;
    builder.into_inner().map(drop)
}

/// What is written here is sent.
struct Chunks {
    sender: mpsc::Sender<io::Result<Bytes>>,
    buffer: Vec<u8>,
    bar: ProgressBar,
}

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= CHUNK {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK));
        self.bar.inc(chunk.len() as u64);
        let sent = self.sender.blocking_send(Ok(Bytes::from(chunk)));
        sent.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

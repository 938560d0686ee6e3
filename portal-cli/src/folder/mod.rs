//! Serves a folder, or one file, over HTTP/1.1 and HTTP/2 on connections that are handed in.
//!
//! Visitors are strangers. What they can have is decided in two places: `path` takes a request's path apart, and `open`
//! lets nothing through that does not really lie inside the root. Hard links are the files they are: one that lies
//! inside the root is served, wherever else it lies.

mod connection;
mod listing;
mod open;
mod page;
mod path;
mod stall;
#[cfg(all(test, unix))]
mod tests;

use std::{
    ffi::{OsStr, OsString},
    fs::Metadata,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, combinators::UnsyncBoxBody};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, Version,
    header::{
        ALLOW, CONTENT_TYPE, ETAG, HeaderValue, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE,
        LAST_MODIFIED, LOCATION, RANGE, X_CONTENT_TYPE_OPTIONS,
    },
    http::request::Parts,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::spawn_blocking,
};
use tower_http::services::ServeFile;

use crate::failure::Explain;

use self::{
    open::{Opened, Refusal, Root},
    path::RequestPath,
};

/// Bytes of a file that are read at once. A visitor of HTTP/2 has one such piece for each request that is open.
const PIECE: usize = 64 * 1024;
const PIECE_HTTP2: usize = 16 * 1024;

/// Paths that are looked up at once. A visitor of HTTP/2 can take requests back faster than a disk answers them.
const LOOKUPS: usize = 16;

/// Listings that are made at once. The reads of files share the threads that this takes.
const LISTINGS: usize = 4;

/// Served for a directory, in place of a listing.
const INDEX: &str = "index.html";

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// A folder, or a single file, that visitors may read.
///
/// Symbolic links are followed inside the folder only. Names that start with a dot, except `.well-known`, are neither
/// listed nor served unless that is asked for, so that a checkout does not publish its `.git`.
#[derive(Debug, Clone)]
pub(crate) struct Folder {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    root: Root,
    /// The name to serve the root under, if the root is a file.
    single: Option<OsString>,
    listings: Arc<Semaphore>,
    lookups: Arc<Semaphore>,
}

impl Folder {
    /// Opens a directory, or a file, to be served; `hidden` publishes the names that start with a dot as well.
    ///
    /// A file is served at `/` and at `/` followed by its name. Links on the way to `path` are resolved here, once.
    /// Blocks on the file system: meant for start-up.
    ///
    /// # Errors
    ///
    /// If `path` is not there, may not be read, or is neither a file nor a directory.
    pub(crate) fn open(path: &Path, hidden: bool) -> Result<Self, FolderError> {
        let failed = |step| {
            move |source| FolderError::Unusable {
                path: path.to_owned(),
                step,
                source,
            }
        };

        let real = path.canonicalize().map_err(failed("finding it"))?;
        let metadata = real.metadata().map_err(failed("looking at it"))?;
        if !metadata.is_dir() && !metadata.is_file() {
            return Err(FolderError::Special { path: path.to_owned() });
        }
        let single = metadata
            .is_file()
            .then(|| path.file_name().or(real.file_name()).unwrap_or_default().to_owned());
        let root = Root { path: real, hidden };
        let opened = match root.open(&root.path) {
            Ok(opened) => opened,
            Err(Refusal::Failed(source)) => return Err(failed("opening it")(source)),
            // It has just been found, so what is missing is the kernel's word on where it lies.
            Err(_) => {
                return Err(FolderError::Unverifiable { path: path.to_owned() });
            }
        };
        opened.check_readable().map_err(failed("reading it"))?;
        Ok(Self {
            shared: Arc::new(Shared {
                root,
                single,
                listings: Arc::new(Semaphore::new(LISTINGS)),
                lookups: Arc::new(Semaphore::new(LOOKUPS)),
            }),
        })
    }

    /// Answers the requests of one connection until it ends, in the version of HTTP that it begins with.
    ///
    /// Takes a runtime with time enabled. The time for a request's head is bounded, as is the time that a response may
    /// wait to be read. How a connection ends is nobody's error but the visitor's, so that it is only logged.
    pub(crate) async fn serve<S>(&self, connection: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        connection::serve(self, connection).await;
    }

    async fn answer(&self, head: &Parts) -> Response<Body> {
        let mut response = match head.method {
            Method::GET | Method::HEAD => self.find(head).await.unwrap_or_else(refused),
            _ => method_not_allowed(),
        };
        response
            .headers_mut()
            .insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        // Without the query, which may carry a token, and quoted: the path may hold any byte above ASCII.
        tracing::debug!(method = %head.method, path = ?head.uri.path(), status = response.status().as_u16(), "folder");
        response
    }

    async fn find(&self, head: &Parts) -> Result<Response<Body>, Refusal> {
        let wanted = RequestPath::parse(head.uri.path()).ok_or(Refusal::NotFound)?;
        let shared = Arc::clone(&self.shared);
        let turn = turn(&shared.lookups).await?;
        let (wanted, found) = blocking(turn, move || shared.locate(&wanted).map(|found| (wanted, found))).await?;
        match found {
            Found::File(opened, name) => file(head, &opened, &name).await,
            Found::Listing(opened) => self.list(wanted, opened).await,
            Found::AddSlash => Ok(redirect(&wanted, head.uri.query())),
        }
    }

    async fn list(&self, wanted: RequestPath, opened: Opened) -> Result<Response<Body>, Refusal> {
        let turn = turn(&self.shared.listings).await?;
        let shared = Arc::clone(&self.shared);
        let document = blocking(turn, move || {
            listing::render(&shared.root, &opened, &wanted.below).map_err(Refusal::at_contents)
        });
        Ok(page::response(StatusCode::OK, document.await?))
    }
}

/// Why a path cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FolderError {
    /// The file system refused.
    #[error("cannot serve {}: {step} failed: {source}{}", .path.display(), hint(.source))]
    Unusable {
        /// What was to be served, as it was given.
        path: PathBuf,
        /// What was tried.
        step: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// It is a pipe, a socket or a device.
    #[error(
        "cannot serve {}: it is neither a file nor a directory, but perhaps a pipe, a socket or a device",
        .path.display()
    )]
    Special {
        /// What was to be served, as it was given.
        path: PathBuf,
    },
    /// There is no telling where an opened file lies.
    #[error(
        "cannot serve {}: the system does not say where its files lie; perhaps /proc is not mounted, or the path was \
         replaced just now",
        .path.display()
    )]
    Unverifiable {
        /// What was to be served, as it was given.
        path: PathBuf,
    },
}

impl Explain for FolderError {}

/// What a request's path leads to.
enum Found {
    /// A file, and the name that tells its type.
    File(Opened, OsString),
    Listing(Opened),
    /// A directory, asked for as if it were a file: its relative links would lead astray.
    AddSlash,
}

impl Shared {
    /// Finds what a path leads to. Blocks on the file system.
    fn locate(&self, wanted: &RequestPath) -> Result<Found, Refusal> {
        if let Some(name) = &self.single {
            return self.locate_single(wanted, name);
        }
        // Judged by the names that were asked for, before anything is touched; `Root::open` judges where they lead.
        if !self.root.hidden && path::any_hidden(&wanted.below) {
            return Err(Refusal::NotFound);
        }
        let opened = self.root.open(&self.root.path.join(&wanted.below))?;
        match (opened.metadata.is_dir(), wanted.folder) {
            (false, false) => readable(opened, wanted.below.file_name().unwrap_or_default()),
            (false, true) => Err(Refusal::NotFound),
            (true, false) => Ok(Found::AddSlash),
            (true, true) => match self.root.open(&opened.path().join(INDEX)) {
                Ok(index) if index.metadata.is_file() => readable(index, OsStr::new(INDEX)),
                Ok(_) | Err(Refusal::NotFound) => Ok(Found::Listing(opened)),
                Err(refusal) => Err(refusal),
            },
        }
    }

    fn locate_single(&self, wanted: &RequestPath, name: &OsStr) -> Result<Found, Refusal> {
        let at_root = wanted.below.as_os_str().is_empty();
        if !at_root && (wanted.folder || wanted.below.as_os_str() != name) {
            return Err(Refusal::NotFound);
        }
        let opened = self.root.open(&self.root.path)?;
        if opened.metadata.is_file() {
            readable(opened, name)
        } else {
            Err(Refusal::NotFound)
        }
    }
}

fn readable(opened: Opened, name: &OsStr) -> Result<Found, Refusal> {
    opened.check_readable().map_err(Refusal::at_contents)?;
    Ok(Found::File(opened, name.to_owned()))
}

/// Answers with a file; `name` tells its type.
async fn file(head: &Parts, opened: &Opened, name: &OsStr) -> Result<Response<Body>, Refusal> {
    let tag = entity_tag(&opened.metadata);
    let mut conditions = HeaderMap::new();
    if head.headers.contains_key(IF_NONE_MATCH) {
        if names_current(&head.headers, tag.as_ref()) {
            let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            describe(&mut response, tag, name);
            return Ok(response);
        }
        // RFC 9110, 13.1.3: where there is an If-None-Match, If-Modified-Since is not looked at.
    } else if let Some(since) = head.headers.get(IF_MODIFIED_SINCE) {
        conditions.insert(IF_MODIFIED_SINCE, since.clone());
    }
    if let Some(since) = head.headers.get(IF_UNMODIFIED_SINCE) {
        conditions.insert(IF_UNMODIFIED_SINCE, since.clone());
    }
    if let Some(range) = single_range(head) {
        let unchanged = match head.headers.get(IF_RANGE) {
            None => true,
            Some(validator) => is_current(validator, &send(head, conditions.clone(), opened).await?, opened),
        };
        if unchanged {
            conditions.insert(RANGE, range.clone());
        }
    }
    let mut response = send(head, conditions, opened).await?;
    describe(&mut response, tag, name);
    Ok(response)
}

/// Has tower-http read the file, which it finds by the path that leads to what was opened.
async fn send(head: &Parts, headers: HeaderMap, opened: &Opened) -> Result<Response<Body>, Refusal> {
    let mut request = Request::new(());
    *request.method_mut() = head.method.clone();
    *request.headers_mut() = headers;
    let piece = match head.version {
        Version::HTTP_2 => PIECE_HTTP2,
        _ => PIECE,
    };
    let response = ServeFile::new(opened.path())
        .with_buf_chunk_size(piece)
        .try_call(request)
        .await
        .map_err(Refusal::at_contents)?;
    if response.status() == StatusCode::NOT_FOUND {
        return Err(Refusal::NotFound);
    }
    Ok(response.map(BodyExt::boxed_unsync))
}

/// Adds what tower-http cannot know, as it does not see the file's name.
fn describe(response: &mut Response<Body>, tag: Option<HeaderValue>, name: &OsStr) {
    let status = response.status();
    let headers = response.headers_mut();
    if headers.contains_key(CONTENT_TYPE) {
        headers.insert(CONTENT_TYPE, content_type(name));
    }
    if let Some(tag) = tag
        && (status.is_success() || status == StatusCode::NOT_MODIFIED)
    {
        headers.insert(ETAG, tag);
    }
}

fn content_type(name: &OsStr) -> HeaderValue {
    let guess = mime_guess::from_path(name)
        .first_raw()
        .unwrap_or("application/octet-stream");
    // Without the word, browsers fall back on encodings of the last century.
    if guess.starts_with("text/")
        && let Ok(with_charset) = HeaderValue::from_str(&format!("{guess}; charset=utf-8"))
    {
        return with_charset;
    }
    HeaderValue::from_static(guess)
}

/// A weak tag: two writes within the clock's resolution that leave the size alone give the same one.
fn entity_tag(metadata: &Metadata) -> Option<HeaderValue> {
    let modified = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    let tag = format!(
        "W/\"{:x}.{:x}-{:x}\"",
        modified.as_secs(),
        modified.subsec_nanos(),
        metadata.len()
    );
    HeaderValue::try_from(tag).ok()
}

/// Whether an If-None-Match names the file as it is, by the weak comparison of RFC 9110, 8.8.3.2.
fn names_current(headers: &HeaderMap, tag: Option<&HeaderValue>) -> bool {
    let opaque = |tag: &str| tag.strip_prefix("W/").unwrap_or(tag).to_owned();
    let current = tag.and_then(|tag| tag.to_str().ok()).map(opaque);
    // Commas inside a tag need no care: there are none in ours.
    let mut named = headers
        .get_all(IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    named.any(|named| named.trim() == "*" || current.as_deref() == Some(opaque(named.trim()).as_str()))
}

/// The range to answer with, if there is one that has to be looked at.
///
/// A range is only defined for GET, one in an unknown unit is to be ignored, and several may be: the whole file, which
/// every client understands, is then sent instead of the refusal that tower-http has for these.
fn single_range(head: &Parts) -> Option<&HeaderValue> {
    let range = head.headers.get(RANGE)?;
    let text = range.to_str().ok()?;
    (head.method == Method::GET && text.starts_with("bytes=") && !text.contains(',')).then_some(range)
}

/// Whether an If-Range names the file as it is.
///
/// It takes a strong validator, which our tags are not, and a date is one second after it (RFC 9110, 8.8.2.2). The
/// date has to be the very text of `whole`, the answer without a range.
fn is_current(validator: &HeaderValue, whole: &Response<Body>, opened: &Opened) -> bool {
    let settled = opened
        .metadata
        .modified()
        .is_ok_and(|modified| modified + Duration::from_secs(2) <= SystemTime::now());
    settled && whole.headers().get(LAST_MODIFIED) == Some(validator)
}

fn redirect(wanted: &RequestPath, query: Option<&str>) -> Response<Body> {
    let mut address = wanted.folder_address();
    if let Some(query) = query {
        address.push('?');
        address.push_str(query);
    }
    // Temporary, as a folder may give way to a file; 307 is what tower-http answers, too.
    let mut response = page::status(StatusCode::TEMPORARY_REDIRECT, "This folder's address ends in a slash.");
    if let Ok(address) = HeaderValue::try_from(address) {
        response.headers_mut().insert(LOCATION, address);
    }
    response
}

fn method_not_allowed() -> Response<Body> {
    let mut response = page::status(
        StatusCode::METHOD_NOT_ALLOWED,
        "Files here can be read only: GET and HEAD.",
    );
    response
        .headers_mut()
        .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    response
}

fn refused(refusal: Refusal) -> Response<Body> {
    match refusal {
        Refusal::NotFound => page::status(StatusCode::NOT_FOUND, "There is nothing at this address."),
        Refusal::Forbidden => page::status(StatusCode::FORBIDDEN, "This cannot be read."),
        Refusal::Failed(error) => {
            tracing::debug!(%error, "folder request failed");
            page::status(
                StatusCode::INTERNAL_SERVER_ERROR,
                "This could not be read; perhaps it can be later.",
            )
        }
    }
}

/// Waits for leave to block.
async fn turn(turns: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Refusal> {
    let turn = Arc::clone(turns).acquire_owned().await;
    turn.map_err(|closed| Refusal::Failed(io::Error::other(closed)))
}

/// Runs what blocks on the file system away from the runtime's thread. The turn is given back when the work is done, even
/// if the visitor has gone before.
async fn blocking<T: Send + 'static>(
    turn: OwnedSemaphorePermit,
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    let work = move || {
        let _turn = turn;
        work()
    };
    spawn_blocking(work)
        .await
        .unwrap_or_else(|failed| Err(Refusal::Failed(io::Error::other(failed))))
}

/// The likely cause of a failure to open what is to be served, and the mend.
fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "; check the spelling, and the directory that it is relative to",
        io::ErrorKind::PermissionDenied => "; the user that runs portal needs to be able to read it",
        _ => "",
    }
}

//! A visitor's connection, and how the visitor's address comes before it.

use std::io::{self, IoSlice};
use std::net::{Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use portal_core::proxy::{self, Parsed, ProxyHeader};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout_at};

/// A visitor's connection. Reading ends where the visitor has closed its side; `shutdown` closes ours, and the other way
/// stays open. A visitor who breaks off is an error, of reading or of writing.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    header: Option<Box<ProxyHeader>>,
}

impl Connection {
    pub(super) fn new(arrived: Arriving, header: Option<ProxyHeader>) -> Self {
        Self {
            stream: arrived.stream,
            header: header.map(Box::new),
        }
    }

    /// Who connected, as the relay saw it; `[::]:0` if it does not say.
    #[must_use]
    pub fn visitor(&self) -> SocketAddr {
        match &self.header {
            Some(header) => header.source,
            None => (Ipv6Addr::UNSPECIFIED, 0).into(),
        }
    }

    /// What else the relay says: the address of its own that was visited, the server name, an id for logs.
    #[must_use]
    pub fn details(&self) -> Option<&ProxyHeader> {
        self.header.as_deref()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The fixed part of a header, behind which its length is known.
const FIXED_LEN: usize = 16;

/// A connection whose header has not been read whole.
#[derive(Debug)]
pub(super) struct Arriving {
    stream: UnixStream,
    /// Of the header only: what follows is the program's.
    seen: Vec<u8>,
    deadline: Instant,
}

impl Arriving {
    pub(super) fn new(stream: UnixStream, patience: Duration) -> Self {
        Self {
            stream,
            seen: Vec::with_capacity(FIXED_LEN),
            deadline: Instant::now() + patience,
        }
    }

    /// Reads the header up to its last byte. A call that is dropped loses nothing.
    pub(super) async fn header(&mut self) -> io::Result<Option<ProxyHeader>> {
        timeout_at(self.deadline, self.read_header()).await?
    }

    async fn read_header(&mut self) -> io::Result<Option<ProxyHeader>> {
        loop {
            match proxy::parse(&self.seen) {
                Ok(Parsed::Complete { header, .. }) => return Ok(header),
                Ok(Parsed::Incomplete) => {}
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
            }
            // No more than `proxy::MAX_LEN`, or it would have been an error.
            let end = match self.seen.get(14..FIXED_LEN) {
                Some(length) => FIXED_LEN + usize::from(u16::from_be_bytes([length[0], length[1]])),
                None => FIXED_LEN,
            };
            self.stream.readable().await?;
            let mut room = [0; proxy::MAX_LEN];
            match self.stream.try_read(&mut room[..end - self.seen.len()]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.seen.extend_from_slice(&room[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn header() -> Vec<u8> {
        let header = ProxyHeader {
            source: "192.0.2.7:4711".parse().unwrap(),
            destination: "198.51.100.1:80".parse().unwrap(),
            authority: Some("blog.example.com".into()),
            alpn: None,
            unique_id: None,
        };
        let mut bytes = Vec::new();
        header.encode(&mut bytes);
        bytes
    }

    #[tokio::test]
    async fn a_header_in_pieces_is_taken_off_to_the_byte_though_calls_are_dropped() {
        let (mut agent, ours) = UnixStream::pair().unwrap();
        let mut arriving = Arriving::new(ours, PATIENCE);
        for byte in header() {
            let waiting = tokio::time::timeout(Duration::ZERO, arriving.header()).await;
            assert!(waiting.is_err(), "it is not whole");
            agent.write_all(&[byte]).await.unwrap();
        }
        agent.write_all(b"first").await.unwrap();
        let header = arriving.header().await.unwrap();
        let mut connection = Connection::new(arriving, header);
        assert_eq!(connection.visitor(), "192.0.2.7:4711".parse().unwrap());
        let details = connection.details().unwrap();
        assert_eq!(details.authority.as_deref(), Some("blog.example.com"));
        drop(agent);
        let mut rest = String::new();
        connection.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "first");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_no_header_is_an_error_in_time() {
        let (mut agent, ours) = UnixStream::pair().unwrap();
        agent.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        let error = Arriving::new(ours, PATIENCE).header().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);

        let (mut agent, ours) = UnixStream::pair().unwrap();
        let mut long = header();
        long[14..16].copy_from_slice(&u16::MAX.to_be_bytes());
        agent.write_all(&long).await.unwrap();
        let error = Arriving::new(ours, PATIENCE).header().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);

        let (mut agent, ours) = UnixStream::pair().unwrap();
        agent.write_all(&header()[..20]).await.unwrap();
        let begin = Instant::now();
        let mut arriving = Arriving::new(ours, PATIENCE);
        assert_eq!(arriving.header().await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(begin.elapsed(), PATIENCE);
        drop(agent);
        let error = Arriving::new(arriving.stream, PATIENCE).header().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn a_relay_that_speaks_for_itself_names_nobody() {
        let (mut agent, ours) = UnixStream::pair().unwrap();
        let mut local = header()[..16].to_vec();
        local[12] = 0x20;
        local[14..16].fill(0);
        agent.write_all(&local).await.unwrap();
        let mut arriving = Arriving::new(ours, PATIENCE);
        let header = arriving.header().await.unwrap();
        assert_eq!(Connection::new(arriving, header).visitor(), "[::]:0".parse().unwrap());
    }
}

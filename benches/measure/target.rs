//! The services behind a tunnel, and what their visitors do.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::thread;
use std::time::UNIX_EPOCH;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// One small request, as large as its answer.
pub(crate) const REQUEST: usize = 128;

/// Starts a server that sends back what it gets.
pub(crate) async fn echo() -> io::Result<u16> {
    let listener = listener()?;
    let port = listener.local_addr()?.port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = stream.set_nodelay(true);
                let mut buffer = vec![0; REQUEST];
                // Grows for those who send much, so that many small ones cost little.
                while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                    if stream.write_all(&buffer[..count]).await.is_err() {
                        return;
                    }
                    if count == buffer.len() && count < 256 * 1024 {
                        buffer.resize(2 * count, 0);
                    }
                }
            });
        }
    });
    Ok(port)
}

/// Starts one with a thread for each connection.
pub(crate) fn echo_by_threads() -> io::Result<u16> {
    let listener = std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            thread::spawn(move || {
                let mut buffer = vec![0; 256 * 1024];
                stream.set_nodelay(true)?;
                loop {
                    match stream.read(&mut buffer)? {
                        0 => return Ok::<_, io::Error>(()),
                        count => stream.write_all(&buffer[..count])?,
                    }
                }
            });
        }
    });
    Ok(port)
}

/// Starts a server that reads a number of bytes, sends as many, and says how long that took by the end of the stream:
/// negative numbers are read from, positive ones written to the visitor.
pub(crate) async fn bulk() -> io::Result<u16> {
    let listener = listener()?;
    let port = listener.local_addr()?.port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve_bulk(stream));
        }
    });
    Ok(port)
}

async fn serve_bulk(mut stream: TcpStream) -> io::Result<()> {
    let wish = stream.read_i64().await?;
    let mut buffer = vec![0x5a; 256 * 1024];
    let mut left = wish.unsigned_abs() as usize;
    while left > 0 {
        let piece = left.min(buffer.len());
        if wish > 0 {
            stream.write_all(&buffer[..piece]).await?;
            left -= piece;
        } else {
            match stream.read(&mut buffer[..piece]).await? {
                0 => return Ok(()),
                count => left -= count,
            }
        }
    }
    stream.write_u8(1).await?;
    stream.shutdown().await
}

/// Connects as the visitor of this number; on loopback each thousand has an address of its own.
pub(crate) async fn visit(addr: SocketAddr, number: usize) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    if addr.ip().is_loopback() {
        socket.set_reuseaddr(true)?;
        let [high, low] = [(number / 250_000) as u8, (number / 1000 % 250 + 1) as u8];
        socket.bind(SocketAddr::from((Ipv4Addr::new(127, block(), high, low), 0)))?;
    }
    let stream = socket.connect(addr).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Addresses of another block every ten seconds. A closed connection keeps its port for a minute, and the kernel looks for
/// milliseconds for a free one of an address once many of them are taken: who connects would pay for those before.
fn block() -> u8 {
    let seconds = UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
    (seconds / 10 % 250 + 1) as u8
}

/// One small request and its answer.
pub(crate) async fn request(stream: &mut TcpStream) -> io::Result<()> {
    let sent = [0x5a; REQUEST];
    stream.write_all(&sent).await?;
    let mut back = [0; REQUEST];
    stream.read_exact(&mut back).await?;
    if back != sent {
        return Err(io::Error::other("other bytes came back"));
    }
    Ok(())
}

fn listener() -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)))?;
    socket.listen(4096)
}

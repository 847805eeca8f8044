//! TCP sockets as both sides want them, and addresses as people write them.

use crate::error::{Error, Kind, Result};
use rustix::net::sockopt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout_at};

/// An idle peer is asked for a sign of life after this long, ...
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);

/// ... then this often, ...
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// ... and given up after this many questions without an answer.
const KEEPALIVE_QUESTIONS: u32 = 3;

/// Bytes that a peer's kernel does not acknowledge for this long mean that the peer is gone.
const UNACKNOWLEDGED_MS_MAX: u32 = 15_000;

/// Sets what every connection wants: no delay of small messages, and notice of a peer whose machine is gone.
pub(super) fn configure(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVE_QUESTIONS)?;
    sockopt::set_tcp_user_timeout(stream, UNACKNOWLEDGED_MS_MAX)?;
    Ok(())
}

/// Whether this is `HOST:PORT`.
///
/// # Errors
/// `InvalidInput` that says how it is written.
pub(super) fn check_addr(addr: &str) -> Result<()> {
    let parts = addr.rsplit_once(':').filter(|(host, port)| {
        let bare_host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host_is_whole = bare_host.is_some() || !host.contains(':');
        let clean = !host.contains(|c: char| c.is_whitespace() || c == '/' || c == '@');
        !host.is_empty() && host_is_whole && clean && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    if parts.is_none() {
        let message = format!("'{}' is not an address; write HOST:PORT", addr.escape_debug());
        return Err(Error::new(Kind::InvalidInput, message));
    }
    Ok(())
}

/// Connects to the first of the name's addresses that answers.
///
/// # Errors
/// `InvalidInput` for what is no address, `Unavailable` for what does not answer; it names the address.
pub(super) async fn connect(addr: &str, deadline: Duration) -> Result<TcpStream> {
    check_addr(addr)?;
    let end = Instant::now() + deadline;
    let late =
        |_| Error::new(Kind::Unavailable, format!("{addr} did not answer within {:.1} s", deadline.as_secs_f64()));
    let unknown = |error| Error::caused(Kind::Unavailable, format!("cannot find the host of {addr}"), error);
    let resolved = timeout_at(end, lookup_host(addr)).await.map_err(late)?.map_err(unknown)?;
    let mut failure = Error::new(Kind::Unavailable, format!("the host of {addr} has no address"));
    for candidate in resolved {
        match timeout_at(end, connect_one(candidate)).await.map_err(late)? {
            Ok(stream) => return Ok(stream),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                failure = Error::new(Kind::Unavailable, format!("{addr} refused the connection"));
            }
            Err(error) => failure = Error::caused(Kind::Unavailable, format!("cannot connect to {addr}"), error),
        }
    }
    Err(failure)
}

async fn connect_one(addr: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(addr).await?;
    configure(&stream)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_from_nonsense() {
        for good in ["127.0.0.1:7100", "localhost:1", "[::1]:7100", "node-1.example:65535"] {
            check_addr(good).expect(good);
        }
        for bad in ["", "host", "host:", ":7100", "host:0", "host:65536", "::1:7100", "http://host:80", "a b:1", "x:y"]
        {
            assert_eq!(check_addr(bad).expect_err(bad).kind(), Kind::InvalidInput, "{bad}");
        }
    }

    #[tokio::test]
    async fn a_refused_connection_names_the_address() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let addr = listener.local_addr().expect("bound").to_string();
        drop(listener);
        let error = connect(&addr, Duration::from_secs(5)).await.expect_err("nobody listens");
        assert_eq!(error.kind(), Kind::Unavailable);
        assert_eq!(error.to_string(), format!("{addr} refused the connection"));
    }
}

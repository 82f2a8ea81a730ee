//! Connections to where captured ones lead.

use std::{io, net::SocketAddr, time::Duration};

use socket2::{SockRef, TcpKeepalive};
use tokio::{net::TcpStream, time::timeout};

/// A connection on which nothing has come for so long is asked after, so that none stays whose other side has gone.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// How often it is asked again where nobody answers, and how many times: a minute after the first question it is given up.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 4;

/// Connects to the first of these addresses that can be connected to, within `limit`.
///
/// # Errors
/// None can, in time.
pub async fn connect(addresses: &[SocketAddr], limit: Duration) -> io::Result<TcpStream> {
    let connecting = async {
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        // What is left of the time is shared, so that an address that does not answer keeps none from the others.
        let each = limit / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
        for address in addresses {
            match timeout(each, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last = error,
                Err(_) => last = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(last)
    };
    let stream = timeout(limit, connecting).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    keep_alive(&stream);
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

/// Has the kernel ask after the other side of a connection on which nothing comes.
pub fn keep_alive(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_tcp_keepalive(
        &TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE_INTERVAL).with_retries(KEEPALIVE_PROBES),
    );
}

/// Ends a connection at once, so that its client sees it reset rather than ended.
pub fn reset(stream: TcpStream) {
    let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    drop(stream);
}

//! Connections to where captured ones lead.

use std::{io, net::SocketAddr, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use socket2::{SockRef, TcpKeepalive};
use tokio::{net::TcpStream, time::timeout};

/// A connection on which nothing has come for so long is asked after, so that none stays whose other side has gone.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// How often it is asked again where nobody answers, and how many times: a minute after the first question it is given up.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 4;

/// An address that has not answered for so long has no longer the connection for itself: the next one is tried beside it (RFC 8305).
const HEAD_START: Duration = Duration::from_millis(250);

/// Connects to the first of these addresses that answers, within `limit`: the earlier ones have a head start.
///
/// # Errors
/// None can, in time.
pub async fn connect(addresses: &[SocketAddr], limit: Duration) -> io::Result<TcpStream> {
    let connecting = async {
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        let (mut left, mut tried) = (addresses.iter(), FuturesUnordered::new());
        loop {
            let is_last = left.len() == 0;
            tried.extend(left.next().map(TcpStream::connect));
            let answered = if is_last { Ok(tried.next().await) } else { timeout(HEAD_START, tried.next()).await };
            match answered {
                Ok(Some(Ok(stream))) => return Ok(stream),
                Ok(Some(Err(error))) => last = error,
                Ok(None) => return Err(last),
                Err(_) => {}
            }
        }
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

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::net::{TcpListener, TcpSocket};

    use super::*;

    /// An address at which nobody answers: the queue of who listens there is full.
    async fn silent() -> (SocketAddr, Vec<TcpStream>, TcpListener) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut waiting = Vec::new();
        while let Ok(stream) = timeout(Duration::from_millis(200), TcpStream::connect(address)).await {
            waiting.push(stream.unwrap());
        }
        (address, waiting, listener)
    }

    #[tokio::test]
    async fn an_address_that_does_not_answer_costs_little() {
        let (silent, _waiting, _listener) = silent().await;
        let answers = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let answering = answers.local_addr().unwrap();
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let limit = Duration::from_secs(20);
        for (addresses, expected) in [
            (vec![answering], Duration::ZERO),
            (vec![closed, answering], Duration::ZERO),
            (vec![silent, answering], HEAD_START),
            (vec![closed, silent, silent, answering, silent], HEAD_START * 2),
        ] {
            let began = Instant::now();
            let stream = connect(&addresses, limit).await.unwrap();
            assert_eq!(stream.peer_addr().unwrap(), answering);
            let took = began.elapsed();
            assert!(took >= expected && took < expected + Duration::from_secs(2), "{addresses:?}: {took:?}");
        }
        assert_eq!(connect(&[], limit).await.unwrap_err().kind(), io::ErrorKind::AddrNotAvailable);
        assert_eq!(connect(&[closed, closed], limit).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        let out_of_time = connect(&[silent, silent], Duration::from_millis(600)).await;
        assert_eq!(out_of_time.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}

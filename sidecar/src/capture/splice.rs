//! Two connections joined: what comes on one goes out on the other, in the kernel, without a copy of it here (splice(2)).

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use bytes::BytesMut;
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};
use tokio::{
    io::{AsyncWriteExt, Interest},
    net::TcpStream,
};

/// The most bytes that are moved at once: what a pipe of the kernel holds.
const PIPE: usize = 64 * 1024;

/// Joins two connections until both sides have ended, or one breaks off. `early` is what was read of the client and goes first.
///
/// # Errors
/// A side broke off, or there is no room for a pipe.
pub async fn join(client: &TcpStream, mut server: TcpStream, early: BytesMut) -> io::Result<()> {
    server.write_all(&early).await?;
    drop(early);
    tokio::try_join!(pass(client, &server), pass(&server, client))?;
    Ok(())
}

/// A pipe of the kernel.
struct Pipe {
    out: OwnedFd,
    into: OwnedFd,
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let (out, into) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok(Self { out, into })
    }
}

/// Passes what comes from one side to the other until it ends, and then says so there.
async fn pass(from: &TcpStream, to: &TcpStream) -> io::Result<()> {
    // A connection on which nothing comes needs no pipe.
    let mut pipe = None;
    loop {
        from.readable().await?;
        let pipe = match &pipe {
            Some(pipe) => pipe,
            None => pipe.insert(Pipe::new()?),
        };
        let mut held = from.async_io(Interest::READABLE, || moved(from, &pipe.into, PIPE)).await?;
        if held == 0 {
            return socket2::SockRef::from(to).shutdown(std::net::Shutdown::Write).or_else(already_closed);
        }
        while held > 0 {
            let sent = to.async_io(Interest::WRITABLE, || moved(&pipe.out, to, held)).await?;
            if sent == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            held = held.saturating_sub(sent);
        }
    }
}

/// The other side may have gone in the meantime.
fn already_closed(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotConnected { Ok(()) } else { Err(error) }
}

fn moved(from: impl AsFd, into: impl AsFd, most: usize) -> io::Result<usize> {
    Ok(splice(from, None, into, None, most, SpliceFlags::MOVE | SpliceFlags::NONBLOCK)?)
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncReadExt, net::TcpListener};

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    #[tokio::test]
    async fn bytes_pass_both_ways_in_order_and_each_side_ends_by_itself() {
        let ((mut agent, client), (server, mut far)) = (pair().await, pair().await);
        let joined = tokio::spawn(async move { join(&client, server, BytesMut::from("early ")).await });
        let big: Vec<u8> = (0..3_000_000_u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let sent = big.clone();
        let ask = async {
            agent.write_all(b"question").await.unwrap();
            agent.shutdown().await.unwrap();
            let mut answer = Vec::new();
            agent.read_to_end(&mut answer).await.unwrap();
            answer
        };
        let answer = async {
            let mut asked = Vec::new();
            far.read_to_end(&mut asked).await.unwrap();
            far.write_all(&sent).await.unwrap();
            far.shutdown().await.unwrap();
            asked
        };
        let (answered, asked) = tokio::join!(ask, answer);
        assert_eq!(asked, b"early question");
        assert!(answered == big);
        joined.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_side_that_breaks_off_ends_both() {
        let ((mut agent, client), (server, far)) = (pair().await, pair().await);
        let joined = tokio::spawn(async move { join(&client, server, BytesMut::new()).await });
        socket2::SockRef::from(&far).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop(far);
        assert!(joined.await.unwrap().is_err());
        let mut rest = Vec::new();
        let read = agent.read_to_end(&mut rest).await;
        assert!(read.is_err() || rest.is_empty());
    }
}

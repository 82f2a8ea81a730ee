//! Two connections joined: what comes on one goes out on the other, in the kernel, without a copy of it here (splice(2)).

use std::{
    cell::RefCell,
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
/// The pipes that a worker keeps for the next bytes that come.
const KEPT: usize = 16;

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

thread_local! {
    /// Empty pipes. A connection has one only while bytes pass, so that idle ones cost none.
    static EMPTY: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

impl Pipe {
    /// An empty one.
    fn take() -> io::Result<Self> {
        if let Some(pipe) = EMPTY.with_borrow_mut(Vec::pop) {
            return Ok(pipe);
        }
        let (out, into) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok(Self { out, into })
    }

    /// Keeps this one for other bytes. It has to be empty.
    fn keep(self) {
        EMPTY.with_borrow_mut(|empty| {
            if empty.len() < KEPT {
                empty.push(self);
            }
        });
    }
}

/// Passes what comes from one side to the other until it ends, and then says so there.
async fn pass(from: &TcpStream, to: &TcpStream) -> io::Result<()> {
    loop {
        from.readable().await?;
        let pipe = Pipe::take()?;
        let mut held = match from.try_io(Interest::READABLE, || moved(from, &pipe.into, PIPE)) {
            Ok(held) => held,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                pipe.keep();
                continue;
            }
            Err(error) => return Err(error),
        };
        if held == 0 {
            pipe.keep();
            return socket2::SockRef::from(to).shutdown(std::net::Shutdown::Write).or_else(already_closed);
        }
        while held > 0 {
            let sent = to.async_io(Interest::WRITABLE, || moved(&pipe.out, to, held)).await?;
            if sent == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            held = held.saturating_sub(sent);
        }
        pipe.keep();
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

    #[tokio::test]
    async fn an_idle_connection_has_no_pipe() {
        let ((mut agent, client), (server, mut far)) = (pair().await, pair().await);
        let joined = tokio::spawn(async move { join(&client, server, BytesMut::new()).await });
        let mut asked = [0; 8];
        for _ in 0..3 {
            agent.write_all(b"question").await.unwrap();
            far.read_exact(&mut asked).await.unwrap();
            far.write_all(b"answer").await.unwrap();
            agent.read_exact(&mut asked[..6]).await.unwrap();
        }
        assert_eq!(EMPTY.with_borrow(Vec::len), 1);
        joined.abort();
    }

    #[tokio::test]
    async fn bytes_of_a_connection_that_broke_off_come_out_on_no_other() {
        let ((mut agent, client), (server, far)) = (pair().await, pair().await);
        let joined = tokio::spawn(async move { join(&client, server, BytesMut::new()).await });
        // Nobody reads, so that bytes wait in the pipe too.
        let much = vec![b'x'; 64 * 1024 * 1024];
        assert!(tokio::time::timeout(std::time::Duration::from_millis(300), agent.write_all(&much)).await.is_err());
        assert_eq!(EMPTY.with_borrow(Vec::len), 0);
        joined.abort();
        assert!(joined.await.unwrap_err().is_cancelled());
        drop(far);
        assert_eq!(EMPTY.with_borrow(Vec::len), 0);

        let ((mut agent, client), (server, mut far)) = (pair().await, pair().await);
        let joined = tokio::spawn(async move { join(&client, server, BytesMut::new()).await });
        agent.write_all(b"question").await.unwrap();
        agent.shutdown().await.unwrap();
        let mut asked = Vec::new();
        far.read_to_end(&mut asked).await.unwrap();
        assert_eq!(asked, b"question");
        joined.abort();
    }
}

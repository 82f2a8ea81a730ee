//! A connection of which the first bytes were read.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// The preface of a connection over HTTP/2 (RFC 9113, section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection of which the first bytes were read; who reads it gets them first.
#[derive(Debug)]
pub struct PeekedConnection<S = TcpStream> {
    first: Bytes,
    is_http2: bool,
    stream: S,
}

impl<S> PeekedConnection<S> {
    /// A connection, and what was read of it.
    pub fn new(first: Bytes, stream: S) -> Self {
        Self { is_http2: first.starts_with(PREFACE), first, stream }
    }

    /// Returns true if it begins with [`PREFACE`].
    pub fn is_http2(&self) -> bool {
        self.is_http2
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for PeekedConnection<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.first.is_empty() {
            let part = this.first.get(..into.remaining()).unwrap_or(&this.first);
            into.put_slice(part);
            let read = part.len();
            this.first.advance(read);
            if this.first.is_empty() {
                // The buffer goes with it.
                this.first = Bytes::new();
            }
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.stream).poll_read(context, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for PeekedConnection<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

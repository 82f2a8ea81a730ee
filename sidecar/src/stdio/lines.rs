//! Messages as lines of a pipe (MCP 2025-11-25, Transports, "stdio").

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};

/// Writes a line and its end.
///
/// # Errors
/// Those of the writer.
pub async fn write_line(out: &mut (impl AsyncWrite + Unpin), line: &[u8]) -> std::io::Result<()> {
    out.write_all(line).await?;
    out.write_all(b"\n").await?;
    out.flush().await
}

/// A line that is longer than is held; it was passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

/// Reads lines of at most a length, without their ends.
#[derive(Debug)]
pub struct MessageLines<R> {
    reader: BufReader<R>,
    line: Vec<u8>,
    longest: usize,
    over: bool,
}

impl<R: AsyncRead + Unpin> MessageLines<R> {
    /// Lines of at most `longest` bytes.
    pub fn new(reader: R, longest: usize) -> Self {
        Self { reader: BufReader::with_capacity(64 * 1024, reader), line: Vec::new(), longest, over: false }
    }

    /// Returns the next line; nothing at the end. One that is too long goes part by part to `passed_over`. May be
    /// cancelled: what was read stays.
    ///
    /// # Errors
    /// Those of the reader.
    pub async fn next(&mut self, mut passed_over: impl FnMut(&[u8])) -> std::io::Result<Option<Result<Vec<u8>, TooLong>>> {
        loop {
            let buffer = self.reader.fill_buf().await?;
            let ended = buffer.is_empty();
            let end = memchr::memchr(b'\n', buffer);
            let part = buffer.get(..end.unwrap_or(buffer.len())).unwrap_or_default();
            let taken = part.len() + usize::from(end.is_some());
            if !self.over && self.line.len() + part.len() > self.longest {
                self.over = true;
                passed_over(&std::mem::take(&mut self.line));
            }
            if self.over {
                passed_over(part);
            } else {
                self.line.extend_from_slice(part);
            }
            self.reader.consume(taken);
            if end.is_some() || (ended && (!self.line.is_empty() || self.over)) {
                let mut line = std::mem::take(&mut self.line);
                if line.last() == Some(&b'\r') {
                    line.pop();
                }
                return Ok(Some(if std::mem::take(&mut self.over) { Err(TooLong) } else { Ok(line) }));
            }
            if ended {
                return Ok(None);
            }
        }
    }
}

//! Requests whose answer arrives elsewhere than on their own: on a stream, or on a server's stdout. There an answer is known
//! by its id alone, so an id belongs to one request until that is answered, and a call's places come free with its answer.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use memchr::memchr2;
use ring::digest::{SHA256, digest};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use toolweir_engine::{
    Permit,
    json::{JsonError, Kind, Raw, Reader},
};

/// How many requests may be without an answer on one stream, or over stdio.
pub const MOST: usize = 1024;

/// How many may be on all streams of the sidecar.
pub const MOST_OF_ALL: usize = 16 * 1024;

/// The longest id, in bytes as it stands in the message.
pub const LONGEST_ID: usize = 1024;

/// The requests without an answer yet.
#[derive(Debug)]
pub struct UnderWay {
    requests: Mutex<Requests>,
    /// Room among those of all streams.
    room: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct Requests {
    kept: HashMap<Hash, Request>,
    next: u64,
}

/// What is known of a request.
#[derive(Debug)]
struct Request {
    /// Tells it from another that had its id before.
    number: u64,
    exact: Hash,
    /// A call's places among those under way.
    places: Permit,
    _room: OwnedSemaphorePermit,
}

/// Why a request is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotKept {
    /// Its id belongs to a request without an answer.
    InUse,
    /// Its id is longer than [`LONGEST_ID`].
    LongId,
    /// As many requests are without an answer as may be.
    NoRoom,
}

/// A request that is kept until its answer comes. Dropped, it is forgotten, unless the server may have taken it.
#[derive(Debug)]
pub struct Kept<'a> {
    all: &'a UnderWay,
    id: Hash,
    number: u64,
    sent: bool,
}

impl Default for UnderWay {
    fn default() -> Self {
        Self::within(Arc::new(Semaphore::new(MOST)))
    }
}

impl UnderWay {
    /// None yet. They share this room with others.
    pub fn within(room: Arc<Semaphore>) -> Self {
        Self { requests: Mutex::default(), room }
    }

    /// Keeps a request. Call it before the request is decided on and sent: its answer can be quick.
    ///
    /// # Errors
    /// Its id is in use, or there is no room.
    pub fn keep(&self, id: Raw<'_>) -> Result<Kept<'_>, NotKept> {
        if id.as_str().len() > LONGEST_ID {
            return Err(NotKept::LongId);
        }
        let Some(id) = Id::read(id) else { return Err(NotKept::LongId) };
        let mut requests = self.lock();
        if requests.kept.contains_key(&id.loose) {
            return Err(NotKept::InUse);
        }
        if requests.kept.len() >= MOST {
            return Err(NotKept::NoRoom);
        }
        let room = Arc::clone(&self.room).try_acquire_owned().map_err(|_| NotKept::NoRoom)?;
        requests.next += 1;
        let number = requests.next;
        let request = Request { number, exact: id.exact, places: Permit::default(), _room: room };
        requests.kept.insert(id.loose, request);
        Ok(Kept { all: self, id: id.loose, number, sent: false })
    }

    /// Takes a message of the server: if it answers a request, that is no longer under way.
    pub fn answered(&self, message: &[u8]) {
        let mut answers = Answers::default();
        answers.push(message, self);
        answers.finish(self);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.lock().kept.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets the request that an id belongs to, if it is the one.
    fn forget(&self, id: Hash, is_it: impl FnOnce(&Request) -> bool) {
        let mut requests = self.lock();
        let Entry::Occupied(kept) = requests.kept.entry(id) else { return };
        if is_it(kept.get()) {
            let forgotten = kept.remove();
            // Its places come free without this lock.
            drop(requests);
            drop(forgotten);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept<'_> {
    /// Keeps a call's places until its answer comes.
    pub fn hold(&self, places: Permit) {
        if let Some(request) = self.all.lock().kept.get_mut(&self.id).filter(|request| request.number == self.number) {
            drop(std::mem::replace(&mut request.places, places));
        }
    }

    /// From now on the server may have taken it: it is kept, whatever becomes of who sent it.
    pub fn sent(&mut self) {
        self.sent = true;
    }

    /// The server has not taken it: nothing was sent, or it said so.
    pub fn not_taken(mut self) {
        self.sent = false;
    }
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        if !self.sent {
            self.all.forget(self.id, |kept| kept.number == self.number);
        }
    }
}

/// Half a SHA-256: an id takes as much room as any other, and who knows one cannot make another that is the same.
type Hash = [u8; 16];

/// An id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Id {
    /// The same for ids that some server takes for one: numbers that a double cannot tell apart, or only by a fraction
    /// that it drops, and a text that is a number.
    loose: Hash,
    /// The same for ids that a server may give back for one: `7.0` comes back as `7`, but never as `"7"`.
    exact: Hash,
}

impl Id {
    /// Nothing where it is neither text nor number.
    fn read(id: Raw<'_>) -> Option<Self> {
        let hash = |kind: u8, bytes: &[u8]| -> Hash {
            let digest = digest(&SHA256, &[&[kind], bytes].concat());
            std::array::from_fn(|at| digest.as_ref().get(at).copied().unwrap_or_default())
        };
        // Minus zero is zero.
        let bits = |number: f64| (number + 0.0).to_bits().to_be_bytes();
        match id.kind() {
            Kind::Number => {
                let number: f64 = id.as_str().parse().ok()?;
                Some(Self { loose: hash(b'n', &bits(number.trunc())), exact: hash(b'n', &bits(number)) })
            }
            Kind::String => {
                let text = id.string().ok()??;
                // Some end a text at a NUL.
                let seen = text.split('\0').next().unwrap_or_default();
                let exact = hash(b's', text.as_bytes());
                let loose = match seen.trim().parse::<f64>() {
                    Ok(number) if number.is_finite() => hash(b'n', &bits(number.trunc())),
                    _ => hash(b's', seen.as_bytes()),
                };
                Some(Self { loose, exact })
            }
            _ => None,
        }
    }
}

/// Finds the answers in what a server says, in pieces of any size and without holding more than an id. It reads what no
/// strict parser reads, too: an answer that is too large, stands in a batch, has a byte-order mark or breaks off is the
/// end of its request all the same.
#[derive(Debug, Default)]
pub struct Answers {
    /// How many brackets are open.
    depth: usize,
    /// Whether the outermost is that of a batch.
    batch: bool,
    /// Whether what stands here is no message.
    junk: bool,
    /// How many bytes of a byte-order mark were seen.
    mark: usize,
    /// The message that is open.
    message: Option<Found>,
    string: InString,
    /// The key or id that is being read.
    reading: Reading,
    text: Vec<u8>,
}

/// What is known of a message so far.
#[derive(Debug, Default)]
struct Found {
    id: Option<Id>,
    answer: bool,
    request: bool,
    comes: Comes,
}

/// Whether what is read is of a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum InString {
    #[default]
    Outside,
    Inside,
    /// Behind a backslash.
    Escaped,
}

/// What comes next in a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Comes {
    #[default]
    Key,
    Id,
    /// A value that does not decide.
    Value,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Reading {
    #[default]
    Nothing,
    Key,
    Id,
}

/// The byte-order mark of UTF-8.
const MARK: &[u8] = b"\xef\xbb\xbf";

/// How long an id can become where a server writes every character as an escape.
const LONGEST_WRITTEN: usize = 6 * LONGEST_ID;

/// How long a key that decides can be in the same way.
const LONGEST_KEY: usize = 2 + 6 * "result".len();

impl Answers {
    /// Takes a piece of a message.
    pub fn push(&mut self, mut piece: &[u8], of: &UnderWay) {
        while let Some((&byte, rest)) = piece.split_first() {
            if self.junk {
                return;
            }
            if self.string == InString::Inside {
                let plain = memchr2(b'"', b'\\', piece).unwrap_or(piece.len());
                let (text, rest) = piece.split_at(plain);
                self.read(text);
                piece = rest;
                let Some((&end, rest)) = piece.split_first() else { return };
                self.read(&[end]);
                piece = rest;
                if end == b'"' {
                    self.string = InString::Outside;
                    self.end_of_token();
                } else {
                    self.string = InString::Escaped;
                }
                continue;
            }
            piece = rest;
            if self.string == InString::Escaped {
                self.string = InString::Inside;
                self.read(&[byte]);
            } else {
                self.outside(byte, of);
            }
        }
    }

    /// Takes the end of a message, and is ready for the next.
    pub fn finish(&mut self, of: &UnderWay) {
        self.end_of_token();
        self.end_of_message(of);
        *self = Self { text: std::mem::take(&mut self.text), ..Self::default() };
    }

    /// Takes a byte that is not of a text.
    fn outside(&mut self, byte: u8, of: &UnderWay) {
        let here = self.depth == 1 + usize::from(self.batch);
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' => self.end_of_token(),
            b'"' if self.depth == 0 => self.junk = true,
            b'"' => {
                self.string = InString::Inside;
                if let Some(message) = self.message.as_ref().filter(|_| here) {
                    self.begin(match message.comes {
                        Comes::Key => Reading::Key,
                        Comes::Id => Reading::Id,
                        Comes::Value => Reading::Nothing,
                    });
                    self.read(b"\"");
                }
            }
            b'{' | b'[' => {
                if byte == b'{' && self.depth == usize::from(self.batch) {
                    self.message = Some(Found::default());
                } else if self.depth == 0 {
                    self.batch = true;
                }
                self.depth += 1;
            }
            b'}' | b']' => {
                self.end_of_token();
                if here {
                    self.end_of_message(of);
                }
                self.depth = self.depth.saturating_sub(1);
                self.batch &= self.depth > 0;
            }
            b':' | b',' if here => {
                self.end_of_token();
                if let Some(message) = &mut self.message {
                    match (byte, message.comes) {
                        (b',', _) => message.comes = Comes::Key,
                        // Behind what is no key.
                        (_, Comes::Key) => message.comes = Comes::Value,
                        _ => {}
                    }
                }
            }
            _ if self.depth == 0 => {
                if MARK.get(self.mark) == Some(&byte) {
                    self.mark += 1;
                } else {
                    self.junk = true;
                }
            }
            _ => {
                if here && self.reading == Reading::Nothing && self.message.as_ref().is_some_and(|now| now.comes == Comes::Id) {
                    self.begin(Reading::Id);
                }
                self.read(&[byte]);
            }
        }
    }

    fn begin(&mut self, reading: Reading) {
        self.reading = reading;
        self.text.clear();
    }

    /// Takes a part of the key or id that is being read.
    fn read(&mut self, part: &[u8]) {
        let longest = match self.reading {
            Reading::Nothing => return,
            Reading::Key => LONGEST_KEY,
            Reading::Id => LONGEST_WRITTEN,
        };
        if self.text.len() + part.len() > longest {
            // It is none that is looked for. Of a key that is no longer known, the value is not the id.
            self.reading = Reading::Nothing;
            if let Some(message) = &mut self.message {
                message.comes = Comes::Value;
            }
            return;
        }
        self.text.extend_from_slice(part);
    }

    fn end_of_token(&mut self) {
        let reading = std::mem::take(&mut self.reading);
        let Some(message) = self.message.as_mut().filter(|_| reading != Reading::Nothing) else { return };
        let Ok(value) = whole(&self.text) else { return };
        if reading == Reading::Id {
            message.id = Id::read(value);
            return;
        }
        let key = value.string().ok().flatten();
        message.comes = Comes::Value;
        if key.as_deref() == Some("id") {
            message.comes = Comes::Id;
            // Of two, the last counts.
            message.id = None;
        }
        message.answer |= matches!(key.as_deref(), Some("result" | "error"));
        message.request |= key.as_deref() == Some("method");
    }

    fn end_of_message(&mut self, of: &UnderWay) {
        if let Some(Found { id: Some(id), answer: true, request: false, .. }) = self.message.take() {
            of.forget(id.loose, |kept| kept.exact == id.exact);
        }
    }
}

/// The value that a text is.
fn whole(text: &[u8]) -> Result<Raw<'_>, JsonError> {
    let mut reader = Reader::new(text)?;
    let value = reader.value()?;
    reader.finish()?;
    Ok(value)
}

/// Finds the answers in an event stream (WHATWG HTML, "Server-sent events"), whatever its events are called.
#[derive(Debug, Default)]
pub struct EventAnswers {
    answers: Answers,
    /// The field's name so far.
    name: Vec<u8>,
    /// Whether the first line is over, which a byte-order mark may open.
    started: bool,
    line: Line,
    /// The last byte was CR: an LF belongs to it.
    after_cr: bool,
}

/// Where in a line the stream is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Line {
    #[default]
    Begins,
    Name,
    Data,
    Other,
}

impl EventAnswers {
    /// Takes a piece of the stream.
    pub fn push(&mut self, mut piece: &[u8], of: &UnderWay) {
        while let Some((&byte, rest)) = piece.split_first() {
            if std::mem::take(&mut self.after_cr) && byte == b'\n' {
                piece = rest;
                continue;
            }
            if matches!(self.line, Line::Data | Line::Other) {
                let end = memchr2(b'\n', b'\r', piece).unwrap_or(piece.len());
                let (text, rest) = piece.split_at(end);
                if self.line == Line::Data {
                    self.answers.push(text, of);
                }
                piece = rest;
                if !rest.is_empty() {
                    // The next line of an event's data goes on behind a line's end.
                    if self.line == Line::Data {
                        self.answers.push(b"\n", of);
                    }
                    self.after_cr = rest.first() == Some(&b'\r');
                    piece = rest.get(1..).unwrap_or_default();
                    self.line = Line::Begins;
                }
                continue;
            }
            piece = rest;
            match byte {
                b'\n' | b'\r' => {
                    if self.line == Line::Begins {
                        self.answers.finish(of);
                    }
                    self.after_cr = byte == b'\r';
                    self.line = Line::Begins;
                    self.started = true;
                    self.name.clear();
                }
                b':' => {
                    let marked = self.name.strip_prefix(MARK).filter(|_| !self.started);
                    self.line = if marked.unwrap_or(&self.name) == b"data" { Line::Data } else { Line::Other };
                    self.started = true;
                    self.name.clear();
                }
                _ => {
                    self.line = Line::Name;
                    self.name.push(byte);
                    if self.name.len() > MARK.len() + b"data".len() {
                        self.line = Line::Other;
                        self.started = true;
                        self.name.clear();
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(id: &str) -> Raw<'_> {
        Reader::new(id.as_bytes()).unwrap().value().unwrap()
    }

    /// Keeps requests with these ids until they are answered.
    fn keep(ids: &[&str]) -> UnderWay {
        let under_way = UnderWay::default();
        for id in ids {
            under_way.keep(raw(id)).unwrap().sent();
        }
        under_way
    }

    /// How many of the requests 1, 2 and "x" an answer leaves, pushed in pieces of any size.
    fn leaves(message: &[u8]) -> usize {
        let mut found = Vec::new();
        for piece in 1..=message.len().max(1) {
            let under_way = keep(&["1", "2", "\"x\""]);
            let mut answers = Answers::default();
            message.chunks(piece).for_each(|piece| answers.push(piece, &under_way));
            answers.finish(&under_way);
            found.push(under_way.len());
        }
        assert!(found.iter().all(|left| left == &found[0]), "{}: {found:?}", String::from_utf8_lossy(message));
        found[0]
    }

    #[test]
    fn an_id_belongs_to_one_request_until_that_is_answered() {
        let under_way = keep(&["1"]);
        assert_eq!(under_way.keep(raw("1")).unwrap_err(), NotKept::InUse);
        under_way.answered(br#"{"id":1,"result":{}}"#);
        under_way.keep(raw("1")).unwrap().sent();
        // One that was never sent leaves its id.
        drop(under_way.keep(raw("2")).unwrap());
        drop(under_way.keep(raw("2")).unwrap());
        let mut sent = under_way.keep(raw("2")).unwrap();
        sent.sent();
        sent.not_taken();
        let mut sent = under_way.keep(raw("2")).unwrap();
        sent.sent();
        drop(sent);
        assert_eq!(under_way.keep(raw("2")).unwrap_err(), NotKept::InUse);
    }

    #[test]
    fn a_request_that_was_answered_and_not_sent_does_not_take_the_next_with_its_id_along() {
        let under_way = UnderWay::default();
        let first = under_way.keep(raw("1")).unwrap();
        under_way.answered(br#"{"id":1,"result":{}}"#);
        under_way.keep(raw("1")).unwrap().sent();
        drop(first);
        assert_eq!(under_way.len(), 1);
    }

    #[test]
    fn ids_that_some_server_takes_for_one_are_one() {
        for (first, second) in [
            ("7", "7.0"),
            ("7", "7e0"),
            ("70", "7.0E+1"),
            ("7", "7.5"),
            ("0", "-0"),
            ("0", "-0.5"),
            ("9007199254740992", "9007199254740993"),
            ("1e400", "1e500"),
            ("7", "\"7\""),
            ("\"7\"", "7"),
            ("7", "\" 7\\n\""),
            ("7", "\"7.0\""),
            ("\"a\"", r#""\u0061""#),
            ("\"a\"", r#""a\u0000b""#),
        ] {
            assert_eq!(keep(&[first]).keep(raw(second)).unwrap_err(), NotKept::InUse, "{first} {second}");
        }
        for (first, second) in [("7", "8"), ("7", "-7"), ("\"a\"", "\"b\""), ("\"a\"", "\"A\""), ("7", "\"7a\""), ("\"\"", "0")] {
            assert!(keep(&[first]).keep(raw(second)).is_ok(), "{first} {second}");
        }
        let long = format!("\"{}\"", "x".repeat(LONGEST_ID));
        assert_eq!(UnderWay::default().keep(raw(&long)).unwrap_err(), NotKept::LongId);
    }

    #[test]
    fn only_the_answer_to_a_request_ends_it() {
        for (answer, left) in [
            (r#"{"id":1,"result":{}}"#, 2),
            (r#" {"error":{},"id":1.0}"#, 2),
            (r#"{"i\u0064":"\u0078","\u0072esult":{}}"#, 2),
            (r#"{"id":1,"method":"ping"}"#, 3),
            (r#"{"id":1,"method":"ping","result":{}}"#, 3),
            (r#"{"id":"1","result":{}}"#, 3),
            (r#"{"id":1}"#, 3),
            (r#"{"id":null,"error":{}}"#, 3),
            (r#"{"id":3,"result":{"id":1,"result":{}}}"#, 3),
            (r#"{"id":3,"result":"{\"id\":1,\"result\":{}}"}"#, 3),
            (r#"{"id":[1],"result":{}}"#, 3),
            (r#"{"id":{"id":1},"result":{}}"#, 3),
            (r#"{"x":"id","y":1,"result":{}}"#, 3),
            (r#"{"jsonrpc":"2.0","params":{"id":1},"result":["id",1]}"#, 3),
            (r#""{\"id\":1,\"result\":{}}""#, 3),
            (r#"sent {"id":1,"result":{}}"#, 3),
            ("", 3),
            ("x", 3),
        ] {
            assert_eq!(leaves(answer.as_bytes()), left, "{answer}");
        }
    }

    #[test]
    fn an_answer_ends_its_request_however_it_is_written() {
        for (answer, left) in [
            (br#"[{"id":1,"result":{}},{"id":"x","error":{}}]"#.as_slice(), 1),
            (br#"[{"id":3,"result":[{"id":1,"result":{}}]}]"#, 3),
            (br#"[[{"id":1,"result":{}}]]"#, 3),
            (b"\xef\xbb\xbf{\"id\":1,\"result\":{}}", 2),
            (b"\xef\xbb\xbf [{\"id\":1,\"result\":{}}]", 2),
            (br#"{"id":1,"result":{"x":NaN,}}"#, 2),
            (b"{\"id\":1,\"result\":\"\xff\x00\n\"}", 2),
            (br#"{"result":{"x":[1,2,{"y":"z\"}"}]},"id":1"#, 2),
            (br#"{"id":1,"result":{"x":"#, 2),
            (br#"{"id":1 ,"result":{"x":["#, 2),
            (b"{\"id\":1,\"result\":{}}\n{\"id\":2,\"result\":{}}", 1),
        ] {
            assert_eq!(leaves(answer), left, "{}", String::from_utf8_lossy(answer));
        }
        let deep = format!(r#"{{"result":{}1{},"id":1}}"#, "[".repeat(1000), "]".repeat(1000));
        let under_way = keep(&["1"]);
        under_way.answered(deep.as_bytes());
        assert_eq!(under_way.len(), 0);
        // A key or an id of any length is passed over.
        let long = format!(r#"{{"{}":1,"id":"{}","id":1,"result":{{}}}}"#, "k".repeat(10_000), "i".repeat(10_000));
        let under_way = keep(&["1"]);
        let mut answers = Answers::default();
        answers.push(long.as_bytes(), &under_way);
        answers.finish(&under_way);
        assert_eq!(under_way.len(), 0);
        assert!(answers.text.capacity() <= 2 * LONGEST_WRITTEN);
    }

    #[test]
    fn answers_are_found_in_a_stream_whatever_ends_its_lines_and_however_they_come() {
        for end in ["\n", "\r\n", "\r"] {
            let stream = [
                "\u{feff}data: {\"id\":3,",
                "data:\"result\":{}}",
                "",
                ": {\"id\":1,\"result\":{}}",
                "id: 1",
                "retry: 1",
                "datas: {\"id\":1,\"result\":{}}",
                "",
                "event: message",
                "data: {\"id\":2,",
                "",
                "data: \"result\":{}}",
                "",
                "da ta: x",
                " data: x",
                "\u{feff}data: x",
                "data",
                "data: [{\"id\":\"x\",\"error\":{}}]",
                "",
                "",
            ]
            .join(end);
            for piece in 1..=stream.len() {
                let under_way = keep(&["1", "2", "3", "\"x\""]);
                let mut events = EventAnswers::default();
                stream.as_bytes().chunks(piece).for_each(|piece| events.push(piece, &under_way));
                // What is cut in two by the end of an event is no answer.
                for id in ["1", "2"] {
                    assert_eq!(under_way.keep(raw(id)).unwrap_err(), NotKept::InUse, "{end:?} {piece}");
                }
                assert_eq!(under_way.len(), 2, "{end:?} {piece}");
            }
        }
    }

    #[test]
    fn requests_without_an_answer_are_bounded_on_a_stream_and_in_all() {
        let room = Arc::new(Semaphore::new(MOST + 1));
        let (first, second) = (UnderWay::within(Arc::clone(&room)), UnderWay::within(Arc::clone(&room)));
        for id in 0..MOST {
            first.keep(raw(&id.to_string())).unwrap().sent();
        }
        assert_eq!(first.keep(raw("-1")).unwrap_err(), NotKept::NoRoom);
        second.keep(raw("1")).unwrap().sent();
        assert_eq!(second.keep(raw("2")).unwrap_err(), NotKept::NoRoom);
        drop(first);
        assert!(second.keep(raw("2")).is_ok());
    }
}

//! The errors of the store, and the meaning of those that a server answers with.

use redis::{ErrorKind, RedisError};
use toolweir_crds::text::one_line;

/// The longest text of an error, in characters.
const LONGEST_MESSAGE: usize = 600;
/// The longest part of it that a server wrote, in characters.
pub(crate) const LONGEST_QUOTE: usize = 120;

/// An error of the store, for a person: one line with the place and the remedy, never with the password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StoreError {
    /// The kind of error.
    pub fault: StoreFault,
    /// The text.
    pub message: String,
}

impl StoreError {
    /// An error of one line.
    pub fn new(fault: StoreFault, message: impl Into<String>) -> Self {
        let message: String = message.into();
        Self { fault, message: one_line(message.trim(), LONGEST_MESSAGE) }
    }
}

/// A kind of error of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StoreFault {
    /// The configuration cannot be right.
    BadConfig,
    /// A name has no address.
    Unresolvable,
    /// Nothing takes the connection.
    Refused,
    /// Something took too long.
    Timeout,
    /// TLS, or a certificate.
    Tls,
    /// There should be a password.
    AuthRequired,
    /// The user or the password is wrong.
    WrongPassword,
    /// The user may not do this.
    NoPermission,
    /// Something else answers there.
    NotRedis,
    /// The server is a replica, or does not own the slot.
    NotMaster,
    /// Nobody knows a master.
    NoMaster,
    /// The server is not ready yet, or busy.
    Loading,
    /// The server has no memory for more.
    OutOfMemory,
    /// The server forgets counts where its memory is full.
    Evicts,
    /// The store has lost what it knew, or begun anew.
    Reset,
    /// The connection ended.
    Lost,
    /// The server answers with another error.
    Answer,
}

impl StoreFault {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::BadConfig,
        Self::Unresolvable,
        Self::Refused,
        Self::Timeout,
        Self::Tls,
        Self::AuthRequired,
        Self::WrongPassword,
        Self::NoPermission,
        Self::NotRedis,
        Self::NotMaster,
        Self::NoMaster,
        Self::Loading,
        Self::OutOfMemory,
        Self::Evicts,
        Self::Reset,
        Self::Lost,
        Self::Answer,
    ];

    /// Its name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadConfig => "bad_config",
            Self::Unresolvable => "unresolvable",
            Self::Refused => "refused",
            Self::Timeout => "timeout",
            Self::Tls => "tls",
            Self::AuthRequired => "auth_required",
            Self::WrongPassword => "wrong_password",
            Self::NoPermission => "no_permission",
            Self::NotRedis => "not_redis",
            Self::NotMaster => "not_master",
            Self::NoMaster => "no_master",
            Self::Loading => "loading",
            Self::OutOfMemory => "out_of_memory",
            Self::Evicts => "evicts",
            Self::Reset => "reset",
            Self::Lost => "lost",
            Self::Answer => "answer",
        }
    }

    /// Returns whether it says no more than that a host is not there.
    pub(crate) fn is_absence(self) -> bool {
        matches!(self, Self::Unresolvable | Self::Refused | Self::Timeout | Self::Lost)
    }
}

/// Returns the kind of the error of a command.
pub fn fault_of(error: &RedisError) -> StoreFault {
    if let Some(code) = code_of(error) {
        let fault = fault_of_code(&code);
        // What a script may not do is said by the script's error (Redis 7 and Valkey; Redis 6).
        let forbidden = ["ACL failure in script", "can't run this command"];
        let in_script = fault == StoreFault::Answer && forbidden.iter().any(|text| quote(error).contains(text));
        return if in_script { StoreFault::NoPermission } else { fault };
    }
    match error.kind() {
        ErrorKind::Io if error.is_timeout() => StoreFault::Timeout,
        ErrorKind::Io => StoreFault::Lost,
        ErrorKind::Parse => StoreFault::NotRedis,
        ErrorKind::AuthenticationFailed => StoreFault::WrongPassword,
        _ => StoreFault::Answer,
    }
}

pub(crate) fn fault_of_code(code: &str) -> StoreFault {
    match code {
        "NOAUTH" | "DENIED" => StoreFault::AuthRequired,
        "WRONGPASS" => StoreFault::WrongPassword,
        "NOPERM" => StoreFault::NoPermission,
        "READONLY" | "MOVED" | "ASK" | "MASTERDOWN" => StoreFault::NotMaster,
        "CLUSTERDOWN" => StoreFault::NoMaster,
        "LOADING" | "BUSY" | "TRYAGAIN" => StoreFault::Loading,
        "OOM" => StoreFault::OutOfMemory,
        _ => StoreFault::Answer,
    }
}

/// The first word of what a server answered, also where it answered several commands.
pub(crate) fn code_of(error: &RedisError) -> Option<String> {
    error.clone().into_server_errors().and_then(|all| all.first().map(|(_, error)| error.code().to_owned()))
}

pub(crate) fn is_unknown_command(error: &RedisError) -> bool {
    code_of(error).as_deref() == Some("ERR") && quote(error).contains("unknown command")
}

/// Returns the error as the server wrote it, as one short line.
pub(crate) fn quote(error: &RedisError) -> String {
    let all = error.clone().into_server_errors();
    let text = match all.as_deref().and_then(<[_]>::first) {
        Some((_, error)) => format!("{} {}", error.code(), error.details().unwrap_or_default()),
        None => error.to_string(),
    };
    one_line(text.trim(), LONGEST_QUOTE)
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn errors_of_commands_are_told_apart() {
        let rows = [
            ("-NOAUTH Authentication required.", StoreFault::AuthRequired),
            ("-DENIED Redis is running in protected mode", StoreFault::AuthRequired),
            ("-WRONGPASS invalid username-password pair or user is disabled.", StoreFault::WrongPassword),
            ("-NOPERM User x has no permissions to run the 'info' command", StoreFault::NoPermission),
            ("-READONLY You can't write against a read only replica.", StoreFault::NotMaster),
            ("-MOVED 3999 127.0.0.1:6381", StoreFault::NotMaster),
            ("-ASK 3999 127.0.0.1:6381", StoreFault::NotMaster),
            ("-MASTERDOWN Link with MASTER is down", StoreFault::NotMaster),
            ("-CLUSTERDOWN The cluster is down", StoreFault::NoMaster),
            ("-LOADING Redis is loading the dataset in memory", StoreFault::Loading),
            ("-BUSY Redis is busy running a script.", StoreFault::Loading),
            ("-TRYAGAIN Multiple keys request during rehashing of slot", StoreFault::Loading),
            ("-ERR syntax error", StoreFault::Answer),
            ("-NOSCRIPT No matching script.", StoreFault::Answer),
            ("-OOM command not allowed when used memory > 'maxmemory'.", StoreFault::OutOfMemory),
        ];
        for (line, fault) in rows {
            let error = redis::parse_redis_value(format!("{line}\r\n").as_bytes()).unwrap().extract_error().expect_err(line);
            assert_eq!(fault_of(&error), fault, "{line}");
        }
        assert_eq!(fault_of(&io::Error::from(io::ErrorKind::BrokenPipe).into()), StoreFault::Lost);
        assert_eq!(fault_of(&io::Error::from(io::ErrorKind::TimedOut).into()), StoreFault::Timeout);
        assert_eq!(fault_of(&redis::parse_redis_value(b"HTTP/1.1 400\r\n").expect_err("no RESP")), StoreFault::NotRedis);
        let mut names: Vec<_> = StoreFault::ALL.iter().map(|fault| fault.as_str()).collect();
        names.dedup();
        assert_eq!(names.len(), StoreFault::ALL.len());
    }

    #[test]
    fn an_error_is_one_line_without_control_characters() {
        let error = StoreError::new(StoreFault::Answer, " a\nb\tc\u{1b}d ");
        assert_eq!(error.message, "a b c\u{fffd}d");
        let error = redis::parse_redis_value(b"-ERR x\x1by\r\n").unwrap().extract_error().unwrap_err();
        assert_eq!(quote(&error), "ERR x\u{fffd}y");
    }
}

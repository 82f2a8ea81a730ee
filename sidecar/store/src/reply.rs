//! Replies of scripts, and the errors where there is none.

use redis::Value;

use crate::{
    config::Address,
    error::{StoreError, StoreFault, fault_of},
    scripts::read_integers,
};

/// The error of a command.
pub(crate) fn command_failed(address: &Address, error: &redis::RedisError) -> StoreError {
    StoreError::new(fault_of(error), format!("{address}: {error}"))
}

/// Reads the reply of a script: the store's time and the numbers that follow it.
///
/// # Errors
/// The store is in another epoch, or the reply has another form.
pub(crate) fn script_numbers(address: &Address, answer: &Value) -> Result<(u64, Vec<i64>), StoreError> {
    let mut numbers = read_integers(answer).ok_or_else(|| malformed_reply(address))?;
    match numbers.as_slice() {
        [0, time, ..] => {
            let time = u64::try_from(*time).unwrap_or(0);
            numbers.drain(..2);
            Ok((time, numbers))
        }
        [1, ..] => Err(StoreError::new(StoreFault::Reset, format!("{address} has lost what it knew, or begun anew"))),
        _ => Err(malformed_reply(address)),
    }
}

/// The error where a reply has another form than the script's.
pub(crate) fn malformed_reply(address: &Address) -> StoreError {
    StoreError {
        fault: StoreFault::Answer,
        message: format!("{address} gives an answer of another form; is another version at work?"),
    }
}

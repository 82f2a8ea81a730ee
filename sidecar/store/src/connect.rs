//! Finds the master of the store and connects to it.
use std::time::Duration;
/// Stub.
#[derive(Clone, Copy, Debug)]
pub enum Fault { /// Stub.
    Refused }
impl Fault { /// Stub.
 pub const ALL: [Self; 1] = [Self::Refused];
 /// Stub.
    pub fn as_str(self) -> &'static str { "refused" } }
/// Stub.
#[derive(Clone, Debug)]
pub struct StoreError { /// Stub.
    pub fault: Fault, /// Stub.
    pub message: String }
/// Stub.
#[derive(Debug)]
pub struct Address;
/// Stub.
#[derive(Debug)]
pub struct Connection;
/// Stub.
#[derive(Debug)]
pub struct Connector;
impl Connector {
    /// Stub.
    pub fn new(_: &crate::config::Config) -> Result<Self, StoreError> { Ok(Self) }
    /// Stub.
    pub async fn master(&self, _: Duration) -> Result<Address, StoreError> { Ok(Address) }
    /// Stub.
    pub async fn open(&self, _: &Address, _: Duration) -> Result<Connection, StoreError> { Ok(Connection) }
}

//! The tools of a server: read from wherever they are listed, told with their classes, and with what policies would do.
//!
//! [`source`] says where tools are read from and reads them: over HTTP ([`http`], or the transport of 2024-11-05, [`http_sse`]), from a
//! program ([`stdio`]), through the sidecar of a pod ([`pod`]), or from a file ([`file`](mod@file)). The first three speak MCP with the official SDK
//! ([`session`]), over our own transports where it has none or drops something ([`channel`], [`message`]). A definition is kept whole
//! ([`definition`], [`strict_json`]), of other lists the names ([`other_lists`]), within bounds ([`limits`]); what goes wrong says what helps ([`fault`]), and no secrets ([`secrets`]).
//! Commands end with the program, also when a signal ends that ([`interrupt`]). [`report`] writes what is found,
//! with what policies in files say of it ([`policy`]).

pub mod channel;
pub mod definition;
pub mod fault;
pub mod file;
pub mod http;
pub mod http_sse;
pub mod interrupt;
pub mod limits;
pub mod message;
pub mod other_lists;
pub mod pod;
pub mod policy;
pub mod report;
pub mod secrets;
pub mod session;
pub mod source;
pub mod stdio;
pub mod strict_json;

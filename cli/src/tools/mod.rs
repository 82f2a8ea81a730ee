//! The tools of a server: read from wherever they are listed, told with their classes, and with what policies would do.
//!
//! [`source`] says where tools are read from and reads them: over HTTP ([`http`], or the transport of 2024-11-05, [`http_sse`]), from a
//! program ([`stdio`]), through the sidecar of a pod ([`pod`]), or from a file ([`file`]). The first three speak MCP with the official SDK
//! ([`session`]). A definition is kept whole ([`definition`], [`strict_json`]).

pub mod definition;
pub mod file;
pub mod limits;
pub mod source;
pub mod strict_json;

//! The form in which what was seen of tools is kept on disk.

use std::time::Instant;

use serde::{Deserialize, Serialize};
use toolweir_crds::{PinnedTool, ToolClass, bounds};

use super::{
    ToolsOfServer,
    book::{Knowledge, KnownTool, MOST_TOOLS},
    definition::{EntryDigest, KeptDefinition},
    tools_of_server::MOST_IN_ALL,
};

/// What was seen of the tools of all servers.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeptServers {
    /// The version of the sidecar that wrote it: another may classify otherwise.
    pub sidecar: String,
    /// The servers.
    pub servers: Vec<KeptServer>,
}

/// What was seen of the tools of one server.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeptServer {
    /// The server's name.
    pub server: String,
    tools: Vec<KeptTool>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct KeptTool {
    name: String,
    /// The server has said since that its list has changed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    is_unknown: bool,
    definitions: Vec<DefinitionOnDisk>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DefinitionOnDisk {
    /// In hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    entry: Option<String>,
    class: ToolClass,
    /// None where the definition could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    record: Option<PinnedTool>,
    has_texts: bool,
}

/// A server by its name, with its tools by theirs.
type NamedServer = (String, Vec<(String, KnownTool)>);

/// Why what was kept is not used.
#[derive(Debug, thiserror::Error)]
#[error("the server {server} has a tool that no sidecar kept: {why}")]
pub struct ForeignTool {
    server: String,
    why: String,
}

impl KeptServers {
    /// The version of this sidecar.
    pub const SIDECAR: &str = env!("CARGO_PKG_VERSION");

    /// Puts servers in place of those of the same name. Others stay, as far as all have no more tools than a sidecar keeps.
    #[must_use]
    pub fn with(self, servers: Vec<KeptServer>) -> Self {
        // The texts of an entry mean what they did; the class is this version's to say.
        let is_same = self.sidecar == Self::SIDECAR;
        let others = self.servers.into_iter().filter(|other| !servers.iter().any(|server| server.server == other.server));
        let others = others.map(|other| if is_same { other } else { other.without_entries() });
        let mut left = MOST_IN_ALL;
        let mut fits = |server: &KeptServer| {
            let rest = left.checked_sub(server.tools.len());
            left = rest.unwrap_or(left);
            rest.is_some()
        };
        let others: Vec<KeptServer> = others.collect();
        let servers = servers.into_iter().chain(others).filter(|server| fits(server)).collect();
        Self { sidecar: Self::SIDECAR.to_owned(), servers }
    }

    /// Returns the tools of each server.
    ///
    /// # Errors
    /// There is something in it that no sidecar keeps.
    pub fn read(self, now: Instant) -> Result<Vec<NamedServer>, ForeignTool> {
        let is_same = self.sidecar == Self::SIDECAR;
        let servers = self.servers.into_iter().map(|server| if is_same { server } else { server.without_entries() });
        servers.map(|server| server.read(now)).collect()
    }

    /// Drops all texts.
    pub fn drop_texts(&mut self) {
        let definitions = self.servers.iter_mut().flat_map(|server| &mut server.tools).flat_map(|tool| &mut tool.definitions);
        for definition in definitions {
            definition.record.iter_mut().for_each(PinnedTool::drop_texts);
            definition.has_texts = false;
        }
    }
}

impl KeptServer {
    /// Returns what is to be kept of a server.
    pub fn new(server: &str, tools: &ToolsOfServer) -> Self {
        let book = tools.book();
        let on_disk = |definition: &KeptDefinition| DefinitionOnDisk {
            entry: definition.entry.map(|entry| data_encoding::HEXLOWER.encode(&entry)),
            class: definition.class,
            record: definition.record.clone(),
            has_texts: definition.has_texts,
        };
        let kept = |(name, tool): (&str, &KnownTool)| KeptTool {
            name: name.to_owned(),
            is_unknown: !tool.is_last(),
            definitions: tool.definitions().map(on_disk).collect(),
        };
        Self { server: server.to_owned(), tools: book.tools().into_iter().map(kept).collect() }
    }

    /// Drops the digests of entries, so that each is read again when it is listed.
    fn without_entries(mut self) -> Self {
        for definition in self.tools.iter_mut().flat_map(|tool| &mut tool.definitions) {
            definition.entry = None;
        }
        self
    }

    fn read(self, now: Instant) -> Result<NamedServer, ForeignTool> {
        let Self { server, tools } = self;
        let foreign = |why: &str| ForeignTool { server: server.clone(), why: why.to_owned() };
        if tools.len() > MOST_TOOLS {
            return Err(foreign("there are too many"));
        }
        let mut read = Vec::new();
        for KeptTool { name, is_unknown, definitions } in tools {
            if !(1..=bounds::TOOL_NAME).contains(&name.len()) {
                return Err(foreign("its name is empty or too long"));
            }
            let definitions: Result<Vec<KeptDefinition>, String> = definitions.into_iter().map(|of| of.read(&name)).collect();
            let definitions = definitions.map_err(|why| foreign(&why))?;
            let knowledge = if is_unknown { Knowledge::Outdated } else { Knowledge::Kept };
            let tool = KnownTool::restored(definitions, knowledge, now).ok_or_else(|| foreign("it has no definition"))?;
            read.push((name, tool));
        }
        Ok((server, read))
    }
}

impl DefinitionOnDisk {
    fn read(self, name: &str) -> Result<KeptDefinition, String> {
        let Self { entry, class, record, has_texts } = self;
        let digest = |hex: &String| -> Option<EntryDigest> {
            data_encoding::HEXLOWER.decode(hex.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok())
        };
        let entry = match &entry {
            Some(hex) => Some(digest(hex).ok_or("the digest of its text is none")?),
            None => None,
        };
        let Some(record) = record else {
            return Ok(KeptDefinition::unreadable(entry));
        };
        if record.name != name || record.parts.iter().any(|part| part.text.len() > bounds::PINNED_TEXT) {
            return Err("its parts are those of another".to_owned());
        }
        let digests = record.digests().map_err(|error| error.to_string())?;
        Ok(KeptDefinition { entry, class, digests, record: Some(record), has_texts })
    }
}

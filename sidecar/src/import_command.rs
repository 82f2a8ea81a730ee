//! `toolweir-sidecar import`: files in, manifests on stdout.

use std::{
    collections::HashMap,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;
use toolweir_import::{ImportError, ImportOptions, ImportedPolicy, import};

/// The most bytes of a policy's name that is made of a file's.
const NAME: usize = 63;

/// The arguments of `import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// The policies, in JSON or in the YAML of the open-source proxy. Each becomes a policy; calls must pass them all.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The server's name.
    #[arg(long, value_name = "NAME")]
    server: String,
    /// The server's URL.
    #[arg(long, value_name = "URL")]
    url: String,
    /// The policy's name; defaults to the server's. Of several policies NAME-1, NAME-2, and so on; defaults to their files' names.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// The policy's namespace.
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,
    /// Share each limit among all pods of a workload. This needs a shared store.
    #[arg(long)]
    shared_store: bool,
}

impl ImportArgs {
    /// Prints the imported policies on stdout, or all that is wrong with them on stderr.
    ///
    /// # Errors
    /// A file that cannot be read, or a stream that cannot be written.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let texts = self
            .files
            .iter()
            .map(|file| std::fs::read_to_string(file).map_err(|error| anyhow::anyhow!("{}: {error}", file.display())));
        let texts: Vec<String> = texts.collect::<anyhow::Result<_>>()?;
        let (mut imported, mut errors) = (Vec::new(), Vec::new());
        for ((file, text), name) in self.files.iter().zip(&texts).zip(self.names()) {
            let options = name.map(|name| ImportOptions {
                server: self.server.clone(),
                url: self.url.clone(),
                name,
                namespace: self.namespace.clone(),
                shared_store: self.shared_store,
            });
            match options.map_err(|error| vec![error]).and_then(|options| import(text, &options)) {
                Ok(policy) => imported.push((file, policy)),
                Err(wrong) => errors.extend(wrong.into_iter().map(|error| (file, error))),
            }
        }
        let mut err = std::io::stderr();
        if !errors.is_empty() {
            for (file, error) in errors {
                writeln!(err, "{}: {error}", file.display())?;
            }
            return Ok(ExitCode::FAILURE);
        }
        let documents: Vec<String> = imported.iter().map(|(_, policy)| policy.to_yaml()).collect();
        std::io::stdout().write_all(documents.join("---\n").as_bytes())?;
        for (file, policy) in imported {
            warn(&mut err, file, &policy)?;
        }
        Ok(ExitCode::SUCCESS)
    }

    /// The name of each file's policy, where it has one of its own.
    fn names(&self) -> Vec<Result<Option<String>, ImportError>> {
        if self.files.len() == 1 {
            return vec![Ok(self.name.clone())];
        }
        let mut seen: HashMap<String, &Path> = HashMap::new();
        let name = |(index, file)| {
            let name = self.name.as_ref().map_or_else(|| label(file), |name| format!("{name}-{}", index + 1));
            let wrong = |message| Err(ImportError { path: "policy".to_owned(), message });
            if name.is_empty() {
                return wrong("has no letter or digit in its file's name to name the policy by; give --name".to_owned());
            }
            match seen.insert(name.clone(), file) {
                None => Ok(Some(name)),
                Some(other) => {
                    wrong(format!("would be called `{name}` like that of {}; rename a file, or give --name", other.display()))
                }
            }
        };
        self.files.iter().map(PathBuf::as_path).enumerate().map(name).collect()
    }
}

/// A file's name as one of a policy: lower case letters and digits, parted by hyphens.
fn label(file: &Path) -> String {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy().to_lowercase();
    let parts = stem.split(|c: char| !c.is_ascii_alphanumeric()).filter(|part| !part.is_empty());
    let label: String = parts.collect::<Vec<_>>().join("-").chars().take(NAME).collect();
    label.trim_end_matches('-').to_owned()
}

/// Warns of limits that hold for less than in the original.
fn warn(err: &mut impl Write, file: &Path, policy: &ImportedPolicy) -> std::io::Result<()> {
    match policy.counted_by_each_pod() {
        0 => Ok(()),
        limits => writeln!(
            err,
            "{}: warning: {} counted by each pod for itself, but by the original for the whole agent: N replicas allow N times as \
             much. If there is a shared store, import with --shared-store",
            file.display(),
            if limits == 1 { "1 limit is".to_owned() } else { format!("{limits} limits are") }
        ),
    }
}

//! Policies in files, for commands that say what they would do.

use std::path::PathBuf;

use anyhow::anyhow;
use toolweir_crds::{
    FileError,
    policy_files::{self, PolicyText},
};
use toolweir_engine::{
    CompileOptions, Memory,
    policy_files::{CompiledFiles, Urls, compile_files},
};

/// Reads the policies of files and folders, and checks them as `toolweir-sidecar check` does.
///
/// # Errors
/// They cannot be read, or are not in order: one line.
pub fn load(paths: &[PathBuf]) -> anyhow::Result<(Vec<PolicyText>, CompiledFiles)> {
    let texts = policy_files::read_all(paths).map_err(|error| {
        anyhow!("{}; give the path of a file or folder of policies with --policy", faults(std::slice::from_ref(&error)))
    })?;
    let options = CompileOptions { shared_store: true, of_any_pod: true, ..CompileOptions::default() };
    let compiled = compile_files(&texts, Memory::new(0), &options, Urls::MayFollow, toolweir_pins::check_texts)
        .map_err(|errors| faults(&errors))?;
    Ok((texts, compiled))
}

/// Returns errors as one line.
pub fn faults(errors: &[FileError]) -> anyhow::Error {
    let lines: Vec<String> = errors.iter().map(|error| error.to_string().replace('\n', " ")).collect();
    anyhow!("{}", lines.join("; "))
}

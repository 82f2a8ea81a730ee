//! `toolweir-sidecar replay`: what other policies would have decided on recorded calls.

use std::{
    fs::File,
    io::{self, BufReader, Write},
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::{Args, ValueEnum};
use toolweir_crds::{policy_files, text::shown};
use toolweir_engine::{
    CompileOptions, Memory,
    policy_files::{CompiledFiles, Urls, compile_files},
};
use toolweir_replay::{Replay, ReplayReport};

use crate::{pod_args::PodArgs, run::PolicyErrors};

/// The bytes of a log that are read at once.
const BUFFER: usize = 256 * 1024;

/// The flags of the command.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// Policy file, or a folder of them, by which the calls are decided. Can be repeated.
    #[arg(long, required = true, value_name = "FILE|DIR")]
    policy: Vec<PathBuf>,
    /// Output format.
    #[arg(short, long, value_name = "FORM", default_value = "text")]
    output: ReplayOutput,
    /// Maximum number of examples of each change.
    #[arg(long, value_name = "COUNT", default_value_t = 3)]
    examples: usize,
    #[command(flatten)]
    pod: PodArgs,
    /// Audit logs, each of one pod; `-` is stdin.
    #[arg(required = true, value_name = "AUDIT.log")]
    logs: Vec<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ReplayOutput {
    /// Tables.
    Text,
    /// One JSON object.
    Json,
}

/// Prints on stdout what the policies would decide otherwise. Warnings go to stderr.
///
/// # Errors
/// Policies are not in order, or a log cannot be read.
pub fn replay(arguments: &ReplayArgs) -> anyhow::Result<()> {
    let mut files = Vec::new();
    for path in &arguments.policy {
        files.extend(policy_files::files(path).map_err(|error| PolicyErrors(vec![error]))?);
    }
    let texts = policy_files::read(&files).map_err(|error| PolicyErrors(vec![error]))?;
    // As `check --shared-store`: counts that pods share are kept here.
    let options = CompileOptions { shared_store: true, of_any_pod: true, ..CompileOptions::default() };
    let checked = compile_files(&texts, Memory::new(0), &options, Urls::MayFollow).map_err(PolicyErrors)?;
    let CompiledFiles { policies, warnings, .. } = checked;
    let mut notes = io::stderr();
    for warning in warnings {
        writeln!(notes, "warning: {warning}")?;
    }
    let mut replay = Replay::new(arguments.examples);
    for path in &arguments.logs {
        let is_stdin = path == Path::new("-");
        let name = if is_stdin { "stdin".to_owned() } else { path.display().to_string() };
        let (log, _) = replay.add_log(&name, &policies, &arguments.pod.options(), arguments.pod.max_counters)?;
        if is_stdin {
            replay.read(log, io::stdin().lock())?;
        } else {
            let file = File::open(path).with_context(|| format!("{name} cannot be read"))?;
            replay.read(log, BufReader::with_capacity(BUFFER, file))?;
        }
    }
    print(&replay.finish()?, arguments.output, io::stdout().lock(), notes)
}

fn print(report: &ReplayReport, output: ReplayOutput, mut out: impl Write, mut notes: impl Write) -> anyhow::Result<()> {
    for damage in &report.damages {
        writeln!(notes, "warning: {}:{}: is a damaged audit line: {}", shown(&damage.log), damage.line, shown(&damage.why))?;
    }
    if output == ReplayOutput::Json {
        serde_json::to_writer_pretty(&mut out, report)?;
        writeln!(out)?;
    } else {
        out.write_all(report.text().as_bytes())?;
    }
    Ok(())
}

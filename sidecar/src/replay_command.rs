//! `toolweir-sidecar replay`: what other policies would have decided on recorded calls.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, BufReader, ErrorKind, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{anyhow, bail};
use clap::{Args, ValueEnum};
use toolweir_crds::{FileError, policy_files, text::shown};
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
    let texts = policy_files::read_all(&arguments.policy).map_err(policy_error)?;
    check_logs(&arguments.logs)?;
    // As `check --shared-store`: counts that pods share are kept here.
    let options = CompileOptions { shared_store: true, of_any_pod: true, ..CompileOptions::default() };
    let checked =
        compile_files(&texts, Memory::new(0), &options, Urls::MayFollow, toolweir_pins::check_texts).map_err(policy_errors)?;
    let CompiledFiles { policies, warnings, pin_warnings, .. } = checked;
    let mut notes = io::stderr();
    for warning in warnings.into_iter().chain(pin_warnings) {
        writeln!(notes, "warning: {}", with_shown_name(warning))?;
    }
    let mut replay = Replay::new(arguments.examples);
    for path in &arguments.logs {
        let name = log_name(path);
        let (log, _) = replay.add_log(&name, &policies, &arguments.pod.options(), arguments.pod.max_counters)?;
        if is_stdin(path) {
            replay.read(log, &mut io::stdin().lock())?;
        } else {
            let file = File::open(path).map_err(|error| unreadable(path, error))?;
            replay.read(log, &mut BufReader::with_capacity(BUFFER, file))?;
        }
    }
    let mut report = replay.finish()?;
    report.note_ungoverned("give the policies of its team too, or use kubectl toolweir replay");
    print(&report, arguments.output, io::stdout().lock(), notes)
}

fn with_shown_name(error: FileError) -> FileError {
    FileError { file: shown(&error.file).into_owned(), ..error }
}

fn policy_errors(errors: Vec<FileError>) -> PolicyErrors {
    PolicyErrors(errors.into_iter().map(with_shown_name).collect())
}

fn policy_error(error: FileError) -> PolicyErrors {
    policy_errors(vec![error])
}

fn is_stdin(path: &Path) -> bool {
    path == Path::new("-")
}

fn log_name(path: &Path) -> String {
    if is_stdin(path) { "stdin".to_owned() } else { path.display().to_string() }
}

fn unreadable(path: &Path, error: io::Error) -> anyhow::Error {
    let name = log_name(path);
    let name = shown(&name);
    if error.kind() == ErrorKind::NotFound {
        return anyhow!("{name} is not there; give the path of an audit log");
    }
    anyhow::Error::new(error).context(format!("{name} cannot be read"))
}

/// Refuses what is no log, and a log that is given twice: its calls would count twice.
fn check_logs(paths: &[PathBuf]) -> anyhow::Result<()> {
    let mut seen = HashSet::new();
    for path in paths {
        let name = log_name(path);
        let name = shown(&name);
        let file = if is_stdin(path) {
            None
        } else {
            let metadata = fs::metadata(path).map_err(|error| unreadable(path, error))?;
            if metadata.is_dir() {
                bail!("{name} is a folder; name its files");
            }
            // Device and inode tell files apart, whatever their paths.
            Some((metadata.dev(), metadata.ino()))
        };
        if !seen.insert(file) {
            bail!(
                "{name} is given twice; give each log once, and rotated logs of one pod on stdin: cat audit.log.1 audit.log | \
                 toolweir-sidecar replay --policy ... -"
            );
        }
    }
    Ok(())
}

fn print(report: &ReplayReport, output: ReplayOutput, mut out: impl Write, mut notes: impl Write) -> anyhow::Result<()> {
    for damage in &report.damages {
        writeln!(notes, "warning: {damage}")?;
    }
    let text = if output == ReplayOutput::Json { report.json()? } else { report.text() };
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // The reader of the output has closed the pipe.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn new_folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("toolweir-replay-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn refusal(paths: &[&Path]) -> String {
        let paths: Vec<PathBuf> = paths.iter().map(|path| path.to_path_buf()).collect();
        check_logs(&paths).unwrap_err().to_string()
    }

    #[test]
    fn a_log_that_is_given_twice_does_not_count_twice() {
        let folder = new_folder("twice");
        let (log, link, other) = (folder.join("a.log"), folder.join("link"), folder.join("b.log"));
        fs::write(&log, "").unwrap();
        fs::write(&other, "").unwrap();
        std::os::unix::fs::symlink(&log, &link).unwrap();
        check_logs(&[log.clone(), other, PathBuf::from("-")]).unwrap();
        assert!(refusal(&[&log, &link]).starts_with(&format!("{} is given twice; give each log once", link.display())));
        assert!(refusal(&[Path::new("-"), Path::new("-")]).starts_with("stdin is given twice;"));
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_is_no_log_is_refused_in_one_line_with_the_remedy() {
        let folder = new_folder("refused");
        assert_eq!(refusal(&[folder.as_path()]), format!("{} is a folder; name its files", folder.display()));
        assert_eq!(
            refusal(&[&folder.join("x\u{1b}[31m\nq.log")]),
            format!("{}/x\u{fffd}[31m\u{fffd}q.log is not there; give the path of an audit log", folder.display())
        );
        let missing = policy_files::files(&folder.join("a\nb.yaml")).map_err(policy_error).unwrap_err();
        assert_eq!(missing.to_string().lines().count(), 1);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_closed_pipe_is_no_failure() {
        struct Failing(ErrorKind);
        impl Write for Failing {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(self.0.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let print_to = |kind| print(&ReplayReport::default(), ReplayOutput::Text, Failing(kind), io::sink());
        print_to(ErrorKind::BrokenPipe).unwrap();
        print_to(ErrorKind::StorageFull).unwrap_err();
    }
}

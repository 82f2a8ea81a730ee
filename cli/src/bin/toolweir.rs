//! The plugin under a name of its own, for use without `kubectl`.

use std::process::ExitCode;

fn main() -> ExitCode {
    toolweir_cli::command_line::main("toolweir")
}

//! The plugin `kubectl toolweir`.

use std::process::ExitCode;

fn main() -> ExitCode {
    toolweir_cli::command_line::main("kubectl toolweir")
}

//! Writes the CRD manifests into the folder that is named, `crds/generated` as a rule.

use std::{path::PathBuf, process::ExitCode};

fn main() -> ExitCode {
    let Some(folder) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: crdgen FOLDER");
        return ExitCode::FAILURE;
    };
    for (name, text) in toolweir_crds::resource::manifests() {
        let file = folder.join(name);
        if let Err(error) = std::fs::write(&file, text) {
            eprintln!("crdgen: {}: {error}", file.display());
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

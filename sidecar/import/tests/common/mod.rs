//! What the tests of both formats share.

use std::{fs, path::Path};

use serde_json::Value;
use toolweir_crds::read_documents;
use toolweir_engine::{Call, Engine, Operation, Timestamp, json::Reader};
use toolweir_import::{ImportOptions, import};

pub fn options() -> ImportOptions {
    ImportOptions {
        server: "bank".to_owned(),
        url: "https://bank.tools.svc:8000/mcp".to_owned(),
        name: None,
        namespace: Some("agents".to_owned()),
        shared_store: false,
    }
}

pub fn allows(engine: &Engine, tool: &str, arguments: &Value, now: Timestamp) -> bool {
    let text = arguments.to_string();
    let arguments = Reader::new(text.as_bytes()).unwrap().value().unwrap();
    let call = Call { server: "bank", operation: Operation::tool(tool), arguments: Some(arguments), session: "", seen: None };
    engine.decide(&call, now).denial().is_none()
}

/// Compares what the policies of a folder under `tests` become with the manifests beside them: `PATH.alone`, and `PATH.shared.yaml` where
/// a shared store makes a difference. `UPDATE=1` writes these anew.
pub fn policies_become_manifests(folder: &str, is_policy: impl Fn(&Path) -> bool, alone_ends: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(folder);
    let mut policies: Vec<_> = fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path()).collect();
    policies.retain(|path| is_policy(path));
    assert!(policies.len() >= 7, "{policies:?}");
    for path in policies {
        let text = fs::read_to_string(&path).unwrap();
        let printed = |shared_store| {
            let options = ImportOptions { shared_store, ..options() };
            let policy = import(&text, &options).unwrap_or_else(|errors| panic!("{}: {errors:?}", path.display()));
            let yaml = policy.to_yaml();
            assert_eq!(read_documents("imported.yaml", &yaml).unwrap()[0].document, policy.document);
            yaml
        };
        let (alone, shared) = (printed(false), printed(true));
        // A policy without limits is the same with a shared store.
        let shared = Some(("shared.yaml", shared)).filter(|(_, shared)| *shared != alone);
        for (kind, yaml) in [(alone_ends, alone)].into_iter().chain(shared) {
            let golden = path.with_extension(kind);
            if std::env::var_os("UPDATE").is_some() {
                fs::write(&golden, &yaml).unwrap();
            }
            assert_eq!(yaml, fs::read_to_string(&golden).unwrap_or_default(), "{}; UPDATE=1 writes it", golden.display());
        }
    }
}

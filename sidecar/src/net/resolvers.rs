//! The nameservers and search domains of the pod. Whoever is root in a container of it can write to `/etc/resolv.conf`, so that what a
//! sidecar read at its first start holds for its restarts too.

use std::{fs, io, path::Path};

use toolweir_store::dns::use_text;

use crate::files::{Durable, FileMetrics, replace};

/// The label `file` of what is kept.
pub const RESOLVERS: &str = "resolvers";
const SYSTEM: &str = "/etc/resolv.conf";
const KEPT: &str = "resolv.conf";

/// Reads the nameservers that are kept in `folder`, or else those of the system, which are kept from then on.
///
/// # Errors
/// What is kept cannot be read, and what the system says now may be the agent's; or the system names no nameserver.
pub fn read_kept(folder: &Path, files: &FileMetrics) -> Result<(), String> {
    let path = folder.join(KEPT);
    let kept = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return keep(&path, files),
        kept => kept.map_err(|error| error.to_string()).and_then(|text| use_text(&text)),
    };
    let used = files.record_result(RESOLVERS, "read", kept);
    used.ok_or_else(|| format!("{} cannot be read; delete the pod, so that a new one begins anew", path.display()))
}

fn keep(path: &Path, files: &FileMetrics) -> Result<(), String> {
    let in_system = |error: String| format!("{SYSTEM}: {error}");
    let text = fs::read(SYSTEM).map_err(|error| in_system(error.to_string()))?;
    use_text(&text).map_err(in_system)?;
    files.record_result(RESOLVERS, "write", replace(path, &text, 0o600, Durable::Yes));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::MetricsRegistry;

    #[test]
    fn what_is_kept_holds_whatever_the_agent_writes_and_is_not_replaced_where_it_is_damaged() {
        let folder = std::env::temp_dir().join(format!("toolweir-resolvers-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (path, registry) = (folder.join(KEPT), MetricsRegistry::default());
        let files = FileMetrics::new(&registry).unwrap();
        fs::write(&path, "nameserver 192.0.2.53\nsearch agents.svc.cluster.local\n").unwrap();
        assert_eq!(read_kept(&folder, &files), Ok(()));
        for damaged in ["", "search a\n"] {
            fs::write(&path, damaged).unwrap();
            let error = read_kept(&folder, &files).unwrap_err();
            assert!(error.ends_with("cannot be read; delete the pod, so that a new one begins anew"), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), damaged);
        }
        let page = String::from_utf8(registry.encode().unwrap()).unwrap();
        assert!(page.contains(r#"toolweir_file_failures_total{file="resolvers",operation="read"} 2"#), "{page}");
        fs::remove_dir_all(&folder).unwrap();
    }
}

//! Names that get into manifests from the command line.

use anyhow::bail;
use toolweir_crds::{bounds, text::escaped};

/// Names of the command line, each where it is given.
#[derive(Clone, Copy, Debug, Default)]
pub struct GivenNames<'a> {
    /// That of `--server`.
    pub server: Option<&'a str>,
    /// That of `--name`.
    pub name: Option<&'a str>,
    /// That of `--namespace`.
    pub namespace: Option<&'a str>,
}

impl GivenNames<'_> {
    /// Checks the names.
    ///
    /// # Errors
    /// One is no name of Kubernetes, or of a server.
    pub fn check(&self) -> anyhow::Result<()> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let fits = |name: &str, most: usize, inside: &str| {
            (1..=most).contains(&name.len())
                && name.starts_with(plain)
                && name.ends_with(plain)
                && name.chars().all(|c| plain(c) || inside.contains(c))
        };
        for (flag, name, most, inside) in [
            ("--server", self.server, bounds::SERVER_NAME, "-"),
            ("--name", self.name, bounds::OBJECT_NAME, "-."),
            ("--namespace", self.namespace, 63, "-"),
        ] {
            if let Some(name) = name.filter(|name| !fits(name, most, inside)) {
                let shown = escaped(name, 80);
                bail!(
                    "{flag} `{shown}` does not fit; write 1 to {most} lower case letters, digits and {inside:?}, a letter or digit first and last"
                );
            }
        }
        Ok(())
    }
}

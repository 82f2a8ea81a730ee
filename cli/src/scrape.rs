//! Reads the state of a sidecar's policies from its `/metrics`.

/// A series of a scrape.
#[derive(Clone, Debug, PartialEq)]
struct Series {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

/// The policies in force in a sidecar, according to its metrics.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PolicyMetrics {
    /// Their version; `None` if there are no policies.
    pub version: Option<String>,
    /// Their names.
    pub names: Vec<String>,
    /// The names of those that cannot be enforced as written, and deny.
    pub invalid: Vec<String>,
    /// True if the sidecar is connected to the operator and its policies are current.
    pub connected: Option<bool>,
    /// For how long it has been unknown whether the policies are current, in seconds; 0 if they are.
    pub age_seconds: Option<f64>,
}

impl PolicyMetrics {
    /// Parses the Prometheus text format. Unknown series and invalid lines are skipped.
    pub fn read(text: &str) -> Self {
        let mut policies = Self::default();
        for series in text.lines().filter(|line| line.starts_with("toolweir_policy_")).filter_map(series) {
            let label = |name: &str| series.labels.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
            match series.name.as_str() {
                "toolweir_policy_info" => {
                    policies.version = policies.version.or_else(|| label("version"));
                    policies.names.extend(label("policy"));
                }
                "toolweir_policy_invalid" => policies.invalid.extend(label("policy")),
                "toolweir_policy_connected" => policies.connected = Some(series.value > 0.0),
                "toolweir_policy_age_seconds" => policies.age_seconds = Some(series.value),
                _ => {}
            }
        }
        policies.names.sort();
        policies.invalid.sort();
        policies
    }
}

/// Parses `name{label="value",...} value`.
fn series(line: &str) -> Option<Series> {
    let end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at_checked(end)?;
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (Vec::new(), rest),
    };
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some(Series { name: name.to_owned(), labels, value })
}

/// Parses the labels up to the closing brace. Returns them and the rest of the line.
fn labels(text: &str) -> Option<(Vec<(String, String)>, &str)> {
    let (mut labels, mut rest) = (Vec::new(), text);
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(rest) = rest.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (name, after) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut chars = after.char_indices();
        loop {
            match chars.next()? {
                (at, '"') => {
                    rest = after.get(at + 1..)?;
                    break;
                }
                (_, '\\') => value.push(match chars.next()?.1 {
                    'n' => '\n',
                    other => other,
                }),
                (_, char) => value.push(char),
            }
        }
        labels.push((name.to_owned(), value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policies_are_read_out_of_a_scrape() {
        let text = "# HELP toolweir_policy_info The policies in force; always 1.\n# TYPE toolweir_policy_info gauge\n\
                    toolweir_policy_info{mode=\"Enforce\",policy=\"agents/b\",version=\"3f\"} 1\n\
                    toolweir_policy_info{mode=\"Audit\",policy=\"a\",version=\"3f\"} 1\n\
                    toolweir_policy_invalid{policy=\"agents/b\"} 1\n\
                    toolweir_policy_age_seconds 12.5\n\
                    toolweir_policy_connected 0\n\
                    toolweir_policy_newer{x=\"y\"} 3 1700000000\n\
                    toolweir_limit_used_ratio{tool=\"x\"} 1\n\
                    toolweir_policy_torn{x=\"y";
        let names = vec!["a".to_owned(), "agents/b".to_owned()];
        let invalid = vec!["agents/b".to_owned()];
        let read =
            PolicyMetrics { version: Some("3f".to_owned()), names, invalid, connected: Some(false), age_seconds: Some(12.5) };
        assert_eq!(PolicyMetrics::read(text), read);
        assert_eq!(PolicyMetrics::read(""), PolicyMetrics::default());
    }

    #[test]
    fn labels_are_unescaped() {
        let read = series(r#"m{a="x\"y\\z\n",b="}, "} 1e3"#).unwrap();
        assert_eq!(read.labels, [("a".to_owned(), "x\"y\\z\n".to_owned()), ("b".to_owned(), "}, ".to_owned())]);
        assert!((read.value - 1000.0).abs() < f64::EPSILON);
    }
}

//! Reads a scrape.

use std::collections::BTreeMap;

/// One series.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

/// A scrape in the text format of Prometheus.
#[derive(Clone, Debug)]
pub struct Scrape {
    pub series: Vec<Series>,
    /// The type of each metric.
    pub types: BTreeMap<String, String>,
}

impl Scrape {
    pub fn parse(text: &str) -> Self {
        let (mut series, mut types) = (Vec::new(), BTreeMap::new());
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                types.insert(name.to_owned(), kind.to_owned());
            } else if !line.starts_with('#') {
                series.push(parse_series(line));
            }
        }
        Self { series, types }
    }

    /// The sum of a metric's series that have these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let fits = |series: &&Series| {
            series.name == name && labels.iter().all(|(key, value)| series.labels.get(*key).is_some_and(|found| found == value))
        };
        self.series.iter().filter(fits).map(|series| series.value).sum()
    }
}

fn parse_series(line: &str) -> Series {
    let (head, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value in {line}"));
    let (name, labels) = head.split_once('{').unwrap_or((head, "}"));
    let mut rest = labels.strip_suffix('}').unwrap();
    let mut labels = BTreeMap::new();
    while let Some((key, after)) = rest.split_once("=\"") {
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next().unwrap_or_else(|| panic!("no end of a label in {line}")) {
                (at, '"') => break at,
                (_, '\\') => match chars.next().unwrap().1 {
                    'n' => value.push('\n'),
                    other => value.push(other),
                },
                (_, other) => value.push(other),
            }
        };
        labels.insert(key.trim_start_matches(',').to_owned(), value);
        rest = &after[end + 1..];
    }
    Series { name: name.to_owned(), labels, value: value.parse().unwrap() }
}

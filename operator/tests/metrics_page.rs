//! docs/metrics.md lists every metric of the operator with its type and labels, and the closed sets of values: held against a
//! scrape, in both directions.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet};

use toolweir_crds::{read_documents, resource::PolicyStatus};
use toolweir_engine::CompileOptions;
use toolweir_operator::{
    admission::{REASONS, RESULTS},
    auth::StreamRefusal,
    index::{ClusterEvent, Index, NOT_INJECTED, PolicyEntry},
    operator_metrics::OperatorMetrics,
    pins_status::PinsReason,
    readiness::ReadyReason,
    serve::{Closed, Port},
    shared_store::health::{StoreHealth, faults},
    status::{self, Accepted, Programmed},
    stream::StreamEnd,
};

/// Name, type and labels of every metric.
type Listed = BTreeMap<String, (String, BTreeSet<String>)>;

fn page() -> String {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md")).unwrap();
    page.split("\n# The operator\n").nth(1).expect("the operator's part").to_owned()
}

/// What stands between backticks.
fn quoted(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(ToOwned::to_owned).collect()
}

fn documented(page: &str) -> Listed {
    let rows = page.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        (quoted(cells[1])[0].clone(), (cells[2].to_owned(), quoted(cells[3]).into_iter().collect()))
    })
    .collect()
}

/// The values that a section lists.
fn values(page: &str, heading: &str) -> BTreeSet<String> {
    let section = page.split(&format!("\n### {heading}\n")).nth(1).unwrap_or_else(|| panic!("no section {heading}"));
    let section = section.split("\n##").next().unwrap();
    section.lines().filter(|line| line.starts_with("- `")).map(|line| quoted(line)[0].clone()).collect()
}

fn set<'a>(values: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    values.into_iter().map(ToOwned::to_owned).collect()
}

/// The metrics of a scrape, the series of a histogram as one.
fn scraped(metrics: &OperatorMetrics) -> Listed {
    let without = BTreeMap::from([(("agents".to_owned(), NOT_INJECTED), 0)]);
    metrics.scrape.set(&without, 0);
    metrics.approvals.set_guarded(true);
    let text = String::from_utf8(metrics.registry.scrape().unwrap()).unwrap();
    let mut types: BTreeMap<&str, &str> = BTreeMap::new();
    let mut listed = Listed::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            types.extend(rest.split_once(' '));
        } else if !line.starts_with('#') {
            let (head, _) = line.rsplit_once(' ').unwrap();
            let (name, labels) = head.split_once('{').unwrap_or((head, ""));
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| {
                let base = name.strip_suffix(end)?;
                (types.get(base) == Some(&"histogram")).then_some(base)
            });
            // No value of a label holds a comma or an equals sign here.
            let labels = labels.trim_end_matches('}').split(',').filter_map(|pair| pair.split_once('='));
            let labels: BTreeSet<String> = set(labels.map(|(label, _)| label).filter(|label| *label != "le"));
            let name = base.unwrap_or(name);
            let found = listed.entry(name.to_owned()).or_insert_with(|| (types[name].to_owned(), labels.clone()));
            assert_eq!(found.1, labels, "{name} has series with other labels");
        }
    }
    listed
}

#[test]
fn the_page_lists_every_metric_with_its_type_and_labels_and_no_other() {
    let metrics = OperatorMetrics::new().unwrap();
    // A family without series is not in a scrape.
    let mut index = Index::default();
    let text = "{apiVersion: toolweir.dev/v1alpha1, kind: MCPPolicy, metadata: {name: p, namespace: agents}, spec: {servers: \
                [{name: s, url: 'https://s.example', tls: Intercept, pins: {name: shop}, credential: {bearer: {secretKey: token}}}]}}";
    let document = read_documents("test", text).unwrap().remove(0).document;
    let options = CompileOptions::default();
    let entry = PolicyEntry::new("uid".to_owned(), 1, document, PolicyStatus::default(), &options);
    index.apply(ClusterEvent::Policy(entry.policy.id.clone(), Box::new(entry)));
    let desired = status::desired(&mut index, &BTreeMap::new(), &options, &StoreHealth::Absent);
    metrics.status.set(&index, &desired);
    metrics.certificates.lifetime.with_label_values(&["ca"]).set(1.0);
    metrics.certificates.expiry.with_label_values(&["ca"]).set(1.0);
    metrics.certificates.rotations.with_label_values(&["ca"]).inc();
    metrics.store.begin();
    assert_eq!(documented(&page()), scraped(&metrics));
}

#[test]
fn the_page_lists_every_value_of_the_closed_sets_and_no_other() {
    let page = page();
    let ended = StreamEnd::ALL.map(StreamEnd::as_str);
    for (heading, known) in [
        ("`result` of admissions", set(RESULTS)),
        ("`reason` of admissions", set(REASONS)),
        ("`reason` of streams that were refused", set(StreamRefusal::ALL.map(StreamRefusal::as_str))),
        ("`reason` of streams that ended", set(ended)),
        ("`programmed`", set(Programmed::ALL.map(Programmed::as_str))),
        ("`credentials`", set(ReadyReason::OF_CREDENTIALS.map(ReadyReason::as_str))),
        ("`interception`", set(ReadyReason::OF_INTERCEPTION.map(ReadyReason::as_str))),
        ("`pins`", set(PinsReason::ALL.map(PinsReason::as_str))),
        ("`reason` of pods without a sidecar", set([NOT_INJECTED, "HostNetwork", "Windows", "MirrorPod"])),
        ("`fault`", faults().map(ToOwned::to_owned).collect()),
        ("`port`", set(Port::ALL.map(Port::as_str))),
        ("`reason` of connections that were closed", set(Closed::ALL.map(Closed::as_str))),
        ("`accepted`", set(Accepted::ALL.map(Accepted::as_str))),
    ] {
        assert_eq!(values(&page, heading), known, "{heading}");
    }
}

/// Values that stand where they are used, and in no list: looked for there.
#[test]
fn the_page_lists_the_values_that_the_code_names() {
    let page = page();
    let source = |name: &str| std::fs::read_to_string(format!("{}/src/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    for (heading, files) in [
        ("`webhook`", ["admission.rs"].as_slice()),
        ("`kind` of policies", &["publish.rs"]),
        ("`result` of status writes", &["publish.rs"]),
        ("`certificate`", &["certs/manager.rs"]),
        ("`mode`", &["../../crds/src/policy.rs"]),
        ("`state` of pods", &["publish.rs"]),
        ("`result` of events", &["events.rs", "stream.rs"]),
    ] {
        let text: String = files.iter().map(|file| source(file)).collect();
        let values = values(&page, heading);
        assert!(values.len() >= 2 && values.iter().all(|value| text.contains(&format!("\"{value}\""))), "{heading}: {values:?}");
    }
}

//! Which policies reach which pod, what is acknowledged and what the status says: events in, values out, without an API
//! server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::jiff::Timestamp;
use proptest::prelude::*;
use tokio::sync::watch;
use toolweir_crds::{
    Document, MCPToolPinsSpec, PinnedPart, PinnedTool, ToolPart, ToolPins, read_documents,
    resource::PolicyStatus,
    select::Labels,
    stream::{Ack, PolicyProblem},
};
use toolweir_engine::{CompileOptions, Policy, PolicyId};
use toolweir_operator::{
    acks::{self, Acknowledgements, Tallies},
    index::{ClusterEvent, CurrentSnapshot, Index, Pod, PodKey, PolicyEntry},
    inject::SkipReason,
    pins::{PinsEntry, PinsKey},
    shared_store::health::{StoreFailure, StoreHealth},
    status::{self, Accepted, DesiredStatus, Programmed},
};

fn labels(text: &str) -> Labels {
    text.split_whitespace().filter_map(|pair| pair.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

fn key(text: &str) -> PodKey {
    let (namespace, name) = text.split_once('/').unwrap();
    PodKey { namespace: namespace.to_owned(), name: name.to_owned() }
}

fn pod(uid: &str, text: &str) -> Pod {
    Pod { uid: uid.to_owned(), labels: labels(text), injected: true, ..Pod::default() }
}

/// A policy `namespace/name`, or a cluster policy `name`.
fn entry(name: &str, generation: i64, spec: &str) -> (PolicyId, PolicyEntry) {
    let (kind, metadata) = match name.split_once('/') {
        Some((namespace, name)) => {
            ("MCPPolicy", format!("{{name: {name}, namespace: {namespace}, creationTimestamp: '2026-01-01T00:00:00Z'}}"))
        }
        None => ("MCPClusterPolicy", format!("{{name: {name}, creationTimestamp: '2026-01-02T00:00:00Z'}}")),
    };
    let text = format!("{{apiVersion: toolweir.dev/v1alpha1, kind: {kind}, metadata: {metadata}, spec: {spec}}}");
    let document = read_documents("test", &text).unwrap_or_else(|errors| panic!("{errors:?}")).remove(0).document;
    let entry =
        PolicyEntry::new(format!("uid of {name}"), generation, document, PolicyStatus::default(), &CompileOptions::default());
    (entry.policy.id.clone(), entry)
}

const OPEN: &str = "servers: [{name: s, url: 'http://s/mcp', defaultAction: Allow}]";

fn open(selectors: &str) -> String {
    format!("{{{selectors}{OPEN}}}")
}

fn apply(index: &mut Index, (id, entry): (PolicyId, PolicyEntry)) {
    index.apply(ClusterEvent::Policy(id, Box::new(entry)));
}

/// An index that has seen two namespaces and three pods, and no policy.
fn cluster() -> Index {
    let mut index = Index::default();
    index.apply(ClusterEvent::Namespaces(BTreeMap::from([
        ("agents".to_owned(), labels("team=a").into()),
        ("tools".to_owned(), labels("team=b").into()),
    ])));
    index.apply(ClusterEvent::Pods(BTreeMap::from([
        (key("agents/one"), pod("u1", "app=social")),
        (key("agents/two"), pod("u2", "app=other")),
        (key("tools/three"), pod("u3", "app=social")),
    ])));
    index.apply(ClusterEvent::Policies { cluster: false, all: BTreeMap::new() });
    index.apply(ClusterEvent::Policies { cluster: true, all: BTreeMap::new() });
    index.apply(ClusterEvent::AllPins(BTreeMap::new()));
    index
}

fn names(current: &CurrentSnapshot) -> Vec<String> {
    current.iter().flat_map(|prepared| &prepared.includes).map(|included| included.id.to_string()).collect()
}

fn governing(index: &mut Index, pod: &str, uid: &str) -> Vec<String> {
    names(&index.snapshot(&key(pod), uid))
}

mod governing {
    use super::*;

    #[test]
    fn a_policy_governs_the_pods_of_its_namespace_that_it_selects() {
        let mut index = cluster();
        apply(&mut index, entry("agents/p", 1, &open("podSelector: {matchLabels: {app: social}}, ")));
        assert_eq!(governing(&mut index, "agents/one", "u1"), ["agents/p"]);
        assert!(governing(&mut index, "agents/two", "u2").is_empty());
        assert!(governing(&mut index, "tools/three", "u3").is_empty());
    }

    #[test]
    fn an_empty_selector_selects_every_pod_of_the_namespace() {
        let mut index = cluster();
        apply(&mut index, entry("agents/p", 1, &open("")));
        assert_eq!(governing(&mut index, "agents/two", "u2"), ["agents/p"]);
        assert!(governing(&mut index, "tools/three", "u3").is_empty());
    }

    #[test]
    fn a_policy_that_has_tls_opened_is_found_for_a_pod_that_is_not_there_yet() {
        let mut index = Index::default();
        let opened = "servers: [{name: r, url: 'https://r.example/mcp', tls: Refuse}, {name: s, url: 'https://s.example/mcp', tls: Intercept}]";
        let entry_of = |name: &str, selectors: &str| entry(name, 1, &format!("{{{selectors}, {opened}}}"));
        apply(
            &mut index,
            entry("agents/closed", 1, &opened.replace("Intercept", "Refuse").replace("servers", "{servers").replace(']', "]}")),
        );
        let social = "podSelector: {matchLabels: {app: social}}";
        let (a, b) = (labels("team=a").into(), labels("team=b").into());
        let asks = |index: &Index, namespace: &str, info, pod: &str| index.intercepts(namespace, info, &labels(pod));
        assert!(!asks(&index, "agents", Some(&a), "app=social"));
        apply(&mut index, entry_of("agents/opened", social));
        assert!(asks(&index, "agents", Some(&a), "app=social") && asks(&index, "agents", None, "app=social x=y"));
        assert!(!asks(&index, "agents", Some(&a), "app=other") && !asks(&index, "other", Some(&a), "app=social"));
        apply(&mut index, entry_of("opened-for-b", "namespaceSelector: {matchLabels: {team: b}}"));
        // Where nothing is known of a namespace, every policy of the cluster governs it.
        for (info, promised) in [(Some(&a), false), (Some(&b), true), (None, true)] {
            assert_eq!(asks(&index, "other", info, "app=other"), promised);
        }
    }

    #[test]
    fn a_cluster_policy_governs_the_namespaces_that_it_selects() {
        let mut index = cluster();
        apply(&mut index, entry("c", 1, &open("namespaceSelector: {matchLabels: {team: b}}, ")));
        assert!(governing(&mut index, "agents/one", "u1").is_empty());
        assert_eq!(governing(&mut index, "tools/three", "u3"), ["c"]);
        index.apply(ClusterEvent::Namespace("agents".to_owned(), labels("team=b").into()));
        assert_eq!(governing(&mut index, "agents/one", "u1"), ["c"]);
    }

    #[test]
    fn a_namespace_whose_labels_are_not_known_is_governed_by_every_cluster_policy() {
        let mut index = cluster();
        apply(&mut index, entry("c", 1, &open("namespaceSelector: {matchLabels: {team: b}}, ")));
        index.apply(ClusterEvent::Pod(key("new/pod"), pod("u9", "")));
        assert_eq!(governing(&mut index, "new/pod", "u9"), ["c"]);
    }

    #[test]
    fn a_pod_of_another_uid_gets_nothing() {
        let mut index = cluster();
        apply(&mut index, entry("agents/p", 1, &open("")));
        assert!(index.snapshot(&key("agents/one"), "u0").is_none());
        assert!(index.subscribe(&key("agents/one"), "u0").is_none());
    }

    #[test]
    fn nothing_is_known_before_all_five_lists_came() {
        let mut index = Index::default();
        index.apply(ClusterEvent::Namespaces(BTreeMap::new()));
        index.apply(ClusterEvent::Pods(BTreeMap::new()));
        index.apply(ClusterEvent::Policies { cluster: true, all: BTreeMap::new() });
        index.apply(ClusterEvent::Policies { cluster: false, all: BTreeMap::new() });
        assert!(!index.synced());
        index.apply(ClusterEvent::AllPins(BTreeMap::new()));
        assert!(index.synced());
    }

    #[test]
    fn the_line_of_a_snapshot_has_the_policies_as_a_user_writes_them() {
        let mut index = cluster();
        apply(&mut index, entry("agents/p", 1, &open("")));
        let prepared = index.snapshot(&key("agents/one"), "u1").unwrap();
        let line: serde_json::Value = serde_json::from_slice(&prepared.line).unwrap();
        assert_eq!(line["snapshot"]["version"], prepared.version);
        let document: Document = serde_json::from_value(line["snapshot"]["policies"][0].clone()).unwrap();
        assert_eq!(Policy::from(document).id.to_string(), "agents/p");
        assert_eq!(prepared.line.split(|byte| *byte == b'\n').count(), 2);
    }
}

mod a_subscriber {
    use super::*;

    #[test]
    fn hears_of_what_changes_its_own_snapshot_and_of_nothing_else() {
        let social = open("podSelector: {matchLabels: {app: social}}, ");
        let mut index = cluster();
        let mut one = index.subscribe(&key("agents/one"), "u1").unwrap();
        let mut three = index.subscribe(&key("tools/three"), "u3").unwrap();
        assert!(names(&one.borrow_and_update()).is_empty());
        three.borrow_and_update();
        apply(&mut index, entry("agents/p", 1, &social));
        assert!(one.has_changed().unwrap() && !three.has_changed().unwrap());
        assert_eq!(names(&one.borrow_and_update()), ["agents/p"]);
        // The same again, as when a status is written.
        apply(&mut index, entry("agents/p", 1, &social));
        assert!(!one.has_changed().unwrap());
        // Labels of the pod that no selector looks at.
        index.apply(ClusterEvent::Pod(key("agents/one"), pod("u1", "app=social x=y")));
        assert!(!one.has_changed().unwrap());
        index.apply(ClusterEvent::Pod(key("agents/one"), pod("u1", "app=quiet")));
        assert!(names(&one.borrow_and_update()).is_empty());
    }

    #[test]
    fn hears_that_a_policy_is_gone_also_by_a_list_that_lacks_it() {
        let mut index = cluster();
        apply(&mut index, entry("agents/p", 1, &open("")));
        let mut one = index.subscribe(&key("agents/one"), "u1").unwrap();
        assert_eq!(names(&one.borrow_and_update()), ["agents/p"]);
        index.apply(ClusterEvent::Policies { cluster: false, all: BTreeMap::new() });
        assert!(one.has_changed().unwrap() && names(&one.borrow_and_update()).is_empty());
    }

    #[test]
    fn hears_of_a_policy_that_was_replaced_by_its_like() {
        let mut index = cluster();
        let (id, first) = entry("agents/p", 1, &open(""));
        let mut second = first.clone();
        second.uid = "another".to_owned();
        apply(&mut index, (id.clone(), first));
        let mut one = index.subscribe(&key("agents/one"), "u1").unwrap();
        one.borrow_and_update();
        apply(&mut index, (id, second));
        assert!(one.has_changed().unwrap());
        assert_eq!(one.borrow_and_update().as_ref().unwrap().includes[0].uid, "another");
    }

    #[test]
    fn hears_that_its_pod_is_gone_and_a_pod_that_comes_later_under_its_name_is_another() {
        let mut index = cluster();
        let mut one = index.subscribe(&key("agents/one"), "u1").unwrap();
        one.borrow_and_update();
        index.apply(ClusterEvent::PodGone(key("agents/one")));
        assert!(one.borrow_and_update().is_none());
        index.apply(ClusterEvent::Pod(key("agents/one"), pod("u7", "app=social")));
        assert!(one.borrow_and_update().is_none());
        assert!(index.subscribe(&key("agents/one"), "u1").is_none());
        assert!(index.subscribe(&key("agents/one"), "u7").is_some());
    }

    #[test]
    fn shares_one_snapshot_with_all_pods_of_the_same_policies() {
        let mut index = cluster();
        apply(&mut index, entry("agents/p", 1, &open("")));
        let one = index.subscribe(&key("agents/one"), "u1").unwrap();
        let two = index.subscribe(&key("agents/two"), "u2").unwrap();
        let prepared = |receiver: &watch::Receiver<CurrentSnapshot>| receiver.borrow().clone().unwrap();
        assert!(Arc::ptr_eq(&prepared(&one), &prepared(&two)));
    }
}

mod the_status {
    use super::*;

    fn of(index: &mut Index, tallies: &Tallies, name: &str) -> DesiredStatus {
        let all = status::desired(
            index,
            tallies,
            &CompileOptions { shared_store: true, of_any_pod: true, ..CompileOptions::default() },
            &StoreHealth::Pending,
        );
        all.into_iter().find(|(id, _)| id.to_string() == name).unwrap().1
    }

    fn enforced(index: &mut Index, acks: &Acknowledgements) -> DesiredStatus {
        let tallies = acks.tally(index);
        of(index, &tallies, "agents/p")
    }

    /// Streams of pods that enforce what holds for them now.
    fn enforce(index: &mut Index, acks: &mut Acknowledgements, pods: &[(&str, &str)]) {
        for (pod, uid) in pods {
            let stream = acks.open(key(pod), (*uid).to_owned());
            let prepared = index.snapshot(&key(pod), uid).unwrap();
            acks.sent(stream, &prepared);
            assert!(acks.acknowledge(stream, Ack { version: prepared.version.clone(), problems: Vec::new() }));
        }
    }

    #[test]
    fn counts_pods_that_are_governed_injected_and_enforcing() {
        let mut index = cluster();
        apply(&mut index, entry("agents/p", 1, &open("")));
        let desired = of(&mut index, &Tallies::new(), "agents/p");
        assert_eq!((desired.selected, desired.injected, desired.acknowledged), (2, 2, 0));
        assert_eq!((desired.accepted.0, desired.programmed.0), (Accepted::Accepted, Programmed::Pending));
        let mut acks = Acknowledgements::default();
        enforce(&mut index, &mut acks, &[("agents/one", "u1")]);
        let desired = enforced(&mut index, &acks);
        assert_eq!((desired.acknowledged, desired.programmed.0), (1, Programmed::Pending));
        // A pod with two streams counts once.
        enforce(&mut index, &mut acks, &[("agents/two", "u2"), ("agents/two", "u2")]);
        let tallies = acks.tally(&index);
        assert_eq!(tallies["uid of agents/p"].acknowledged, 2);
        assert_eq!(of(&mut index, &tallies, "agents/p").programmed.0, Programmed::Programmed);
        // A new generation is enforced by nobody yet.
        apply(&mut index, entry("agents/p", 2, "{servers: [{name: t, url: 'http://t/'}]}"));
        let desired = enforced(&mut index, &acks);
        assert_eq!((desired.generation, desired.acknowledged, desired.programmed.0), (2, 0, Programmed::Pending));
    }

    #[test]
    fn does_not_count_a_pod_that_is_being_deleted_though_it_enforces() {
        let mut index = cluster();
        apply(&mut index, entry("agents/p", 1, &open("")));
        let mut acks = Acknowledgements::default();
        enforce(&mut index, &mut acks, &[("agents/one", "u1")]);
        index.apply(ClusterEvent::Pod(key("agents/one"), Pod { ends: true, ..pod("u1", "app=social") }));
        let desired = enforced(&mut index, &acks);
        assert_eq!((desired.selected, desired.acknowledged, desired.programmed.0), (1, 0, Programmed::Pending));
    }

    #[test]
    fn says_which_pods_have_no_sidecar() {
        let mut index = cluster();
        apply(&mut index, entry("agents/p", 1, &open("")));
        index.apply(ClusterEvent::Pod(key("agents/two"), Pod { injected: false, ..pod("u2", "app=other") }));
        let desired = of(&mut index, &Tallies::new(), "agents/p");
        assert_eq!((desired.selected, desired.injected, desired.programmed.0), (2, 1, Programmed::NoSidecar));
        assert!(desired.programmed.1.contains("1 of 2 pods have no sidecar") && desired.programmed.1.contains("agents/two"));
    }

    #[test]
    fn of_a_policy_that_governs_nobody_says_so() {
        let mut index = cluster();
        apply(&mut index, entry("empty/p", 1, &open("")));
        let desired = of(&mut index, &Tallies::new(), "empty/p");
        assert_eq!((desired.selected, desired.programmed.0), (0, Programmed::NoPods));
    }

    #[test]
    fn of_a_policy_that_does_not_compile_says_why() {
        let mut index = cluster();
        let spec = "{servers: [{name: s, url: 'http://s/', tools: [{name: t, validations: [{expression: 'nonsense('}]}]}]}";
        apply(&mut index, entry("agents/p", 1, spec));
        let desired = of(&mut index, &Tallies::new(), "agents/p");
        assert_eq!((desired.accepted.0, desired.programmed.0), (Accepted::Invalid, Programmed::Invalid));
        assert!(desired.accepted.1.contains("spec.servers[0].tools[0].validations[0].expression"), "{}", desired.accepted.1);
    }

    #[test]
    fn of_the_newer_of_two_policies_with_different_urls_is_conflicted() {
        let mut index = cluster();
        apply(&mut index, entry("agents/p", 1, &open("")));
        apply(&mut index, entry("c", 1, "{servers: [{name: s, url: 'http://other/mcp'}]}"));
        assert_eq!(of(&mut index, &Tallies::new(), "agents/p").accepted.0, Accepted::Accepted);
        let newer = of(&mut index, &Tallies::new(), "c");
        assert_eq!(newer.accepted.0, Accepted::Conflicted);
        assert!(newer.accepted.1.contains("http://other/mcp") && newer.accepted.1.contains("agents/p"), "{}", newer.accepted.1);
    }

    #[test]
    fn of_a_policy_that_a_sidecar_cannot_enforce_says_what_the_sidecar_said() {
        let mut index = cluster();
        apply(&mut index, entry("agents/p", 1, &open("")));
        let mut acks = Acknowledgements::default();
        let stream = acks.open(key("agents/one"), "u1".to_owned());
        let prepared = index.snapshot(&key("agents/one"), "u1").unwrap();
        acks.sent(stream, &prepared);
        let refused = PolicyProblem { policy: "agents/p".to_owned(), message: "spec.servers: unknown\nfield".to_owned() };
        assert!(acks.acknowledge(stream, Ack { version: prepared.version.clone(), problems: vec![refused] }));
        let desired = enforced(&mut index, &acks);
        assert_eq!((desired.acknowledged, desired.programmed.0), (0, Programmed::Refused));
        assert!(desired.programmed.1.ends_with("pod agents/one: spec.servers: unknown field"), "{}", desired.programmed.1);
    }

    #[test]
    fn an_acknowledgement_of_what_was_never_sent_counts_for_nothing() {
        let mut index = cluster();
        apply(&mut index, entry("agents/p", 1, &open("")));
        let mut acks = Acknowledgements::default();
        let stream = acks.open(key("agents/one"), "u1".to_owned());
        let version = index.snapshot(&key("agents/one"), "u1").unwrap().version.clone();
        assert!(!acks.acknowledge(stream, Ack { version, problems: Vec::new() }));
        assert_eq!(acks.tally(&index)["uid of agents/p"].acknowledged, 0);
    }

    #[test]
    fn counts_of_replicas_are_added_and_never_exceed_the_pods() {
        let mut index = cluster();
        apply(&mut index, entry("agents/p", 1, &open("")));
        let part = |generation, acknowledged| {
            Tallies::from([(
                "uid of agents/p".to_owned(),
                acks::PolicyTally { generation, acknowledged, ..acks::PolicyTally::default() },
            )])
        };
        assert_eq!(acks::sum([part(1, 1), part(1, 1)])["uid of agents/p"].acknowledged, 2);
        // A replica that is behind is not added to one that is not, in either order.
        assert_eq!(acks::sum([part(1, 5), part(2, 1)])["uid of agents/p"].acknowledged, 1);
        assert_eq!(acks::sum([part(2, 1), part(1, 5)])["uid of agents/p"].acknowledged, 1);
        let desired = of(&mut index, &part(1, 7), "agents/p");
        assert_eq!((desired.acknowledged, desired.programmed.0), (2, Programmed::Programmed));
    }

    #[test]
    fn is_written_once_and_a_condition_keeps_the_time_of_its_last_change() {
        let mut index = cluster();
        apply(&mut index, entry("agents/p", 1, &open("")));
        let desired = of(&mut index, &Tallies::new(), "agents/p");
        let (first, later) = (Timestamp::from_second(1000).unwrap(), Timestamp::from_second(2000).unwrap());
        let status = status::merge(&PolicyStatus::default(), &desired, first).unwrap();
        assert_eq!(status.sidecars, "0/2");
        assert_eq!(status::merge(&status, &desired, later), None);
        let mut done = desired.clone();
        (done.acknowledged, done.programmed) = (2, (Programmed::Programmed, String::new()));
        let status = status::merge(&status, &done, later).unwrap();
        let time =
            |kind: &str| status.conditions.iter().find(|condition| condition.type_ == kind).unwrap().last_transition_time.0;
        assert_eq!((time("Accepted"), time("Programmed")), (first, later));
        assert_eq!(status.sidecars, "2/2");
    }

    #[test]
    fn speaks_of_the_shared_store_only_where_the_policy_counts_across_pods() {
        let mut index = cluster();
        apply(&mut index, entry("agents/p", 1, &open("")));
        assert_eq!(of(&mut index, &Tallies::new(), "agents/p").store, None);
        let shared =
            "{servers: [{name: s, url: 'http://s', tools: [{name: t, limits: [{max: 1, window: day, scope: Workload}]}]}]}";
        apply(&mut index, entry("agents/p", 2, shared));
        let pending = of(&mut index, &Tallies::new(), "agents/p");
        let (first, later) = (Timestamp::from_second(1000).unwrap(), Timestamp::from_second(2000).unwrap());
        let mut status = status::merge(&PolicyStatus::default(), &pending, first).unwrap();
        let told = |status: &PolicyStatus| {
            let condition = status.conditions.iter().find(|condition| condition.type_ == "SharedStoreReady").unwrap();
            (condition.status.clone(), condition.reason.clone(), condition.last_transition_time.0)
        };
        assert_eq!(told(&status), ("Unknown".to_owned(), "Pending".to_owned(), first));
        assert_eq!(status.conditions.len(), 3);
        let with = |health: StoreHealth| DesiredStatus { store: Some(health.condition()), ..pending.clone() };
        let down = |fault| StoreHealth::Down(StoreFailure { fault, message: "why".to_owned() });
        for (health, at, promised) in [
            (down("refused"), later, ("False", "Refused", later)),
            // Another reason is another text, and not another state.
            (down("wrong_password"), first, ("False", "WrongPassword", later)),
            (StoreHealth::Connected, first, ("True", "Connected", first)),
        ] {
            status = status::merge(&status, &with(health.clone()), at).unwrap();
            assert_eq!(told(&status), (promised.0.to_owned(), promised.1.to_owned(), promised.2));
            assert_eq!(status::merge(&status, &with(health), later), None);
        }
        let gone = status::merge(&status, &DesiredStatus { store: None, ..pending }, later).unwrap();
        assert_eq!(gone.conditions.len(), 2);
    }
}

mod pins {
    use toolweir_crds::stream::LONGEST_LINE;

    use super::*;

    /// The pins of the snapshot for a pod, as a sidecar reads them.
    fn of(index: &mut Index, pod: &str, uid: &str) -> Vec<ToolPins> {
        let prepared = index.snapshot(&key(pod), uid).unwrap();
        let line: serde_json::Value = serde_json::from_slice(&prepared.line).unwrap();
        line["snapshot"].get("pins").map(|pins| serde_json::from_value(pins.clone()).unwrap()).unwrap_or_default()
    }

    fn put(index: &mut Index, name: &str, generation: i64, bytes: usize) {
        let (key, entry) = pins_entry(name, generation, bytes);
        index.apply(ClusterEvent::Pins(key, entry));
    }

    fn names(pins: &[ToolPins]) -> Vec<String> {
        pins.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_pod_gets_those_that_its_policies_name_and_no_others() {
        let mut index = cluster();
        for name in ["agents/pins", "tools/pins", "agents/other", "tools/other"] {
            put(&mut index, name, 1, 1);
        }
        apply(&mut index, entry("agents/p", 1, PINNED));
        apply(&mut index, entry("agents/q", 1, &PINNED.replace("name: pins", "name: nowhere")));
        assert_eq!(names(&of(&mut index, "agents/one", "u1")), ["agents/pins"]);
        assert!(of(&mut index, "tools/three", "u3").is_empty());
        // The cluster's policies name the namespace, also for pods of other ones.
        apply(&mut index, entry("c", 1, &PINNED.replace("name: pins", "name: other, namespace: tools")));
        assert_eq!(names(&of(&mut index, "agents/one", "u1")), ["agents/pins", "tools/other"]);
        assert_eq!(names(&of(&mut index, "tools/three", "u3")), ["tools/other"]);
    }

    #[test]
    fn a_policy_of_a_namespace_gets_none_of_another_whatever_it_says() {
        let mut index = cluster();
        put(&mut index, "tools/pins", 1, 1);
        let (id, honest) = entry("agents/p", 1, PINNED);
        // As one that the API server took before its schema forbade it.
        let mut document = serde_json::to_value(&honest.document).unwrap();
        document["spec"]["servers"][0]["pins"]["namespace"] = "tools".into();
        let document = serde_json::from_value(document).unwrap();
        let options = CompileOptions::default();
        let written = PolicyEntry::new("uid".to_owned(), 1, document, PolicyStatus::default(), &options);
        assert_eq!(written.policy.spec.servers[0].pins.as_ref().unwrap().namespace.as_deref(), Some("tools"));
        apply(&mut index, (id, written));
        assert!(of(&mut index, "agents/one", "u1").is_empty());
    }

    #[test]
    fn a_change_of_them_changes_the_snapshots_that_have_them_and_no_others() {
        let mut index = cluster();
        apply(&mut index, entry("agents/p", 1, PINNED));
        let mut one = index.subscribe(&key("agents/one"), "u1").unwrap();
        let mut three = index.subscribe(&key("tools/three"), "u3").unwrap();
        let version =
            |receiver: &mut watch::Receiver<CurrentSnapshot>| receiver.borrow_and_update().clone().unwrap().version.clone();
        let mut versions = vec![version(&mut one)];
        version(&mut three);
        for (generation, bytes) in [(1, 1), (2, 2)] {
            put(&mut index, "agents/pins", generation, bytes);
            assert!(one.has_changed().unwrap());
            versions.push(version(&mut one));
        }
        assert!(versions[0] != versions[1] && versions[1] != versions[2]);
        // The same again, others, and those that no policy names.
        put(&mut index, "agents/pins", 2, 2);
        put(&mut index, "agents/other", 1, 1);
        put(&mut index, "tools/pins", 1, 1);
        assert!(!one.has_changed().unwrap() && !three.has_changed().unwrap());
        index.apply(ClusterEvent::PinsGone(pins_key("agents/pins")));
        assert_eq!(version(&mut one), versions[0]);
        assert!(!three.has_changed().unwrap());
        // A list is a change too.
        index.apply(ClusterEvent::AllPins(BTreeMap::from([pins_entry("agents/pins", 2, 2)])));
        assert_eq!(version(&mut one), versions[2]);
    }

    #[test]
    fn pods_of_the_same_policies_share_one_snapshot_with_them() {
        let mut index = cluster();
        apply(&mut index, entry("agents/p", 1, PINNED));
        put(&mut index, "agents/pins", 1, 700_000);
        let prepared = |receiver: &watch::Receiver<CurrentSnapshot>| receiver.borrow().clone().unwrap();
        let one = index.subscribe(&key("agents/one"), "u1").unwrap();
        let two = index.subscribe(&key("agents/two"), "u2").unwrap();
        assert!(Arc::ptr_eq(&prepared(&one), &prepared(&two)));
        put(&mut index, "agents/pins", 2, 700_000);
        assert!(Arc::ptr_eq(&prepared(&one), &prepared(&two)));
    }

    #[test]
    fn texts_are_left_out_of_a_line_that_no_sidecar_would_take() {
        let mut index = cluster();
        let server = |at: u8| format!("{{name: s{at}, url: 'http://s/mcp', pins: {{name: pins{at}}}}}");
        apply(&mut index, entry("agents/p", 1, &format!("{{servers: [{}, {}]}}", server(0), server(1))));
        put(&mut index, "agents/pins0", 1, LONGEST_LINE / 2 - 1000);
        put(&mut index, "agents/pins1", 1, LONGEST_LINE / 2 - 1000);
        let whole = of(&mut index, "agents/one", "u1");
        assert_eq!((whole.len(), whole[0].spec.tools[0].parts[0].cut), (2, false));
        put(&mut index, "agents/pins1", 2, LONGEST_LINE / 2 + 1000);
        let short = of(&mut index, "agents/one", "u1");
        assert!(index.snapshot(&key("agents/one"), "u1").unwrap().line.len() < 2000);
        let (before, after) = (&whole[0].spec.tools[0], &short[0].spec.tools[0]);
        assert_eq!((&short[0].name, before.digests()), (&whole[0].name, after.digests()));
        assert!(after.parts.iter().all(|part| part.text.is_empty()));
        assert_eq!(after.parts.iter().map(|part| part.cut).collect::<Vec<_>>(), [true, false]);
    }

    #[test]
    fn the_status_says_that_no_sidecar_takes_a_line_that_is_too_long() {
        let mut index = cluster();
        apply(&mut index, entry("agents/p", 1, PINNED));
        let key = pins_key("agents/pins");
        // What is left of pins without texts.
        let tools = vec![PinnedTool { name: "x".repeat(LONGEST_LINE), parts: Vec::new() }];
        let spec = MCPToolPinsSpec { server: "s".to_owned(), tools };
        let pins = ToolPins { namespace: key.namespace.clone(), name: key.name.clone(), spec };
        index.apply(ClusterEvent::Pins(key, PinsEntry::new("uid".to_owned(), 1, &pins)));
        let all = status::desired(&mut index, &Tallies::new(), &CompileOptions::default(), &StoreHealth::Absent);
        let (reason, message) = all.values().next().unwrap().programmed.clone();
        assert_eq!(reason, Programmed::Pending);
        assert!(message.ends_with("have 9 MiB, and a sidecar takes 8 MiB: split them, or remove some."), "{message}");
    }
}

/// A policy that holds its server to pins.
const PINNED: &str = "{servers: [{name: s, url: 'http://s/mcp', pins: {name: pins}}]}";

fn pins_key(name: &str) -> PinsKey {
    let PodKey { namespace, name } = key(name);
    PinsKey { namespace, name }
}

/// Pins `namespace/name` of one tool, with texts of so many bytes. The digests are those of the generation.
fn pins_entry(name: &str, generation: i64, bytes: usize) -> (PinsKey, PinsEntry) {
    let key = pins_key(name);
    let part = |part, text| PinnedPart { part, sha256: format!("{generation:0>64}"), text, cut: false };
    let parts = vec![part(ToolPart::Description, "x".repeat(bytes)), part(ToolPart::Icons, String::new())];
    let spec = MCPToolPinsSpec { server: "s".to_owned(), tools: vec![PinnedTool { name: "t".to_owned(), parts }] };
    let pins = ToolPins { namespace: key.namespace.clone(), name: key.name.clone(), spec };
    (key, PinsEntry::new(format!("uid of {name}"), generation, &pins))
}

/// One of the events of a small cluster, by three numbers.
fn event((kind, which, how): (u8, usize, usize)) -> ClusterEvent {
    let namespace = ["a", "b", "c"][which].to_owned();
    let pod_key = PodKey { namespace: namespace.clone(), name: "pod".to_owned() };
    let pins = |generation| pins_entry(&format!("{namespace}/pins"), generation, 1);
    let label = ["team=x", "team=y", ""][how];
    let selector = ["{}", "{matchLabels: {team: x}}", "{matchExpressions: [{key: team, operator: DoesNotExist}]}"][how];
    let generation = i64::try_from(how).unwrap();
    let policy = |(id, entry): (PolicyId, PolicyEntry)| ClusterEvent::Policy(id, Box::new(entry));
    match kind {
        0 => ClusterEvent::Namespace(namespace, labels(label).into()),
        1 => ClusterEvent::NamespaceGone(namespace),
        2 => ClusterEvent::Pod(pod_key, pod("u1", label)),
        3 => ClusterEvent::Pod(pod_key, pod("u2", label)),
        4 => ClusterEvent::PodGone(pod_key),
        5 => policy(entry(&format!("{namespace}/p"), generation, &open(&format!("podSelector: {selector}, ")))),
        6 => policy(entry(&format!("c{which}"), generation, &open(&format!("namespaceSelector: {selector}, ")))),
        7 => policy(entry(&format!("{namespace}/held"), generation, PINNED)),
        8 => policy(entry(
            &format!("d{which}"),
            generation,
            &PINNED.replace("name: pins", &format!("name: pins, namespace: {namespace}")),
        )),
        9 => ClusterEvent::Pins(pins(generation).0, pins(generation).1),
        10 => ClusterEvent::PinsGone(pins(0).0),
        _ => ClusterEvent::PolicyGone(PolicyId { cluster: false, namespace, name: "p".to_owned() }),
    }
}

/// An index that begins with what another knows now.
fn afresh(index: &Index) -> Index {
    let mut fresh = Index::default();
    fresh.apply(ClusterEvent::Pods(index.pods().map(|(key, pod)| (key.clone(), pod.clone())).collect()));
    let namespaces = ["a", "b", "c", "agents", "tools"];
    let known = namespaces.iter().filter_map(|name| Some(((*name).to_owned(), index.namespace(name)?.clone())));
    fresh.apply(ClusterEvent::Namespaces(known.collect()));
    for cluster in [true, false] {
        let all = index.policies().filter(|(id, _)| id.cluster == cluster);
        fresh.apply(ClusterEvent::Policies { cluster, all: all.map(|(id, entry)| (id.clone(), entry.clone())).collect() });
    }
    let keys = namespaces.map(|namespace| pins_key(&format!("{namespace}/pins")));
    let known = keys.into_iter().filter_map(|key| Some((key.clone(), index.pins(&key)?.clone())));
    fresh.apply(ClusterEvent::AllPins(known.collect()));
    fresh
}

proptest! {
    /// Whatever happened in whatever order, a subscriber holds what an index holds that begins with what is there now.
    #[test]
    fn a_subscriber_always_holds_what_a_fresh_index_says(
        events in prop::collection::vec((0_u8..12, 0_usize..3, 0_usize..3), 0..60)
    ) {
        let mut index = cluster();
        let mut receivers: BTreeMap<(PodKey, String), watch::Receiver<CurrentSnapshot>> = BTreeMap::new();
        for numbers in events {
            index.apply(event(numbers));
            let pods: Vec<(PodKey, String)> = index.pods().map(|(key, pod)| (key.clone(), pod.uid.clone())).collect();
            for (key, uid) in &pods {
                let subscribed = index.subscribe(key, uid).expect("the pod is there");
                let held = receivers.entry((key.clone(), uid.clone())).or_insert_with(|| subscribed.clone());
                // A stream that ended is opened again.
                if held.has_changed().is_err() || held.borrow().is_none() {
                    *held = subscribed;
                }
            }
            let mut fresh = afresh(&index);
            for ((key, uid), receiver) in receivers.iter().filter(|(_, receiver)| receiver.has_changed().is_ok()) {
                let (held, expected) = (receiver.borrow().clone(), fresh.snapshot(key, uid));
                let content = |current: &CurrentSnapshot| current.as_ref().map(|prepared| (prepared.version.clone(), prepared.includes.clone()));
                prop_assert_eq!(content(&held), content(&expected));
            }
        }
    }
}

#[test]
fn pods_that_opted_in_and_have_no_sidecar_are_counted_by_why() {
    let mut index = Index::default();
    let on = || labels("toolweir.dev/inject=enabled").into();
    index.apply(ClusterEvent::Namespaces(BTreeMap::from([
        ("agents".to_owned(), on()),
        ("quiet".to_owned(), on()),
        ("plain".to_owned(), Labels::new().into()),
        ("kube-system".to_owned(), on()),
    ])));
    let pod = |text: &str, injected, unfit| Pod { injected, unfit, ..pod("u", text) };
    for (name, pod) in [
        ("agents/injected", pod("", true, None)),
        ("agents/before", pod("", false, None)),
        ("agents/host", pod("", false, Some(SkipReason::HostNetwork))),
        ("agents/out", pod("toolweir.dev/inject=disabled", false, None)),
        ("agents/ends", Pod { ends: true, ..pod("", false, None) }),
        ("plain/other", pod("", false, None)),
        ("plain/in", pod("toolweir.dev/inject=enabled", false, None)),
        ("kube-system/dns", pod("", false, None)),
    ] {
        index.apply(ClusterEvent::Pod(key(name), pod));
    }
    let counts = index.without_sidecar(|namespace| namespace == "kube-system");
    let counts: Vec<(&str, &str, i64)> = counts.iter().map(|((name, why), count)| (name.as_str(), *why, *count)).collect();
    let expected =
        [("agents", "HostNetwork", 1), ("agents", "NotInjected", 1), ("plain", "NotInjected", 1), ("quiet", "NotInjected", 0)];
    assert_eq!(counts, expected);
}

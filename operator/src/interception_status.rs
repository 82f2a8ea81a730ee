//! The condition `InterceptionReady` of a policy that has the TLS of agents to a server opened (`tls: Intercept`): whether the sidecars
//! of its captured pods can.

use toolweir_engine::Policy;

use crate::{
    index::{PodInterception, PodKey, is_intercepted},
    readiness::{NamedPods, ReadyReason, ReadyWords, ServersTally},
};

const WORDS: ReadyWords = ReadyWords {
    sidecars: "sidecars of captured pods",
    can: "open the TLS of agents to its servers",
    fails: "A sidecar cannot open the TLS of agents to a server, and their connections fail",
};

/// What a policy with `tls: Intercept` needs, and which of its pods lack it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InterceptionNeeds {
    /// Its pods with a sidecar whose traffic is captured.
    captured: i32,
    /// Those of them that were created without what an authority of their own needs.
    unprepared: NamedPods,
    /// A server whose TLS stays closed since policies disagree, with what they say.
    refused: Option<String>,
}

impl InterceptionNeeds {
    /// Returns what a policy needs; none where it has nothing opened.
    pub fn of(policy: &Policy) -> Option<Self> {
        policy.spec.servers.iter().any(is_intercepted).then(Self::default)
    }

    /// Looks at a pod that the policy governs and that has a sidecar.
    pub fn add(&mut self, pod: &PodKey, interception: PodInterception) {
        if interception == PodInterception::NotCaptured {
            return;
        }
        self.captured += 1;
        if interception == PodInterception::Unprepared {
            self.unprepared.add(pod);
        }
    }

    /// Notes that the TLS to a server stays closed in a pod, since policies disagree.
    pub fn refuse(&mut self, server: &str, why: &str) {
        let refused = || format!("Policies disagree on the TLS to server {server}, and it stays closed: {why}");
        self.refused.get_or_insert_with(refused);
    }

    /// Returns the reason of the condition and its message. `accepted` is whether the policy holds as it is written.
    pub fn condition(&self, accepted: bool, tally: &ServersTally) -> (ReadyReason, String) {
        if self.captured == 0 {
            return (ReadyReason::NoPods, "It governs no pod with a sidecar whose traffic is captured.".to_owned());
        }
        if let Some(refused) = &self.refused {
            return (ReadyReason::NotReady, refused.clone());
        }
        // Sidecars speak of prepared pods only.
        let mut new_pods = self.unprepared.clone();
        new_pods.extend(tally.new_pods.clone());
        if new_pods.count > 0 {
            let message = format!(
                "{} of {} captured pods have no certificate authority for all its servers, and connections to these fail there: \
                 {new_pods}. A pod gets it when it is created: create these pods anew.",
                new_pods.count.min(self.captured),
                self.captured,
            );
            return (ReadyReason::NewPodsNeeded, message);
        }
        tally.condition(self.captured, accepted, WORDS)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::jiff::Timestamp;
    use toolweir_crds::{
        resource::PolicyStatus,
        stream::{InterceptionReport, InterceptionState},
    };
    use toolweir_engine::CompileOptions;

    use super::*;
    use crate::{
        acks::{self, Acknowledgements, PolicyTally, Tallies},
        index::{ClusterEvent, Index, Pod},
        readiness::fixtures::{apply, cluster, enforce, key},
        shared_store::health::StoreHealth,
        status,
    };

    const OPENED: &str = "{name: s, url: 'https://s.example/mcp', tls: Intercept}";
    const REFUSED: &str = "{name: s, url: 'https://s.example/mcp', tls: Refuse}";
    const SILENT: &str = "{name: s, url: 'https://s.example/mcp'}";

    fn pod(name: &str, interception: PodInterception) -> Pod {
        Pod { uid: format!("uid of {name}"), injected: true, interception, ..Pod::default() }
    }

    fn pods(all: &[(&'static str, PodInterception)]) -> Index {
        let all: Vec<(&str, Pod)> = all.iter().map(|(name, interception)| (*name, pod(name, *interception))).collect();
        cluster(&all)
    }

    fn told(index: &mut Index, tallies: &Tallies, name: &str) -> Option<(ReadyReason, String)> {
        let all = status::desired(index, tallies, &CompileOptions::default(), &StoreHealth::Absent);
        all.into_iter().find(|(id, _)| id.name == name).unwrap().1.interception
    }

    fn report(said: &[(&str, Option<&str>)]) -> InterceptionReport {
        let state = |(server, problem): &(&str, Option<&str>)| InterceptionState {
            server: (*server).to_owned(),
            problem: problem.map(ToOwned::to_owned),
            needs_new_pod: problem.is_some_and(|problem| problem.ends_with("create the pod anew")),
        };
        InterceptionReport { interception: said.iter().map(state).collect() }
    }

    use PodInterception::{NotCaptured, Prepared, Unprepared};

    #[test]
    fn only_a_policy_that_has_tls_opened_has_the_condition() {
        let mut index = pods(&[("one", Prepared)]);
        apply(&mut index, "silent", 1, &[SILENT]);
        apply(&mut index, "refuses", 1, &[&REFUSED.replace("s,", "r,")]);
        assert_eq!((told(&mut index, &Tallies::new(), "silent"), told(&mut index, &Tallies::new(), "refuses")), (None, None));
    }

    #[test]
    fn pods_that_are_not_captured_do_not_count() {
        let mut index = pods(&[("one", NotCaptured)]);
        index.apply(ClusterEvent::Pod(key("two"), Pod { injected: false, ..pod("two", Prepared) }));
        apply(&mut index, "p", 1, &[OPENED]);
        assert_eq!(told(&mut index, &Tallies::new(), "p").unwrap().0, ReadyReason::NoPods);
        index.apply(ClusterEvent::Pod(key("three"), pod("three", Prepared)));
        let promised = "0 of 1 sidecars of captured pods said by now that they can open the TLS of agents to its servers.";
        assert_eq!(told(&mut index, &Tallies::new(), "p"), Some((ReadyReason::Pending, promised.to_owned())));
    }

    #[test]
    fn pods_without_an_authority_for_a_server_are_named_whoever_says_so() {
        let mut index = pods(&[("a", Unprepared), ("b", Prepared), ("c", Unprepared), ("d", Prepared), ("e", NotCaptured)]);
        apply(&mut index, "p", 1, &[OPENED]);
        let mut acks = Acknowledgements::default();
        let needs_new = "the pod's certificate authority has no s.example, which was declared later; create the pod anew";
        for name in ["a", "b", "c", "d"] {
            let stream = enforce(&mut index, &mut acks, name);
            acks.report_interception(stream, None, report(&[("s", (name != "d").then_some(needs_new))]));
        }
        let tallies = acks.tally(&index);
        let (reason, message) = told(&mut index, &tallies, "p").unwrap();
        assert_eq!(reason, ReadyReason::NewPodsNeeded);
        assert_eq!(
            message,
            "3 of 4 captured pods have no certificate authority for all its servers, and connections to these fail there: agents/a, \
             agents/b, agents/c. A pod gets it when it is created: create these pods anew."
        );
        // Of replicas, each says what its streams said.
        let other = acks.tally(&index);
        let sum = acks::sum([tallies, other]);
        assert!(told(&mut index, &sum, "p").unwrap().1.starts_with("4 of 4 captured pods"), "never more than there are");
        for name in ["a", "b", "c"] {
            index.apply(ClusterEvent::Pod(key(name), Pod { ends: true, ..pod(name, Unprepared) }));
        }
        let tallies = acks.tally(&index);
        assert_eq!(told(&mut index, &tallies, "p").unwrap().0, ReadyReason::Ready);
    }

    #[test]
    fn what_a_sidecar_says_counts_for_the_policies_that_have_the_server_opened() {
        let mut index = pods(&[("one", Prepared)]);
        apply(&mut index, "of-s", 1, &[OPENED]);
        apply(&mut index, "of-t", 1, &[&OPENED.replace("s,", "t,").replace("s.", "t.")]);
        apply(&mut index, "silent", 1, &[SILENT]);
        let mut acks = Acknowledgements::default();
        let stream = enforce(&mut index, &mut acks, "one");
        acks.report_interception(stream, None, report(&[("s", Some("the disk is full\n")), ("t", None)]));
        let tallies = acks.tally(&index);
        let promised = "A sidecar cannot open the TLS of agents to a server, and their connections fail: pod agents/one: server s: the disk \
                        is full";
        let (reason, message) = told(&mut index, &tallies, "of-s").unwrap();
        assert_eq!((reason, message.trim_end()), (ReadyReason::NotReady, promised));
        let promised = "All 1 sidecars of captured pods can open the TLS of agents to its servers.";
        assert_eq!(told(&mut index, &tallies, "of-t"), Some((ReadyReason::Ready, promised.to_owned())));
        assert_eq!(told(&mut index, &tallies, "silent"), None);
        // The last report holds, whole.
        acks.report_interception(stream, None, report(&[("s", None)]));
        let tallies = acks.tally(&index);
        assert_eq!(told(&mut index, &tallies, "of-s").unwrap().0, ReadyReason::Ready);
        assert_eq!(told(&mut index, &tallies, "of-t").unwrap().0, ReadyReason::Pending);
        // Nothing was said of a later generation yet.
        apply(&mut index, "of-s", 2, &[OPENED]);
        let tallies = acks.tally(&index);
        assert_eq!(told(&mut index, &tallies, "of-s").unwrap().0, ReadyReason::Pending);
    }

    #[test]
    fn a_policy_that_another_overrules_is_told_by_which() {
        let mut index = pods(&[("one", Prepared), ("two", Unprepared)]);
        apply(&mut index, "a", 1, &[OPENED]);
        apply(&mut index, "b", 1, &["{name: t, url: 'https://t.example/mcp'}", REFUSED]);
        let (reason, message) = told(&mut index, &Tallies::new(), "a").unwrap();
        assert_eq!(reason, ReadyReason::NotReady);
        let promised = "Policies disagree on the TLS to server s, and it stays closed: policy agents/a, spec.servers[0].tls: is Intercept, \
                        but policy agents/b says Refuse";
        assert!(message.starts_with(promised), "{message}");
        assert_eq!(told(&mut index, &Tallies::new(), "b"), None);
    }

    #[test]
    fn the_condition_is_written_with_its_status_and_goes_with_the_last_server() {
        let mut index = pods(&[("one", Prepared)]);
        apply(&mut index, "p", 1, &[OPENED]);
        let desired = |index: &mut Index| {
            let all = status::desired(index, &Tallies::new(), &CompileOptions::default(), &StoreHealth::Absent);
            all.into_values().next().unwrap()
        };
        let (before, now) = (desired(&mut index), Timestamp::UNIX_EPOCH);
        let mut written = PolicyStatus::default();
        for reason in ReadyReason::OF_INTERCEPTION {
            let new = status::DesiredStatus { interception: Some((reason, "why".to_owned())), ..before.clone() };
            written = status::merge(&written, &new, now).unwrap();
            let condition = written.conditions.iter().find(|condition| condition.type_ == "InterceptionReady").unwrap();
            assert_eq!((condition.status.as_str(), condition.reason.as_str()), (reason.status(), reason.as_str()));
        }
        apply(&mut index, "p", 2, &[SILENT]);
        let written = status::merge(&written, &desired(&mut index), now).unwrap();
        assert_eq!(written.conditions.len(), 2);
    }

    #[test]
    fn what_a_replica_publishes_of_a_policy_is_bounded() {
        let names: Vec<String> = (0..100).map(|at| format!("{at:0>253}")).collect();
        let all: Vec<(&str, Pod)> = names.iter().map(|name| (name.as_str(), pod(name, Prepared))).collect();
        let mut index = cluster(&all);
        apply(&mut index, "p", 1, &[OPENED, &OPENED.replace("s,", "t,").replace("s.", "t.")]);
        let mut acks = Acknowledgements::default();
        for name in &names {
            let stream = enforce(&mut index, &mut acks, name);
            acks.report_interception(
                stream,
                None,
                report(&[("s", Some("create the pod anew")), ("t", Some(&"x".repeat(100_000)))]),
            );
        }
        let tallies = acks.tally(&index);
        let tally: &PolicyTally = tallies.values().next().unwrap();
        assert_eq!(tally.interception.new_pods.count, 100);
        assert!(serde_json::to_string(tally).unwrap().len() < 2048);
        let part: BTreeMap<String, PolicyTally> = serde_json::from_str(&serde_json::to_string(&tallies).unwrap()).unwrap();
        assert_eq!(part, tallies);
    }
}

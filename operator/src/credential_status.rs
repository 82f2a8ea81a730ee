//! The condition `CredentialsReady` of a policy that gives a server a credential: whether the sidecars of its pods can use it.

use std::collections::BTreeSet;

use toolweir_engine::Policy;

use crate::{
    credentials::{CREDENTIALS, MountedCredentials, TOKEN_AUDIENCES},
    index::PodKey,
    readiness::{NAMED, NamedPods, ReadyReason, ReadyWords, ServersTally},
};

const WORDS: ReadyWords =
    ReadyWords { sidecars: "sidecars", can: "use them", fails: "A sidecar cannot use a credential, and calls fail there" };

/// What the credentials of one policy need, and which of its pods lack it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialNeeds {
    secret: bool,
    audiences: BTreeSet<String>,
    /// Pods with a sidecar that lacks something.
    lacking: NamedPods,
    /// What some of them lack.
    lacks_secret: bool,
    lacks_audiences: BTreeSet<String>,
    /// A server that nothing reaches since policies disagree on its credential, with what they say.
    closed: Option<String>,
}

impl CredentialNeeds {
    /// Returns what the credentials of a policy need; none where it gives none.
    pub fn of(policy: &Policy) -> Option<Self> {
        let mut credentials = policy.spec.servers.iter().filter_map(|server| server.credential.as_ref()).peekable();
        credentials.peek()?;
        let (mut secret, mut audiences) = (false, BTreeSet::new());
        for credential in credentials {
            secret |= !credential.keys().is_empty();
            audiences.extend(credential.audience().map(|(_, audience)| audience.to_owned()));
        }
        let (lacks_secret, lacks_audiences) = (false, BTreeSet::new());
        Some(Self { secret, audiences, lacking: NamedPods::default(), lacks_secret, lacks_audiences, closed: None })
    }

    /// Looks at a pod that the policy governs and that has a sidecar.
    pub fn add(&mut self, pod: &PodKey, mounted: &MountedCredentials) {
        let lacks_secret = self.secret && !mounted.secret;
        let missing = self.audiences.iter().filter(|audience| !mounted.audiences.contains(audience));
        let missing: Vec<String> = missing.cloned().collect();
        if !lacks_secret && missing.is_empty() {
            return;
        }
        self.lacking.add(pod);
        self.lacks_secret |= lacks_secret;
        self.lacks_audiences.extend(missing);
    }

    /// Notes that nothing reaches a server of a pod, since policies disagree on its credential.
    pub fn close(&mut self, server: &str, why: &str) {
        let closed = || format!("Policies disagree on the credential of server {server}, and nothing reaches it: {why}");
        self.closed.get_or_insert_with(closed);
    }

    /// Returns the reason of the condition and its message. `injected` is the number of pods with a sidecar, `accepted` whether the
    /// policy holds as it is written.
    pub fn condition(&self, injected: i32, accepted: bool, tally: &ServersTally) -> (ReadyReason, String) {
        if injected == 0 {
            return (ReadyReason::NoPods, "It governs no pod with a sidecar that could use them.".to_owned());
        }
        if self.lacking.count > 0 {
            return (ReadyReason::NotMounted, self.not_mounted(injected));
        }
        if let Some(closed) = &self.closed {
            return (ReadyReason::NotReady, closed.clone());
        }
        tally.condition(injected, accepted, WORDS)
    }

    fn not_mounted(&self, injected: i32) -> String {
        let (mut lacks, mut set) = (Vec::new(), Vec::new());
        if self.lacks_secret {
            lacks.push("the Secret with the keys".to_owned());
            set.push(CREDENTIALS);
        }
        let audiences: Vec<String> = self.lacks_audiences.iter().take(NAMED).map(|audience| format!("`{audience}`")).collect();
        if !audiences.is_empty() {
            let what = if self.lacks_audiences.len() == 1 { "a token of the audience" } else { "tokens of the audiences" };
            let more = if self.lacks_audiences.len() > NAMED { ", ..." } else { "" };
            lacks.push(format!("{what} {}{more}", audiences.join(", ")));
            set.push(TOKEN_AUDIENCES);
        }
        let annotations = if set.len() == 1 { "the annotation" } else { "the annotations" };
        format!(
            "{} of {injected} sidecars lack {}, and calls fail there: {}. Set {annotations} {} of the pods or their namespace, then \
             create these pods anew.",
            self.lacking.count,
            lacks.join(" and "),
            self.lacking,
            set.join(" and "),
        )
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;
    use toolweir_crds::{
        credential::CredentialKind,
        resource::PolicyStatus,
        stream::{Ack, CredentialReport, CredentialState},
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

    const BEARER: &str = "{name: s, url: 'https://s/mcp', credential: {bearer: {secretKey: token}}}";
    const TOKEN: &str = "{name: t, url: 'https://t/mcp', credential: {serviceAccountToken: {audience: mcp}}}";
    const OPEN: &str = "{name: o, url: 'https://o/mcp'}";

    fn pod(name: &str, secret: bool, audiences: &[&str]) -> Pod {
        let audiences = audiences.iter().map(|audience| (*audience).to_owned()).collect();
        let credentials = MountedCredentials { secret, audiences };
        Pod { uid: format!("uid of {name}"), injected: true, credentials, ..Pod::default() }
    }

    fn told(index: &mut Index, tallies: &Tallies, name: &str) -> Option<(ReadyReason, String)> {
        let all = status::desired(index, tallies, &CompileOptions::default(), &StoreHealth::Absent);
        all.into_iter().find(|(id, _)| id.name == name).unwrap().1.credentials
    }

    fn report(said: &[(&str, Option<&str>)]) -> CredentialReport {
        let state = |(server, problem): &(&str, Option<&str>)| CredentialState {
            server: (*server).to_owned(),
            kind: CredentialKind::Bearer,
            problem: problem.map(ToOwned::to_owned),
        };
        CredentialReport { credentials: said.iter().map(state).collect() }
    }

    #[test]
    fn a_policy_without_a_credential_has_no_condition() {
        let mut index = cluster(&[("one", pod("one", false, &[]))]);
        apply(&mut index, "p", 1, &[OPEN]);
        assert_eq!(told(&mut index, &Tallies::new(), "p"), None);
    }

    #[test]
    fn a_policy_without_pods_that_have_a_sidecar_waits_for_them() {
        let mut index = cluster(&[("one", Pod { injected: false, ..pod("one", false, &[]) })]);
        apply(&mut index, "p", 1, &[BEARER]);
        assert_eq!(told(&mut index, &Tallies::new(), "p").unwrap().0, ReadyReason::NoPods);
        index.apply(ClusterEvent::PodGone(key("one")));
        assert_eq!(told(&mut index, &Tallies::new(), "p").unwrap().0, ReadyReason::NoPods);
    }

    #[test]
    fn pods_that_lack_a_mount_are_named_with_what_to_do() {
        let lacks = |name: &'static str| (name, pod(name, false, &["other"]));
        let mut index = cluster(&[lacks("a"), lacks("b"), lacks("c"), lacks("d"), ("has", pod("has", true, &["other", "mcp"]))]);
        apply(&mut index, "p", 1, &[BEARER, TOKEN, OPEN]);
        let (reason, message) = told(&mut index, &Tallies::new(), "p").unwrap();
        assert_eq!(reason, ReadyReason::NotMounted);
        assert_eq!(
            message,
            "4 of 5 sidecars lack the Secret with the keys and a token of the audience `mcp`, and calls fail there: agents/a, agents/b, \
             agents/c, .... Set the annotations toolweir.dev/credentials and toolweir.dev/token-audiences of the pods or their namespace, \
             then create these pods anew."
        );
        // Only what its own credentials need counts.
        apply(&mut index, "of-token", 1, &[&TOKEN.replace("t,", "u,")]);
        let (reason, message) = told(&mut index, &Tallies::new(), "of-token").unwrap();
        assert_eq!(reason, ReadyReason::NotMounted);
        assert!(
            message.contains("lack a token of the audience `mcp`, and")
                && message.contains("Set the annotation toolweir.dev/token-a")
        );
        // A pod that ends is not counted.
        for name in ["a", "b", "c", "d"] {
            index.apply(ClusterEvent::Pod(key(name), Pod { ends: true, ..pod(name, false, &[]) }));
        }
        assert_eq!(told(&mut index, &Tallies::new(), "p").unwrap().0, ReadyReason::Pending);
    }

    #[test]
    fn sidecars_that_have_not_reported_are_waited_for_and_then_it_is_ready() {
        let mut index = cluster(&[("one", pod("one", true, &[])), ("two", pod("two", true, &[]))]);
        apply(&mut index, "p", 1, &[BEARER]);
        let mut acks = Acknowledgements::default();
        let (one, two) = (enforce(&mut index, &mut acks, "one"), enforce(&mut index, &mut acks, "two"));
        acks.report_credentials(one, None, report(&[("s", None)]));
        let tallies = acks.tally(&index);
        let (reason, message) = told(&mut index, &tallies, "p").unwrap();
        assert_eq!((reason, message.as_str()), (ReadyReason::Pending, "1 of 2 sidecars said by now that they can use them."));
        acks.report_credentials(two, None, report(&[("s", None), ("unknown", Some("no matter"))]));
        let tallies = acks.tally(&index);
        assert_eq!(told(&mut index, &tallies, "p"), Some((ReadyReason::Ready, "All 2 sidecars can use them.".to_owned())));
        // A new generation that is not enforced yet, and one with a server of which nothing was said.
        apply(&mut index, "p", 2, &[BEARER, &BEARER.replace("s,", "r,")]);
        let tallies = acks.tally(&index);
        assert_eq!(told(&mut index, &tallies, "p").unwrap().0, ReadyReason::Pending);
        enforce(&mut index, &mut acks, "one");
        let tallies = acks.tally(&index);
        assert_eq!(told(&mut index, &tallies, "p").unwrap().0, ReadyReason::Pending);
    }

    #[test]
    fn a_problem_concerns_the_policies_that_give_the_server_its_credential() {
        let mut index = cluster(&[("one", pod("one", true, &["mcp"]))]);
        apply(&mut index, "of-s", 1, &[BEARER]);
        apply(&mut index, "of-t", 1, &[TOKEN]);
        apply(&mut index, "only-names-s", 1, &["{name: s}"]);
        let mut acks = Acknowledgements::default();
        let stream = enforce(&mut index, &mut acks, "one");
        let long = format!("key `token` is missing\n{}", "x".repeat(1000));
        acks.report_credentials(stream, None, report(&[("s", Some(&long)), ("s", None), ("t", None)]));
        let tallies = acks.tally(&index);
        let (reason, message) = told(&mut index, &tallies, "of-s").unwrap();
        assert_eq!(reason, ReadyReason::NotReady);
        assert!(
            message.contains("calls fail there: pod agents/one: server s: key `token` is missing x") && message.len() < 700,
            "{message}"
        );
        assert_eq!(told(&mut index, &tallies, "of-t").unwrap().0, ReadyReason::Ready);
        assert_eq!(told(&mut index, &tallies, "only-names-s"), None);
        // The last report holds, whole.
        acks.report_credentials(stream, None, report(&[("s", None)]));
        let tallies = acks.tally(&index);
        assert_eq!(told(&mut index, &tallies, "of-s").unwrap().0, ReadyReason::Ready);
        assert_eq!(told(&mut index, &tallies, "of-t").unwrap().0, ReadyReason::Pending);
        acks.close(stream);
        let tallies = acks.tally(&index);
        assert_eq!(told(&mut index, &tallies, "of-s").unwrap().0, ReadyReason::Pending);
    }

    #[test]
    fn policies_that_disagree_on_the_credential_of_a_server_are_both_told() {
        let mut index = cluster(&[("one", pod("one", true, &[]))]);
        apply(&mut index, "a", 1, &[OPEN, BEARER]);
        apply(&mut index, "b", 1, &[&BEARER.replace("token", "another")]);
        apply(&mut index, "c", 1, &[&BEARER.replace("s,", "r,")]);
        for name in ["a", "b"] {
            let (reason, message) = told(&mut index, &Tallies::new(), name).unwrap();
            assert_eq!(reason, ReadyReason::NotReady);
            let promised = "Policies disagree on the credential of server s, and nothing reaches it: policy agents/b, \
                            spec.servers[0].credential: differs from that of the older policy agents/a";
            assert!(message.starts_with(promised), "{message}");
        }
        assert_eq!(told(&mut index, &Tallies::new(), "c").unwrap().0, ReadyReason::Pending);
        let all = status::desired(&mut index, &Tallies::new(), &CompileOptions::default(), &StoreHealth::Absent);
        let accepted = |name: &str| all.iter().find(|(id, _)| id.name == name).unwrap().1.accepted.0;
        assert_eq!((accepted("a"), accepted("b")), (status::Accepted::Accepted, status::Accepted::Conflicted));
    }

    #[test]
    fn a_report_that_comes_before_the_policies_are_sent_or_known_counts_once_they_are() {
        let mut index = cluster(&[("one", pod("one", true, &[]))]);
        let mut acks = Acknowledgements::default();
        let stream = acks.open(key("one"), "uid of one".to_owned());
        let strangers: Vec<String> = (0..60).map(|at| format!("stranger-{at}")).collect();
        let mut said: Vec<(&str, Option<&str>)> = vec![("s", None)];
        said.extend(strangers.iter().map(|name| (name.as_str(), None)));
        acks.report_credentials(stream, None, report(&said));
        apply(&mut index, "p", 1, &[BEARER]);
        let prepared = index.snapshot(&key("one"), "uid of one").unwrap();
        acks.sent(stream, &prepared);
        assert!(acks.acknowledge(stream, Ack { version: prepared.version.clone(), problems: Vec::new() }));
        let tallies = acks.tally(&index);
        assert_eq!(told(&mut index, &tallies, "p").unwrap().0, ReadyReason::Ready);
        // Of strangers a few are kept, of those that the pod's policies name all.
        let servers: Vec<String> = strangers.iter().map(|name| BEARER.replace("{name: s", &format!("{{name: {name}"))).collect();
        apply(&mut index, "p", 2, &servers.iter().map(String::as_str).collect::<Vec<_>>());
        enforce(&mut index, &mut acks, "one");
        let tallies = acks.tally(&index);
        assert_eq!(told(&mut index, &tallies, "p").unwrap().0, ReadyReason::Pending);
        let current = index.snapshot(&key("one"), "uid of one").unwrap();
        let later = acks.open(key("one"), "uid of one".to_owned());
        acks.report_credentials(later, Some(&current), report(&said));
        acks.sent(later, &current);
        assert!(acks.acknowledge(later, Ack { version: current.version.clone(), problems: Vec::new() }));
        let tallies = acks.tally(&index);
        assert_eq!(told(&mut index, &tallies, "p").unwrap().0, ReadyReason::Ready);
    }

    #[test]
    fn replicas_of_other_versions_understand_each_other() {
        let old = r#"{"generation":1,"acknowledged":2}"#;
        let read: PolicyTally = serde_json::from_str(old).unwrap();
        assert_eq!((read.acknowledged, read.credentials.is_empty(), read.interception.is_empty()), (2, true, true));
        // What has nothing of servers is written as before.
        assert_eq!(serde_json::to_string(&read).unwrap(), old);
        let part = |ready, problem: Option<&str>| {
            let problem = problem.map(ToOwned::to_owned);
            let tally = PolicyTally { credentials: ServersTally { ready, problem, ..ServersTally::default() }, ..read.clone() };
            let written = serde_json::to_string(&Tallies::from([("p".to_owned(), tally)])).unwrap();
            serde_json::from_str::<Tallies>(&written).unwrap()
        };
        let total = acks::sum([part(1, Some("b")), part(2, Some("a")), part(0, None)]);
        assert_eq!((total["p"].credentials.ready, total["p"].credentials.problem.as_deref()), (3, Some("a")));
    }

    #[test]
    fn the_condition_is_written_with_its_status_and_goes_with_the_last_credential() {
        let mut index = cluster(&[("one", pod("one", true, &[]))]);
        apply(&mut index, "p", 1, &[BEARER]);
        let desired = |index: &mut Index| {
            let all = status::desired(index, &Tallies::new(), &CompileOptions::default(), &StoreHealth::Absent);
            all.into_values().next().unwrap()
        };
        let before = desired(&mut index);
        let now = Timestamp::UNIX_EPOCH;
        let mut written = PolicyStatus::default();
        for reason in ReadyReason::OF_CREDENTIALS {
            let new = status::DesiredStatus { credentials: Some((reason, "why".to_owned())), ..before.clone() };
            written = status::merge(&written, &new, now).unwrap();
            let condition = written.conditions.iter().find(|condition| condition.type_ == "CredentialsReady").unwrap();
            assert_eq!((condition.status.as_str(), condition.reason.as_str()), (reason.status(), reason.as_str()));
            assert_eq!(status::merge(&written, &new, now), None);
        }
        apply(&mut index, "p", 2, &[OPEN]);
        let written = status::merge(&written, &desired(&mut index), now).unwrap();
        assert_eq!(written.conditions.len(), 2);
    }
}

//! What the conditions `CredentialsReady` and `InterceptionReady` have in common: both say whether the sidecars of a policy's pods can
//! do something for some of its servers.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Deserialize, Serialize};

use crate::index::PodKey;

/// The most pods that a message names.
pub const NAMED: usize = 3;

/// The reasons of the two conditions. A closed set for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadyReason {
    /// Every sidecar can.
    Ready,
    /// Some sidecar lacks the mount of the Secret or of a token, which only a new pod gets.
    NotMounted,
    /// Some pod has no authority of its own for a server, which only a new pod gets.
    NewPodsNeeded,
    /// Some sidecar cannot, or policies disagree.
    NotReady,
    /// Some sidecar has not reported yet.
    Pending,
    /// There is no pod whose sidecar could.
    NoPods,
}

impl ReadyReason {
    /// Every reason of the condition `CredentialsReady`.
    pub const OF_CREDENTIALS: [Self; 5] = [Self::Ready, Self::NotMounted, Self::NotReady, Self::Pending, Self::NoPods];
    /// Every reason of the condition `InterceptionReady`.
    pub const OF_INTERCEPTION: [Self; 5] = [Self::Ready, Self::NewPodsNeeded, Self::NotReady, Self::Pending, Self::NoPods];

    /// Returns the reason as the conditions have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::NotMounted => "NotMounted",
            Self::NewPodsNeeded => "NewPodsNeeded",
            Self::NotReady => "NotReady",
            Self::Pending => "Pending",
            Self::NoPods => "NoPods",
        }
    }

    /// Returns the status of the conditions.
    pub fn status(self) -> &'static str {
        match self {
            Self::Ready => "True",
            Self::NotMounted | Self::NewPodsNeeded | Self::NotReady => "False",
            Self::Pending | Self::NoPods => "Unknown",
        }
    }
}

/// Pods that are counted, and of which a message names some: the first by name, in whatever order they come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedPods {
    /// How many there are.
    pub count: i32,
    first: BTreeSet<String>,
}

impl NamedPods {
    /// Counts a pod that is not among them yet.
    pub fn add(&mut self, pod: &PodKey) {
        self.count += 1;
        self.name([pod.to_string()]);
    }

    /// Counts others that are not among them.
    pub fn extend(&mut self, others: Self) {
        self.count += others.count;
        self.name(others.first);
    }

    fn name(&mut self, pods: impl IntoIterator<Item = String>) {
        self.first.extend(pods);
        while self.first.len() > NAMED {
            self.first.pop_last();
        }
    }
}

impl fmt::Display for NamedPods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named: Vec<&str> = self.first.iter().map(String::as_str).collect();
        let more = if usize::try_from(self.count).is_ok_and(|count| count > NAMED) { ", ..." } else { "" };
        write!(f, "{}{more}", named.join(", "))
    }
}

/// What a sidecar said last of one server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SaidOfServer {
    /// It can.
    Ready,
    /// It cannot, and a new pod could.
    NewPodNeeded,
    /// It cannot, and why.
    Problem(String),
}

/// What the sidecars of a policy's pods said of its servers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServersTally {
    /// Pods whose sidecar can for all servers.
    pub ready: i32,
    /// Why a sidecar cannot for one, with its pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Pods that must be created anew for one.
    #[serde(default)]
    pub new_pods: NamedPods,
}

impl ServersTally {
    /// Returns whether nothing was said.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Counts what the sidecar of a pod said of these servers.
    pub fn add(&mut self, pod: &PodKey, servers: &[String], said: &BTreeMap<String, SaidOfServer>) {
        let problem = |server: &String| match said.get(server)? {
            SaidOfServer::Problem(why) => Some(format!("pod {pod}: server {server}: {why}")),
            SaidOfServer::Ready | SaidOfServer::NewPodNeeded => None,
        };
        first(&mut self.problem, servers.iter().filter_map(problem));
        if servers.iter().any(|server| said.get(server) == Some(&SaidOfServer::NewPodNeeded)) {
            self.new_pods.add(pod);
        }
        self.ready += i32::from(servers.iter().all(|server| said.get(server) == Some(&SaidOfServer::Ready)));
    }

    /// Adds what sidecars of another replica said.
    pub fn merge(&mut self, other: Self) {
        self.ready += other.ready;
        self.new_pods.extend(other.new_pods);
        first(&mut self.problem, other.problem);
    }

    /// Returns the reason and the message of a condition, once there is nothing that the operator sees for itself. `pods` is the number
    /// of pods whose sidecar is to say so, `accepted` whether the policy holds as it is written.
    pub fn condition(&self, pods: i32, accepted: bool, words: ReadyWords) -> (ReadyReason, String) {
        let ReadyWords { sidecars, can, fails } = words;
        if let Some(problem) = &self.problem {
            return (ReadyReason::NotReady, format!("{fails}: {problem}"));
        }
        // Two replicas may count a pod both, for the moment in which it changes from one to the other.
        let ready = self.ready.min(pods);
        if ready < pods {
            let hint = if accepted { "" } else { " See the condition Accepted too." };
            return (ReadyReason::Pending, format!("{ready} of {pods} {sidecars} said by now that they can {can}.{hint}"));
        }
        (ReadyReason::Ready, format!("All {pods} {sidecars} can {can}."))
    }
}

/// The words of a condition.
#[derive(Clone, Copy, Debug)]
pub struct ReadyWords {
    /// Whose say it is.
    pub sidecars: &'static str,
    /// What they can.
    pub can: &'static str,
    /// That one cannot, and what fails.
    pub fails: &'static str,
}

/// Keeps the first of some texts by name, so that it does not change with the order of a map.
pub fn first(held: &mut Option<String>, said: impl IntoIterator<Item = String>) {
    *held = held.take().into_iter().chain(said).min();
}

/// A cluster of one namespace, for the tests of both conditions.
#[cfg(test)]
pub(crate) mod fixtures {
    use toolweir_crds::{read_documents, resource::PolicyStatus, stream::Ack};
    use toolweir_engine::CompileOptions;

    use super::*;
    use crate::{
        acks::Acknowledgements,
        index::{ClusterEvent, Index, Pod, PolicyEntry},
        inject::NamespaceInfo,
    };

    pub fn key(name: &str) -> PodKey {
        PodKey { namespace: "agents".to_owned(), name: name.to_owned() }
    }

    /// A namespace whose pods are these.
    pub fn cluster(pods: &[(&str, Pod)]) -> Index {
        let mut index = Index::default();
        index.apply(ClusterEvent::Namespaces(BTreeMap::from([("agents".to_owned(), NamespaceInfo::default())])));
        index.apply(ClusterEvent::Pods(pods.iter().map(|(name, pod)| (key(name), pod.clone())).collect()));
        for cluster in [true, false] {
            index.apply(ClusterEvent::Policies { cluster, all: BTreeMap::new() });
        }
        index.apply(ClusterEvent::AllPins(BTreeMap::new()));
        index
    }

    /// Applies a policy with these servers.
    pub fn apply(index: &mut Index, name: &str, generation: i64, servers: &[&str]) {
        let text = format!(
            "{{apiVersion: toolweir.dev/v1alpha1, kind: MCPPolicy, metadata: {{name: {name}, namespace: agents}}, spec: {{servers: [{}]}}}}",
            servers.join(", ")
        );
        let document = read_documents("test", &text).unwrap_or_else(|errors| panic!("{errors:?}")).remove(0).document;
        let options = CompileOptions::default();
        let entry = PolicyEntry::new(format!("uid of {name}"), generation, document, PolicyStatus::default(), &options);
        index.apply(ClusterEvent::Policy(entry.policy.id.clone(), Box::new(entry)));
    }

    /// A stream of a pod that enforces what holds for it now.
    pub fn enforce(index: &mut Index, acks: &mut Acknowledgements, name: &str) -> u64 {
        let uid = format!("uid of {name}");
        let stream = acks.open(key(name), uid.clone());
        let prepared = index.snapshot(&key(name), &uid).unwrap();
        acks.sent(stream, &prepared);
        assert!(acks.acknowledge(stream, Ack { version: prepared.version.clone(), problems: Vec::new() }));
        stream
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods(numbers: impl IntoIterator<Item = u32>) -> NamedPods {
        let mut pods = NamedPods::default();
        for number in numbers {
            pods.add(&PodKey { namespace: "a".to_owned(), name: format!("p{number}") });
        }
        pods
    }

    #[test]
    fn the_pods_that_are_named_do_not_change_with_their_order() {
        assert_eq!(pods([]).to_string(), "");
        assert_eq!(pods([3, 1, 2]).to_string(), "a/p1, a/p2, a/p3");
        assert_eq!(pods([4, 3, 2, 1]).to_string(), "a/p1, a/p2, a/p3, ...");
        let mut both = pods([5, 3]);
        both.extend(pods([4, 1]));
        assert_eq!((both.count, both.to_string().as_str()), (4, "a/p1, a/p3, a/p4, ..."));
        let mut other = pods([4, 1]);
        other.extend(pods([3, 5]));
        assert_eq!(both, other);
    }
}

//! The next line of a policy stream: a function of what was sent on it and what holds now. Plain data, no I/O.

use std::sync::Arc;

use toolweir_crds::{approval_request::ApprovalNews, stream::SharedStore};

use crate::{index::PreparedSnapshot, shared_store::health::SidecarStore};

/// What a sidecar should have.
#[derive(Clone, Debug)]
pub struct StreamContent {
    /// The authorities to trust, in PEM.
    pub trust: Arc<str>,
    /// The shared store.
    pub store: SidecarStore,
    /// The policies of its pod.
    pub snapshot: Arc<PreparedSnapshot>,
    /// What is known of its requests for approval; none where it asks nobody.
    pub approvals: Option<Arc<ApprovalNews>>,
}

/// The last lines that were sent on one stream.
#[derive(Debug, Default)]
pub struct SentContent {
    trust: Option<Arc<str>>,
    store: SentStore,
    /// The policies, unless they have to be sent again.
    snapshot: Option<Arc<PreparedSnapshot>>,
    /// True once policies of this stream counted across pods. The store then stays until the stream ends.
    shares: bool,
    approvals: Option<Arc<ApprovalNews>>,
}

/// The last line of the shared store.
#[derive(Debug, Default, PartialEq)]
enum SentStore {
    /// None was sent yet.
    #[default]
    NotYet,
    /// This store, or that there is none.
    Sent(Option<Arc<SharedStore>>),
}

/// A line for a sidecar.
#[derive(Clone, Debug)]
pub enum NextLine {
    /// The authorities to trust, in PEM.
    Trust(Arc<str>),
    /// The shared store, or that there is none.
    Store(Option<Arc<SharedStore>>),
    /// The policies.
    Snapshot(Arc<PreparedSnapshot>),
    /// What is known of requests for approval.
    Approvals(Arc<ApprovalNews>),
}

impl SentContent {
    /// Returns the line that has to be sent next; `None` if the sidecar has everything.
    ///
    /// The authorities come first, then the store, with which policies are compiled, then the policies, then what was decided: an approval
    /// never comes before the change of a policy that voids it. Only sidecars whose
    /// policies count across pods get the store: the password is in it.
    pub fn next(&self, desired: &StreamContent) -> Option<NextLine> {
        if self.trust.as_ref() != Some(&desired.trust) {
            return Some(NextLine::Trust(Arc::clone(&desired.trust)));
        }
        let store = match &desired.store {
            SidecarStore::Unread if self.shares(desired) => None,
            SidecarStore::At(store) if self.shares(desired) => Some(Some(Arc::clone(store))),
            SidecarStore::Unread | SidecarStore::Nowhere | SidecarStore::At(_) => Some(None),
        };
        if let Some(store) = store
            && !matches!(&self.store, SentStore::Sent(sent) if *sent == store)
        {
            return Some(NextLine::Store(store));
        }
        let is_sent = self.snapshot.as_ref().is_some_and(|sent| Arc::ptr_eq(sent, &desired.snapshot));
        if !is_sent {
            return Some(NextLine::Snapshot(Arc::clone(&desired.snapshot)));
        }
        let news = desired.approvals.as_ref()?;
        let is_told = self.approvals.as_ref().is_some_and(|told| Arc::ptr_eq(told, news));
        (!is_told).then(|| NextLine::Approvals(Arc::clone(news)))
    }

    /// Records a line as sent. Policies have to be sent again once there is a store, or none any more: sidecars compile them with it.
    pub fn record(&mut self, line: &NextLine) {
        match line {
            NextLine::Trust(trust) => self.trust = Some(Arc::clone(trust)),
            NextLine::Store(store) => {
                if !matches!(&self.store, SentStore::Sent(sent) if sent.is_some() == store.is_some()) {
                    self.snapshot = None;
                }
                self.shares |= store.is_some();
                self.store = SentStore::Sent(store.clone());
            }
            NextLine::Snapshot(snapshot) => {
                self.shares |= snapshot.shares;
                self.snapshot = Some(Arc::clone(snapshot));
            }
            NextLine::Approvals(news) => self.approvals = Some(Arc::clone(news)),
        }
    }

    fn shares(&self, desired: &StreamContent) -> bool {
        self.shares || desired.snapshot.shares
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(shares: bool) -> Arc<PreparedSnapshot> {
        let mut snapshot = PreparedSnapshot::new(Vec::new(), &[], &[]);
        snapshot.shares = shares;
        Arc::new(snapshot)
    }

    fn at(url: &str) -> SidecarStore {
        SidecarStore::At(Arc::new(SharedStore {
            url: url.to_owned(),
            username: None,
            password: None,
            ca: None,
            prefix: "p".to_owned(),
            leases: true,
            budget_milliseconds: 50,
        }))
    }

    fn desired(trust: &str, store: SidecarStore, snapshot: &Arc<PreparedSnapshot>) -> StreamContent {
        StreamContent { trust: trust.into(), store, snapshot: Arc::clone(snapshot), approvals: None }
    }

    /// Sends whatever is next until nothing is, and returns it in short.
    fn drain(sent: &mut SentContent, desired: &StreamContent) -> String {
        let mut lines = Vec::new();
        while let Some(line) = sent.next(desired) {
            sent.record(&line);
            lines.push(match line {
                NextLine::Trust(trust) => format!("trust {trust}"),
                NextLine::Store(store) => format!("store {}", store.map_or_else(|| "none".to_owned(), |store| store.url.clone())),
                NextLine::Snapshot(snapshot) => format!("snapshot {}", Arc::ptr_eq(&snapshot, &desired.snapshot)),
                NextLine::Approvals(news) => format!("approvals {}", news.approvals.len()),
            });
            assert!(lines.len() < 4, "{lines:?}");
        }
        lines.join(", ")
    }

    #[test]
    fn a_stream_begins_with_trust_store_and_policies_in_this_order() {
        for (store, shares, lines) in [
            (SidecarStore::Nowhere, false, "trust a, store none, snapshot true"),
            (SidecarStore::Nowhere, true, "trust a, store none, snapshot true"),
            (at("one"), true, "trust a, store one, snapshot true"),
            // The password goes to nobody who does not need it.
            (at("one"), false, "trust a, store none, snapshot true"),
            // A store that was not read yet is taken from no sidecar.
            (SidecarStore::Unread, true, "trust a, snapshot true"),
            (SidecarStore::Unread, false, "trust a, store none, snapshot true"),
        ] {
            let mut sent = SentContent::default();
            let all = desired("a", store, &snapshot(shares));
            assert_eq!(drain(&mut sent, &all), lines);
            assert_eq!(drain(&mut sent, &all), "", "{lines}");
        }
    }

    #[test]
    fn what_was_decided_comes_after_the_policies_and_only_when_it_changed() {
        let (first, second) = (snapshot(false), snapshot(false));
        let news = Arc::new(ApprovalNews::default());
        let with = |snapshot: &Arc<PreparedSnapshot>, news: Option<&Arc<ApprovalNews>>| StreamContent {
            approvals: news.cloned(),
            ..desired("a", SidecarStore::Nowhere, snapshot)
        };
        let mut sent = SentContent::default();
        assert_eq!(drain(&mut sent, &with(&first, None)), "trust a, store none, snapshot true");
        assert_eq!(drain(&mut sent, &with(&second, Some(&news))), "snapshot true, approvals 0");
        assert_eq!(drain(&mut sent, &with(&second, Some(&news))), "");
        assert_eq!(drain(&mut sent, &with(&second, Some(&Arc::new(ApprovalNews::default())))), "approvals 0");
    }

    #[test]
    fn only_what_changed_is_sent_and_policies_again_when_a_store_comes_or_goes() {
        let (counts, other) = (snapshot(true), snapshot(false));
        let mut sent = SentContent::default();
        for (desired, lines) in [
            (desired("a", SidecarStore::Unread, &counts), "trust a, snapshot true"),
            (desired("b", SidecarStore::Unread, &counts), "trust b"),
            (desired("b", at("one"), &counts), "store one, snapshot true"),
            (desired("b", at("two"), &counts), "store two"),
            (desired("b", SidecarStore::Unread, &counts), ""),
            // Policies that count nothing across pods any more: the store stays.
            (desired("b", at("two"), &other), "snapshot true"),
            (desired("b", at("three"), &other), "store three"),
            (desired("b", SidecarStore::Nowhere, &other), "store none, snapshot true"),
        ] {
            assert_eq!(drain(&mut sent, &desired), lines);
        }
    }
}

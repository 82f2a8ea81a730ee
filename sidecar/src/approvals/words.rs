//! What an agent is told of a call that a person must approve.

use std::{sync::Arc, time::Duration};

use toolweir_crds::bounds::ASKING_POLICIES;
use toolweir_engine::{Denial, Reason};

/// After how long an agent is told to make its call again.
pub const RETRY: Duration = Duration::from_secs(30);

/// Why nobody can be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unavailable {
    /// Nobody was given a way to decide.
    NoSocket,
    /// The operator has not said that people can be asked.
    NotHeard,
    /// The operator says why.
    Operator(Arc<str>),
    /// More policies ask than one approval can satisfy.
    Policies(usize),
    /// What was asked or decided cannot be kept.
    NotKept,
}

impl Unavailable {
    /// The reason in words, with the remedy: for whoever runs the sidecar or the cluster, not for the model.
    fn words(&self) -> String {
        match self {
            Self::NoSocket => "the sidecar was started without --approvals-socket. Whoever runs it can add that.".to_owned(),
            Self::NotHeard => {
                "the operator has not said yet that people can be asked. If that stays so, whoever runs the cluster finds \
                               the reason in the operator's log."
                    .to_owned()
            }
            Self::Operator(why) => why.to_string(),
            Self::Policies(count) => format!(
                "{count} policies ask for it, and one approval can name {ASKING_POLICIES}. Whoever writes the policies can let fewer \
                 of them ask for one call."
            ),
            Self::NotKept => {
                "the request cannot be written to the sidecar's state folder. Whoever runs the sidecar finds the reason in \
                              its log."
                    .to_owned()
            }
        }
    }
}

/// Makes another denial of that of a policy that asks.
fn instead(of: &Denial, reason: Reason, message: String) -> Denial {
    Denial { reason, message, ask: None, retry_after: None, approval: None, ..of.clone() }
}

/// The call waits for a person who is asked under this name, for so long yet.
pub fn pending(of: &Denial, name: &str, left: Duration) -> Denial {
    let wait = RETRY.min(left).max(Duration::from_secs(1));
    // A second begun is a second, as in `retryAfterSeconds`.
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    let message =
        format!("Waiting for a person: {name}. Make the same call again in {seconds} s; it goes through once it is approved.");
    Denial {
        retry_after: Some(Duration::from_secs(seconds)),
        approval: Some(name.into()),
        ..instead(of, Reason::ApprovalPending, message)
    }
}

/// A person has denied the call, perhaps for a reason.
pub fn denied(of: &Denial, name: &str, reason: Option<&str>) -> Denial {
    let message = match reason.filter(|reason| !reason.is_empty()) {
        Some(reason) => format!("Denied by a person ({name}): {reason}"),
        None => format!("Denied by a person ({name})."),
    };
    Denial { approval: Some(name.into()), ..instead(of, Reason::ApprovalDenied, message) }
}

/// The request has ended without effect, for this reason.
pub fn expired(of: &Denial, name: &str, why: &str) -> Denial {
    let message = format!("Expired ({name}): {why}; make the same call again to ask again.");
    Denial { approval: Some(name.into()), ..instead(of, Reason::ApprovalExpired, message) }
}

/// As many requests wait as may.
pub fn full(of: &Denial, most: usize) -> Denial {
    let (wait, some) = if most == 1 { ("request waits", "it is") } else { ("requests wait", "some of them are") };
    let message = format!(
        "Denied: the call needs the approval of a person, and {most} {wait} for one already, which is as many as may. Make the call \
         again when {some} decided."
    );
    Denial { retry_after: Some(RETRY), ..instead(of, Reason::ApprovalFull, message) }
}

/// Nobody can be asked.
pub fn unavailable(of: &Denial, why: &Unavailable) -> Denial {
    let message = format!("Denied: the call needs the approval of a person, and nobody can be asked: {}", why.words());
    instead(of, Reason::ApprovalUnavailable, message)
}

/// The arguments cannot be approved: two calls could have the same hash.
pub fn not_exact(of: &Denial, why: &impl std::fmt::Display) -> Denial {
    let message = format!("Denied: the call needs the approval of a person, which its arguments cannot have: {why}.");
    instead(of, Reason::Malformed, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_texts_are_those_of_the_docs() {
        let of = Denial {
            policy: Some("agents/bank".into()),
            ..Denial::no_policy("bank", toolweir_engine::Operation::tool("pay_invoice"))
        };
        let name = "agents/pay-invoice-x7k2";
        let waits = pending(&of, name, Duration::from_secs(600));
        assert_eq!(
            waits.message,
            "Waiting for a person: agents/pay-invoice-x7k2. Make the same call again in 30 s; it goes through once it is approved."
        );
        assert_eq!(
            serde_json::to_value(&waits).unwrap(),
            serde_json::json!({"reason": "approval_pending", "policy": "agents/bank", "tool": "pay_invoice", "approval": name,
                "retryAfterSeconds": 30})
        );
        assert_eq!(pending(&of, name, Duration::from_millis(4200)).retry_after, Some(Duration::from_secs(5)));
        assert_eq!(pending(&of, name, Duration::ZERO).retry_after, Some(Duration::from_secs(1)));
        assert_eq!(denied(&of, name, Some("Too much.")).message, "Denied by a person (agents/pay-invoice-x7k2): Too much.");
        assert_eq!(denied(&of, name, None).message, "Denied by a person (agents/pay-invoice-x7k2).");
        assert_eq!(
            expired(&of, name, "nobody decided within 10m").message,
            "Expired (agents/pay-invoice-x7k2): nobody decided within 10m; make the same call again to ask again."
        );
        assert_eq!(full(&of, 5).reason, Reason::ApprovalFull);
        assert!(full(&of, 1).message.contains(" 1 request waits for one already, which is as many as may."));
        for why in [Unavailable::NoSocket, Unavailable::NotHeard, Unavailable::Policies(9), Unavailable::NotKept] {
            let denial = unavailable(&of, &why);
            assert_eq!(denial.reason, Reason::ApprovalUnavailable);
            assert!(denial.message.contains("hoever") && denial.message.ends_with('.'), "{}", denial.message);
        }
    }
}

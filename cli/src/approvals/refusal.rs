//! Why the API server refused a decision, and which line of RBAC helps.

use anyhow::anyhow;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use toolweir_crds::approval_request::ApprovalPolicy;

use super::{
    request::ListedApproval,
    request_text::{policy_name, safe_line},
};

/// The verb that an approver needs on each policy that asks.
pub const VERB: &str = "approve";

/// Returns true if a policy of admission refused a request, not RBAC.
pub fn is_of_admission(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.message.contains("ValidatingAdmissionPolicy"))
}

/// Converts the refusal of a decision by the admission policy to one line that says what is missing and which rule grants it.
pub async fn refused(client: &Client, approval: &ListedApproval, user: &str, error: &kube::Error) -> anyhow::Error {
    let said = match error {
        kube::Error::Api(status) => safe_line(&status.message),
        other => safe_line(&other.to_string()),
    };
    let mut lacking = Vec::new();
    for policy in &approval.spec.policies {
        // Where that cannot be asked, the API server's own words stand alone.
        if may_approve(client, policy).await == Some(false) {
            lacking.push(policy);
        }
    }
    let what = format!("{} is not decided, since the API server refuses it", approval.full_name());
    if lacking.is_empty() {
        return anyhow!("{what}: {said}");
    }
    let names: Vec<String> = lacking.iter().map(|policy| policy_name(policy)).collect();
    let rules: Vec<String> = lacking.iter().map(|policy| grant(policy)).collect();
    anyhow!(
        "{what}: {user} lacks the verb `{VERB}` on {}. Whoever administers the cluster can grant it with the rule {} (docs/approvals.md)",
        names.join(", "),
        rules.join(" and ")
    )
}

fn resource(policy: &ApprovalPolicy) -> &'static str {
    if policy.namespace.is_empty() { "mcpclusterpolicies" } else { "mcppolicies" }
}

/// Returns the rule of a role that grants the right, and where it belongs.
fn grant(policy: &ApprovalPolicy) -> String {
    let place = match policy.namespace.as_str() {
        "" => "a ClusterRole".to_owned(),
        namespace => format!("a Role in namespace {}", safe_line(namespace)),
    };
    let (resource, name) = (resource(policy), safe_line(&policy.name));
    format!("{{apiGroups: [toolweir.dev], resources: [{resource}], resourceNames: [{name}], verbs: [{VERB}]}} of {place}")
}

/// Asks the API server whether this user may approve what a policy asks; nothing if it does not say.
async fn may_approve(client: &Client, policy: &ApprovalPolicy) -> Option<bool> {
    let resource_attributes = ResourceAttributes {
        group: Some("toolweir.dev".to_owned()),
        resource: Some(resource(policy).to_owned()),
        namespace: Some(policy.namespace.clone()).filter(|namespace| !namespace.is_empty()),
        name: Some(policy.name.clone()),
        verb: Some(VERB.to_owned()),
        ..ResourceAttributes::default()
    };
    let spec =
        SelfSubjectAccessReviewSpec { resource_attributes: Some(resource_attributes), ..SelfSubjectAccessReviewSpec::default() };
    let review = SelfSubjectAccessReview { metadata: ObjectMeta::default(), spec, status: None };
    let api: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    Some(api.create(&PostParams::default(), &review).await.ok()?.status?.allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_names_the_policy_and_where_it_belongs() {
        let policy = |namespace: &str| ApprovalPolicy {
            namespace: namespace.to_owned(),
            name: "bank".to_owned(),
            ..ApprovalPolicy::default()
        };
        assert_eq!(
            [grant(&policy("agents")), grant(&policy(""))],
            [
                "{apiGroups: [toolweir.dev], resources: [mcppolicies], resourceNames: [bank], verbs: [approve]} of a Role in namespace agents",
                "{apiGroups: [toolweir.dev], resources: [mcpclusterpolicies], resourceNames: [bank], verbs: [approve]} of a ClusterRole",
            ]
        );
    }
}

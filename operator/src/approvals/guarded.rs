//! Whether the API server checks who decides: a `ValidatingAdmissionPolicy` does, and without it no decision counts. Plain functions, no I/O.

use k8s_openapi::{
    api::admissionregistration::v1::{
        MatchResources, NamedRuleWithOperations, ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
    },
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use toolweir_crds::API_VERSION;

/// What must be so that the decisions of people count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApprovalGuard {
    /// Nobody is asked here.
    Off,
    /// It is not known whether the API server checks decisions, or what was asked; in words with a remedy.
    Unknown(String),
    /// The API server does not check who decides; in words with a remedy.
    Missing(String),
    /// It does.
    Guarded,
}

/// Why nobody is asked where approvals are off.
const OFF: &str = "approvals are off in this cluster; set the value approvals.enabled of the operator's chart to true";
/// The resources that the policy must match: the first when they are created, the second when they are changed.
const MATCHED: [(&str, &str); 2] = [("mcpapprovals", "CREATE"), ("mcpapprovals/status", "UPDATE")];

impl ApprovalGuard {
    /// Returns why nobody can be asked; none where people can.
    pub fn unavailable(&self) -> Option<&str> {
        match self {
            Self::Off => Some(OFF),
            Self::Unknown(why) | Self::Missing(why) => Some(why),
            Self::Guarded => None,
        }
    }

    /// Returns what holds where the policy and its binding of this name are these.
    pub fn of(
        name: &str,
        policy: Option<&ValidatingAdmissionPolicy>,
        binding: Option<&ValidatingAdmissionPolicyBinding>,
    ) -> Self {
        let fault = match (policy, binding) {
            (None, _) => Some("is not there"),
            (Some(policy), _) if !checks_decisions(policy) => Some("does not check decisions in the way of the chart's"),
            (_, None) => Some("has no ValidatingAdmissionPolicyBinding of its name"),
            (_, Some(binding)) if !denies(binding, name) => {
                Some("has a ValidatingAdmissionPolicyBinding that does not deny for it everywhere")
            }
            (Some(_), Some(_)) => None,
        };
        fault.map_or(Self::Guarded, |fault| {
            Self::Missing(format!(
                "the ValidatingAdmissionPolicy {name}, without which nobody checks who decides, {fault}; install it with the operator's \
                 chart (approvals.enabled), on Kubernetes 1.30 or later"
            ))
        })
    }
}

fn checks_decisions(policy: &ValidatingAdmissionPolicy) -> bool {
    let Some(spec) = &policy.spec else { return false };
    let Some(constraints) = &spec.match_constraints else { return false };
    let rules = constraints.resource_rules.as_deref().unwrap_or_default();
    let everywhere = is_everywhere(constraints) && spec.param_kind.is_none();
    let fails_closed = spec.failure_policy.as_deref().is_none_or(|failure| failure == "Fail");
    let matches_all = MATCHED.iter().all(|(resource, operation)| rules.iter().any(|rule| matches(rule, resource, operation)));
    everywhere && fails_closed && matches_all && spec.validations.as_ref().is_some_and(|validations| !validations.is_empty())
}

/// Returns whether constraints leave nothing out of what their rules match.
fn is_everywhere(constraints: &MatchResources) -> bool {
    let selects_all = |selector: &Option<LabelSelector>| selector.as_ref().is_none_or(|all| *all == LabelSelector::default());
    constraints.exclude_resource_rules.as_ref().is_none_or(Vec::is_empty)
        && selects_all(&constraints.namespace_selector)
        && selects_all(&constraints.object_selector)
}

fn matches(rule: &NamedRuleWithOperations, resource: &str, operation: &str) -> bool {
    let (group, version) = API_VERSION.split_once('/').unwrap_or_default();
    let has =
        |list: Option<&Vec<String>>, value: &str| list.is_some_and(|list| list.iter().any(|item| item == value || item == "*"));
    let parent = resource.split('/').next().unwrap_or_default();
    let resources = rule.resources.as_deref().unwrap_or_default();
    // `*` of resources leaves subresources out.
    let named = |item: &String| match item.as_str() {
        "*/*" => true,
        "*" => !resource.contains('/'),
        item => item == resource || item == format!("{parent}/*"),
    };
    has(rule.api_groups.as_ref(), group)
        && has(rule.api_versions.as_ref(), version)
        && has(rule.operations.as_ref(), operation)
        && resources.iter().any(named)
        && rule.resource_names.as_ref().is_none_or(Vec::is_empty)
        && rule.scope.as_deref().is_none_or(|scope| matches!(scope, "*" | "Namespaced"))
}

/// Returns whether a binding has the policy deny, in all namespaces.
fn denies(binding: &ValidatingAdmissionPolicyBinding, name: &str) -> bool {
    let Some(spec) = &binding.spec else { return false };
    let denies = spec.validation_actions.as_ref().is_some_and(|actions| actions.iter().any(|action| action == "Deny"));
    spec.policy_name.as_deref() == Some(name)
        && denies
        && spec.param_ref.is_none()
        && spec
            .match_resources
            .as_ref()
            .is_none_or(|all| is_everywhere(all) && all.resource_rules.as_ref().is_none_or(Vec::is_empty))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn policy() -> Value {
        json!({
            "metadata": {"name": "g"},
            "spec": {
                "failurePolicy": "Fail",
                "matchConstraints": {"resourceRules": [
                    {"apiGroups": ["toolweir.dev"], "apiVersions": ["v1alpha1"], "operations": ["CREATE"], "resources": ["mcpapprovals"]},
                    {"apiGroups": ["toolweir.dev"], "apiVersions": ["*"], "operations": ["UPDATE"], "resources": ["mcpapprovals/status"]},
                ]},
                "validations": [{"expression": "true"}],
            },
        })
    }

    fn binding() -> Value {
        json!({"metadata": {"name": "g"}, "spec": {"policyName": "g", "validationActions": ["Deny", "Audit"]}})
    }

    fn guard(policy: &Value, binding: &Value) -> ApprovalGuard {
        let (policy, binding) =
            (serde_json::from_value(policy.clone()).unwrap(), serde_json::from_value(binding.clone()).unwrap());
        ApprovalGuard::of("g", Some(&policy), Some(&binding))
    }

    #[test]
    fn the_policy_and_its_binding_must_be_there_and_deny() {
        assert_eq!(guard(&policy(), &binding()), ApprovalGuard::Guarded);
        let missing = ApprovalGuard::of("g", None, None);
        let why = missing.unavailable().unwrap();
        assert!(
            why.contains("ValidatingAdmissionPolicy g,") && why.contains("is not there") && why.contains("approvals.enabled"),
            "{why}"
        );
        let there = serde_json::from_value(policy()).unwrap();
        let why = ApprovalGuard::of("g", Some(&there), None);
        assert!(why.unavailable().unwrap().contains("has no ValidatingAdmissionPolicyBinding"), "{why:?}");
    }

    #[test]
    fn one_that_would_let_somebody_decide_unchecked_counts_as_missing() {
        for (pointer, value) in [
            ("/spec/failurePolicy", json!("Ignore")),
            ("/spec/validations", json!([])),
            ("/spec/matchConstraints/resourceRules/0/operations", json!(["UPDATE"])),
            ("/spec/matchConstraints/resourceRules/1/resources", json!(["*"])),
            ("/spec/matchConstraints/resourceRules/1/apiGroups", json!(["example.com"])),
            ("/spec/matchConstraints/resourceRules/1/apiVersions", json!(["v1"])),
            ("/spec/matchConstraints", json!(null)),
        ] {
            let mut policy = policy();
            *policy.pointer_mut(pointer).unwrap() = value;
            assert!(matches!(guard(&policy, &binding()), ApprovalGuard::Missing(_)), "{pointer}");
        }
        let mut named = policy();
        named["spec"]["matchConstraints"]["resourceRules"][0]["resourceNames"] = json!(["one"]);
        assert!(matches!(guard(&named, &binding()), ApprovalGuard::Missing(_)));
        for (field, value) in [
            ("policyName", json!("other")),
            ("validationActions", json!(["Warn", "Audit"])),
            ("matchResources", json!({"namespaceSelector": {"matchLabels": {"a": "b"}}})),
        ] {
            let mut binding = binding();
            binding["spec"][field] = value;
            assert!(matches!(guard(&policy(), &binding), ApprovalGuard::Missing(_)), "{field}");
        }
    }

    /// A policy or binding that leaves some writes out would let these decide unchecked.
    #[test]
    fn one_that_is_not_for_every_request_counts_as_missing() {
        let (some, skipped) = (
            json!({"matchLabels": {"a": "b"}}),
            json!([{"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["*"], "resources": ["*/*"]}]),
        );
        for (pointer, field, value) in [
            ("/spec/matchConstraints", "namespaceSelector", some.clone()),
            ("/spec/matchConstraints", "objectSelector", some.clone()),
            ("/spec/matchConstraints", "excludeResourceRules", skipped.clone()),
            ("/spec/matchConstraints/resourceRules/1", "scope", json!("Cluster")),
            ("/spec", "paramKind", json!({"apiVersion": "v1", "kind": "ConfigMap"})),
        ] {
            let mut policy = policy();
            policy.pointer_mut(pointer).unwrap()[field] = value;
            assert!(matches!(guard(&policy, &binding()), ApprovalGuard::Missing(_)), "{field}");
        }
        for (field, value) in [
            ("paramRef", json!({"name": "none", "parameterNotFoundAction": "Allow"})),
            ("matchResources", json!({"objectSelector": some})),
            ("matchResources", json!({"excludeResourceRules": skipped})),
        ] {
            let mut binding = binding();
            binding["spec"][field] = value;
            assert!(matches!(guard(&policy(), &binding), ApprovalGuard::Missing(_)), "{field}");
        }
        // As the API server fills them in.
        let (mut policy, mut binding) = (policy(), binding());
        let all = json!({"matchPolicy": "Equivalent", "namespaceSelector": {}, "objectSelector": {}});
        policy["spec"]["matchConstraints"].as_object_mut().unwrap().extend(all.as_object().unwrap().clone());
        policy["spec"]["matchConstraints"]["resourceRules"][0]["scope"] = json!("Namespaced");
        binding["spec"]["matchResources"] = all;
        assert_eq!(guard(&policy, &binding), ApprovalGuard::Guarded);
    }

    #[test]
    fn wildcards_of_rules_are_understood() {
        for resources in [json!(["*/*"]), json!(["mcpapprovals", "mcpapprovals/*"]), json!(["mcpapprovals/status", "*"])] {
            let mut policy = policy();
            policy["spec"]["matchConstraints"]["resourceRules"] =
                json!([{"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["*"], "resources": resources}]);
            assert_eq!(guard(&policy, &binding()), ApprovalGuard::Guarded, "{resources}");
        }
    }
}

//! Matches labels against selectors.

use std::collections::BTreeMap;

use crate::{LabelSelector, LabelSelectorRequirement, SelectorOperator};

/// The labels of a pod or namespace.
pub type Labels = BTreeMap<String, String>;

/// Returns whether every requirement holds. A selector without requirements selects everything
/// (Kubernetes API, `LabelSelector`).
pub fn selects(selector: &LabelSelector, labels: &Labels) -> bool {
    selector.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
        && selector.match_expressions.iter().all(|requirement| holds(requirement, labels))
}

fn holds(requirement: &LabelSelectorRequirement, labels: &Labels) -> bool {
    let value = labels.get(&requirement.key);
    let among = |value: &String| requirement.values.contains(value);
    match requirement.operator {
        SelectorOperator::In => value.is_some_and(among),
        SelectorOperator::NotIn => !value.is_some_and(among),
        SelectorOperator::Exists => value.is_some(),
        SelectorOperator::DoesNotExist => value.is_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> Labels {
        text.split_whitespace().filter_map(|pair| pair.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
    }

    fn selector(yaml: &str) -> LabelSelector {
        serde_yaml::from_str(yaml).unwrap()
    }

    #[test]
    fn selects_as_kubernetes_does() {
        for (yaml, text, selected) in [
            ("{}", "", true),
            ("{}", "app=a", true),
            ("{matchLabels: {app: a}}", "app=a tier=b", true),
            ("{matchLabels: {app: a}}", "app=b", false),
            ("{matchLabels: {app: a, tier: b}}", "app=a", false),
            ("{matchExpressions: [{key: app, operator: In, values: [a, b]}]}", "app=b", true),
            ("{matchExpressions: [{key: app, operator: In, values: [a, b]}]}", "", false),
            ("{matchExpressions: [{key: app, operator: NotIn, values: [a]}]}", "app=b", true),
            ("{matchExpressions: [{key: app, operator: NotIn, values: [a]}]}", "", true),
            ("{matchExpressions: [{key: app, operator: NotIn, values: [a]}]}", "app=a", false),
            ("{matchExpressions: [{key: app, operator: Exists}]}", "app=", true),
            ("{matchExpressions: [{key: app, operator: Exists}]}", "", false),
            ("{matchExpressions: [{key: app, operator: DoesNotExist}]}", "", true),
            ("{matchExpressions: [{key: app, operator: DoesNotExist}]}", "app=a", false),
            ("{matchLabels: {app: a}, matchExpressions: [{key: tier, operator: Exists}]}", "app=a", false),
        ] {
            assert_eq!(selects(&selector(yaml), &labels(text)), selected, "{yaml} on `{text}`");
        }
    }
}

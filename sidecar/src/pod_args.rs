//! The flags that describe the pod.

use clap::Args;
use toolweir_engine::{CompileOptions, Memory};

use crate::approvals::AskSettings;

/// The pod for which policies are compiled.
#[derive(Debug, Args)]
pub struct PodArgs {
    /// The pod's name, for expressions.
    #[arg(long, env = "POD_NAME", default_value = "", hide_default_value = true)]
    pod_name: String,
    /// The pod's namespace, for expressions.
    #[arg(long, env = "POD_NAMESPACE", default_value = "", hide_default_value = true)]
    pod_namespace: String,
    /// The pod's service account, for expressions.
    #[arg(long, env = "POD_SERVICE_ACCOUNT", default_value = "", hide_default_value = true)]
    pod_service_account: String,
    /// The pod's uid, to which approvals of people are bound.
    #[arg(long, env = "POD_UID", default_value = "", hide_default_value = true)]
    pod_uid: String,
    /// The pod's workload as KIND/NAME, such as Deployment/agent, for limits of the scope Workload.
    #[arg(long, env = "POD_WORKLOAD", default_value = "", hide_default_value = true)]
    pod_workload: String,
    /// Maximum number of live counts of sessions and keys; beyond it, calls that need a new one are denied.
    #[arg(long, default_value_t = Memory::COUNTERS, value_name = "COUNT")]
    pub max_counters: usize,
}

impl PodArgs {
    /// How people are asked for approval.
    pub fn approvals(&self) -> AskSettings {
        AskSettings { pod_uid: self.pod_uid.clone(), ..AskSettings::default() }
    }

    /// The options with which its policies are compiled.
    pub fn options(&self) -> CompileOptions {
        CompileOptions {
            shared_store: false,
            pod: self.pod_name.clone(),
            namespace: self.pod_namespace.clone(),
            service_account: self.pod_service_account.clone(),
            workload: self.pod_workload.clone(),
            of_any_pod: false,
        }
    }
}

{{/* The chart's name, or what stands in for it. */}}
{{- define "toolweir.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" }}
{{- end }}

{{/* The first part of every name. 50 characters leave room for `-operator` in a name of 63. */}}
{{- define "toolweir.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- $name := include "toolweir.name" . }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{/* The name of the Deployment, the Service, the ConfigMap, the Lease and the roles. */}}
{{- define "toolweir.operator" -}}
{{- include "toolweir.fullname" . }}-operator
{{- end }}

{{- define "toolweir.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "toolweir.operator" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* What selects the operator's pods. A Deployment cannot change it, so nothing here may depend on a version. */}}
{{- define "toolweir.selector" -}}
app.kubernetes.io/name: {{ include "toolweir.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{/* The labels of every object. values.schema.json refuses commonLabels that would be in their way. */}}
{{- define "toolweir.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/name: {{ include "toolweir.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: toolweir
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* An image by digest, else by tag: (list $ image). */}}
{{- define "toolweir.image" -}}
{{- $image := index . 1 }}
{{- if $image.digest }}
{{- printf "%s@%s" $image.repository $image.digest }}
{{- else }}
{{- printf "%s:%s" $image.repository (default (index . 0).Chart.AppVersion $image.tag) }}
{{- end }}
{{- end }}

{{/* The namespaces whose pods no webhook ever sees, sorted. The operator's own is among them: its pods must start while nothing
answers the webhooks. */}}
{{- define "toolweir.protectedNamespaces" -}}
{{- concat (list "kube-system" "kube-public" "kube-node-lease" .Release.Namespace) .Values.webhooks.protectedNamespaces | uniq | sortAlpha | toYaml }}
{{- end }}

{{/* Meets the restricted Pod Security Standard, for pods: nobody's user, no profile but the runtime's own. */}}
{{- define "toolweir.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/* The same for containers. */}}
{{- define "toolweir.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* Whether a part of `monitoring` is there: (list $ name), `true` or nothing. */}}
{{- define "toolweir.monitored" -}}
{{- $root := index . 0 }}
{{- $name := index . 1 }}
{{- $enabled := (index $root.Values.monitoring $name).enabled }}
{{- $known := $root.Capabilities.APIVersions.Has "monitoring.coreos.com/v1" }}
{{- /* The dashboards are ConfigMaps, which every cluster has. */}}
{{- if and (eq (toString $enabled) "true") (not $known) (ne $name "dashboards") }}
{{- fail (printf "monitoring.%s.enabled is true, and the cluster does not have monitoring.coreos.com/v1: install the CRDs of the Prometheus operator first, or say auto or false. For `helm template`, say --api-versions monitoring.coreos.com/v1" $name) }}
{{- end }}
{{- /* What a monitor finds, annotations would have scraped once more. */}}
{{- $scraped := get (dict "podMonitor" "sidecars" "serviceMonitor" "the operator") $name }}
{{- $twice := and $scraped $root.Values.monitoring.scrapeAnnotations }}
{{- if and $twice (eq (toString $enabled) "true") }}
{{- fail (printf "monitoring.%s.enabled and monitoring.scrapeAnnotations are both true: %s would be scraped twice. Say false to one of them" $name $scraped) }}
{{- end }}
{{- if or (eq (toString $enabled) "true") (and (eq (toString $enabled) "auto") $known (not $twice)) }}true{{ end }}
{{- end }}

{{/* Whether there is a shared store, `true` or nothing; what contradicts itself is refused here. */}}
{{- define "toolweir.sharedStore" -}}
{{- $store := .Values.sharedStore }}
{{- if and $store.url $store.embedded }}
{{- fail "sharedStore.url and sharedStore.embedded are both given: name a store of your own, or have the chart run one" }}
{{- end }}
{{- if not (or $store.url $store.embedded) }}
{{- range $field, $given := dict "username" $store.username "passwordSecret.name" $store.passwordSecret.name "tls.caSecret.name" $store.tls.caSecret.name }}
{{- if $given }}
{{- fail (printf "sharedStore.%s is given, and there is no shared store: give sharedStore.url too, or sharedStore.embedded" $field) }}
{{- end }}
{{- end }}
{{- end }}
{{- if and $store.embedded $store.username }}
{{- fail "sharedStore.username and sharedStore.embedded are both given: the chart's store has the default user alone" }}
{{- end }}
{{- if and $store.embedded $store.tls.caSecret.name }}
{{- fail "sharedStore.tls.caSecret.name and sharedStore.embedded are both given: the certificate of the chart's store is of the operator's authorities" }}
{{- end }}
{{- if and $store.tls.caSecret.name (not (regexMatch "^(rediss|valkeys)" $store.url)) }}
{{- fail "sharedStore.tls.caSecret.name is given, and the store is reached without TLS: write sharedStore.url with rediss://, or leave it out" }}
{{- end }}
{{- if or $store.url $store.embedded }}true{{ end }}
{{- end }}

{{/* The name of everything of the store that the chart runs. */}}
{{- define "toolweir.store" -}}
{{- include "toolweir.fullname" . }}-store
{{- end }}

{{- define "toolweir.storeSelector" -}}
app.kubernetes.io/name: {{ include "toolweir.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: store
{{- end }}

{{/* The Secret of the store's password, or nothing. */}}
{{- define "toolweir.storeSecret" -}}
{{- if .Values.sharedStore.passwordSecret.name }}
{{- .Values.sharedStore.passwordSecret.name }}
{{- else if .Values.sharedStore.embedded }}
{{- include "toolweir.store" . }}
{{- end }}
{{- end }}

{{/* Checks that the sidecar's ports differ. */}}
{{- define "toolweir.portsDiffer" -}}
{{- $seen := dict }}
{{- range $name := list "admin" "proxy" "metrics" "capture" }}
{{- $port := toString (int64 (index $.Values.sidecar.ports $name)) }}
{{- if hasKey $seen $port }}
{{- fail (printf "sidecar.ports.%s is %s, as sidecar.ports.%s is: each needs its own" $name $port (get $seen $port)) }}
{{- end }}
{{- $_ := set $seen $port $name }}
{{- end }}
{{- end }}

{{/* The arguments of the init container of capture, as the operator writes them, as a regular expression: each once, a blank between. */}}
{{- define "toolweir.captureArgs" -}}
{{- $ports := .Values.sidecar.ports }}
{{- $args := list "capture --uid [1-9][0-9]* --gid [1-9][0-9]*" }}
{{- range $flag := list (list "capture" 15002) (list "proxy" 15001) (list "admin" 15000) (list "metrics" 15020) }}
{{- $port := int64 (index $ports (index $flag 0)) }}
{{- if ne $port (int64 (index $flag 1)) }}
{{- $args = append $args (printf "--%s-port %d" (index $flag 0) $port) }}
{{- end }}
{{- end }}
{{- join " " $args }}
{{- end }}

{{/* Whether there is the policy in place of the Pod Security Standard, `true` or nothing. */}}
{{- define "toolweir.podSecurityPolicy" -}}
{{- $wanted := toString .Values.capture.podSecurityPolicy }}
{{- $known := semverCompare ">=1.30-0" .Capabilities.KubeVersion.Version }}
{{- if and (eq $wanted "true") (not $known) }}
{{- fail (printf "capture.podSecurityPolicy is true, and Kubernetes %s has no ValidatingAdmissionPolicy: it needs 1.30 or later. Say auto or false" .Capabilities.KubeVersion.Version) }}
{{- end }}
{{- if or (eq $wanted "true") (and (eq $wanted "auto") $known (eq .Values.capture.method "Init")) }}true{{ end }}
{{- end }}

{{/* Whether people can be asked, `true` or nothing. */}}
{{- define "toolweir.approvals" -}}
{{- $wanted := toString .Values.approvals.enabled }}
{{- $known := semverCompare ">=1.30-0" .Capabilities.KubeVersion.Version }}
{{- if and (eq $wanted "true") (not $known) }}
{{- fail (printf "approvals.enabled is true, and Kubernetes %s has no ValidatingAdmissionPolicy, which checks who decides: it needs 1.30 or later. Say auto or false" .Capabilities.KubeVersion.Version) }}
{{- end }}
{{- $webhook := .Values.approvals.webhook }}
{{- if and $webhook.existingSecret (eq $webhook.urlKey $webhook.secretKey) }}
{{- fail (printf "approvals.webhook.secretKey is %s, as approvals.webhook.urlKey is: the URL and the secret of signatures need keys of their own" $webhook.urlKey) }}
{{- end }}
{{- if or (eq $wanted "true") (and (eq $wanted "auto") $known) }}true{{ end }}
{{- end }}

{{- define "keyferry.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains "keyferry" .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-keyferry" (.Release.Name | trunc 31 | trimSuffix "-") -}}
{{- end -}}
{{- end }}

{{- define "keyferry.selector" -}}
app.kubernetes.io/name: keyferry
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "keyferry.labels" -}}
app.kubernetes.io/name: keyferry
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: keyferry
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "keyferry.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (include "keyferry.fullname" .) -}}
{{- end }}

{{- define "keyferry.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end }}

{{- /* The security context of a pod, and of each container in it: what the Pod Security Standard "restricted" asks, and more. */ -}}
{{- define "keyferry.podSecurityContext" -}}
runAsNonRoot: true
{{- with .Values.runAsUser }}
runAsUser: {{ . | int64 }}
runAsGroup: {{ . | int64 }}
fsGroup: {{ . | int64 }}
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "keyferry.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
privileged: false
capabilities:
  drop: [ALL]
{{- end }}

{{- /* What no schema can say: one value that needs another. */ -}}
{{- define "keyferry.validate" -}}
{{- if and (gt (int .Values.replicas) 1) (not .Values.leaderElection.enabled) -}}
{{- fail "replicas: more than one replica needs leaderElection.enabled=true, or each of them would renew every token" -}}
{{- end -}}
{{- if and (not .Values.serviceAccount.create) (not .Values.serviceAccount.name) -}}
{{- fail "serviceAccount.name: name the ServiceAccount to use, since serviceAccount.create is false" -}}
{{- end -}}
{{- if and .Values.proxy.url .Values.proxy.urlFrom.name -}}
{{- fail "proxy.urlFrom: names a Secret, and proxy.url is set as well; use one of them" -}}
{{- end -}}
{{- if and .Values.page.enabled (not .Values.broker.enabled) -}}
{{- fail "page.enabled: needs broker.enabled=true, of which the page gets what it shows" -}}
{{- end -}}
{{- if and .Values.page.enabled (not .Values.page.url) -}}
{{- fail "page.url: say where people reach the approval page, such as https://keyferry.example.org" -}}
{{- end -}}
{{- if and (eq .Values.certificates.source "Secret") (not .Values.certificates.secretName) -}}
{{- fail "certificates.secretName: name the Secret that holds tls.crt, tls.key and ca.crt, since certificates.source is Secret" -}}
{{- end -}}
{{- if and (eq .Values.certificates.source "CertManager") (not .Values.certificates.issuerRef.name) -}}
{{- fail "certificates.issuerRef.name: name the issuer, since certificates.source is CertManager" -}}
{{- end -}}
{{- range list "serviceMonitor" "prometheusRule" -}}
{{- if and (get $.Values .).enabled (not $.Values.metrics.enabled) -}}
{{- fail (printf "%s.enabled: needs metrics.enabled=true" .) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- /* Whether pods are injected: what is watched must be the whole cluster, for the webhook is. "true", or empty. */ -}}
{{- define "keyferry.injects" -}}
{{- if and .Values.webhook.enabled .Values.broker.enabled (not .Values.watch.namespaces) }}true{{ end -}}
{{- end }}

{{- define "keyferry.pageSelector" -}}
app.kubernetes.io/name: keyferry
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: page
{{- end }}

{{- define "keyferry.broker" -}}
{{- include "keyferry.fullname" . }}-broker
{{- end }}

{{- define "keyferry.brokerSecret" -}}
{{- .Values.certificates.secretName | default (printf "%s-broker-tls" (include "keyferry.fullname" .)) -}}
{{- end }}

{{- define "keyferry.sidecarImage" -}}
{{- $image := .Values.sidecar.image -}}
{{- $repository := $image.repository | default .Values.image.repository -}}
{{- if or $image.digest (and .Values.image.digest (not $image.tag) (not $image.repository)) -}}
{{- printf "%s@%s" $repository ($image.digest | default .Values.image.digest) -}}
{{- else -}}
{{- printf "%s:%s" $repository ($image.tag | default .Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end }}

{{- /* What the operator reads with --settings: these values as they are. */ -}}
{{- define "keyferry.settings" -}}
providers:
  {{- toYaml .Values.providers | nindent 2 }}
proxy:
  noProxy: {{ toJson .Values.proxy.noProxy }}
targets:
  {{- toYaml .Values.targets | nindent 2 }}
{{- if include "keyferry.injects" . }}
sidecar:
  image: {{ include "keyferry.sidecarImage" . | quote }}
  pullPolicy: {{ .Values.sidecar.image.pullPolicy | default .Values.image.pullPolicy }}
  resources: {{ toJson .Values.sidecar.resources }}
  runAsUser: {{ toJson .Values.runAsUser }}
  hostNetwork: {{ .Values.sidecar.hostNetwork }}
  {{- with .Values.sidecar.minimumRemaining }}
  minimumRemaining: {{ . }}
  {{- end }}
  logLevel: {{ .Values.logLevel }}
{{- end }}
{{- end }}

{{- /* The subject of every binding. */ -}}
{{- define "keyferry.subjects" -}}
subjects:
- kind: ServiceAccount
  name: {{ include "keyferry.serviceAccount" . }}
  namespace: {{ .Release.Namespace }}
{{- end }}

{{- /* A set of rights and its binding: in the whole cluster, or in each watched namespace.
       Takes root, name and rules (YAML); where the cluster is watched clusterRules as well. */ -}}
{{- define "keyferry.grant" -}}
{{- $root := .root -}}
{{- $name := .name -}}
{{- $rules := .rules -}}
{{- if $root.Values.watch.namespaces -}}
{{- range $root.Values.watch.namespaces }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: {{ $name }}
  namespace: {{ . }}
  labels:
    {{- include "keyferry.labels" $root | nindent 4 }}
rules:
{{ $rules }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ $name }}
  namespace: {{ . }}
  labels:
    {{- include "keyferry.labels" $root | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: {{ $name }}
{{ include "keyferry.subjects" $root }}
{{- end }}
{{- else }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: {{ $name }}
  labels:
    {{- include "keyferry.labels" $root | nindent 4 }}
rules:
{{ $rules }}
{{- with .clusterRules }}
{{ . }}
{{- end }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: {{ $name }}
  labels:
    {{- include "keyferry.labels" $root | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: {{ $name }}
{{ include "keyferry.subjects" $root }}
{{- end }}
{{- end }}

{{- /* What the operator does where identities are. Each line is a row of the table in docs/install.md. */ -}}
{{- define "keyferry.rules.watched" -}}
- apiGroups: [keyferry.dev]
  resources: [serviceidentities, tokenproviders]
  verbs: [list, watch]
- apiGroups: [keyferry.dev]
  resources: [serviceidentities/status, tokenproviders/status]
  verbs: [patch]
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create]
{{- if .Values.broker.enabled }}
{{ include "keyferry.rules.authorities" . }}
{{ include "keyferry.rules.callers" . }}
{{- end }}
{{- end }}

{{- /* By which sidecars and the approval page know the broker API. */ -}}
{{- define "keyferry.rules.authorities" -}}
# This one alone, though the right to create cannot be limited to a name.
- apiGroups: [""]
  resources: [configmaps]
  verbs: [create]
- apiGroups: [""]
  resources: [configmaps]
  resourceNames: [keyferry-ca]
  verbs: [patch]
{{- end }}

{{- define "keyferry.rules.callers" -}}
# Whether the pod is alive that asks, and its service account the one that it was given.
- apiGroups: [""]
  resources: [pods, serviceaccounts]
  verbs: [get]
{{- end }}

{{- /* What it does besides where the whole cluster is watched. */ -}}
{{- define "keyferry.rules.cluster" -}}
- apiGroups: [keyferry.dev]
  resources: [clustertokenproviders]
  verbs: [list, watch]
- apiGroups: [keyferry.dev]
  resources: [clustertokenproviders/status]
  verbs: [patch]
# Their labels say which cluster-wide providers are offered to them.
- apiGroups: [""]
  resources: [namespaces]
  verbs: [list, watch]
{{- if .Values.broker.enabled }}
# Asks whose a pod's token is, where the cluster's keys cannot be read.
- apiGroups: [authentication.k8s.io]
  resources: [tokenreviews]
  verbs: [create]
{{- end }}
{{- if include "keyferry.injects" . }}
# Its caBundle: by what the API server knows the webhook.
- apiGroups: [admissionregistration.k8s.io]
  resources: [mutatingwebhookconfigurations]
  resourceNames: [{{ include "keyferry.fullname" . }}]
  verbs: [get, patch]
{{- end }}
{{ include "keyferry.rules.origin" . }}
{{- end }}

{{- /* The uid of kube-system says which cluster this is, so that a restored backup is noticed. */ -}}
{{- define "keyferry.rules.origin" -}}
- apiGroups: [""]
  resources: [namespaces]
  resourceNames: [kube-system]
  verbs: [get]
{{- end }}

{{- define "keyferry.rules.serviceAccountTokens" -}}
- apiGroups: [""]
  resources: [serviceaccounts]
  verbs: [get]
  {{- with .Values.serviceAccountTokens.names }}
  resourceNames: {{ toJson . }}
  {{- end }}
- apiGroups: [""]
  resources: [serviceaccounts/token]
  verbs: [create]
  {{- with .Values.serviceAccountTokens.names }}
  resourceNames: {{ toJson . }}
  {{- end }}
{{- end }}

{{- define "keyferry.rules.countPods" -}}
- apiGroups: [""]
  resources: [pods]
  verbs: [list]
{{- end }}

{{- define "keyferry.rules.touchPods" -}}
- apiGroups: [""]
  resources: [pods]
  verbs: [list, patch]
{{- end }}

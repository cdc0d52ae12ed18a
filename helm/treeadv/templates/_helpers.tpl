{{- define "treeadv.name" -}}
{{- ternary .Release.Name (printf "%s-treeadv" .Release.Name) (contains "treeadv" .Release.Name) | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "treeadv.selector" -}}
app.kubernetes.io/name: treeadv
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "treeadv.labels" -}}
{{ include "treeadv.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* Image reference of a map with repository, tag, digest. Call with (dict "image" ... "tag" fallback). */}}
{{- define "treeadv.image" -}}
{{- if .image.digest }}{{ .image.repository }}@{{ .image.digest }}{{ else }}{{ .image.repository }}:{{ .image.tag | default .tag }}{{ end }}
{{- end }}

{{- define "treeadv.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "treeadv.name" .) }}
{{- end }}

{{- define "treeadv.claim" -}}
{{ .Values.storage.claim.existing | default (printf "%s-runs" (include "treeadv.name" .)) }}
{{- end }}

{{/* Worker groups with the defaults merged in, as YAML: name -> group. */}}
{{- define "treeadv.groups" -}}
{{- $out := dict }}
{{- range $name, $group := .Values.workers }}
{{- if $group }}{{ $_ := set $out $name (mergeOverwrite (deepCopy $.Values.workerDefaults) $group) }}{{ end }}
{{- end }}
{{- toYaml $out }}
{{- end }}

{{/* What every pod's metadata has. Call with (dict "root" $ "role" ...). */}}
{{- define "treeadv.podMetadata" -}}
labels:
  {{- include "treeadv.selector" .root | nindent 2 }}
  treeadv/role: {{ .role }}
  {{- with .root.Values.podLabels }}{{ toYaml . | nindent 2 }}{{ end }}
annotations:
  treeadv/config: {{ include "treeadv.config" .root | sha256sum | trunc 16 | quote }}
  {{- with .root.Values.podAnnotations }}{{ toYaml . | nindent 2 }}{{ end }}
{{- end }}

{{/* What every pod's spec has, but for its account. Call with (dict "root" $ "group" ...), where "group" says where it may be placed. */}}
{{- define "treeadv.podSpec" -}}
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: {{ .root.Values.user }}
  runAsGroup: {{ .root.Values.user }}
  fsGroup: {{ .root.Values.user }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .group.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .group.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .group.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .group.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}

{{/* The account of the pods that reach the object store or, as the head, Kubernetes; the others run under the namespace's default account, so
that pods which judge what a model wrote hold no cloud identity of the run. Call with (dict "root" $ "role" ...). */}}
{{- define "treeadv.account" -}}
{{- if has .role (list "head" "learner") }}
serviceAccountName: {{ include "treeadv.serviceAccount" .root }}
{{- end }}
automountServiceAccountToken: {{ and (eq .role "head") .root.Values.autoscaling.enabled }}
{{- end }}

{{/* The secrets that become a pod's environment. Call with (dict "root" $ "role" ... "group" ...). */}}
{{- define "treeadv.secrets" -}}
{{- $names := .group.existingSecrets | default list }}
{{- if ne .role "reward" }}{{ $names = concat $names .root.Values.existingSecrets }}{{ end }}
{{- if has .role (list "head" "learner") }}{{ $names = concat $names .root.Values.storage.existingSecrets }}{{ end }}
{{- with uniq $names }}
envFrom:
  {{- range . }}
  - secretRef: {name: {{ . }}}
  {{- end }}
{{- end }}
{{- end }}

{{- define "treeadv.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* Requests equal limits, so that a pod is Guaranteed and Ray counts what the kernel grants. Call with a group. */}}
{{- define "treeadv.resources" -}}
{{- $all := dict "cpu" (toString .cpu) "memory" .memory }}
{{- if .ephemeralStorage }}{{ $_ := set $all "ephemeral-storage" .ephemeralStorage }}{{ end }}
{{- if .gpu }}{{ $_ := set $all .gpuResource (toString .gpu) }}{{ end -}}
requests: {{- toYaml $all | nindent 2 }}
limits: {{- toYaml $all | nindent 2 }}
{{- end }}

{{/* Bytes of a quantity such as 1.5Gi. */}}
{{- define "treeadv.bytes" -}}
{{- $number := regexFind "^[0-9.]+" . }}
{{- $units := dict "" 1 "m" 0.001 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 }}
{{- mulf (float64 $number) (get $units (trimPrefix $number .)) | floor | int64 }}
{{- end }}

{{/* Bytes of Ray's object store: what /dev/shm holds, less what else lies there. Left to itself Ray takes 30 % of the memory, and where that
is more than /dev/shm it moves to the disk. Call with a group. */}}
{{- define "treeadv.objectStore" -}}
{{- include "treeadv.bytes" .shm | float64 | mulf 0.9 | floor | int64 }}
{{- end }}

{{- define "treeadv.ports" -}}
{{- range $i := until (int .) }}{{ if $i }},{{ end }}treeadv-{{ $i }}{{ end }}
{{- end }}

{{- define "treeadv.relabelings" -}}
- sourceLabels: [__meta_kubernetes_pod_label_treeadv_role]
  targetLabel: role
- sourceLabels: [__meta_kubernetes_pod_label_app_kubernetes_io_instance]
  targetLabel: run
- targetLabel: job
  replacement: treeadv
{{- end }}

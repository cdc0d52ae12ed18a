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

{{- define "treeadv.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ .Values.user }}
runAsGroup: {{ .Values.user }}
fsGroup: {{ .Values.user }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
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

{{/* Where a pod may be placed. Call with a group. */}}
{{- define "treeadv.placement" -}}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
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

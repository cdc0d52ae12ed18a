{{- define "treeadv.name" -}}
{{- ternary .Release.Name (printf "%s-treeadv" .Release.Name) (contains "treeadv" .Release.Name) | trunc 40
    | trimSuffix "-" }}
{{- end }}

{{/* The command that starts or resumes the run. */}}
{{- define "treeadv.command" -}}
treeadv train --config /etc/treeadv/config.yaml --resume-or-start
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
{{- if .image.digest }}{{ .image.repository }}@{{ .image.digest }}
{{- else }}{{ .image.repository }}:{{ .image.tag | default .tag }}{{ end }}
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

{{/* Metadata of every pod. Call with (dict "root" $ "role" ...). */}}
{{- define "treeadv.podMetadata" -}}
{{- $labels := printf "%s\ntreeadv/role: %s" (include "treeadv.selector" .root) .role }}
{{- $content := print (include "treeadv.config" .root) (toJson .root.Values.files) }}
{{- $annotations := printf "treeadv/config: %s" (sha256sum $content | trunc 16 | quote) }}
labels: {{- include "treeadv.joined" (dict "own" $labels "more" .root.Values.podLabels "at" "podLabels") | nindent 2 }}
annotations:
  {{- include "treeadv.joined" (dict "own" $annotations "more" .root.Values.podAnnotations "at" "podAnnotations")
      | nindent 2 }}
{{- end }}

{{/* Security, pull secrets and placement of every pod. Call with (dict "root" $ "group" ...); "group" holds the
placement. */}}
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

{{/* Service account of a pod. Head and learners access the object store, and the head accesses the Kubernetes API. All
other pods run under the namespace's default account, so that pods that grade model output have no cloud identity. Call
with (dict "root" $ "role" ...). */}}
{{- define "treeadv.account" -}}
{{- if has .role (list "head" "learner") }}
serviceAccountName: {{ include "treeadv.serviceAccount" .root }}
{{- end }}
automountServiceAccountToken: {{ and (eq .role "head") .root.Values.autoscaling.enabled }}
{{- end }}

{{/* Secrets whose keys become environment variables of a pod, as a YAML list. Call with (dict "root" $ "role" ...
"group" ...). */}}
{{- define "treeadv.secrets" -}}
{{- $names := .group.existingSecrets | default list }}
{{- if ne .role "reward" }}{{ $names = concat $names .root.Values.existingSecrets }}{{ end }}
{{- if has .role (list "head" "learner") }}{{ $names = concat $names .root.Values.storage.existingSecrets }}{{ end }}
{{- range uniq $names }}
- secretRef: {name: {{ . }}}
{{- end }}
{{- end }}

{{- define "treeadv.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* Requests equal limits: the pod has the QoS class Guaranteed, and Ray reads the limits. Call with a group. */}}
{{- define "treeadv.resources" -}}
{{- $all := dict "cpu" (toString .cpu) "memory" .memory }}
{{- if .ephemeralStorage }}{{ $_ := set $all "ephemeral-storage" .ephemeralStorage }}{{ end }}
{{- if .gpu }}{{ $_ := set $all .gpuResource (toString .gpu) }}{{ end -}}
requests: {{- toYaml $all | nindent 2 }}
limits: {{- toYaml $all | nindent 2 }}
{{- end }}

{{/* Number of bytes of a quantity such as 1.5Gi. */}}
{{- define "treeadv.bytes" -}}
{{- $number := regexFind "^[0-9.]+" . }}
{{- $units := dict "" 1 "m" 0.001 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12
  "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 }}
{{- mulf (float64 $number) (get $units (trimPrefix $number .)) | floor | int64 }}
{{- end }}

{{/* Bytes of Ray's object store: 90 % of /dev/shm, because other files are in /dev/shm too. Ray's default is 30 % of
the memory, and where that is more than /dev/shm, Ray puts the store on the disk. Call with a group. */}}
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

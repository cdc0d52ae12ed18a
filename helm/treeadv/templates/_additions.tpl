{{/* Joins the chart's map with a map of the user, as YAML. A key of both would be rendered twice, so it is refused.
Call with (dict "own" YAML "more" map "at" name of the value). */}}
{{- define "treeadv.joined" -}}
{{- $own := .own | fromYaml }}
{{- range $key, $_ := .more }}
{{- if hasKey $own $key }}
{{- fail (printf "%s: the chart sets %s itself (%v); remove this key" $.at $key (get $own $key)) }}
{{- end }}
{{- end }}
{{- toYaml (merge $own .more) }}
{{- end }}

{{/* Joins the chart's list, the list of all pods and the list of a group, as YAML. Two entries of one name are refused.
Call with (dict "own" YAML list "root" $ "group" group "at" path of the group "value" name of the value "key" field that
must differ "reserved" names that KubeRay sets). */}}
{{- define "treeadv.joinedList" -}}
{{- $all := .own | fromYamlArray }}
{{- $places := dict }}
{{- range $all }}{{ $_ := set $places (trimSuffix "/" (toString (get . $.key))) "the chart" }}{{ end }}
{{- range .reserved }}{{ $_ := set $places . "KubeRay" }}{{ end }}
{{- $mine := list (dict "at" .value "items" (get .root.Values .value))
  (dict "at" (printf "%s.%s" .at .value) "items" (get .group .value | default list)) }}
{{- range $part := $mine }}
{{- range $item := $part.items }}
{{- $name := trimSuffix "/" (toString (get $item $.key)) }}
{{- if hasKey $places $name }}
{{- fail (printf "%s: %s %s is set by %s too; remove one of them" $part.at $.key $name (get $places $name)) }}
{{- end }}
{{- $_ := set $places $name $part.at }}
{{- $all = append $all $item }}
{{- end }}
{{- end }}
{{- toYaml $all }}
{{- end }}

{{/* Environment of the main container: the chart's own variables, those of the user, and whole secrets or config maps.
Call with (dict "own" YAML list "root" $ "role" ... "group" ... "at" ...). */}}
{{- define "treeadv.environment" -}}
{{- $reserved := list }}
{{- if ne .role "fleet" }}
{{- $reserved = list "RAY_enable_autoscaler_v2" "RAY_REDIS_ADDRESS" "REDIS_USERNAME" "RAY_AUTH_MODE" "RAY_AUTH_TOKEN" }}
{{- end }}
{{- $env := merge (dict "value" "extraEnv" "key" "name" "reserved" $reserved) . }}
env: {{- include "treeadv.joinedList" $env | nindent 2 }}
{{- $from := include "treeadv.secrets" . | fromYamlArray }}
{{- range concat .root.Values.extraEnvFrom (.group.extraEnvFrom | default list) }}{{ $from = append $from . }}{{ end }}
{{- with $from }}
envFrom: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Volumes, and mounts of them. "volumes" of the mounts is the YAML list of the volumes. */}}
{{- define "treeadv.volumes" -}}
{{- include "treeadv.joinedList" (merge (dict "value" "extraVolumes" "key" "name") .) }}
{{- end }}

{{- define "treeadv.mounts" -}}
{{- $known := dict }}
{{- range .volumes | fromYamlArray }}{{ $_ := set $known .name true }}{{ end }}
{{- $mounts := include "treeadv.joinedList" (merge (dict "value" "extraVolumeMounts" "key" "mountPath") .) }}
{{- range $mounts | fromYamlArray }}
{{- if not (hasKey $known .name) }}
{{- fail (printf "extraVolumeMounts: %s at %s: these pods have no volume of this name; add it to extraVolumes" .name
    .mountPath) }}
{{- end }}
{{- end }}
{{- $mounts }}
{{- end }}

{{/* Init containers and runtime class of a pod. "own" names the main container. */}}
{{- define "treeadv.podAdditions" -}}
{{- with .group.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- $joined := include "treeadv.joinedList" (merge (dict "value" "initContainers" "key" "name") .) | fromYamlArray }}
{{- with rest $joined }}
initContainers: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Checks files, which a ConfigMap holds: etcd takes 1 MiB. */}}
{{- define "treeadv.validateFiles" -}}
{{- $size := 0 }}
{{- range $name, $text := .Values.files }}{{ $size = add $size (len $text) }}{{ end }}
{{- if gt (int $size) 1000000 }}
{{- fail (printf
    "files: %d bytes, and a ConfigMap holds 1000000: put the data on a volume (extraVolumes) or in a bucket" $size) }}
{{- end }}
{{- end }}

{{/* Checks what Kueue's webhook refuses, where a label gives the release to a queue of Kueue. */}}
{{- define "treeadv.validateQueue" -}}
{{- if hasKey .Values.rayLabels "kueue.x-k8s.io/queue-name" }}
{{- if and .Values.autoscaling.enabled (not (hasKey .Values.rayAnnotations "kueue.x-k8s.io/elastic-job")) }}
{{- fail (print
    "rayLabels: kueue.x-k8s.io/queue-name with autoscaling.enabled=true: Kueue refuses a cluster that its autoscaler "
  "changes; set autoscaling.enabled=false") }}
{{- end }}
{{- $groups := include "treeadv.groups" . | fromYaml }}
{{- if gt (len $groups) 7 }}
{{- fail (printf "workers: %d groups, and Kueue accepts 7; join groups" (len $groups)) }}
{{- end }}
{{- if hasKey $groups "head" }}
{{- fail "workers.head: Kueue reserves this name for the group of the head; choose another name" }}
{{- end }}
{{- end }}
{{- end }}

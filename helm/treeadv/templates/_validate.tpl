{{/* Checks that values.schema.json cannot express. Every message names the value and the remedy. */}}
{{- define "treeadv.validate" -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" .Release.Name) }}
{{- fail (printf (print
    "release name %s: KubeRay accepts only lower-case letters, digits and '-', starting with a letter; "
  "install under another name") .Release.Name) }}
{{- end }}
{{- $groups := include "treeadv.groups" . | fromYaml }}
{{- range $name, $g := $groups }}
{{- include "treeadv.validateReplicas" (dict "name" $name "group" $g) }}
{{- end }}
{{- include "treeadv.validateMemory" (dict "at" "head" "group" .Values.head) }}
{{- range $name, $g := $groups }}
{{- include "treeadv.validateMemory" (dict "at" (printf "workers.%s" $name) "group" $g) }}
{{- include "treeadv.validateGpu" (dict "root" $ "at" (printf "workers.%s" $name) "group" $g) }}
{{- end }}
{{- range $role := list "generator" "learner" "reward" }}
{{- $sum := include "treeadv.role" (dict "groups" $groups "role" $role) | fromYaml }}
{{- if lt (int $sum.count) 1 }}
{{- fail (printf "workers: no group has role %s and replicas > 0, and the run needs at least one; add a group" $role) }}
{{- end }}
{{- end }}
{{- include "treeadv.validateStorage" . }}
{{- include "treeadv.validateConfig" . }}
{{- include "treeadv.validateFiles" . }}
{{- include "treeadv.validateQueue" . }}
{{- include "treeadv.validateFleet" . }}
{{- end }}

{{/* Checks the name and the replica counts of a worker group. Call with (dict "name" ... "group" ...). */}}
{{- define "treeadv.validateReplicas" -}}
{{- $at := printf "workers.%s" .name }}
{{- $least := int .group.minReplicas }}
{{- $most := int .group.maxReplicas }}
{{- $now := int .group.replicas }}
{{- if eq .name "headgroup" }}
{{- fail "workers.headgroup: KubeRay reserves this name for the group of the head; choose another name" }}
{{- end }}
{{- if gt $least $most }}
{{- fail (printf "%s.minReplicas=%d is more than maxReplicas=%d: raise maxReplicas or lower minReplicas" $at
    $least $most) }}
{{- end }}
{{- if or (lt $now $least) (gt $now $most) }}
{{- fail (printf "%s.replicas=%d is outside minReplicas=%d..maxReplicas=%d: choose a value inside" $at $now
    $least $most) }}
{{- end }}
{{- if and (eq .group.role "learner") (or (ne $least $most) (ne $now $most)) }}
{{- fail (printf (print
    "%s: a learner group needs replicas = minReplicas = maxReplicas, because the autoscaler would remove "
  "an idle rank; to change the number of learners, install the release again with another value") $at) }}
{{- end }}
{{- end }}

{{/* Checks that /dev/shm fits into the memory and holds an object store. Call with (dict "at" ... "group" ...). */}}
{{- define "treeadv.validateMemory" -}}
{{- $shm := include "treeadv.bytes" .group.shm | float64 }}
{{- if ge $shm (include "treeadv.bytes" .group.memory | float64) }}
{{- fail (printf "%s.shm=%s is not less than memory=%s, and shm counts as memory: raise memory or lower shm"
  .at .group.shm .group.memory) }}
{{- end }}
{{- if lt (mulf 0.9 $shm) 78643200.0 }}
{{- fail (printf "%s.shm=%s: Ray's object store uses 90 %% of it and needs 75Mi; set 100Mi or more" .at .group.shm) }}
{{- end }}
{{- end }}

{{/* Checks the GPUs of a worker group. Call with (dict "root" $ "at" ... "group" ...). */}}
{{- define "treeadv.validateGpu" -}}
{{- $gpu := int .group.gpu }}
{{- $slots := int .group.slots }}
{{- if gt $gpu 0 }}
{{- if eq .group.role "reward" }}
{{- fail (printf "%s.gpu=%d: a reward actor uses no GPU; set gpu=0" .at $gpu) }}
{{- end }}
{{- if and (eq .group.role "generator") (eq .root.Values.generator.kind "deployment") }}
{{- fail (printf (print "%s.gpu=%d: with generator.kind=deployment only the servers of the Deployment use GPUs "
  "(generator.fleet.gpu); set gpu=0") .at $gpu) }}
{{- end }}
{{- $sum := include "treeadv.role" (dict "groups" (include "treeadv.groups" .root | fromYaml) "role" .group.role)
    | fromYaml }}
{{- if eq (float64 $sum.gpus) 0.0 }}
{{- fail (printf (print "%s.gpu=%d, but another %s group has no GPU: all actors of a role request the same resources; "
  "set gpu in all groups of the role or in none") .at $gpu .group.role) }}
{{- end }}
{{- if and (hasPrefix "mig-" (base .group.gpuResource)) (gt $gpu $slots) }}
{{- fail (printf "%s.gpu=%d with gpuResource=%s: a process uses one MIG partition; set slots=%d, or gpu=%d"
  .at $gpu .group.gpuResource $gpu $slots) }}
{{- end }}
{{- if and (mod $gpu $slots) (mod $slots $gpu) }}
{{- fail (printf (print
    "%s.gpu=%d cannot be divided among slots=%d: Ray gives an actor whole GPUs or a fraction of one; "
  "make one number a multiple of the other") .at $gpu $slots) }}
{{- end }}
{{- end }}
{{- end }}

{{/* Checks that exactly one storage is set. */}}
{{- define "treeadv.validateStorage" -}}
{{- $claim := .Values.storage.claim.existing | default .Values.storage.claim.size }}
{{- if not (or .Values.storage.uri $claim) }}
{{- fail "storage: the run needs one; set storage.uri, storage.claim.size or storage.claim.existing" }}
{{- end }}
{{- if and .Values.storage.uri $claim }}
{{- fail (printf "storage.uri=%s and storage.claim (%s) exclude each other: set one of them"
    .Values.storage.uri $claim) }}
{{- end }}
{{- if and .Values.storage.claim.existing .Values.storage.claim.size }}
{{- fail (printf "storage.claim.size=%s and storage.claim.existing=%s exclude each other: set one of them"
  .Values.storage.claim.size .Values.storage.claim.existing) }}
{{- end }}
{{- end }}

{{/* Checks a fleet of servers. */}}
{{- define "treeadv.validateFleet" -}}
{{- if eq .Values.generator.kind "deployment" }}
{{- $fleet := .Values.generator.fleet }}
{{- if not (.Files.Get (include "treeadv.serverPath" .)) }}
{{- $known := list }}
{{- range $path, $_ := .Files.Glob "files/servers/*.yaml" }}{{ $known = append $known (base $path
    | trimSuffix ".yaml") }}{{ end }}
{{- fail (printf "generator.fleet.engine=%s: the chart describes servers of %s (files/servers); name one of these"
  $fleet.engine (join ", " $known)) }}
{{- end }}
{{- include "treeadv.validateMemory" (dict "at" "generator.fleet" "group" $fleet) }}
{{- include "treeadv.validateFleetRun" . }}
{{- include "treeadv.validateFleetScaling" . }}
{{- $sum := include "treeadv.role" (dict "groups" (include "treeadv.groups" . | fromYaml) "role" "generator")
    | fromYaml }}
{{- if ne (int $sum.count) 1 }}
{{- fail (printf (print
    "workers: %d generators with generator.kind=deployment, where one generator drives all servers; "
  "set one replica with one slot") (int $sum.count)) }}
{{- end }}
{{- if ge (int $fleet.drainSeconds) (int $fleet.graceSeconds) }}
{{- fail (printf
    "generator.fleet.drainSeconds=%v must be less than graceSeconds=%v: the rest is the time to finish requests"
  $fleet.drainSeconds $fleet.graceSeconds) }}
{{- end }}
{{- end }}
{{- end }}

{{/* Checks that the run's configuration suits servers that run in other pods. */}}
{{- define "treeadv.validateFleetRun" -}}
{{- $given := include "treeadv.given" . | fromYaml }}
{{- $path := ($given.model | default dict).path | default "smollm2-135m-instruct" }}
{{- if .Values.storage.uri }}
{{- fail (printf
    "generator.kind=deployment with storage.uri=%s: the servers load weights from a volume; set storage.claim"
  .Values.storage.uri) }}
{{- end }}
{{- if not (contains "/" $path) }}
{{- fail (printf (print "config.model.path=%s with generator.kind=deployment: the servers load a model of the hub "
  "(ORGANISATION/MODEL) or a folder of the volume (/data/...)") $path) }}
{{- end }}
{{- range $at, $needed := (include "treeadv.server" . | fromYaml).required }}
{{- $value := $given }}
{{- range $key := splitList "." $at }}{{ $value = get ($value | default dict) $key }}{{ end }}
{{- if and $value (ne (toString $value) $needed) }}
{{- fail (printf "config.%s=%v with generator.kind=deployment, whose servers need %s: remove the key" $at
    $value $needed) }}
{{- end }}
{{- end }}
{{- end }}

{{/* Checks the autoscaling of the servers. */}}
{{- define "treeadv.validateFleetScaling" -}}
{{- $replicas := int .Values.generator.fleet.replicas }}
{{- $scale := .Values.generator.fleet.autoscaling }}
{{- $least := int $scale.minReplicas }}
{{- $most := int $scale.maxReplicas }}
{{- if and (ne $scale.kind "none") (or (gt $least $replicas) (gt $replicas $most)) }}
{{- fail (printf (print "generator.fleet.replicas=%d is outside autoscaling.minReplicas=%d..maxReplicas=%d: "
  "choose a value inside") $replicas $least $most) }}
{{- end }}
{{- if and (eq $scale.kind "keda") (not $scale.prometheus) }}
{{- fail
    (print "generator.fleet.autoscaling.kind=keda needs the address of Prometheus: "
    "set generator.fleet.autoscaling.prometheus") }}
{{- end }}
{{- if and (eq $scale.kind "keda") (not .Values.monitoring.podMonitor.enabled) }}
{{- fail (print
    "generator.fleet.autoscaling.kind=keda selects the requests of this release by the label run, which only the "
  "PodMonitor sets: set monitoring.podMonitor.enabled=true") }}
{{- end }}
{{- end }}

{{/* What values.schema.json cannot say. Every message names the value and the remedy. */}}
{{- define "treeadv.validate" -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" .Release.Name) }}
{{- fail (printf "release name %s: KubeRay takes a name of lower-case letters, digits and '-' only, a letter first; install under another name" .Release.Name) }}
{{- end }}
{{- $groups := include "treeadv.groups" . | fromYaml }}
{{- range $name, $g := $groups }}
{{- $at := printf "workers.%s" $name }}
{{- if eq $name "headgroup" }}
{{- fail "workers.headgroup: KubeRay calls the head's own group so; choose another name" }}
{{- end }}
{{- if gt (int $g.minReplicas) (int $g.maxReplicas) }}
{{- fail (printf "%s.minReplicas=%v is more than maxReplicas=%v: raise the one or lower the other" $at $g.minReplicas $g.maxReplicas) }}
{{- end }}
{{- if or (lt (int $g.replicas) (int $g.minReplicas)) (gt (int $g.replicas) (int $g.maxReplicas)) }}
{{- fail (printf "%s.replicas=%v lies outside minReplicas=%v..maxReplicas=%v: KubeRay would not keep it" $at $g.replicas $g.minReplicas $g.maxReplicas) }}
{{- end }}
{{- if and (eq $g.role "learner") (or (ne (int $g.minReplicas) (int $g.maxReplicas)) (ne (int $g.replicas) (int $g.maxReplicas))) }}
{{- fail (printf "%s: a learner group needs replicas = minReplicas = maxReplicas, else the autoscaler takes an idle rank away; learners change their number at a checkpoint, by another release of the values" $at) }}
{{- end }}
{{- end }}
{{- include "treeadv.validateMemory" (dict "at" "head" "group" .Values.head) }}
{{- range $name, $g := $groups }}
{{- include "treeadv.validateMemory" (dict "at" (printf "workers.%s" $name) "group" $g) }}
{{- include "treeadv.validateGpu" (dict "root" $ "at" (printf "workers.%s" $name) "group" $g) }}
{{- end }}
{{- range $role := list "generator" "learner" "reward" }}
{{- $sum := include "treeadv.role" (dict "groups" $groups "role" $role) | fromYaml }}
{{- if lt (int $sum.count) 1 }}
{{- fail (printf "workers: no group gives a %s (role: %s, replicas > 0); without one the run cannot start" $role $role) }}
{{- end }}
{{- end }}
{{- include "treeadv.validateStorage" . }}
{{- include "treeadv.validateFleet" . }}
{{- end }}

{{/* Call with (dict "at" ... "group" ...). */}}
{{- define "treeadv.validateMemory" -}}
{{- $shm := include "treeadv.bytes" .group.shm | float64 }}
{{- if ge $shm (include "treeadv.bytes" .group.memory | float64) }}
{{- fail (printf "%s.shm=%s is not less than memory=%s, of which it is a part: raise the one or lower the other" .at .group.shm .group.memory) }}
{{- end }}
{{- if lt (mulf 0.9 $shm) 78643200.0 }}
{{- fail (printf "%s.shm=%s: Ray's object store takes nine tenths of it and needs 75Mi; give 100Mi or more" .at .group.shm) }}
{{- end }}
{{- end }}

{{/* Call with (dict "root" $ "at" ... "group" ...). */}}
{{- define "treeadv.validateGpu" -}}
{{- $gpu := int .group.gpu }}
{{- $slots := int .group.slots }}
{{- if gt $gpu 0 }}
{{- if eq .group.role "reward" }}
{{- fail (printf "%s.gpu=%d: a reward actor uses no GPU; set gpu=0" .at $gpu) }}
{{- end }}
{{- if eq .group.role "generator" }}
{{- if eq .root.Values.generator.kind "deployment" }}
{{- fail (printf "%s.gpu=%d: beside generator.kind=deployment the servers draw, on generator.fleet.gpu; set gpu=0 here" .at $gpu) }}
{{- end }}
{{- $generator := .root.Values.config.generator | default dict }}
{{- if eq ($generator.engine | default "embedded") "embedded" }}
{{- fail (printf "%s.gpu=%d: the embedded engine draws on the CPU; set config.generator.engine=sglang, or gpu=0" .at $gpu) }}
{{- end }}
{{- end }}
{{- $sum := include "treeadv.role" (dict "groups" (include "treeadv.groups" .root | fromYaml) "role" .group.role) | fromYaml }}
{{- if eq (float64 $sum.gpus) 0.0 }}
{{- fail (printf "%s.gpu=%d beside another %s group without a GPU: all actors of a role ask for the same; give GPUs to all groups or to none" .at $gpu .group.role) }}
{{- end }}
{{- if and (mod $gpu $slots) (mod $slots $gpu) }}
{{- fail (printf "%s.gpu=%d cannot be shared by slots=%d: Ray gives an actor whole GPUs or a part of one; make one a multiple of the other" .at $gpu $slots) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "treeadv.validateStorage" -}}
{{- $claim := .Values.storage.claim.existing | default .Values.storage.claim.size }}
{{- if not (or .Values.storage.uri $claim) }}
{{- fail "storage: queue and checkpoints have no place; set storage.uri, storage.claim.size or storage.claim.existing" }}
{{- end }}
{{- if and .Values.storage.uri $claim }}
{{- fail (printf "storage.uri=%s does not go with storage.claim (%s): the run lives in one of them, leave the other empty" .Values.storage.uri $claim) }}
{{- end }}
{{- if and .Values.storage.claim.existing .Values.storage.claim.size }}
{{- fail (printf "storage.claim.size=%s has no effect beside storage.claim.existing=%s: set one" .Values.storage.claim.size .Values.storage.claim.existing) }}
{{- end }}
{{- end }}

{{- define "treeadv.validateFleet" -}}
{{- $fleet := .Values.generator.fleet }}
{{- $scale := $fleet.autoscaling }}
{{- if eq .Values.generator.kind "deployment" }}
{{- if .Values.storage.uri }}
{{- fail (printf "generator.kind=deployment does not go with storage.uri=%s: its servers take weights from a volume, set storage.claim" .Values.storage.uri) }}
{{- end }}
{{- $path := (.Values.config.model | default dict).path | default "smollm2-135m-instruct" }}
{{- if not (contains "/" $path) }}
{{- fail (printf "config.model.path=%s does not go with generator.kind=deployment: its servers load a model of the hub (ORGANISATION/MODEL) or a folder of the volume (/data/...)" $path) }}
{{- end }}
{{- $generator := .Values.config.generator | default dict }}
{{- include "treeadv.validateMemory" (dict "at" "generator.fleet" "group" $fleet) }}
{{- if ne ($generator.engine | default "sglang") "sglang" }}
{{- fail (printf "config.generator.engine=%s does not go with generator.kind=deployment: leave it out" $generator.engine) }}
{{- end }}
{{- $sglang := $generator.sglang | default dict }}
{{- if ne ($sglang.weights | default "disk") "disk" }}
{{- fail (printf "config.generator.sglang.weights=%s does not go with generator.kind=deployment: servers of a Deployment take weights from disk" $sglang.weights) }}
{{- end }}
{{- $sum := include "treeadv.role" (dict "groups" (include "treeadv.groups" . | fromYaml) "role" "generator") | fromYaml }}
{{- if ne (int $sum.count) 1 }}
{{- fail (printf "workers: %v generators beside generator.kind=deployment; one drives all servers of the fleet (set one replica of one slot)" (int $sum.count)) }}
{{- end }}
{{- if and (ne $scale.kind "none") (or (gt (int $scale.minReplicas) (int $fleet.replicas)) (gt (int $fleet.replicas) (int $scale.maxReplicas))) }}
{{- fail (printf "generator.fleet.replicas=%v lies outside autoscaling.minReplicas=%v..maxReplicas=%v" $fleet.replicas $scale.minReplicas $scale.maxReplicas) }}
{{- end }}
{{- if and (eq $scale.kind "keda") (not $scale.prometheus) }}
{{- fail "generator.fleet.autoscaling.kind=keda needs generator.fleet.autoscaling.prometheus (address of Prometheus)" }}
{{- end }}
{{- if and (eq $scale.kind "keda") (not .Values.monitoring.podMonitor.enabled) }}
{{- fail "generator.fleet.autoscaling.kind=keda counts the requests of this release by the label run, which the PodMonitor sets: set monitoring.podMonitor.enabled=true" }}
{{- end }}
{{- if ge (int $fleet.drainSeconds) (int $fleet.graceSeconds) }}
{{- fail (printf "generator.fleet.drainSeconds=%v leaves nothing of graceSeconds=%v to finish requests" $fleet.drainSeconds $fleet.graceSeconds) }}
{{- end }}
{{- end }}
{{- end }}

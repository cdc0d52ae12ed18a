{{/* Totals of the groups of one role, as YAML: count, min, max (actors), cpus and gpus (of one actor).
Call with (dict "groups" ... "role" ...). */}}
{{- define "treeadv.role" -}}
{{- $sum := dict "count" 0 "min" 0 "max" 0 "cpus" -1.0 "gpus" -1.0 }}
{{- range $group := .groups }}
{{- if eq $group.role $.role }}
{{- $slots := int $group.slots }}
{{- $cpus := divf $group.cpu $slots }}
{{- $gpus := divf $group.gpu $slots }}
{{- $_ := set $sum "count" (add $sum.count (mul $group.replicas $slots)) }}
{{- $_ := set $sum "min" (add $sum.min (mul $group.minReplicas $slots)) }}
{{- $_ := set $sum "max" (add $sum.max (mul $group.maxReplicas $slots)) }}
{{- $_ := set $sum "cpus" (ternary $cpus (minf $cpus $sum.cpus) (lt $sum.cpus 0.0)) }}
{{- $_ := set $sum "gpus" (ternary $gpus (minf $gpus $sum.gpus) (lt $sum.gpus 0.0)) }}
{{- end }}
{{- end }}
{{- toYaml $sum }}
{{- end }}

{{/* Configuration of the run: the recipe, values.config over it, and over both the fields that other values determine. */}}
{{- define "treeadv.config" -}}
{{- toYaml (mergeOverwrite (include "treeadv.given" . | fromYaml) (include "treeadv.derived" . | fromYaml)) }}
{{- end }}

{{/* The fields that other values determine (deploy/schema.py lists the same fields). */}}
{{- define "treeadv.derived" -}}
{{- $groups := include "treeadv.groups" . | fromYaml }}
{{- $generator := include "treeadv.role" (dict "groups" $groups "role" "generator") | fromYaml }}
{{- $reward := include "treeadv.role" (dict "groups" $groups "role" "reward") | fromYaml }}
{{- $learner := include "treeadv.role" (dict "groups" $groups "role" "learner") | fromYaml }}
{{- $device := ternary "cuda" "cpu" (gt (float64 $learner.gpus) 0.0) }}
{{- $gpus := ternary .Values.generator.fleet.gpu $generator.gpus (eq .Values.generator.kind "deployment") }}
{{- $sglang := dict "device" (ternary "cuda" "cpu" (gt (float64 $gpus) 0.0)) "stubs" "/opt/treeadv/stubs" }}
{{- if eq .Values.generator.kind "deployment" }}
{{- $_ := set $sglang "url" (printf "http://%s-router:30000" (include "treeadv.name" .)) }}
{{- end }}
{{- $derived := dict
  "run" (dict "root" "/data/runs" "name" .Release.Name "storage" .Values.storage.uri)
  "model" (dict "cache" "/home/treeadv/models")
  "generator" (dict "count" (int $generator.count) "slot" "generator_slot" "cpus" $generator.cpus "gpus" $generator.gpus
    "threads" (max 1 (floor $generator.cpus)) "sglang" $sglang)
  "reward" (dict "count" (int $reward.count) "slot" "reward_slot" "cpus" $reward.cpus)
  "learner" (dict "count" (int $learner.count) "slot" "learner_slot" "cpus" $learner.cpus "gpus" $learner.gpus
    "threads" (max 1 (floor $learner.cpus)) "device" $device)
  "scaling" (dict "enabled" (and .Values.autoscaling.enabled (eq .Values.generator.kind "actor"))
    "min" (max 1 (int $generator.min)) "max" (int $generator.max))
  "metrics" (dict "host" "0.0.0.0" "port" (int .Values.monitoring.port)) }}
{{- if eq .Values.generator.kind "deployment" }}{{ $_ := set $derived.generator "engine" "sglang" }}{{ end }}
{{- toYaml $derived }}
{{- end }}

{{/* Arguments of a server of the fleet, as YAML. They equal the arguments that a generator gives to a server that it starts
(treeadv/engines/sglang/server.py). The check at the start of the run refuses a server with another entropy, dtype or model. */}}
{{- define "treeadv.fleetArguments" -}}
{{- $config := include "treeadv.config" . | fromYaml }}
{{- $sglang := $config.generator.sglang }}
{{- $all := dict "host" "0.0.0.0" "port" 30000 "model-path" $config.model.path "device" $sglang.device
  "dtype" ($config.generator.dtype | default "float32") "weight-version" "0" "log-level" "warning" "enable-metrics" true
  "skip-server-warmup" true }}
{{- if eq $sglang.device "cpu" }}
{{- $all = merge $all (dict "sleep-on-idle" true "attention-backend" "torch_native" "grammar-backend" "none"
  "disable-cuda-graph" true "max-total-tokens" 20000 "max-running-requests" 64 "mem-fraction-static" 0.5) }}
{{- end }}
{{- if eq ($sglang.entropy | default "exact") "exact" }}
{{- $all = merge $all (dict "enable-custom-logit-processor" true "disable-overlap-schedule" true) }}
{{- end }}
{{- range $name, $value := $sglang.args }}
{{- if and (contains "_" $name) (hasKey $sglang.args (replace "_" "-" $name)) }}
{{- fail (printf "generator.sglang.args has %s and %s, which are one argument; remove one" $name (replace "_" "-" $name)) }}
{{- end }}
{{- $_ := set $all (replace "_" "-" $name) $value }}
{{- end }}
{{- range $name, $value := $all }}
{{- if kindIs "float64" $value }}{{ if eq (floor $value) $value }}{{ $value = int64 $value }}{{ end }}{{ end }}
{{- if eq (toString $value) "true" }}
- --{{ $name }}
{{- else if ne (toString $value) "false" }}
- {{ printf "--%s=%v" $name $value | quote }}
{{- end }}
{{- end }}
{{- end }}

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

{{/* Configuration of the run: the recipe, values.config over it, and over both the fields that other values
determine. */}}
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
{{- $derived := dict
  "run" (dict "root" "/data/runs" "name" .Release.Name "storage" .Values.storage.uri)
  "model" (dict "cache" "/home/treeadv/models")
  "generator" (dict "count" (int $generator.count) "slot" "generator_slot" "cpus" $generator.cpus "gpus" $generator.gpus
    "threads" (max 1 (floor $generator.cpus)))
  "reward" (dict "count" (int $reward.count) "slot" "reward_slot" "cpus" $reward.cpus)
  "learner" (dict "count" (int $learner.count) "slot" "learner_slot" "cpus" $learner.cpus "gpus" $learner.gpus
    "threads" (max 1 (floor $learner.cpus)) "device" $device)
  "scaling" (dict "enabled" (and .Values.autoscaling.enabled (eq .Values.generator.kind "actor"))
    "min" (max 1 (int $generator.min)) "max" (int $generator.max))
  "metrics" (dict "host" "0.0.0.0" "port" (int .Values.monitoring.port)) }}
{{- range $path, $_ := .Files.Glob "files/servers/*.yaml" }}
{{- $file := include "treeadv.serverFile" (dict "root" $ "path" $path) | fromYaml }}
{{- $derived = mergeOverwrite $derived $file.config }}
{{- if and (eq $.Values.generator.kind "deployment") (eq $path (include "treeadv.serverPath" $)) }}
{{- $derived = mergeOverwrite $derived $file.fleet }}
{{- end }}
{{- end }}
{{- toYaml $derived }}
{{- end }}

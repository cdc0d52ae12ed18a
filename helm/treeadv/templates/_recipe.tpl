{{/* The recipe as YAML. Helm gives its text; a text that is no mapping ends the installation with one line. */}}
{{- define "treeadv.recipe" -}}
{{- $recipe := .Values.recipe | fromYaml }}
{{- if and (hasKey $recipe "Error") (eq (len $recipe) 1) }}
{{- fail (printf "recipe: not a YAML mapping of sections: %s; give a file with --set-file recipe=my.yaml"
  (regexReplaceAll "\\s+" (toString $recipe.Error) " ")) }}
{{- end }}
{{- toYaml $recipe }}
{{- end }}

{{/* The user's part of the configuration: the recipe, and config over it. Maps are merged key by key; a list replaces a
list. */}}
{{- define "treeadv.given" -}}
{{- toYaml (mergeOverwrite (include "treeadv.recipe" . | fromYaml) (deepCopy .Values.config)) }}
{{- end }}

{{/* Lines that name the fields of the recipe that the chart replaced. */}}
{{- define "treeadv.replaced" -}}
{{- $recipe := include "treeadv.recipe" . | fromYaml }}
{{- include "treeadv.differences" (dict "old" $recipe "new" (include "treeadv.derived" . | fromYaml) "at" "") }}
{{- end }}

{{- define "treeadv.differences" -}}
{{- range $key, $new := .new }}
{{- if hasKey $.old $key }}
{{- $old := get $.old $key }}
{{- if and (kindIs "map" $new) (kindIs "map" $old) }}
{{- include "treeadv.differences" (dict "old" $old "new" $new "at" (printf "%s%s." $.at $key)) }}
{{- else if ne (toJson $old) (toJson $new) }}
{{ $.at }}{{ $key }}={{ toJson $old }} became {{ toJson $new }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Checks the configuration of the run with files/config.schema.json (deploy/schema.py), and its paths. */}}
{{- define "treeadv.validateConfig" -}}
{{- $given := include "treeadv.given" . | fromYaml }}
{{- if not $given.task }}
{{- fail (print "task: the run needs one; give a recipe (--set-file recipe=my.yaml) or set config.task.source") }}
{{- end }}
{{- range $section, $value := $given }}
{{- if and (kindIs "invalid" $value) (hasKey (include "treeadv.derived" $ | fromYaml) $section) }}
{{- fail (printf "recipe: %s is empty; remove the key or give it fields" $section) }}
{{- end }}
{{- end }}
{{- $schema := .Files.Get "files/config.schema.json" | fromJson }}
{{- $config := include "treeadv.config" . | fromYaml }}
{{- with include "treeadv.fault" (dict "schema" $schema "defs" (get $schema "$defs") "value" $config "at" "") | trim }}
{{- fail (printf "recipe: %s" .) }}
{{- end }}
{{- $task := $config.task | default dict }}
{{- $sources := list (dict "at" "task.source" "path" $task.source) }}
{{- range $i, $part := $task.sources }}
{{- $sources = append $sources (dict "at" (printf "task.sources[%d].source" $i) "path" $part.source) }}
{{- end }}
{{- $sources = append $sources (dict "at" "eval.data" "path" ($config.eval | default dict).data) }}
{{- range $sources }}
{{- if regexMatch "^[^/:][^:]*(/[^:]*|\\.(jsonl|json|parquet))$" (toString (.path | default "")) }}
{{- fail (printf (print
    "%s=%s is a relative path, and a pod has another working folder: name a file of a volume (/data/...), "
  "of files (/files/...) or a data set of the hub (hf:...)") .at .path) }}
{{- end }}
{{- end }}
{{- range $role, $gpus := dict "generator" (include "treeadv.engineDevice" $) "learner" $config.learner.device }}
{{- $part := get $given $role | default dict }}
{{- $asked := eq (toString $part.device) "cuda" }}
{{- range $options := values $part }}
{{- if kindIs "map" $options }}{{ $asked = or $asked (eq (toString $options.device) "cuda") }}{{ end }}
{{- end }}
{{- if and (ne $gpus "cuda") (or $asked (gt (float64 ($part.gpus | default 0)) 0.0)) }}
{{- fail (printf "recipe: %s uses a GPU, and no pod of the %s has one: set workers.%s.gpu%s" $role $role $role
  (ternary " or generator.fleet.gpu" "" (eq $role "generator"))) }}
{{- end }}
{{- end }}
{{- $model := toString (($config.model | default dict).path | default "") }}
{{- if regexMatch "^(\\.|models/|[^/]+/[^/]+/)" $model }}
{{- fail (printf (print
    "model.path=%s is a relative path, and a pod has another working folder: name a model of the hub "
  "(ORGANISATION/MODEL) or a folder of a volume (/data/...)") $model) }}
{{- end }}
{{- end }}

{{/* The first fault of a value under a JSON schema, as text; empty if there is none. It knows the keywords that
deploy/schema.py writes. Call with (dict "schema" ... "defs" ... "value" ... "at" path). */}}
{{- define "treeadv.fault" -}}
{{- $s := .schema }}
{{- $v := .value }}
{{- $defs := .defs }}
{{- $at := .at | default "the configuration" }}
{{- $out := "" }}
{{- with get $s "$ref" }}
{{- $out = include "treeadv.fault" (dict "schema" (get $defs (trimPrefix "#/$defs/" .)) "defs" $defs "value" $v
    "at" $.at) }}
{{- end }}
{{- if and (not $out) $s.anyOf }}
{{- $faults := list }}
{{- range $s.anyOf }}
{{- $faults = append $faults (include "treeadv.fault" (dict "schema" . "defs" $defs "value" $v "at" $.at) | trim) }}
{{- end }}
{{- if not (has "" $faults) }}{{ $out = first $faults }}{{ end }}
{{- end }}
{{- if and (not $out) $s.type }}
{{- if not (include "treeadv.isA" (dict "type" $s.type "value" $v)) }}
{{- $out = printf "%s=%s is not of type %s" $at (toJson $v) $s.type }}
{{- end }}
{{- end }}
{{- if and (not $out) (hasKey $s "enum") (not (has $v $s.enum)) }}
{{- $out = printf "%s=%v is none of %s" $at $v (join ", " $s.enum) }}
{{- end }}
{{- if and (not $out) (hasKey $s "const") (ne (toJson $v) (toJson $s.const)) }}
{{- $out = printf "%s=%v is not %v" $at $v $s.const }}
{{- end }}
{{- if and (not $out) (kindIs "float64" $v) }}{{ $out = include "treeadv.faultOfNumber"
    (dict "schema" $s "value" $v "at" $at) }}{{ end }}
{{- if and (not $out) (kindIs "string" $v) $s.pattern (not (regexMatch (toString $s.pattern) (toString $v))) }}
{{- $out = printf "%s=%s does not match %s" $at (toJson $v) $s.pattern }}
{{- end }}
{{- if and (not $out) (kindIs "slice" $v) }}
{{- $out = include "treeadv.faultOfList" (dict "schema" $s "defs" $defs "value" $v "at" $at) }}
{{- end }}
{{- if and (not $out) (kindIs "map" $v) }}
{{- $out = include "treeadv.faultOfMap" (dict "schema" $s "defs" $defs "value" $v "at" $.at) }}
{{- end }}
{{- $out | trim }}
{{- end }}

{{- define "treeadv.isA" -}}
{{- $kind := kindOf .value }}
{{- if eq .type "integer" }}{{ if eq $kind "float64" }}{{ if eq (floor .value) .value }}yes{{ end }}{{ end }}
{{- else if eq $kind (get (dict "string" "string" "number" "float64" "boolean" "bool" "array" "slice" "object" "map"
    "null" "invalid") .type) }}yes
{{- end }}
{{- end }}

{{- define "treeadv.faultOfNumber" -}}
{{- $s := .schema }}
{{- $v := .value }}
{{- if and (hasKey $s "minimum") (lt $v (float64 $s.minimum)) }}{{ printf "%s=%v is less than %v" .at $v $s.minimum }}
{{- else if and (hasKey $s "maximum") (gt $v (float64 $s.maximum)) }}{{ printf "%s=%v is more than %v"
    .at $v $s.maximum }}
{{- else if and (hasKey $s "exclusiveMinimum") (le $v (float64 $s.exclusiveMinimum)) }}
{{- printf "%s=%v is not more than %v" .at $v $s.exclusiveMinimum }}
{{- else if and (hasKey $s "exclusiveMaximum") (ge $v (float64 $s.exclusiveMaximum)) }}
{{- printf "%s=%v is not less than %v" .at $v $s.exclusiveMaximum }}
{{- end }}
{{- end }}

{{- define "treeadv.faultOfList" -}}
{{- $s := .schema }}
{{- $out := "" }}
{{- if and (hasKey $s "minItems") (lt (len .value) (int $s.minItems)) }}
{{- $out = printf "%s has %d entries and needs %v or more" .at (len .value) $s.minItems }}
{{- else if and (hasKey $s "maxItems") (gt (len .value) (int $s.maxItems)) }}
{{- $out = printf "%s has %d entries and may have %v" .at (len .value) $s.maxItems }}
{{- end }}
{{- range $i, $item := .value }}
{{- $part := $s.items }}
{{- if and $s.prefixItems (lt $i (len $s.prefixItems)) }}{{ $part = index $s.prefixItems $i }}{{ end }}
{{- if and (not $out) (kindIs "map" $part) }}
{{- $out = include "treeadv.fault" (dict "schema" $part "defs" $.defs "value" $item "at" (printf "%s[%d]" $.at $i)) }}
{{- end }}
{{- end }}
{{- $out }}
{{- end }}

{{- define "treeadv.faultOfMap" -}}
{{- $s := .schema }}
{{- $v := .value }}
{{- $defs := .defs }}
{{- $dot := ternary "" (printf "%s." .at) (eq (toString .at) "") }}
{{- $known := $s.properties | default dict }}
{{- $out := "" }}
{{- range $s.required }}
{{- if and (not $out) (not (hasKey $v .)) }}{{ $out = printf "%s%s is missing" $dot . }}{{ end }}
{{- end }}
{{- range $key, $item := $v }}
{{- if not $out }}
{{- if hasKey $known $key }}
{{- $out = include "treeadv.fault" (dict "schema" (get $known $key) "defs" $defs "value" $item
    "at" (print $dot $key)) }}
{{- else if kindIs "map" $s.additionalProperties }}
{{- $out = include "treeadv.fault" (dict "schema" $s.additionalProperties "defs" $defs "value" $item
    "at" (print $dot $key)) }}
{{- else if eq (toJson $s.additionalProperties) "false" }}
{{- $out = printf "%s%s is unknown; the known keys here are %s" $dot $key (keys $known | sortAlpha | join ", ") }}
{{- end }}
{{- end }}
{{- end }}
{{- if and (not $out) (get $s "if") }}
{{- if not (include "treeadv.fault" (dict "schema" (get $s "if") "defs" $defs "value" $v "at" .at)) }}
{{- $out = include "treeadv.fault" (dict "schema" $s.then "defs" $defs "value" $v "at" .at) }}
{{- end }}
{{- end }}
{{- $out }}
{{- end }}

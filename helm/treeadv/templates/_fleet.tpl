{{/* The file that describes the servers of the fleet. */}}
{{- define "treeadv.serverPath" -}}
files/servers/{{ .Values.generator.fleet.engine }}.yaml
{{- end }}

{{/* A file of files/servers, as YAML. Call with (dict "root" $ "path" ...); "config" adds the run's configuration,
which the parts server, router and requests need. */}}
{{- define "treeadv.serverFile" -}}
{{- $known := dict "device" (include "treeadv.engineDevice" .root) "router" (printf "%s-router"
    (include "treeadv.name" .root)) }}
{{- $known = merge $known (dict "fleet" .root.Values.generator.fleet "config" .config "Release" .root.Release) }}
{{- tpl (.root.Files.Get .path) (set $known "Template" .root.Template) }}
{{- end }}

{{/* The device of an engine: that of the fleet's servers, or that of the generators. */}}
{{- define "treeadv.engineDevice" -}}
{{- $groups := include "treeadv.groups" . | fromYaml }}
{{- $gpus := (include "treeadv.role" (dict "groups" $groups "role" "generator") | fromYaml).gpus }}
{{- if eq .Values.generator.kind "deployment" }}{{ $gpus = .Values.generator.fleet.gpu }}{{ end }}
{{- ternary "cuda" "cpu" (gt (float64 $gpus) 0.0) }}
{{- end }}

{{/* The description of the fleet's servers with the parts server, router and requests, as YAML. */}}
{{- define "treeadv.server" -}}
{{- $config := include "treeadv.config" . | fromYaml }}
{{- include "treeadv.serverFile" (dict "root" . "path" (include "treeadv.serverPath" .) "config" $config) }}
{{- end }}

{{/* Arguments of a server of the fleet, as a YAML list. Call with the part server of the description. */}}
{{- define "treeadv.serverArguments" -}}
{{- $all := .arguments }}
{{- range $name, $value := .overrides }}
{{- if and (contains "_" $name) (hasKey $.overrides (replace "_" "-" $name)) }}
{{- fail (printf "%s has %s and %s, which are one argument; remove one" $.overridesAt $name (replace "_" "-" $name)) }}
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

{{/* The chart's own environment, mounts and volumes of a server of the fleet, as YAML lists. */}}
{{- define "treeadv.fleetEnvironment" -}}
- {name: HOME, value: /home/treeadv}
- {name: USER, value: treeadv}
- {name: HF_HOME, value: /home/treeadv/huggingface}
- {name: OMP_NUM_THREADS, value: {{ .fleet.cpu | quote }}}
{{- range $name, $value := .server.env }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end }}

{{- define "treeadv.fleetMounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: home, mountPath: /home/treeadv}
- {name: shm, mountPath: /dev/shm}
- {name: runs, mountPath: /data, readOnly: true}
{{- end }}

{{- define "treeadv.fleetVolumes" -}}
{{- include "treeadv.scratchVolumes" .Values.generator.fleet }}
- name: runs
  persistentVolumeClaim: {claimName: {{ include "treeadv.claim" . }}}
{{- end }}

{{/* Template of a Ray pod. "ports" is the number of metrics ports.
Call with (dict "root" $ "group" ... "role" head|generator|learner|reward "ports" ...). */}}
{{- define "treeadv.rayPod" -}}
{{- $root := .root }}
{{- $head := eq .role "head" -}}
{{- $more := dict "root" $root "role" .role "group" .group "at" (ternary "head" (printf "workers.%s" .name) $head) }}
metadata: {{- include "treeadv.podMetadata" (dict "root" $root "role" .role) | nindent 2 }}
spec:
  {{- include "treeadv.account" (dict "root" $root "role" .role) | trim | nindent 2 }}
  restartPolicy: Never
  terminationGracePeriodSeconds: {{ .group.graceSeconds }}
  {{- include "treeadv.podSpec" (dict "root" $root "group" .group) | nindent 2 }}
  {{- $container := printf "ray-%s" (ternary "head" "worker" $head) }}
  {{- $init := dict "own" (printf "- name: %s" $container) "reserved" (list "wait-gcs-ready" "autoscaler") }}
  {{- include "treeadv.podAdditions" (merge $init $more) | trim | nindent 2 }}
  containers:
    - name: {{ $container }}
      image: {{ include "treeadv.image" (dict "image" $root.Values.image "tag" $root.Chart.AppVersion) }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      securityContext: {{- include "treeadv.containerSecurity" $root | nindent 8 }}
      resources: {{- include "treeadv.resources" .group | nindent 8 }}
      ports:
        {{- if $head }}
        - {name: gcs-server, containerPort: 6379}
        - {name: dashboard, containerPort: 8265}
        - {name: client, containerPort: 10001}
        {{- end }}
        # With another name, KubeRay adds a second port 8080 to the head's Service, and the API server refuses it.
        - {name: metrics, containerPort: 8080}
        {{- range $i := until (int .ports) }}
        - {name: treeadv-{{ $i }}, containerPort: {{ add $root.Values.monitoring.port $i }}}
        {{- end }}
      {{- $env := include "treeadv.rayEnvironment" $root }}
      {{- include "treeadv.environment" (merge (dict "own" $env) $more) | trim | nindent 6 }}
      lifecycle:
        preStop:
          # The head ends the run with a checkpoint. A worker accepts no new actors and waits until the driver has moved
          # its own.
          exec:
            {{- $grace := int .group.graceSeconds }}
            {{- $seconds := sub $grace (min 10 (div $grace 2)) }}
            command: [python, -m, actors.driver.drain, {{ ternary "driver" "node" $head }}, --seconds,
                {{ quote $seconds }}]
      {{- $own := dict "own" (include "treeadv.rayVolumes" .) "reserved" (list "ray-logs" "shared-mem") }}
      {{- $volumes := include "treeadv.volumes" (merge $own $more) }}
      {{- $mounts := dict "own" (include "treeadv.rayMounts" .) "volumes" $volumes }}
      volumeMounts: {{- include "treeadv.mounts" (merge $mounts $more) | nindent 8 }}
  volumes: {{- $volumes | nindent 4 }}
{{- end }}

{{/* The chart's own environment, mounts and volumes of a Ray pod, as YAML lists. */}}
{{- define "treeadv.rayEnvironment" -}}
- {name: HOME, value: /home/treeadv}
# The image has no user name for the id in values.user, and some libraries need one.
- {name: USER, value: treeadv}
- {name: HF_HOME, value: /home/treeadv/huggingface}
{{- if .Values.files }}
- {name: PYTHONPATH, value: /files}
{{- end }}
{{- end }}

{{- define "treeadv.rayMounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: home, mountPath: /home/treeadv}
- {name: shm, mountPath: /dev/shm}
{{- if eq .role "head" }}
- {name: config, mountPath: /etc/treeadv, readOnly: true}
{{- end }}
{{- if .root.Values.files }}
- {name: files, mountPath: /files, readOnly: true}
{{- end }}
# A reward pod reads tokenizers, tasks and verifiers. Model output that it grades must not change the files of the run.
- {name: runs, mountPath: /data, readOnly: {{ eq .role "reward" }}}
{{- end }}

{{- define "treeadv.rayVolumes" -}}
{{- include "treeadv.scratchVolumes" .group }}
{{- if eq .role "head" }}
- name: config
  configMap: {name: {{ include "treeadv.name" .root }}}
{{- end }}
{{- if .root.Values.files }}
- name: files
  configMap: {name: {{ include "treeadv.name" .root }}-files}
{{- end }}
- name: runs
  {{- if .root.Values.storage.uri }}
  # Scratch for checkpoints during upload and download. Durable files are in the object store.
  emptyDir: {}
  {{- else }}
  persistentVolumeClaim: {claimName: {{ include "treeadv.claim" .root }}}
  {{- end }}
{{- end }}

{{- define "treeadv.scratchVolumes" -}}
- name: tmp
  emptyDir: {}
- name: home
  emptyDir: {}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ .shm }}}
{{- end }}

{{/* Labels and annotations of the RayJob or RayCluster. */}}
{{- define "treeadv.rayMetadata" -}}
{{- $labels := dict "own" (include "treeadv.labels" .) "more" .Values.rayLabels "at" "rayLabels" -}}
labels: {{- include "treeadv.joined" $labels | nindent 2 }}
{{- with .Values.rayAnnotations }}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Spec of the RayCluster, for both modes. */}}
{{- define "treeadv.rayCluster" -}}
rayVersion: {{ .Values.rayVersion | quote }}
authOptions:
  # KubeRay makes a secret token for the cluster. Without a token, anyone who can connect to the head can run code
  # on it.
  mode: token
enableInTreeAutoscaling: {{ .Values.autoscaling.enabled }}
{{- if .Values.autoscaling.enabled }}
autoscalerOptions:
  version: v2
  upscalingMode: {{ .Values.autoscaling.upscalingMode }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  securityContext: {{- include "treeadv.containerSecurity" . | nindent 4 }}
  resources: {{- include "treeadv.resources" .Values.autoscaling | nindent 4 }}
  env:
    - {name: HOME, value: /tmp}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
{{- end }}
headGroupSpec:
  rayStartParams:
    # Only actors that request no CPU (driver, queue) run on the head.
    num-cpus: "0"
    dashboard-host: 0.0.0.0
    object-store-memory: {{ include "treeadv.objectStore" .Values.head | quote }}
  template: {{- include "treeadv.rayPod" (dict "root" . "group" .Values.head "role" "head" "ports" 2) | nindent 4 }}
workerGroupSpecs:
  {{- range $name, $group := include "treeadv.groups" . | fromYaml }}
  - groupName: {{ $name }}
    replicas: {{ $group.replicas }}
    minReplicas: {{ $group.minReplicas }}
    maxReplicas: {{ $group.maxReplicas }}
    {{- if $.Values.autoscaling.enabled }}
    idleTimeoutSeconds: {{ $group.idleTimeoutSeconds }}
    {{- end }}
    rayStartParams:
      object-store-memory: {{ include "treeadv.objectStore" $group | quote }}
      # The inner quotes are for the shell in which KubeRay starts Ray.
      resources: {{ printf "'{\"%s_slot\": %d}'" $group.role (int $group.slots) | quote }}
      {{- if and $group.gpu (not (hasSuffix "gpu" $group.gpuResource)) }}
      # Ray counts a MIG partition only where it is named.
      num-gpus: {{ quote $group.gpu }}
      {{- end }}
    {{- $pod := dict "root" $ "group" $group "role" $group.role "ports" $group.slots "name" $name }}
    template: {{- include "treeadv.rayPod" $pod | nindent 6 }}
  {{- end }}
{{- end }}

{{/* One Ray pod template. Call with (dict "root" $ "group" ... "role" head|generator|learner|reward "ports" number of metrics ports). */}}
{{- define "treeadv.rayPod" -}}
{{- $root := .root }}
{{- $head := eq .role "head" -}}
metadata: {{- include "treeadv.podMetadata" (dict "root" $root "role" .role) | nindent 2 }}
spec:
  {{- include "treeadv.account" (dict "root" $root "role" .role) | trim | nindent 2 }}
  restartPolicy: Never
  terminationGracePeriodSeconds: {{ .group.graceSeconds }}
  {{- include "treeadv.podSpec" (dict "root" $root "group" .group) | nindent 2 }}
  containers:
    - name: ray-{{ ternary "head" "worker" $head }}
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
        # By this name, else KubeRay adds another port of that number to the head's Service, which no API server takes.
        - {name: metrics, containerPort: 8080}
        {{- range $i := until (int .ports) }}
        - {name: treeadv-{{ $i }}, containerPort: {{ add $root.Values.monitoring.port $i }}}
        {{- end }}
      env:
        - {name: HOME, value: /home/treeadv}
        # Programs that ask for the user's name find none where values.user is not the image's.
        - {name: USER, value: treeadv}
        - {name: HF_HOME, value: /home/treeadv/huggingface}
      {{- with include "treeadv.secrets" (dict "root" $root "role" .role "group" .group) | trim }}{{ . | nindent 6 }}{{ end }}
      lifecycle:
        preStop:
          # The head ends the run with a checkpoint; a worker takes no new actors and waits until the driver has retired those it has.
          exec:
            command: [python, -m, actors.driver.drain, {{ ternary "driver" "node" $head }}, --seconds, {{ sub (int .group.graceSeconds) (min 10 (div (int .group.graceSeconds) 2)) | quote }}]
      volumeMounts:
        - {name: tmp, mountPath: /tmp}
        - {name: home, mountPath: /home/treeadv}
        - {name: shm, mountPath: /dev/shm}
        {{- if $head }}
        - {name: config, mountPath: /etc/treeadv, readOnly: true}
        {{- end }}
        # A reward pod finds tokenizers, tasks and verifiers there; what it judges must not reach the run.
        - {name: runs, mountPath: /data, readOnly: {{ eq .role "reward" }}}
  volumes:
    - name: tmp
      emptyDir: {}
    - name: home
      emptyDir: {}
    - name: shm
      emptyDir: {medium: Memory, sizeLimit: {{ .group.shm }}}
    {{- if $head }}
    - name: config
      configMap: {name: {{ include "treeadv.name" $root }}}
    {{- end }}
    - name: runs
      {{- if $root.Values.storage.uri }}
      # Scratch: checkpoints on their way to the store and back, which is all that must outlive the pod.
      emptyDir: {}
      {{- else }}
      persistentVolumeClaim: {claimName: {{ include "treeadv.claim" $root }}}
      {{- end }}
{{- end }}

{{/* The spec of the RayCluster, the same alone and inside a RayJob. */}}
{{- define "treeadv.rayCluster" -}}
rayVersion: {{ .Values.rayVersion | quote }}
authOptions:
  # KubeRay makes a secret token for the cluster; without one, whoever reaches the head may run code on it.
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
    # Nothing but what asks for no CPU (driver, queue) runs on the head.
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
      # The inner quotes are for the shell that KubeRay starts Ray with.
      resources: {{ printf "'{\"%s_slot\": %d}'" $group.role (int $group.slots) | quote }}
    template: {{- include "treeadv.rayPod" (dict "root" $ "group" $group "role" $group.role "ports" $group.slots) | nindent 6 }}
  {{- end }}
{{- end }}

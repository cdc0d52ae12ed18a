{{/* The chart's own environment, mounts and volumes of a server of the fleet, as YAML lists. */}}
{{- define "treeadv.fleetEnvironment" -}}
- {name: HOME, value: /home/treeadv}
- {name: USER, value: treeadv}
- {name: HF_HOME, value: /home/treeadv/huggingface}
- {name: OMP_NUM_THREADS, value: {{ .cpu | quote }}}
{{- if not .gpu }}
- {name: SGLANG_USE_CPU_ENGINE, value: "1"}
- {name: PYTHONPATH, value: /opt/treeadv/stubs}
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

{{- define "partita.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "partita.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else -}}
{{- $name := include "partita.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "partita.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{ include "partita.selectorLabels" . }}
{{- end }}

{{- define "partita.selectorLabels" -}}
{{- if .Values.selectorLabelsOverride -}}
{{ toYaml .Values.selectorLabelsOverride }}
{{- else -}}
app.kubernetes.io/name: {{ include "partita.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
{{- end }}

{{- define "partita.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "partita.simulatorImage" -}}
{{ .Values.simulator.image.repository }}:{{ .Values.simulator.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "partita.pluginServiceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (printf "%s-kubelet-plugin" (include "partita.fullname" .)) }}
{{- else -}}
{{ required "serviceAccount.name: name the account to use, since serviceAccount.create is false" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "partita.controllerServiceAccount" -}}
{{ include "partita.fullname" . }}-controller
{{- end }}

{{- define "partita.daemonServiceAccount" -}}
{{ include "partita.fullname" . }}-imex-daemon
{{- end }}

{{/* The drivers that one node process serves, as a comma list. */}}
{{- define "partita.drivers" -}}
{{- $drivers := list -}}
{{- if .Values.resources.gpus.enabled }}{{ $drivers = append $drivers "gpu.nvidia.com" }}{{ end -}}
{{- if .Values.resources.computeDomains.enabled }}{{ $drivers = append $drivers "compute-domain.nvidia.com" }}{{ end -}}
{{- if .Values.resources.amd.enabled }}{{ $drivers = append $drivers "gpu.amd.com" }}{{ end -}}
{{- join "," $drivers }}
{{- end }}

{{/* Whether there is a controller: it runs where it has something to do. */}}
{{- define "partita.controller" -}}
{{- if and .Values.controller.enabled (or .Values.resources.computeDomains.enabled .Values.controller.nodePartitioning.enabled) }}true{{ end -}}
{{- end }}

{{/* Whether nodes of AMD GPUs are repartitioned as a whole. */}}
{{- define "partita.nodePartitioning" -}}
{{- if and .Values.controller.enabled .Values.controller.nodePartitioning.enabled }}true{{ end -}}
{{- end }}

{{/* What lets a pod stay on, and come to, a node that is being repartitioned; added to a list of tolerations. */}}
{{- define "partita.partitioningTolerations" -}}
- key: amd-dcm
  operator: Exists
  effect: NoExecute
- key: kaiwo-partitioning
  operator: Exists
{{- end }}

{{/* Which nodes the plugin runs on. */}}
{{- define "partita.pluginNodeSelector" -}}
{{- $simulated := ternary .Values.simulator.nodeSelector (dict) (ne .Values.simulator.profile "") -}}
{{- toYaml (merge (dict) $simulated .Values.kubeletPlugin.nodeSelector) }}
{{- end }}

{{/* Where the driver tree is on the node; simulated hardware has the place of a driver container's. */}}
{{- define "partita.driverRoot" -}}
{{- if .Values.simulator.profile -}}/run/nvidia/driver{{- else -}}{{ .Values.nvidiaDriverRoot }}{{- end -}}
{{- end }}

{{/* Where the plugin sees that tree: at the same path, except for the whole host. */}}
{{- define "partita.driverRootMount" -}}
{{- $root := include "partita.driverRoot" . -}}
{{- if eq $root "/" -}}/driver-root{{- else -}}{{ $root }}{{- end -}}
{{- end }}

{{/* The same of amdgpu and ROCm. */}}
{{- define "partita.amdDriverRoot" -}}
{{- if .Values.simulator.profile -}}/run/nvidia/driver
{{- else -}}{{ .Values.resources.amd.driverRoot | default .Values.nvidiaDriverRoot }}{{- end -}}
{{- end }}

{{- define "partita.amdDriverRootMount" -}}
{{- $root := include "partita.amdDriverRoot" . -}}
{{- if eq $root "/" -}}/driver-root{{- else -}}{{ $root }}{{- end -}}
{{- end }}

{{/* Name -> extended resource ("" for none) of every DeviceClass that the values ask for, as YAML. */}}
{{- define "partita.deviceClasses" -}}
{{- $classes := dict -}}
{{- if .Values.resources.gpus.enabled -}}
{{- $_ := set $classes "gpu.nvidia.com" (dict "driver" "gpu.nvidia.com" "type" "gpu" "extended" .Values.resources.gpus.extendedResourceName) -}}
{{- $_ := set $classes "mig.nvidia.com" (dict "driver" "gpu.nvidia.com" "type" "mig") -}}
{{- range .Values.resources.gpus.migClasses -}}
{{- $name := . | replace "+" "." -}}
{{- $_ := set $classes (printf "mig-%s.nvidia.com" $name) (dict "driver" "gpu.nvidia.com" "type" "mig" "profile" . "extended" (printf "nvidia.com/mig-%s" $name)) -}}
{{- end -}}
{{- end -}}
{{- if .Values.resources.computeDomains.enabled -}}
{{- $_ := set $classes "compute-domain-daemon.nvidia.com" (dict "driver" "compute-domain.nvidia.com" "type" "daemon") -}}
{{- $_ := set $classes "compute-domain-default-channel.nvidia.com" (dict "driver" "compute-domain.nvidia.com" "type" "channel" "channel" true) -}}
{{- end -}}
{{- if .Values.resources.amd.enabled -}}
{{- $extended := .Values.resources.amd.extendedResourceName -}}
{{- if eq .Values.resources.amd.partitioning "static" -}}
{{- $_ := set $classes "gpu.amd.com" (dict "driver" "gpu.amd.com" "extended" $extended) -}}
{{- else -}}
{{- /* Every GPU is offered as a whole and in parts, and an extended resource means a whole one. */ -}}
{{- $_ := set $classes "gpu.amd.com" (dict "driver" "gpu.amd.com") -}}
{{- $_ := set $classes "gpu.amd.com-spx" (dict "driver" "gpu.amd.com" "type" "amdgpu" "extended" $extended) -}}
{{- end -}}
{{- end -}}
{{- toYaml $classes }}
{{- end }}

{{/* Whether a stored object is this release's own. Takes a list: root context, object. */}}
{{- define "partita.owns" -}}
{{- $root := index . 0 -}}
{{- $annotations := (index . 1).metadata.annotations | default dict -}}
{{- if and (eq (index $annotations "meta.helm.sh/release-name" | default "") $root.Release.Name) (eq (index $annotations "meta.helm.sh/release-namespace" | default "") $root.Release.Namespace) -}}
true
{{- end -}}
{{- end }}

{{/* Annotations of a hook that leaves nothing behind. Takes a list: events, weight. */}}
{{- define "partita.hook" -}}
helm.sh/hook: {{ index . 0 }}
helm.sh/hook-weight: {{ index . 1 | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}

{{/*
Environment of a container. Takes a list: the chart's own entries as YAML, those of the values. A name that the values
have is theirs: one that is there twice cannot be applied on the server's side.
*/}}
{{- define "partita.env" -}}
{{- $given := dict -}}
{{- range index . 1 }}{{ $_ := set $given .name true }}{{ end -}}
{{- $env := list -}}
{{- range index . 0 | fromYamlArray }}{{ if not (hasKey $given .name) }}{{ $env = append $env . }}{{ end }}{{ end -}}
{{- toYaml (concat $env (index . 1 | default list)) }}
{{- end }}

{{/* klog's verbosity in words: from 6 on it tells of every request. */}}
{{- define "partita.logLevel" -}}
{{- if ge (int .Values.logVerbosity) 6 }}DEBUG{{ else if ge (int .Values.logVerbosity) 1 }}INFO{{ else }}WARNING{{ end }}
{{- end }}

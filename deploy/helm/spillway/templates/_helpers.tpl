{{- define "spillway.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "spillway.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- else if contains (include "spillway.name" .) .Release.Name }}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "spillway.name" .) | trunc 52 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "spillway.selector" -}}
app.kubernetes.io/name: {{ include "spillway.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "spillway.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "spillway.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "spillway.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}
{{- end }}

{{- define "spillway.configMap" -}}
{{- default (include "spillway.fullname" .) .Values.existingConfigMap }}
{{- end }}

{{- define "spillway.adminSecret" -}}
{{- default (printf "%s-admin" (include "spillway.fullname" .)) .Values.adminToken.existingSecret }}
{{- end }}

{{- define "spillway.controller" -}}
{{- if .Values.persistence.enabled }}StatefulSet{{ else }}Deployment{{ end }}
{{- end }}

{{- define "spillway.rules" -}}
- {apiGroups: [gateway.networking.k8s.io], resources: [gateways, httproutes, grpcroutes, referencegrants, backendtlspolicies], verbs: [list, watch]}
- {apiGroups: [gateway.networking.k8s.io], resources: [gateways/status, httproutes/status, grpcroutes/status, backendtlspolicies/status], verbs: [patch]}
- {apiGroups: [""], resources: [services], verbs: [list, watch]}
- {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}
{{- if .inferencePools }}
- {apiGroups: [inference.networking.k8s.io], resources: [inferencepools], verbs: [list, watch]}
- {apiGroups: [inference.networking.k8s.io], resources: [inferencepools/status], verbs: [patch]}
- {apiGroups: [""], resources: [pods], verbs: [list, watch]}
{{- end }}
{{- if .tlsSecrets }}
- {apiGroups: [""], resources: [secrets], verbs: [list, watch]}
{{- end }}
{{- if .caConfigMaps }}
- {apiGroups: [""], resources: [configmaps], verbs: [list, watch]}
{{- end }}
{{- end }}

{{- define "spillway.mountsToken" -}}
{{- or .Values.automountServiceAccountToken .Values.kubernetes.enabled }}
{{- end }}

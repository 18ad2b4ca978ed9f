// Command manifests reads Kubernetes manifests from standard input and refuses what an API server would refuse or drop: kinds that it
// does not know, fields that a kind does not have, values of another type, names that repeat. Pod templates must hold to the Pod
// Security Standard "restricted". It prints one line for each object: kind and name; with the argument `configuration` it prints the
// gateway's configuration out of the ConfigMap instead.
package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
)

func main() {
	names, configuration := io.Writer(os.Stdout), io.Discard
	if len(os.Args) > 1 && os.Args[1] == "configuration" {
		names, configuration = io.Discard, os.Stdout
	}
	if err := check(os.Stdin, names, configuration); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func check(in io.Reader, names, configuration io.Writer) error {
	if err := monitoring.AddToScheme(scheme.Scheme); err != nil {
		return err
	}
	decoder := json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme.Scheme, scheme.Scheme, json.SerializerOptions{Yaml: true, Strict: true})
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	for documents := yaml.NewYAMLReader(bufio.NewReader(in)); ; {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if isEmpty(document) {
			continue
		}
		object, kind, err := decode(decoder, document)
		if err != nil {
			return fmt.Errorf("%w\n%s", err, document)
		}
		name := object.GetName()
		if problems := validation.IsDNS1123Subdomain(name); len(problems) > 0 {
			return fmt.Errorf("%s %q: %v", kind, name, problems)
		}
		key := kind + "/" + name
		if seen[key] {
			return fmt.Errorf("%s stands twice", key)
		}
		seen[key] = true
		if template := podTemplate(object); template != nil {
			level := api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}
			results := evaluator.EvaluatePod(level, &template.ObjectMeta, &template.Spec)
			if verdict := policy.AggregateCheckResults(results); !verdict.Allowed {
				return fmt.Errorf("%s is not restricted: %s", key, verdict.ForbiddenDetail())
			}
		}
		fmt.Fprintln(names, key)
		if configMap, ok := object.(*corev1.ConfigMap); ok {
			fmt.Fprint(configuration, configMap.Data["spillway.yaml"])
		}
	}
	if len(seen) == 0 {
		return errors.New("no object was read")
	}
	return nil
}

// decode reads an object of a known kind strictly. Objects of KEDA are checked for their kind alone: its module brings a hundred others.
func decode(decoder runtime.Decoder, document []byte) (metav1.Object, string, error) {
	var meta struct {
		metav1.TypeMeta   `json:",inline"`
		metav1.ObjectMeta `json:"metadata"`
	}
	if err := yaml.Unmarshal(document, &meta); err != nil {
		return nil, "", err
	}
	if meta.GroupVersionKind() == (schema.GroupVersionKind{Group: "keda.sh", Version: "v1alpha1", Kind: "ScaledObject"}) {
		return &meta.ObjectMeta, meta.Kind, nil
	}
	object, _, err := decoder.Decode(document, nil, nil)
	if err != nil {
		return nil, "", err
	}
	named, ok := object.(metav1.Object)
	if !ok {
		return nil, "", fmt.Errorf("%s has no name", meta.Kind)
	}
	return named, meta.Kind, nil
}

func podTemplate(object metav1.Object) *corev1.PodTemplateSpec {
	switch object := object.(type) {
	case *appsv1.Deployment:
		return &object.Spec.Template
	case *appsv1.StatefulSet:
		return &object.Spec.Template
	default:
		return nil
	}
}

func isEmpty(document []byte) bool {
	for _, line := range bytes.Split(document, []byte("\n")) {
		line = bytes.TrimSpace(line)
		if len(line) > 0 && line[0] != '#' && !bytes.Equal(line, []byte("---")) {
			return false
		}
	}
	return true
}

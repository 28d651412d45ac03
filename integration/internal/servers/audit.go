package servers

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// auditPolicy lets the API server write down every request for leases when it
// has answered; of a watch, when it begins and when it ends.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
  resources: [{group: coordination.k8s.io}]
- level: None
`

// AuditEvent is one request for leases as the API server saw it.
type AuditEvent struct {
	Time      time.Time // when it arrived
	Verb      string    // get, list, watch, create, update, patch, delete, deletecollection
	User      string
	Agent     string // User-Agent
	Namespace string
	Name      string // of the object; empty for a create, a list or a watch
	Query     string // after the "?"
	Code      int    // of the reply
}

// marker is how requests of Requests itself are known.
const marker = "leasehold-test-marker-"

// Requests returns every request for leases that the API server has answered,
// in the order of the answers, a watch as soon as it runs. Requests that were
// answered before the call are among them.
func (k *Kubernetes) Requests(ctx context.Context) ([]AuditEvent, error) {
	if k.api == nil {
		return nil, fmt.Errorf("the audit log of a given cluster is not read: %w", errors.ErrUnsupported)
	}
	// What is written before a request of our own has arrived with it.
	client, err := k.admin()
	if err != nil {
		return nil, err
	}
	mark := marker + strings.ToLower(rand.Text())
	if _, err := client.CoordinationV1().Leases("default").Get(ctx, mark, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("marking the audit log: %w", err)
	}
	var log []byte
	err = within(ctx, 30*time.Second, func() (bool, error) {
		log, _, err = k.api.output(ctx)
		return bytes.Contains(log, []byte(mark)), err
	})
	if err != nil {
		return nil, fmt.Errorf("reading the audit log: %w", err)
	}
	return parseAudit(log)
}

func parseAudit(log []byte) ([]AuditEvent, error) {
	var events []AuditEvent
	seen := make(map[string]bool)
	for line := range bytes.Lines(log) {
		if !bytes.HasPrefix(line, []byte("{")) {
			continue
		}
		var e struct {
			AuditID    string `json:"auditID"`
			RequestURI string `json:"requestURI"`
			Verb       string `json:"verb"`
			User       struct {
				Username string `json:"username"`
			} `json:"user"`
			UserAgent string `json:"userAgent"`
			ObjectRef struct {
				Namespace string `json:"namespace"`
				Name      string `json:"name"`
			} `json:"objectRef"`
			ResponseStatus struct {
				Code int `json:"code"`
			} `json:"responseStatus"`
			Received time.Time `json:"requestReceivedTimestamp"`
		}
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, fmt.Errorf("the audit log has the line %q: %w", line, err)
		}
		if seen[e.AuditID] || strings.HasPrefix(e.ObjectRef.Name, marker) {
			continue // the end of a watch; ours
		}
		seen[e.AuditID] = true
		_, query, _ := strings.Cut(e.RequestURI, "?")
		events = append(events, AuditEvent{
			Time: e.Received, Verb: e.Verb, User: e.User.Username, Agent: e.UserAgent,
			Namespace: e.ObjectRef.Namespace, Name: e.ObjectRef.Name, Query: query, Code: e.ResponseStatus.Code,
		})
	}
	return events, nil
}

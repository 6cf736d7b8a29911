package adminapi

import (
	_ "embed" // the document is a file of its own
	"encoding/json"
	"fmt"
	"sync"

	"go.yaml.in/yaml/v3"
)

//go:embed openapi.yaml
var specYAML []byte

// specJSON renders the document as JSON when it is first asked for.
func specJSON() func() ([]byte, error) {
	return sync.OnceValues(func() ([]byte, error) {
		var doc map[string]any
		if err := yaml.Unmarshal(specYAML, &doc); err != nil {
			return nil, fmt.Errorf("read openapi.yaml: %w", err)
		}
		return json.Marshal(doc)
	})
}

func (a *API) openapi(*call) (any, error) {
	doc, err := a.spec()
	return json.RawMessage(doc), err
}

func (a *API) version(*call) (any, error) { return a.Version, nil }

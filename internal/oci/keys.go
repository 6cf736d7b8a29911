package oci

import (
	"bytes"
	"encoding/json"
	"strings"
)

// keys are those with a meaning in one kind of object.
type keys struct {
	names  []string
	within map[string]*keys // of the objects under a key, or in an array there
}

func documentKeys() *keys {
	descriptor := &keys{names: []string{"mediaType", "digest", "size", "urls"}}
	return &keys{
		names:  []string{"schemaVersion", "mediaType", "artifactType", "config", "layers", "blobs", "manifests", "subject", "annotations", "fsLayers"},
		within: map[string]*keys{"config": descriptor, "layers": descriptor, "blobs": descriptor, "manifests": descriptor, "subject": descriptor},
	}
}

// checkKeys refuses what readers may understand differently although the
// digest is the same: a key that occurs twice in an object, of which some take
// the first and some the last, and a known key in another case, which
// encoding/json takes for the known one and others do not. content is valid
// JSON.
func checkKeys(content []byte) error {
	dec := json.NewDecoder(bytes.NewReader(content))
	dec.UseNumber()
	return checkValue(dec, documentKeys())
}

// checkTypeKey is checkKeys for nothing but the mediaType of a document that may
// be of any type: readers must agree on what it is. content is a JSON object.
func checkTypeKey(content []byte) error {
	dec := json.NewDecoder(bytes.NewReader(content))
	seen := false
	if _, err := dec.Token(); err != nil {
		return jsonError(err)
	}
	for dec.More() {
		token, err := dec.Token()
		if err != nil {
			return jsonError(err)
		}
		switch key, _ := token.(string); {
		case key == "mediaType" && seen:
			return manifestError("the key mediaType occurs twice")
		case key == "mediaType":
			seen = true
		case strings.EqualFold(key, "mediaType"):
			return manifestError("the key %q must be written \"mediaType\"", key)
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return jsonError(err)
		}
	}
	return nil
}

// checkValue reads one value. known is of the value, if it is an object, or of
// the objects in it, if it is an array.
func checkValue(dec *json.Decoder, known *keys) error {
	token, err := dec.Token()
	if err != nil {
		return jsonError(err)
	}
	switch token {
	case json.Delim('['):
		for dec.More() {
			if err := checkValue(dec, known); err != nil {
				return err
			}
		}
	case json.Delim('{'):
		if err := checkObject(dec, known); err != nil {
			return err
		}
	default:
		return nil
	}
	_, err = dec.Token() // the end of the array or object
	if err != nil {
		return jsonError(err)
	}
	return nil
}

func checkObject(dec *json.Decoder, known *keys) error {
	if known == nil {
		known = &keys{}
	}
	seen := map[string]bool{}
	for dec.More() {
		token, err := dec.Token()
		if err != nil {
			return jsonError(err)
		}
		key, _ := token.(string) // in an object every other token is a key
		if seen[key] {
			return manifestError("the key %.64q occurs twice in one object", key)
		}
		seen[key] = true
		for _, k := range known.names {
			if key != k && strings.EqualFold(key, k) {
				return manifestError("the key %q must be written %q", key, k)
			}
		}
		if err := checkValue(dec, known.within[key]); err != nil {
			return err
		}
	}
	return nil
}

package adminapi

import (
	"slices"

	"github.com/fairway-registry/fairway/internal/jsonface"
)

// Routes lists the operations that the handler knows, as "METHOD /path".
func Routes() []string {
	names := []string{"GET /openapi.json"}
	for _, r := range new(API).routes() {
		names = append(names, r.method+" "+r.path)
	}
	slices.Sort(names)
	return names
}

// DecodeEach decodes body as each kind of request.
func DecodeEach(body []byte) []error {
	var errs []error
	for _, into := range []any{new(RunRequest), new(ScheduleRequest), new(ItemRequest), new(PurgeRequest), new(LeaseRequest), new(CheckRequest)} {
		errs = append(errs, jsonface.Decode(body, into))
	}
	return errs
}

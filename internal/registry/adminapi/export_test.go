package adminapi

import "slices"

// Routes lists the operations that the handler knows, as "METHOD /path".
func Routes() []string {
	var names []string
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
		errs = append(errs, decode(body, into))
	}
	return errs
}

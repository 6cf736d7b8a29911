package sqldb

import "encoding/json"

// Each and its relatives turn one JSON parameter into rows, so that a batch is
// one prepared statement whatever its length. The parameter comes from List.
const (
	Each  = "(SELECT value AS a FROM json_each(?))"
	Each2 = "(SELECT json_extract(value,'$[0]') AS a, json_extract(value,'$[1]') AS b FROM json_each(?))"
	Each3 = "(SELECT json_extract(value,'$[0]') AS a, json_extract(value,'$[1]') AS b, json_extract(value,'$[2]') AS c FROM json_each(?))"
)

// List renders rows for Each…: a slice of values, or of fixed-size arrays.
func List(rows any) string {
	b, err := json.Marshal(rows)
	if err != nil {
		panic(err) // integers and strings only; a programming error
	}
	if string(b) == "null" {
		return "[]" // json_each makes a row of null
	}
	return string(b)
}

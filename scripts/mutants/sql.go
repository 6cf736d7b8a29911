package main

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// hole stands for a part of a statement that is not a literal.
const hole = "\x01"

// change is a statement of SQL with one condition changed.
type change struct {
	text, what string
	holes      []int // which of the statement's holes are in what
}

// words begin or end a condition.
var words = regexp.MustCompile(`'[^']*'|[()]|\b(WHERE|AND|OR|ON|WHEN|THEN|SELECT|FROM|RETURNING|ORDER|GROUP|LIMIT|UNION|CROSS|LEFT|JOIN|SET|CONFLICT)\b|,`)

var edges = regexp.MustCompile(`<=|>=|<>|\|\||[<>]|\bmax\(|\bmin\(`)

// changesOfSQL takes each condition out of a statement, and moves each limit by
// one. A condition that is taken out stays in the text, beside one that makes it
// count for nothing, so that the parameters keep their places.
func changesOfSQL(s string) (changes []change) {
	type span struct {
		from, to int
		or       bool
	}
	type open struct {
		from int    // where the condition began, −1: there is none
		word string // that came before it
	}
	var spans []span
	stack := []open{{from: -1}}
	// end ends the condition that is open. next is the word after it.
	end := func(at int, next string) {
		o := &stack[len(stack)-1]
		if o.from >= 0 && strings.TrimSpace(s[o.from:at]) != "" {
			chained := o.word == "AND" || o.word == "OR" || next == "AND" || next == "OR"
			if o.word != "(" || chained {
				from := o.from + len(s[o.from:at]) - len(strings.TrimLeft(s[o.from:at], " \t\n"))
				to := o.from + len(strings.TrimRight(s[o.from:at], " \t\n"))
				or := o.word != "AND" && next != "AND" && (o.word == "OR" || next == "OR")
				spans = append(spans, span{from, to, or})
			}
		}
		o.from = -1
	}
	for _, at := range words.FindAllStringIndex(s, -1) {
		switch w := s[at[0]:at[1]]; w {
		case "(":
			stack = append(stack, open{from: at[1], word: "("})
		case ")":
			end(at[0], w)
			if len(stack) > 1 {
				stack = stack[:len(stack)-1]
			}
		case "AND", "OR", "WHERE", "WHEN", "ON":
			end(at[0], w)
			stack[len(stack)-1] = open{from: at[1], word: w}
		case "SELECT", "FROM", "RETURNING", "ORDER", "GROUP", "LIMIT", "UNION", "CROSS", "LEFT", "JOIN", "SET", "CONFLICT", "THEN", ",":
			if w == "CONFLICT" || w == "SELECT" || w == "," && stack[len(stack)-1].word == "(" {
				stack[len(stack)-1].from = -1
			}
			end(at[0], w)
		}
	}
	end(len(s), "")
	slices.SortFunc(spans, func(a, b span) int { return cmp.Or(cmp.Compare(a.from, b.from), cmp.Compare(b.to, a.to)) })
	about := func(from, to int) (holes []int) {
		first := strings.Count(s[:from], hole)
		for i := range strings.Count(s[from:to], hole) {
			holes = append(holes, first+i)
		}
		return holes
	}
	for _, p := range spans {
		neutral := "OR 1"
		if p.or {
			neutral = "AND 0"
		}
		changes = append(changes, change{
			text:  s[:p.from] + "(" + s[p.from:p.to] + " " + neutral + ")" + s[p.to:],
			what:  fmt.Sprintf("SQL without `%s`", s[p.from:p.to]),
			holes: about(p.from, p.to),
		})
		for _, at := range edges.FindAllStringIndex(s[p.from:p.to], -1) {
			was := s[p.from+at[0] : p.from+at[1]]
			is := map[string]string{"<=": "<", ">=": ">", "<": "<=", ">": ">=", "max(": "min(", "min(": "max("}[was]
			inner := slices.ContainsFunc(spans, func(q span) bool {
				return q != p && q.from >= p.from && q.to <= p.to && q.from <= p.from+at[0] && p.from+at[1] <= q.to
			})
			if is == "" || inner {
				continue // that condition comes for itself
			}
			changes = append(changes, change{
				text:  s[:p.from+at[0]] + is + s[p.from+at[1]:],
				what:  fmt.Sprintf("SQL `%s` → `%s` in `%s`", strings.TrimSuffix(was, "("), strings.TrimSuffix(is, "("), s[p.from:p.to]),
				holes: about(p.from, p.to),
			})
		}
	}
	return changes
}

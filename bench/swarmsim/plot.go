package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/swarm/swarmsim"
)

// curve is how much of all that is to be delivered was delivered, over time.
type curve struct {
	nodes int
	bound time.Duration
	ratio float64
	steps *[]float64 // share at each step
}

// steps of a curve in one bound.
const (
	resolution = 200
	spanX      = 1.6 // bounds shown
)

// count returns what fills the curve.
func (cv *curve) count(c swarmsim.Config) func(now time.Duration, node int) {
	bound := float64(c.Pieces) * float64(c.PieceSize) / c.OriginUp
	total := float64(c.Nodes) * float64(c.Pieces)
	steps := make([]float64, int(resolution*spanX)+1)
	cv.steps = &steps
	return func(now time.Duration, _ int) {
		k := int(now.Seconds() / bound * resolution)
		if k < len(steps) {
			steps[k] += 1 / total
		}
	}
}

// plot draws the curves over time in bounds.
func plot(curves []curve) string {
	const left, top, width, height = 60.0, 20.0, 620.0, 320.0
	colours := []string{"#1b6ca8", "#e07a1f", "#2e8b57", "#a23b72", "#555555", "#b8860b"}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" font-family="sans-serif" font-size="12">`+"\n", left+width+20, top+height+50)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="white"/>`+"\n")
	x := func(t float64) float64 { return left + t/spanX*width }
	y := func(v float64) float64 { return top + (1-v)*height }
	for v := 0.0; v <= 1.001; v += 0.25 {
		fmt.Fprintf(&b, `<path d="M%.1f %.1fH%.1f" stroke="#ddd"/><text x="%.1f" y="%.1f" text-anchor="end">%.0f %%</text>`+"\n", left, y(v), left+width, left-6, y(v)+4, 100*v)
	}
	for t := 0.0; t <= spanX+0.001; t += 0.2 {
		fmt.Fprintf(&b, `<path d="M%.1f %.1fv5" stroke="#999"/><text x="%.1f" y="%.1f" text-anchor="middle">%.1f</text>`+"\n", x(t), top+height, x(t), top+height+20, t)
	}
	fmt.Fprintf(&b, `<text x="%.1f" y="%.1f" text-anchor="middle">time / fluid bound</text>`+"\n", left+width/2, top+height+40)
	fmt.Fprintf(&b, `<path d="M%.1f %.1fL%.1f %.1fV%.1f" fill="none" stroke="#999" stroke-dasharray="4 4"/>`+"\n", x(0), y(0), x(1), y(1), top+height)
	for k, cv := range curves {
		sum := 0.0
		var path strings.Builder
		for i, s := range *cv.steps {
			sum += s
			fmt.Fprintf(&path, "%c%.1f %.1f", "ML"[min(i, 1)], x(float64(i+1)/resolution), y(min(sum, 1)))
			if sum > 0.99999 {
				break
			}
		}
		colour := colours[k%len(colours)]
		fmt.Fprintf(&b, `<path d="%s" fill="none" stroke="%s" stroke-width="1.6"/>`+"\n", path.String(), colour)
		fmt.Fprintf(&b, `<text x="%.1f" y="%.1f" fill="%s">%d nodes: %.2f</text>`+"\n", left+20, top+20+18*float64(k), colour, cv.nodes, cv.ratio)
	}
	b.WriteString("</svg>\n")
	return b.String()
}

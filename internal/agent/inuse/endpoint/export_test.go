package endpoint

import "time"

// SetWait sets how long a look waits for all places.
func (d *Detector) SetWait(wait time.Duration) { d.eyes.wait = wait }

package gc

// BesideClients has a collector take it that clients are writing all the time.
func BesideClients(c *Collector) { c.contended = func() bool { return true } }

// IsBesideClients says what a collector takes it for.
func IsBesideClients(c *Collector) bool { return c.contended() }

package daemon

import (
	"context"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMain lets this program play the server that it starts.
func TestMain(m *testing.M) {
	switch os.Getenv("DAEMON_TEST_ROLE") {
	case "":
		os.Exit(m.Run())
	case "fails":
		os.Exit(3)
	case "serves":
		term := make(chan os.Signal, 1)
		signal.Notify(term, syscall.SIGTERM)
		go func() {
			<-term
			os.Exit(0)
		}()
		spun := 0
		err := http.ListenAndServe(os.Getenv("DAEMON_TEST_ADDR"), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			// By its own time, of which a busy machine gives it less than goes by.
			for end := cpu() + 60*time.Millisecond; r.URL.Path == "/spin" && cpu() < end; {
				spun++
			}
		}))
		panic(err)
	}
}

// cpu is the time for which this process has worked.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func start(t *testing.T, role string) (*Process, string, error) {
	t.Helper()
	addr, err := FreeAddr()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	p, err := Start(ctx, Options{
		Path: os.Args[0], Env: []string{"DAEMON_TEST_ROLE=" + role, "DAEMON_TEST_ADDR=" + addr}, Ready: "http://" + addr + "/",
	})
	if err == nil {
		t.Cleanup(p.Kill)
	}
	return p, addr, err
}

func TestStart_WaitsUntilReadyAndSeesCost(t *testing.T) {
	p, addr, err := start(t, "serves")
	if err != nil {
		t.Fatal(err)
	}
	if p.Startup() <= 0 {
		t.Error("no start-up time")
	}
	before, err := p.Usage()
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		resp, err := http.Get("http://" + addr + "/spin")
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
	}
	after, err := p.Usage()
	if err != nil {
		t.Fatal(err)
	}
	if used := after.CPU - before.CPU; used < 150*time.Millisecond {
		t.Errorf("180 ms of spinning cost %v", used)
	}
	if after.RSS < 1<<20 || after.RSS > 1<<30 {
		t.Errorf("resident %d bytes", after.RSS)
	}
	if err := p.Stop(t.Context()); err != nil {
		t.Errorf("stop: %v", err)
	}
	if _, err := p.Usage(); err == nil {
		t.Error("an ended process still has a usage")
	}
}

func TestStart_AServerThatEndsIsAnError(t *testing.T) {
	_, _, err := start(t, "fails")
	if err == nil || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("got %v", err)
	}
}

func TestKill_LeavesNothing(t *testing.T) {
	p, addr, err := start(t, "serves")
	if err != nil {
		t.Fatal(err)
	}
	p.Kill()
	if _, err := http.Get("http://" + addr + "/"); err == nil {
		t.Error("it still answers")
	}
}

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// usage is what a process group has used so far, ended children included once
// their parent has waited for them.
type usage struct {
	cpu     time.Duration
	written int64 // octets that were to go to the device
	flushes int64 // of the device, by anybody
}

// tick is the unit of CPU times in /proc: Linux fixes USER_HZ at 100.
const tick = 10 * time.Millisecond

// members lists the processes of a group with their stat fields from the state on.
func members(group int) map[string][]string {
	all := map[string][]string{}
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		_, rest, _ := strings.Cut(string(b), ") ")
		f := strings.Fields(rest)
		if len(f) > 20 && f[2] == strconv.Itoa(group) {
			all[filepath.Dir(file)] = f
		}
	}
	return all
}

func measure(group int) (u usage) {
	for dir, f := range members(group) {
		for _, field := range f[11:15] { // utime stime cutime cstime
			n, _ := strconv.ParseInt(field, 10, 64)
			u.cpu += time.Duration(n) * tick
		}
		u.written += fieldOf(dir+"/io", "write_bytes:")
	}
	u.flushes = deviceFlushes()
	return u
}

// resident is the group's memory.
func resident(group int) (pss int64) {
	for dir := range members(group) {
		pss += fieldOf(dir+"/smaps_rollup", "Pss:") << 10
	}
	return pss
}

// peak is the most that any one process of the group had resident.
func peak(group int) (rss int64) {
	for dir := range members(group) {
		rss = max(rss, fieldOf(dir+"/status", "VmHWM:")<<10)
	}
	return rss
}

// fieldOf reads a number from a file of "key: number" lines.
func fieldOf(file, key string) int64 {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == key {
			n, _ := strconv.ParseInt(f[1], 10, 64)
			return n
		}
	}
	return 0
}

// deviceFlushes sums the flush requests of all disks.
func deviceFlushes() (n int64) {
	b, err := os.ReadFile("/proc/diskstats")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) >= 20 {
			k, _ := strconv.ParseInt(f[18], 10, 64)
			n += k
		}
	}
	return n
}

// settle waits until the group has been idle for a while: what it does behind
// its replies is part of its cost.
func settle(group int) {
	idle := 0
	before := measure(group)
	for range 200 {
		time.Sleep(100 * time.Millisecond)
		now := measure(group)
		if now.cpu-before.cpu <= tick && now.written-before.written < 64<<10 {
			idle++
		} else {
			idle = 0
		}
		if idle == 4 {
			return
		}
		before = now
	}
}

// figures are what one run of a cell gave; zero where it does not apply.
type figures struct {
	Round    int     `json:"round"`
	Rate     float64 `json:"per_second"`
	CPU      float64 `json:"cpu_ms,omitempty"`         // a message or session
	Written  float64 `json:"written,omitempty"`        // octets to the device per octet of payload
	Flushes  float64 `json:"device_flushes,omitempty"` // a message, by whoever runs on this machine
	Commits  float64 `json:"commits,omitempty"`        // synced batches a message (Understudy)
	Resident float64 `json:"resident_mib,omitempty"`   // PSS of all processes
	Peak     float64 `json:"peak_rss_mib,omitempty"`   // of the largest process
	Seconds  float64 `json:"seconds,omitempty"`        // how long the load ran
	Messages int     `json:"messages,omitempty"`
	Wire     float64 `json:"wire_octets,omitempty"`         // both ways (policy channel)
	Sender   float64 `json:"peak_rss_sender_mib,omitempty"` // where Peak is the receiver's (policy channel)
}

func (f figures) String() string {
	s := fmt.Sprintf("%8.0f/s", f.Rate)
	for _, x := range []struct {
		value  float64
		format string
	}{
		{f.CPU, "  %.3f ms CPU"}, {f.Written, "  %.2f written"}, {f.Flushes, "  %.2f flushes"},
		{f.Commits, "  %.3f commits"}, {f.Resident, "  %.1f MiB"}, {f.Peak, "  peak %.1f MiB"},
	} {
		if x.value != 0 {
			s += fmt.Sprintf(x.format, x.value)
		}
	}
	return s
}

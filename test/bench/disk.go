package main

import (
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"time"
)

// syncedAppend is how long one writer's append of 4 KiB takes with its sync, on
// average: no server that has one session and keeps what it accepts spends
// less on a message.
func syncedAppend(dir string) (took time.Duration, err error) {
	const times = 500
	f, err := os.Create(filepath.Join(dir, "append"))
	if err != nil {
		return 0, err
	}
	defer os.Remove(f.Name())
	defer func() { err = errors.Join(err, f.Close()) }()
	block := make([]byte, 4<<10)
	if _, err := rand.Read(block); err != nil {
		return 0, err
	}
	start := time.Now()
	for range times {
		if _, err := f.Write(block); err != nil {
			return 0, err
		}
		if err := f.Sync(); err != nil {
			return 0, err
		}
	}
	return time.Since(start) / times, nil
}

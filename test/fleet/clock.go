package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// skewVariable has a secondary's clock be so many seconds fast. libfaketime doesn't reach a
// program in Go: it doesn't ask the C library for the time. So the program is
// built with a package time that is changed in one place.
const skewVariable = "FLEET_SKEW"

const skewGo = `package time

import "syscall"

var fleetSkew = func() (n int64) {
	s, _ := syscall.Getenv("` + skewVariable + `")
	minus := len(s) > 0 && s[0] == '-'
	if minus {
		s = s[1:]
	}
	for i := range len(s) {
		n = 10*n + int64(s[i]-'0')
	}
	if minus {
		return -n
	}
	return n
}()
`

func build(dir, binary string) error {
	if *short { // the other takes minutes to build
		return command("go", "build", "-o", binary, "./cmd/understudy")
	}
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return err
	}
	std := filepath.Join(strings.TrimSpace(string(root)), "src/time")
	was, err := os.ReadFile(filepath.Join(std, "time.go"))
	if err != nil {
		return err
	}
	now := []byte("func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n")
	if !bytes.Contains(was, now) {
		return errors.New("time.Now of this Go isn't as expected: see test/fleet/clock.go")
	}
	changed := bytes.Replace(was, now, append(now, "\tsec += fleetSkew\n"...), 1)
	overlay := map[string]string{filepath.Join(std, "time.go"): filepath.Join(dir, "time.go"), filepath.Join(std, "fleet_skew.go"): filepath.Join(dir, "skew.go")}
	text, err := json.Marshal(map[string]any{"Replace": overlay})
	if err != nil {
		return err
	}
	err = errors.Join(os.WriteFile(filepath.Join(dir, "time.go"), changed, 0o644), os.WriteFile(filepath.Join(dir, "skew.go"), []byte(skewGo), 0o644),
		os.WriteFile(filepath.Join(dir, "overlay.json"), text, 0o644))
	if err != nil {
		return err
	}
	return command("go", "build", "-overlay", filepath.Join(dir, "overlay.json"), "-o", binary, "./cmd/understudy")
}

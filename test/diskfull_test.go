package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/demo"
	"github.com/understudy-mx/understudy/internal/testmx"
)

// command runs a command that must succeed; root is needed for most here.
func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// mount mounts for the length of a test. Cleanups run backwards, so a daemon
// that is started later ends first.
func mount(t *testing.T, dir string, args ...string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	command(t, "mount", append(args, dir)...)
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v\n%s", err, out)
			exec.Command("umount", "-l", dir).Run()
		}
	})
}

// mountExt4 makes a small ext4 in a file. The kernel gives the loop device
// back when it is unmounted.
func mountExt4(t *testing.T, dir string, mkfs ...string) {
	t.Helper()
	image := filepath.Join(tempDir(t), "ext4")
	command(t, "truncate", "-s", "64M", image)
	command(t, "mkfs.ext4", append(append([]string{"-q", "-F", "-m", "0"}, mkfs...), image)...)
	mount(t, dir, "-o", "loop", image)
}

// TestDiskFull fills a disk, then its inodes, under a working daemon: senders
// get 452 before they send their message, and once there is room again mail
// flows within ten seconds, without a restart. Nothing accepted is lost.
func TestDiskFull(t *testing.T) {
	tmpfs := func(t *testing.T, dir string) {
		mount(t, dir, "-t", "tmpfs", "-o", "size=48m,nr_inodes=2000,mode=0700", "tmpfs")
	}
	ext4 := func(t *testing.T, dir string) { mountExt4(t, dir, "-N", "2000") }
	for _, tt := range []struct {
		name  string
		mount func(*testing.T, string)
		fill  func(t *testing.T, dir string)
		limit string // of what must stay free
	}{
		{"tmpfs space", tmpfs, fillSpace, "min_free = \"16MiB\"\nmin_free_inodes = 0"},
		{"tmpfs inodes", tmpfs, fillInodes, "min_free = \"1MiB\"\nmin_free_inodes = 500"},
		{"ext4 space", ext4, fillSpace, "min_free = \"16MiB\"\nmin_free_inodes = 0"},
		{"ext4 inodes", ext4, fillInodes, "min_free = \"1MiB\"\nmin_free_inodes = 500"},
		{"ext4 without a floor", ext4, fillSpace, "min_free = \"0KiB\"\nmin_free_inodes = 0"},
	} {
		t.Run(tt.name, func(t *testing.T) { diskFull(t, tt.mount, tt.fill, tt.limit) })
	}
}

func diskFull(t *testing.T, mount func(*testing.T, string), fill func(*testing.T, string), limit string) {
	state := filepath.Join(tempDir(t), "mnt")
	mount(t, state)
	s := newSecondaryIn(t, filepath.Join(state, "state"), "127.0.0.1:1", policyFor("alice@example.org"), "[queue]\n"+limit)
	s.start()
	var books testmx.Ledger
	accept(t, s, &books, "alice@example.org")
	ballast := filepath.Join(state, "ballast")
	fill(t, ballast)

	content := []byte(message("refused", 2000))
	send := func() demo.Outcome {
		return testmx.Send(t, s.addr, demo.Mail{From: "sender@sender.example", To: []string{"alice@example.org"}, Content: content})
	}
	eventually(t, 10*time.Second, "mail is put off", func() bool { return send().Last().Code/100 == 4 })
	if o := send(); o.Last().Code != 452 || !o.Data.Zero() {
		t.Errorf("on a full disk: %s (DATA %s), want 452 before DATA", o.Last(), o.Data)
	}
	if err := os.RemoveAll(ballast); err != nil {
		t.Fatal(err)
	}
	room := time.Now()
	eventually(t, 10*time.Second, "mail flows again", func() bool { return send().Final.Positive() })
	t.Logf("mail flowed %v after there was room", time.Since(room))
	before := len(s.queue())
	s.kill()
	s.start()
	if after := len(s.queue()); after < 2 || after != before {
		t.Errorf("%d messages, %d after a restart", before, after)
	}
	s.stop()
}

// fillSpace writes until there is no room.
func fillSpace(t *testing.T, dir string) {
	t.Helper()
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(dir, "ballast"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for n, chunk := 0, make([]byte, 64<<10); ; n++ {
		if _, err := f.Write(chunk); err != nil {
			return // full
		}
		if n > 1<<20 {
			t.Fatal("the disk is not small")
		}
	}
}

func fillInodes(t *testing.T, dir string) {
	t.Helper()
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for n := range 10_000 {
		if os.WriteFile(filepath.Join(dir, fmt.Sprint(n)), nil, 0o600) != nil {
			return // full
		}
	}
	t.Fatal("the disk has too many inodes")
}

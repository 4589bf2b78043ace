package doctor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// clock: the kernel knows whether a time service keeps it.
func (x *exam) clock(context.Context) (looked bool) {
	var t unix.Timex
	if state, err := unix.Adjtimex(&t); err != nil {
		x.report(Unknown, "clock-unknown", "", "The clock's state can't be read.", err.Error(), "")
	} else if state == unix.TIME_ERROR && t.Status&unix.STA_UNSYNC != 0 {
		x.report(Warning, "clock-unkept", "", "No time service keeps the clock: certificates, the policy's age and retries go by it.", "the kernel's clock is unsynchronized", "apt-get install chrony")
	}
	return true
}

// mount is a line of /proc/self/mounts.
type mount struct{ dir, kind, options string }

// disk: where the queue is kept.
func (x *exam) disk(context.Context) (looked bool) {
	if x.StateDir == "" {
		return true
	}
	dir := x.StateDir
	var s unix.Statfs_t
	for {
		err := unix.Statfs(dir, &s)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.ENOENT) || dir == "/" {
			x.report(Unknown, "disk-unknown", x.StateDir, "The state directory can't be looked at.", err.Error(), "run this as root")
			return true
		}
		dir = filepath.Dir(dir) // it is made at the first start
	}
	if free := int64(s.Bavail) * s.Bsize; free < x.MinFree {
		x.report(Fault, "disk-full", x.StateDir, "Less is free than `min_free` demands: the door answers 452.", fmt.Sprintf("%d MiB free, %d MiB demanded", free>>20, x.MinFree>>20), "make room, or lower `min_free` under [queue]")
	}
	if s.Flags&unix.ST_RDONLY != 0 {
		x.report(Fault, "disk-read-only", x.StateDir, "The state directory is on a file system that is mounted read-only.", "", "see what the kernel says: dmesg")
	}
	m, err := x.mountOf(dir)
	if err != nil {
		x.report(Unknown, "disk-unknown", x.StateDir, "What file system the state directory is on can't be read.", err.Error(), "")
		return true
	}
	x.fileSystem(m)
	return x.StateDir != ""
}

// fileSystem looks at what keeps a synced file from surviving.
func (x *exam) fileSystem(m mount) {
	evidence := fmt.Sprintf("%s is %s (%s)", m.dir, m.kind, m.options)
	options := strings.Split(m.options, ",")
	unsafe := slices.IndexFunc(options, func(o string) bool {
		return slices.Contains([]string{"nobarrier", "barrier=0", "data=writeback", "volatile"}, o)
	})
	switch {
	case m.kind == "tmpfs" || m.kind == "ramfs":
		x.report(Fault, "disk-memory", x.StateDir, "The state directory is in memory: accepted mail is lost with the power.", evidence, "set `state_dir` to a directory on a disk")
	case unsafe >= 0:
		x.report(Fault, "disk-unsafe", x.StateDir, "The file system is mounted so that synced data may be lost with the power.", evidence, "mount it without "+options[unsafe])
	case slices.Contains([]string{"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "lustre", "afs", "vboxsf", "virtiofs"}, m.kind) || strings.HasPrefix(m.kind, "fuse."):
		x.report(Warning, "disk-remote", x.StateDir, "The state directory is on a file system of another machine or program: the queue's lock and its syncs are only as good as that.", evidence, "use a local disk")
	case m.kind == "overlay":
		x.report(Warning, "disk-container", x.StateDir, "The state directory is in a container's own layer: the queue goes with the container.", evidence, "mount a volume at "+x.StateDir)
	}
}

// mountOf finds the file system that dir is on.
func (x *exam) mountOf(dir string) (best mount, err error) {
	dir, err = filepath.EvalSymlinks(dir)
	if err != nil {
		return best, err
	}
	f, err := os.Open(x.Mounts)
	if err != nil {
		return best, err
	}
	defer f.Close()
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 4 {
			continue
		}
		m := mount{unescape.Replace(fields[1]), fields[2], fields[3]}
		if m.dir == dir || m.dir == "/" || strings.HasPrefix(dir, m.dir+"/") {
			if len(m.dir) >= len(best.dir) { // a later mount hides an earlier one
				best = m
			}
		}
	}
	return best, lines.Err()
}

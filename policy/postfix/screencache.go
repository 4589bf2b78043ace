package postfix

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/understudy-mx/understudy/internal/host"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/table"
)

// postscreen keeps in a cache, by address, until when a client needs no test, one
// time for each of its five tests, the pregreet test first:
//
//	192.0.2.1	1790086400;1790003600;1792592000;0;0
//
// It has the file locked as long as it runs, so a copy is listed.

// whyScreenUnread is said of a cache without which who has passed is unknown.
const whyScreenUnread = "can't be read"

// screenRest is how long what was read of a cache is good for.
const screenRest = 5 * time.Minute

// screenSuffixes are the types of caches that can be copied, and their files' endings.
var screenSuffixes = map[string]string{"btree": ".db", "hash": ".db", "lmdb": ".lmdb"}

// screenPassed makes the clients that have passed the pregreet test a part of the
// policy. It returns why it can't.
func (i *importer) screenPassed(to *policy.Postscreen, cache string) error {
	cache = strings.TrimPrefix(cache, "proxy:")
	known, err := i.src.Memo.greylist(cache, "", screenRest, func() (*greyKnown, error) {
		start, now := time.Now(), time.Now
		if i.src.Now != nil {
			now = i.src.Now
		}
		t, left, err := i.readScreenCache(cache, now().Unix())
		return &greyKnown{read: start, took: time.Since(start), clients: t, left: left}, err
	})
	if err != nil {
		return err
	}
	name := cache + screened
	i.spec.Tables[name] = known.clients
	to.GreetPassed = []string{name}
	i.polled[cache] = true
	return known.failing
}

// readScreenCache lists a cache at the time now.
func (i *importer) readScreenCache(cache string, now int64) (*table.Table, int, error) {
	var list []seen
	left := 0
	line := func(l string) error {
		key, value, _ := strings.Cut(l, "\t")
		first, _, _ := strings.Cut(value, ";")
		until, err := strconv.ParseInt(strings.TrimSpace(first), 10, 40)
		addr, addrErr := netip.ParseAddr(key)
		if err != nil || addrErr != nil || until <= now {
			return nil // it says when it was cleaned up, or the test has to be made
		}
		list = append(list, seen{key: addr.String(), last: until})
		if len(list) >= 2*maxKnown {
			left += newest(&list)
		}
		return nil
	}
	if err := i.listScreenCache(cache, line); err != nil {
		return nil, 0, err
	}
	left += newest(&list)
	entries := make(map[string]string, len(list))
	for _, s := range list {
		entries[s.key] = strconv.FormatInt(s.last/policy.GreetUnit, 10)
	}
	t, err := table.NewHash(entries)
	return t, left, err
}

func (i *importer) listScreenCache(cache string, line func(string) error) error {
	if c := i.src.Commands[cache]; c != nil {
		_, err := run(i.ctx, nil, host.Program{Argv: c}, line)
		return err
	}
	typ, path, _ := strings.Cut(cache, ":")
	suffix, known := screenSuffixes[typ]
	if !known {
		return fmt.Errorf("a table of type %s can't be listed", typ)
	}
	file, err := i.src.Host.Path(path + suffix)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "understudy-postscreen")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	switch err := copyFile(filepath.Join(dir, "cache"+suffix), file); {
	case errors.Is(err, os.ErrNotExist):
		return nil // nobody has passed yet
	case err != nil:
		return err
	}
	_, err = run(i.ctx, nil, host.Program{Argv: []string{cmp.Or(i.src.Postmap, "postmap"), "-s", typ + ":" + filepath.Join(dir, "cache")}}, line)
	return err
}

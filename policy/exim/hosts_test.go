package exim

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/fidelity"
)

// TestHostsFile: a name in a host list has the addresses that the primary's /etc/hosts gives
// it, as for a real Exim. No DNS server says who localhost is.
func TestHostsFile(t *testing.T) {
	x := newExim(t, `acl_smtp_mail = mail
begin acl
mail:
  accept hosts = localhost : Office.internal : short
  deny   message = no
`)
	for name, text := range map[string]string{
		"etc/nsswitch.conf": "passwd: files\nhosts: files\n",
		"etc/hosts":         "127.0.0.1\tlocalhost localhost.localdomain # 198.51.100.1 localhost\n# 198.51.100.1 short\n198.51.100.2 office.internal SHORT\n0.0.0.0 short\n2001:db8::2 office.internal\nnonsense short\n",
	} {
		if err := os.WriteFile(filepath.Join(x.Dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	spec, _, err := Import(t.Context(), Source{Program: x.Program, Config: x.Config, Getent: x.Getent, Etc: filepath.Join(x.Dir, "etc"), Own: []string{}})
	if err != nil {
		t.Fatal(err)
	}
	snap, err := policy.Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	bare, acl := *spec, *spec.ACL
	acl.HostsFile, bare.ACL = nil, &acl
	without, err := policy.Compile(&bare)
	if err != nil {
		t.Fatal(err)
	}
	resolver := &testmx.MapResolver{IP: map[string][]string{"localhost": {"198.51.100.8"}, "office.internal": {"198.51.100.9"}}}
	for _, addr := range []string{"127.0.0.1", "::1", "198.51.100.1", "198.51.100.2", "198.51.100.8", "198.51.100.9", "2001:db8::2"} {
		cmd := exec.Command(x.Program, "-C", x.Config, "-bh", addr)
		cmd.Stdin = strings.NewReader("HELO mail.example.com\r\nMAIL FROM:<>\r\nQUIT\r\n")
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		theirs := strings.Contains(string(out), "\n250 OK\r\n")
		ours := func(snap *policy.Snapshot) bool {
			s := snap.Session(resolver, envelope.Client{Addr: netip.MustParseAddr(addr)})
			defer s.Close()
			s.Connect(t.Context())
			s.Helo(t.Context(), "mail.example.com")
			return s.Mail(t.Context(), envelope.ReversePath{}, policy.MailParams{}).Action == policy.Permit
		}
		if got := ours(snap); got != theirs {
			t.Errorf("%s: let in %v; Exim %v: %s", addr, got, theirs, out)
		}
		byDNS := addr == "127.0.0.1" || addr == "::1" || addr == "198.51.100.9"
		if got := ours(without); got != byDNS {
			t.Errorf("%s: without the file, let in %v", addr, got)
		}
	}
}

// TestManyHosts: names beyond the bound are said to be the DNS's.
func TestManyHosts(t *testing.T) {
	x := newExim(t, "acl_smtp_rcpt = rcpt\nbegin acl\nrcpt:\n  accept\n")
	etc := filepath.Join(x.Dir, "etc")
	for n, want := range map[int]bool{mostHosts: false, mostHosts + 1: true} {
		var text strings.Builder
		for i := range n {
			fmt.Fprintf(&text, "127.0.0.1 host%d.example\n", i)
		}
		if err := os.WriteFile(filepath.Join(etc, "hosts"), []byte(text.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		spec, report, err := Import(t.Context(), Source{Program: x.Program, Config: x.Config, Getent: x.Getent, Etc: etc, Own: []string{}})
		if err != nil {
			t.Fatal(err)
		}
		said := slices.ContainsFunc(report.Items, func(it fidelity.Item) bool { return it.Parameter == "hosts" && it.Class == fidelity.Approximated })
		if len(spec.ACL.HostsFile) != mostHosts || said != want {
			t.Errorf("%d names: %d kept, said so: %v", n, len(spec.ACL.HostsFile), said)
		}
	}
}

// TestReadSmall: a file is read up to its bound, and one without an end no further.
func TestReadSmall(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	for n, good := range map[int]bool{0: true, maxReadFile: true, maxReadFile + 1: false} {
		if err := os.WriteFile(file, make([]byte, n), 0o600); err != nil {
			t.Fatal(err)
		}
		if b, err := readSmall(file); (err == nil) != good || good && len(b) != n {
			t.Errorf("%d octets: %d are read, %v", n, len(b), err)
		}
	}
	if _, err := readSmall("/dev/zero"); err == nil {
		t.Error("/dev/zero is read as a whole")
	}
	if _, err := readSmall(file + "x"); err == nil {
		t.Error("a file that isn't there is read")
	}
}

// TestInterfaces: the addresses that mail comes to are those that Exim listens on, but for the
// machine's own.
func TestInterfaces(t *testing.T) {
	for list, want := range map[string]string{
		"": "192.0.2.1 2001:db8::1", "127.0.0.1 : 192.0.2.9": "192.0.2.9", "<; 192.0.2.9 ; ::1 ; fe80::1 ; 2001:db8::9": "192.0.2.9 2001:db8::9", "[192.0.2.9]": "192.0.2.9",
		"0.0.0.0": "192.0.2.1 2001:db8::1", "<; ::0 ; 192.0.2.9": "192.0.2.1 2001:db8::1", "nonsense : 192.0.2.9": "192.0.2.9", "$primary_hostname": "192.0.2.1 2001:db8::1",
	} {
		i := &importer{conf: &config{main: map[string]string{"local_interfaces": list}}, acl: &policy.ACL{Own: []string{"127.0.0.1", "192.0.2.1", "2001:db8::1", "fe80::1%eth0"}}}
		if got := strings.Join(i.interfaces(), " "); got != want {
			t.Errorf("%q: %s, want %s", list, got, want)
		}
	}
}

// TestPlaces: a line of Debian's conf.d has its file there beside its place.
func TestPlaces(t *testing.T) {
	file := filepath.Join(t.TempDir(), "conf")
	text := "# a comment\nacl_smtp_rcpt = rcpt\n### acl/30_exim4-config_check_rcpt\n\nDIRT = x\n deny  domains = DIRT.example \\\n   # between\n  : y\n.ifdef X\naccept\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	o := &origin{}
	if got := o.locate("x"); got != "" {
		t.Errorf("in no file: %q", got)
	}
	o.enter(file)
	o.define("DIRT", "DIRT = x")
	o.define("LIST", "LIST == a : b")
	const from = " (acl/30_exim4-config_check_rcpt)"
	for _, tt := range [][2]string{{"acl_smtp_rcpt = rcpt", ":2"}, {"deny domains = x.example : y", ":6" + from}, {"accept", ":10" + from}, {"deny domains = z.example : y", ":6" + from}, {"never there", ""}} {
		if got := strings.TrimPrefix(o.locate(tt[0]), file); got != tt[1] {
			t.Errorf("%s: %q, want %q", tt[0], got, tt[1])
		}
	}
}

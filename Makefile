# The commands of the README, by name. CI runs the same ones.
.PHONY: build deb image demo test crash forged soak fleet leases fleet-machines bench bench-all bench-sync bench-door bench-memory bench-live bench-push bench-spool live parity parity-exim parity-exim-random parity-filters milters greylist suites reach screenshots generate lint

build:
	go build -o understudy ./cmd/understudy

# Debian packages in dist/, the same octets each time from the same commit.
VERSION = 0.1~git$(shell git log -1 --format=%cd --date=format:%Y%m%d%H%M%S).$(shell git log -1 --format=%h)
deb:
	for arch in amd64 arm64; do \
	  systemd/deb/root $$arch '$(VERSION)' "$$(git log -1 --format=%cD)" && \
	  ARCH=$$arch VERSION='$(VERSION)' SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) \
	    go run github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.45.2 package -f systemd/deb/nfpm.yaml -p deb -t dist/ || exit 1; \
	done

# A container image for both architectures in dist/understudy.tar: docs/CONTAINER.md.
image:
	for arch in amd64 arm64; do \
	  CGO_ENABLED=0 GOOS=linux GOARCH=$$arch go build -trimpath -buildvcs=true -ldflags '-s -w -X main.version=$(VERSION)' -o dist/image/$$arch/understudy ./cmd/understudy || exit 1; \
	done
	go run ./systemd/oci -o dist/understudy.tar -version '$(VERSION)' -revision "$$(git rev-parse HEAD)" -epoch "$$(git log -1 --format=%ct)" \
	  amd64=dist/image/amd64/understudy arm64=dist/image/arm64/understudy

demo:
	go run ./cmd/understudy demo

# Test files that aren't built for the race detector say why at their top.
UNRACED = $(shell grep -rl '^//go:build !race' --include=*_test.go .)

test:
	test/install-peers
	go test -race -shuffle=on -timeout 30m $$(go list ./... | grep -v /test)
	go test -timeout 30m -run "^($$(sed -n 's/^func \(Test[^(]*\).*/\1/p' $(UNRACED) | paste -sd '|'))$$" $$(dirname $(UNRACED) | sort -u)
	go test -race -p 1 -timeout 40m $$(go list ./test/... | grep -v /test/parity)
	go test -timeout 30m ./test/parity

# Breaks the program in so many places a package, and looks who notices:
# docs/TESTING.md. Half an hour to two.
MUTANTS = 65
mutants:
	go run ./test/mutants -n $(MUTANTS) ./sync ./relay ./queue+./queue/move ./queue/offline ./queue/store ./smtpd ./policy ./policy/table ./policy/handwritten

# So many power cuts, each looked at: docs/DURABILITY.md.
STATES = 1000000
crash:
	go test -timeout 10h -run 'TestPowerCut' -v ./queue -args -crash $(STATES)

# 100,000 messages of forged senders that the primary refuses: no report.
FORGED = 100000
forged:
	FORGED=$(FORGED) go test -timeout 2h -v -run 'TestForged' ./queue ./test

# SIGKILL at any moment, under load.
KILLS = 10000
soak:
	go test -timeout 10h -run 'TestSoak' -v ./test -args -kills $(KILLS)

# Three secondaries with one database under Patroni, in network namespaces, and what may
# go wrong with them: as root. Half an hour; .ci/run has a short one.
FLEET = -faults 200 -messages 100000
fleet:
	go run ./test/fleet $(FLEET)

# Members of a fleet lose their leases while they relay: some quarter of an hour.
leases:
	LEASES=$${LEASES:-300} go test -timeout 2h -v ./test/leases

# docs/FLEET.md word for word, on three machines with systemd and a primary, in containers:
# as root. About a quarter of an hour.
fleet-machines:
	test/install-peers
	go run ./test/machines

# A million recipients pushed: docs/BENCHMARKS.md.
bench-push:
	MILLION=1 go test -run TestMillion -v ./internal/push

# Beside a real Postfix, as root; BENCH=-full takes longer and says more.
bench:
	test/install-peers
	go run ./test/bench $(BENCH)

# The policy channel with 1 and 10 million recipients, beside rsync and postmap:
# docs/BENCHMARKS.md, Sync. At most 40 minutes.
bench-sync:
	test/install-peers
	command -v rsync >/dev/null || apt-get install -q -y --no-install-recommends rsync
	go run ./test/bench -sync -json bench-sync.json

# 10,000 idle sessions and 5,000 slow senders: docs/BENCHMARKS.md, Door.
bench-door:
	LOAD=full go test -timeout 10m -run 'TestIdleSessions|TestSlowSenders|TestSoak' -v ./smtpd

# The queue in a database with a standby, beside one in a directory:
# docs/BENCHMARKS.md, Spool. SPOOL=1000000 shows the memory of a long queue.
bench-spool:
	test/install-peers
	SPOOL=$${SPOOL:-20000} go test -timeout 3h -run TestSpoolFigures -v ./test

# Sessions that are played through beside sessions with the primary itself:
# docs/BENCHMARKS.md, Live. Some 10 minutes.
bench-live:
	test/install-peers
	go run ./test/bench -live -json bench-live.json

# Both tables, Queue and daemon and Live, in one run of at most 15 minutes: one
# round of each row, and more of those for which there is time.
bench-all:
	test/install-peers
	go run ./test/bench -all -within 14m -json bench-all.json

# What a policy of 1 and 10 million recipients takes: docs/BENCHMARKS.md, Policy in memory.
bench-memory:
	go test ./policy -run '^$$' -bench 'Store' -benchmem
	go test ./sync -run '^$$' -bench 'Million' -benchmem
	MEMORY=full go test -timeout 20m -run 'TestMemory' -v ./test

# An hour: every profile with 100,000 sessions, and every mutant of its policy.
parity:
	test/install-peers
	SESSIONS=100000 MUTANTS=1 go test -timeout 24h -v -run TestProfiles ./test/parity

# 10,000 sessions for each profile of a real Exim and all mutants of its lists: docs/PARITY-EXIM.md. Some 20 minutes.
parity-exim:
	test/install-peers
	EXIM_SESSIONS=10000 EXIM_MUTANTS=1 go test -timeout 5h -v -run TestEximProfiles ./test/parity

# 100 random configurations of an Exim with 50 sessions each, and 6,000 headers. Some ten minutes.
parity-exim-random:
	test/install-peers
	EXIM_RANDOM=100 go test -timeout 2h -v -run TestEximRandom ./test/parity
	HEADERS=1500 go test -timeout 1h -v -run TestHeaders ./policy/exim

# 20,000 sessions with a real postgrey behind a real Postfix over simulated time, and
# the replay of 10,000 triplets; a crowd of a million. Some three minutes.
greylist:
	test/install-peers
	CROWD=1000000 go test -timeout 1h -v -run TestCrowd ./policy/greylist
	GREYLIST=20000 TRIPLETS=10000 go test -timeout 2h -v -run TestGreylist ./test/parity

# 20,000 sessions for each profile of filters, with the real ones behind a real Postfix.
parity-filters:
	test/install-peers
	FILTER_SESSIONS=20000 go test -timeout 10h -v -run TestFiltersLikePostfix ./test/parity

# 10,000 sessions through our door to a live Postfix, and as many with itself: docs/LIVE.md.
SESSIONS = 1000
live:
	test/install-peers
	SESSIONS=$(SESSIONS) go test -timeout 4h -v -run TestLiveProfiles ./test/parity

# 20,000 sessions beside a real Postfix with two milters: docs/decisions/0014.
milters:
	test/install-peers
	MILTER_SESSIONS=5000 go test -timeout 2h -v -run TestMiltersLikePostfix ./test/parity

# The tables of mail suites, 50,000 keys each: docs/SUITES.md.
suites:
	test/install-peers
	SUITE_KEYS=50000 go test -timeout 10h -v -run 'TestSuites$$' ./policy/postfix

# A real Postfix in a container of podman's, read by podman exec, from its mounted root and
# over ssh; and a publisher whose container hangs. As root, some two minutes.
reach:
	test/install-peers
	test/reach
	HANGS=1 go test -count=1 -v -run TestContainerGone ./test

# The pictures of the README, of a real outage in a real browser.
screenshots:
	test/install-peers
	SCREENSHOTS=$(CURDIR)/docs/screenshots go test -count=1 -timeout 10m -run 'TestPage$$' ./test

generate:
	go generate ./...

lint:
	! gofmt -l . | grep .
	go vet ./...
	go run honnef.co/go/tools/cmd/staticcheck@v0.8.2 ./...

# The commands of the README, by name. CI runs the same ones.
.PHONY: build demo test bench generate lint

build:
	go build -o understudy ./cmd/understudy

demo:
	go run ./cmd/understudy demo

test:
	test/install-peers
	go test -race -shuffle=on -timeout 20m ./...

# Beside a real Postfix, as root; BENCH=-full takes longer and says more.
bench:
	test/install-peers
	go run ./test/bench $(BENCH)

generate:
	go generate ./...

lint:
	test -z "$$(gofmt -l .)"
	go vet ./...
	go run honnef.co/go/tools/cmd/staticcheck@v0.8.2 ./...

# Everything a contributor runs. `make test` needs nothing but Go: servers are
# taken from where they are, or built, which takes minutes once; tests of one
# that cannot be had are skipped and say so, unless LEASEHOLD_REQUIRE_SERVERS=1.

# Every module of the workspace, which is what users import.
MODULES := $(shell go list -m -f '{{.Dir}}')
# Modules with dependencies that no user should inherit. Those that build the
# servers are not looked at: that alone would fetch half of Kubernetes.
OUTSIDE := $(patsubst %/go.mod,$(CURDIR)/%,$(wildcard integration/go.mod integration/embedded/go.mod benchmarks/go.mod))

SERVERS := go -C integration run ./cmd/servers

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOVULNCHECK := golang.org/x/vuln/cmd/govulncheck@v1.9.0
BENCHSTAT   := golang.org/x/perf/cmd/benchstat@latest

TESTFLAGS ?=
BENCH     ?= .
COUNT     ?= 1

.PHONY: help
help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.PHONY: build
build: ## build the command into bin/
	go build -o bin/leasehold ./cmd/leasehold

.PHONY: test
test: ## run all tests of all modules, with the race detector
	@trap '$(SERVERS) sweep' EXIT; trap 'exit 130' INT TERM; status=0; \
	$(SERVERS) prepare || status=1; \
	for m in $(MODULES); do \
		(cd $$m && go test -race -timeout 10m $(TESTFLAGS) ./...) || status=1; \
	done; \
	for m in kubernetes etcd redis; do \
		echo "$$m, with the oldest client it supports:"; \
		(cd $$m && GOWORK=off go test -race -timeout 10m $(TESTFLAGS) ./...) || status=1; \
	done; \
	echo "integration, with the newest clients; one package at a time, as the servers want the processors, too:"; \
	(cd integration && go test -race -p 1 -timeout 20m $(TESTFLAGS) ./...) || status=1; \
	(cd integration/embedded && go test -race -timeout 10m $(TESTFLAGS) ./...) || status=1; \
	echo "integration, the suite with the oldest clients:"; \
	(cd integration && GOWORK=off go test -modfile=oldest.mod -race -p 1 -timeout 10m -run 'TestConformance$$|OnLock' $(TESTFLAGS) ./kubernetes ./etcd ./redis) || status=1; \
	exit $$status

.PHONY: servers
servers: ## see which servers the tests will use; pull or build what is missing
	@$(SERVERS) prepare

.PHONY: check
check: fmt vet lint tidy vuln ## everything but the tests that CI looks at

.PHONY: fmt
fmt: ## fail if a file is not formatted
	@unformatted=$$(git ls-files -co --exclude-standard '*.go' | xargs gofmt -l); \
	if [ -n "$$unformatted" ]; then echo "not gofmt-ed:"; echo "$$unformatted"; exit 1; fi

.PHONY: vet
vet: ## go vet, also for the systems that can only be compiled for here
	@for m in $(MODULES); do (cd $$m && go vet ./...) || exit 1; done
	@for m in $(OUTSIDE); do (cd $$m && GOWORK=off go vet ./...) || exit 1; done
	@for os in darwin windows; do for m in $(MODULES); do \
		(cd $$m && GOOS=$$os go build ./...) || exit 1; done; done
	@GOOS=freebsd go build ./... # the rest would compile all of client-go once more
	@for m in $(OUTSIDE); do (cd $$m && GOOS=darwin GOWORK=off go vet ./...) || exit 1; done

.PHONY: lint
lint: ## staticcheck, as staticcheck.conf says
	@for m in $(MODULES); do (cd $$m && go run $(STATICCHECK) ./...) || exit 1; done
	@for m in $(OUTSIDE); do (cd $$m && GOWORK=off go run $(STATICCHECK) ./...) || exit 1; done

.PHONY: tidy
tidy: ## fail if a go.mod is not tidy
	@for m in $(MODULES) $(OUTSIDE); do (cd $$m && GOWORK=off go mod tidy -diff) || exit 1; done
	@cd integration && GOWORK=off go mod tidy -modfile=oldest.mod -diff

# The data base of vulnerabilities is fetched at each run. Without it the check
# says so and passes; with LEASEHOLD_REQUIRE_VULNDB=1 it fails.
.PHONY: vuln
vuln: ## govulncheck, where its data can be had
	@for m in $(MODULES); do \
		out=$$(cd $$m && go run $(GOVULNCHECK) ./... 2>&1); code=$$?; \
		if [ $$code -ne 0 ] && [ $$code -ne 3 ] && echo "$$out" | grep -q 'vuln.go.dev\|fetching vulnerabilities' && [ "$$LEASEHOLD_REQUIRE_VULNDB" != 1 ]; then \
			echo "govulncheck: its data cannot be had here; nothing was checked"; exit 0; \
		fi; \
		echo "$$out"; [ $$code -eq 0 ] || exit $$code; \
	done

FUZZTIME ?= 30s
.PHONY: fuzz
fuzz: ## run every fuzz test for FUZZTIME
	@for m in $(MODULES); do (cd $$m && grep -rl --include='*_test.go' '^func Fuzz' . | xargs -rn1 dirname | sort -u | while read -r p; do \
		for f in $$(grep -ho --include='*_test.go' '^func Fuzz[A-Za-z]*' $$p/*_test.go | cut -c6-); do \
			go test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) $$p || exit 1; done; done) || exit 1; done

.PHONY: bench
bench: ## run the benchmarks: make bench BENCH=Held COUNT=6 | tee new.txt
	@for m in $(MODULES); do (cd $$m && go test -run '^$$' -bench '$(BENCH)' -benchmem -count $(COUNT) ./...) || exit 1; done
	@if [ -f benchmarks/go.mod ]; then cd benchmarks && GOWORK=off go test -timeout 0 -run '^$$' -bench '$(BENCH)' -benchmem -count $(COUNT) ./...; fi

.PHONY: benchstat
benchstat: ## compare two outputs: make benchstat OLD=old.txt NEW=new.txt
	go run $(BENCHSTAT) $(OLD) $(NEW)

.PHONY: clean
clean: ## remove what was built
	rm -rf bin .cache

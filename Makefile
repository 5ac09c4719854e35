# Postern. `make demo` shows it, `make test` tests it; both install what they need.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

GO        ?= go
BIN       := bin
TOOLBIN   := $(CURDIR)/$(BIN)/tools
GOFLAGS_B := -trimpath -buildvcs=false
FUZZTIME  ?= 3s
# For what reads a stranger's octets first: BER, CMS, PKCS#10, attributes, query.
FUZZLONG  ?= 60s
DEVICE_PORT   ?= 8443
OPERATOR_PORT ?= 9443
export DEVICE_PORT OPERATOR_PORT

# strongSwan's curl plugin does nothing without the openssl plugin of the standard ones.
NEED_DEMO := ca-certificates jq openssl softhsm2 strongswan-pki libstrongswan-standard-plugins libstrongswan-extra-plugins

# A token's mechanism state is per process; so are SoftHSM's files. Nothing here
# reads or writes a token outside the folder of the demo or of one test.

.PHONY: build demo run test lint vet vuln fuzz unit conformance soak bench bench-timing clean need-demo need-test tools

build:
	mkdir -p $(BIN)
	$(GO) build $(GOFLAGS_B) -o $(BIN)/ ./cmd/...
	CGO_ENABLED=0 $(GO) build $(GOFLAGS_B) -o $(BIN)/ ./cmd/postern-verify
	$(GO) build $(GOFLAGS_B) -o $(BIN)/postern-demo ./test/demo

need-demo:
	tools/need $(NEED_DEMO)

need-test:
	tools/need $(NEED_DEMO) systemd p11-kit p11-kit-modules opencryptoki certmonger dbus-daemon

demo: need-demo build
	$(BIN)/postern-demo

run: need-demo build
	$(BIN)/postern-demo --run

tools: $(TOOLBIN)/golangci-lint $(TOOLBIN)/staticcheck $(TOOLBIN)/govulncheck

$(TOOLBIN)/%: tools/go.mod tools/go.sum
	mkdir -p $(TOOLBIN)
	cd tools && $(GO) build $(GOFLAGS_B) -o $(TOOLBIN)/ tool
	touch $(TOOLBIN)/*

vet:
	test -z "$$(gofmt -l $$(git ls-files '*.go' 2>/dev/null || find . -name '*.go'))" || { gofmt -l $$(git ls-files '*.go'); echo "not gofmt"; exit 1; }
	$(GO) vet ./...

lint: tools vet
	$(TOOLBIN)/staticcheck ./...
	$(TOOLBIN)/golangci-lint run ./...

# The database of known vulnerabilities is not part of the repository: name a
# folder of OSV files to have the build checked against it.
vuln: tools
ifdef POSTERN_VULNDB
	$(TOOLBIN)/govulncheck -db file://$(POSTERN_VULNDB) ./...
else
	@echo "govulncheck: NOT RUN (POSTERN_VULNDB names no database folder)"
endif

# Every fuzz target of the tree, for FUZZTIME each, and those of tools/fuzz-long for
# FUZZLONG, one on each core. Their seeds run as tests too.
fuzz:
	tools/fuzz $(FUZZTIME) $(FUZZLONG)

# A test that shows a row of the conformance table has to run: what go test says is
# read, and printed as go test would.
unit:
	$(GO) build $(GOFLAGS_B) -o $(BIN)/postern-conformance ./test/conformance
	POSTERN_BIN=$(CURDIR)/$(BIN) $(GO) test -json -race -timeout 30m ./... | $(BIN)/postern-conformance -watch

# The handbook's page of the conformance table.
conformance:
	mkdir -p $(BIN)
	$(GO) run ./test/conformance -format handbook > $(BIN)/conformance.md
	mv $(BIN)/conformance.md appliance/handbook/conformance.md

test: need-test build lint vuln fuzz unit

# The loops of `make test`, ten times longer.
soak: need-test build
	POSTERN_SOAK=1 POSTERN_BIN=$(CURDIR)/$(BIN) $(GO) test -count=1 -v -timeout 4h ./test/crash/... ./test/tokens/...
	tools/fuzz 60s 60s

bench: need-demo build
	$(GO) run ./test/load
	$(GO) run ./test/load -status

# Whether the time of an answer tells what was wrong with a message: some minutes.
bench-timing: need-demo build
	POSTERN_BIN=$(CURDIR)/$(BIN) $(GO) run ./test/timing -serial 200

clean:
	rm -rf $(BIN) demo

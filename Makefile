# Postern. `make test` installs what it needs and runs every test.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build
GO      ?= go
TOOLBIN := $(CURDIR)/bin/tools
FUZZTIME ?= 3s

.PHONY: build test lint fuzz unit need-test tools

build:
	$(GO) build ./...

need-test:
	tools/need softhsm2 openssl

tools: $(TOOLBIN)/golangci-lint

$(TOOLBIN)/%: tools/go.mod tools/go.sum
	mkdir -p $(TOOLBIN)
	cd tools && $(GO) build -trimpath -buildvcs=false -o $(TOOLBIN)/ tool

lint: tools
	$(GO) vet ./...
	$(TOOLBIN)/staticcheck ./...
	$(TOOLBIN)/golangci-lint run ./...

fuzz:
	tools/fuzz $(FUZZTIME)

unit:
	$(GO) test -race -timeout 30m ./...

test: need-test build lint fuzz unit

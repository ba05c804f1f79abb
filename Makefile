# Building without cargo-pgrx: the SQL script is written by hand, so all that is needed is the library and three files in
# the right places.

# A pg_config that came with libpq-dev alone knows no server headers: then the newest of Debian's servers is meant.
PG_CONFIG ?= $(if $(wildcard $(shell pg_config --includedir-server 2>/dev/null)/postgres.h),pg_config,$(or \
    $(lastword $(sort $(wildcard /usr/lib/postgresql/*/bin/pg_config))),pg_config))
PG_MAJOR   = $(shell $(PG_CONFIG) --version 2>/dev/null | sed -E 's/^PostgreSQL ([0-9]+).*/\1/')
# pgrx asks for Rust 1.96; with 1.95 it builds all the same when cargo does not ask.
OLD_RUST   = $(shell test "$$(rustc --version | sed -E 's/^rustc 1\.([0-9]+).*/\1/')" -lt 96 && echo --ignore-rust-version)
FEATURES   = --locked $(OLD_RUST) --no-default-features --features pg$(PG_MAJOR)
CARGO      = PGRX_PG_CONFIG_PATH=$(shell command -v $(PG_CONFIG)) cargo
# Debian's own python: the test packages are Debian's, and another python may come first on PATH.
PYTEST     = /usr/bin/python3 -m pytest
TARGET_DIR = $(or $(CARGO_TARGET_DIR),target)

library      = $(TARGET_DIR)/release/libsync_outbox.so
# `make install-files prefix=DIR` takes a directory of its own instead of the server's, as PGXS does; PostgreSQL 18 finds it
# through extension_control_path = 'DIR/share:$$system' and dynamic_library_path = 'DIR/lib:$$libdir'. A variable of the
# environment that happens to have this name is not meant.
ifeq ($(origin prefix),command line)
pkglibdir    = $(DESTDIR)$(prefix)/lib
extensiondir = $(DESTDIR)$(prefix)/share/extension
else
pkglibdir    = $(DESTDIR)$(shell $(PG_CONFIG) --pkglibdir)
extensiondir = $(DESTDIR)$(shell $(PG_CONFIG) --sharedir)/extension
endif

.PHONY: help prerequisites postgresql-16 all build deb test-deb dist installcheck install install-files uninstall test unit e2e test-majors test-matrix test-upgrade soak fuzz check lint demo bench bench-receiver clean print-pg-config print-pg-major
.DEFAULT_GOAL := help

help: ## list the targets
	@sed -nE 's/^([a-z0-9-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

prerequisites: ## install what building and testing need (Debian)
	PG_CONFIG='$(PG_CONFIG)' PG_MAJOR='$(PG_MAJOR)' scripts/prerequisites.sh

postgresql-16: ## a PostgreSQL 16 with the extension below target, for the test of pg_upgrade
	scripts/postgresql-16.sh

# What the pgxn client calls.
all: build

build: ## release build for the server of PG_CONFIG
	$(CARGO) build --release $(FEATURES)

install: build ## release build, installed into the server of PG_CONFIG
	$(MAKE) install-files

# Written beside and renamed: overwriting a library in place crashes the servers that have it mapped.
install-files: ## only the copying, where the build is there (sudo without cargo)
	install -d '$(pkglibdir)' '$(extensiondir)'
	install -m 755 $(library) '$(pkglibdir)/sync_outbox.so.new'
	mv -f '$(pkglibdir)/sync_outbox.so.new' '$(pkglibdir)/sync_outbox.so'
	install -m 644 sync_outbox.control sql/*.sql '$(extensiondir)/'

uninstall: ## remove what install copied
	rm -f '$(pkglibdir)/sync_outbox.so' '$(extensiondir)/sync_outbox.control' '$(extensiondir)'/sync_outbox--*.sql

deb: ## packages for the PostgreSQL of this Debian, in target/deb; installs what building them needs
	scripts/deb.sh

test-deb: ## minutes, as root on a Debian: packages and the zip built, installed, upgraded, removed in clean roots
	scripts/test-deb.sh

# The whole commit, so that the tests can be run from it too.
VERSION = $(shell sed -nE "s/^default_version = '(.*)'/\1/p" sync_outbox.control)
dist: ## the last commit as a zip for PGXN, in target
	mkdir -p '$(TARGET_DIR)'
	git archive --format=zip --prefix=sync_outbox-$(VERSION)/ --output='$(TARGET_DIR)/sync_outbox-$(VERSION).zip' HEAD

# With psql alone, and the PG* variables. PG_CONFIG's psql is taken where there is none on PATH.
installcheck: ## check the extension on a running server (PGHOST, PGPORT, ..), in a database made for it
	@PSQL="$$(command -v psql || echo '$(shell $(PG_CONFIG) --bindir 2>/dev/null)/psql')" bash scripts/installcheck.sh

# One after the other, and what is missing first, also under make -j.
test: ## everything: unit tests, then end-to-end tests against private servers
	$(MAKE) prerequisites
	$(MAKE) unit
	$(MAKE) postgresql-16
	$(MAKE) build
	$(MAKE) e2e

# The old version is built once; where its history or the network is missing, the tests are skipped and say so.
test-upgrade: ## the update from the real 0.1.0, built from the history, with the release build that is there
	PG_CONFIG='$(PG_CONFIG)' scripts/release-0.1.0.sh >/dev/null || test $$? -eq 75
	$(PYTEST) -n $(JOBS) tests/upgrade/from_0_1_0.py

unit: ## tests of what does not touch PostgreSQL, in the whole workspace
	$(CARGO) test --release --lib --workspace $(FEATURES)

# JOBS servers of each kind run side by side. One test: make e2e T='tests/harness/test_smoke.py -k flush -n 0'
JOBS ?= 2
T    ?= tests
e2e: ## end-to-end tests of the release build that is there
	$(PYTEST) -n $(JOBS) $(T)

test-majors: ## the most important end-to-end tests on every other major that can be had (Debian, root)
	scripts/majors.sh core $(MAJORS)

test-matrix: ## all end-to-end tests on every other major that can be had (Debian, root): hours
	scripts/majors.sh full $(MAJORS)
	$(MAKE) test-upgrade
	$(MAKE) test-deb

# The same seed has the same faults at the same times. Three minutes of it are part of `make test`, see tests/faults/test_soak.py.
MINUTES ?= 60
SOAK = $(if $(SEED),--seed $(SEED)) $(if $(KEEP),--keep)
soak: ## MINUTES of random faults (SEED=n) under load; ends with the counts of what was lost, made up, repeated
	/usr/bin/python3 tests/soak.py --minutes $(MINUTES) $(SOAK)

# What it found before is checked by `make unit`, see the `properties` of each crate.
SECONDS ?= 30
fuzz: ## every parser for SECONDS of what a fuzzer makes up; installs cargo-fuzz where it is missing
	PGRX_PG_CONFIG_PATH=$(shell command -v $(PG_CONFIG)) FEATURE=sync_outbox/pg$(PG_MAJOR) scripts/fuzz.sh $(SECONDS)

# Files and directories whose SQL names no operator, function or type without its schema.
SQL_CHECKED = src crates sql
# What `.ci/run` runs of it; the rest takes minutes.
check: ## formatting, lines, SQL, arrows between modules, clippy and rustdoc, warnings denied; released scripts are as released
	cd sql && sha256sum --check --quiet released.sha256
	cargo fmt --all --check
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	scripts/check-lines.py
	scripts/check-sql.py $(SQL_CHECKED)
	scripts/check-arrows.py
	$(CARGO) clippy --release --workspace --all-targets $(FEATURES) -- -D warnings
	RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" $(CARGO) doc --release --workspace --no-deps --document-private-items $(FEATURES)

lint: check ## check, and the dependencies with cargo-deny, installed where it is missing
	scripts/check-dependencies.sh

demo: ## capture, an offline time, catching up and a conflict on two throwaway servers
	demo/run.sh

# All of it takes about 40 minutes; QUICK=1 at most 5. Some of it: make bench PARTS="capture drain"
bench: ## measure, beside peers, and write docs/performance.md
	bench/run.sh

bench-receiver:
	$(CARGO) build --release $(FEATURES) --example bench_receiver

clean: ## remove what was built
	cargo clean

# For the tests, which copy the server that this Makefile builds for.
print-pg-config:
	@command -v $(PG_CONFIG)

print-pg-major:
	@echo $(PG_MAJOR)

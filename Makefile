# Entry points. `make help` lists them; tests/setup installs missing Debian packages where a target needs some.

SHELL := /bin/bash
PREFIX ?= /usr/local
DESTDIR ?=
FUZZ_SECONDS ?= 120
FIO_SECONDS ?= 600
FIO_FOLDER ?= .
POSTGRES_CUTS ?= 50
POSTGRES_KILLS ?= 20
TARGET_DIR := $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)
RELEASE := $(TARGET_DIR)/release
MAN := $(DESTDIR)$(PREFIX)/share/man/man1
BASH_COMPLETIONS := $(DESTDIR)$(PREFIX)/share/bash-completion/completions
ZSH_COMPLETIONS := $(DESTDIR)$(PREFIX)/share/zsh/site-functions
FISH_COMPLETIONS := $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d

# rustup's folder, and the one where Debian keeps mkfs and cryptsetup.
export PATH := $(HOME)/.cargo/bin:$(PATH):/usr/local/sbin:/usr/sbin:/sbin

LIBRARIES := -p secret -p block -p dmcrypt -p luks -p export -p dmsetup -p session

.PHONY: help build demo test test-crash test-postgres test-denied test-fio test-vm test-vm-full install fuzz asan timing bench-crypto bench-copy bench-exports bench-fio bench-unlock deny doc clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

build: ## luksctl and luksbench, release
	tests/setup build
	cargo build --release -p luksctl -p luksbench

demo: ## format, open, fill, close, reopen and compare a real volume; cryptsetup checks it
	tests/demo

test: ## every check and every test; LUKS_VM_LANE=0 leaves the virtual machine out
	tests/setup test
	env --default-signal tests/run

test-crash: ## the whole crash campaign: every cut and error of every header operation, cryptsetup beside it; some minutes
	tests/setup test
	cargo build -p luksctl
	LUKS_CRASH_WHOLE=1 env --default-signal cargo test -p promises --test header_crash --test two_tools -- --nocapture --test-threads 1

test-postgres: ## PostgreSQL on an encrypted disk, 50 power cuts and 20 server kills for each backend; half an hour
	tests/setup postgres
	cargo build -p luksctl
	LUKS_POSTGRES_CUTS=$(POSTGRES_CUTS) LUKS_POSTGRES_KILLS=$(POSTGRES_KILLS) \
		env --default-signal cargo test -p promises --test postgres -- --nocapture --test-threads 1

test-fio: ## fio with verify=crc32c over each user-space backend, FIO_SECONDS each
	tests/setup test
	cargo build -p luksctl
	LUKS_FIO_SECONDS=$(FIO_SECONDS) env --default-signal cargo test -p promises --test fio -- --nocapture --test-threads 1

test-denied: ## the tests again where io_uring is denied (seccomp) and 8 MiB of memory may be locked
	tests/setup test
	env --default-signal tests/denied

test-vm: ## luksctl on a stock kernel, in a virtual machine; part of test
	tests/setup vm
	env --default-signal tests/vm/run quick

test-vm-full: ## the same with the whole matrix; takes hours
	tests/setup vm
	env --default-signal tests/vm/run full

install: build ## binaries, manual pages and completions under PREFIX (DESTDIR is honoured)
	install -d $(DESTDIR)$(PREFIX)/bin $(MAN) $(BASH_COMPLETIONS) $(ZSH_COMPLETIONS) $(FISH_COMPLETIONS)
	install -m 755 $(RELEASE)/luksctl $(RELEASE)/luksbench $(DESTDIR)$(PREFIX)/bin/
	$(RELEASE)/luksctl generate man $(MAN)
	$(RELEASE)/luksctl generate completions bash > $(BASH_COMPLETIONS)/luksctl
	$(RELEASE)/luksctl generate completions zsh > $(ZSH_COMPLETIONS)/_luksctl
	$(RELEASE)/luksctl generate completions fish > $(FISH_COMPLETIONS)/luksctl.fish

fuzz: ## every fuzz target for FUZZ_SECONDS each
	tests/setup fuzz
	tests/fuzz $(FUZZ_SECONDS)

bench-crypto: ## AES-XTS against the machine's limit, xts-mode, OpenSSL and aws-lc; BENCH="--quick" and the like
	tests/setup bench-crypto
	cargo run --release --locked --manifest-path bench/rivals/Cargo.toml --target-dir $(TARGET_DIR)/rivals -- $(BENCH)

asan: ## the sector cipher's tests under AddressSanitizer (nightly Rust)
	tests/crypto-lanes asan

timing: ## long campaigns of the timing test: some minutes on a quiet machine
	DMCRYPT_TIMING_BATCHES=2000 cargo test -p dmcrypt --test timing -- --nocapture

bench-copy: build ## copy-in and copy-out, with the ratio of the fastest kernel to the portable one
	tests/bench-copy $(RELEASE)/luksctl

bench-exports: build ## FUSE, loop over FUSE, NBD, with and without the cipher, against their ceiling; BENCH="--quick" and the like
	tests/setup bench-exports
	$(RELEASE)/luksbench exports $(BENCH)

bench-fio: build ## luksbench io against fio, in turns on one file, on tmpfs and in FIO_FOLDER; BENCH="--rounds 41" and the like
	tests/setup bench-fio
	for folder in /dev/shm $(FIO_FOLDER); do $(RELEASE)/luksbench io $$folder --layer fio --size 512M --rounds 21 --duration 0.5 $(BENCH) || exit 1; done

bench-unlock: build ## time to unlock, with the ratio to cryptsetup
	tests/setup demo
	tests/bench-unlock $(RELEASE)

deny: ## licences, bans and advisories of the dependencies
	command -v cargo-deny > /dev/null || cargo install --locked cargo-deny
	cargo deny check

doc: ## the libraries' documentation; warnings are errors
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps $(LIBRARIES)

clean: ## everything that was built
	cargo clean
	rm -rf fuzz/target

# Two commands do everything on a fresh Debian or Ubuntu machine, as root: `make run` and `make test`.
# Each installs what is missing first; a second call installs nothing.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# The distribution's Python, named by path: Mininet is packaged for it, and another may stand first on the PATH.
PYTHON := /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SCENARIO ?= scenarios/reference.toml
ARGS ?=
# Tests mostly wait, for links and timers; tests/conftest.py holds back those that keep a processor busy.
WORKERS ?= $(shell n=$$(nproc); echo $$((n < 4 ? 2 * n + 1 : 8)))

APT_PACKAGES := python3 python3-venv python3-dev gcc mininet openvswitch-switch iproute2 iputils-ping ethtool \
	tcpdump iperf3 nftables redis-tools curl procps kmod openssh-server qemu-utils python3-libnbd libnbd-bin \
	stress-ng

.PHONY: help setup run test check benchmark clean apt

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Our own modules are compiled here once: a run starts a dozen Python processes, and where the environment forbids Python
# to keep bytecode (PYTHONDONTWRITEBYTECODE, as in many images) each would compile them all again, an eighth of its time.
setup: apt $(STAMP) ## install what is missing: apt packages, virtual environment, pinned dependencies
	@$(BIN)/python -m compileall -qq bench controllers topologies || true

run: setup ## migrate the reference guest and say where every millisecond went (SCENARIO=file ARGS="...")
	$(BIN)/bench run $(SCENARIO) $(ARGS)

# A browser looks at the report (Ubuntu has it as a snap only), and a server of the tests' own answers `bench remote`;
# where systemd runs it would be started as a service as well, so it is not installed there.
test: APT_PACKAGES += openssh-client $(if $(shell grep -x ID=debian /etc/os-release),chromium)
test: APT_PACKAGES += $(if $(CI)$(if $(wildcard /run/systemd/system),,none),openssh-server)
test: setup ## run every check and every test (as root)
	$(MAKE) --no-print-directory check
	rm -f .pytest_cache/v/cache/lastfailed
	unset PYTHONDONTWRITEBYTECODE; \
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder $(ARGS) || { \
	  echo "what failed beside other tests is tried once more, one at a time: look above for why it failed"; \
	  .ci/again $(BIN)/python $(ARGS); }

check: setup ## style, types and the layering rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

benchmark: APT_PACKAGES += qemu-system-x86
benchmark: setup ## measure the bench itself against peers and limits; writes benchmarks.json
	$(BIN)/python benchmarks/run.py $(ARGS)

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Of openssh-server only the program is wanted: while packages are installed here no service may start (policy-rc.d is
# how Debian's packages ask), and when the package is new its service is not left to start at the next boot either.
# apt is asked only when dpkg says that something is missing, so a second call needs neither root nor a network.
apt:
	@missing=""; \
	for package in $(APT_PACKAGES); do \
	  status=$$(dpkg-query -W -f '$${Status}' "$$package" 2>/dev/null || true); \
	  [ "$$status" = "install ok installed" ] || missing="$$missing $$package"; \
	done; \
	if [ -n "$$missing" ]; then \
	  [ "$$(id -u)" = 0 ] || { echo "make: missing packages:$$missing; run this as root (sudo make ...) to install them" >&2; exit 2; }; \
	  echo "installing:$$missing"; \
	  export DEBIAN_FRONTEND=noninteractive; \
	  apt-get update -q; \
	  policy=/usr/sbin/policy-rc.d; made=""; \
	  [ -e $$policy ] || { printf '#!/bin/sh\nexit 101\n' >$$policy; chmod 755 $$policy; made=yes; }; \
	  trap '[ -z "$$made" ] || rm -f $$policy' EXIT; \
	  apt-get install -q -y --no-install-recommends $$missing; \
	  case "$$missing" in *openssh-server*) \
	    [ ! -d /run/systemd/system ] || systemctl --quiet disable ssh.service ssh.socket || true;; esac; \
	fi

$(STAMP): requirements.txt setup.cfg pyproject.toml .ci/build-constraints.txt
	$(PYTHON) -m venv --system-site-packages $(VENV)
	PIP_CONSTRAINT=$(abspath .ci/build-constraints.txt) $(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $(STAMP)

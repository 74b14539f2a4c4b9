# Two kinds of targets: those of an operator (qos, qos-disable, qos-absent, qos-check), which act on
# the hosts of INVENTORY, and those of a developer, which act on this machine and on lab nodes.

SHELL := /bin/bash -euo pipefail
.DEFAULT_GOAL := help
.SUFFIXES:
MAKEFLAGS += --no-builtin-rules --no-print-directory

INVENTORY ?= inventory.yml
LIMIT ?=
EXTRA ?=
CONFIRM ?=

PY := .venv/bin/python
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHONPATH := $(CURDIR)/agent/src:$(CURDIR)/tests
# What molecule knows of its node is this checkout's: by default all checkouts share it.
export MOLECULE_EPHEMERAL_DIRECTORY := $(CURDIR)/build/molecule
# This checkout is vff.qos, whatever is installed elsewhere.
export ANSIBLE_COLLECTIONS_PATH := $(CURDIR)/build
export ANSIBLE_INJECT_FACT_VARS := false
export ANSIBLE_PIPELINING := true
export ANSIBLE_NOCOWS := true
# Or an inventory with a mistake would be one without hosts, and the kill switch end well for nobody.
export ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED := true

PLAY = ansible-playbook -i '$(INVENTORY)' vff.qos.site $(if $(LIMIT),--limit '$(LIMIT)') $(EXTRA)

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^##@/ { printf "\n%s\n", substr($$0, 5) } /^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@printf '\nVariables\n  LIMIT=node         only these hosts\n  INVENTORY=FILE     default inventory.yml\n  EXTRA="..."        more arguments for ansible-playbook\n'

##@ On your nodes

# No -e qos_state here: it would override a host whose inventory says disabled.
.PHONY: qos
qos: build inventory ## Bring the hosts into the state that the inventory says (default: present)
	$(PLAY)

.PHONY: qos-check
qos-check: build inventory ## Show what `make qos` would change; changes nothing
	$(PLAY) --check --diff

# So many hosts at once: none waits for another, as those that do not answer.
.PHONY: qos-disable
qos-disable: export ANSIBLE_FORKS ?= 100
qos-disable: setup inventory ## Kill switch: lift all limits at once, also after a reboot
	$(PLAY) -e qos_state=disabled

.PHONY: qos-absent
qos-absent: setup inventory ## Remove everything; needs LIMIT=host or CONFIRM=1
	@if [ -z '$(LIMIT)' ] && [ '$(CONFIRM)' != 1 ]; then \
	  echo 'make qos-absent removes vff-qos from every host of $(INVENTORY); say which with LIMIT=host, or CONFIRM=1 for all' >&2; exit 2; fi
	$(PLAY) -e qos_state=absent

.PHONY: inventory
inventory:
	@if [ ! -e '$(INVENTORY)' ]; then \
	  echo 'there is no $(INVENTORY); write one (README.md has an example) or name yours with INVENTORY=' >&2; exit 2; fi

##@ On this machine

.PHONY: demo
demo: build ## Boot a lab node, deploy, move traffic of many users, measure, draw
	$(PY) -m lab demo

.PHONY: test
test: build ## Lint, unit tests, network namespaces, the molecule scenario on two lab nodes; branch coverage
	$(PY) -m pytest tests -n 4 --dist loadgroup --cov=vff_qos --cov-report=term

.PHONY: molecule
molecule: build ## Only the molecule scenario
	cd build/ansible_collections/vff/qos && molecule test --no-command-borders

.PHONY: test-unit
test-unit: build ## Only what needs neither root nor a lab node
	$(PY) -m pytest tests/unit -m 'not lint'

.PHONY: test-platforms
test-platforms: build ## ansible-core 2.16 to the newest, all on Debian 13, its successor's programs, a node that others share, one person on all engines
	VFF_QOS_PLATFORMS=1 $(PY) -m pytest tests/unit/repository/test_ansible_cores.py tests/unit/repository/test_hardening.py
	$(PY) tests/releases.py
	$(PY) -m lab_tests.coexistence
	$(PY) -m lab_tests.one_person
	VFF_QOS_SUITE=trixie VFF_QOS_STEPS=long $(MAKE) molecule

.PHONY: test-sanity
test-sanity: build ## ansible-test sanity on the collection as it is shipped
	$(PY) tests/sanity.py

.PHONY: lint
# An inventory, because the playbook refuses to have none; a file, since `localhost,` names this directory, too.
lint: setup ## ansible-lint (production), yamllint, ruff, mypy, changelog, documentation of plugins
	yamllint -s .
	echo localhost >build/lint.ini
	cd build/ansible_collections/vff/qos && ANSIBLE_INVENTORY='$(CURDIR)/build/lint.ini' ansible-lint --strict -q
	ruff check agent plugins tests
	ruff format --check agent plugins tests
	mypy
	antsibull-changelog lint
	cd build/ansible_collections/vff/qos && \
	  antsibull-docs lint-collection-docs --plugin-docs --validate-collection-refs self --skip-rstcheck .

.PHONY: bench
bench: build ## Measure the agent natively, shaping natively and on lab nodes (QUICK=1: fewer runs; BASE=REV: compare the agent with that commit's); build/bench/report.json
	$(PY) -m bench $(if $(QUICK),--quick) $(if $(ONLY),--only $(ONLY)) $(if $(BASE),--base '$(BASE)')

.PHONY: docs
docs: setup ## Write what is made from other files: docs/VARIABLES.md, parts of ARCHITECTURE, JOURNAL and MIGRATION, the catalog
	$(PY) tests/made_docs.py

.PHONY: screenshots
screenshots: setup ## Take the pictures of the page in docs/images, of a node in a network namespace (root)
	$(PY) tests/screenshots.py

.PHONY: bump
bump: setup ## Set VERSION=x.y.z in all its places
	@$(PY) tests/bump.py '$(VERSION)'

.PHONY: soak
soak: setup ## Ten minutes of restarts, kills, flushes, floods and forged lines; two million lines against the truth
	VFF_QOS_SOAK_S=600 VFF_QOS_LINES=2000000 $(PY) -m pytest tests/netns/test_soak.py tests/netns/test_truth.py -s

.PHONY: build
build: build/collection.stamp ## Build the wheels that travel with the role and the collection's tarball

AGENT_FILES := agent/pyproject.toml $(shell find agent/src -name '*.py' -o -path '*/static/*')
ROLE_FILES := $(shell find galaxy.yml meta roles plugins playbooks docs README.md README.ru.md LICENSE \
  -type f -not -path 'roles/qos/files/wheels/*' -not -name '*.pyc')

roles/qos/files/wheels/SHA256SUMS: plugins/plugin_utils/wheels.py roles/qos/files/requirements.txt $(AGENT_FILES) | setup
	$(PY) plugins/plugin_utils/wheels.py
	@touch $@

build/collection.stamp: roles/qos/files/wheels/SHA256SUMS $(ROLE_FILES)
	rm -f build/vff-qos-*.tar.gz
	ansible-galaxy collection build --force --output-path build .
	@touch $@

.PHONY: setup
setup:
	@bash tests/setup.sh

.PHONY: clean
clean: ## Delete what was built (not the lab's image cache)
	rm -rf build roles/qos/files/wheels .mypy_cache .pytest_cache .ruff_cache .ansible .cache

# The one place for the commands of the project; each also stands in the README for people without make.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3

.PHONY: demo test faults bench lint audit format documents clean

demo: $(VENV)/installed
	$(BIN)/medallion demo

test: $(VENV)/installed lint
	@# In their own order: sorted by how many tests they have, the few long ones come last.
	$(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

faults: $(VENV)/installed
	$(BIN)/pytest tests/faults --long

# FULL=1 for the large sizes, which takes hours; REFERENCE=folder to compare with a checkout there.
bench: $(VENV)/installed
	REFERENCE="$(REFERENCE)" $(BIN)/python -m benchmarks $(if $(FULL),--full)

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile
	$(BIN)/sqlfluff lint --disable-progress-bar dbt_project/models dbt_project/tests
	@# Parsing needs packages and a name for each variable, but no database.
	$(BIN)/python -c "from medallion import dbt; dbt.packages_are_installed() or dbt.install_packages()"
	PGHOST=none PGUSER=none $(BIN)/dbt --quiet \
		--warn-error-options '{"error": "all", "silence": ["JinjaLogWarning"]}' parse \
		--project-dir dbt_project --profiles-dir dbt_project \
		--target-path $(CURDIR)/dbt_project/target/lint
	@out=$$($(BIN)/dbt-bouncer run --show-all-failures 2>&1) || { echo "$$out"; exit 1; }

# Strict: of a package that it can't ask about, it would else only warn.
audit: $(VENV)/installed
	$(BIN)/pip-audit --strict --require-hashes --disable-pip -r requirements.lock

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

documents: $(VENV)/installed
	$(BIN)/pytest tests/dbt/test_documents.py --write-documents

clean:
	rm -rf $(VENV) dbt_project/target dbt_project/logs dbt_project/dbt_packages

$(VENV)/installed: requirements.lock requirements-uv.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements-uv.lock
	$(BIN)/uv pip sync --quiet --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

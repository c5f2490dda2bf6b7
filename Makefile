PYTHON ?= python3
BIN = .venv/bin
NOTEBOOKS = trainer_VAE.ipynb trainer_SSL_VAE.ipynb docs/decoder_variance.ipynb
SMOKE_TESTS = $(addprefix smoke-, $(NOTEBOOKS))

# Threads that wait for each other soon sleep: when another program uses a core too, spinning for as long as GNU OpenMP
# does by default can make a step many times slower. Alone on a machine it is a few per cent faster, so `bench` does.
export GOMP_SPINCOUNT = 1000
# Freed memory stays with the process: M2's large tensors otherwise cost a tenth to a fifth of a step in page faults.
export MALLOC_MMAP_THRESHOLD_ = 1000000000
export MALLOC_TRIM_THRESHOLD_ = 1000000000

.PHONY: figures $(NOTEBOOKS) table experiments bench weights test $(SMOKE_TESTS) browser-test lock clean

# Two at once, each on half of the cores: two threads of one training are far from twice as fast.
figures: .venv/installed
	OMP_NUM_THREADS=$$($(BIN)/python -c "import os; print(max(1, os.cpu_count() // 2))") $(MAKE) --jobs 2 $(NOTEBOOKS)

$(NOTEBOOKS): .venv/installed
	$(BIN)/python -m experiments notebooks $@

table: .venv/installed
	$(BIN)/python -m experiments ssl
	$(BIN)/python -m experiments table

experiments: .venv/installed
	$(BIN)/python -m experiments m1

weights: .venv/installed
	$(BIN)/python -m experiments weights
	$(BIN)/python -m experiments page

bench: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	env -u GOMP_SPINCOUNT $(BIN)/python -m experiments bench
	OMP_NUM_THREADS=1 $(BIN)/python -m experiments bench --answer

# One thread in each of two processes: more would only wait for each other.
test: export OMP_NUM_THREADS = 1
test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ruff format --check --line-length 88 $(NOTEBOOKS)
	$(BIN)/python -m pytest --numprocesses 2
	$(MAKE) --jobs 2 $(SMOKE_TESTS)

$(SMOKE_TESTS): smoke-%: .venv/installed
	VAE_SMOKE=1 $(BIN)/python -m pytest --nbval-lax --nbval-current-env --nbval-cell-timeout=600 $*

browser-test: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[browser]'
	$(BIN)/python -m pytest -m browser

# Install what the lock file says by `pip install --requirement requirements.lock`; this refreshes it.
lock: .venv/installed
	(echo "# The versions that the figures were last made with, and that the tests passed with; 'make lock' refreshes it."; $(BIN)/python -m pip freeze --all --exclude pip --exclude-editable) > requirements.lock

.venv/installed: pyproject.toml
	@$(PYTHON) -c "import ensurepip, venv" 2>/dev/null || \
	{ echo "$(PYTHON) cannot make virtual environments: on Debian or Ubuntu, 'apt install python3-venv' mends that." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --editable '.[all]'
	touch $@

clean:
	rm -rf .venv preview checkpoints build *.egg-info

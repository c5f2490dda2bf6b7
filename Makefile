PYTHON ?= python3
BIN = .venv/bin
NOTEBOOKS = trainer_VAE.ipynb trainer_SSL_VAE.ipynb

# Threads that wait for each other soon sleep: when another program uses a core too, spinning for as long as GNU OpenMP
# does by default can make a step many times slower. Alone on a machine it is a few per cent faster, so `bench` does.
export GOMP_SPINCOUNT = 1000
# Freed memory stays with the process: M2's large tensors otherwise cost a tenth to a fifth of a step in page faults.
export MALLOC_MMAP_THRESHOLD_ = 1000000000
export MALLOC_TRIM_THRESHOLD_ = 1000000000

.PHONY: figures table experiments bench test browser-test clean

figures: .venv/installed
	$(BIN)/python -m vae.execute $(NOTEBOOKS)

table: .venv/installed
	$(BIN)/python -m vae.sweep
	$(BIN)/python -m vae.table

experiments: .venv/installed
	$(BIN)/python -m vae.experiments

bench: .venv/installed
	$(BIN)/python -m pip install --quiet --requirement requirements-bench.txt
	env -u GOMP_SPINCOUNT $(BIN)/python -m benchmarks

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest
	VAE_SMOKE=1 $(BIN)/python -m pytest --nbval-lax --nbval-current-env --nbval-cell-timeout=600 $(NOTEBOOKS)

browser-test: .venv/installed
	$(BIN)/python -m pip install --quiet selenium
	$(BIN)/python -m pytest -m browser

.venv/installed: requirements.txt
	@$(PYTHON) -c "import ensurepip, venv" 2>/dev/null || \
	{ echo "$(PYTHON) cannot make virtual environments: on Debian or Ubuntu, 'apt install python3-venv' mends that." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --requirement requirements.txt
	touch $@

clean:
	rm -rf .venv preview checkpoints

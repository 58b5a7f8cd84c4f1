# Every target sets up what it needs: .venv is made on first use from constraints.txt.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
STAMP := $(VENV)/.ready
THREADS ?= 1
# Test files are shared out to so many processes, in the order of tests/conftest.py; each needs up to 3 GB.
TEST_WORKERS ?= 2
SHARED_OUT := -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder
# scvi-tools 1.5 needs Python 3.12; constraints-next.txt is for that version.
NEXT_PYTHON ?= python3.12
NEXT_VENV ?= .venv-next
NEXT_BIN := $(NEXT_VENV)/bin
NEXT_PIP := $(NEXT_BIN)/python -m pip --disable-pip-version-check -q
NEXT_STAMP := $(NEXT_VENV)/.ready
# Numba's cache does not notice changes in code that a kernel inlines from another file.
KERNELS := $(wildcard src/scvi_qbm/samplers/engine/kernels.py src/scvi_qbm/samplers/engine/rng.py \
	src/scvi_qbm/samplers/engine/simd.py)
export NUMBA_CACHE_DIR ?= $(CURDIR)/$(VENV)/numba-$(shell cat $(KERNELS) | cksum | cut -d' ' -f1)

.PHONY: help demo test test-fast test-slow test-peers test-next lint docs tutorials dist bench-train bench-negative \
	bench-samplers bench-device bench-scale bench-sampling bench-landscape bench-labels bench-machines bench-priors bench-bound bench-methods bench-metrics bench-pictures clean

help:
	@echo "make demo        700 real cells, nine tenths of their labels hidden: demo-output/report.html"
	@echo "make test        lint, types, tests (CI)"
	@echo "make test-fast   the tests that neither train a model nor start a process (90 seconds)"
	@echo "make test-slow   the statistical tests with rotating seeds and many repetitions"
	@echo "make test-peers  scvi-tools' own tests of SCVI, on QBMVI (5 minutes, a download)"
	@echo "make test-next   tests and test-peers on the newest scvi-tools (15 minutes, downloads)"
	@echo "make docs        the documentation, warnings are errors, in docs/_build/html (3 minutes)"
	@echo "make tutorials   execute the notebooks and keep their outputs (15 minutes)"
	@echo "make dist        sdist and wheel"
	@echo "make bench-train cost of an epoch against scvi.model.SCVI"
	@echo "make bench-negative  the tables of logbook/training.md on the negative phase"
	@echo "make bench-samplers  speed of the samplers against their peers (10 minutes)"
	@echo "make bench-device    the tempering sampler on a GPU, or what there is, against its roofline (5 minutes)"
	@echo "make bench-scale     memory, cost and growth to a million cells (an hour, 2 GB of disk, resumable)"
	@echo "make bench-sampling  the paper's Figure 2: law, optima, time per sample (2 hours)"
	@echo "make bench-landscape outliers, generated cells, attractors, beside SCVI (an hour)"
	@echo "make bench-labels    label transfer and unknown types, beside scANVI (a day or more, resumable)"
	@echo "make bench-machines  what a machine is worth in training: perfect, annealing, CIM, noise (an hour, resumable)"
	@echo "make bench-priors    the tables of docs/results.md: QBMVI, its twins, scVI (a day, resumable)"
	@echo "make bench-bound     what the relaxation's noise costs in nats (an hour, resumable)"
	@echo "make bench-methods   QBMVI and its variants beside 16 other methods on ../shared/data (30 hours of processor time, resumable)"
	@echo "make bench-pictures  UMAPs, confusions, pseudotime, score by epoch (20 minutes)"
	@echo "make bench-metrics   time and memory of the scores by number of cells (7 minutes)"

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -U "pip>=25.1"
	$(PIP) install -c constraints.txt torch
	$(PIP) install -c constraints.txt --group dev -e .
	# Pins an older numpy and pandas than it needs, hence alone; for the tests of docs/kaiwu.md.
	$(PIP) install --no-deps kaiwu-community==1.0.7
	touch $@

demo: $(STAMP)
	$(BIN)/scvi-qbm demo --out demo-output

test: $(STAMP) lint
	$(BIN)/python -m pytest -m "not slow" -q $(SHARED_OUT)

test-fast: $(STAMP)
	$(BIN)/python -m pytest --fast -q $(SHARED_OUT)

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow -q

test-peers: $(STAMP)
	$(BIN)/python tests/peer/run.py

$(NEXT_STAMP): pyproject.toml constraints-next.txt
	# A python3.12 of pyenv runs only where PYENV_VERSION allows it; others do not mind.
	test -x $(NEXT_BIN)/python || \
		PYENV_VERSION=$(patsubst python%,%,$(NEXT_PYTHON)) $(NEXT_PYTHON) -m venv $(NEXT_VENV)
	$(NEXT_PIP) install -U "pip>=25.1"
	@test -n "$(NEXT_CUDA)" || ! $(NEXT_PIP) install -c constraints-next.txt --dry-run \
		--report - torch | grep -q '"name": "nvidia-' || { \
		echo "No CPU build of torch for $(NEXT_PYTHON) in pip's indexes. NEXT_CUDA=1 takes the" \
		"build with CUDA instead (6 GB); it runs without a GPU as well."; exit 1; }
	$(NEXT_PIP) install -c constraints-next.txt torch
	# scvi-tools 1.5 wants leidenalg for posterior predictive checks.
	$(NEXT_PIP) install -c constraints-next.txt leidenalg --group dev -e .
	$(NEXT_PIP) install --no-deps kaiwu-community==1.0.7
	touch $@

test-next: $(NEXT_STAMP)
	$(NEXT_BIN)/python -m pytest -m "not slow" -q $(SHARED_OUT)
	$(NEXT_BIN)/python tests/peer/run.py

docs: $(STAMP)
	$(PIP) install -c constraints.txt --group docs
	$(BIN)/python -m sphinx -W --keep-going -j auto -b html docs docs/_build/html
	$(BIN)/python -m pytest -q tests/test_readme.py tests/test_docstrings.py tests/test_docs.py

tutorials: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tutorials/execute.py

dist: $(STAMP)
	$(PIP) install -c constraints.txt build
	$(BIN)/python -m build

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench-train: $(STAMP)
	OMP_NUM_THREADS=$(THREADS) $(BIN)/python benchmarks/bench_train.py

bench-negative: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_negative.py barrier
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_negative.py sweeps

bench-samplers: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_samplers.py

bench-device: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_device.py

bench-scale: $(STAMP)
	OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(BIN)/python benchmarks/bench_scale.py
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore benchmarks/profile_step.py bench-output/scale-data/cells_10000.h5ad
	$(BIN)/python benchmarks/scale_recovery.py bench-output/scale-data/cells_1000000.h5ad
	$(BIN)/python benchmarks/scale_tables.py bench-output/scale docs/scale

bench-sampling: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/scvi-qbm benchmark sampling --out sampling-output

bench-landscape: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_landscape.py

bench-labels: $(STAMP)
	$(PIP) install -c constraints.txt -e ".[scpoli]" celltypist
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_labels.py
	$(BIN)/python benchmarks/label_tables.py labels-output

bench-machines: $(STAMP)
	OMP_NUM_THREADS=$(THREADS) NUMBA_NUM_THREADS=$(THREADS) $(BIN)/python benchmarks/bench_machines.py

SIMULATED := bench-output/simulated_100k.h5ad
$(SIMULATED): | $(STAMP)
	mkdir -p $(@D)
	$(BIN)/python -c "from scvi_qbm.data import simulate; \
		adata = simulate(100_000, 1000, n_types=12, n_batches=8, seed=0); \
		adata.X = adata.layers.pop('counts'); adata.write_h5ad('$@.part')"
	mv $@.part $@

bench-priors: $(STAMP) $(SIMULATED)
	SCVI_QBM_DATA_DIR=$${SCVI_QBM_DATA_DIR:-../shared/data} $(BIN)/scvi-qbm benchmark run \
		benchmarks/priors.toml --workers 2 --out bench-priors-output
	$(BIN)/scvi-qbm benchmark run benchmarks/cells.toml --workers 2 --out bench-cells-output
	$(BIN)/python benchmarks/result_tables.py bench-priors-output bench-cells-output

bench-bound: $(STAMP)
	OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(BIN)/python benchmarks/bench_bound.py

bench-methods: $(STAMP)
	$(PIP) install -c constraints.txt -e ".[scanorama,scpoli]"
	SCVI_QBM_DATA_DIR=$${SCVI_QBM_DATA_DIR:-../shared/data} $(BIN)/scvi-qbm benchmark run \
		benchmarks/shared.toml --workers 2 --out bench-methods-output
	$(BIN)/scvi-qbm benchmark report bench-methods-output

bench-pictures: $(STAMP)
	SCVI_QBM_DATA_DIR=$${SCVI_QBM_DATA_DIR:-../shared/data} $(BIN)/scvi-qbm benchmark run \
		benchmarks/pictures.toml --no-report --out bench-pictures-output
	SCVI_QBM_DATA_DIR=$${SCVI_QBM_DATA_DIR:-../shared/data} $(BIN)/scvi-qbm benchmark curves \
		benchmarks/pictures.toml --out bench-pictures-output
	$(BIN)/scvi-qbm benchmark report bench-pictures-output --title "Pictures of three sets, seed 0"

bench-metrics: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore benchmarks/bench_metrics.py

clean:
	rm -rf $(VENV) $(NEXT_VENV) demo-output bench-output sampling-output landscape-output bench-methods-output bench-priors-output bench-cells-output bound-output bench-pictures-output kaiwu-jobs \
		docs/_build docs/tutorials docs/api/generated dist

# Two commands matter: `make demo` and `make test`. Each sets up .venv first.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
CUDA   := $(VENV)/.installed-cuda
ANVIL  := .anvil/.installed-1.7.1
# a file's tests stay together: they share compiled kernels and contracts. tests/conftest.py has the longest come first
PYTEST_ARGS ?= -n auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

.PHONY: install cuda-compile anvil interop demo test repeat lint contracts bench-execution crash-nightly contracts-nightly adversary-nightly soak-nightly fuzz-nightly ulp-nightly mutants test-gpu bench-payments bench-network bench-attack peer-env check-system clean

install: $(STAMP)

check-system:
	@sh scripts/check-system.sh

$(STAMP): pyproject.toml constraints.txt scripts/check-system.sh
	@sh scripts/check-system.sh
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a minute or two the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@# trio-typing, which libp2p requires, brings stubs of an old trio that would hide trio's own types
	@rm -rf $(VENV)/lib/python3*/site-packages/trio-stubs
	@touch $(STAMP)

# numba-cuda, NVVM and nvJitLink: half a gigabyte. With them the tests compile kernels for CUDA; none needs a GPU.
cuda-compile: $(CUDA)

$(CUDA): $(STAMP)
	@echo "installing the CUDA compilers into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,cuda]'
	@rm -rf $(VENV)/lib/python3*/site-packages/trio-stubs
	@touch $(CUDA)

# an EVM node of others' making, for the tests of payments against a hostile chain; they are left out without it
anvil: $(ANVIL)

$(ANVIL): scripts/get-anvil.sh
	@sh scripts/get-anvil.sh
	@touch $(ANVIL)

# js-libp2p and a small peer in JavaScript, by npm, for tests/interop; they are left out without it
interop:
	@sh scripts/get-interop.sh

demo: $(STAMP)
	@$(BIN)/p2pcompute demo --out demo-out
	@echo "the command is $(BIN)/p2pcompute; after '. $(BIN)/activate' it is p2pcompute: try p2pcompute up"

test: $(STAMP)
	@sh scripts/compile-contracts.sh --venv
	@sh scripts/get-interop.sh || echo "the tests against js-libp2p are left out" >&2
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

# the tests N times over, each time in another order and with other examples, to find what hangs on luck; a table at the
# end, and what each run said under build/repeat. TESTS="tests/unit/tasks" repeats a part of them
N ?= 20
TESTS ?=
repeat: $(STAMP)
	@sh scripts/compile-contracts.sh --venv
	@$(BIN)/python scripts/repeat.py $(N) -- $(PYTEST_ARGS) $(TESTS)

# What needs a GPU: bits against the processor's, the lock, cancelling, memory, energy. Skips, and says why, without one.
test-gpu: $(CUDA)
	@$(BIN)/python -m p2pcompute_cli.main doctor || true
	@$(BIN)/python -m pytest tests/gpu -v -rA --durations=10

# docs/benchmarks/execution.md and benchmarks/results/execution.json; three minutes on a quiet machine
bench-execution: $(STAMP)
	@$(BIN)/python benchmarks/execution.py --write

# docs/benchmarks/payments.md and benchmarks/results/payments.json; some two minutes on a quiet machine
bench-payments: $(STAMP)
	@$(BIN)/python benchmarks/payments.py --write

# docs/benchmarks/network.md, its picture and benchmarks/results/network.json; some six minutes on a quiet machine. It stands
# beside the peers whose environments are there
bench-network: $(STAMP)
	@$(BIN)/python benchmarks/network.py --write

# docs/benchmarks/attack.md and benchmarks/results/attack.json: attackers of twelve kinds, and what an honest peer notices;
# some seven minutes on a quiet machine
bench-attack: $(STAMP)
	@$(BIN)/python benchmarks/network_attack.py --write

# the environment of one of them, in .peers: make peer-env PEER=dask
PEER ?=
peer-env:
	@PYTHON=$(PYTHON) sh scripts/peer-env.sh $(PEER)

# power cuts at every write of many long lives, in every way: many hours of a core; a part of it runs with the tests.
# STEPS=20 makes the lives as short as those
crash-nightly: $(STAMP)
	@P2PCOMPUTE_NIGHTLY=1 P2PCOMPUTE_CRASH_STEPS=$${STEPS:-100} $(BIN)/python -m pytest -n auto tests/unit/crash

contracts:
	@sh scripts/compile-contracts.sh

# the state machines of the contracts: 10,000 runs of 500 steps each. A step is some 30 ms, so that is two days of a
# core for each of the two; EXAMPLES=1500 fits into a night
contracts-nightly: $(STAMP)
	@P2PCOMPUTE_CONTRACT_EXAMPLES=$${EXAMPLES:-10000} P2PCOMPUTE_CONTRACT_STEPS=$${STEPS:-500} \
	    $(BIN)/python -m pytest tests/unit/chain/test_hub_model.py tests/unit/chain/test_registry_model.py \
	    --timeout=0 -n 2 --dist=loadfile

# two nodes, chain and adversary: histories that nobody has tried yet, about one a second. What fails is made small and
# printed, with a line that plays it again
adversary-nightly: $(STAMP)
	@P2PCOMPUTE_ADVERSARY_EXAMPLES=$${EXAMPLES:-20000} P2PCOMPUTE_ADVERSARY_PHRASES=$${PHRASES:-30} \
	    $(BIN)/python -m pytest tests/unit/payments/test_whole.py -k whatever --timeout=0 -rP

# ten minutes of visitors and strangers over real sockets, and two weeks in virtual time: nothing is left behind
soak-nightly: $(STAMP)
	@P2PCOMPUTE_SOAK_S=$${SECONDS_REAL:-600} P2PCOMPUTE_SOAK_DAYS=$${DAYS:-14} \
	    $(BIN)/python -m pytest tests/net/test_soak.py tests/unit/test_soak.py --timeout=0 -n 2 --dist=loadfile

# a million mutants for each decoder of what strangers send, and 50,000 of kernels, by a seed of the day; ten times what
# runs with the tests, some twenty-five minutes of a core. SEED=… tries those of another day again
fuzz-nightly: $(STAMP)
	@P2PCOMPUTE_MUTANTS=$${MUTANTS:-1000000} P2PCOMPUTE_MUTANT_SEED=$${SEED:-$$(date +%Y%m%d)} \
	    $(BIN)/python -m pytest tests/unit/protocols tests/unit/overlay tests/unit/blobs tests/unit/execution/test_guard_fuzz.py \
	    -k mutants --timeout=0 -n 2 --dist=worksteal

# the mathematical functions against mpmath on 1.3 million points for each type, edges included, which ends with 1 where
# one is further off than docs/strict.md says; benchmarks/results/strict_accuracy.json. Some fifteen minutes of a core
ulp-nightly: $(STAMP)
	@$(BIN)/python benchmarks/strict_accuracy.py --write

# plants the faults of tests/mutants, one at a time, and sees that the tests find them
mutants: $(STAMP)
	@sh scripts/compile-contracts.sh --venv
	@$(BIN)/python scripts/mutants.py

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports
	@$(BIN)/mypy
	@$(BIN)/pyright

clean:
	rm -rf $(VENV) .venv-vyper .anvil .peers tests/interop/js/node_modules build dist demo-out

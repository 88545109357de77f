# Needs Python 3.11 or newer and make; everything else goes into .venv.
PYTHON ?= python3
BIN := .venv/bin
ACCELERATE := $(BIN)/accelerate launch --config_file recipes/accelerate_configs/cpu.yaml

.PHONY: quickstart quickstart-code gpu test slow style quality clean

# Train on a CPU for a few minutes, then solve 200 unseen tasks by latent search; pictures in outputs/quickstart.
quickstart: .venv/.installed
	$(ACCELERATE) recipes/train_lpn.py recipes/lpn/quickstart.yaml
	$(ACCELERATE) recipes/evaluate_lpn.py recipes/lpn/quickstart_eval.yaml

# Python's standard library as a corpus, a tokenizer, and a small CodeGen2 that learns to complete and to infill it.
quickstart-code: .venv/.installed
	$(BIN)/python datasets_scripts/build_code.py --sources stdlib --output outputs/stdlib --overwrite
	$(BIN)/python recipes/train_tokenizer.py --files outputs/stdlib/train.parquet --vocab_size 1024 --output_dir outputs/tokenizer_1k --overwrite
	$(ACCELERATE) recipes/train_codegen2.py recipes/codegen2/quickstart.yaml
	$(ACCELERATE) recipes/evaluate_codegen2.py recipes/codegen2/quickstart_eval.yaml

# Tests, benchmarks and trainings in the MINUTES for which an accelerator is at hand; goes on at the next call. Takes the Python
# that is there, since such a machine may reach no package index: .venv if it exists, else PYTHON.
MINUTES ?= 9
gpu:
	$(firstword $(wildcard $(BIN)/python) $(PYTHON)) recipes/gpu.py --minutes $(MINUTES) $(ARGS)

test: .venv/.installed
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow and not gpu"

slow: .venv/.installed
	$(BIN)/python -m pytest -m "slow and not gpu"

style: .venv/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Of transformers' rules for models TRF057 (`@auto_docstring`) is switched off: the decorator reads the texts of the models
# inside transformers, and a docstring that is copied to the Hub is to be whole in its file. What else does not fit is
# said at its line, with `# trf-ignore:`.
quality: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy modeling_lpn/lpn modeling_lpn/codegen2 modeling_lpn/sandbox
	sed '/^\[rules.TRF057\]/,/^default_enabled/s/= true/= false/' \
	    `$(BIN)/python -c 'import mlinter; print(mlinter.__path__[0])'`/rules.toml > .venv/mlinter_rules.toml
	$(BIN)/mlinter --no-progress --rules-toml .venv/mlinter_rules.toml modeling_lpn/lpn modeling_lpn/codegen2

.venv/.installed: setup.cfg constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"modeling_lpn needs Python 3.11 or newer, this is {v[0]}.{v[1]}: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

clean:
	rm -rf .venv outputs build *.egg-info .pytest_cache .ruff_cache

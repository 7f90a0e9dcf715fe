# make demo trains on real digits in three commands. make lint and make test check the code; CI runs both.
PYTHON3 ?= python3
SEED ?= 42
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: demo test test-slow lint format audit clean
.DELETE_ON_ERROR:

demo: $(VENV)/installed
	python -m examples.digits --output_dir data/digits/raw --seed $(SEED)
	python prepare_dataset.py --data_files data/digits/raw/rows.jsonl --vocab_file data/digits/raw/vocab.json \
	  --codec data/digits/raw/codec --output_dir data/digits/prepared --split_by field --overwrite
	accelerate launch --config_file accelerate_config.yaml train.py --config recipes/digits/config.yaml \
	  --dataset_dir data/digits/prepared --output_dir outputs/digits --seed $(SEED) --overwrite

test: $(VENV)/installed-dev
	python -m pytest -n 2 --dist worksteal -m "not slow"

test-slow: $(VENV)/installed-dev
	python -m pytest -m slow

lint: $(VENV)/installed-dev
	ruff check .
	ruff format --check .
	mypy
	lint-imports
	codespell

format: $(VENV)/installed-dev
	ruff check --fix .
	ruff format .

# Asks a service on the internet which of the pinned versions have known vulnerabilities.
audit: $(VENV)/installed-dev
	pip install --quiet --disable-pip-version-check pip-audit==2.10.1
	pip-audit -r requirements.txt

clean:
	rm -rf $(VENV) data/digits outputs/digits

$(VENV)/installed: requirements.txt
	$(PYTHON3) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON3=python3.11")'
	$(PYTHON3) -m venv $(VENV)
	pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/installed-dev: requirements-dev.txt requirements-onnx.txt requirements-openvino.txt requirements-serve.txt $(VENV)/installed
	pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

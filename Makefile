# Every target is self-sufficient: it makes .venv with the first Python >= 3.11 it finds and installs the package there, once.
# make PYTHON=/path/to/python3.12 …   picks the interpreter;   make VENV=/elsewhere …   the environment.
VENV ?= .venv
BIN := $(VENV)/bin
DEPS := setup.py settings.ini constraints.txt
PIP := $(BIN)/python -m pip install --disable-pip-version-check $(if $(CI),-q) -c constraints.txt
# what parity tests hold ours against; without what they pin, which does not fit this environment
REFERENCES := frechet-audio-distance==0.3.4 laion-clap==1.1.7 torchlibrosa==0.1.0
# qwen-tts pins a transformers that is not ours: both go to a folder beside the environment, and only its own tests look there
QWEN := qwen-tts==0.1.1 transformers==4.57.3 tokenizers==0.22.2 huggingface-hub==0.36.2
# llama.cpp has no wheel: of its source only the library is built, once (pip keeps the wheel)
LLAMA := -DLLAVA_BUILD=OFF -DMTMD_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TESTS=OFF
DEMO ?= reports/demo
export PYTHONUTF8 := 1
# a check is many small processes, so one thread each; what a user runs takes all cores
ONE := OMP_NUM_THREADS=1 MPLBACKEND=agg
say = @echo "==> $(1)"

.DEFAULT_GOAL := help
.PHONY: help demo test check notebooks pytest prepare docs bench clean

help:
	@echo "make demo     five prompts into music with the model in data/zoo (writes $(DEMO))"
	@echo "make test     everything CI runs: no-op checks, all notebooks, pytest, docs"
	@echo "make prepare  export, test and clean both notebook folders, rewrite README.md"
	@echo "make docs     render both folders into _docs"
	@echo "make bench    measure codecs, models and speed, evaluate, and write reports/ (hours)"
	@echo "make clean    remove the environment and what the builds wrote"

$(VENV)/bin/python:
	@for p in "$(PYTHON)" python3 python3.13 python3.12 python3.11 python3.14; do \
	    if [ -n "$$p" ] && "$$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3,11))' 2>/dev/null; then \
	        echo "==> $(VENV): $$("$$p" -V)"; exec "$$p" -m venv "$(VENV)"; fi; done; \
	echo "No Python >= 3.11 with the venv module was found. Install one (on Debian and Ubuntu also python3-venv), or name it: make PYTHON=/path/to/python3" >&2; exit 1

$(VENV)/core.ok: $(DEPS) | $(VENV)/bin/python
	$(call say,install)
	$(PIP) -e .
	@touch $@

$(VENV)/dev.ok: $(DEPS) | $(VENV)/bin/python
	$(call say,install with the developers' tools)
	$(PIP) -e ".[dev]"
	$(PIP) --no-deps $(REFERENCES)
	@touch $(VENV)/core.ok $@

$(VENV)/llamacpp.ok: Makefile | $(VENV)/dev.ok
	$(call say,llama.cpp from its source)
	@CMAKE_ARGS="$(LLAMA)" $(PIP) -e ".[llamacpp]" || { test -z "$(CI)" && echo "llama.cpp could not be built (is there a C++ compiler?): its tests are left out"; }
	@touch $@

$(VENV)/qwen3tts.ok: Makefile | $(VENV)/dev.ok
	$(call say,qwen-tts in a folder of its own)
	rm -rf $(VENV)/qwen3tts
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --target $(VENV)/qwen3tts $(QWEN)
	@touch $@

demo: $(VENV)/core.ok
	@$(BIN)/soundlm demo --out "$(DEMO)"

check: $(VENV)/dev.ok
	$(call say,export and clean and README are no-ops)
	@$(ONE) $(BIN)/soundlm_check

notebooks: $(VENV)/dev.ok
	$(call say,notebooks of both folders)
	@$(ONE) $(BIN)/soundlm_prepare --only_test

pytest: $(VENV)/dev.ok $(VENV)/llamacpp.ok $(VENV)/qwen3tts.ok
	$(call say,pytest)
	@$(ONE) $(BIN)/python -m pytest -q -p no:cacheprovider tests

docs: $(VENV)/dev.ok
	$(call say,docs)
	@$(ONE) $(BIN)/soundlm_docs

# one after the other, whatever -j says: the stages share two cores
test: $(VENV)/dev.ok $(VENV)/llamacpp.ok $(VENV)/qwen3tts.ok
	@$(MAKE) --no-print-directory check
	@$(MAKE) --no-print-directory notebooks
	@$(MAKE) --no-print-directory docs
	@$(MAKE) --no-print-directory pytest

prepare: $(VENV)/dev.ok
	@$(BIN)/soundlm_prepare

bench: $(VENV)/core.ok
	@$(BIN)/soundlm report --measure

clean:
	rm -rf $(VENV) _docs _proc build dist *.egg-info

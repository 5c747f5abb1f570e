# A thin wrapper: everything is in tasks.py, which also runs without make (python3 tasks.py demo).
# Arguments: make test ARGS='-k spec'. Another Python: make demo PYTHON=python3.12.
PYTHON ?= $(shell command -v python3 || command -v python || echo python3)
COMMANDS = demo test lint docs bench calibrate install clean

.PHONY: help $(COMMANDS)

help:
	@$(PYTHON) tasks.py --help

$(COMMANDS):
	@$(PYTHON) tasks.py $@ $(ARGS)

# Other names for the commands of run.py, which do their own set-up.
PYTHON ?= python3
SCENE ?= examples/cafe.yaml
OUT ?= out/$(basename $(notdir $(SCENE)))

.PHONY: sample test check setup
sample:
	$(PYTHON) run.py sample $(SCENE) --out $(OUT)

test check setup:
	$(PYTHON) run.py $@

# Every target does its own set-up: a virtual environment in .venv with the versions of constraints.txt.
# PYTHON picks the interpreter (3.11 or newer); RUN is the run folder of the demo, STEPS how long it trains. HASHES names a file of hashes, as CI does:
# then nothing is installed that is not in it, torch and what only its wheel needs apart (which wheel depends on the machine).
PYTHON ?= python3
HASHES ?=
RUN ?= runs/demo
STEPS ?= 800
# how many trainings side by side: 2 on two cores, 8 on a GPU with 16
JOBS ?= 2
# the same of the demo with captions
TEXT_RUN ?= runs/demo-text
TEXT_STEPS ?= 800
TEXT_DATA := --data.demo-train 1024 --data.demo-heldout 256
VENV := .venv
BIN := $(VENV)/bin
RUNS := $(VENV)/.runs
STAMP := $(VENV)/.installed
DOCS := $(VENV)/.docs
FIGURES := runs/figures
PROBES := alignment,controls,router,vae_pca
FIGURED := demo sit ahpa-standardise
# of Fig. 2: its three panels on the vanilla run
SHOWN := ahpa,repa,sra2,uniform_G1,uniform_G2,uniform_mid,uniform_deep,uniform_both
EACH = $(shell echo $$((($$(getconf _NPROCESSORS_ONLN) + $(JOBS) - 1) / $(JOBS))))
COMMA := ,
SPACE := $(subst ,, )
METHODS := sit,uniform-both,static,heuristic,ahpa,ahpa-standardise,sra,sra2,repa,ahpa-spatial,haste-features,va-repa,reed-image,gram,layersync,spare,disperse,rare,dupa,spare-across
TARGETS ?= runs/targets
ROUTED := $(foreach row,ahpa ahpa-standardise ahpa-spatial,$(foreach seed,0 1 2,runs/methods/$(row)-s$(seed)))
# docs/forks.md: the rule, before any row was run
FORKS ?= runs/forks
FORK_STEPS ?= 600
FORK_LR ?= 1e-3
FORK_SEEDS ?= 0,1,2,3,4
FORK_FRECHET ?= 512
FORK_FROM ?= 0000800 0001600
FORK_ROWS ?= repa@1,repa@2,repa@3,repa@4,uniform-deep@1,uniform-deep@2,uniform-deep@3,uniform-mid@2,source-g1@2,sra2@1,ahpa@2,repa@2:0-0.5,repa@2:0.5-1
FORK_CONTROLS ?= shuffled:repa@2,random:repa@2,constant:repa@2
FORKED = --steps $(FORK_STEPS) --lr $(FORK_LR) --seeds $(FORK_SEEDS) --frechet $(FORK_FRECHET) --jobs $(JOBS)
define powered
$(BIN)/gsnr fork --ckpt $(FORKS)/vanilla/checkpoints/$(1) --rows none $(FORKED) --out $(FORKS)/from-$(1)

endef
define forked
$(BIN)/gsnr fork --ckpt $(FORKS)/vanilla/checkpoints/$(1) --rows $(FORK_ROWS),$(FORK_CONTROLS) $(FORKED) --out $(FORKS)/from-$(1)
$(BIN)/gsnr recommend --ckpt $(FORKS)/vanilla/checkpoints/$(1) --rows $(FORK_ROWS),$(FORK_CONTROLS) --forks $(FORKS)/from-$(1) --out $(FORKS)/recommended-$(1)

endef
BALANCE ?= runs/balance
BALANCE_SEEDS ?= 0 1 2
BALANCE_STEPS ?= 2800
BALANCE_ROWS ?= repa@2,shuffled:repa@2,ahpa@2,shuffled:ahpa@2
BALANCED := $(foreach row,sit repa ahpa,$(foreach seed,$(BALANCE_SEEDS),balanced.$(row).none.$(seed))) \
	$(foreach row,repa ahpa,$(foreach seed,$(BALANCE_SEEDS),balanced.$(row).shuffled.$(seed)))
# docs/routing.md: the rule, before any row was run
ROUTING ?= runs/routing
define drawn
$(BIN)/gsnr figures --run $(1)

endef
CAPTIONS ?= runs/captions
define captioned
$(BIN)/gsnr train --preset mmdit-demo $(TEXT_DATA) --steps $(TEXT_STEPS) --seed $(2) --data.captions $(1) --sample-every 0 --trackers none --out $(CAPTIONS)/$(1)-s$(2) --resume
$(BIN)/gsnr sample --ckpt $(CAPTIONS)/$(1)-s$(2) --n 256 --sampling-steps 12 --cfg 2 --out $(CAPTIONS)/$(1)-s$(2).npz
$(BIN)/gsnr evaluate --samples $(CAPTIONS)/$(1)-s$(2).npz --features attributes --out $(CAPTIONS)/$(1)-s$(2).json

endef
# docs/stopping.md: the rule, before any row was run
ROUTERS ?= runs/routers
ROUTERS_STEPS ?= 1400
ROUTERS_SEEDS ?= 0,1,2,3,4
ROUTED_GRID = --seeds $(ROUTERS_SEEDS) --steps $(ROUTERS_STEPS) --frechet 512 --jobs $(JOBS) --sample-every 0 --trackers none
define tabled
$(BIN)/gsnr train --preset per-group-demo --seed $(1) --steps $(ROUTERS_STEPS) --sample-every 0 --trackers none --resume --out $(ROUTERS)/b3-s$(1) \
	--alignment.router table --alignment.router-table $(ROUTERS)/per-group-s0/probes/mixture.parquet
test -f $(ROUTERS)/b3-s$(1)/evaluation.json || $(BIN)/gsnr evaluate --ckpt $(ROUTERS)/b3-s$(1) --frechet 512 --out $(ROUTERS)/b3-s$(1)/evaluation.json

endef
HANDOVER ?= runs/handover
HANDOVER_OPTIONS ?=
RELEASED := $(foreach lr,0.3 1,$(foreach release,0 150,$(foreach features,none centre standardise,$(features)-lr$(lr)-release$(release))))
SWITCHED := features-rms per-group router-entropy router-temperature per-group-entropy
# a row of presets, or FEATURES-lrFACTOR-releaseSTEP, which are options of ahpa
define routed
$(BIN)/gsnr train --steps 1000 --router-every 5 --sample-every 0 --save-every 500 --trackers none --resume --out $(HANDOVER)/$(1) $(HANDOVER_OPTIONS) \
	$(if $(filter $(1),$(SWITCHED)),--preset $(1)-demo --alignment.release 150,--preset demo \
	--alignment.features $(word 1,$(subst -, ,$(1))) --alignment.router-lr $(patsubst lr%,%,$(word 2,$(subst -, ,$(1)))) \
	--alignment.release $(patsubst release%,%,$(word 3,$(subst -, ,$(1)))))

endef
export HF_HUB_OFFLINE := 1
export MPLBACKEND := agg
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help announced demo demo-text captions figures targets ablations methods handover routing routers vanilla power forks balance test gpu check docs hashes notebooks clean

help: ## what there is to make
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# what the commands need; then what tests and notebooks need
$(RUNS): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed; name one with PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(if $(HASHES),$(BIN)/pip install --quiet --require-hashes --no-deps --requirement $(HASHES))
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt $(if $(HASHES),--no-deps --no-build-isolation) --editable '.[all]'
	touch $@

$(STAMP): $(RUNS)
	$(if $(HASHES),$(BIN)/pip check,$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[all,dev,notebooks]')
	touch $@

announced:
	@echo "The demo: install, train a small SiT with AHPA, evaluate it, measure its gradients, draw them, and say what they tell."
	@echo "About 8 minutes on two quiet cores. Interrupted, it goes on where it stopped."

demo: announced $(RUNS) ## trains the demo, measures it, writes a page, and ends with a verdict: about 8 minutes
	@echo "1/5 train (a quarter of the time), for $(STEPS) of the preset's 2800 steps"
	$(BIN)/gsnr train --preset demo --steps $(STEPS) --out $(RUN) --resume
	@echo "2/5 evaluate (a twentieth)"
	$(BIN)/gsnr evaluate --ckpt $(RUN) --frechet 192 --metrics precision,recall,density,coverage
	@echo "3/5 measure (a third)"
	$(BIN)/gsnr probe --ckpt $(RUN) --probe $(PROBES) --controls shuffled --projector fit --resume
	@echo "4/5 draw the page (a twentieth); \`gsnr figures --run $(RUN)\` writes its figures as files, too"
	$(BIN)/gsnr report --run $(RUN)
	@echo "5/5 say what it tells"
	$(BIN)/gsnr verdict --run $(RUN)

demo-text: $(RUNS) ## the demo with captions: trains a text-to-image MMDiT, asks whether its images show what captions say, measures it, draws: under 10 minutes
	@echo "The demo with captions: install, train a small MMDiT with AHPA, draw what held-out captions say, judge it, measure its gradients, draw them."
	@echo "Under 10 minutes on two quiet cores. Interrupted, it goes on where it stopped."
	@echo "1/5 make 1280 images with captions, and train for $(TEXT_STEPS) steps (half of the time)"
	$(BIN)/gsnr train --preset mmdit-demo-ahpa $(TEXT_DATA) --steps $(TEXT_STEPS) --out $(TEXT_RUN) --resume
	@echo "2/5 draw an image of each held-out caption (a tenth)"
	$(BIN)/gsnr sample --ckpt $(TEXT_RUN) --n 256 --sampling-steps 12 --cfg 2 --out $(TEXT_RUN)/samples-$(TEXT_STEPS).npz
	@echo "3/5 do they show what the captions name? (a twentieth)"
	$(BIN)/gsnr evaluate --samples $(TEXT_RUN)/samples-$(TEXT_STEPS).npz --features attributes --out $(TEXT_RUN)/attributes.json
	@echo "4/5 measure G-SNR of AHPA, REPA and the shuffled targets (a third)"
	$(BIN)/gsnr probe --ckpt $(TEXT_RUN) --probe alignment --targets own,repa --controls shuffled --projector fit --fit-steps 500 --n-images 256 --bins 5 --resume
	@echo "5/5 draw it, and say what it tells"
	$(BIN)/gsnr figures --run $(TEXT_RUN) --figure fig2_gsnr
	$(BIN)/gsnr verdict --run $(TEXT_RUN)

captions: $(RUNS) ## does a text model read its captions? own ones in training against shuffled ones, three seeds; runs/captions, half an hour, goes on where it stopped
	$(foreach seed,0 1 2,$(foreach which,own shuffled,$(call captioned,$(which),$(seed))))

figures: $(RUNS) ## the figures of the paper, from nothing: trains the demo at full length, vanilla and AHPA on standardised features, measures them, draws all, writes one page; under half an hour, goes on where it stopped
	@echo "Three trainings of 2800 steps, $(JOBS) commands at once, then their probes, figures and a page in $(FIGURES): under half an hour on two cores."
	OMP_NUM_THREADS=$(EACH) $(MAKE) --no-print-directory -j $(JOBS) trained-demo trained-sit measured-ahpa-standardise measured-sit measured-demo
	$(BIN)/gsnr figures --run $(FIGURES)/demo
	$(BIN)/gsnr figures --run $(FIGURES)/sit
	$(BIN)/gsnr figures $(FIGURED:%=--run $(FIGURES)/%) --out $(FIGURES)/drawn
	$(BIN)/gsnr tables --run $(FIGURES)/sit
	$(BIN)/gsnr report $(FIGURED:%=--run $(FIGURES)/%) --out $(FIGURES)/report.html

trained-demo:
	$(BIN)/gsnr train --preset demo --out $(FIGURES)/demo --resume

trained-%:
	$(BIN)/gsnr train --preset $*-demo --out $(FIGURES)/$* --resume

measured-demo: trained-demo
	$(BIN)/gsnr probe --ckpt $(FIGURES)/demo --resume

measured-sit: trained-demo trained-sit # on a backbone that none of these targets trained
	$(BIN)/gsnr probe --ckpt $(FIGURES)/sit --align-from $(FIGURES)/demo --probe alignment --targets $(SHOWN) --controls shuffled --projector fit --resume

measured-ahpa-standardise: trained-ahpa-standardise
	$(BIN)/gsnr probe --ckpt $(FIGURES)/ahpa-standardise --probe controls,router --resume

targets: vanilla ## every target on a vanilla backbone, where make figures has those of Fig. 2: two figures and a table; runs/targets, goes on where it stopped
	$(BIN)/gsnr train --preset demo --sample-every 0 --out $(TARGETS)/demo --resume
	$(BIN)/gsnr probe --ckpt $(FORKS)/vanilla --align-from $(TARGETS)/demo --probe alignment --targets all --controls shuffled --projector fit --resume --out $(TARGETS)/vanilla
	$(BIN)/gsnr figures --run $(TARGETS)/vanilla --figure fig2_gsnr,fig_direction
	$(BIN)/gsnr tables --run $(TARGETS)/vanilla --summary

ablations: $(RUNS) ## every row of the paper's tables at demo scale: 200 steps, one seed, one table in runs/ablations; goes on where it stopped
	$(BIN)/gsnr grid --out runs/ablations --steps 200 --jobs $(JOBS)

methods: $(RUNS) ## the methods at the demo's full length, three seeds each, with the Fréchet distance, and beta(t) under each feature normalisation: runs/methods; hours, goes on where it stopped
	$(BIN)/gsnr grid --out runs/methods --seeds 0,1,2 --frechet 2048 --jobs $(JOBS) --rows $(METHODS)
	$(BIN)/gsnr probe --ckpt $(ROUTED) --probe router --out runs/methods/routers --resume
	$(BIN)/gsnr figures --run runs/methods/routers --figure fig_beta

handover: $(RUNS) ## beta(t) while the router learns and at the end: its rate x its release x normalisation, then switches; docs/handover.md reads it; hours, goes on where it stopped
	$(foreach row,$(RELEASED),$(call routed,$(row)))
	$(foreach row,$(SWITCHED),$(call routed,$(row)))
	$(BIN)/gsnr probe --ckpt $(RELEASED:%=$(HANDOVER)/%) --probe router --out $(HANDOVER)/released --resume
	$(BIN)/gsnr figures --run $(HANDOVER)/released --figure fig_handover
	$(BIN)/gsnr probe --ckpt $(SWITCHED:%=$(HANDOVER)/%) --probe router --out $(HANDOVER)/switched --resume
	$(BIN)/gsnr figures --run $(HANDOVER)/switched --figure fig_handover

routing: $(STAMP) ## routing across depth (DAR) beside plain streams: 5 rows, 3 seeds, equal steps and equal MACs, diagnostics; docs/routing.md; an hour, goes on where it stopped
	$(BIN)/gsnr grid --out $(ROUTING) --rows sit,sit-plus,dar-static,dar-static-t,dar-dynamic --seeds 0,1,2 --steps 800 --frechet 512 --jobs $(JOBS) \
		--save-every 10 --keep-last 13 --keep-every 100 --sample-every 0 --trackers none
	$(BIN)/python -m tests.benchmarks.routed $(ROUTING)
	$(foreach row,sit dar-static dar-dynamic,$(call drawn,$(ROUTING)/$(row)-s0))

routers: $(STAMP) ## routers with a stated objective (lookahead, B3) beside AHPA's: five seeds, held-out loss, Frechet distance, weights; docs/stopping.md; hours, goes on where it stopped
	$(BIN)/gsnr grid --out $(ROUTERS) --rows uniform-both,ahpa,router-lookahead,per-group,sit $(ROUTED_GRID)
	$(BIN)/gsnr probe --ckpt $(ROUTERS)/per-group-s0 --probe mixture --n-images 512 --resume
	$(foreach seed,$(subst $(COMMA),$(SPACE),$(ROUTERS_SEEDS)),$(call tabled,$(seed)))
	$(BIN)/python -m tests.benchmarks.routers $(ROUTERS) --seeds $(words $(subst $(COMMA),$(SPACE),$(ROUTERS_SEEDS)))

vanilla: $(RUNS)
	$(BIN)/gsnr train --preset sit-demo --save-every 200 --sample-every 0 --out $(FORKS)/vanilla --resume

power: vanilla ## vanilla against vanilla: the spread of forks without alignment, and which effects forks could show
	$(foreach at,$(FORK_FROM),$(call powered,$(at)))

forks: vanilla ## which criterion predicts what an alignment brings? 16 rows, 5 seeds, from two checkpoints; docs/deciding.md; a night, goes on where it stopped
	$(foreach at,$(FORK_FROM),$(call forked,$(at)))

balance: $(RUNS) ## cosine and balance of the two gradients over training: vanilla, REPA, AHPA and their shuffled controls, three seeds; hours, goes on where it stopped
	OMP_NUM_THREADS=$(EACH) $(MAKE) --no-print-directory -j $(JOBS) $(BALANCED)
	$(BIN)/gsnr figures --run $(BALANCE)/measured/* --figure fig_balance --out $(BALANCE)/drawn

# balanced.ROW.CONTROL.SEED: one training, and what its checkpoints say
balanced.%:
	row=$(word 1,$(subst ., ,$*)); control=$(word 2,$(subst ., ,$*)); seed=$(word 3,$(subst ., ,$*)); \
	name=$$row$$(test $$control = none || echo -$$control)-s$$seed; \
	$(BIN)/gsnr train --preset $$row-demo --data.control $$control --seed $$seed --steps $(BALANCE_STEPS) --save-every 400 --sample-every 0 \
		--trackers none --resume --out $(BALANCE)/$$name && \
	for at in $(BALANCE)/$$name/checkpoints/*; do out=$(BALANCE)/measured/$$name@$$(basename $$at); test -f $$out/recommend.md || \
		$(BIN)/gsnr recommend --ckpt $$at --rows $(BALANCE_ROWS) --criteria cosine,balance --out $$out || exit 1; done

test: $(STAMP) ## runs the tests
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --dist loadfile

gpu: ## on a machine with CUDA and its own PyTorch: is it right there, and how fast? under eight minutes; runs/gpu
	$(PYTHON) -m tests.gpu

check: $(STAMP) ## lint, format, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# by hash, what the site needs was installed with the rest
$(DOCS): $(STAMP)
	$(if $(HASHES),,$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]')
	touch $@

docs: $(DOCS) ## builds the site into site/, which opens from the disk; a link that leads nowhere, or a script from elsewhere, is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	! grep -rlE '<(script|img|iframe)[^>]+src="?https?:|<link[^>]+(stylesheet|preconnect)[^>]+https?:|<link[^>]+https?:[^>]+(stylesheet|preconnect)' site --include='*.html'

hashes: $(STAMP) ## writes .ci/hashes.txt, after a change of constraints.txt, on a machine like CI's (Linux x86-64, Python 3.11)
	$(BIN)/python .ci/hashes.py

notebooks: $(STAMP) ## executes the notebooks in place, on the runs of `make figures`, or on RUN where there are none
	GSNR_RUN=$(abspath $(if $(wildcard $(FIGURES)/demo/probes),$(FIGURES)/demo,$(RUN))) GSNR_VANILLA=$(patsubst %/probes,%,$(abspath $(wildcard $(FIGURES)/sit/probes))) \
		GSNR_ROUTED=$(patsubst %/probes,%,$(abspath $(wildcard $(ROUTING)/dar-dynamic-s0/probes))) \
		$(BIN)/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False analysis_notebooks/*.ipynb

clean: ## removes the environment and tool caches; runs/ and the data cache (~/.cache/gsnr) stay
	rm -rf $(VENV) build site *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

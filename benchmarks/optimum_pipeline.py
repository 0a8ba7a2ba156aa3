"""Benchmark: predict.py beside Optimum's pipeline on its own dynamic INT8 of the same weights, rows a second.

Reads   MODEL_DIRS                          folders that pack.py made of runs of the bundled encoder
        models/<RUN>/                       a finished run of int8_eager/, whose FP32 weights Optimum gets
        DATA_DIR/train.tsv                  whose first TEXTS texts are labelled
Writes  results/optimum_pipeline.json, and results/optimum-env/, an environment of Optimum's own, made once

Optimum runs as its documentation has it: ORTModelForSequenceClassification in a text-classification pipeline. It gets
texts that are cleaned already. predict.py cleans, and reads and writes a file, start-up included.
"""
import json
import statistics
import subprocess
import tempfile
from pathlib import Path

from own_environment import environment
from packed_process import predict

from lowbit.data.tokens import load_reader
from lowbit.data.tsv import read_tsv
from lowbit.pipeline.files import ROOT, resolve, run_dir, shown, write_json
from lowbit.pipeline.machine import machine, versions
from lowbit.pipeline.settings import whole_numbers
from lowbit.pipeline.stage import run_stage
from lowbit.training.encoder import load_run
from lowbit.training.weights import WEIGHTS, load_weights

# ---- settings: edit here, or for one run: --texts 1000 -------------------------------------------
MODEL_DIRS = "dist/sample-int8,dist/sample-learned"  # packed folders, separated by commas
RUN = "sample-int8"             # folder under models/ whose FP32 weights Optimum quantizes
DATA_DIR = "data"               # folder of train.tsv
TEXTS = 5_000                   # rows that are labelled
ROUNDS = 3                      # turns that the pipeline and each pack take
BATCHES = "1,16"                # texts a batch of the pipeline, separated by commas
# --------------------------------------------------------------------------------------------------

NEEDS = ("torch==2.13.0", "transformers==4.57.6", "optimum==2.1.0", "optimum-onnx==0.1.0", "onnx==1.23.2",
         "onnxruntime==1.31.1")
PIPELINE = """
import json, sys, time
from optimum.onnxruntime import ORTModelForSequenceClassification, ORTQuantizer
from optimum.onnxruntime.configuration import AutoQuantizationConfig
from transformers import AutoTokenizer, pipeline

folder, texts, batches = sys.argv[1], open(sys.argv[2], encoding="utf-8").read().splitlines(), json.loads(sys.argv[3])
exported, quantized = folder + "/exported", folder + "/quantized"
ORTModelForSequenceClassification.from_pretrained(folder, export=True).save_pretrained(exported)
config = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=False)
ORTQuantizer.from_pretrained(exported).quantize(save_dir=quantized, quantization_config=config)
model = ORTModelForSequenceClassification.from_pretrained(quantized, file_name="model_quantized.onnx")
ask = pipeline("text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(folder))
ask(texts[:64], batch_size=16)
print("ready", flush=True)
for line in sys.stdin:
    size = int(line)
    started = time.perf_counter()
    labels = [found["label"] for found in ask(texts, batch_size=size)]
    print(json.dumps({"seconds": time.perf_counter() - started, "labels": labels}), flush=True)
"""


def main(settings):
    python, batches = environment("optimum", NEEDS), whole_numbers(BATCHES, "BATCHES")
    packs = [resolve(name.strip()) for name in MODEL_DIRS.split(",")]
    run, texts = run_dir(RUN), read_tsv(resolve(DATA_DIR) / "train.tsv")[0][:TEXTS]
    reader, model = load_reader(run), load_run(run)
    load_weights(model, run / WEIGHTS)
    turns = {f"Optimum, batch {size}": [] for size in batches} | {pack.name: [] for pack in packs}
    with tempfile.TemporaryDirectory() as scratch:
        source, cleaned, target, theirs = (
            Path(scratch) / name for name in ("rows.txt", "clean.txt", "labels.jsonl", "optimum"))
        source.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
        cleaned.write_text("".join(f"{reader.clean(text)}\n" for text in texts), encoding="utf-8")
        model.save_pretrained(theirs)
        reader.tokenizer.save_pretrained(theirs)
        process = subprocess.Popen([python, "-c", PIPELINE, theirs, cleaned, json.dumps(batches)],
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        while (said := process.stdout.readline().strip()) != "ready":
            if process.poll() is not None:
                raise RuntimeError(f"Optimum's pipeline ended: {said}")
        labels = {}
        for _ in range(ROUNDS):
            for size in batches:
                process.stdin.write(f"{size}\n")
                process.stdin.flush()
                answer = json.loads(process.stdout.readline())
                turns[f"Optimum, batch {size}"].append(len(texts) / answer["seconds"])
                labels[f"Optimum, batch {size}"] = answer["labels"]
            for pack in packs:
                turns[pack.name].append(predict(pack, source, target)[0]["rows_per_second"])
                records = target.read_text(encoding="utf-8").splitlines()
                labels[pack.name] = [json.loads(record)["label"] for record in records]
        process.stdin.close()
        process.wait()
    best = max((name for name in turns if name.startswith("Optimum")), key=lambda name: statistics.median(turns[name]))
    result = {}
    for name, rates in turns.items():
        ratios = [ours / other for ours, other in zip(rates, turns[best], strict=True)]
        result[name] = {"rows_per_second": statistics.median(rates), "turns": rates,
                        "ratio": statistics.median(ratios), "ratios": ratios}
        print(f"  {name:22} {result[name]['rows_per_second']:6.0f} rows a second, {result[name]['ratio']:.2f}x "
              f"({min(ratios):.2f} to {max(ratios):.2f} by turn)")
    same = sum(ours == other for ours, other in zip(labels[packs[0].name], labels[best], strict=True))
    print(f"  {same} of {len(texts)} labels of {packs[0].name} are those of {best}")
    out = ROOT / "results" / "optimum_pipeline.json"
    write_json(out, {"machine": machine(), "versions": versions() | {"optimum": list(NEEDS)}, "settings": settings,
                     "compared_with": best, "files": result, "equal_labels": same})
    print(f"wrote {shown(out)}")


if __name__ == "__main__":
    run_stage(main, globals())

"""Benchmark: 4- and 2-bit files at IndoBERT-base's size, random weights: size, load, memory, speed beside INT8.

Reads   INDOBERT_DIR/                       IndoBERT's config.json and tokenizer (no weights are needed)
        DATA_DIR/{train,valid,test}.tsv
Writes  results/bert_base_int4.json         and models/<RUN>/, about 4 GB, deleted unless --keep
"""
import logging
import resource
import shutil
import subprocess
import sys
import time

import onnx
from bert_base import fresh_run, make_run, time_files, write_results
from onnxruntime.quantization import QuantType, quantize_dynamic
from transformers import AutoTokenizer

from lowbit.graph.census import census
from lowbit.pipeline.files import ROOT, resolve
from lowbit.pipeline.machine import machine, versions
from lowbit.pipeline.stage import run_stage

# ---- settings: edit here, or for one run: --rounds 3 ---------------------------------------------
INDOBERT_DIR = "data/indobert"  # folder of IndoBERT's config.json and tokenizer.json
DATA_DIR = "data"               # folder of train.tsv, valid.tsv, test.tsv
RUN = "bench-bert-base-int4"    # folder under models/
ROUNDS = 5                      # turns that the processes take
RUNS = 10                       # measured batches a turn and shape
KEEP = False                    # keep models/<RUN>
# --------------------------------------------------------------------------------------------------

SHAPES = ((1, 32), (1, 128), (16, 64))
EXPORT, QUANTIZE = "int4_eager/export_to_onnx.py", "int4_eager/quantize_onnx_int4.py"
# FP32 weights are rounded: a trained file of the same bits has the same bytes, and runs the same operators
FILES = {"4 bits": ("--bits", "4", "--table-bits", "4"),
         "2 bits, tables 4": ("--bits", "2", "--table-bits", "4", "--head-bits", "2", "--position-bits", "4"),
         "2 bits, tables 2": ("--bits", "2", "--table-bits", "2", "--head-bits", "2", "--position-bits", "4")}


def main(settings):
    folder = fresh_run(RUN)
    made, making = {}, {}
    make_run(folder, resolve(INDOBERT_DIR), resolve(DATA_DIR), [("int4_eager/train_qat_int4.py", (
        "--model-name", folder / "encoder", "--data-dir", folder / "data", "--num-epochs", "1", "--no-qat",
        "--no-distil"))])
    started = time.monotonic()
    subprocess.run([sys.executable, ROOT / EXPORT, "--run", RUN], check=True)
    making["export_seconds"] = time.monotonic() - started
    for name, flags in FILES.items():
        started = time.monotonic()
        subprocess.run([sys.executable, ROOT / QUANTIZE, "--run", RUN, *flags], check=True)
        making[f"{name}: seconds"] = time.monotonic() - started
        path = folder / f"model_qat_{'int4' if flags[1] == '4' else 'int2'}.onnx"
        made[name] = folder / f"{name.replace(' ', '').replace(',', '-')}.onnx"
        shutil.copyfile(path, made[name])
    making["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3
    fp32 = folder / "model_qat.onnx"
    logging.getLogger().setLevel(logging.ERROR)
    for name, per_channel in (("INT8", False), ("INT8, a scale a channel", True)):
        made[name] = folder / f"int8{per_channel}.onnx"
        quantize_dynamic(onnx.load(fp32), made[name], weight_type=QuantType.QInt8, per_channel=per_channel,
                         op_types_to_quantize=["MatMul", "Gather"])
    made["FP32"] = fp32
    size = {name: path.stat().st_size / 1e6 for name, path in made.items()}
    counted = {name: census(made[name]) for name in FILES}
    timed = time_files({name: (path, "onnxruntime") for name, path in made.items()}, "INT8", SHAPES,
                       len(AutoTokenizer.from_pretrained(folder)), ROUNDS, RUNS)
    for name in made:
        print(f"  {name:24} {size[name]:6.1f} MB, load {timed['load_ms'][name]:.0f} ms, peak memory "
              f"{timed['peak_memory_mb'][name]:.0f} MB")
    print(f"  export {making['export_seconds']:.0f} s; packing with its checks at most "
          f"{max(value for key, value in making.items() if key.endswith(': seconds')):.0f} s; peak memory of a stage, "
          f"training included, {making['peak_memory_mb']:.0f} MB")
    write_results({"machine": machine(), "versions": versions(), "settings": settings, "size_mb": size,
                   "census": counted, "making": making, **timed}, "bert_base_int4", folder, KEEP)


if __name__ == "__main__":
    run_stage(main, globals())

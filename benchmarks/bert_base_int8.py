"""Benchmark: the INT8 pipeline at IndoBERT-base's size, random weights: file size, speed-up, cost of a QAT step.

Reads   INDOBERT_DIR/                       IndoBERT's config.json and tokenizer (no weights are needed)
        DATA_DIR/{train,valid,test}.tsv
Writes  results/bert_base_int8.json         and models/<RUN>/, about 2 GB, deleted unless --keep
"""
import statistics

import numpy as np
import torch
from bert_base import fresh_run, make_run, measure_steps, time_files, write_results

from lowbit.data.tokens import load_reader
from lowbit.data.tsv import read_split
from lowbit.graph.census import census
from lowbit.int8.dynamic import simulate
from lowbit.measure.session import full_batches, sorted_batches
from lowbit.pipeline.files import resolve
from lowbit.pipeline.machine import machine, versions
from lowbit.pipeline.stage import run_stage
from lowbit.training.fine_tune import autocast_dtype

# ---- settings: edit here, or for one run: --rounds 3 ---------------------------------------------
INDOBERT_DIR = "data/indobert"  # folder of IndoBERT's config.json and tokenizer.json
DATA_DIR = "data"               # folder of train.tsv, valid.tsv, test.tsv
RUN = "bench-bert-base"         # folder under models/
ROUNDS = 5                      # turns that the processes take
RUNS = 10                       # measured batches a turn and shape
STEPS = 3                       # measured training steps a turn; 0 skips them
KEEP = False                    # keep models/<RUN>
# --------------------------------------------------------------------------------------------------

SHAPES = ((1, 32), (1, 128), (16, 64), (16, 128))


def simulate_int8(model):
    """The model that train_qat_int8.py trains by default."""
    return simulate(model, per_channel=False, quantize_embeddings=True, reduce_range=False)


def main(settings):
    folder = fresh_run(RUN)
    data = ("--data-dir", folder / "data")
    make_run(folder, resolve(INDOBERT_DIR), resolve(DATA_DIR), [
        ("int8_eager/train_qat_int8.py", ("--model-name", folder / "encoder", *data, "--num-epochs", "1")),
        ("int8_eager/export_to_onnx.py", ()), ("int8_eager/quantize_onnx_int8.py", ())])
    files = {"FP32": folder / "model_qat.onnx", "INT8": folder / "model_qat_int8.onnx"}
    size = {name: path.stat().st_size / 1e6 for name, path in files.items()}
    result = {"machine": machine(), "versions": versions(), "settings": settings, "size_mb": size,
              "size_ratio": size["INT8"] / size["FP32"], "census": census(files["INT8"])}
    print(f"  {size['FP32']:.1f} MB -> {size['INT8']:.1f} MB ({100 * result['size_ratio']:.1f} %)")
    reader = load_reader(folder)
    rows = reader.rows(read_split(resolve(DATA_DIR), "test")[0])
    # the same INT8 file, fed two ways in turns
    feeds = {"sorted": sorted_batches(rows, reader.pad_id, 16), "padded": full_batches(rows, reader.pad_id, 16, 128)}
    timed = time_files({name: (path, "onnxruntime") for name, path in files.items()}, "FP32", SHAPES,
                       len(reader.tokenizer), ROUNDS, RUNS, extra=feeds)
    result |= timed
    rates = {key: len(rows) / statistics.median(timed["seconds"][key]["INT8"]) for key in feeds}
    ratio = statistics.median(np.divide(timed["seconds"]["padded"]["INT8"], timed["seconds"]["sorted"]["INT8"]))
    result["smsa_test_texts_per_second"] = {**rates, "ratio": ratio}
    print(f"  SMSA test: {rates['sorted']:.0f} texts/s length-sorted, {rates['padded']:.0f} padded to 128: "
          f"{ratio:.2f}x")
    if STEPS:
        for name, autocast in (("fp32", False), ("bf16", True))[: 1 + (autocast_dtype() is torch.bfloat16)]:
            result[f"training_step_{name}"] = measure_steps(resolve(INDOBERT_DIR), simulate_int8, autocast, ROUNDS,
                                                            STEPS)
    write_results(result, "bert_base_int8", folder, KEEP)


if __name__ == "__main__":
    run_stage(main, globals())

"""Benchmark: the INT8 pipeline at IndoBERT-base's size, random weights: file size, speed-up, cost of a QAT step.

Reads   INDOBERT_DIR/                       IndoBERT's config.json and tokenizer (no weights are needed)
        DATA_DIR/{train,valid,test}.tsv
Writes  results/bert_base_int8.json         and models/<RUN>/, about 2 GB, deleted unless --keep
"""
import shutil

import torch
from bert_base import make_run, measure_steps, time_shapes, write_results
from transformers import AutoTokenizer

from lowbit.data.tokens import encode
from lowbit.data.tsv import read_split
from lowbit.graph.census import census
from lowbit.int8.dynamic import prepare
from lowbit.measure.session import Session, full_batches, sorted_batches, throughput
from lowbit.pipeline.files import resolve, run_dir
from lowbit.pipeline.machine import machine, versions
from lowbit.pipeline.stage import run_stage
from lowbit.training.fine_tune import autocast_dtype

# ---- settings: edit here, or for one run: --rounds 3 ---------------------------------------------
INDOBERT_DIR = "../shared/data/indobert"  # folder of IndoBERT's config.json and tokenizer.json
DATA_DIR = "../shared/data/smsa"  # folder of train.tsv, valid.tsv, test.tsv
RUN = "bench-bert-base"         # folder under models/
ROUNDS = 5                      # turns that the processes take
RUNS = 10                       # measured batches a turn and shape
STEPS = 3                       # measured training steps a turn
KEEP = False                    # keep models/<RUN>
# --------------------------------------------------------------------------------------------------

SHAPES = ((1, 32), (1, 128), (16, 64), (16, 128))


def simulate(model):
    """The model that train_qat_int8.py trains by default."""
    return prepare(model, per_channel=False, quantize_embeddings=True, reduce_range=False)


def main(settings):
    folder = run_dir(RUN)
    shutil.rmtree(folder, ignore_errors=True)
    data = ("--data-dir", folder / "data")
    make_run(folder, resolve(INDOBERT_DIR), resolve(DATA_DIR), [
        ("int8_eager/train_qat_int8.py", ("--model-name", folder / "encoder", *data, "--num-epochs", "1")),
        ("int8_eager/export_to_onnx.py", ()), ("int8_eager/quantize_onnx_int8.py", ())])
    files = {"FP32": folder / "model_qat.onnx", "INT8": folder / "model_qat_int8.onnx"}
    size = {name: path.stat().st_size / 1e6 for name, path in files.items()}
    result = {"machine": machine(), "versions": versions(), "settings": settings, "size_mb": size,
              "size_ratio": size["INT8"] / size["FP32"], "census": census(files["INT8"])}
    print(f"  {size['FP32']:.1f} MB -> {size['INT8']:.1f} MB ({100 * result['size_ratio']:.1f} %)")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = encode(read_split(resolve(DATA_DIR), "test")[0], tokenizer, "minimal", 128)
    with Session(files["FP32"], "CPUExecutionProvider", 0) as fp32, \
            Session(files["INT8"], "CPUExecutionProvider", 0) as int8:
        sessions = {"FP32": fp32, "INT8": int8}
        result["latency"] = time_shapes(sessions, "INT8", SHAPES, len(tokenizer), ROUNDS, RUNS)
        # the same INT8 file, fed two ways in turns
        rates = throughput({"sorted": int8, "padded": int8}, {
            "sorted": sorted_batches(rows, tokenizer.pad_token_id, 16),
            "padded": full_batches(rows, tokenizer.pad_token_id, 16, 128)}, len(rows), 3)
    result["smsa_test_texts_per_second"] = {**rates, "ratio": rates["sorted"] / rates["padded"]}
    print(f"  SMSA test: {rates['sorted']:.0f} texts/s length-sorted, {rates['padded']:.0f} padded to 128: "
          f"{rates['sorted'] / rates['padded']:.2f}x")
    for name, autocast in (("fp32", False), ("bf16", True))[: 1 + (autocast_dtype() is torch.bfloat16)]:
        result[f"training_step_{name}"] = measure_steps(resolve(INDOBERT_DIR), simulate, autocast, ROUNDS, STEPS)
    write_results(result, "bert_base_int8", folder, KEEP)


if __name__ == "__main__":
    run_stage(main, globals())

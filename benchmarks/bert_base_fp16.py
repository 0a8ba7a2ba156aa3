"""Benchmark: the FP16 pipeline at IndoBERT-base's size, random weights: file size, types, time, training step.

Reads   INDOBERT_DIR/                       IndoBERT's config.json and tokenizer (no weights are needed)
        DATA_DIR/{train,valid,test}.tsv
Writes  results/bert_base_fp16.json         and models/<RUN>/, about 2 GB, deleted unless --keep
"""

from bert_base import fresh_run, make_run, measure_steps, time_files, write_results
from transformers import AutoTokenizer

from lowbit.fp16.simulation import simulate
from lowbit.graph.census import dtype_census, dtype_lines
from lowbit.pipeline.files import file_bytes, resolve
from lowbit.pipeline.machine import machine, versions
from lowbit.pipeline.stage import run_stage

# ---- settings: edit here, or for one run: --rounds 3 ---------------------------------------------
INDOBERT_DIR = "data/indobert"  # folder of IndoBERT's config.json and tokenizer.json
DATA_DIR = "data"               # folder of train.tsv, valid.tsv, test.tsv
RUN = "bench-bert-base-fp16"    # folder under models/
PROVIDER = "CPUExecutionProvider"  # ONNX Runtime execution provider; an absent one is an error
ROUNDS = 8                      # turns that the processes take
RUNS = 10                       # measured batches a turn and shape
STEPS = 2                       # measured training steps a turn; 0 skips them
KEEP = False                    # keep models/<RUN>
# --------------------------------------------------------------------------------------------------

SHAPES = ((1, 32), (1, 128), (16, 64))


def simulate_fp16(model):
    """The model that train_qat_fp16.py trains by default."""
    return simulate(model, frozenset())


def main(settings):
    folder = fresh_run(RUN)
    data = ("--data-dir", folder / "data")
    make_run(folder, resolve(INDOBERT_DIR), resolve(DATA_DIR), [
        ("fp16_eager/train_qat_fp16.py", ("--model-name", folder / "encoder", *data, "--num-epochs", "1")),
        ("fp16_eager/export_to_onnx.py", ()), ("fp16_eager/quantize_onnx_fp16.py", data)])
    files = {"FP32": folder / "model_qat.onnx", "FP16": folder / "model_qat_fp16.onnx"}
    size = {name: file_bytes(path) / 1e6 for name, path in files.items()}
    counted = dtype_census(files["FP16"])
    print(f"  {size['FP32']:.1f} MB -> {size['FP16']:.1f} MB ({100 * size['FP16'] / size['FP32']:.2f} %)")
    print(*dtype_lines(counted), sep="\n")
    timed = time_files({name: (path, "onnxruntime") for name, path in files.items()}, "FP32", SHAPES,
                       len(AutoTokenizer.from_pretrained(folder)), ROUNDS, RUNS, PROVIDER)
    memory = timed["peak_memory_mb"]
    print(f"  peak memory: FP32 {memory['FP32']:.0f} MB, FP16 {memory['FP16']:.0f} MB")
    result = {"machine": machine(), "versions": versions(), "settings": settings, "size_mb": size,
              "size_ratio": size["FP16"] / size["FP32"], "census": counted, **timed}
    if STEPS:
        result["training_step_fp32"] = measure_steps(resolve(INDOBERT_DIR), simulate_fp16, False, max(ROUNDS // 2, 1),
                                                     STEPS)
    write_results(result, "bert_base_fp16", folder, KEEP)


if __name__ == "__main__":
    run_stage(main, globals())

"""Benchmark: learned activation ranges at IndoBERT-base's size, random weights: file size and speed in two runtimes.

Reads   INDOBERT_DIR/                       IndoBERT's config.json and tokenizer (no weights are needed)
        DATA_DIR/{train,valid,test}.tsv
Writes  results/bert_base_learned.json      and models/<RUN>/, about 2 GB, deleted unless --keep

Needs   pip install -r requirements-benchmarks.txt: OpenVINO, and NNCF, its own toolkit for post-training INT8

One process a file and runtime, all taking turns: the file with learned ranges in OpenVINO and in ONNX Runtime, the
dynamic INT8 file in ONNX Runtime, FP32 in it as exported here and plain, in OpenVINO NNCF's file of the plain export.
"""
import logging

import onnx
from bert_base import fresh_run, make_run, measure_steps, plain_export, time_files, write_results
from onnxruntime.quantization import QuantType, quantize_dynamic

from lowbit.data.tokens import Row, load_reader, pad
from lowbit.data.tsv import read_split
from lowbit.graph.census import census, openvino_kernels
from lowbit.int8.learned import simulate
from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import resolve
from lowbit.pipeline.machine import machine, versions
from lowbit.pipeline.stage import run_stage

# ---- settings: edit here, or for one run: --rounds 3 ---------------------------------------------
INDOBERT_DIR = "data/indobert"  # folder of IndoBERT's config.json and tokenizer.json
DATA_DIR = "data"               # folder of train.tsv, valid.tsv, test.tsv
RUN = "bench-bert-base-learned"  # folder under models/
TARGET = "openvino"             # as in train_qat_int8.py
QUANTIZE_ATTENTION = True       # as in train_qat_int8.py
NNCF_TEXTS = 300                # texts of train that NNCF calibrates on; its own default
ROUNDS = 5                      # turns that the processes take
RUNS = 10                       # measured batches a turn and shape
STEPS = 2                       # measured training steps a turn; 0 skips them
KEEP = False                    # keep models/<RUN>
# --------------------------------------------------------------------------------------------------

SHAPES = ((1, 32), (1, 128), (16, 64), (16, 128))


def simulate_learned(model):
    """The model that train_qat_int8.py trains with learned ranges, scales not calibrated: their values cost no time."""
    return simulate(model, "openvino", False, True, True, False)


def nncf_file(fp32, path, rows: list[Row], pad_id: int) -> None:
    """NNCF's post-training INT8 of the FP32 graph, with its settings for transformers."""
    import nncf
    import openvino

    quantized = nncf.quantize(openvino.Core().read_model(fp32), nncf.Dataset([pad([row], pad_id) for row in rows]),
                              model_type=nncf.ModelType.TRANSFORMER, subset_size=len(rows))
    openvino.save_model(quantized, path, compress_to_fp16=False)


def main(settings):
    try:
        import nncf
    except ImportError:
        raise UserError("NNCF is not installed: pip install -r requirements-benchmarks.txt") from None
    folder = fresh_run(RUN)
    learned = ("--activation-ranges", "learned", "--target", TARGET, "--quantize-attention", str(QUANTIZE_ATTENTION))
    make_run(folder, resolve(INDOBERT_DIR), resolve(DATA_DIR), [
        ("int8_eager/train_qat_int8.py", ("--model-name", folder / "encoder", "--data-dir", folder / "data",
                                          "--num-epochs", "1", *learned)),
        ("int8_eager/export_to_onnx.py", ()), ("int8_eager/quantize_onnx_int8.py", learned)])
    fp32, ours, plain = folder / "model_qat.onnx", folder / "model_qat_int8.onnx", folder / "plain.onnx"
    plain_export(folder, plain)
    dynamic, theirs = folder / "dynamic.onnx", folder / "nncf.xml"
    logging.getLogger().setLevel(logging.ERROR)
    quantize_dynamic(onnx.load(fp32), dynamic, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gather"])
    reader = load_reader(folder)
    texts = read_split(resolve(DATA_DIR), "train")[0]
    rows = reader.rows(texts[:: max(len(texts) // NNCF_TEXTS, 1)][:NNCF_TEXTS])
    nncf_file(plain, theirs, rows, reader.pad_id)
    size = {path.name: path.stat().st_size / 1e6 for path in (fp32, ours, dynamic, theirs.with_suffix(".bin"))}
    result = {"machine": machine(), "versions": {**versions(), "nncf": nncf.__version__}, "settings": settings,
              "size_mb": size, "size_ratio": size[ours.name] / size[fp32.name], "census": census(ours),
              "openvino_kernels": {"learned": openvino_kernels(ours), "NNCF": openvino_kernels(theirs)}}
    print(f"  {size[fp32.name]:.1f} MB -> {size[ours.name]:.1f} MB ({100 * result['size_ratio']:.1f} %)")
    files = {"plain FP32, ONNX Runtime": (plain, "onnxruntime"), "FP32, ONNX Runtime": (fp32, "onnxruntime"),
             "dynamic, ONNX Runtime": (dynamic, "onnxruntime"),
             "learned, ONNX Runtime": (ours, "onnxruntime"), "plain FP32, OpenVINO": (plain, "openvino"),
             "NNCF, OpenVINO": (theirs, "openvino"), "learned, OpenVINO": (ours, "openvino")}
    result |= time_files(files, "NNCF, OpenVINO", SHAPES, len(reader.tokenizer), ROUNDS, RUNS)
    if STEPS:
        result["training_step_fp32"] = measure_steps(resolve(INDOBERT_DIR), simulate_learned, False, ROUNDS, STEPS)
    write_results(result, "bert_base_learned", folder, KEEP)


if __name__ == "__main__":
    run_stage(main, globals())

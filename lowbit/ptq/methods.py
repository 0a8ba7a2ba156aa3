"""Post-training quantization of one FP32 file: what each kind of recipe does, and calibration, a text at a time.

The quantizers and calibrators are ONNX Runtime's; what is ours is that calibration is streamed.
"""

import contextlib
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.calibrate import create_calibrator, save_tensors_data
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    HQQWeightOnlyQuantConfig,
    MatMulNBitsQuantizer,
)
from onnxruntime.quantization.onnx_model import ONNXModel
from tqdm import tqdm

from lowbit.data.tokens import Row, pad, width
from lowbit.graph.inputs import sample_inputs
from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import external_data

PRODUCTS, TABLES = ["MatMul", "Gemm"], ["Gather"]
CALIBRATORS = {"minmax": CalibrationMethod.MinMax, "entropy": CalibrationMethod.Entropy,
               "percentile": CalibrationMethod.Percentile}
ROWS = "rows"  # the calibration of a recipe that calls ONNX Runtime's calibrator itself: the texts' token rows
INT4_INPUT = 4  # accuracy_level: MatMulNBits quantizes its input to int8 and multiplies integers


class _OneText(CalibrationDataReader):
    """A reader of one batch: a calibrator that is given many of these keeps one text's activations at a time."""

    def __init__(self, row: Row):
        self.left = [pad([row], 0)]

    def get_next(self):
        return self.left.pop() if self.left else None


def quantized_ops(options: dict) -> list[str]:
    """The ONNX operators whose inputs go to low precision."""
    return PRODUCTS + (TABLES if options["QUANTIZE_EMBEDDINGS"] else [])


def calibrate_ranges(source: Path, target: Path, calibration: str, rows: list[Row], options: dict) -> None:
    """Ranges of every tensor that a static method quantizes, over `rows` one at a time and unpadded, to a JSON file.

    For GPTQ, what its layers' inputs look like instead, to an .npz.
    ONNX Runtime's calibrator keeps all activations of what one call gives it, and takes one length only; called once a
    text it merges ranges and histograms instead. The longest text comes first: its reach sets the width of the bins.
    """
    if calibration == ROWS:
        target.write_text(json.dumps(rows), encoding="utf-8")
        return
    if calibration == "gptq":
        from lowbit.ptq.per_channel import second_moments

        return second_moments(source, target, rows)
    extra = {"minmax": {}, "entropy": {"num_bins": options["ENTROPY_BINS"]},
             "percentile": {"percentile": options["PERCENTILE"], "symmetric": False}}[calibration]
    calibrator = create_calibrator(source, quantized_ops(options), str(source.with_name("augmented.onnx")),
                                   calibrate_method=CALIBRATORS[calibration], extra_options=extra,
                                   use_external_data_format=external_data(source).exists())
    with contextlib.redirect_stdout(None):  # it announces every text
        ordered = sorted(rows, key=width, reverse=True)
        for row in tqdm(ordered, desc=f"  calibrating, {calibration}", unit="text", disable=None):
            calibrator.collect_data(_OneText(row))
        save_tensors_data(calibrator.compute_data(), target)


def quantize(source: Path, target: Path, recipe: dict, ranges: Path, options: dict) -> None:
    """Write `target` from `source` as `recipe` says; `ranges` are calibrate_ranges()'s, where it calibrates."""
    RECIPES[recipe["kind"]](source, target, recipe, ranges, options)


def logits_products(graph: onnx.GraphProto) -> list[str]:
    """Name of the operator that gives the logits: at 8 bits they would tie, and its weight is a few KB."""
    outputs = {output.name for output in graph.output}
    return [node.name for node in graph.node if outputs & set(node.output)]


def _fp16(source, target, recipe, ranges, options):
    from lowbit.fp16.conversion import convert, read_fp32, refuse_too_large

    prepared = read_fp32(source, frozenset())
    refuse_too_large(prepared, clip=False)
    convert(prepared, target, keep_io_types=True)


def _dynamic(source, target, recipe, ranges, options):
    # given the graph, not its path: for a path it writes a second file beside the first
    quantize_dynamic(onnx.load(source), target, weight_type=QuantType.QInt8, per_channel=recipe["per_channel"],
                     reduce_range=options["REDUCE_RANGE"], use_external_data_format=external_data(source).exists(),
                     op_types_to_quantize=["MatMul"] + (TABLES if options["QUANTIZE_EMBEDDINGS"] else []))


def _static(source, target, recipe, ranges, options):
    qdq = recipe["form"] == "qdq"
    symmetric = recipe["activations"] == "s8"
    extra = {"ActivationSymmetric": symmetric}
    if qdq:  # what a product gives stays float: nothing after it runs on integers
        extra |= {"DedicatedQDQPair": True, "OpTypesToExcludeOutputQuantization": PRODUCTS}
    logits = logits_products(onnx.load(source, load_external_data=False).graph)
    quantize_static(source, target, None, quant_format=QuantFormat.QDQ if qdq else QuantFormat.QOperator,
                    op_types_to_quantize=quantized_ops(options), per_channel=options["PER_CHANNEL"],
                    reduce_range=options["REDUCE_RANGE"], nodes_to_exclude=[] if qdq else logits,
                    activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8, weight_type=QuantType.QInt8,
                    calibrate_method=CALIBRATORS[recipe["calibration"]], extra_options=extra,
                    calibration_cache_path=ranges, use_external_data_format=external_data(source).exists())
    if not qdq:
        float_outputs(target)


def float_outputs(path: Path) -> None:
    """Let the integer products of a QOperator file whose weight is stored give floats, in place.

    QLinearMatMul rounds what a product gives to 256 levels as well. Behind BERT's second feed-forward product a few
    channels reach so far that hardly a level is left for the others, whatever calibrates the range.
    """
    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    stored = {tensor.name for tensor in graph.initializer}
    readers: dict[str, list] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for product in [node for node in graph.node if node.op_type == "QLinearMatMul" and node.input[3] in stored]:
        following = readers.get(product.output[0], [])
        if [node.op_type for node in following] == ["DequantizeLinear"]:
            a, a_scale, a_zero, b, b_scale, b_zero = product.input[:6]
            product.CopyFrom(helper.make_node(
                "MatMulIntegerToFloat", [a, b, a_scale, b_scale, a_zero, b_zero], following[0].output,
                product.name, domain="com.microsoft"))
            graph.node.remove(following[0])
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)
    if "com.microsoft" not in {opset.domain for opset in model.opset_import}:
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, path)


class _Padded(CalibrationDataReader):
    """Texts one at a time, all padded to one length."""

    def __init__(self, rows: list[Row], length: int):
        self.left = [pad([row], 0, length) for row in reversed(rows)]

    def get_next(self):
        return self.left.pop() if self.left else None


def _every_operator(source, target, recipe, rows, options):
    """quantize_static() as it is usually called: every operator that it knows, texts padded to one length."""
    read = json.loads(rows.read_text(encoding="utf-8"))
    quantize_static(source, target, _Padded(read, recipe["length"]),
                    quant_format=QuantFormat.QDQ if recipe["form"] == "qdq" else QuantFormat.QOperator,
                    activation_type=QuantType.QInt8 if recipe["activations"] == "s8" else QuantType.QUInt8,
                    weight_type=QuantType.QInt8, calibrate_method=CalibrationMethod.MinMax,
                    use_external_data_format=external_data(source).exists())


def _int4(source, target, recipe, ranges, options):
    if recipe["algorithm"] == "hqq":
        if recipe["symmetric"]:
            raise UserError("HQQ has no symmetric form: what it optimises is the zero point")
        config = HQQWeightOnlyQuantConfig(block_size=recipe["block_size"], bits=4, op_types_to_quantize=("MatMul",))
    else:
        config = DefaultWeightOnlyQuantConfig(block_size=recipe["block_size"], is_symmetric=recipe["symmetric"],
                                              accuracy_level=INT4_INPUT, op_types_to_quantize=("MatMul",))
    model = ONNXModel(onnx.load(source))
    logits = logits_products(model.model.graph)
    model.replace_gemm_with_matmul()  # MatMulNBits knows no Gemm: the pooler's
    quantizer = MatMulNBitsQuantizer(model.model, algo_config=config, nodes_to_exclude=[
        *logits, *(f"{name}_MatMul" for name in logits)])
    quantizer.process()
    if options["QUANTIZE_EMBEDDINGS"]:  # tables at 8 bits: at 32 they would outweigh all products
        quantize_dynamic(quantizer.model.model, target, weight_type=QuantType.QInt8, op_types_to_quantize=TABLES)
    else:
        onnx.save(quantizer.model.model, target)


def _per_channel(source, target, recipe, moments, options):
    from lowbit.ptq.per_channel import quantize_per_channel

    quantize_per_channel(source, target, recipe["bits"], 4.0 if options["QUANTIZE_EMBEDDINGS"] else 8.0, moments)


RECIPES = {"per_channel": _per_channel, "fp16": _fp16, "dynamic": _dynamic, "static": _static,
           "every_operator": _every_operator, "int4": _int4}


def check_runs(path: Path) -> None:
    """Load the file and run one batch; raises RuntimeError for logits that are no numbers."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = tuple(given.name for given in session.get_inputs())
    logits = session.run(["logits"], sample_inputs(8, 2, 5, 3, 0, names))[0]
    if not np.isfinite(logits).all():
        raise RuntimeError("its logits are no numbers")

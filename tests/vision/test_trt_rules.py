"""TensorRT's rules: a clean file has no finding; each fault that is planted into it is found, at its node."""

import copy

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from lowbit.vision.calibrate import calibrate
from lowbit.vision.export import export
from lowbit.vision.placement import fold, place_pairs
from lowbit.vision.trt_rules import ERROR, WARNING, check, check_model, finding_lines


class Residual(nn.Module):
    """Two convolutions with a shortcut, and a Linear layer."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.second, self.third, self.last = nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1), nn.Linear(8, 5)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(self.third(torch.relu(self.second(x))) + x)
        return self.last(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Target -> file of the residual network."""
    torch.manual_seed(0)
    folded, folder = fold(Residual()), tmp_path_factory.mktemp("rules")
    for target in ("tensorrt", "onnxruntime"):
        placed = place_pairs(folded, target, 8)
        calibrate(placed, lambda: [torch.randn(4, 3, 8, 8)], "minmax")
        export(placed, folder / f"{target}.onnx", 8)
    return {path.stem: path for path in folder.iterdir()}


@pytest.fixture
def model(files):
    return onnx.load(files["tensorrt"])


def node(model, name):
    return next(each for each in model.graph.node if each.name == name)


def stored(model, name):
    return next(each for each in model.graph.initializer if each.name == name)


def replace(model, name, value):
    """Give an initializer another value."""
    stored(model, name).CopyFrom(numpy_helper.from_array(value, name))


def add(model, name, value):
    model.graph.initializer.append(numpy_helper.from_array(value, name))
    return name


def test_a_clean_file_has_no_finding(files):
    assert check(files["tensorrt"]) == []
    assert finding_lines([]) == ["  TensorRT's rules: 0 errors, 0 warnings of layers that are not fused"]


def asymmetric(model):
    replace(model, "pairs.relu.zero_point", np.array(3, np.int8))


def unsigned(model):
    replace(model, "pairs.relu.zero_point", np.array(0, np.uint8))


def without_zero_point(model):
    quantize = node(model, "/relu/QuantizeLinear")
    del quantize.input[2]


def axis_of_inputs(model):
    attributes = node(model, "/second/weight/DequantizeLinear").attribute
    next(entry for entry in attributes if entry.name == "axis").i = 1


def too_few_scales(model):
    for part, kind in (("scale", np.float32), ("zero_point", np.int8)):
        replace(model, f"second.stored_weight_{part}", (np.ones if part == "scale" else np.zeros)(4, kind))


def float_weight(model):
    add(model, "plain", np.ones((8, 8, 3, 3), np.float32))
    node(model, "/second/Conv").input[1] = "plain"


def float_input(model):
    node(model, "/second/Conv").input[0] = node(model, "/relu/QuantizeLinear").input[0]


def weight_quantized_at_load(model):
    add(model, "plain", np.ones((8, 8, 3, 3), np.float32))
    dequantize = node(model, "/second/weight/DequantizeLinear")
    made = helper.make_node("QuantizeLinear", ["plain", *dequantize.input[1:]], ["late"], name="late", axis=0)
    dequantize.input[0] = "late"
    model.graph.node.insert(0, made)


def shortcut_on_floats(model):
    node(model, "/sum_add/Add").input[1] = node(model, "/relu/QuantizeLinear").input[0]


def pair_on_main_branch(model):
    addition = node(model, "/sum_add/Add")
    scaling = [add(model, "s", np.array(0.1, np.float32)), add(model, "z", np.array(0, np.int8))]
    place = list(model.graph.node).index(addition)
    pair = [helper.make_node("QuantizeLinear", [addition.input[0], *scaling], ["mq"], name="mq"),
            helper.make_node("DequantizeLinear", ["mq", *scaling], ["md"], name="md")]
    addition.input[0] = "md"
    for each in reversed(pair):
        model.graph.node.insert(place, each)


def pair_before_activation(model):
    relu = next(each for each in model.graph.node if each.op_type == "Relu"
                and each.input[0] == node(model, "/second/Conv").output[0])
    scaling = [add(model, "s", np.array(0.1, np.float32)), add(model, "z", np.array(0, np.int8))]
    place = list(model.graph.node).index(relu)
    pair = [helper.make_node("QuantizeLinear", [relu.input[0], *scaling], ["aq"], name="aq"),
            helper.make_node("DequantizeLinear", ["aq", *scaling], ["ad"], name="ad")]
    relu.input[0] = "ad"
    for each in reversed(pair):
        model.graph.node.insert(place, each)


def old_opset(model):
    model.opset_import[0].version = 12


def negative_scale(model):
    replace(model, "pairs.relu.scale", np.array(-0.1, np.float32))


def scale_not_a_number(model):
    scale = numpy_helper.to_array(stored(model, "second.stored_weight_scale")).copy()
    scale[1] = np.nan
    replace(model, "second.stored_weight_scale", scale)


def unequal_pair(model):
    node(model, "/relu/DequantizeLinear").input[1] = add(model, "other", np.array(0.5, np.float32))


def integers_taken(model):
    node(model, "/relu/DequantizeLinear").op_type = "Relu"


def computed_scale(model):
    model.graph.node.insert(0, helper.make_node("ReduceMax", ["pixels"], ["range"], name="range", keepdims=0))
    node(model, "/relu/QuantizeLinear").input[1] = "range"


def channels_of_an_activation(model):
    for part, value in (("scale", np.full(8, 0.1, np.float32)), ("zero_point", np.zeros(8, np.int8))):
        replace(model, f"pairs.relu.{part}", value)


def quantized_bias(model):
    scaling = [add(model, "bs", np.ones(8, np.float32)), add(model, "bz", np.zeros(8, np.int32))]
    made = helper.make_node("DequantizeLinear", [add(model, "bi", np.zeros(8, np.int32)), *scaling], ["bd"],
                            name="bias", axis=0)
    model.graph.node.insert(0, made)
    node(model, "/second/Conv").input[2] = "bd"


def both_on_floats(model):
    float_weight(model)
    float_input(model)


def operator_of_onnx_runtime(model):
    node(model, "/second/Conv").op_type = "QLinearConv"


def unfolded_norm(model):
    relu = next(each for each in model.graph.node if each.op_type == "Relu"
                and each.input[0] == node(model, "/second/Conv").output[0])
    given = [add(model, f"bn{i}", np.ones(8, np.float32)) for i in range(4)]
    place = list(model.graph.node).index(relu)
    model.graph.node.insert(place, helper.make_node("BatchNormalization", [relu.input[0], *given], ["normed"],
                                                    name="norm"))
    relu.input[0] = "normed"


def uint8_weight(model):
    integers = numpy_helper.to_array(stored(model, "second.stored_weight_integers"))
    replace(model, "second.stored_weight_integers", integers.astype(np.uint8))
    replace(model, "second.stored_weight_zero_point", np.zeros(8, np.uint8))


FAULTS = [  # fault, kind, the node that is named, the rule
    (asymmetric, ERROR, "/relu/QuantizeLinear", "zero point 0"),
    (unsigned, ERROR, "/relu/QuantizeLinear", "int8"),
    (without_zero_point, ERROR, "/relu/QuantizeLinear", "int8"),
    (axis_of_inputs, ERROR, "/second/Conv", "axis"),
    (too_few_scales, ERROR, "/second/Conv", "axis"),
    (float_weight, ERROR, "/second/Conv", "both inputs"),
    (float_input, ERROR, "/second/Conv", "both inputs"),
    (weight_quantized_at_load, ERROR, "late", "stored int8"),
    (shortcut_on_floats, WARNING, "/sum_add/Add", "residual addition"),
    (pair_on_main_branch, WARNING, "/sum_add/Add", "residual addition"),
    (pair_before_activation, WARNING, "aq", "fused activation"),
    (old_opset, ERROR, "the file", "opset"),
    (negative_scale, ERROR, "/relu/QuantizeLinear", "positive scale"),
    (scale_not_a_number, ERROR, "/second/weight/DequantizeLinear", "positive scale"),
    (unequal_pair, ERROR, "/relu/DequantizeLinear", "equal pair"),
    (integers_taken, ERROR, "/relu/QuantizeLinear", "pair"),
    (computed_scale, ERROR, "/relu/QuantizeLinear", "constant scale"),
    (channels_of_an_activation, ERROR, "/relu/QuantizeLinear", "one scale an activation"),
    (quantized_bias, ERROR, "/second/Conv", "float bias"),
    (both_on_floats, WARNING, "/second/Conv", "float layer"),
    (operator_of_onnx_runtime, ERROR, "/second/Conv", "operator"),
    (unfolded_norm, WARNING, "norm", "folded"),
    (uint8_weight, ERROR, "/second/Conv", "stored int8"),
]


@pytest.mark.parametrize(("plant", "kind", "name", "rule"), FAULTS, ids=[fault[0].__name__ for fault in FAULTS])
def test_a_planted_fault_is_found_at_its_node(model, plant, kind, name, rule):
    plant(model)
    found = check_model(model)
    assert [(each.kind, each.node, each.rule) for each in found if each.node == name and each.rule == rule]
    assert {each.kind for each in found if each.node == name and each.rule == rule} == {kind}
    assert name in "\n".join(finding_lines(found))


def test_a_float_layer_may_be_named(model):
    both_on_floats(model)
    assert [each.rule for each in check_model(model, ("/second/Conv",))] == []


@pytest.mark.parametrize(("plant", "rule"), [(None, None), (asymmetric, "zero point 0"),
                                               (negative_scale, "positive scale")])
def test_constant_nodes_are_read_as_initializers_are(model, plant, rule):
    """Exporters write scales and zero points either way."""
    if plant:
        plant(model)
    as_nodes = copy.deepcopy(model)
    del as_nodes.graph.initializer[:]
    for place, tensor in enumerate(model.graph.initializer):
        as_nodes.graph.node.insert(place, helper.make_node("Constant", [], [tensor.name], name=f"c{place}",
                                                           value=tensor))
    assert [each.rule for each in check_model(as_nodes)] == [each.rule for each in check_model(model)]
    assert rule is None or rule in [each.rule for each in check_model(as_nodes)]


def test_nodes_without_names_are_named_by_what_they_make(model):
    asymmetric(model)
    for each in model.graph.node:
        each.name = ""
    assert any("QuantizeLinear of " in finding.node for finding in check_model(model))


def test_the_twin_for_onnx_runtime_is_no_file_for_tensorrt(files):
    rules = {finding.rule for finding in check(files["onnxruntime"])}
    assert {"int8", "float bias"} <= rules

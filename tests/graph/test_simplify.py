"""The exported graph: no shape is computed in a run, no mask of a text's length squared, no slow fusion."""

from collections import Counter

import onnx
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from lowbit.data.tokens import INPUT_NAMES, PAIR_INPUT
from lowbit.graph.census import optimised_graph
from lowbit.graph.export import export, largest_difference
from lowbit.graph.simplify import store_shapes

SIZES = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 64, "initializer_range": 0.2, "num_labels": 3}

SAME = 1e-5  # of logits
OTHER_SUMS = {"convbert": 5e-5}  # convolutions sum in other orders: 1.4e-5 on an AMD EPYC


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Function: (model, path of its graph) of a family; made once."""
    folder, known = tmp_path_factory.mktemp("graphs"), {}

    def make(family, names=INPUT_NAMES):
        if (family, names) not in known:
            torch.manual_seed(0)
            more = {"albert": {"embedding_size": 16}, "modernbert": dict.fromkeys(
                (f"{name}_token_id" for name in ("pad", "bos", "eos", "cls", "sep")), 0)}.get(family, {})
            config = AutoConfig.for_model(family, **SIZES | more)
            model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
            path = folder / f"{family}{len(names)}.onnx"
            export(model, path, 17, names)
            known[family, names] = model, path
        return known[family, names]

    return make


@pytest.mark.parametrize("family", ["bert", "xlm-roberta", "albert", "electra", "distilbert", "deberta-v2", "deberta",
                                    "modernbert", "convbert", "layoutlm", "mpnet"])
def test_logits_are_those_of_the_model(made, family):
    """Other shapes than the traced ones, with padding; some take no ready-made mask, or look around themselves only."""
    assert largest_difference(*made(family)) < OTHER_SUMS.get(family, SAME)


def test_types_of_a_pair_stay_an_input(made):
    model, path = made("bert", (*INPUT_NAMES, PAIR_INPUT))
    assert largest_difference(model, path) < SAME
    assert [given.name for given in onnx.load(path).graph.input] == [*INPUT_NAMES, PAIR_INPUT]


def test_no_shape_is_computed(made):
    """Positions alone are counted in a run: by one Shape of the ids, cut out of their table."""
    graph = onnx.load(made("bert")[1]).graph
    operators = Counter(node.op_type for node in graph.node)
    assert operators["Shape"] == 1
    assert not {"Expand", "Range", "Concat", "ConstantOfShape", "GatherElements"} & set(operators)
    stored = {tensor.name for tensor in graph.initializer}
    assert all(node.input[1] in stored for node in graph.node if node.op_type == "Reshape")
    used = {name for node in graph.node for name in node.input}
    assert stored <= used


def test_residuals_are_not_fused(made):
    operators = Counter(node.op_type for node in optimised_graph(made("bert")[1]).node)
    assert operators["SkipLayerNormalization"] == 0
    assert operators["LayerNormalization"] == 5
    assert operators["Sum"] == 5


def test_shape_that_no_constant_can_say_is_left(tmp_path):
    """Two dimensions that both change, in another order: that Reshape keeps its computed target."""
    graph = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        agraph (int64[batch, sequence] input_ids, int64[batch, sequence] attention_mask) => (int64[n, m] logits)
        <int64[1] zero = {0}, int64[1] one = {1}, int64[2] flat = {-1, 1}> {
            shape = Shape(input_ids)
            rows = Gather(shape, zero)
            columns = Gather(shape, one)
            swapped = Concat<axis = 0>(columns, rows)
            turned = Reshape(input_ids, swapped)
            kept = Concat<axis = 0>(rows, columns)
            same = Reshape(turned, kept)
            logits = Reshape(attention_mask, kept)
        }""")
    store_shapes(graph)
    targets = [node.input[1] for node in graph.graph.node if node.op_type == "Reshape"]
    assert targets[:2] == ["swapped", "kept"]
    assert targets[2] != "kept"

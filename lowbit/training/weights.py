"""The plain state dict that training writes and every later stage reads."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import shown

WEIGHTS = "model_qat.pth"


def save_state(model: torch.nn.Module, folder: Path, name: str = WEIGHTS) -> None:
    """Write model_qat.pth, or another name: the plain state dict, loadable with weights_only."""
    torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()},
               folder / name)


# state that fake-quantization modules (ours and torch.ao's) leave in a state dict; the FP32 graph has no use for it
FAKE_QUANT_STATE = ("activation_post_process.", "weight_fake_quant.", "fake_quant_enabled", "observer_enabled",
                    ".quantizer.", ".quantizers.", ".log_scale")


def is_fake(name: str) -> bool:
    """Whether a tensor is the state of a fake-quantization module."""
    return any(part in name for part in FAKE_QUANT_STATE)


def load_weights(model: torch.nn.Module, path: Path) -> None:
    """Load a plain state dict (.pth or .safetensors) strictly.

    Fake-quant state is named and left out of a model that has none; any other mismatch is refused.
    """
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(
            path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{shown(path)} is not a plain state dict ({reason}): train again") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise UserError(f"{shown(path)} holds something else than a plain state dict (name -> tensor): train again")
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    simulates = any(map(is_fake, wanted))
    fake = [] if simulates else [name for name in state if is_fake(name)]
    if fake:
        print(f"  {len(fake)} fake-quantization tensors left out: {', '.join(fake[:3])}{' …' * (len(fake) > 3)}")
    state = {name: tensor for name, tensor in state.items() if name not in fake}
    given = {name: tuple(tensor.shape) for name, tensor in state.items()}
    wrong = sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
    if wrong:
        name = wrong[0]
        raise UserError(f"{shown(path)} does not fit config.json in {len(wrong)} tensors; the first is {name}: "
                        f"{given.get(name, 'absent')} in the file, {wanted.get(name, 'absent')} in the model")
    model.load_state_dict(state, strict=True)

"""Training on pictures: one loop for the FP32 network, its QAT and the FP32 control, resumed after a kill."""

import hashlib
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import atomic_folder, shown
from lowbit.pipeline.manifest import publish
from lowbit.training.checkpoints import fingerprint_of
from lowbit.vision.placement import pairs_of
from lowbit.vision.preprocessing import Preprocessing

SHIFT = 8  # a training picture is moved by at most a SHIFT-th of its side
SCALE_RATE = 0.1  # learning rate of the activation scales as a share of the weights'
SCORED = 64  # pictures at a time


def augmented(crops: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """uint8 [batch, size, size, 3], each mirrored by chance and moved by chance, what is uncovered black."""
    size = crops.shape[1]
    most = size // SHIFT
    padded = np.pad(crops, ((0, 0), (most, most), (most, most), (0, 0)))
    made = np.empty_like(crops)
    for place, (top, left, mirror) in enumerate(zip(*rng.integers(0, 2 * most + 1, (2, len(crops))),
                                                    rng.random(len(crops)) < 0.5, strict=True)):
        picture = padded[place, top : top + size, left : left + size]
        made[place] = picture[:, ::-1] if mirror else picture
    return made


@torch.no_grad()
def outputs_of(model: nn.Module, crops: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Logits [n, classes] in eval mode."""
    was_training = model.training
    model.eval()
    parts = [model(torch.from_numpy(preprocessing.inputs(crops[start : start + SCORED]))).numpy()
             for start in range(0, len(crops), SCORED)]
    model.train(was_training)
    return np.concatenate(parts)


def accuracy_of(model: nn.Module, split: tuple[np.ndarray, np.ndarray], preprocessing: Preprocessing) -> float:
    """Share of a split's pictures that a model labels right."""
    return float((outputs_of(model, split[0], preprocessing).argmax(-1) == split[1]).mean())


def _optimizer(model: nn.Module, rate: float, decay: float) -> torch.optim.Optimizer:
    """Adam: on a network with its BatchNorm folded, SGD of 0.005 gives numbers that are none, in FP32 too."""
    scales = [pair.scale for pair in pairs_of(model).values()]
    few = [parameter for name, parameter in model.named_parameters() if name.endswith("log_scale")]
    known = {id(parameter) for parameter in (*scales, *few)}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in known]
    matrices, vectors = ([p for p in rest if (p.ndim > 1) == wanted] for wanted in (True, False))
    groups: list[dict] = [{"params": matrices, "weight_decay": decay}, {"params": vectors}, {"params": few},
              {"params": scales, "lr": rate * SCALE_RATE}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=rate, weight_decay=0.0)


class Training:
    """One phase of a run: the network, its data and what a checkpoint holds of it."""

    def __init__(self, model: nn.Module, data: dict, preprocessing: Preprocessing, s: dict, phase: str,
                 live_norm: bool):
        model.to(memory_format=torch.channels_last)  # steps are faster on a CPU
        self.model, self.data, self.preprocessing, self.phase, self.s = model, data, preprocessing, phase, s
        self.live_norm = live_norm  # BatchNorm by the batch's own statistics, as in a first training
        self.epochs, self.rate = s["epochs"], s["rate"]
        self.optimizer = _optimizer(model, self.rate, s["decay"])
        self.rng = np.random.default_rng(s["seed"])
        torch.manual_seed(s["seed"])  # of dropout
        self.best_state: dict[str, torch.Tensor] = {}
        self.best, self.epoch, self.history = -1.0, 0, []

    def step_rate(self, share: float) -> float:
        """Learning rate as a share of its peak: a cosine from 1 to 0, a first twentieth of warm-up."""
        return min(share * 20 + 0.05, 1.0) * 0.5 * (1 + math.cos(math.pi * share))

    def run_epoch(self) -> float:
        """One pass over train; returns its mean loss."""
        crops, labels = self.data["train"]
        order, size = self.rng.permutation(len(crops)), self.s["batch"]
        steps, total = math.ceil(len(order) / size), 0.0
        self.model.train(self.live_norm)
        base = [group.setdefault("peak", group["lr"]) for group in self.optimizer.param_groups]
        for step in range(steps):
            chosen = order[step * size : (step + 1) * size]
            if self.live_norm and len(chosen) < 2:
                continue  # BatchNorm takes no batch of one
            share = (self.epoch * steps + step) / (self.epochs * steps)
            for group, peak in zip(self.optimizer.param_groups, base, strict=True):
                group["lr"] = peak * self.step_rate(share)
            pixels = torch.from_numpy(self.preprocessing.inputs(augmented(crops[chosen], self.rng)))
            loss = functional.cross_entropy(self.model(pixels), torch.from_numpy(labels[chosen]))
            if not torch.isfinite(loss):
                raise UserError(f"the loss of {self.phase} is {loss.item()} in epoch {self.epoch + 1}: lower the "
                                "learning rate")
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total += loss.item() * len(chosen)
        return total / len(order)

    def finish_epoch(self, loss: float, seconds: float) -> None:
        """Score on valid, keep the best weights, say so."""
        refuse_lost_scales(self.model)
        found = accuracy_of(self.model, self.data["valid"], self.preprocessing)
        self.epoch += 1
        self.history.append({"epoch": self.epoch, "loss": loss, "valid_accuracy": found})
        print(f"  {self.phase} epoch {self.epoch}/{self.epochs}  loss {loss:.4f}  valid accuracy {100 * found:.2f} %  "
              f"{seconds:.0f} s", flush=True)
        if found >= self.best:
            self.best = found
            self.best_state = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def held(self, fingerprint: str) -> dict:
        """What a checkpoint holds."""
        return {"fingerprint": fingerprint, "epoch": self.epoch, "best": self.best, "best_state": self.best_state,
                "state": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
                "rng": json.dumps(self.rng.bit_generator.state), "dropout": torch.get_rng_state(),
                "history": json.dumps(self.history)}

    def resume(self, held: dict) -> None:
        """Go on from a checkpoint."""
        self.model.load_state_dict(held["state"])
        self.optimizer.load_state_dict(held["optimizer"])
        self.rng.bit_generator.state = json.loads(held["rng"])
        torch.set_rng_state(held["dropout"])
        self.epoch, self.best, self.best_state = held["epoch"], held["best"], held["best_state"]
        self.history = json.loads(held["history"])


def refuse_lost_scales(model: nn.Module) -> None:
    """Raise UserError, naming the first, if training has driven a scale to zero or below."""
    for name, pair in pairs_of(model).items():
        if not pair.scale > 0:
            raise UserError(f"training drove the scale of {name} to {pair.scale.item():.3g}: lower the learning rate")


def train(model: nn.Module, data: dict, preprocessing: Preprocessing, s: dict, phase: str, folder: Path,
          live_norm: bool = False) -> list[dict]:
    """Train in place, the weights of the best epoch on valid kept; returns loss and valid accuracy of each epoch.

    `data` maps train and valid to (crops, labels); `s` holds epochs, rate, decay, batch, seed. A checkpoint
    `checkpoint_<phase>.pth` in `folder` of this very training is gone on from; any other is written over.
    """
    training = Training(model, data, preprocessing, s, phase, live_norm)
    path = folder / f"checkpoint_{phase}.pth"
    content = hashlib.sha256(b"".join(part.tobytes() for split in data.values() for part in split)).hexdigest()
    fingerprint = fingerprint_of({**s, "phase": phase, "data": content}, [], model)
    if path.exists():
        try:
            held = torch.load(path, map_location="cpu", weights_only=True)
        except Exception:  # cut short, or no checkpoint: nothing to go on from
            held = {}
        if held.get("fingerprint") == fingerprint:
            print(f"  resuming {phase} from epoch {held['epoch']} ({shown(path)})")
            training.resume(held)
    while training.epoch < training.epochs:
        started = time.monotonic()
        loss = training.run_epoch()
        training.finish_epoch(loss, time.monotonic() - started)
        with atomic_folder(folder) as scratch:
            torch.save(training.held(fingerprint), scratch / path.name)
            publish(scratch)
    if training.best_state:
        model.load_state_dict(training.best_state)
    model.eval()
    return training.history

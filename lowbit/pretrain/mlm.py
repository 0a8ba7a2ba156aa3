"""The masked-language training loop that pretraining and adapting share: phases of batches, checkpoints, held-out loss.

The rate is constant until the last phase and falls to zero in it. A run that was killed goes on from its last
checkpoint with the batches and masks that it would have had: both are drawn from the number of the step. So a
checkpoint of an earlier phase also serves a run that is to be longer or shorter.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import atomic_folder, shown
from lowbit.pipeline.manifest import publish
from lowbit.pipeline.settings import check
from lowbit.pretrain.masking import mask_words, predicted_positions
from lowbit.pretrain.stream import Phase
from lowbit.training.fine_tune import autocast_dtype

CHECKPOINT = "checkpoint.pt"
HELD_OUT_MASKED = 0.15  # share of words that the held-out loss predicts
LENGTHS = ("GENERAL_STEPS", "DOMAIN_STEPS")  # settings that leave no trace before the rate falls


@dataclass
class Vocabulary:
    """What masking needs: ids below `special`, and `mask_id`, stand for no word; starts_word [size] says of each id."""

    starts_word: torch.Tensor
    special: int
    mask_id: int

    def masked(self, ids: np.ndarray, probability: float, seed: tuple[int, int]):
        """(input, ids, chosen, generator) of a batch, the same for the same seed."""
        generator = torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        ids = torch.from_numpy(ids)
        masked, chosen = mask_words(ids, self.starts_word, self.special, self.mask_id, probability, generator)
        return masked, ids, chosen, generator


def check_settings(s: dict) -> None:
    """Refuse values that cannot train, each with one sentence."""
    for name in ("TOKENS_PER_STEP", "LEARNING_RATE", "CHECKPOINT_STEPS"):
        check(s[name] > 0, f"{name} is {s[name]}; it must be above 0")
    for name in ("NUM_STEPS", "DOMAIN_STEPS"):
        check(s.get(name, 1) > 0, f"{name} is {s.get(name)}; it must be above 0: the rate falls in these steps")
    for name in ("WARMUP_STEPS", "GENERAL_STEPS", "SEED"):
        check(s.get(name, 0) >= 0, f"{name} is {s.get(name)}; it must be 0 or more")
    check(0 < s["MASK_PROBABILITY"] < 1, f"MASK_PROBABILITY is {s['MASK_PROBABILITY']}; it must be between 0 and 1")


def loss_function(model):
    """(input, ids, flat positions to predict) -> mean cross-entropy, in the device's short arithmetic."""
    device, dtype = model.device.type, autocast_dtype()

    def loss_of(masked, ids, positions):
        with torch.autocast(device, dtype or torch.bfloat16, enabled=dtype is not None):
            hidden = model.base_model(input_ids=masked).last_hidden_state
            logits = model.cls(hidden.view(-1, hidden.shape[-1])[positions])
        return cross_entropy(logits.float(), ids.view(-1)[positions])

    return loss_of


def rate(step: int, falls_from: int, total: int, warmup: int) -> float:
    """Share of the peak rate at a step: linear up over `warmup` steps, linear down to zero after `falls_from`."""
    return min(1.0, (step + 1) / (warmup + 1), (total - step) / (total - max(falls_from, min(warmup, total - 1))))


def held_out_losses(model, loss_of, phases: list[Phase], vocabulary: Vocabulary) -> list[float]:
    """The loss on each phase's held-out rows, masked the same way every time."""
    model.eval()
    found = []
    with torch.no_grad():
        for phase in phases:
            losses = []
            for number, ids in enumerate(np.array_split(phase.held_out, max(1, len(phase.held_out) // 64))):
                masked, ids, chosen, _ = vocabulary.masked(ids.astype(np.int64), HELD_OUT_MASKED, (0, number))
                positions = chosen.view(-1).nonzero().squeeze(1)
                if len(positions):
                    losses.append(loss_of(masked.to(model.device), ids.to(model.device), positions.to(model.device)))
            found.append(torch.stack(losses).mean().item())
    model.train()
    return found


def optimiser_of(model, s: dict) -> torch.optim.AdamW:
    """AdamW; matrices decay, biases and LayerNorms do not."""
    groups = [{"params": [p for p in model.parameters() if (p.ndim > 1) == matrix], "weight_decay": decay}
              for matrix, decay in ((True, s["WEIGHT_DECAY"]), (False, 0.0))]
    return torch.optim.AdamW(groups, s["LEARNING_RATE"], betas=(0.9, 0.98), fused=True)


def continues(saved: dict, s: dict, falls_from: int) -> bool:
    """Whether a run of settings `s`, whose rate falls from that step on, passes through the saved checkpoint."""
    lengths = [name for name in s if name in LENGTHS]
    early = saved["step"] <= min(falls_from, saved["falls_from"])
    return all(saved["settings"].get(name) == value for name, value in s.items() if not (early and name in lengths))


def train_masked(model, phases: list[Phase], vocabulary: Vocabulary, s: dict, out: Path) -> list[dict]:
    """Train a ...ForMaskedLM in place, on a GPU where there is one; returns the losses at each checkpoint.

    `s` are the script's settings, TEXT, which says what text the phases are made of, and READ, the digests of the
    weights that `model` starts from: a checkpoint made with others is refused. It lies in `out` until the caller
    deletes it, which it does when its results are written.
    """
    model.to("cuda" if torch.cuda.is_available() else "cpu").train()
    total, optimiser = sum(phase.steps for phase in phases), optimiser_of(model, s)
    falls_from = total - phases[-1].steps
    path, step, history = out / CHECKPOINT, 0, []
    if path.exists():
        saved = read_checkpoint(path, model.device)
        check(continues(saved, s, falls_from), f"{shown(path)} was made with other settings, text or weights: delete "
                                               "it to start again, or set them back to go on")
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        step, history = saved["step"], saved["history"]
        print(f"resuming from step {step}", flush=True)
    loss_of = loss_function(model)
    compiled = torch.compile(loss_of) if s["COMPILE"] else loss_of
    losses, started, begun, bar = [], time.monotonic(), 0, tqdm(total=total, initial=step, unit="step", disable=None)
    for phase in phases:
        size = max(1, s["TOKENS_PER_STEP"] // phase.length)
        batches = phase.mixture.batches(phase.length, size, max(0, step - begun))
        count = max(1, round(size * phase.length * s["MASK_PROBABILITY"]))
        begun += phase.steps
        while step < begun:
            masked, ids, chosen, generator = vocabulary.masked(next(batches), s["MASK_PROBABILITY"], (s["SEED"], step))
            positions = predicted_positions(chosen, count, generator)
            for group in optimiser.param_groups:
                group["lr"] = s["LEARNING_RATE"] * rate(step, falls_from, total, s["WARMUP_STEPS"])
            loss = compiled(masked.to(model.device), ids.to(model.device), positions.to(model.device))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
            losses.append(loss.detach())
            step += 1
            bar.update()
            if step % s["CHECKPOINT_STEPS"] == 0 or step == total:
                held = held_out_losses(model, loss_of, phases, vocabulary)
                history.append({"step": step, "loss": torch.stack(losses).mean().item(), "held_out": held})
                losses.clear()
                print(f"step {step}/{total}  loss {history[-1]['loss']:.4f}  held-out "
                      + ", ".join(f"{loss:.4f}" for loss in held) + f"  {time.monotonic() - started:.0f} s", flush=True)
                save_checkpoint(out, {"settings": s, "model": model.state_dict(), "optimiser": optimiser.state_dict(),
                                      "step": step, "history": history, "falls_from": falls_from})
    bar.close()
    return history


def read_checkpoint(path: Path, device: torch.device) -> dict:
    """What save_checkpoint() wrote; raises UserError for a file that is damaged."""
    try:
        return torch.load(path, weights_only=True, map_location=device)
    except Exception as error:  # of torch, pickle or zipfile, by what is broken
        raise UserError(f"{shown(path)} does not load as a checkpoint ({type(error).__name__}): delete it to start "
                        "again") from error


def save_checkpoint(out: Path, state: dict) -> None:
    """Write the checkpoint whole or not at all."""
    with atomic_folder(out) as scratch:
        torch.save(state, scratch / CHECKPOINT)
        publish(scratch)

"""Training a student to be inside as its teacher is: hidden states, attention, relations, then what both say.

Two steps, as in TinyBERT: the intermediate losses alone for the first epochs, then logits and labels. Or all at once.
Losses are computed in FP32, whatever the steps are computed in. Formulas: losses.py.
"""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from lowbit.distill.augment import augmented
from lowbit.distill.inside import Inside
from lowbit.distill.losses import INTERMEDIATE, attention_loss, embedding_loss, hidden_loss, relation_loss
from lowbit.distill.places import WEIGHTS
from lowbit.training.distillation import soft_loss
from lowbit.training.encoder import load_run
from lowbit.training.fine_tune import FineTuner
from lowbit.training.first_token import choose_first_token_only
from lowbit.training.weights import load_weights

FIT = "to_teacher"  # name of the learned map between the widths: part of a training, not of what it writes


@dataclass
class Following:
    """What a student follows and how. `layer_map` holds the teacher's layer of each of the student's, from 1.

    `intermediate_epochs` come first, on the intermediate losses alone; 0 trains all losses at once. `copies` of each
    text of train, with words replaced by near ones of the teacher's, are read beside it.
    """

    teacher: nn.Module
    losses: list[str]
    layer_map: list[int]
    relation_heads: int
    temperature: float
    intermediate_epochs: float
    copies: int
    replaced: float
    seed: int

    def now(self, epoch: float) -> list[str]:
        """The losses of a step."""
        if not self.intermediate_epochs:
            return self.losses
        return [name for name in self.losses if (name in INTERMEDIATE) == (epoch < self.intermediate_epochs)]


def load_trained(folder: Path, every_token: bool) -> nn.Module:
    """A trained model of a run's folder; `every_token`: also where it was trained to compute its last layer for [CLS].
    """
    model = load_run(folder)
    if every_token:
        model = type(model)(model.config).eval()
    load_weights(model, folder / WEIGHTS)
    model.set_attn_implementation("sdpa")
    return model


def add_fit(student: nn.Module, teacher_width: int, channels: list[int] | None) -> None:
    """Give the student the map between the widths: it starts as the channels that were cut out, or at random."""
    fit = nn.Linear(student.config.hidden_size, teacher_width, bias=False)
    if channels:
        with torch.no_grad():
            fit.weight.zero_()
            fit.weight[channels, range(len(channels))] = 1.0
    student.add_module(FIT, fit)


def save_student(student: nn.Module, folder: Path, shorten: bool) -> None:
    """Write a trained student without the map; `shorten`: if no logit changes, it computes its last layer for [CLS].

    """
    state = {name: tensor for name, tensor in student.state_dict().items() if not name.startswith(f"{FIT}.")}
    if shorten:
        bare = type(student)(copy.deepcopy(student.config)).eval()
        bare.load_state_dict(state)
        choose_first_token_only(bare, True)
        student.config.first_token_only = bare.config.first_token_only
    student.save_pretrained(folder, state_dict=state)


class Follower(FineTuner):
    """FineTuner whose model follows `following.teacher`; make a class of it with follower()."""

    following: Following

    def __init__(self, *args, **kwargs):
        f = self.following
        if f.copies:
            kwargs["train_dataset"] = augmented(kwargs["train_dataset"], f.teacher, kwargs["processing_class"],
                                                f.copies, f.replaced, f.seed)
        super().__init__(*args, **kwargs)
        self.unfit_epochs = f.intermediate_epochs  # until then nothing has trained the classifier
        f.teacher.requires_grad_(False).eval().to(self.args.device)
        watched = set(f.losses) & set(INTERMEDIATE)
        self.ours, self.theirs = (Inside(self.model), Inside(f.teacher)) if watched else (None, None)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs.pop("labels")
        names = self.following.now(self.state.epoch or 0.0)
        outputs = model(**inputs)
        wanted = None
        if set(names) != {"labels"}:
            with torch.no_grad():
                wanted = self.following.teacher(**inputs).logits.float()
        with torch.autocast(self.args.device.type, enabled=False):
            loss = sum((self.loss_of(name, outputs.logits.float(), wanted, labels, inputs["attention_mask"])
                        for name in names), torch.zeros((), device=labels.device))
        return (loss, outputs) if return_outputs else loss

    def loss_of(self, name: str, logits, wanted, labels, mask) -> torch.Tensor:
        """One of the losses, in FP32."""
        f = self.following
        if name == "labels":
            return mse_loss(logits.squeeze(-1), labels.float()) if logits.shape[-1] == 1 else cross_entropy(
                logits, labels)
        if name == "logits":
            return soft_loss(logits, wanted, f.temperature)
        if name == "attention":
            return attention_loss(self.ours, self.theirs, mask, f.layer_map)
        if name == "relation":
            return relation_loss(self.ours, self.theirs, mask, f.relation_heads)
        fit = getattr(self.model, FIT)
        if name == "embedding":
            return embedding_loss(self.ours, self.theirs, fit, mask)
        return hidden_loss(self.ours, self.theirs, fit, mask, f.layer_map)


def follower(following: Following) -> type[Follower]:
    """The class that fine_tune() takes as trainer_class."""
    return type("Follower", (Follower,), {"following": following})

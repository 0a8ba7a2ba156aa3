"""One small model from many larger ones: it learns their probabilities on labelled and on unlabelled texts.

loss = KL(teachers || student) at `temperature`, times temperature**2                     every text
     + hard_weight * cross-entropy with the label                                        labelled texts
     + hidden_weight * (1 - cosine of the student's [CLS] and the teachers' vector)      every text, if they have one

Hinton, Vinyals, Dean 2015 (arXiv:1503.02531); vectors in the manner of Romero et al. 2015 (arXiv:1412.6550).
"""

import hashlib
import json
from dataclasses import dataclass, field

import numpy as np
import torch
from datasets import Dataset
from torch.nn.functional import cosine_similarity

from lowbit.data.tokens import Row
from lowbit.data.unlabelled import NO_LABEL
from lowbit.distill.rates import LayerwiseTuner
from lowbit.training.distillation import label_loss, soft_loss
from lowbit.training.labelled import to_dataset

PLACE = "place"  # column: which row of the taught arrays a text has


@dataclass
class Taught:
    """Texts as token rows with what teachers say of them; those of DATA_DIR's train come first, in its order.

    `logits` [texts, labels] are the teachers' mean; `vectors` [texts, the student's width] their sentence vectors, or
    None. `labelled` texts have labels, and each is read `repeats` times a pass.
    """

    logits: np.ndarray
    labelled: int
    unlabelled_rows: list[Row] = field(default_factory=list)
    vectors: np.ndarray | None = None
    repeats: int = 1

    def digest(self) -> str:
        """SHA-256 of all of it: a student that was taught otherwise is another one."""
        digest = hashlib.sha256(json.dumps([self.labelled, self.repeats, self.unlabelled_rows]).encode())
        for array in (self.logits, self.vectors):
            digest.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def taught_dataset(train: Dataset, taught: Taught) -> Dataset:
    """Train's rows, `repeats` times, and the unlabelled ones, each with its place in the taught arrays."""
    if len(train) != taught.labelled or len(train) + len(taught.unlabelled_rows) != len(taught.logits):
        raise RuntimeError(f"{len(train)} labelled and {len(taught.unlabelled_rows)} other texts, but logits of "
                           f"{len(taught.logits)}")
    labelled = train.to_dict() | {PLACE: list(range(len(train)))}
    both = {name: values * taught.repeats for name, values in labelled.items()}
    if taught.unlabelled_rows:
        count = len(taught.unlabelled_rows)
        extra = to_dataset(taught.unlabelled_rows, [NO_LABEL] * count).to_dict()
        extra[PLACE] = list(range(len(train), len(train) + count))
        both = {name: values + extra[name] for name, values in both.items()}
    return Dataset.from_dict(both)


class Distiller(LayerwiseTuner):
    """FineTuner that learns what `taught` says; make a class of it with distiller()."""

    taught: Taught
    temperature = 1.0
    hard_weight = 0.5
    hidden_weight = 0.0

    def __init__(self, *args, **kwargs):
        kwargs["train_dataset"] = taught_dataset(kwargs["train_dataset"], self.taught)
        kwargs["args"].remove_unused_columns = False  # the model does not know the column PLACE, the loss does
        super().__init__(*args, **kwargs)
        self.logits = torch.from_numpy(np.asarray(self.taught.logits, np.float32)).to(self.args.device)
        if self.hidden_weight:
            self.vectors = torch.from_numpy(np.asarray(self.taught.vectors, np.float32)).to(self.args.device)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        place = inputs.pop(PLACE, None)
        if place is None or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs.pop("labels")
        outputs = model(**inputs, output_hidden_states=bool(self.hidden_weight))
        logits = outputs.logits.float()
        loss = soft_loss(logits, self.logits[place], self.temperature)
        loss = loss + self.hard_weight * label_loss(logits, labels, self.label_smoothing)
        if self.hidden_weight:
            first = outputs.hidden_states[-1][:, 0].float()
            loss = loss + self.hidden_weight * (1 - cosine_similarity(first, self.vectors[place], dim=-1)).mean()
        return (loss, outputs) if return_outputs else loss


def distiller(taught: Taught, **settings) -> type[Distiller]:
    """The class that fine_tune() takes as trainer_class, with its data and settings (temperature, hard_weight, …)."""
    return type("Distiller", (Distiller,), {"taught": taught, **settings})

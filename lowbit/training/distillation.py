"""Following a teacher: the loss of a model that is trained on another's outputs beside the labels.

    loss = T**2 * KL(softmax(teacher / T) || softmax(logits / T)) + label_weight * label loss           labels
    loss = (logits - teacher)**2 + label_weight * label loss                                            a number

A text without a label follows the teacher alone; the mean of either loss is over all texts of a step.
Hinton, Vinyals and Dean 2015, arXiv:1503.02531.
"""

import math

import torch
from torch import nn
from torch.nn import functional

from lowbit.data.unlabelled import NO_LABEL
from lowbit.pipeline.settings import check
from lowbit.training.fine_tune import FineTuner

TEMPERATURE = 2.0  # of the softmax that both distributions are compared through


class Distiller(FineTuner):
    """A FineTuner whose model follows `teacher`.

    follower() makes a class for one training, whose teacher is set before the trainer is made. The epoch of least loss
    on valid is kept: fewer texts tell how far outputs lie apart than how many labels are right.
    """

    teacher: nn.Module
    label_weight: float
    by_loss = True

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.teacher.requires_grad_(False).eval().to(self.args.device)

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        """The loss above, where scores are taken as well."""
        given = {name: value for name, value in inputs.items() if name != "labels"}
        with torch.no_grad():
            wanted = self.teacher(**given).logits.float()
        outputs = model(**given)
        logits = outputs.logits.float()
        loss = soft_loss(logits, wanted, TEMPERATURE) + self.label_weight * label_loss(logits, inputs["labels"])
        return (loss, outputs) if return_outputs else loss


def follower(label_weight: float) -> type[Distiller]:
    """A trainer class of its own: setting its `teacher` changes no other training's."""
    check(0 <= label_weight < math.inf, f"LABEL_WEIGHT is {label_weight}; it must be 0 or more and finite")
    return type("Follower", (Distiller,), {"label_weight": label_weight})


def label_loss(logits: torch.Tensor, answers: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    """Mean over a step's texts of cross-entropy, or of a number's squared error; 0 for a text without an answer."""
    if answers.is_floating_point():
        known = ~answers.isnan()
        errors = functional.mse_loss(logits[known].squeeze(-1), answers[known], reduction="sum")
    else:
        errors = functional.cross_entropy(logits, answers, ignore_index=NO_LABEL, reduction="sum",
                                          label_smoothing=smoothing)
    return errors / len(answers)


def soft_loss(logits: torch.Tensor, wanted: torch.Tensor, temperature: float) -> torch.Tensor:
    """Loss of outputs [batch, outputs] against the teacher's: divergence of the labels, squared error of a number."""
    if logits.shape[-1] == 1:
        return functional.mse_loss(logits, wanted)
    divergence = functional.kl_div((logits / temperature).log_softmax(-1), (wanted / temperature).log_softmax(-1),
                                   log_target=True, reduction="batchmean")
    return temperature**2 * divergence


def drop_nothing(model: nn.Module) -> None:
    """Turn dropout off in training, in place; the configuration that is saved keeps its rates."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0

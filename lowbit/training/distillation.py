"""Following a teacher: the loss of a model that is trained on another's outputs beside the labels.

    loss = T**2 * KL(softmax(teacher / T) || softmax(logits / T)) + label_weight * label loss           labels
    loss = (logits - teacher)**2 + label_weight * label loss                                            a number

Hinton, Vinyals and Dean 2015, arXiv:1503.02531.
"""

import torch
from torch import nn
from torch.nn import functional

from lowbit.training.fine_tune import FineTuner

TEMPERATURE = 2.0  # of the softmax that both distributions are compared through


class Distiller(FineTuner):
    """A FineTuner whose model follows `teacher`; without one it learns from the labels alone.

    follower() makes a class for one training, whose teacher is set before the trainer is made.
    """

    teacher: nn.Module | None = None
    label_weight = 0.5

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        if self.teacher is not None:
            self.teacher.requires_grad_(False).eval().to(self.args.device)

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        """The loss above in training, the label loss alone where a score is taken."""
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        if self.teacher is not None and model.training:
            with torch.no_grad():
                given = {name: value for name, value in inputs.items() if name != "labels"}
                wanted = self.teacher(**given).logits.float()
            loss = soft_loss(outputs.logits.float(), wanted, TEMPERATURE) + self.label_weight * loss
        return (loss, outputs) if return_outputs else loss


def follower() -> type[Distiller]:
    """A trainer class of its own: setting its `teacher` changes no other training's."""
    return type("Follower", (Distiller,), {})


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

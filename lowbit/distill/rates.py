"""Fine-tuning with lower rates in lower layers: what pretraining left there is general, and is changed the least."""

import re

import torch

from lowbit.pipeline.settings import check
from lowbit.training.fine_tune import FineTuner

LAYER = re.compile(r"\.layer\.(\d+)\.")


def depth(name: str, layers: int) -> int:
    """Layers below a parameter: 0 for embeddings, its number from 1 inside the encoder, layers + 1 for the head."""
    found = LAYER.search(name)
    if found:
        return int(found[1]) + 1
    return 0 if "embeddings" in name else layers + 1


class LayerwiseTuner(FineTuner):
    """FineTuner whose rate falls by the factor `layer_decay` a layer, from the head down to the embeddings.

    Howard and Ruder 2018 (arXiv:1801.06146), section 3.2, with one factor for every layer. `label_smoothing` spreads
    that share of each label over all of them (Szegedy et al. 2016, arXiv:1512.00567).
    """

    layer_decay = 1.0
    label_smoothing = 0.0

    def create_optimizer(self, model=None):
        model = self.model if model is None else model
        if self.optimizer is None:
            layers = model.config.num_hidden_layers
            check(self.layer_decay == 1 or any(map(LAYER.search, dict(model.named_parameters()))),
                  "LAYER_DECAY must be 1 for this encoder: its layers share their weights")
            decaying, groups = set(self.get_decay_parameter_names(model)), {}
            for name, parameter in model.named_parameters():
                groups.setdefault((depth(name, layers), name in decaying), []).append(parameter)
            self.optimizer = torch.optim.AdamW([
                {"params": parameters, "weight_decay": self.args.weight_decay if decays else 0.0,
                 "lr": self.args.learning_rate * self.layer_decay ** (layers + 1 - level)}
                for (level, decays), parameters in groups.items()], lr=self.args.learning_rate, fused=True)
        return self.optimizer

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if not (self.label_smoothing and model.training):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = torch.nn.functional.cross_entropy(outputs.logits.float(), labels, label_smoothing=self.label_smoothing)
        return (loss, outputs) if return_outputs else loss

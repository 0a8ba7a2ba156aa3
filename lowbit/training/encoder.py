"""Loading an encoder and its tokenizer: from a folder, or from the hub at a pinned revision."""

from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from lowbit.data.cleaning import PRESETS
from lowbit.data.tokens import PREPROCESSING, load_text_settings
from lowbit.data.tsv import LABELS
from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import ROOT, resolve, shown, write_json

transformers.utils.logging.disable_progress_bar()  # weight files load in a second

BUNDLED = "models/bert-mini-id"


def load_pretrained(name: str, revision: str, num_labels: int):
    """(model, tokenizer): FP32, a sequence classifier with our label names, never with remote code.

    `name` is a folder (from the project's root or absolute) or a hub name, read at `revision`.
    Raises UserError when neither gives a model.
    """
    folder = resolve(name)
    local = folder.is_dir()
    if not local and (name.startswith((".", "/", "~")) or name.count("/") != 1 or (ROOT / name.split("/")[0]).is_dir()):
        raise UserError(f"MODEL_NAME {name!r}: there is no folder {shown(folder)}; "
                        f"the bundled encoder is {BUNDLED}")
    source = {"pretrained_model_name_or_path": str(folder) if local else name}
    if not local:
        source["revision"] = revision or "main"
    names = {"num_labels": num_labels}
    if num_labels == len(LABELS):
        names |= {"id2label": dict(enumerate(LABELS)), "label2id": {label: i for i, label in enumerate(LABELS)}}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**source)
        model, loaded = AutoModelForSequenceClassification.from_pretrained(
            **source, **names, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if local:
            raise UserError(f"MODEL_NAME {name!r}: {shown(folder)} does not load as a sequence classifier "
                            f"({str(error).splitlines()[0]}); the bundled encoder is {BUNDLED}") from error
        raise UserError(f"MODEL_NAME {name!r} is not a folder here and could not be fetched from the hub at revision "
                        f"{source['revision'][:12]} (no network, no such model, or none cached); "
                        f"the bundled encoder needs neither: --model-name {BUNDLED}") from error
    # only the head is new; an encoder whose own weights do not fit would be trained from noise
    names = [entry if isinstance(entry, str) else entry[0]
             for kind in ("missing_keys", "mismatched_keys") for entry in loaded[kind]]
    wrong = [weight for weight in names if not any(part in weight for part in ("classifier", "pooler"))]
    if wrong:
        raise UserError(f"MODEL_NAME {name!r}: the weights in {shown(folder) if local else name} do not fit its "
                        f"config.json in {len(wrong)} tensors, the first is {wrong[0]}; take a whole copy of the model")
    tokenizer.model_max_length = model.config.max_position_embeddings
    return model, tokenizer


def save_run(folder: Path, model, tokenizer, cleaning: str, max_length: int) -> None:
    """Write what load_run reads: config.json, the tokenizer's files, preprocessing.json."""
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_json(folder / PREPROCESSING, {"cleaning": cleaning, "steps": PRESETS[cleaning], "max_length": max_length,
                                        "labels": list(LABELS)})


def load_run(folder: Path):
    """(empty FP32 model, tokenizer, preprocessing settings) of a run's folder, as the training stage saved them."""
    config = AutoConfig.from_pretrained(folder)
    config._attn_implementation = "eager"  # plain MatMul, Softmax: the graph that quantizes
    model = AutoModelForSequenceClassification.from_config(config)
    return model.eval(), *load_text_settings(folder)



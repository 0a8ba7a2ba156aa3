"""Loading an encoder and its tokenizer: from a folder, or from the hub at a pinned revision."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from lowbit.data.cleaning import PRESETS
from lowbit.data.task import TASK_FILE, Task
from lowbit.data.tokens import PREPROCESSING, TOKENIZER_FILES, TextReader
from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import ROOT, resolve, shown, write_json
from lowbit.training.first_token import read_first_token_only

BUNDLED = "models/bert-mini-id"
PRETRAINING = "pretraining.json"  # in the folder of an encoder that pretrain/ made: how, and that its head is new
MODEL_FORMS = (".safetensors", ".bin", ".json", ".txt", ".model")  # weights, configuration, words
HUB_ERRORS = (OSError, ValueError, KeyError, RuntimeError, SafetensorError)  # of a name that gives no model
RUN_FILES = ("config.json", PREPROCESSING, TASK_FILE, *TOKENIZER_FILES)  # what a run's model is, its weights aside


def head_settings(task: Task) -> dict:
    """What a model's configuration says of its head: number and names of labels, kind of problem."""
    if task.labels is None:
        return {"num_labels": 1, "problem_type": "regression"}
    return {"num_labels": len(task.labels), "problem_type": "single_label_classification",
            "id2label": dict(enumerate(task.labels)), "label2id": {label: i for i, label in enumerate(task.labels)}}


def model_files(name: str) -> list[Path]:
    """The files of a local model's folder that load_pretrained() may read; none for a hub name."""
    folder = resolve(name)
    return sorted(path for path in folder.iterdir() if path.suffix in MODEL_FORMS) if folder.is_dir() else []


def load_pretrained(name: str, revision: str, task: Task, setting: str = "MODEL_NAME"):
    """(model, tokenizer): FP32, a sequence classifier (or regressor) for `task`, never with remote code.

    `model.untrained` lists the weights that the folder did not hold, held for other labels, or holds as drawn.

    `name` is a folder (from the project's root or absolute) or a hub name, read at `revision`.
    Raises UserError, naming the `setting` that holds it, when neither gives a model.
    """
    folder = resolve(name)
    local = folder.is_dir()
    if not local and (name.startswith((".", "/", "~")) or name.count("/") != 1 or (ROOT / name.split("/")[0]).is_dir()):
        raise UserError(f"{setting} {name!r}: there is no folder {shown(folder)}; "
                        f"the bundled encoder is {BUNDLED}")
    source = {"pretrained_model_name_or_path": str(folder) if local else name}
    if not local:
        source["revision"] = revision or "main"
    logging.disable_progress_bar()  # weight files load and are written in a second
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what is new is checked and said below
    try:
        before = AutoConfig.from_pretrained(**source).id2label
        tokenizer = AutoTokenizer.from_pretrained(**source)
        model, loaded = AutoModelForSequenceClassification.from_pretrained(
            **source, **head_settings(task), dtype=torch.float32, ignore_mismatched_sizes=True,
            output_loading_info=True)
    except Exception as error:  # of five libraries, by what is broken
        if local:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"{setting} {name!r}: {shown(folder)} does not load as a sequence classifier ({reason}); "
                            f"the bundled encoder is {BUNDLED}") from error
        if not isinstance(error, HUB_ERRORS):
            raise
        raise UserError(f"{setting} {name!r} is not a folder here and could not be fetched from the hub at revision "
                        f"{source['revision'][:12]} (no network, no such model, or none cached); "
                        f"the bundled encoder needs neither: --model-name {BUNDLED}") from error
    finally:
        logging.set_verbosity(verbosity)
    # only the head is new; an encoder whose own weights do not fit would be trained from noise
    names = [entry if isinstance(entry, str) else entry[0]
             for kind in ("missing_keys", "mismatched_keys") for entry in loaded[kind]]
    wrong = [weight for weight in names if not any(part in weight for part in ("classifier", "pooler"))]
    if wrong:
        raise UserError(f"{setting} {name!r}: the weights in {shown(folder) if local else name} do not fit its "
                        f"config.json in {len(wrong)} tensors, the first is {wrong[0]}; take a whole copy of the model")
    known = [before[i] for i in sorted(before)]
    if not names and task.labels and known != list(task.labels) and not known[0].startswith("LABEL_"):
        names = renew_head(model)  # it was trained to tell other labels apart
    if not names and local and (folder / PRETRAINING).exists():  # it brings one head, so that all seeds start alike
        names = [name for name, _ in model.named_parameters() if name.startswith("classifier")]
    model.untrained = names  # a teacher must have none
    if names:
        print(f"  new, not trained yet: {', '.join(names)}")
    tokenizer.model_max_length = longest_input(model)
    return model, tokenizer


def longest_input(model) -> int:
    """How many tokens the model can read: RoBERTa's kind counts positions from its padding id + 1."""
    positions = model.config.max_position_embeddings
    tables = [module for name, module in model.named_modules() if name.endswith("position_embeddings")]
    offset = next((table.padding_idx + 1 for table in tables if getattr(table, "padding_idx", None) is not None), 0)
    return positions - offset


def renew_head(model) -> list[str]:
    """Draw the weights outside the encoder anew, in place, as if no head had ever been trained; returns their names."""
    head = {name: tensor for name, tensor in model.named_parameters()
            if not name.startswith(f"{model.base_model_prefix}.")}
    for tensor in head.values():
        if tensor.ndim > 1:
            torch.nn.init.normal_(tensor, std=model.config.initializer_range)
        else:
            torch.nn.init.zeros_(tensor)
    return list(head)


def save_run(folder: Path, model, reader: TextReader, task: Task) -> None:
    """Write what load_run and load_reader read: config.json, the tokenizer's files, preprocessing.json, task.json."""
    model.config.save_pretrained(folder)
    reader.tokenizer.save_pretrained(folder)
    write_json(folder / PREPROCESSING, {
        "cleaning": reader.cleaning, "steps": PRESETS[reader.cleaning], "max_length": reader.max_length,
        "inputs": reader.inputs, "labels": task.labels})
    write_json(folder / TASK_FILE, task.as_json())


def load_run(folder: Path):
    """The empty FP32 model of a run's folder, in eval mode, as the training stage saved it."""
    config = AutoConfig.from_pretrained(folder)
    config._attn_implementation = "eager"  # plain MatMul, Softmax: the graph that quantizes
    model = AutoModelForSequenceClassification.from_config(config).eval()
    if getattr(config, "first_token_only", False):  # absent from runs made before there was a choice
        read_first_token_only(model)
    return model

"""The page of one task: the matrix's own HTML, filled with teacher and students, and what each layer follows, pictured.
"""

from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

from lowbit.data.tokens import load_reader, pad
from lowbit.data.tsv import Text
from lowbit.distill.comparison import columns
from lowbit.distill.follow import load_trained
from lowbit.measure.html import inlined
from lowbit.ptq.advice import recommend
from lowbit.ptq.page import section
from lowbit.ptq.plots import style

CAPTIONS = {
    "accuracy_size": "Quality on test against the size of the file; the line joins the files that no smaller one "
                     "beats. FP32 is the teacher's.",
    "accuracy_latency": "Quality on test against median latency; the line joins the files that no faster one beats.",
    "latency_distributions": "Every measured run of every file.",
    "f1_per_class": "F1 of each label; the dotted lines are the FP32 teacher's.",
    "confusion_matrices": "Test labels: rows are true, columns predicted.",
    "predictions": "True and predicted number of each test text.",
}
MOST_TOKENS = 24  # of the text whose attention is drawn


@torch.inference_mode()
def attention_of(folder: Path, weights_every_token: bool, text: Text) -> tuple[list[np.ndarray], list[str]]:
    """(attention of each layer after the softmax, mean over heads [seq, seq]; the tokens) of a model for one text."""
    reader = load_reader(folder)
    model = load_trained(folder, weights_every_token)
    model.set_attn_implementation("eager")  # the one that tells its probabilities
    (row,) = reader.rows([text])
    given = {name: torch.from_numpy(value) for name, value in pad([row], reader.pad_id).items()}
    seen = model(**given, output_attentions=True).attentions
    return ([layer[0].mean(0).numpy() for layer in seen], reader.tokenizer.convert_ids_to_tokens(row["input_ids"]))


def shortest(texts: list[Text], reader) -> Text:
    """The first text of at most MOST_TOKENS tokens and at least half as many; without one, the shortest."""
    lengths = [len(row["input_ids"]) for row in reader.rows(texts)]
    fitting = [i for i, length in enumerate(lengths) if MOST_TOKENS // 2 <= length <= MOST_TOKENS]
    return texts[fitting[0] if fitting else int(np.argmin(lengths))]


def layer_figure(teacher: list[np.ndarray], student: list[np.ndarray], tokens: list[str],
                 layer_map: list[int]) -> Figure:
    """Each layer of the student below the one that it follows; layers that none follows are named in grey."""
    figure = Figure(figsize=(1.9 * len(layer_map) + 1, 5.4), layout="constrained")
    axes = figure.subplots(2, len(layer_map), squeeze=False)
    for column, number in enumerate(layer_map):
        for row, (layers, place, who) in enumerate(((teacher, number - 1, "teacher"), (student, column, "student"))):
            axis = axes[row][column]
            axis.imshow(layers[place], cmap="Blues", vmin=0, aspect="equal", interpolation="nearest")
            axis.set_title(f"{who}, layer {place + 1}", fontsize=8)
            axis.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=4.5)
            axis.set_yticks(range(len(tokens)), tokens if column == 0 else [""] * len(tokens), fontsize=4.5)
            axis.tick_params(length=0)
            for spine in axis.spines.values():
                spine.set_visible(False)
    return figure


def address(figure_of, dark: bool) -> str:
    """A figure, made in the page's colours, inlined."""
    with matplotlib.rc_context(style(dark)):
        return inlined(lambda drawn: figure_of().savefig(drawn, format="svg", transparent=True, bbox_inches="tight",
                                                         metadata={"Date": None}))


def layer_picture(name: str, teacher: Path, student: Path, layer_map: list[int], text: Text) -> tuple:
    """What the page shows of one student: (name, caption, light, dark)."""
    theirs, tokens = attention_of(teacher, True, text)
    ours, _ = attention_of(student, True, text)
    theirs, ours = ([layer[:MOST_TOKENS, :MOST_TOKENS] for layer in layers] for layers in (theirs, ours))
    part = f", its first {MOST_TOKENS} tokens" if len(tokens) > MOST_TOKENS else ""
    tokens = tokens[:MOST_TOKENS]
    depth = len(theirs)
    unused = ", ".join(str(number) for number in range(1, depth + 1) if number not in layer_map)
    followed = ", ".join(f"{m} follows {g}" for m, g in enumerate(layer_map, 1))
    caption = (f"{name}: what each token (row) attends to, mean over heads, on one test text{part}. Layer {followed} "
               f"of the teacher's {depth}" + (f"; none follows its layer {unused}." if unused else "."))
    return (f"layers of {name}", caption,
            *(address(lambda: layer_figure(theirs, ours, tokens, layer_map), dark) for dark in (False, True)))


def section_of_task(results: dict, stages: dict, pictures: list[tuple]) -> dict:
    """What the template shows of one task."""
    return section(results, stages, columns(results), CAPTIONS, *recommend(results), pictures=tuple(pictures))

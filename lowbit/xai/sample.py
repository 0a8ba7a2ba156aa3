"""What a model reads, over many texts: its words for and against each label, and its most confident mistakes."""

from collections import defaultdict

import numpy as np

from lowbit.data.task import Task
from lowbit.xai.shown import written

FOLDED = str.casefold  # words are counted without their letter case


def words_by_label(records: list[dict], file: str, method: str, least: int) -> dict[int | None, dict[str, list[dict]]]:
    """Label that was explained (None: a number) -> {"for", "against": words of largest mean value, most texts first}.

    A word counts if it stands in `least` texts with that label or more; several places in a text are added up. Each is
    {"word", "value": mean over these texts, "texts"}.
    """
    seen: dict = defaultdict(lambda: defaultdict(list))
    for record in records:
        values = record["files"][file]["methods"].get(method)
        if values is None:
            continue
        sums: dict = defaultdict(float)
        for word, value in zip(written(record), values, strict=True):
            sums[FOLDED(word)] += value
        for word, value in sums.items():
            seen[record["label"]][word].append(value)
    found: dict = {}
    for label in sorted(seen, key=lambda one: -1 if one is None else one):
        means = [{"word": word, "value": float(np.mean(values)), "texts": len(values)}
                 for word, values in seen[label].items() if len(values) >= least]
        means.sort(key=lambda one: (-one["value"], one["word"]))
        found[label] = {"for": [one for one in means if one["value"] > 0],
                        "against": [one for one in reversed(means) if one["value"] < 0]}
    return found


def confidence(outputs: list[float]) -> float:
    """Probability of the label that these logits give."""
    powers = np.exp(np.array(outputs) - max(outputs))
    return float(powers.max() / powers.sum())


def mistakes(records: list[dict], file: str, task: Task, most: int) -> list[dict]:
    """The records that a file answers wrongly, the most confident first; of a number those furthest from the answer."""
    def wrong(record):
        outputs = record["files"][file]["outputs"]
        if task.labels is None:
            return abs(outputs[0] - record["answer"])
        return confidence(outputs) if int(np.argmax(outputs)) != record["answer"] else 0.0

    answered = [record for record in records if record["answer"] is not None and wrong(record) > 0]
    return sorted(answered, key=lambda record: (-wrong(record), record["line"]))[:most]

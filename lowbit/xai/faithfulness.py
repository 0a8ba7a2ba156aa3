"""Whether the words that a method names are those that the file reads: words taken away and put back, largest first.

    deletion       mean value of the text while words are taken away, largest first         lower is better
    insertion      mean value while they are put back into the text without words           higher is better
    comprehensiveness   p(text) - p(text without its top words)                             higher is better
    sufficiency         p(text) - p(its top words alone)                                    lower is better

The latter two are means over SHARES of the words (ERASER: DeYoung et al. 2020, arXiv:1911.03429); p is the label's
probability, of a model that gives a number the number itself. A method beats chance on a text if its deletion mean is
below that of random orders.
"""

import numpy as np

from lowbit.xai.blackbox import generator, prefixes
from lowbit.xai.drift import interval
from lowbit.xai.variants import Asked, values_of

SHARES = (0.01, 0.05, 0.1, 0.2, 0.5)  # of the words, at least one: ERASER's
POINTS = 21  # of a curve that is averaged over texts
RANDOM = "random"


def _share(value: np.ndarray, label: int | None) -> np.ndarray:
    """Log-odds as probability; a number stays."""
    return value if label is None else 1 / (1 + np.exp(-value))


def _ordered(values: list[float]) -> np.ndarray:
    """Places of the words, largest value first, ties in the text's order."""
    return np.argsort(-np.array(values), kind="stable")


def judged(values: np.ndarray, label: int | None) -> dict:
    """The figures of one order: `values` [2, words + 1] are those while words are taken away, and while put back."""
    deletion, insertion = values
    words = len(deletion) - 1
    tops = [max(1, round(share * words)) for share in SHARES]
    whole = _share(deletion[:1], label)
    return {"deletion": float(deletion.mean()), "insertion": float(insertion.mean()),
            "comprehensiveness": float((whole - _share(deletion[tops], label)).mean()),
            "sufficiency": float((whole - _share(insertion[tops], label)).mean()),
            "curves": [np.interp(np.linspace(0, words, POINTS), np.arange(words + 1), curve).tolist()
                       for curve in values]}


def judge_text(asked: Asked, record: dict, file: str, orders: int, seed: int) -> dict | None:
    """Method -> figures of one text on one file, RANDOM the mean of `orders` random ones; None for a single word."""
    words, label = len(record["words"]), record["label"]
    if words < 2:
        return None
    methods = record["files"][file]["methods"]
    rng = generator(seed, *record["texts"], RANDOM)
    every = [_ordered(values) for values in methods.values()] + [rng.permutation(words) for _ in range(orders)]
    walks = np.array(every)
    added = prefixes(walks).reshape(len(walks), words + 1, words)
    masks = np.stack([~added, added], 1)  # [order, taken away or put back, step, word]
    values = values_of(asked.logits(masks.reshape(-1, words)), label).reshape(len(walks), 2, words + 1)
    found = {method: judged(one, label) for method, one in zip(methods, values[: len(methods)], strict=True)}
    chance = [judged(one, label) for one in values[len(methods):]]
    found[RANDOM] = {key: np.mean([one[key] for one in chance], 0).tolist() for key in chance[0]}
    return found


def faithfulness_of(texts: list[dict]) -> dict:
    """Means over texts of what judge_text() found: method -> figures, and the curves."""
    figures: dict[str, dict] = {}
    curves = {}
    for method in texts[0]:
        own = [text[method] for text in texts]
        figures[method] = {key: float(np.mean([one[key] for one in own]))
                           for key in ("deletion", "insertion", "comprehensiveness", "sufficiency")}
        curves[method] = dict(zip(("deletion", "insertion"), np.mean([one["curves"] for one in own], 0).tolist(),
                                  strict=True))
        if method != RANDOM:
            better = np.array([float(one["deletion"] < text[RANDOM]["deletion"])
                               for one, text in zip(own, texts, strict=True)])
            figures[method]["beats_random"] = float(better.mean())
            figures[method]["beats_random_interval"] = interval(better)
    return {"texts": len(texts), "methods": figures, "curves": curves}

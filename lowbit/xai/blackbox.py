"""Methods that only ask a model about variants of a text: which they want to be asked, and what the answers say.

    occlusion   value[i] = f(all words) - f(all but i)
    SHAP        value[i] = mean over orders of f(words up to i) - f(words before i)          Shapley values
    LIME        f(words) ~ intercept + sum of value[i] over the words kept                   weighted ridge regression

Sums of SHAP values are f(all words) - f(no word), whatever the orders. What is asked depends on the number of words and
a seed alone: two files answer the very same questions, so that their difference is theirs and not that of two samples.
SHAP: Lundberg and Lee 2017, arXiv:1705.07874; orders and their reverse: Mitchell et al. 2022, arXiv:2104.12199.
LIME: Ribeiro et al. 2016, arXiv:1602.04938, with the distances and the kernel of its own package for texts.
"""

import hashlib
import itertools
from collections.abc import Callable

import numpy as np
from sklearn.linear_model import Ridge

KERNEL_WIDTH = 25  # of LIME, for a distance of 0 (all words) to 100 (none)
RIDGE = 1.0  # LIME's penalty on the squares of the values


def generator(seed: int, *texts: str) -> np.random.Generator:
    """Random numbers of a text: the same wherever it stands in a file."""
    digest = hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "big")])


def whole_and_none(words: int) -> np.ndarray:
    """Masks [2, words] of all words and of no word."""
    return np.array([[True] * words, [False] * words])


def leave_one_out(words: int) -> np.ndarray:
    """Masks [words + 1, words]: all words, then all but each."""
    return np.concatenate([np.ones((1, words), bool), ~np.eye(words, dtype=bool)])


def occlusion(values: np.ndarray) -> np.ndarray:
    """What leaving a word out takes away, from the answers to leave_one_out()."""
    return values[0] - values[1:]


def orders_of(words: int, orders: int, rng: np.random.Generator) -> np.ndarray:
    """Orders [n, words] in which words are added: drawn ones, each followed by its reverse, or all where these are few.
    """
    if words <= 8 and np.prod(np.arange(1, words + 1)) <= 2 * orders:
        return np.array(list(itertools.permutations(range(words))))
    drawn = np.array([rng.permutation(words) for _ in range(orders)])
    return np.stack([drawn, drawn[:, ::-1]], 1).reshape(-1, words)


def prefixes(orders: np.ndarray) -> np.ndarray:
    """Masks [orders * (words + 1), words]: no word, then one more each, in every order."""
    count, words = orders.shape
    place = np.argsort(orders, 1)[:, None, :]  # when each word is added
    return (place < np.arange(words + 1)[None, :, None]).reshape(-1, words)


def shapley(orders: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Mean of what each word adds, from the answers to prefixes()."""
    added = np.diff(values.reshape(len(orders), -1), axis=1)
    found = np.empty_like(added)
    np.put_along_axis(found, orders, added, 1)
    return found.mean(0)


def neighbours(words: int, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Masks [samples, words] of LIME: the whole text, then texts that lack 1 to all words, each number as likely."""
    masks = np.ones((samples, words), bool)
    for mask, lacking in zip(masks[1:], rng.integers(1, words + 1, max(samples - 1, 0)), strict=True):
        mask[rng.choice(words, lacking, replace=False)] = False
    return masks


def lime(masks: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Coefficients of the weighted ridge regression over the answers to neighbours()."""
    distance = 100 * (1 - np.sqrt(masks.mean(1)))  # cosine distance to the whole text, in percent
    weights = np.exp(-0.5 * (distance / KERNEL_WIDTH) ** 2)  # the package takes the root of exp(-(d / width)**2)
    return Ridge(alpha=RIDGE).fit(masks.astype(float), values, sample_weight=weights).coef_


def explain(asked: Callable[[np.ndarray], np.ndarray], words: int, methods: list[str], orders: int, samples: int,
            seed: tuple) -> dict[str, np.ndarray]:
    """Method -> values [words], of those of occlusion, shap and lime that are among `methods`.

    `asked` gives the values [n] of masks [n, words]. `seed` is (seed, texts…), as generator() takes them.
    """
    questions = {}
    if "occlusion" in methods:
        questions["occlusion"] = leave_one_out(words)
    if "shap" in methods:
        walks = orders_of(words, orders, generator(*seed))
        questions["shap"] = prefixes(walks)
    if "lime" in methods:
        questions["lime"] = neighbours(words, samples, generator(*seed, "lime"))
    if not questions:
        return {}
    answers = asked(np.concatenate(list(questions.values())))
    parts = dict(zip(questions, np.split(answers, np.cumsum([len(q) for q in questions.values()])[:-1]), strict=True))
    solve = {"occlusion": occlusion, "shap": lambda values: shapley(walks, values),
             "lime": lambda values: lime(questions["lime"], values)}
    return {method: solve[method](values) for method, values in parts.items()}

"""From texts to token ids and to padded batches, the same way in every stage."""

import json
from pathlib import Path

import numpy as np

from lowbit.data.cleaning import clean
from lowbit.data.tsv import Text
from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import shown

PREPROCESSING = "preprocessing.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
INPUT_NAMES = ("input_ids", "attention_mask")
PAIR_INPUT = "token_type_ids"  # which of the two texts a token belongs to; pairs alone carry it

Row = dict[str, list[int]]  # one text's or pair's input_ids, and token_type_ids where the model takes them


def input_names(config, pairs: bool) -> tuple[str, ...]:
    """Names of a model's inputs, in the order of its graph: token_type_ids for pairs, if its config has types."""
    return (*INPUT_NAMES, PAIR_INPUT) if pairs and getattr(config, "type_vocab_size", 1) > 1 else INPUT_NAMES


class TextReader:
    """How a run reads texts: its cleaning, tokenizer, longest input and inputs, together."""

    def __init__(self, tokenizer, cleaning: str, max_length: int, inputs: tuple[str, ...] = INPUT_NAMES):
        self.tokenizer, self.cleaning, self.max_length, self.inputs = tokenizer, cleaning, max_length, tuple(inputs)
        self.pad_id = tokenizer.pad_token_id

    def clean(self, text: Text) -> Text:
        """A text as the tokenizer gets it; of a pair, both."""
        if isinstance(text, str):
            return clean(text, self.cleaning)
        return tuple(clean(part, self.cleaning) for part in text)

    def rows(self, texts: list[Text]) -> list[Row]:
        """A row for each text or pair, cut to the longest input; prints how many were cut or cleaned to nothing."""
        return self.rows_and_empty(texts)[0]

    def rows_and_empty(self, texts: list[Text]) -> tuple[list[Row], int]:
        """(rows, how many texts, or pairs with such a text, have no token left after cleaning: all get one answer)."""
        cleaned = [self.clean(text) for text in texts]
        rows, empty = self._tokenized(cleaned)
        long = [i for i, row in enumerate(rows) if width(row) > self.max_length]
        if long or empty:
            print(f"  {len(long)} of {len(texts)} texts cut to {self.max_length} tokens, {empty} empty after cleaning")
        if long:
            short, _ = self._tokenized([cleaned[i] for i in long], truncation=True, max_length=self.max_length)
            for i, row in zip(long, short, strict=True):
                rows[i] = row
            self._tokenized(cleaned[:1])  # a tokenizer is saved with the truncation of its last call: with none
        return rows, empty

    def _tokenized(self, texts: list[Text], **cut) -> tuple[list[Row], int]:
        columns = [texts] if isinstance(texts[0], str) else [list(column) for column in zip(*texts, strict=True)]
        ids = self.tokenizer(*columns, add_special_tokens=True, return_attention_mask=False, verbose=False,
                             return_token_type_ids=PAIR_INPUT in self.inputs, **({"truncation": False} | cut))
        names = [name for name in self.inputs if name in ids]
        rows = [dict(zip(names, row, strict=True)) for row in zip(*(ids[name] for name in names), strict=True)]
        return rows, sum(len(set(one.sequence_ids) - {None}) < len(columns) for one in ids.encodings)


def load_reader(folder: Path) -> TextReader:
    """The reader of a run's folder, as its training stage saved it; raises UserError for one that cannot be read."""
    from transformers import AutoTokenizer  # here: a process that only pads stays as small as a server's

    path = folder / PREPROCESSING
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        cleaning, longest, inputs = settings["cleaning"], settings["max_length"], settings.get("inputs", INPUT_NAMES)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{shown(path)} says how this model reads texts, and cannot be read ({error!r}): put it back, "
                        "or make the model again") from error
    return TextReader(AutoTokenizer.from_pretrained(folder), cleaning, longest, inputs)


def same_tokens(one: TextReader, other: TextReader) -> bool:
    """Whether two readers make the same tokens of a text; where each cuts and pads, aside."""
    ours, theirs = ({key: value for key, value in json.loads(reader.tokenizer.backend_tokenizer.to_str()).items()
                     if key not in ("truncation", "padding")} for reader in (one, other))
    return ours == theirs


def width(row: Row) -> int:
    """How many tokens a row has."""
    return len(row["input_ids"])


def pad(rows: list[Row], pad_id: int, length: int = 0) -> dict[str, np.ndarray]:
    """A batch of int64 arrays [batch, seq], padded to its longest row or to `length`, with its attention_mask."""
    longest = max(length, *map(width, rows))
    batch = {name: np.full((len(rows), longest), pad_id if name == "input_ids" else 0, np.int64)
             for name in (*INPUT_NAMES, *(name for name in rows[0] if name not in INPUT_NAMES))}
    for i, row in enumerate(rows):
        for name, values in row.items():
            batch[name][i, : len(values)] = values
        batch["attention_mask"][i, : width(row)] = 1
    return batch


def batches(rows: list[Row], batch_size: int, sort: bool) -> list[list[int]]:
    """Row numbers in batches; sorted by length, a batch wastes next to nothing on padding."""
    order = sorted(range(len(rows)), key=lambda i: width(rows[i])) if sort else list(range(len(rows)))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]

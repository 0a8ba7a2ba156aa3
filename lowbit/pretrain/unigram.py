"""A SentencePiece Unigram tokenizer cut to the pieces that a language uses, in the form of XLM-R's."""

import unicodedata

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPACE = "▁"  # stands for a space before a word
BOS, PAD, EOS, UNK, MASK = SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
PREFIXES = (f"{SPACE}que", "ry", f"{SPACE}passage")  # of what multilingual-e5 read before a text
LAST = len(SPECIAL) - 1  # <mask> stands at the end, the others at the start, as XLM-R has them


def is_kept_character(piece: str) -> bool:
    """Whether a piece is one character that every cut keeps: Latin letters, digits, punctuation, symbols."""
    character = piece.removeprefix(SPACE)
    if len(character) != 1:
        return piece == SPACE
    return not character.isalpha() or unicodedata.name(character, "").startswith("LATIN")


def unigram_tokenizer(pieces: list[tuple[str, float]], longest: int) -> PreTrainedTokenizerFast:
    """The tokenizer of (piece, log probability) pairs, which start with <s>, <pad>, </s>, <unk> and end with <mask>.

    Text is normalised to NFKC, a space is put before it, and words are cut where the pieces are most probable.
    """
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=SPECIAL.index(UNK)))
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[(BOS, 0), (EOS, 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, cls_token=BOS, eos_token=EOS, sep_token=EOS, pad_token=PAD,
        unk_token=UNK, mask_token=MASK, model_max_length=longest, model_input_names=["input_ids", "attention_mask"])


def kept_pieces(pieces: list[str], counts: dict[str, int], keep_from: int) -> list[str]:
    """The pieces, in their order, that text used at least `keep_from` times, with the characters that are always kept.

    <s>, <pad>, </s>, <unk> come first and <mask> last.
    """
    kept = [piece for piece in pieces if piece not in SPECIAL
            and (counts.get(piece, 0) >= keep_from or piece in PREFIXES or is_kept_character(piece))]
    return [*SPECIAL[:LAST], *kept, MASK]

"""The reader of INA_TweetsPPKM: quoted tab-separated rows with a header and label ids."""

import csv
from pathlib import Path

from lowbit.data.task import SENTIMENT
from lowbit.data.tsv import refuse_bad_rows
from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import shown

TWEET_COLUMNS = ("Date", "User", "Tweet", "sentiment")


def read_tweets(path: Path) -> tuple[list[str], list[int]]:
    """Texts and label ids of INA_TweetsPPKM_Labeled_Pure.csv: tab-separated, header `Date, User, Tweet, sentiment`.

    Quoted as pandas writes it: a tweet with tabs, line ends or quotes stands in double quotes. `sentiment` is the
    label id. Raises UserError for a missing or empty file, another header, and bad rows by line: ten in full, and all
    counted.
    """
    if not path.is_file():
        raise UserError(f"{shown(path)} is missing: put INA_TweetsPPKM_Labeled_Pure.csv there "
                        f"(tab-separated, columns {', '.join(TWEET_COLUMNS)})")
    texts, labels, bad, rows = [], [], [], 0
    try:
        with open(path, encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines, delimiter="\t", strict=True)
            header = [cell.strip() for cell in next(reader, ())]
            if header != list(TWEET_COLUMNS):
                raise UserError(f"{shown(path)} line 1 has the columns {', '.join(header) or 'none'}; "
                                f"they must be {', '.join(TWEET_COLUMNS)}, separated by tabs")
            start = reader.line_num + 1
            for cells in reader:
                rows += 1
                if len(cells) != len(TWEET_COLUMNS):
                    bad.append(f"line {start} has {len(cells)} columns instead of {len(TWEET_COLUMNS)}: {cells!r}")
                elif "\0" in cells[2]:
                    bad.append(f"line {start} holds a NUL byte: {cells!r}")
                elif not cells[2].strip():
                    bad.append(f"line {start} has an empty tweet: {cells!r}")
                elif cells[3].strip() not in map(str, range(len(SENTIMENT.labels))):
                    bad.append(f"line {start} has the sentiment {cells[3]!r} instead of 0 (positive), 1 (neutral) or "
                               f"2 (negative): {cells!r}")
                else:
                    texts.append(cells[2].strip())
                    labels.append(int(cells[3]))
                start = reader.line_num + 1
    except UnicodeDecodeError as error:
        raise UserError(f"{shown(path)} is not UTF-8 ({error.reason} at byte {error.start + 1}): "
                        "save it as UTF-8") from None
    except csv.Error as error:
        raise UserError(f"{shown(path)} line {reader.line_num} breaks the quoting ({error}): a tweet with tabs, line "
                        "ends or quotes stands in double quotes, and quotes inside are doubled") from None
    refuse_bad_rows(path, bad, rows)
    if not texts:
        raise UserError(f"{shown(path)} holds no tweet below its header")
    return texts, labels

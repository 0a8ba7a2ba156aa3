"""What the matrix is measured on: original or fine-tuned FP32 model, SMSA or tweets."""

from pathlib import Path

from lowbit.data.tsv import describe, read_split
from lowbit.data.tweets import read_tweets
from lowbit.pipeline.files import resolve, shown
from lowbit.pipeline.settings import chosen

EXPERIMENTS = ("original_smsa", "finetuned_smsa", "original_tweets", "finetuned_tweets")


def wanted_experiments(setting: str, known: tuple[str, ...], tweets: str) -> list[str]:
    """The experiment that EXPERIMENT names; without one, all of `known` whose data is there, the others in words."""
    names = chosen(setting, known, "EXPERIMENT")
    if not setting and not resolve(tweets).is_file():
        print(f"  without *_tweets: put INA_TweetsPPKM_Labeled_Pure.csv at {shown(resolve(tweets))} to have them too")
        names = [name for name in names if not name.endswith("tweets")]
    return names


def read_experiment(name: str, data_dir: str, tweets: str) -> tuple[dict, list[Path]]:
    """({split: (texts, label ids)}, the files read): valid and test of SMSA, or every tweet as test."""
    print(name, flush=True)
    if name.endswith("tweets"):
        data, paths = {"test": read_tweets(resolve(tweets))}, [resolve(tweets)]
    else:
        data = {split: read_split(resolve(data_dir), split) for split in ("valid", "test")}
        paths = [resolve(data_dir) / f"{split}.tsv" for split in data]
    print(f"  {describe('test', data['test'][1])}")
    return data, paths

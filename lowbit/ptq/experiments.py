"""What the matrix is measured on: an original or fine-tuned FP32 model, on the data of DATA_DIR or on tweets."""

from dataclasses import dataclass
from pathlib import Path

from lowbit.data.task import SENTIMENT, TASK_FILE, read_task
from lowbit.data.tsv import describe, read_split
from lowbit.data.tweets import read_tweets
from lowbit.pipeline.files import resolve, shown
from lowbit.pipeline.settings import chosen


@dataclass(frozen=True)
class Experiment:
    """One row of matrices: `trained` tells a fine-tuned model from one with a head that was never trained."""

    name: str
    trained: bool
    tweets: bool


def experiments_of(data_dir: str) -> list[Experiment]:
    """original_<data> and finetuned_<data>: smsa, or the name of a DATA_DIR with a task.json; with SMSA's task, tweets.

    """
    folder = resolve(data_dir)
    data = folder.name if (folder / TASK_FILE).exists() else "smsa"
    kinds = [(data, False)] + [("tweets", True)] * (read_task(folder) == SENTIMENT)
    return [Experiment(f"{model}_{name}", model == "finetuned", tweets)
            for name, tweets in kinds for model in ("original", "finetuned")]


def wanted_experiments(setting: str, data_dir: str, tweets: str, trained_only: bool = False) -> list[Experiment]:
    """The experiment that EXPERIMENT names; without one, all of DATA_DIR and, where their file is, of the tweets."""
    known = {experiment.name: experiment for experiment in experiments_of(data_dir)
             if experiment.trained or not trained_only}
    names = chosen(setting, known, "EXPERIMENT")
    if not setting and not resolve(tweets).is_file():
        if any(experiment.tweets for experiment in known.values()):
            print(f"  without *_tweets: put INA_TweetsPPKM_Labeled_Pure.csv at {shown(resolve(tweets))} to have them "
                  "too")
        names = [name for name in names if not known[name].tweets]
    return [known[name] for name in names]


def read_experiment(experiment: Experiment, data_dir: str, tweets: str) -> tuple[dict, list[Path]]:
    """({split: (texts, answers)}, the files read): valid and test of DATA_DIR, or every tweet as test."""
    print(experiment.name, flush=True)
    folder = resolve(data_dir)
    task = read_task(folder)
    data: dict = {}
    if experiment.tweets:
        data["test"], paths = read_tweets(resolve(tweets)), [resolve(tweets)]
    else:
        data |= {split: read_split(folder, split, task) for split in ("valid", "test")}
        paths = [folder / f"{split}.tsv" for split in data]
    texts, answers = data["test"]
    print(f"  {describe('test', texts, answers, task)}")
    return data, paths

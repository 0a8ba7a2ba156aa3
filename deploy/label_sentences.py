"""Label sentences with the file of a run and with the bundled model beside it, to see what each of them has learned.

Reads   models/<RUN>/                       after stage 3: the file that ships, its tokenizer and cleaning
        MODEL_NAME/                         a fine-tuned model, such as the bundled one
"""
import numpy as np
from scipy.special import softmax

from lowbit.data.task import Task, read_task
from lowbit.data.tokens import TextReader, load_reader
from lowbit.graph.agreement import simulated_logits
from lowbit.measure.session import Session
from lowbit.pipeline.files import resolve, run_dir, shown
from lowbit.pipeline.manifest import recorded, shipped
from lowbit.pipeline.settings import check
from lowbit.pipeline.stage import run_stage
from lowbit.training.encoder import RUN_FILES, load_pretrained

# ---- settings: edit here, or for one run: "teksnya" -----------------------------------------------
SENTENCE = ""                   # what to label; "" = the sentences below
RUN = "indobert-qat-int8-smsa"  # folder under models/ of a run after its stage 3
MODEL_NAME = "models/bert-mini-id"  # folder of a fine-tuned model with preprocessing.json, to compare with
# --------------------------------------------------------------------------------------------------

SENTENCES = ("Kamarnya bersih dan stafnya ramah sekali!", "saya sangat puas dengan pelayanannya",
             "paketnya terlambat tiga hari, mengecewakan sekali", "barangnya rusak dan penjual tidak mau mengganti",
             "Rapat dimulai pukul sembilan pagi di kantor pusat.")


def answers(outputs: np.ndarray, task: Task) -> list[str]:
    """`positive 0.99` of each row of logits, or the number."""
    if task.labels is None:
        return [f"{value:.2f}" for value in outputs[:, 0]]
    return [f"{task.labels[row.argmax()]} {row.max():.2f}" for row in softmax(outputs.astype(np.float64), axis=1)]


def of_run(run: str, sentences: list[str]) -> tuple[str, list[str]]:
    """(name of the file, its answers) of a run's file that ships, one sentence at a time."""
    folder = run_dir(run)
    ships = shipped(folder)
    path = recorded(folder, ships["stages"]["quantize"], ships["file"])[0]
    recorded(folder, ships["stages"]["train"], *RUN_FILES)
    task, reader = read_task(folder), load_reader(folder)
    check(not task.pairs, f"RUN {run} reads pairs: pack it, and use predict.py with two sentences")
    with Session(path, "CPUExecutionProvider", 0) as session:
        return shown(path), answers(session.logits(reader.rows(sentences), reader.pad_id), task)


def of_model(name: str, sentences: list[str]) -> list[str]:
    """Answers of a fine-tuned model in a folder, in FP32."""
    folder = resolve(name)
    check((folder / "preprocessing.json").exists(), f"MODEL_NAME {name!r} holds no preprocessing.json: name a folder "
                                                    "with a fine-tuned model, such as models/bert-mini-id")
    task = read_task(folder)
    model, _ = load_pretrained(name, "", task)
    reader: TextReader = load_reader(folder)
    return answers(simulated_logits(model, reader.rows(sentences), reader.pad_id), task)


def main(settings):
    sentences = [SENTENCE] if SENTENCE else list(SENTENCES)
    file, ours = of_run(RUN, sentences)
    rows = list(zip((file, *ours), (MODEL_NAME, *of_model(MODEL_NAME, sentences)), ("", *sentences), strict=True))
    first, second = (max(len(row[column]) for row in rows) + 2 for column in (0, 1))
    for row in rows:
        print(f"  {row[0]:{first}}{row[1]:{second}}{row[2]}".rstrip())


if __name__ == "__main__":
    run_stage(main, globals(), bare="SENTENCE")

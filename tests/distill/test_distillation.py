"""A student of several teachers: what it is taught, the loss it learns by, the stage from texts to runs."""

import gzip
import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, SAMPLE, read_plain_rows
from datasets import Dataset
from safetensors.torch import load_file, save_file
from scipy.special import rel_entr, softmax
from stage_runs import TRAIN, copy_of, new_run, run_folder, run_stage_script, stages_in
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
)

from lowbit.data.heldout import HeldOut, held_out
from lowbit.data.task import SENTIMENT
from lowbit.data.unlabelled import NO_LABEL
from lowbit.distill.rates import LayerwiseTuner, depth
from lowbit.distill.soft_labels import PLACE, Distiller, Taught, taught_dataset
from lowbit.distill.teachers import agreed, disagreement, on_main_axes
from lowbit.pipeline.errors import UserError
from lowbit.pretrain.checked_data import checked_data
from lowbit.pretrain.corpus import Corpus
from lowbit.pretrain.unlabelled import chosen_texts, digest_of, taught_of

LOGITS = np.array([[2.0, 0, 0], [0, 1.0, 0], [0, 0, 3.0]], np.float32)


def tiny_classifier() -> BertForSequenceClassification:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BertForSequenceClassification(BertConfig(
            vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))


# ---- rates


@pytest.mark.parametrize("name, level", [
    ("bert.embeddings.word_embeddings.weight", 0), ("bert.encoder.layer.0.output.dense.bias", 1),
    ("bert.encoder.layer.11.output.dense.bias", 12), ("bert.pooler.dense.weight", 13), ("classifier.bias", 13),
    ("roberta.encoder.layer.3.intermediate.dense.weight", 4)])
def test_depth_of_a_parameter(name, level):
    assert depth(name, 12) == level


def test_lower_layers_have_lower_rates():
    """Each layer half of the one above; every parameter once; biases and LayerNorms do not decay."""
    model = tiny_classifier()
    tuner = LayerwiseTuner.__new__(LayerwiseTuner)
    tuner.model, tuner.optimizer, tuner.layer_decay = model, None, 0.5
    tuner.args = SimpleNamespace(learning_rate=0.8, weight_decay=0.01)
    groups = tuner.create_optimizer().param_groups
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    rate = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    assert rate[id(model.classifier.weight)] == rate[id(model.bert.pooler.dense.bias)] == 0.8
    assert rate[id(model.bert.encoder.layer[1].output.dense.weight)] == 0.4
    assert rate[id(model.bert.encoder.layer[0].output.dense.weight)] == 0.2
    assert rate[id(model.bert.embeddings.word_embeddings.weight)] == 0.1
    assert decay[id(model.classifier.weight)] == 0.01 and decay[id(model.classifier.bias)] == 0


def test_shared_layers_have_no_rates_of_their_own():
    model = AlbertForSequenceClassification(AlbertConfig(
        vocab_size=20, embedding_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32))
    tuner = LayerwiseTuner.__new__(LayerwiseTuner)
    tuner.model, tuner.optimizer, tuner.layer_decay = model, None, 0.5
    with pytest.raises(UserError, match="LAYER_DECAY must be 1 for this encoder"):
        tuner.create_optimizer()


def test_smoothed_labels():
    """With 0.3 spread over three labels the right one keeps 0.8, the others get 0.1 each."""
    tuner = LayerwiseTuner.__new__(LayerwiseTuner)
    tuner.label_smoothing, model = 0.3, tiny_classifier().train()
    inputs = {"input_ids": torch.tensor([[2, 5, 3]]), "labels": torch.tensor([1])}
    with torch.inference_mode():
        logs = np.log(softmax(model(input_ids=inputs["input_ids"]).logits.numpy().astype(np.float64)[0]))
    assert tuner.compute_loss(model, inputs).item() == pytest.approx(-(logs * [0.1, 0.8, 0.1]).sum(), abs=1e-5)


# ---- teachers


def test_agreed_is_the_mean_of_probabilities_and_disagreement_grows():
    same, torn = [LOGITS, LOGITS], [LOGITS, LOGITS[::-1]]
    assert np.allclose(softmax(agreed(same), -1), softmax(LOGITS, -1), atol=1e-6)
    mean = (softmax(torn[0], -1) + softmax(torn[1], -1)) / 2
    assert np.allclose(np.exp(agreed(torn)), mean, atol=1e-6)
    assert np.allclose(disagreement(same), 0, atol=1e-6)
    wanted = [np.mean([rel_entr(softmax(one[i]), mean[i]).sum() for one in torn]) for i in range(3)]
    assert np.allclose(disagreement(torn), wanted, atol=1e-6)
    assert disagreement(torn)[1] < 1e-6 < disagreement(torn)[0]


def test_main_axes_keep_what_differs():
    """Vectors that vary in two directions of seven keep all of their distances in two."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(40, 2)) @ rng.normal(size=(2, 7)) + 5
    short = on_main_axes([vectors[:, :3], vectors[:, 3:]], 2)
    assert short.shape == (40, 2)
    assert np.allclose(np.linalg.norm(short[0] - short[1:], axis=1), np.linalg.norm(vectors[0] - vectors[1:], axis=1))


def test_torn_texts_are_dropped_and_labelled_ones_stay():
    """Of four unlabelled texts the half that two teachers agree on; both labelled ones, however torn."""
    one = np.zeros((6, 3))
    other = one.copy()
    other[[0, 3, 5], 1] = 4.0
    taught, kept = taught_of([one, other], [np.random.default_rng(0).normal(size=(6, 4))], 2, 0.5, 2)
    assert kept.tolist() == [2, 4]
    assert taught.logits.shape == (4, 3) and taught.vectors.shape == (4, 2) and taught.labelled == 2


def test_chosen_texts_are_new_and_of_fair_length(tmp_path):
    with gzip.open(tmp_path / "a.txt.gz", "wt", encoding="utf-8") as out:
        out.write("terlalu pendek\nini sudah ada di train\nIni  baru sekali\nini baru sekali\n" + "kata " * 30 + "\n")
    corpus = Corpus(str(tmp_path))
    assert chosen_texts(corpus, {"a": 1.0}, ["Ini sudah ada  di train"], 20, 0) == ["Ini  baru sekali"]


# ---- the loss


def taught_three(**changes) -> Taught:
    return Taught(**{"logits": LOGITS, "labelled": 2, "unlabelled_rows": [{"input_ids": [2, 9, 3]}],
                     "vectors": np.eye(3, 16, dtype=np.float32), "repeats": 2} | changes)


TRAIN_ROWS = Dataset.from_dict({"input_ids": [[2, 5, 3], [2, 6, 7, 3]], "attention_mask": [[1] * 3, [1] * 4],
                                "labels": [0, 2]})


def test_dataset_repeats_train_and_adds_unlabelled_texts():
    found = taught_dataset(TRAIN_ROWS, taught_three())
    assert found[PLACE] == [0, 1, 0, 1, 2]
    assert list(found["labels"]) == [0, 2, 0, 2, NO_LABEL]
    assert found["input_ids"][4] == [2, 9, 3] and found["attention_mask"][4] == [1, 1, 1]
    with pytest.raises(RuntimeError, match="2 labelled and 0 other texts, but logits of 3"):
        taught_dataset(TRAIN_ROWS, taught_three(unlabelled_rows=[]))


def loss_of(**settings) -> float:
    """The distiller's loss on a batch of one labelled and one unlabelled text."""
    tuner = Distiller.__new__(Distiller)
    tuner.logits, tuner.vectors = torch.from_numpy(LOGITS), torch.eye(3, 16)
    for name, value in settings.items():
        setattr(tuner, name, value)
    model = tiny_classifier().train()
    inputs = {"input_ids": torch.tensor([[2, 5, 3], [2, 9, 3]]), "attention_mask": torch.ones(2, 3, dtype=torch.long),
              "labels": torch.tensor([1, NO_LABEL]), PLACE: torch.tensor([0, 2])}
    return tuner.compute_loss(model, inputs).item()


def parts() -> dict[str, float]:
    """What the loss is made of, without the project's code."""
    model = tiny_classifier()
    with torch.inference_mode():
        out = model(input_ids=torch.tensor([[2, 5, 3], [2, 9, 3]]), output_hidden_states=True)
    ours, first = out.logits.numpy().astype(np.float64), out.hidden_states[-1][:, 0].numpy().astype(np.float64)
    soft = {t: t * t * np.mean([rel_entr(softmax(LOGITS[place] / t), softmax(ours[i] / t)).sum()
                                for i, place in enumerate((0, 2))]) for t in (1.0, 2.0)}
    hard = -np.log(softmax(ours[0])[1]) / 2  # one of the two texts has a label
    cosine = np.mean([1 - first[i, place] / np.linalg.norm(first[i]) for i, place in enumerate((0, 2))])
    return {"soft": soft[1.0], "soft at 2": soft[2.0], "hard": hard, "hidden": cosine}


def test_loss_is_the_sum_that_the_formula_says():
    wanted = parts()
    assert loss_of(hard_weight=0.0) == pytest.approx(wanted["soft"], abs=1e-5)
    assert loss_of(hard_weight=0.0, temperature=2.0) == pytest.approx(wanted["soft at 2"], abs=1e-5)
    assert loss_of(hard_weight=0.5) == pytest.approx(wanted["soft"] + 0.5 * wanted["hard"], abs=1e-5)
    assert loss_of(hard_weight=0.0, hidden_weight=2.0) == pytest.approx(wanted["soft"] + 2 * wanted["hidden"], abs=1e-5)


# ---- from texts to runs


def test_rows_that_meet_held_out_texts_are_left_out(small_data, tmp_path):
    rows = read_plain_rows("train", small_data)
    out = tmp_path / "checked"
    assert checked_data(small_data, out, HeldOut([rows[3][0], "lain"]), "a stage") == [
        "test.tsv", "train.tsv", "valid.tsv"]
    assert read_plain_rows("train", out) == rows[:3] + rows[4:]
    assert read_plain_rows("test", out) == read_plain_rows("test", small_data)


def test_checked_rows_serve_several_trainings_at_once(small_data, tmp_path):
    """While this process holds the folder, another that wants the same rows takes them; other rows are refused."""
    checked_data(small_data, tmp_path / "checked", HeldOut(["lain"]), "a stage")
    asked = ("import sys; from pathlib import Path; from lowbit.pretrain.checked_data import checked_data; "
             "from lowbit.data.heldout import HeldOut; "
             "checked_data(*map(Path, sys.argv[1:3]), HeldOut([sys.argv[3]]), 'a stage')")
    done = [subprocess.run([sys.executable, "-c", asked, small_data, tmp_path / "checked", text], capture_output=True,
                           text=True, cwd=ROOT) for text in ("lain", read_plain_rows("train", small_data)[3][0])]
    assert done[0].returncode == 0, done[0].stderr
    assert "another process is working" in done[1].stderr


@pytest.fixture(scope="module")
def student(tiny_model):
    """Name of a run that holds the tiny encoder with a tokenizer, as pretraining leaves one."""
    name = new_run()
    shutil.copytree(tiny_model, run_folder(name))
    return name


@pytest.fixture(scope="module")
def distilled(student, small_data, tmp_path_factory):
    """(name of the runs, what the stage said): two teachers, two students of theirs, some unlabelled texts."""
    folder, name = tmp_path_factory.mktemp("corpus"), new_run()
    with gzip.open(folder / "reviews.txt.gz", "wt", encoding="utf-8") as out:
        out.writelines(f"{text}\n" for text, _ in read_plain_rows("train", SAMPLE)[100:220])
    checked = ("--checked", f"{name}-data", "--data-dir", small_data)
    taught = run_stage_script("train_teachers.py", "--encoder", student, *checked, "--name", f"{name}-teacher",
                              "--seeds", "1,2", "--num-epochs", 2, "--learning-rate", 1e-3, folder="pretrain")
    assert taught.returncode == 0, taught.stderr
    teachers = f"{name}-teacher-1,{name}-teacher-2"
    assert f"next: python pretrain/distill_bert_mini_id.py --teachers {teachers} " in taught.stdout
    flags = (*checked, "--student", student, "--teachers", teachers, "--run", name,
             "--corpus-dirs", folder, "--texts", "reviews:1", "--seeds", "1,2", "--num-epochs", 2, "--repeats", 1)
    done = run_stage_script("distill_bert_mini_id.py", *flags, folder="pretrain")
    assert done.returncode == 0, done.stderr
    return name, done, flags


def test_each_seed_has_a_run(distilled):
    """Each seed has a run of its own with its settings; the count of texts that teachers agree on is said."""
    name, done, _ = distilled
    assert "96 of 120 unlabelled ones" in done.stdout
    assert f"next: python pretrain/pack_bert_mini_id.py --runs {name}-1,{name}-2 " in done.stdout
    for seed in (1, 2):
        made = stages_in(run_folder(f"{name}-{seed}"))["pretrain/distill_bert_mini_id.py"]
        assert made["settings"]["SEED"] == seed and made["settings"]["TEMPERATURE"] == 2.0
        epochs = json.loads((run_folder(f"{name}-{seed}") / "training.json").read_text())["epochs"]
        assert [epoch["epoch"] for epoch in epochs] == [1, 2]


def weights_time(run: str) -> int:
    """When the weights of a run were written, ns."""
    return (run_folder(run) / "model_qat.pth").stat().st_mtime_ns


def run_well(script: str, *flags) -> str:
    """What a stage of pretrain/ prints, which ends with status 0."""
    done = run_stage_script(script, *flags, folder="pretrain")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_finished_students_are_not_trained_again(distilled):
    """The teachers' words and both students are taken as they are."""
    name, _, flags = distilled
    before = weights_time(f"{name}-1")
    assert f"{name}-1\n" not in run_well("distill_bert_mini_id.py", *flags)
    assert weights_time(f"{name}-1") == before


def test_student_that_is_taught_otherwise_is_trained_again(distilled, tmp_path):
    """The settings are the same, the corpus has a few texts more."""
    name, run = distilled[0], new_run()
    flags = (*distilled[2], "--run", run, "--seeds", "1", "--num-epochs", 1, "--corpus-dirs", tmp_path)
    times = []
    for count in (130, 140):
        with gzip.open(tmp_path / "reviews.txt.gz", "wt", encoding="utf-8") as out:
            out.writelines(f"{text}\n" for text, _ in read_plain_rows("train", SAMPLE)[100:count])
        run_well("distill_bert_mini_id.py", *flags)
        times.append(weights_time(f"{run}-1"))
    assert times[0] < times[1] and weights_time(f"{name}-1") < times[0]
    refused = run_stage_script("distill_bert_mini_id.py", *flags, "--longest-text", 2, folder="pretrain")
    assert refused.returncode == 2
    assert "TEXTS gives 0 texts of at most LONGEST_TEXT words" in refused.error


def test_students_teach_students(distilled, tmp_path):
    """A finished student beside a teacher: its judgement lies beside the other's, and it must be whole."""
    name, _, flags = distilled
    run, teachers = new_run(), f"{name}-teacher-1,{name}-2"
    taught = (*flags, "--run", run, "--teachers", teachers, "--seeds", "1", "--num-epochs", 1)
    run_well("distill_bert_mini_id.py", *taught)
    judged = sorted(path.name for path in run_folder(f"{run}-judged").glob("*.npz"))
    assert all(file.startswith(teacher) for file, teacher in zip(judged, sorted(teachers.split(",")), strict=True))
    damaged = run_folder(f"{run}-judged") / judged[0]
    damaged.write_bytes(damaged.read_bytes()[:1000])
    refused = run_stage_script("distill_bert_mini_id.py", *taught, folder="pretrain")
    assert refused.returncode == 2
    assert f"{judged[0]} cannot be read" in refused.error and "delete it" in refused.error
    copy = new_run()
    shutil.copytree(run_folder(f"{name}-2"), run_folder(copy))
    with open(run_folder(copy) / "model_qat.pth", "ab") as file:
        file.write(b"more")
    refused = run_stage_script("distill_bert_mini_id.py", *taught, "--teachers", f"{name}-1,{copy}", folder="pretrain")
    assert refused.returncode == 2
    assert "is not the file that pretrain/distill_bert_mini_id.py recorded" in refused.error


def test_packed_model_teaches(distilled, small_data):
    """The bundled model beside a teacher: its words are those of its own weights and cleaning."""
    name, _, flags = distilled
    run = new_run()
    run_well("distill_bert_mini_id.py", *flags, "--run", run, "--teachers", f"{name}-teacher-1,bert-mini-id",
             "--seeds", "1", "--num-epochs", 1)
    (path,) = run_folder(f"{run}-judged").glob("bert-mini-id-*.npz")
    labels = [SENTIMENT.labels.index(label) for _, label in read_plain_rows("train", small_data)]
    with np.load(path) as held:
        said = held["logits"].argmax(-1)[:len(labels)]
    assert np.mean(said == labels) > 0.7


@pytest.mark.parametrize("held", [None, "{", "{}"])
def test_packed_teacher_that_cannot_read_texts_is_refused(distilled, held):
    """Its preprocessing.json is gone, cut short or empty: a sentence before anything is judged."""
    name, _, flags = distilled
    teacher = new_run()
    shutil.copytree(ROOT / "models" / "bert-mini-id", run_folder(teacher))
    path = run_folder(teacher) / "preprocessing.json"
    path.unlink()
    if held is not None:
        path.write_text(held)
    refused = run_stage_script("distill_bert_mini_id.py", *flags, "--run", new_run(), "--teachers",
                               f"{name}-teacher-1,{teacher}", folder="pretrain")
    assert refused.returncode == 2
    assert "preprocessing.json says how this model reads texts, and cannot be read (" in refused.error


def test_teacher_that_reads_texts_otherwise_has_other_words(tmp_path):
    """What a teacher said is found again by its weights and by how it reads texts."""
    run = tmp_path / "teacher"
    shutil.copytree(ROOT / "models" / "bert-mini-id", run)
    before = digest_of(run, run / "model.safetensors")
    assert digest_of(run, run / "model.safetensors") == before
    path = run / "preprocessing.json"
    path.write_text(path.read_text().replace("negation-safe", "minimal"))
    assert digest_of(run, run / "model.safetensors") != before


def test_teacher_of_another_encoder_is_trained_again(student, small_data):
    """A finished teacher is kept while its encoder is the same file; of an encoder made anew there are new teachers."""
    encoder, name = copy_of(student), new_run()
    flags = ("--encoder", encoder, "--checked", f"{name}-data", "--data-dir", small_data, "--name", name,
             "--seeds", "1", "--num-epochs", 1)
    times = []
    for changed in (False, False, True):
        if changed:
            path = run_folder(encoder) / "model.safetensors"
            save_file({key: tensor * 1.01 for key, tensor in load_file(path).items()}, path, {"format": "pt"})
        run_well("train_teachers.py", *flags)
        times.append(weights_time(f"{name}-1"))
    assert times[0] == times[1] < times[2]


@pytest.mark.parametrize("script, flags, said", [
    ("train_teachers.py", ("--seeds", "1,a"), "SEEDS is '1,a'; write whole numbers with commas"),
    ("train_teachers.py", ("--encoder", "nowhere"), "models/nowhere holds no model.safetensors: run"),
    ("adapt_e5_small_id.py", ("--encoder", "../x"), "ENCODER is '../x'; use one plain folder name"),
    ("train_teachers.py", ("--layer-decay", 0), "LAYER_DECAY is 0.0; it must be above 0"),
    ("distill_bert_mini_id.py", ("--student", "nowhere"), "STUDENT: models/nowhere holds no model.safetensors: run"),
    ("distill_bert_mini_id.py", ("--teachers", "one"), "KEEP is 0.8, but one teacher disagrees with nobody"),
    ("distill_bert_mini_id.py", ("--student", "bert-mini-id", "--keep", 1, "--teachers", "nowhere"),
     "TEACHERS names nowhere, but models/nowhere holds nothing that train_teachers.py made"),
    ("distill_bert_mini_id.py", ("--student", "bert-mini-id", "--teachers", "bert-mini-id,bert-mini-id"),
     "TEACHERS is 'bert-mini-id,bert-mini-id', which names a model twice"),
    ("distill_bert_mini_id.py", ("--student", "../x"), "STUDENT is '../x'; use one plain folder name"),
    ("distill_bert_mini_id.py", ("--student", "bert-mini-id", "--teachers", "a,"), "TEACHERS is ''; use one plain"),
    ("distill_bert_mini_id.py", ("--temperature", 0), "TEMPERATURE is 0.0; it must be above 0"),
    ("pack_bert_mini_id.py", ("--runs", "nowhere"), "RUNS names nowhere, but models/nowhere holds nothing that"),
])
def test_mistakes_end_in_one_sentence(script, flags, said):
    refused = run_stage_script(script, *flags, "--data-dir", SAMPLE, folder="pretrain")
    assert refused.returncode == 2
    assert said in refused.error


def test_other_task_is_refused(tmp_path):
    """pretrain/ is for sentiment: a folder with another task.json is not read as if it were."""
    (tmp_path / "task.json").write_text('{"texts": ["text"], "labels": ["ya", "tidak"], "score": "accuracy"}')
    with pytest.raises(UserError, match="asks something else than sentiment"):
        held_out(tmp_path)


@pytest.fixture
def packing(distilled, small_data, tmp_path):
    """(name of the runs, flags of the last stage, folder that it packs into)."""
    name, out = distilled[0], tmp_path / "packed"
    return name, ("--runs", f"{name}-1,{name}-2", "--recipe", f"{name}-1", "--data-dir", small_data,
                  "--out-dir", out), out


def test_best_student_is_packed_and_a_worse_one_is_not(packing, small_data):
    """The folder loads with its own tokenizer and goes through stage 1; a model that scores as high is not replaced."""
    name, flags, out = packing
    run_well("pack_bert_mini_id.py", *flags)
    results = json.loads((out / "results.json").read_text())
    best = max(scores["macro_f1"] for scores in results["valid_of_candidates"].values())
    assert results["valid_of_candidates"][results["kept"]]["macro_f1"] == best
    assert results["valid"]["macro_f1"] == best  # what was scored is what was packed
    assert set(results["test_of_each_run"]) == {f"{name}-1", f"{name}-2"}
    assert set(results["recipe"]) == {f"{name}-1", f"{name}-2"}
    model = AutoModelForSequenceClassification.from_pretrained(out)
    assert model.dtype == torch.float32 and model.config.id2label[2] == "negative"
    packed = (out / "model.safetensors").read_bytes()
    again = run_stage_script("pack_bert_mini_id.py", *flags, folder="pretrain")
    assert again.returncode == 2
    assert "it stays as it is" in again.error
    assert (out / "model.safetensors").read_bytes() == packed
    trained = run_stage_script(TRAIN, "--run", new_run(), "--model-name", out, "--data-dir", small_data,
                               "--num-epochs", 1, "--max-length", 16)
    assert trained.returncode == 0, trained.stderr
    assert "new, not trained yet" not in trained.stdout


def test_killed_packing_leaves_nothing_half_written(packing):
    """Killed while it scores, it leaves no file; the same command then packs."""
    _, flags, out = packing
    killed = run_stage_script("pack_bert_mini_id.py", *flags, folder="pretrain",
                              kill_when=lambda: any(out.glob(".tmp-*/model.safetensors")))
    assert killed.returncode == -9, killed.stderr
    assert [path.name for path in out.iterdir() if not path.name.startswith(".tmp-")] == []
    run_well("pack_bert_mini_id.py", *flags)
    assert (out / "results.json").exists() and not list(out.glob(".tmp-*"))


def test_other_folders_are_not_packed_into(packing):
    """A run of a stage, and a recipe that nobody recorded, are refused before anything is written."""
    name, flags, out = packing
    refused = run_stage_script("pack_bert_mini_id.py", *flags, "--out-dir", run_folder(f"{name}-2"), folder="pretrain")
    assert refused.returncode == 2
    assert "holds something else than a packed model" in refused.error
    refused = run_stage_script("pack_bert_mini_id.py", *flags, "--recipe", "nowhere", folder="pretrain")
    assert refused.returncode == 2
    assert "RECIPE names nowhere, but models/nowhere holds no stage's record" in refused.error
    assert not out.exists()

"""Following a teacher: the loss against its formula, a model that drops nothing, and the stages that follow one."""

import numpy as np
import pytest
import torch
from scipy.special import softmax
from stage_runs import new_run, run_folder, run_stage_script
from transformers import AutoModelForSequenceClassification

from lowbit.data.task import SENTIMENT
from lowbit.data.tokens import load_reader, pad
from lowbit.pipeline.errors import UserError
from lowbit.training.distillation import drop_nothing, follower, soft_loss
from lowbit.training.encoder import load_pretrained


def test_loss_is_the_divergence_at_temperature_two():
    """T**2 * KL(teacher || model), the mean over texts, by scipy; the squared error where the answer is a number."""
    ours, theirs = np.random.default_rng(0).normal(size=(2, 5, 3))
    teacher, model = softmax(theirs / 2, axis=1), softmax(ours / 2, axis=1)
    wanted = 4 * (teacher * np.log(teacher / model)).sum(1).mean()
    assert float(soft_loss(torch.tensor(ours), torch.tensor(theirs), 2.0)) == pytest.approx(wanted, rel=1e-6)
    assert float(soft_loss(torch.tensor(ours), torch.tensor(ours), 2.0)) == pytest.approx(0, abs=1e-9)
    numbers = ours[:, :1], theirs[:, :1]
    assert float(soft_loss(*map(torch.tensor, numbers), 2.0)) == pytest.approx(((numbers[0] - numbers[1]) ** 2).mean())


def test_nothing_is_dropped_in_training(tiny_model):
    """Two passes in training mode give the same logits, and the configuration that is saved keeps its rates."""
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model).train()
    rates = model.config.hidden_dropout_prob, model.config.attention_probs_dropout_prob
    ids = torch.arange(4, 20).view(2, 8)
    assert not torch.equal(model(ids).logits, model(ids).logits)
    drop_nothing(model)
    assert torch.equal(model(ids).logits, model(ids).logits)
    assert (model.config.hidden_dropout_prob, model.config.attention_probs_dropout_prob) == rates


def test_teacher_stays_as_it_was(tiny_model):
    """What is trained moves away from its copy, which belongs to one training; a new head is refused as one."""
    model, _ = load_pretrained(str(tiny_model), "", SENTIMENT)
    trainer, other = follower(), follower()
    with pytest.raises(UserError, match=r"classifier\..* of MODEL_NAME was not trained .*--no-distil"):
        trainer.follow(model)
    model.untrained = []
    trainer.follow(model)
    with torch.no_grad():
        model.classifier.weight += 1
        assert float((model.classifier.weight - trainer.teacher.classifier.weight).mean()) == pytest.approx(1)
    assert other.teacher is None


@pytest.fixture(scope="module")
def contradicting(small_data, tmp_path_factory):
    """Folder of the same texts, train's labels moved on by one: what the labels teach is not what the teacher says."""
    folder = tmp_path_factory.mktemp("contradicting")
    following = dict(zip(SENTIMENT.labels, SENTIMENT.labels[1:] + SENTIMENT.labels[:1], strict=True))
    for file in small_data.glob("*.tsv"):
        rows = [line.rsplit("\t", 1) for line in file.read_text().splitlines()]
        if file.stem == "train":
            rows = [(text, following[label]) for text, label in rows]
        (folder / file.name).write_text("".join(f"{text}\t{label}\n" for text, label in rows))
    return folder


@pytest.mark.parametrize(("folder", "file"), [("int8_eager", "train_qat_int8.py"), ("fp16_eager", "train_qat_fp16.py")])
def test_stage_follows_the_model_that_it_starts_from(finetuned, contradicting, train_flags, folder, file):
    """On labels that contradict it, the model stays nearer to the teacher than one trained on the labels alone."""
    reader = load_reader(finetuned)
    rows = reader.rows([line.rsplit("\t", 1)[0] for line in (contradicting / "train.tsv").read_text().splitlines()])
    given = {name: torch.from_numpy(value) for name, value in pad(rows, reader.pad_id).items()}

    model = load_pretrained(str(finetuned), "", SENTIMENT)[0].eval()

    def answers() -> torch.Tensor:
        return model(**given).logits.softmax(-1)

    moved = {}
    with torch.no_grad():
        teacher = answers()
        for flag in ("--distil", "--no-distil"):
            run = new_run()
            done = run_stage_script(file, "--run", run, *train_flags, "--model-name", finetuned, "--data-dir",
                                    contradicting, "--no-dropout", flag, folder=folder)
            assert done.returncode == 0, done.stderr
            model.load_state_dict(torch.load(run_folder(run) / "model_qat.pth", weights_only=True))
            moved[flag] = float((answers() - teacher).abs().mean())
    assert moved["--distil"] * 1.5 < moved["--no-distil"], moved

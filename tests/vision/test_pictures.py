"""Folders of pictures: what is drawn, what is refused in a sentence, and how pixels become a network's input."""

import json
import shutil
import warnings

import numpy as np
import pytest
from PIL import Image
from stage_runs import ROOT, new_run, run_folder, run_stage_script

from lowbit.pipeline.errors import UserError
from lowbit.vision.calibration_set import draw, read_calibration
from lowbit.vision.pictures import BadPicture, classes_of, decode, digest, pictures_of
from lowbit.vision.preprocessing import Preprocessing, three_numbers

BUNDLED = ROOT / "data" / "pictures"
PLAIN = Preprocessing(8, 8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.fixture
def folder(tmp_path):
    """A copy of the bundled pictures, eight a class and split."""
    for path in BUNDLED.rglob("*.jpg"):
        if int(path.stem) < 8:
            target = tmp_path / path.relative_to(BUNDLED)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    return tmp_path


def calibration(folder, *flags):
    run = new_run()
    done = run_stage_script("calibration_dataset.py", "--run", run, "--data-dir", folder, "--size", 32, "--resize", 32,
                            *flags, folder="vision")
    return run, done


def cut_short(path):
    path.write_bytes(path.read_bytes()[:500])


def cmyk(path):
    Image.new("CMYK", (32, 32), (10, 20, 30, 40)).save(path)


def one_pixel(path):
    Image.new("RGB", (1, 1)).save(path)


def a_text(path):
    path.write_text("this is no picture")


def empty(path):
    path.write_bytes(b"")


def large(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Image.new("L", (10_000, 10_000)).save(path, quality=10)


BAD = [(cut_short, "cut short or damaged"), (cmyk, "is CMYK, not RGB"), (one_pixel, "has 1 x 1 pixels"),
       (a_text, "no picture that can be read"), (empty, "no picture that can be read"),
       (large, "has 10000 x 10000 pixels, more than 50 million")]


@pytest.mark.parametrize(("spoil", "said"), BAD, ids=[bad[0].__name__ for bad in BAD])
def test_a_bad_picture_is_named_in_a_sentence(folder, spoil, said):
    spoil(folder / "test" / "cross" / "003.jpg")
    with pytest.raises(BadPicture) as refused:
        decode(folder / "test" / "cross" / "003.jpg")
    assert said in str(refused.value)
    with pytest.raises(UserError) as error:
        draw(folder, 16, 1, False)
    assert "1 picture cannot be used" in str(error.value)
    assert "test/cross/003.jpg" in str(error.value)
    assert said in str(error.value)


def test_bad_pictures_of_several_kinds_end_in_one_sentence(folder):
    for place, (spoil, _) in enumerate(BAD[:4]):
        spoil(folder / "train" / "square" / f"{place:03}.jpg")
    run, done = calibration(folder)
    assert done.returncode == 2
    assert done.error.startswith("4 pictures cannot be used: ")
    assert all(said in done.error for _, said in BAD[:4])
    assert not run_folder(run).exists()


def test_bad_pictures_are_left_out_on_demand_and_named(folder):
    cmyk(folder / "train" / "square" / "000.jpg")
    run, done = calibration(folder, "--skip-bad")
    assert done.returncode == 0, done.stderr
    assert "left out 1 pictures" in done.stdout
    held = json.loads((run_folder(run) / "calibration.json").read_text())
    assert list(held["left_out"]) == ["train/square/000.jpg"]
    assert len(held["pictures"]) == 31


def test_a_class_folder_that_test_lacks_is_named(folder):
    shutil.rmtree(folder / "test" / "circle")
    _, done = calibration(folder)
    assert done.returncode == 2
    assert "test has no folder circle/, which train has" in done.error
    shutil.copytree(folder / "test" / "cross", folder / "test" / "circle")
    (folder / "valid" / "star").mkdir()
    with pytest.raises(UserError, match="has a folder star/, which train lacks"):
        classes_of(folder)


def test_a_class_without_pictures_is_named(folder):
    for path in (folder / "valid" / "cross").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="valid/cross holds no picture"):
        pictures_of(folder, "valid", classes_of(folder))


def test_the_draw_is_seeded_balanced_and_shares_nothing_with_test(folder):
    pixels = Image.open(folder / "test" / "cross" / "001.jpg")
    pixels.save(folder / "train" / "cross" / "900.png")  # the same pixels in another format
    shutil.copy(folder / "train" / "cross" / "000.jpg", folder / "train" / "cross" / "901.jpg")
    found = draw(folder, 1000, 1, False)
    assert found["in_test"] == ["train/cross/900.png"]
    assert len(found["twice"]) == 1
    assert len(found["pictures"]) == 32
    some = draw(folder, 10, 1, False)
    counts = [sum(entry["class"] == name for entry in some["pictures"]) for name in some["classes"]]
    assert counts == [3, 3, 2, 2]
    assert draw(folder, 10, 1, False) == some
    assert draw(folder, 10, 2, False)["pictures"] != some["pictures"]


def test_a_picture_that_changed_since_the_draw_is_refused(folder, tmp_path):
    path = tmp_path / "calibration.json"
    found = draw(folder, 8, 1, False)
    path.write_text(json.dumps(found))
    assert read_calibration(path, folder, PLAIN).shape == (8, 8, 8, 3)
    first = folder / found["pictures"][0]["file"]
    Image.new("RGB", (32, 32), (1, 2, 3)).save(first)
    with pytest.raises(UserError, match="is not the picture that was drawn"):
        read_calibration(path, folder, PLAIN)
    first.unlink()
    with pytest.raises(UserError, match="is not there"):
        read_calibration(path, folder, PLAIN)


def test_crop_and_scale_by_hand():
    """The centre of the picture, its shorter side resized; shares of 255 less the mean over the deviation."""
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, 8:24] = (255, 0, 51)
    crop = PLAIN.crop(pixels)
    assert crop.shape == (8, 8, 3)
    assert (crop[:, 2:6] == (255, 0, 51)).all()
    assert np.allclose(PLAIN.inputs(crop[None])[0, :, 4, 4], (2.0, -2.0, -1.2))
    assert PLAIN.inputs(crop[None]).dtype == np.float32


def test_greyscale_is_read_and_equal_pixels_have_one_digest(tmp_path):
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(np.stack([grey] * 3, -1)).save(tmp_path / "colour.png")
    assert digest(decode(tmp_path / "grey.png")) == digest(decode(tmp_path / "colour.png"))
    assert digest(np.zeros((2, 3, 3), np.uint8)) != digest(np.zeros((3, 2, 3), np.uint8))


@pytest.mark.parametrize(("flags", "said"), [
    (("--size", 4), "SIZE is 4"), (("--resize", 16), "RESIZE is 16"), (("--std", "0,1,1"), "STD"),
    (("--mean", "a,b,c"), "write three numbers"), (("--pictures", 0), "PICTURES is 0"),
    (("--pictures", 3), "fewer than the 4 classes"), (("--data-dir", "nowhere"), "is no folder")])
def test_settings_that_cannot_work_are_refused(flags, said):
    _, done = calibration(BUNDLED, *flags)
    assert done.returncode == 2
    assert said in done.error


def test_three_numbers():
    assert three_numbers("0.1, 0.2,3", "MEAN") == (0.1, 0.2, 3.0)
    with pytest.raises(UserError):
        three_numbers("1,2", "MEAN")


def test_the_bundled_pictures_are_those_that_the_script_draws(tmp_path):
    done = run_stage_script("draw_pictures.py", "--out", tmp_path / "drawn", folder="data")
    assert done.returncode == 0, done.stderr
    drawn, bundled = ({path.relative_to(root): path for path in root.rglob("*.jpg")}
                      for root in (tmp_path / "drawn", BUNDLED))
    assert drawn.keys() == bundled.keys()
    gap = [np.abs(decode(drawn[name]).astype(int) - decode(path)).max() for name, path in bundled.items()]
    assert max(gap) <= 8  # another version of the JPEG library rounds otherwise
    assert sum(path.stat().st_size for path in bundled.values()) < 1_000_000
    again = run_stage_script("draw_pictures.py", "--out", tmp_path / "drawn", folder="data")
    assert "is there already" in again.error

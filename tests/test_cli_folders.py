"""``sktl compare DIR``: which folders are classes, which are parts of a split, and what is refused and not guessed."""

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest

from sktl.cli import main
from sktl.cli._folder import find_images, read_folder
from sktl.exceptions import InputError, InputWarning

CLASSES = ("disc", "square")


@pytest.fixture
def make_folders(image_folder, tmp_path):
    """Return a function that puts pictures into folders: below each, one per class if its name ends in a slash."""

    def make(*names, n_images=1):
        for name in names:
            places = [f"{name}{kind}" for kind in CLASSES] if name.endswith("/") else [name]
            for kind, place in zip(CLASSES, places, strict=False):
                (tmp_path / "birds" / place).mkdir(parents=True)
                for number in range(n_images):
                    shutil.copy(image_folder / kind / f"{number}.png", tmp_path / "birds" / place)
        return tmp_path / "birds"

    return make


@pytest.fixture
def refusal(capsys):
    """Return a function that runs ``sktl compare`` on a folder and returns the message, which must be all there is."""

    def compare(folder):
        assert main(["compare", str(folder)]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("sktl: error: ")
        return err

    return compare


def parts_of(files):
    return {Path(path).parents[1].name for path in files.paths}


class TestClasses:
    def test_one_folder_per_class(self, make_folders):
        found = read_folder(make_folders("heron", "stork"))
        assert (found.train.labels, found.test, found.notes) == (["heron", "stork"], None, [])

    def test_folders_below_a_class_belong_to_it(self, make_folders):
        found = read_folder(make_folders("heron", "stork/2023", "stork/2024"))
        assert found.train.labels == ["heron", "stork", "stork"]

    @pytest.mark.parametrize("name", ["train", "Test", "dev", "VALID"])
    def test_a_class_may_be_called_like_a_part(self, make_folders, name):
        found = read_folder(make_folders("bus", name))
        assert Counter(found.train.labels) == {"bus": 1, name: 1}
        assert found.test is None

    def test_a_class_within_a_part_may_be_called_like_a_part(self, make_folders):
        found = read_folder(make_folders("train/bus", "train/train", "test/bus", "test/train"))
        assert found.train.labels == found.test.labels == ["bus", "train"]


class TestSplit:
    @pytest.mark.parametrize(("train", "test"), [("train", "test"), ("Train", "Test"), ("TRAIN", "test")])
    def test_in_upper_or_lower_case(self, make_folders, train, test):
        found = read_folder(make_folders(f"{train}/", f"{test}/"))
        assert found.train.labels == found.test.labels == list(CLASSES)
        assert (parts_of(found.train), parts_of(found.test), found.notes) == ({train}, {test}, [])

    @pytest.mark.parametrize("third", ["val/", "Validation"])
    def test_a_third_part_is_left_out_and_named(self, make_folders, third):
        found = read_folder(make_folders("train/", "test/", third))
        assert (parts_of(found.train), parts_of(found.test)) == ({"train"}, {"test"})
        (note,) = found.notes
        name = third.strip("/")
        assert note == f"beside train/ and test/, not used: {name}/ (cross-validation takes its folds from train/)"

    def test_other_folders_are_left_out_and_named(self, make_folders):
        found = read_folder(make_folders("train/", "test/", "sketches"))
        assert found.notes == ["beside train/ and test/, not used: sketches/"]

    def test_is_compared_on_as_given(self, make_folders, capsys):
        folder = make_folders("train/", n_images=6)
        make_folders("test/", n_images=3)
        make_folders("val/")
        quick = ["--image-size", "32", "--epochs", "1", "--cv", "2", "--jobs", "1"]
        out_folder = str(folder.parent / "out")
        assert main(["compare", str(folder), *quick, "--strategies", "feature_extraction", "--out", out_folder]) == 0
        out, err = capsys.readouterr()
        assert "warning: 6 of the 6 images of the test are among those to learn from too" in err
        assert "birds: 18 image files of 2 classes; 12 to learn from (2-fold cross-validation), 6 set aside" in out
        assert "beside train/ and test/, not used: val/" in out


class TestPartsThatCannotBeUsed:
    @pytest.mark.parametrize("name", ["val", "valid", "validation", "dev", "Val", "testing"])
    def test_another_name_in_place_of_test(self, make_folders, refusal, name):
        folder = make_folders("train/", f"{name}/")
        message = refusal(folder)
        assert "but there is no 'test'. Needed are 'train' and 'test', with one sub-folder" in message
        assert f"rename {name!r} to 'test', or give {str(folder / 'train')!r}" in message

    def test_following_the_advice_helps(self, make_folders):
        folder = make_folders("train/", "val/")
        assert read_folder(folder / "train").train.labels == list(CLASSES)
        os.rename(folder / "val", folder / "test")
        assert parts_of(read_folder(folder).test) == {"test"}

    def test_train_alone(self, make_folders, refusal):
        folder = make_folders("train/")
        message = refusal(folder)
        assert "holds 'train', as a data set that is split does, but there is no 'test'" in message
        assert f"give {str(folder / 'train')!r}, of which a part is then set aside for the test" in message
        assert "rename" not in message

    def test_train_alone_without_class_folders(self, make_folders, refusal):
        message = refusal(make_folders("train"))
        assert "there is no 'test'" in message
        assert "or give" not in message

    def test_without_train(self, make_folders, refusal):
        message = refusal(make_folders("test/", "val/"))
        assert "holds 'test' and 'val', as a data set that is split does, but there is no 'train'" in message

    def test_other_names_for_both(self, make_folders, refusal):
        message = refusal(make_folders("Training/", "dev/", "val/"))
        assert "holds 'Training', 'dev' and 'val', as" in message
        assert "there is no 'train' and no 'test'" in message
        assert "rename 'Training' to 'train' and 'dev' or 'val' to 'test'." in message

    def test_test_part_without_class_folders(self, make_folders, refusal):
        folder = make_folders("train/", "test")
        message = refusal(folder)
        assert "there are no sub-folders in 'test'" in message
        assert f"give {str(folder / 'train')!r}" in message

    @pytest.mark.parametrize("others", [(), ("bus", "tram")])
    def test_parts_without_class_folders_are_no_classes(self, make_folders, refusal, others):
        message = refusal(make_folders("train", "test", *others))
        assert "there are no sub-folders in 'train' or 'test'" in message
        assert "If a class is called like a part, give its folder another name." in message

    def test_part_with_class_folders_beside_classes(self, make_folders, refusal):
        assert "there is no 'test'" in refusal(make_folders("bus", "tram", "train/"))

    def test_same_part_in_upper_and_lower_case(self, make_folders, refusal, tmp_path):
        (tmp_path / "probe").mkdir()
        if (tmp_path / "PROBE").exists():
            pytest.skip("the file system knows no difference between upper and lower case")
        message = refusal(make_folders("Train/", "train/", "test/"))
        assert "'Train' and 'train' are the same but for upper and lower case" in message


def test_says_of_what_kind_the_skipped_files_are(make_folders):
    folder = make_folders("heron", "stork")
    for number in range(3):
        (folder / "heron" / f"{number}.HEIC").write_bytes(b"a picture of a phone")
    (folder / "stork" / "README").write_text("long legs")
    (note,) = read_folder(folder).notes
    assert note == "skipped: 4 files that are not read as images (.heic, no suffix)"


class TestOtherRefusals:
    def test_missing_folder(self, refusal, tmp_path):
        assert "does not exist" in refusal(tmp_path / "birds")

    def test_file_in_place_of_a_folder(self, refusal, tmp_path):
        (tmp_path / "birds.zip").write_bytes(b"")
        assert "is a file, not a folder" in refusal(tmp_path / "birds.zip")

    def test_folder_without_subfolders(self, refusal, image_folder):
        assert "holds no sub-folders. Expected is one sub-folder" in refusal(image_folder / "disc")

    def test_subfolders_without_images(self, refusal, tmp_path):
        (tmp_path / "heron").mkdir()
        assert "hold no image files" in refusal(tmp_path)

    def test_pictures_in_a_format_that_is_not_read(self, refusal, tmp_path):
        (tmp_path / "heron").mkdir()
        for name in ("1.HEIC", "2.heic", "3.avif", "4"):
            (tmp_path / "heron" / name).write_bytes(b"a picture of a phone")
        assert "hold no image files, but 4 files that are not read as images (.avif, .heic, no suffix)" in refusal(
            tmp_path
        )

    def test_one_class_only(self, refusal, make_folders):
        assert "there is only 'heron'" in refusal(make_folders("heron"))

    def test_class_of_the_test_part_that_the_training_part_lacks(self, refusal, make_folders):
        folder = make_folders("train/", "test/", "train/stork", n_images=3)
        shutil.rmtree(folder / "train" / "disc")
        assert "classes that the training images do not: disc" in refusal(folder)

    def test_errors_are_of_the_kind_that_says_so(self, make_folders):
        with pytest.raises(InputError, match="there is no 'test'"):
            read_folder(make_folders("train/", "val/"))


def test_folder_that_cannot_be_opened_is_named(make_folders, monkeypatch):
    def scan(path):
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    folder, scandir = make_folders("open", "secret"), os.scandir
    monkeypatch.setattr(os, "scandir", scan)
    with pytest.warns(InputWarning, match=r"secret is left out: Permission denied"):
        found = list(find_images(folder))
    assert [path.parent.name for path in found] == ["open"]

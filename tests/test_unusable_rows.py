"""Containers that fit cannot take as X: what is wrong with them, and what to do about it."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_models import make_model

from sktl import FineTuneRegressor, PretrainedFeatureTransformer
from sktl.exceptions import InputError
from sktl.inputs import RowError, open_texts


@pytest.fixture
def paths(image_paths):
    return image_paths[0]


@pytest.fixture
def y(image_paths):
    return image_paths[1]


@pytest.fixture
def model():
    return make_model("feature_extraction", image_shape=None)


UNORDERED = {
    "generator": lambda paths: Path(paths[0]).parent.glob("*.png"),
    "map": lambda paths: map(Path, paths),
    "set": set,
    "keys": lambda paths: dict.fromkeys(paths).keys(),
    "values": lambda paths: dict(enumerate(paths)).values(),
    "generator of numbers": lambda paths: ([float(number)] for number in range(len(paths))),
}


@pytest.mark.parametrize("kind", UNORDERED)
def test_rows_without_a_place_are_to_be_a_list(model, paths, y, kind):
    X = UNORDERED[kind](paths)
    message = r"^X must be a list, array or column, got \w+ instead, .*; pass list\(X\)"
    for estimator in (model, FineTuneRegressor(), PretrainedFeatureTransformer()):
        with pytest.raises(InputError, match=message):
            estimator.fit(X, y)
    model.fit(paths, y)
    with pytest.raises(InputError, match=message):
        model.predict(X)


def test_texts_without_a_place_are_to_be_a_list():
    with pytest.raises(InputError, match=r"got generator instead, which can be read once only; pass list\(X\)"):
        open_texts((text for text in ["a cat"]), encode=str.split)


@pytest.mark.parametrize("name", ["y", "y_val", "groups"])
def test_what_belongs_to_rows_is_to_be_a_list_too(model, paths, y, name):
    given = {"y": y, "X_val": paths, "y_val": y, "groups": y}
    with pytest.raises(InputError, match=rf"^{name} must be a list.* got generator instead.* list\({name}\)"):
        model.fit(paths, **{**given, name: (label for label in y)})


NESTED = {
    "paths": lambda path: [path],
    "tuples": lambda path: (path,),
    "path objects": lambda path: [Path(path)],
    "Pillow images": lambda path: [Image.open(path).copy()],
    "arrays": lambda path: [np.asarray(Image.open(path))],
    "numbers before": lambda path: [1.0, path],
}


@pytest.mark.parametrize("kind", NESTED)
def test_lists_of_one_image_are_to_be_one_list(model, paths, y, kind):
    X = [NESTED[kind](path) for path in paths]
    place = 1 if kind == "numbers before" else 0
    message = rf"^Row 0 of X is a (list|tuple) that holds .* pass \[row\[{place}\] for row in X\]\."
    with pytest.raises(InputError, match=message):
        model.fit(X, y)
    with pytest.raises(InputError, match=message):
        PretrainedFeatureTransformer().fit(X)
    assert len(model.fit([row[place] for row in X], y).predict([row[place] for row in X])) == len(X)


def test_lists_of_numbers_are_a_table(model):
    assert model.fit([[0.0, 1.0], [1.0, 0.0]], ["a", "b"]).n_features_in_ == 2


SINGLE = {
    "path": lambda path: path,
    "path object": Path,
    "bytes": lambda path: Path(path).read_bytes(),
    "file": lambda path: io.BytesIO(Path(path).read_bytes()),
    "Pillow image": lambda path: Image.open(path).copy(),
}


@pytest.mark.parametrize("kind", SINGLE)
def test_a_single_image_is_to_be_in_a_list(model, paths, kind):
    X = SINGLE[kind](paths[0])
    for estimator in (model, FineTuneRegressor(), PretrainedFeatureTransformer()):
        with pytest.raises(InputError, match=r"^X must hold rows, got a single image .*; wrap it in a list: \[X\]"):
            estimator.fit(X, ["a"])
    with pytest.raises(InputError, match=r"^X must hold rows, got a single image"):
        model.partial_fit(X, ["a"], classes=["a", "b"])


@pytest.mark.parametrize("call", ["fit", "partial_fit"])
@pytest.mark.parametrize("strategy", ["feature_extraction", "fine_tuning"])
def test_all_bad_rows_are_named_at_once_and_in_their_order(paths, y, tmp_path, strategy, call):
    (tmp_path / "page.png").write_text("<html>not found</html>")
    (tmp_path / "copy.png").write_text("<html>not found</html>")  # of the same content and class
    (tmp_path / "text.png").write_text("no picture")
    bad = {2: "page.png", 4: "gone.png", 5: "copy.png", 8: "text.png", 9: "lost.png"}
    X = [str(tmp_path / bad[row]) if row in bad else path for row, path in enumerate(paths)]
    model = make_model(strategy, image_shape=None)
    with pytest.raises(InputError, match=r"5 .*rows of X cannot be used") as caught:
        getattr(model, call)(X, y, **({"classes": np.unique(y)} if call == "partial_fit" else {}))
    assert [row.index for row in caught.value.rows] == list(bad)
    lines = str(caught.value).splitlines()[1:]
    for line, name, reason in zip(lines, bad.values(), ["HTML", "no such", "HTML", "format", "no such"], strict=True):
        assert name in line
        assert reason in line


@pytest.mark.parametrize("row", [0, 1])
def test_broken_rows_of_validation_are_told_from_those_of_training(paths, y, row):
    broken = [Path(path).read_bytes() for path in paths[:4]]
    broken[row] = broken[row][:60]
    with pytest.raises(InputError, match=f"^In X_val, .*: 1 row of X cannot be used:\n  row {row}: ") as caught:
        make_model("fine_tuning", image_shape=None).fit(paths, y, X_val=broken, y_val=y[:4])
    assert [bad.index for bad in caught.value.rows] == [row]


def test_what_is_wrong_with_validation_rows_says_that_it_is_they(paths, y):
    given = {"X_val": paths[:4], "y_val": y[:4]}
    for wrong in ({"sample_weight_val": [1.0, 2.0]}, {"sample_weight_val": [0.0] * 4}, {"y_val": y[:3]}):
        with pytest.raises(ValueError, match=r"^In X_val, y_val and sample_weight_val: "):
            make_model("fine_tuning", image_shape=None).fit(paths, y, **{**given, **wrong})
    with pytest.raises(ValueError, match="sample_weight_val with them only"):
        make_model("fine_tuning", image_shape=None).fit(paths, y, sample_weight_val=[1.0])


class Texts:
    """A container that cannot give one of its rows."""

    def __len__(self):
        return 30

    def __getitem__(self, row):
        if row == 1:
            raise KeyError("lost")
        return "a text"


def test_a_container_of_texts_that_fails_is_told_by_row():
    rows = open_texts(Texts(), lambda text: None)
    with pytest.raises(RowError, match=r"Texts cannot give this row: KeyError\('lost'\)"):
        rows[1]
    assert rows.label(1) == "row 1"

"""The checks: each takes an estimator as its user made it, works on copies, and says in words what is wrong."""

import inspect
import pickle
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import joblib
import numpy as np
from PIL import Image
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.validation import has_fit_parameter

from sktl.testing._images import as_container, assert_same, fit_copy, fitted, fresh, outputs, pictures_in_folder
from sktl.testing._state import global_seeds, global_state, telling_global_state, what_changed


@dataclass(frozen=True)
class Setting:
    """What holds for all checks of one estimator.

    Attributes
    ----------
    containers : sequence of str
        Those that the estimator takes; the first one is used where a check needs only one.
    rtol : float
        How far numbers may differ that should be the same.
    """

    containers: Sequence[str]
    rtol: float

    @property
    def files(self) -> list[str]:
        return [container for container in self.containers if container in ("paths", "pathlib")]


# What an estimator is -------------------------------------------------------------------------------------------------


def check_constructor_stores_parameters(estimator, setting: Setting) -> None:
    """A copy has the same parameters, and ``set_params`` takes what ``get_params`` gives."""
    copied = clone(estimator)
    for name, value in estimator.get_params(deep=False).items():
        assert joblib.hash(copied.get_params(deep=False)[name]) == joblib.hash(value), f"clone changes {name!r}"
    assert copied.set_params(**copied.get_params(deep=False)) is copied, "set_params must return the estimator"


def check_fit_returns_self(estimator, setting: Setting) -> None:
    with pictures_in_folder() as pictures:
        unfitted = fresh(estimator)
        assert unfitted.fit(pictures.X(setting.containers[0]), pictures.y(estimator)) is unfitted


def check_fit_leaves_parameters(estimator, setting: Setting) -> None:
    """``fit`` learns attributes; what the user asked for stays."""
    with pictures_in_folder() as pictures:
        model = fresh(estimator)
        before = {name: joblib.hash(value) for name, value in model.get_params().items()}
        model.fit(pictures.X(setting.containers[0]), pictures.y(estimator))
        after = {name: joblib.hash(value) for name, value in model.get_params().items()}
    changed = [name for name in before if before[name] != after.get(name)]
    assert not changed, f"fit changes the parameters {changed}"


def check_unfitted_is_said(estimator, setting: Setting) -> None:
    with pictures_in_folder() as pictures:
        for method in ("predict", "predict_proba", "decision_function", "transform"):
            model = fresh(estimator)
            if not hasattr(model, method):
                continue
            try:
                getattr(model, method)(pictures.X(setting.containers[0]))
            except NotFittedError:
                continue
            raise AssertionError(f"{method} before fit must raise sklearn.exceptions.NotFittedError")


def check_pickle(estimator, setting: Setting) -> None:
    """A copy through pickle gives the same, and so does an unfitted copy that is fitted afterwards."""
    with pictures_in_folder() as pictures:
        X = pictures.X(setting.containers[0])
        model = fitted(estimator, pictures, setting.containers[0])
        expected = outputs(model, X)
        assert_same(outputs(pickle.loads(pickle.dumps(model)), X), expected, setting.rtol, "a pickled copy differs")
        unfitted = pickle.loads(pickle.dumps(fresh(estimator)))
        unfitted.fit(X, pictures.y(estimator))
        assert_same(outputs(unfitted, X), expected, setting.rtol, "a copy that was pickled before fit differs")


# What it makes of images ----------------------------------------------------------------------------------------------


def check_one_output_per_image(estimator, setting: Setting, container: str) -> None:
    with pictures_in_folder() as pictures:
        model = fitted(estimator, pictures, container)
        for n in (len(pictures), 1):
            for method, values in outputs(model, pictures.X(container, range(n))).items():
                assert len(values) == n, f"{method} gives {len(values)} rows for {n} images"
                assert values.dtype.kind not in "fc" or np.isfinite(values).all(), f"{method} gives no finite numbers"


def check_containers_agree(estimator, setting: Setting, container: str) -> None:
    """The same pictures give the same result, whatever holds them, at fit and afterwards."""
    first = setting.containers[0]
    with pictures_in_folder() as pictures:
        model = fitted(estimator, pictures, first)
        expected = outputs(model, pictures.X(first))
        after = outputs(model, pictures.X(container))
        assert_same(after, expected, setting.rtol, f"fitted on {first!r}, {container!r} differ from {first!r}")
        anew = outputs(fitted(estimator, pictures, container), pictures.X(container))
        assert_same(anew, expected, setting.rtol, f"fitted on {container!r} differs from fitted on {first!r}")


def check_sizes_may_differ(estimator, setting: Setting, container: str) -> None:
    with pictures_in_folder(ragged=True) as pictures:
        model = fitted(estimator, pictures, container)
        for method, values in outputs(model, pictures.X(container)).items():
            assert len(values) == len(pictures), f"{method} gives {len(values)} rows for {len(pictures)} images"


def check_modes_agree(estimator, setting: Setting, container: str) -> None:
    """A grey, opaque RGBA or palette picture is the RGB picture that it shows."""
    with pictures_in_folder() as pictures:
        model = fitted(estimator, pictures, container)
        grey = Image.fromarray(pictures.pixels[0]).convert("L")
        palette = grey.point(lambda value: value // 8 * 8).convert("RGB").quantize(64)
        coloured = Image.fromarray(pictures.pixels[1]).convert("RGBA")
        for picture in (grey, palette, coloured):
            X, plain = [picture], [picture.convert("RGB")]
            if container != "pil":
                X, plain = ([_saved(each, pictures.folder / name)] for each, name in ((picture, "a"), (plain[0], "b")))
                X, plain = (value if container == "pathlib" else [str(value[0])] for value in (X, plain))
            message = f"a picture of mode {picture.mode} differs from itself as RGB"
            assert_same(outputs(model, X), outputs(model, plain), setting.rtol, message)


def _saved(picture: Image.Image, stem):
    path = stem.with_name(f"{stem.name}_{picture.mode}.png")
    picture.save(path)
    return path


def check_order_of_rows(estimator, setting: Setting, container: str) -> None:
    with pictures_in_folder() as pictures:
        model = fitted(estimator, pictures, container)
        order = np.random.default_rng(0).permutation(len(pictures))
        expected = {method: values[order] for method, values in outputs(model, pictures.X(container)).items()}
        found = outputs(model, pictures.X(container, order))
        assert_same(found, expected, setting.rtol, "the result of a row depends on its place")


def check_subsets_of_rows(estimator, setting: Setting, container: str) -> None:
    with pictures_in_folder() as pictures:
        model = fitted(estimator, pictures, container)
        everything = outputs(model, pictures.X(container))
        for rows in ([0], [4, 7], list(range(5, len(pictures))), [3, 3, 3]):
            expected = {method: values[rows] for method, values in everything.items()}
            found = outputs(model, pictures.X(container, rows))
            assert_same(found, expected, setting.rtol, f"rows {rows} differ when they come without the others")


def check_input_is_not_changed(estimator, setting: Setting, container: str) -> None:
    with pictures_in_folder() as pictures:
        X, y = pictures.X(container), pictures.y(estimator)
        before = _content(X), y.copy()
        model = fit_copy(estimator, X, y)
        outputs(model, X)
        assert _content(X) == before[0], "X is changed"
        assert np.array_equal(y, before[1]), "y is changed"
        if container == "array":
            X.flags.writeable = y.flags.writeable = False
            outputs(fit_copy(estimator, X, y), X)


def _content(X) -> list:
    return [(type(each).__name__, each if isinstance(each, str) else joblib.hash(np.asarray(each))) for each in X]


# What it refuses ------------------------------------------------------------------------------------------------------

BROKEN = {
    "text": lambda whole: b"no picture",
    "cut off": lambda whole: whole[: len(whole) // 2],
    "empty": lambda _: b"",
}


def check_broken_files_are_named(estimator, setting: Setting, container: str) -> None:
    """A file that cannot be read, or is not there, is an error that names it, in ``fit`` or in what follows it."""
    with pictures_in_folder() as pictures:
        model = fitted(estimator, pictures, container)
        whole = Path(pictures.X("paths")[5]).read_bytes()
        for kind in (*BROKEN, "missing"):
            path = pictures.folder / f"{kind.replace(' ', '_')}_file.png"
            if kind in BROKEN:
                path.write_bytes(BROKEN[kind](whole))
            X = pictures.X(container)
            X[5] = path if container == "pathlib" else str(path)
            message = f"a file that is {kind!r}" if kind != "text" else "a file of text"
            _assert_row_is_named(lambda X=X: outputs(model, X), path.name, f"{message}, after fit")
            _assert_row_is_named(lambda X=X: _fit_and_use(estimator, X, pictures), path.name, f"{message}, in fit")


def _fit_and_use(estimator, X, pictures) -> None:
    outputs(fit_copy(estimator, X, pictures.y(estimator)), X)


def _assert_row_is_named(use, name: str | None, what: str) -> None:
    try:
        use()
    except (ValueError, TypeError, OSError) as error:
        text = "\n".join([str(error), *getattr(error, "__notes__", [])])
        names_file = name is not None and name in text
        assert names_file or re.search(r"\b5\b", text), f"{what}: the error names neither row nor file: {text}"
        return
    raise AssertionError(f"{what}: no error is raised")


def check_rows_that_hold_no_image(estimator, setting: Setting) -> None:
    with pictures_in_folder() as pictures:
        container = next((each for each in setting.containers if each != "array"), None)
        if container is None:
            return
        X = pictures.X(container)
        X[5] = None
        _assert_row_is_named(lambda: _fit_and_use(estimator, X, pictures), None, "None as a row")


def check_no_rows(estimator, setting: Setting) -> None:
    with pictures_in_folder() as pictures:
        container = setting.containers[0]
        empty = as_container([], container) if container != "array" else pictures.X("array")[:0]
        try:
            fit_copy(estimator, empty, pictures.y(estimator)[:0])
        except ValueError:
            return
    raise AssertionError("fit on no rows must raise a ValueError")


def check_lengths_must_agree(estimator, setting: Setting) -> None:
    with pictures_in_folder() as pictures:
        try:
            fit_copy(estimator, pictures.X(setting.containers[0]), pictures.y(estimator)[:-1])
        except ValueError:
            return
    raise AssertionError("fit on 18 images and 17 targets must raise a ValueError")


# What fit does --------------------------------------------------------------------------------------------------------


def check_fit_starts_anew(estimator, setting: Setting) -> None:
    """A second ``fit`` forgets the first, and fits on the same rows give the same, whatever global seeds are."""
    with pictures_in_folder() as pictures:
        X, y = pictures.X(setting.containers[0]), pictures.y(estimator)
        with global_seeds(271828):
            expected = outputs(fit_copy(estimator, X, y), X)
        with global_seeds(314159):
            again = outputs(fit_copy(estimator, X, y), X)
        assert_same(again, expected, setting.rtol, "two fits on the same rows differ")
        used = fit_copy(estimator, X[:9], y[:9][::-1])
        used.fit(X, y)
        assert_same(outputs(used, X), expected, setting.rtol, "a second fit does not forget the first")


def check_global_state_is_left_alone(estimator, setting: Setting) -> None:
    with pictures_in_folder() as pictures, telling_global_state():
        before = global_state()
        outputs(fitted(estimator, pictures, setting.containers[0]), pictures.X(setting.containers[0]))
        changed = what_changed(before)
    assert not changed, f"the estimator changes {', '.join(changed)}"


def check_labels(estimator, setting: Setting) -> None:
    """Labels of any type come back; the order of classes is scikit-learn's; colours can be told apart."""
    with pictures_in_folder() as pictures:
        X = pictures.X(setting.containers[0])
        for names in (["amber", "brick", "cyan"], [30, -1, 7], [True, False, True]):
            y = np.array(names)[np.unique(pictures.labels, return_inverse=True)[1]]
            model = fit_copy(estimator, X, y)
            assert np.array_equal(model.classes_, np.unique(y)), f"classes_ are {model.classes_}, y holds {set(names)}"
            predicted = np.asarray(model.predict(X))
            assert predicted.dtype == y.dtype, f"labels of dtype {y.dtype} come back as {predicted.dtype}"
            chance = np.unique(y, return_counts=True)[1].max() / len(y)
            assert np.mean(predicted == y) > chance, (
                "training rows of three plain colours are told apart by chance only"
            )


def check_zero_weight_is_absence(estimator, setting: Setting) -> None:
    """Rows of weight 0 change nothing, and a weight of 1 is the default."""
    with pictures_in_folder() as pictures:
        X, y = pictures.X(setting.containers[0]), pictures.y(estimator)
        weight = np.ones(len(y))
        plain, ones = fit_copy(estimator, X, y), fit_copy(estimator, X, y, sample_weight=weight)
        assert_same(outputs(ones, X), outputs(plain, X), setting.rtol, "weights of 1 differ from none")
        weight[-6:] = 0
        wrong = np.concatenate([y[:-6], y[-6:][::-1]])
        weighted = fit_copy(estimator, X, wrong, sample_weight=weight)
        without = fit_copy(estimator, X[:-6], y[:-6])
        assert_same(outputs(weighted, X), outputs(without, X), setting.rtol, "rows of weight 0 have an influence")


def check_weight_is_repetition(estimator, setting: Setting) -> None:
    with pictures_in_folder() as pictures:
        container, weight = setting.containers[0], np.random.default_rng(0).integers(1, 4, len(pictures))
        rows = np.repeat(np.arange(len(pictures)), weight)
        X, y = pictures.X(container), pictures.y(estimator)
        weighted = fit_copy(estimator, X, y, sample_weight=weight)
        repeated = fit_copy(estimator, pictures.X(container, rows), y[rows])
        assert_same(outputs(weighted, X), outputs(repeated, X), setting.rtol, "a weight of 2 is not the row twice")


# Among other estimators -----------------------------------------------------------------------------------------------


def check_pipeline(estimator, setting: Setting) -> None:
    with pictures_in_folder() as pictures:
        X, y = pictures.X(setting.containers[0]), pictures.y(estimator)
        if hasattr(estimator, "predict"):
            model, alone = make_pipeline("passthrough", fresh(estimator)), fresh(estimator)
        else:
            model, alone = make_pipeline(fresh(estimator), "passthrough"), fresh(estimator)
        alone.fit(X, y)
        assert_same(
            outputs(model.fit(X, y), X), outputs(alone, X), setting.rtol, "inside a Pipeline the result differs"
        )


def check_cross_val_score(estimator, setting: Setting) -> None:
    with pictures_in_folder() as pictures:
        X, y = pictures.X(setting.containers[0]), pictures.y(estimator)
        model = fresh(estimator)
        if not hasattr(model, "predict"):
            model = make_pipeline(model, LogisticRegression(max_iter=200))
        scores = cross_val_score(model, X, y, cv=2, error_score="raise")
    assert np.isfinite(scores).all(), f"the scores of a cross-validation are {scores}"


ONCE = [
    check_constructor_stores_parameters,
    check_fit_returns_self,
    check_fit_leaves_parameters,
    check_unfitted_is_said,
    check_pickle,
    check_rows_that_hold_no_image,
    check_no_rows,
    check_fit_starts_anew,
    check_global_state_is_left_alone,
    check_pipeline,
    check_cross_val_score,
]
PER_CONTAINER = [
    check_one_output_per_image,
    check_order_of_rows,
    check_subsets_of_rows,
    check_input_is_not_changed,
]


def checks_of(estimator, setting: Setting):
    """Yield the checks that suit an estimator, each with the container that it is for, or None."""
    yield from ((check, None) for check in ONCE)
    if is_classifier(estimator):
        yield check_labels, None
    if is_classifier(estimator) or is_regressor(estimator):
        yield check_lengths_must_agree, None
    if has_fit_parameter(estimator, "sample_weight"):
        yield from ((check, None) for check in (check_zero_weight_is_absence, check_weight_is_repetition))
    yield from product(PER_CONTAINER, setting.containers)
    yield from product([check_containers_agree], setting.containers[1:])
    yield from product([check_sizes_may_differ], [each for each in setting.containers if each != "array"])
    yield from product([check_modes_agree], [each for each in setting.containers if each in ("pil", *setting.files)])
    yield from product([check_broken_files_are_named], setting.files)


def takes_container(check) -> bool:
    """Whether a check is for one container."""
    return "container" in inspect.signature(check).parameters

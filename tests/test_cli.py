"""The command line, as its user sees it: what is printed, what is written, what is refused and how."""

import contextlib
import csv
import io
import os
import pickle
import shlex
import shutil
import subprocess
import sys
from types import SimpleNamespace

import joblib
import numpy as np
import pytest
from PIL import Image

import sktl
from sktl.cli import main
from sktl.cli._candidates import SmallPixels
from sktl.cli._output import command_line, write_whole
from sktl.cli._parser import make_parser
from sktl.strategies import STRATEGIES

SAVED = os.path.join(os.path.dirname(__file__), "data", "format-1.sktl")

QUICK = ["--image-size", "32", "--epochs", "1", "--cv", "2", "--jobs", 1]


def run(*words):
    """Run the command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(word) for word in words])
        except SystemExit as ended:
            code = ended.code
    return SimpleNamespace(code=code, out=out.getvalue(), err=err.getvalue())


def run_apart(*words, **options):
    """Run the command line in a process of its own."""
    words = [sys.executable, "-m", "sktl", *map(str, words)]
    return subprocess.run(words, capture_output=True, text=True, timeout=280, **options)


def refusal(*words):
    """Return the error message of a command that is refused, which must be all that it prints."""
    done = run(*words)
    assert (done.code, done.out) == (2, "")
    assert "Traceback" not in done.err
    assert "error: " in done.err
    return done.err


def read_csv(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def compared(image_folder, tmp_path_factory):
    """Outcome and folder of a comparison on generated shapes, with some files that are no pictures among them."""
    folder = tmp_path_factory.mktemp("data") / "shapes"
    shutil.copytree(image_folder, folder)
    (folder / "disc" / ".hidden.png").write_bytes(b"")
    (folder / "disc" / "notes.txt").write_text("round")
    (folder / "list.csv").write_text("a,b")
    (folder / "nothing").mkdir()
    (folder / "square" / "broken.png").write_bytes(b"\x89PNG not really")
    out = tmp_path_factory.mktemp("compared")
    strategies = "feature_extraction,fine_tuning"
    return SimpleNamespace(folder=out, done=run("compare", folder, *QUICK, "--strategies", strategies, "--out", out))


@pytest.fixture(scope="module")
def compared_digits(tmp_path_factory):
    """Outcome and folder of a small comparison on the digits."""
    out = tmp_path_factory.mktemp("digits")
    done = run("compare", "digits", "--max-images", 120, *QUICK[2:], "--strategies", "feature_extraction", "--out", out)
    return SimpleNamespace(folder=out, done=done)


@pytest.fixture(scope="module")
def model(compared):
    """File of the model that a comparison saved."""
    return compared.folder / "model.sktl"


class TestCompare:
    def test_says_what_it_compares_on(self, compared):
        assert compared.done.code == 0
        assert "shapes: 31 image files of 3 classes; 23 to learn from" in compared.done.out
        assert "backbone sktl/tiny at 32x32 pixels on " in compared.done.out

    def test_says_that_the_bundled_backbone_is_none_for_photographs(self, compared, compared_digits):
        assert "it never saw a photograph; for photographs, try --backbone mobilenetv2_100" in compared.done.out
        assert "photograph" not in compared_digits.done.out

    def test_counts_what_it_skips(self, compared):
        assert (
            "skipped: 1 hidden file, 1 file that is not read as an image (.txt), "
            "1 file outside of the class folders, 1 class folder without images"
        ) in compared.done.out

    def test_leaves_out_and_names_what_cannot_be_read(self, compared):
        (line,) = compared.done.err.splitlines()
        assert line.startswith("sktl: warning: ")
        assert "broken.png is left out: " in line

    def test_shows_progress(self, compared):
        lines = [line for line in compared.done.out.splitlines() if line.startswith("[")]
        assert [line.split("]")[0] for line in lines] == ["[1/4", "[2/4", "[3/4", "[4/4"]
        assert all("±" in line and line.endswith(" s") for line in lines)

    def test_prints_a_table_with_the_best_first(self, compared):
        lines = compared.done.out.splitlines()
        header = next(number for number, line in enumerate(lines) if "cross-validation  " in line)
        assert lines[header].split() == ["way", "cross-validation", "test", "trained", "parameters", "seconds"]
        rows = lines[header + 2 : header + 6]
        scores = [float(row.split(" ± ")[0].split()[-1]) for row in rows]
        assert scores == sorted(scores, reverse=True)
        assert [row[0] for row in rows] == ["*", " ", " ", " "]
        assert "\n".join(lines[header : header + 6]) in (compared.folder / "comparison.txt").read_text(encoding="utf-8")

    def test_writes_the_table_as_numbers(self, compared):
        rows = read_csv(compared.folder / "comparison.csv")
        ways = {
            "raw pixels + LogisticRegression",
            "embeddings + LogisticRegression",
            "feature_extraction",
            "fine_tuning",
        }
        assert {row["way"] for row in rows} == ways
        for row in rows:
            folds = [float(row["cv_fold_1"]), float(row["cv_fold_2"])]
            assert float(row["cv_accuracy"]) == pytest.approx(np.mean(folds))
            assert float(row["cv_std"]) == pytest.approx(np.std(folds))
            assert 0 <= float(row["test_accuracy"]) <= 1
            assert float(row["seconds"]) > 0

    def test_counts_trained_parameters(self, compared):
        rows = {row["way"]: int(row["trained_parameters"]) for row in read_csv(compared.folder / "comparison.csv")}
        width = sktl.PretrainedFeatureTransformer().fit(np.zeros((1, 32, 32, 3), np.uint8)).backbone_.width
        assert rows["raw pixels + LogisticRegression"] == (32 * 32 * 3 + 1) * 3
        assert rows["embeddings + LogisticRegression"] == rows["feature_extraction"] == (width + 1) * 3
        assert rows["fine_tuning"] > 100_000

    def test_writes_a_picture_and_leaves_nothing_unfinished(self, compared):
        assert (compared.folder / "comparison.png").read_bytes().startswith(b"\x89PNG")
        files = sorted(os.listdir(compared.folder))
        assert files == ["comparison.csv", "comparison.png", "comparison.txt", "model.sktl"]

    def test_saves_the_winner(self, compared, model, image_paths):
        paths, labels = image_paths
        winner = read_csv(compared.folder / "comparison.csv")[0]["way"]
        estimator = sktl.load(model, trusted=[SmallPixels])
        assert getattr(estimator, "strategy", "pipeline") == (winner if "+" not in winner else "pipeline")
        assert estimator.score(paths, labels) > 0.8

    def test_next_command_works_as_it_stands(self, compared):
        *_, line = compared.done.out.splitlines()
        words = shlex.split(line)
        done = run(*words[words.index("predict") :])
        assert done.code == 0
        assert len(done.out.splitlines()) == 2

    def test_without_matplotlib_says_how_to_get_the_picture(self, image_folder, tmp_path, monkeypatch):
        for name in [name for name in sys.modules if name.startswith("matplotlib.")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        done = run("compare", image_folder, *QUICK, "--strategies", "feature_extraction", "--out", tmp_path)
        assert done.code == 0
        assert 'pip install "sktl[plots]"' in done.out
        assert sorted(os.listdir(tmp_path)) == ["comparison.csv", "comparison.txt", "model.sktl"]


class TestCompareDigits:
    def test_says_what_it_compares_on(self, compared_digits):
        assert compared_digits.done.code == 0
        assert "digits: 120 images of 10 classes; 90 to learn from" in compared_digits.done.out

    def test_raw_pixels_are_the_digits_of_scikit_learn(self, compared_digits):
        rows = {row["way"]: row for row in read_csv(compared_digits.folder / "comparison.csv")}
        assert rows["raw pixels + LogisticRegression"]["trained_parameters"] == str((64 + 1) * 10)

    def test_next_command_predicts_samples_of_each_class(self, compared_digits):
        *_, line = compared_digits.done.out.splitlines()
        words = shlex.split(line)
        done = run(*words[words.index("predict") :])
        assert done.code == 0
        rows = [row.split() for row in done.out.splitlines()]
        assert [os.path.basename(row[0]) for row in rows] == [f"{digit}.png" for digit in range(10)]
        assert np.mean([os.path.basename(row[0]) == f"{row[1]}.png" for row in rows]) >= 0.5

    def test_samples_are_the_pixels_that_were_tested_on(self, compared_digits):
        from sktl.cli._data import load_images

        images = load_images("digits", test_size=0.25, n_splits=2, max_images=120, random_state=0)
        for digit in range(10):
            with Image.open(compared_digits.folder / "samples" / f"{digit}.png") as image:
                first = images.test.X[list(images.test.y).index(digit)]
                np.testing.assert_array_equal(np.asarray(image), first[..., 0])


class TestRefusals:
    def test_class_with_too_few_images(self, image_folder, tmp_path):
        shutil.copytree(image_folder, tmp_path, dirs_exist_ok=True)
        for number in range(2, 10):
            (tmp_path / "disc" / f"{number}.png").unlink()
        message = refusal("compare", tmp_path, "--cv", 3)
        assert "Classes with too few images for a test part and --cv 3, which need 4 of each: disc (2)." in message

    def test_too_few_images_left(self):
        assert "--max-images leaves 15 of 1,797 images" in refusal("compare", "digits", "--max-images", 15)

    def test_unknown_strategy(self, image_folder):
        assert "Did you mean 'fine_tuning'?" in refusal("compare", image_folder, "--strategies", "fine_tunning")

    def test_unknown_backbone(self, image_folder, tmp_path):
        done = run("compare", image_folder, "--backbone", "mobilenetv2_1000", "--out", tmp_path / "out")
        assert done.code == 2
        assert "sktl: error: There is no backbone 'mobilenetv2_1000'. Did you mean" in done.err
        assert not (tmp_path / "out").exists()

    def test_place_for_results_that_cannot_be_made(self, image_folder, tmp_path):
        (tmp_path / "out").write_text("in the way")
        done = run("compare", image_folder, *QUICK, "--out", tmp_path / "out")
        assert done.code == 2
        assert "sktl: error: [Errno" in done.err
        assert "[1/" not in done.out

    def test_missing_weights(self, image_folder):
        done = run("compare", image_folder, "--backbone", "mobilenetv2_100", "--weights", "nowhere.safetensors")
        assert done.code == 2
        assert "sktl: error: The 'weights' parameter names 'nowhere.safetensors'" in done.err

    @pytest.mark.parametrize(
        ("option", "value", "rule"),
        [
            ("--cv", "1", "an integer of at least 2"),
            ("--epochs", "many", "an integer of at least 1"),
            ("--test-size", "1.5", "a number between 0 and 1"),
            ("--strategies", ",", "at least one of"),
        ],
    )
    def test_value_out_of_range(self, option, value, rule):
        message = refusal("compare", "digits", option, value)
        assert f"argument {option}: must" in message
        assert rule in message

    def test_traceback_on_demand(self, tmp_path):
        with pytest.raises(sktl.exceptions.InputError):
            main(["compare", str(tmp_path / "birds"), "--traceback"])


class TestPredict:
    def test_prints_path_class_and_probability(self, model, image_paths):
        paths, labels = image_paths
        done = run("predict", model, *paths[:6])
        rows = [line.split() for line in done.out.splitlines()]
        assert [row[0] for row in rows] == paths[:6]
        assert np.mean([row[1] == label for row, label in zip(rows, labels, strict=False)]) > 0.6
        assert all(1 / 3 <= float(row[2]) <= 1 for row in rows)
        assert (done.code, done.err) == (0, "")

    def test_takes_folders(self, model, image_folder):
        done = run("predict", model, image_folder)
        assert len(done.out.splitlines()) == 30

    def test_another_process_says_the_same(self, model, image_paths):
        words = ["predict", model, *image_paths[0][:4], "--proba", "--csv"]
        assert run_apart(*words).stdout == run(*words).out

    def test_probability_of_every_class(self, model, image_paths):
        done = run("predict", model, image_paths[0][0], "--proba", "--csv")
        (row,) = csv.DictReader(io.StringIO(done.out))
        each = [float(row[f"probability of {name}"]) for name in ("disc", "square", "stripes")]
        assert sum(each) == pytest.approx(1, abs=1e-5)
        assert float(row["probability"]) == max(each)
        line = run("predict", model, image_paths[0][0], "--proba").out
        assert all(f"{name} 0." in line or f"{name} 1." in line for name in ("disc", "square", "stripes"))

    def test_bad_images_are_reported_and_the_others_predicted(self, model, image_paths, tmp_path):
        (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff not really")
        (tmp_path / "empty").mkdir()
        good = image_paths[0][:2]
        done = run(
            "predict", model, tmp_path / "missing.png", good[0], tmp_path / "broken.jpg", good[1], tmp_path / "empty"
        )
        assert done.code == 1
        assert [line.split()[0] for line in done.out.splitlines()] == good
        reported = [line.split(": ")[2] for line in done.err.splitlines()]
        assert sorted(map(os.path.basename, reported)) == ["broken.jpg", "empty", "missing.png"]

    def test_nothing_but_bad_images(self, model, tmp_path):
        done = run("predict", model, tmp_path / "missing.png")
        assert (done.code, done.out) == (1, "")
        assert "missing.png: no such file" in done.err

    def test_missing_model(self, tmp_path):
        assert "There is no model" in refusal("predict", tmp_path / "model.joblib", "a.png")

    def test_file_that_is_no_model(self, image_paths):
        assert "none of the files that sktl.save writes" in refusal("predict", image_paths[0][0], image_paths[0][1])

    def test_pickle_of_something_else(self, tmp_path):
        (tmp_path / "list.pickle").write_bytes(pickle.dumps([1, 2]))
        assert "holds no classifier, but an object of type 'list'" in refusal(
            "predict", tmp_path / "list.pickle", "a.png"
        )

    def test_model_of_something_else(self, tmp_path, image_paths):
        from sklearn.datasets import load_iris
        from sklearn.tree import DecisionTreeClassifier

        joblib.dump(DecisionTreeClassifier().fit(*load_iris(return_X_y=True)), tmp_path / "tree.joblib")
        assert "error: " in refusal("predict", tmp_path / "tree.joblib", image_paths[0][0])

    def test_model_without_probabilities(self, tmp_path, image_paths):
        from sklearn.pipeline import make_pipeline
        from sklearn.svm import LinearSVC

        paths, labels = image_paths
        pipeline = make_pipeline(sktl.PretrainedFeatureTransformer(image_size=32), LinearSVC(C=1e-3))
        joblib.dump(pipeline.fit(paths, labels), tmp_path / "svm.joblib")
        done = run("predict", tmp_path / "svm.joblib", paths[0], "--proba", "--csv")
        assert done.out.splitlines()[0] == "path,label"
        assert "--proba has no effect: this model gives no probabilities" in done.err


class TestTheRest:
    def test_backbones(self):
        assert run("backbones").out.splitlines()[0] == "sktl/tiny"
        assert all("mobilenetv2" in name for name in run("backbones", "mobilenetv2").out.splitlines())
        assert run("backbones", "resnet5*").out.startswith("resnet50.")
        assert "Did you mean" in refusal("backbones", "mobilnetv2_100")

    def test_version(self):
        assert run("--version").out == f"sktl {sktl.__version__}\n"

    def test_help_of_the_module_is_quick(self):
        probe = "import atexit, sys; atexit.register(lambda: print('timm' in sys.modules, 'matplotlib' in sys.modules))"
        code = f"{probe}; from sktl.cli import main; main(['--help'])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.startswith("usage: sktl")
        assert done.stdout.endswith("False False\n")

    @pytest.mark.parametrize("command", ["compare", "predict", "inspect", "backbones"])
    def test_every_command_has_examples(self, command):
        done = run(command, "--help")
        assert done.code == 0
        assert f"examples:\n  sktl {command}" in done.out

    def test_help_does_not_claim_more_strategies_than_are_tried(self):
        tried = make_parser().parse_args(["compare", "digits"]).strategies
        assert set(tried) < set(STRATEGIES)
        assert f"cross-validates {len(tried)} strategies" in " ".join(run("compare", "--help").out.split())
        assert "every way" not in run("--help").out

    def test_no_command_is_refused(self):
        assert "COMMAND" in refusal()

    def test_predict_warns_of_pickles(self):
        assert "use only those from people you trust" in " ".join(run("predict", "--help").out.split())

    def test_reader_that_leaves_early(self):
        reader, writer = os.pipe()
        os.close(reader)
        with open(writer, "w") as out, contextlib.redirect_stdout(out):
            assert main(["backbones"]) == 0

    def test_output_that_cannot_be_written(self):
        if not os.path.exists("/dev/full"):
            pytest.skip("needs Linux' /dev/full")
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        with open("/dev/full", "w") as out:
            done = subprocess.run(
                [sys.executable, "-m", "sktl", "inspect", SAVED],
                stdout=out,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
            )
        assert done.stderr == "sktl: error: [Errno 28] No space left on device\n"
        assert done.returncode == 2

    def test_file_is_written_whole_or_not_at_all(self, tmp_path):
        def fail(path):
            path.write_text("half")
            raise OSError("the disk is full")

        (tmp_path / "table.csv").write_text("old")
        with pytest.raises(OSError, match="full"):
            write_whole(tmp_path / "table.csv", fail)
        assert os.listdir(tmp_path) == ["table.csv"]
        assert (tmp_path / "table.csv").read_text() == "old"

    def test_command_line_can_be_typed_where_sktl_is_not_on_the_path(self, tmp_path, monkeypatch):
        program = tmp_path / "bin" / "sktl"
        program.parent.mkdir()
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        monkeypatch.setattr(sys, "argv", [str(program)])
        monkeypatch.setenv("PATH", "/nowhere")
        assert command_line("predict", "a b.png") == f"{program} predict 'a b.png'"
        monkeypatch.setenv("PATH", str(program.parent))
        assert command_line("predict", "a.png") == "sktl predict a.png"
        monkeypatch.setattr(sys, "argv", [os.path.join(os.path.dirname(sktl.__file__), "__main__.py")])
        assert command_line("predict") == f"{shlex.quote(sys.executable)} -m sktl predict"

"""The card says what is in a file, and goes to the hub with it."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard
from safetensors.torch import save_file
from saved_models import digits, make_classifier, make_pipe

import sktl
from sktl.backbones import load_backbone
from sktl.cli import main
from sktl.exceptions import DamagedFileError
from sktl.persistence import _card, make_card

X, Y = digits()


@pytest.fixture(scope="module")
def model():
    return make_classifier().fit(X, Y)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "digits.sktl"
    sktl.save(model, path, metrics={"accuracy": 0.9375, "log loss": 0.25})
    return path


class FakeHub:
    """Keeps what is sent to the hub."""

    def __init__(self, token=None):
        self.token = token
        self.repositories.append(self)

    repositories = []  # noqa: RUF012 -- emptied by the fixture

    def create_repo(self, repo_id, **options):
        self.created = (repo_id, options)

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        self.files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        self.message = commit_message
        return SimpleNamespace(commit_url=f"https://huggingface.co/{repo_id}/commit/1")


@pytest.fixture
def hub(monkeypatch):
    FakeHub.repositories.clear()
    monkeypatch.setattr(_card, "HfApi", FakeHub)
    return FakeHub.repositories


def test_card_of_a_transformer_transforms(tmp_path):
    sktl.save(sktl.PretrainedFeatureTransformer(image_size=32).fit(["any.png"]), tmp_path / "embed.sktl")
    info = sktl.inspect(tmp_path / "embed.sktl")
    assert info.task == "transformer"
    assert 'model.transform(["picture.jpg"])' in str(make_card(info))
    older = dataclasses.replace(info, task=None)
    assert 'model.transform(["picture.jpg"])' in str(make_card(older))


def test_card_is_one_for_the_hub(saved):
    card = ModelCard(str(make_card(sktl.inspect(saved), license="mit")))
    assert card.data.library_name == "sktl"
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.license == "mit"
    assert card.data.metrics == ["accuracy", "log loss"]
    for text in ("# digits", 'sktl.load("digits.sktl")', "| accuracy | 0.9375 |", "FeatureExtraction()", "sktl/tiny"):
        assert text in card.text


@pytest.mark.parametrize(
    ("backbone", "base"),
    [
        ("resnet50.a1_in1k", "timm/resnet50.a1_in1k"),
        ("hf-hub:org/name", "org/name"),
        ("text:org/name", "org/name"),
        ("text:/a/folder", None),
        ("text:~/folder", None),
        ("text:models/of/mine", None),
        ("sktl/tiny", None),
        ("Net", None),
    ],
)
def test_card_names_the_network_that_it_was_made_from(saved, backbone, base):
    info = sktl.inspect(saved)
    info.networks[0]["backbone"] = backbone
    assert make_card(info).data.base_model == base


def test_folders_are_no_networks_on_the_hub(saved, tmp_path, monkeypatch):
    from sktl.persistence._summary import is_local_folder

    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert is_local_folder("text:models/mine")
    assert not is_local_folder("text:org/name")
    assert not is_local_folder("hf-hub:models/mine")  # never means a folder
    info = sktl.inspect(saved)
    assert info.networks[0]["is_local"] is False
    info.networks[0].update(backbone="text:models/mine", is_local=True)
    assert make_card(info).data.base_model is None


def test_card_of_a_model_of_texts_says_how_to_use_it(saved):
    info = sktl.inspect(saved)
    assert 'model.predict(["picture.jpg"])' in str(make_card(info))
    assert "`pip install sktl`" in str(make_card(info))
    info.networks[0].update(backbone="text:org/name", input_size=None, max_length=128)
    text = str(make_card(info))
    assert 'model.predict(["A text, not the name of a file."])' in text
    assert '`pip install "sktl[text]"`' in text
    assert "picture" not in text


def test_estimator_goes_to_the_hub(model, hub):
    url = sktl.push_to_hub(model, "org/digits", token="secret", private=True, metrics={"accuracy": 0.5})
    (api,) = hub
    assert url == "https://huggingface.co/org/digits/commit/1"
    assert api.token == "secret"
    assert api.created == ("org/digits", {"private": True, "exist_ok": True})
    assert sorted(api.files) == ["README.md", "model.sktl"]
    assert b"| accuracy | 0.5 |" in api.files["README.md"]
    assert b"secret" not in b"".join(api.files.values())


def test_file_goes_to_the_hub_as_it_is(saved, hub):
    sktl.push_to_hub(saved, "org/digits")
    assert hub[0].files["model.sktl"] == saved.read_bytes()
    assert b"| accuracy | 0.9375 |" in hub[0].files["README.md"]
    with pytest.raises(ValueError, match="'metrics'"):
        sktl.push_to_hub(saved, "org/digits", metrics={"accuracy": 1.0})


def test_damaged_file_does_not_go_to_the_hub(saved, hub, tmp_path):
    (tmp_path / "model.sktl").write_bytes(saved.read_bytes()[:-5])
    with pytest.raises(DamagedFileError):
        sktl.push_to_hub(tmp_path / "model.sktl", "org/digits")
    assert hub == []


def test_command_line_prints_facts_or_card(saved, capsys):
    assert main(["inspect", str(saved)]) == 0
    assert "FeatureExtraction()" in capsys.readouterr().out
    assert main(["inspect", str(saved), "--card"]) == 0
    assert capsys.readouterr().out.startswith("---\n")
    assert main(["inspect", __file__]) == 2
    assert "none of the files that sktl.save writes" in capsys.readouterr().err


def test_card_of_a_pipeline(tmp_path):
    sktl.save(make_pipe().fit(X, Y), tmp_path / "model.sktl")
    assert "PretrainedFeatureTransformer + LogisticRegression" in str(make_card(sktl.inspect(tmp_path / "model.sktl")))


def test_metrics_must_be_numbers(model, tmp_path):
    with pytest.raises(ValueError, match="finite numbers, got 'loss': nan"):
        sktl.save(model, tmp_path / "model.sktl", metrics={"loss": float("nan")})


@pytest.mark.parametrize("persist", ["embed", "reference"])
def test_facts_and_card_name_the_file_of_weights_that_loading_needs(persist, tmp_path):
    weights = tmp_path / "public.safetensors"
    save_file(load_backbone("sktl/tiny").module.state_dict(), weights)
    model = sktl.PretrainedFeatureTransformer("sktl/tiny", weights=weights, image_size=32, persist=persist)
    sktl.save(model.fit(["any.png"]), tmp_path / "embed.sktl")
    info = sktl.inspect(tmp_path / "embed.sktl")
    is_needed = persist == "reference"
    assert ("""sktl.load("embed.sktl", weights='public.safetensors')""" in str(make_card(info))) == is_needed
    assert ("not in the file; give sktl.load weights='public.safetensors'" in str(info)) == is_needed
    assert str(tmp_path) not in str(make_card(info)).replace(info.path, "")

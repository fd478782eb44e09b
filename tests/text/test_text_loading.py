"""From ``"text:..."`` to an encoder: folders, the hub's cache, files of weights, and what is wrong with them."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sktl.backbones import load_backbone
from sktl.exceptions import BackboneError, MissingExtraError, WeightsNotFoundError


@pytest.fixture
def folder(bert_folder, tmp_path):
    """A copy of the tiny BERT to be changed."""
    return shutil.copytree(bert_folder, tmp_path / "bert")


def write_json(path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


def embed(backbone, text="a good film"):
    with torch.inference_mode():
        return backbone.module(torch.from_numpy(backbone.tokenizer(text).ids)[None])[0].numpy()


def as_sentence_transformer(folder, pooling=None, *more, **card):
    write_json(folder / "1_Pooling" / "config.json", pooling or {"pooling_mode_cls_token": True})
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 20, "do_lower_case": False})
    write_json(folder / "config_sentence_transformers.json", card)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), *more]
    write_json(
        folder / "modules.json",
        [
            {"idx": idx, "name": str(idx), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for idx, (path, kind) in enumerate(modules)
        ],
    )


def put_into_hub_cache(folder, name):
    """Lay a folder into the hub's cache, as a download does."""
    from huggingface_hub import constants

    home = Path(constants.HF_HUB_CACHE, "models--" + name.replace("/", "--"))
    shutil.copytree(folder, home / "snapshots" / "0123abcd")
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("0123abcd")
    return home


def test_name_of_the_hub_is_found_in_its_cache(folder, bert):
    as_sentence_transformer(folder, None, ("2_Normalize", "Normalize"))
    home = put_into_hub_cache(folder, "sktl-tests/bert")
    try:
        backbone = load_backbone("text:sktl-tests/bert")
    finally:
        shutil.rmtree(home)
    assert backbone.module.pooling == ["cls"]
    assert backbone.data_config["max_length"] == 20
    assert np.linalg.norm(embed(backbone)) == pytest.approx(1)
    np.testing.assert_allclose(
        embed(backbone), embed_with_view(load_backbone(bert), pooling="cls", normalize=True), atol=1e-6
    )


def embed_with_view(backbone, **choice):
    with torch.inference_mode():
        ids = torch.from_numpy(backbone.tokenizer("a good film").ids)[None]
        return backbone.feature_view(**choice).module(ids)[0].numpy()


@pytest.mark.usefixtures("bert_folder")
def test_name_that_is_nowhere():
    with pytest.raises(
        WeightsNotFoundError, match=r"not in the cache folder '.*' and could not be fetched.*local folder"
    ):
        load_backbone("text:sktl-tests/nowhere")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("text:", BackboneError, "names no encoder"),
        ("text:/no/such/folder", WeightsNotFoundError, "names the folder '/no/such/folder', and there is no such"),
        ("text:./nope", WeightsNotFoundError, "there is no such folder"),
    ],
)
@pytest.mark.usefixtures("bert_folder")
def test_names_of_nothing(name, error, message):
    with pytest.raises(error, match=message):
        load_backbone(name)


@pytest.mark.usefixtures("bert_folder")
def test_folder_that_is_no_model(tmp_path):
    with pytest.raises(BackboneError, match=r"no model: it has no config.json"):
        load_backbone(f"text:{tmp_path}")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BackboneError, match="cannot be loaded as a text encoder"):
        load_backbone(f"text:{tmp_path}")


def test_folder_without_tokenizer_or_weights(folder):
    (folder / "model.safetensors").rename(folder / "away")
    with pytest.raises(BackboneError, match=r"cannot be loaded as a text encoder: OSError"):
        load_backbone(f"text:{folder}")
    (folder / "away").rename(folder / "model.safetensors")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(BackboneError, match=r"has no tokenizer: none of the files .*'tokenizer.json'"):
        load_backbone(f"text:{folder}")


def test_weights_that_lack_a_layer(folder):
    state = load_file(folder / "model.safetensors")
    partial = {key: value for key, value in state.items() if "layer.1" not in key}
    save_file(partial, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackboneError, match=r"do not fit .*nothing for 'encoder.layer.1"):
        load_backbone(f"text:{folder}")


def test_network_of_another_kind(tmp_path, folder):
    from transformers import ViTConfig, ViTModel

    ViTModel(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)).save_pretrained(
        tmp_path / "vit"
    )
    for file in folder.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "vit")
    with pytest.raises(BackboneError, match="cannot be run on tokens alone"):
        load_backbone(f"text:{tmp_path / 'vit'}")


def test_weights_from_file_state_and_at_random(folder, bert):
    expected = load_backbone(bert)
    state = load_file(folder / "model.safetensors")
    for weights in (folder / "model.safetensors", state, {f"bert.{key}": value for key, value in state.items()}):
        assert load_backbone(bert, weights).fingerprint == expected.fingerprint
    random = load_backbone(bert, None)
    assert random.fingerprint != expected.fingerprint
    assert random.fingerprint == load_backbone(f"text:{folder}", None).fingerprint
    with pytest.raises(BackboneError, match="do not fit"):
        load_backbone(bert, {"nothing": torch.zeros(1)})


def test_folder_that_was_written_again_is_loaded_again(folder, make_bert):
    name = f"text:{folder}"
    first = load_backbone(name)
    assert load_backbone(name) is first
    shutil.rmtree(folder)
    make_bert(folder, num_hidden_layers=1)
    assert len(load_backbone(name).module.layers) == 1


@pytest.mark.parametrize(
    ("config", "poolings"),
    [
        ({"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True}, ["max", "mean"]),
        ({"pooling_mode": "lasttoken"}, ["lasttoken"]),
        ({"pooling_mode": ["cls", "mean_sqrt_len_tokens"]}, ["cls", "mean_sqrt_len_tokens"]),
        ({"pooling_mode_weightedmean_tokens": True}, ["weightedmean"]),
        ({"embedding_dimension": 16}, ["mean"]),
    ],
)
def test_poolings_are_those_of_sentence_transformers(folder, config, poolings):
    package = pytest.importorskip("sentence_transformers")
    as_sentence_transformer(folder, {"word_embedding_dimension": 16, "embedding_dimension": 16, **config})
    backbone = load_backbone(f"text:{folder}")
    assert backbone.module.pooling == poolings
    expected = package.SentenceTransformer(str(folder), device="cpu").encode(["a good film"])[0]
    np.testing.assert_allclose(embed(backbone), expected, atol=1e-5)


def test_prompt_is_put_before_each_text(folder):
    as_sentence_transformer(folder, None, prompts={"query": "so good : "}, default_prompt_name="query")
    backbone = load_backbone(f"text:{folder}")
    plain = load_backbone(f"text:{folder}")
    assert backbone.data_config["prompt"] == "so good : "
    np.testing.assert_array_equal(backbone.tokenizer("film").ids[:6], plain.tokenizer("film").ids[:6])
    assert len(set(backbone.tokenizer("film").ids) - {-1}) == 6  # CLS, so, good, the unknown colon, film, SEP


def test_prompt_that_is_not_to_be_pooled(folder):
    as_sentence_transformer(folder, {"pooling_mode": "mean", "include_prompt": False})
    assert load_backbone(f"text:{folder}").module.pooling == ["mean"]  # there is no prompt
    card = {"prompts": {"query": "good : "}, "default_prompt_name": "query"}
    as_sentence_transformer(folder, {"pooling_mode": "mean", "include_prompt": False}, **card)
    with pytest.raises(BackboneError, match="leaves its prompt out of the pooling"):
        load_backbone(f"text:{folder}")


@pytest.mark.parametrize(
    ("family", "says", "limit"),
    [("bert", 512, 40), ("bert", None, 40), ("bert", 20, 20), ("roberta", None, 38), ("roberta", 38, 38)],
)
def test_limit_is_what_is_named_or_what_the_positions_allow(folder, family, says, limit):
    from transformers import AutoConfig, AutoModel

    small = {"vocab_size": 80, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model(family, **small, intermediate_size=32, max_position_embeddings=40, pad_token_id=1)
    AutoModel.from_config(config).save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings = {**settings, "model_max_length": says or int(1e30), "pad_token": "[UNK]"}  # the token of number 1
    write_json(folder / "tokenizer_config.json", settings)
    backbone = load_backbone(f"text:{folder}")
    assert backbone.data_config["max_length"] == limit
    assert np.isfinite(embed(backbone, "good " * 100)).all()


def test_positions_without_a_table_are_not_tried_out(folder):
    from transformers import AutoConfig, AutoModel

    small = {"vocab_size": 80, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "pad_token_id": 1}
    config = AutoConfig.for_model("modernbert", **small, intermediate_size=32, max_position_embeddings=2**20)
    AutoModel.from_config(config).save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    write_json(folder / "tokenizer_config.json", {**settings, "model_max_length": int(1e30)})
    assert load_backbone(f"text:{folder}").data_config["max_length"] == 2**20  # attention on them all would take 1 TiB


def test_parts_that_are_not_known(folder):
    as_sentence_transformer(folder, None, ("2_Dense", "Dense"))
    with pytest.raises(BackboneError, match=r"part of type 'Dense', which sktl does not know"):
        load_backbone(f"text:{folder}")


@pytest.mark.parametrize("family", ["roberta", "distilbert", "mpnet", "electra", "albert", "deberta-v2", "modernbert"])
def test_families_of_encoders(family, folder):
    """Each is asked, not known: layers, limit and groups come from the network; padding changes nothing."""
    from transformers import AutoConfig, AutoModel

    small = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    small |= {"intermediate_size": 32, "max_position_embeddings": 48, "pad_token_id": 0, "embedding_size": 16}
    if family == "distilbert":
        small |= {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModel.from_config(AutoConfig.for_model(family, **small)).save_pretrained(folder)
    backbone = load_backbone(f"text:{folder}")
    if family != "albert":  # which runs one layer again and again
        assert len(backbone.module.layers) == 2
    names = [name for group in backbone.layer_groups for name in group]
    assert sorted(names) == sorted(name for name, _ in backbone.module.named_parameters())
    ids = torch.from_numpy(backbone.tokenizer("a good film").ids)[None]
    longer = torch.cat([ids, torch.full((1, 12), -1, dtype=torch.int32)], dim=1)
    with torch.inference_mode():
        torch.testing.assert_close(backbone.module(longer), backbone.module(ids), atol=1e-5, rtol=1e-4)


def test_missing_extra_names_the_command(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"package 'transformers', .* Run: pip install 'sktl\[text\]'"):
        load_backbone(f"text:{folder}")


def test_loading_says_nothing_and_leaves_logging_alone(bert, capfd):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_backbone(bert, {**load_file(bert.removeprefix("text:") + "/model.safetensors")})
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before

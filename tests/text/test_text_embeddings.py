"""Texts in, embeddings out: the same numbers however they are computed, and errors that name the row."""

import pickle
import shutil
import warnings

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from sktl import PretrainedFeatureTransformer
from sktl.backbones import load_backbone
from sktl.embedding import MemoryStore, clear_cache, embed_with_stats
from sktl.exceptions import BackboneError, InputError, InputWarning
from sktl.inputs import open_texts

LONG = "a good film and a bad one , " * 30


def make_transformer(backbone, **parameters):
    return PretrainedFeatureTransformer(backbone, **{"dtype": "float32", "cache_bytes": 0, **parameters})


def by_hand(folder, texts):
    """Mean over the mask as transformers' own classes give it, all texts in one batch."""
    from transformers import AutoModel, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(folder)(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = AutoModel.from_pretrained(folder).eval()(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1)
    return ((hidden * mask).sum(1) / mask.sum(1)).numpy()


def test_embeddings_are_those_of_transformers(bert, bert_folder, reviews):
    texts = [*reviews[0], "good"]
    np.testing.assert_allclose(make_transformer(bert).fit_transform(texts), by_hand(bert_folder, texts), atol=1e-5)


def test_embeddings_are_those_of_sentence_transformers(minilm, reviews):
    package = pytest.importorskip("sentence_transformers")
    texts = [*reviews[0][:8], "Ein Satz über Füße, 你好!", LONG * 3]
    expected = package.SentenceTransformer(minilm.removeprefix("text:"), device="cpu").encode(texts)
    with pytest.warns(InputWarning, match="1 of 10 texts are longer than the 256 tokens"):
        embeddings = make_transformer(minilm).fit_transform(texts)
    np.testing.assert_allclose(embeddings, expected, atol=1e-5)
    with pytest.warns(InputWarning):
        lower = make_transformer(minilm, dtype="auto").fit_transform(texts)
    assert (np.sum(lower * expected, axis=1) > 0.999).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_text_has_one_embedding_alone_and_in_any_crowd(bert, reviews, dtype):
    texts, _ = reviews
    transformer = make_transformer(bert, dtype=dtype).fit(texts)
    together = transformer.transform(texts)
    order = np.random.default_rng(0).permutation(len(texts))
    np.testing.assert_array_equal(transformer.transform([texts[i] for i in order]), together[order])
    np.testing.assert_array_equal(np.vstack([transformer.transform([text]) for text in texts[:8]]), together[:8])


def test_attention_has_a_mask_even_where_no_row_is_padded(bert, monkeypatch):
    """transformers leaves it out, and torch then takes another program: a row would hang on its neighbours."""
    encoder = load_backbone(bert).module
    attend = torch.nn.functional.scaled_dot_product_attention
    masks = []

    def note(*args, attn_mask=None, **kwargs):
        masks.append(attn_mask)
        return attend(*args, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", note)
    full = torch.full((2, 16), 7, dtype=torch.int32)
    with torch.inference_mode():
        encoder(full)
    assert len(masks) == len(encoder.layers)
    assert all(mask is not None for mask in masks)


def test_batch_size_matters_little(bert, reviews):
    texts, _ = reviews
    expected = make_transformer(bert).fit_transform(texts)
    np.testing.assert_allclose(make_transformer(bert, batch_size=3).fit_transform(texts), expected, atol=1e-6)


@pytest.mark.parametrize(
    "container",
    [
        tuple,
        np.array,
        lambda texts: np.array(texts, dtype=object),
        lambda texts: np.array(texts, dtype=object)[:, None],
        lambda texts: pd.Series(texts, index=range(100, 100 + len(texts))),
        lambda texts: pd.DataFrame({"review": texts}),
        lambda texts: pl.Series(texts),
        lambda texts: pl.DataFrame({"review": texts}),
        lambda texts: [text.encode() for text in texts],
    ],
    ids=[
        "tuple",
        "str array",
        "object array",
        "object column",
        "Series",
        "DataFrame",
        "polars",
        "polars frame",
        "bytes",
    ],
)
def test_containers(bert, reviews, container):
    texts = reviews[0][:6]
    expected = make_transformer(bert).fit_transform(texts)
    transformer = make_transformer(bert).fit(container(texts))
    assert transformer.input_kind_ == "texts"
    np.testing.assert_array_equal(transformer.transform(container(texts)), expected)


BAD_TEXTS = {
    "none": (None, "missing value"),
    "nan": (np.nan, "missing value"),
    "NA": (pd.NA, "missing value"),
    "empty": ("", "empty text"),
    "blank": (" \n\t", "empty text"),
    "number": (3, "expected a text .* got int"),
    "list": (["good"], "expected a text .* got list"),
    "latin-1": ("Füße".encode("latin-1"), "not UTF-8: invalid start byte at byte 1"),
    "surrogate": ("good \ud800 film", "lone surrogate .* position 5"),
}


@pytest.mark.parametrize("bad", BAD_TEXTS)
def test_bad_texts_are_named_or_become_nan(bert, bad):
    item, reason = BAD_TEXTS[bad]
    texts = ["a good film", item, "a bad film"]
    with pytest.raises(InputError, match=f"1 of 3 row.*\n  row 1.*{reason}") as raised:
        make_transformer(bert).fit_transform(texts)
    assert [row.index for row in raised.value.rows] == [1]
    embeddings = make_transformer(bert, on_error="nan").fit_transform(texts)
    np.testing.assert_array_equal(np.isnan(embeddings).any(axis=1), [False, True, False])
    np.testing.assert_array_equal(embeddings[[0, 2]], make_transformer(bert).fit_transform([texts[0], texts[2]]))


@pytest.mark.parametrize(
    "text", ["x" * 10_000_000, "good " * 2_000_000, "\0\0 good \x07"], ids=["word", "words", "nulls"]
)
@pytest.mark.filterwarnings("ignore::sktl.exceptions.InputWarning")
def test_strange_texts_are_embedded(bert, text):
    assert np.isfinite(make_transformer(bert).fit_transform([text])).all()


def test_one_warning_counts_the_truncated_rows(bert):
    texts = [LONG, "good", LONG, LONG + "!", None]
    with pytest.warns(InputWarning, match="^3 of 5 texts are longer than the 40 tokens") as caught:
        embeddings = make_transformer(bert, on_error="nan").fit_transform(texts)
    assert len(caught) == 1
    np.testing.assert_array_equal(embeddings[0], embeddings[3])  # what differs comes after the limit
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_transformer(bert).fit_transform(["good"])


def test_max_length_can_be_lowered(bert):
    texts = ["good bad dull", "good bad funny"]
    with pytest.warns(InputWarning, match="2 of 2 texts are longer than the 4 tokens"):
        first, second = make_transformer(bert, data_config={"max_length": 4}).fit_transform(texts)
    np.testing.assert_array_equal(first, second)
    with pytest.raises(BackboneError, match=r"range \[3, 40\].*got 41"):
        make_transformer(bert, data_config={"max_length": 41}).fit(texts)
    with pytest.raises(BackboneError, match=r"must not hold 'mean'; it may hold \['max_length'\]"):
        make_transformer(bert, data_config={"mean": [0, 0, 0]}).fit(texts)


@pytest.mark.parametrize("max_length", [41, 0, "many"])
def test_max_length_of_a_fitted_backbone_has_the_same_limit(bert, max_length):
    fitted = make_transformer(bert, data_config={"max_length": 8}).fit(["a film"])
    assert make_transformer(fitted, data_config={"max_length": 40}).fit(["a film"]).transform(["good " * 30]).shape == (
        1,
        16,
    )
    with pytest.raises(BackboneError, match=r"'max_length' .* must be an int in the range \[3, 40\]"):
        make_transformer(fitted, data_config={"max_length": max_length}).fit(["a film"])


def test_each_text_is_embedded_once(bert, reviews):
    texts, _ = reviews
    backbone = load_backbone(bert)
    store = MemoryStore()
    rows = open_texts([*texts, *texts[:5]], backbone.tokenizer)
    first, stats = embed_with_stats(rows, backbone.view, stores=[store])
    assert (stats.computed, stats.from_stores) == (len(set(texts)), 0)
    second, stats = embed_with_stats(rows, backbone.view, stores=[store])
    assert (stats.computed, stats.from_stores) == (0, len(set(texts)))
    np.testing.assert_array_equal(first, second)


def test_grid_search_embeds_each_text_once(bert, reviews, tmp_path, monkeypatch):
    from sktl.embedding import _run

    computed = []
    run = _run.Run._compute

    def count(self, batch):
        result = run(self, batch)
        computed.extend(result)
        return result

    monkeypatch.setattr(_run.Run, "_compute", count)
    texts, y = reviews
    pipeline = make_pipeline(make_transformer(bert, memory=tmp_path), LogisticRegression())
    GridSearchCV(pipeline, {"logisticregression__C": [0.1, 1, 10]}, cv=3).fit(texts, y)
    assert len(computed) == len(set(texts))


def test_layers_and_poolings(bert, reviews):
    texts = reviews[0][:6]
    vectors = {layer: make_transformer(bert, layer=layer).fit_transform(texts) for layer in (0, 1, -1)}
    np.testing.assert_array_equal(vectors[1], vectors[-1])
    np.testing.assert_array_equal(vectors[-1], make_transformer(bert).fit_transform(texts))
    both = make_transformer(bert, layer=[0, -1]).fit(texts)
    np.testing.assert_array_equal(both.transform(texts), np.hstack([vectors[0], vectors[-1]]))
    assert len(both.get_feature_names_out()) == 32
    named = make_transformer(bert, layer="encoder.encoder.layer.0").fit_transform(texts)
    np.testing.assert_array_equal(named, vectors[0])
    average, maximum = (make_transformer(bert, pooling=pooling).fit_transform(texts) for pooling in ("avg", "max"))
    np.testing.assert_array_equal(average, vectors[-1])
    mixed = make_transformer(bert, pooling="avgmax").fit_transform(texts)
    np.testing.assert_allclose(mixed, (average + maximum) / 2, atol=1e-6)
    unit = make_transformer(bert, pooling="cls", normalize=True).fit_transform(texts)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"layer": 2}, "'layer' parameter is 2, and the backbone has 2 stages"),
        ({"layer": "encoder.nope"}, "no layer 'encoder.nope'"),
        ({"layer": "encoder.embeddings.dropout", "pooling": "none"}, "different numbers of tokens"),
        ({"tta": "hflip"}, "texts have no mirror"),
        ({"image_size": 32}, "'image_size' parameter must be None .* takes texts"),
        ({"image_shape": (8, 8)}, "'image_shape' parameter must be None .* takes texts"),
    ],
)
def test_choices_that_texts_do_not_have(bert, parameters, message):
    with pytest.raises(ValueError, match=message):
        make_transformer(bert, **parameters).fit_transform(["a good film"])


def test_texts_for_a_vision_backbone(reviews):
    with pytest.raises(InputError, match=r"seems to hold texts \('a a film.*backbone='text:org/name'"):
        PretrainedFeatureTransformer().fit(reviews[0])
    with pytest.raises(InputError, match=r"no such file"):  # one word may be a file
        PretrainedFeatureTransformer().fit_transform(["good"])


def test_short_texts_among_the_others_for_a_vision_backbone(image_folder):
    texts = ["been there done that", "dull", "predictably melodramatic", "a brutal and funny work", "it was worth it"]
    with pytest.raises(InputError, match=r"seems to hold texts \('been there done that'\)"):
        PretrainedFeatureTransformer().fit(texts[1:2] + texts)
    for row in ("holiday.jpg", str(image_folder / "disc" / "0.png")):
        PretrainedFeatureTransformer().fit([*texts, row])


def test_paths_of_many_words_without_an_ending(image_folder, tmp_path):
    shutil.copy(image_folder / "disc" / "0.png", tmp_path / "a picture of mine")
    transformer = PretrainedFeatureTransformer(image_size=32, root=tmp_path)
    assert np.isfinite(transformer.fit_transform(["a picture of mine"])).all()


def test_images_for_a_text_backbone(bert, image_paths, image_arrays):
    from PIL import Image

    with pytest.raises(InputError, match=r"seems to hold paths of images .*backbone='sktl/tiny'"):
        make_transformer(bert).fit_transform(image_paths[0])
    for images in ([Image.fromarray(each) for each in image_arrays[0]], list(image_arrays[0])):
        with pytest.raises(InputError, match=r"seems to hold images, and the backbone takes texts"):
            make_transformer(bert).fit_transform(images)
    with pytest.raises(InputError, match=r"column of texts, got ndarray of shape \(30, 48, 64, 3\)"):
        make_transformer(bert).fit(image_arrays[0])
    with pytest.raises(InputError, match=r"column of texts, got ndarray of shape \(3, 2\)"):
        make_transformer(bert).fit(np.zeros((3, 2)))
    with pytest.raises(InputError, match="Choose the one column that holds the texts"):
        make_transformer(bert).fit(pd.DataFrame({"a": ["good"], "b": ["bad"]}))
    with pytest.raises(InputError, match=r"single text .* wrap it in a list"):
        make_transformer(bert).fit("a good film")
    assert np.isfinite(make_transformer(bert).fit_transform(["see cat.jpg", "cat.png is a good film"])).all()


def test_pickles_without_the_folder(bert, bert_folder, reviews, tmp_path):
    moved = shutil.copytree(bert_folder, tmp_path / "copy")
    transformer = make_transformer(f"text:{moved}").fit(reviews[0])
    expected = transformer.transform(reviews[0])
    assert transformer.backbone_.fingerprint == load_backbone(bert).fingerprint  # the folder's name has no influence
    joblib.dump(transformer, tmp_path / "model.joblib")
    data = pickle.dumps(transformer)
    moved.rename(tmp_path / "gone")
    clear_cache()
    for loaded in (pickle.loads(data), joblib.load(tmp_path / "model.joblib")):
        np.testing.assert_array_equal(loaded.transform(reviews[0]), expected)


def test_clone_and_repr(bert):
    transformer = clone(make_transformer(bert, layer=[0, 1]))
    assert eval(repr(transformer)).get_params() == transformer.get_params()
    assert transformer.__sklearn_tags__().input_tags.string
    assert not transformer.__sklearn_tags__().input_tags.two_d_array

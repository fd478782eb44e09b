"""A model card for people, with the header that Hugging Face's hub reads, and the way to that hub."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import HfApi, ModelCard, ModelCardData
from sklearn.base import BaseEstimator

from sktl.persistence._files import save
from sktl.persistence._info import ModelInfo, inspect
from sktl.persistence._summary import is_local_folder

FILE_NAME = "model.sktl"

_BODY = """\
---
{header}
---

# {title}

{intro}

## How to use it

```python
import sktl

model = sktl.load("{file}"{trusted}{weights})
model.{method}([{row}])
```

The file holds no pickle, and loading it runs nothing that is in it. It needs `{install}`.

## What it is

```text
{facts}
```

## What it is good for

{metrics}
"""


def make_card(info: ModelInfo, *, license: str | None = None) -> ModelCard:
    """Describe a saved model in Markdown, with the metadata of Hugging Face's hub.

    Parameters
    ----------
    info : ModelInfo
        From :func:`sktl.inspect`.
    license : str, default=None
        A name that the hub knows, such as ``"mit"``.

    Returns
    -------
    card : huggingface_hub.ModelCard
        ``str(card)`` is the text.
    """
    header = ModelCardData(
        library_name="sktl",
        license=license,
        pipeline_tag=_pipeline_tag(info),
        tags=["sktl", "scikit-learn", "transfer-learning"],
        base_model=_base_model(info),
        metrics=sorted(info.metrics) or None,
    )
    names = ", ".join(dict.fromkeys(network["backbone"] for network in info.networks)) or "no network"
    text = _BODY.format(
        header=header.to_yaml(),
        title=Path(info.path).stem,
        intro=f"A fitted `{info.estimator}` on `{names}`.",
        file=Path(info.path).name,
        weights="".join(f", weights={name!r}" for name in _weights_files(info)[:1]),
        trusted=f", trusted={info.untrusted!r}" if info.untrusted else "",
        method="transform" if info.task in ("transformer", None) else "predict",  # older files know no transformers
        row='"A text, not the name of a file."' if _is_of_texts(info) else '"picture.jpg"',
        install='pip install "sktl[text]"' if _is_of_texts(info) else "pip install sktl",
        facts=str(info),
        metrics=_metrics_table(info),
    )
    return ModelCard(text)


def push_to_hub(
    model: BaseEstimator | str | os.PathLike,
    repo_id: str,
    *,
    token: str | None = None,
    private: bool | None = None,
    license: str | None = None,
    metrics: Mapping[str, float] | None = None,
    commit_message: str = "Add a model saved by sktl",
) -> str:
    """Put a model and its card on Hugging Face's hub.

    Parameters
    ----------
    model : estimator or path-like
        A fitted estimator, or the path of a file that :func:`sktl.save` wrote.
    repo_id : str
        ``"organisation/name"``; created if it does not exist.
    token : str, default=None
        An access token of the hub; None uses the one that ``hf auth login`` has stored.
    private : bool, default=None
        Whether a new repository is private; None uses the organisation's default.
    license : str, default=None
        A name that the hub knows, for the card.
    metrics : dict of str to float, default=None
        Scores of an estimator, as in :func:`sktl.save`. A file has its own.
    commit_message : str
        Message of the commit that adds both files.

    Returns
    -------
    url : str
        Address of the commit.

    Raises
    ------
    ValueError
        If ``metrics`` are given together with a file.
    huggingface_hub.errors.HfHubHTTPError
        If the hub refuses.

    See Also
    --------
    save : Writes the file alone.

    Examples
    --------
    >>> import sktl
    >>> sktl.push_to_hub("model.sktl", "my-organisation/birds")  # doctest: +SKIP
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, FILE_NAME)
        if isinstance(model, BaseEstimator):
            save(model, place, metrics=metrics)
        elif metrics is not None:
            raise ValueError("The 'metrics' parameter is for estimators: a saved file has its own.")
        else:
            inspect(model)  # only whole files of sktl are published
            shutil.copyfile(model, place)
        make_card(inspect(place), license=license).save(Path(folder, "README.md"))
        api = HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=commit_message)
    return str(commit.commit_url)


def _weights_files(info: ModelInfo) -> list[str]:
    return [network["weights_file"] for network in info.networks if network.get("weights_file")]


def _is_of_texts(info: ModelInfo) -> bool:
    return any(network.get("input_size") is None for network in info.networks)


def _pipeline_tag(info: ModelInfo) -> str:
    of_texts = _is_of_texts(info)
    if info.task == "classifier":
        return "text-classification" if of_texts else "image-classification"
    return "feature-extraction" if of_texts else "image-feature-extraction"


def _base_model(info: ModelInfo) -> str | None:
    """Return the network on the hub that the model was made from, where its name tells."""
    for network in info.networks:
        name = network["backbone"]
        kind, _, repository = name.partition(":")
        is_local = network.get("is_local", is_local_folder(name))  # older files do not say
        if kind in ("hf-hub", "text") and not is_local and _may_be_on_the_hub(repository):
            return repository
        if "/" not in name and "." in name and ":" not in name:
            return f"timm/{name}"
    return None


def _may_be_on_the_hub(repository: str) -> bool:
    """Tell the hub's names, ``name`` or ``org/name``, from other paths."""
    return not repository.startswith(("/", ".", "~")) and repository.count("/") <= 1


def _metrics_table(info: ModelInfo) -> str:
    if not info.metrics:
        return "No scores were saved with this model."
    rows = "\n".join(f"| {name} | {value:.6g} |" for name, value in sorted(info.metrics.items()))
    return f"| metric | value |\n| --- | --- |\n{rows}"

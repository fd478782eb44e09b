"""Sphinx configuration; no network is needed. Build: ``sphinx-build -W --keep-going -b html docs docs/_build/html``."""

import os
from importlib.metadata import version as installed_version

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the gallery runs on what ships with sktl and scikit-learn

project = "sktl"
author = "The sktl developers"
copyright = "2026, the sktl developers"
release = installed_version("sktl")
version = ".".join(release.split(".")[:2])

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "_templates"]
templates_path = ["_templates"]
nitpicky = False

# -- API reference ---------------------------------------------------------------------------------
autosummary_generate = True
autodoc_member_order = "bysource"
toc_object_entries_show_parents = "hide"
autodoc_typehints = "none"  # numpydoc says the types in words
numpydoc_show_class_members = False
numpydoc_validation_checks = {
    "all",
    "ES01",  # no extended summary where one line says it
    "EX01",  # methods share the example of their class
    "GL01",  # the summary starts on the line of the quotes
    "GL08",  # a hook of a strategy may be documented by its base class alone
    "RT02",  # one result may have a name
    "SA01",  # no "See Also" where nothing is near
    "YD01",
}


def skip_scikit_learn_members(app, what, name, obj, skip, options):
    """Leave out what scikit-learn gives every estimator: its docstrings refer to pages of scikit-learn's own manual."""
    module = getattr(obj, "__module__", None) or getattr(getattr(obj, "fget", None), "__module__", None) or ""
    made_by_metadata_routing = name.startswith("set_") and name.endswith("_request")
    return True if made_by_metadata_routing or module.startswith("sklearn.") else skip


def setup(app):
    app.connect("autodoc-skip-member", skip_scikit_learn_members)


# -- gallery ---------------------------------------------------------------------------------------
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": "/plot_",
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "doc_module": ("sktl",),
    "reference_url": {"sktl": None},
    "remove_config_comments": True,
    "write_computation_times": False,
    "show_signature": False,
}

# -- HTML ------------------------------------------------------------------------------------------
html_theme = "pydata_sphinx_theme"
html_title = f"sktl {version}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "logo": {"text": "sktl"},
    "navbar_align": "left",
    "navbar_end": ["theme-switcher"],
    "footer_start": ["copyright"],
    "footer_end": ["sphinx-version"],
    "show_toc_level": 2,
    "navigation_with_keys": False,
}
html_sidebars = {"index": [], "changelog": [], "contributing": []}

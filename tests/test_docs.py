"""What the pages say is true: their code runs, README's blocks are there, and Sphinx has nothing to complain about."""

import doctest
import importlib
import importlib.util
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sktl

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
GENERATED = (DOCS / "_build", DOCS / "auto_examples", DOCS / "api" / "generated")
PAGES = [path for path in sorted(DOCS.rglob("*.rst")) if not any(path.is_relative_to(folder) for folder in GENERATED)]
PAGES_WITH_EXAMPLES = [path for path in PAGES if ">>> " in path.read_text(encoding="utf-8")]
MODULES = ["sktl", *(module.name for module in pkgutil.walk_packages(sktl.__path__, "sktl."))]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.fixture
def in_empty_folder(tmp_path, monkeypatch):
    """Run the test in a folder of its own: examples may write files."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("in_empty_folder")
@pytest.mark.parametrize("page", PAGES_WITH_EXAMPLES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_examples_of_page(page):
    failed, tried = doctest.testfile(str(page), module_relative=False, optionflags=FLAGS, encoding="utf-8")
    assert tried
    assert not failed


@pytest.mark.usefixtures("in_empty_folder")
@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_examples_of_docstrings(name):
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"needs an optional package: {error}")
    assert doctest.testmod(module, optionflags=FLAGS).failed == 0


@pytest.mark.usefixtures("in_empty_folder")
def test_python_of_readme():
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


@pytest.mark.parametrize("name", ["main-job", "tests"])
def test_commands_of_readme(name):
    """.ci/run looks for these marks; README must have each once, and each must make its own environment."""
    found = re.findall(
        rf"^<!-- command: {name} -->\n```bash\n(.*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    assert len(found) == 1
    assert found[0].startswith("python3 -m venv .venv && .venv/bin/pip install ")


def test_links_of_readme():
    for target in re.findall(r"\]\(([^)]+)\)", README.read_text(encoding="utf-8")):
        if not target.startswith(("https://", "#")):
            assert (ROOT / target).exists(), target


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_pages_build_without_warnings(tmp_path):
    for package in ("sphinx", "sphinx_gallery", "pydata_sphinx_theme", "numpydoc", "myst_parser"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f'{package} is not installed: pip install "sktl[docs]"')
    ignore = shutil.ignore_patterns("_build", "auto_examples", "generated", "__pycache__")
    for folder in ("docs", "examples"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignore)
    shutil.copy(ROOT / "CHANGELOG.md", tmp_path)
    html = tmp_path / "html"
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", str(html)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    scripts = sorted(path.stem for path in (ROOT / "examples").glob("plot_*.py"))
    assert scripts
    for script in scripts:
        assert (html / "auto_examples" / f"{script}.html").is_file()

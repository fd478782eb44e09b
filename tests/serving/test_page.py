"""The page for people, in a browser: pictures chosen and dropped, classes as bars, similar pictures, refusals."""

import base64
import shutil

import pytest
from browser import browsing
from servers import running

from sktl.serving import Gallery, ServedModel, make_app

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    """A tab of a browser."""
    with browsing(CHROMIUM, tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture(scope="module")
def url(model, image_folder):
    """Where a server with a gallery is."""
    paths = sorted(image_folder.glob("*/[0-3].png"))
    gallery = Gallery(paths, image_folder, ServedModel(model, 10**6))
    with running(make_app(model, name="shapes & <more>", gallery=gallery)) as client:
        yield str(client.base_url)


@pytest.fixture
def page(tab, url):
    """The page, freshly opened; nothing may go wrong on it."""
    tab.open(url)
    tab.wait("document.getElementById('facts').textContent")
    tab.errors.clear()
    yield tab
    assert not tab.errors


def bars(page, count=1):
    page.wait(f"document.querySelectorAll('.bars li:first-child').length === {count}")
    return page.evaluate(
        "[...document.querySelector('.bars').children].map((bar) => [...bar.children].map((part) => part.textContent))"
    )


def test_introduces_the_model(page):
    assert page.evaluate("document.title") == page.evaluate("document.querySelector('h1').textContent")
    assert page.evaluate("document.title") == "shapes & <more>"
    assert page.evaluate("document.getElementById('facts').textContent").startswith("3 classes · ")


def test_chosen_picture(page, model, image_paths):
    path = image_paths[0][0]
    page.choose("#files", path)
    proba = model.predict_proba([path])[0]
    order = (-proba).argsort(kind="stable")
    expected = [[str(model.classes_[place]), "", f"{100 * proba[place]:.1f} %"] for place in order]
    assert bars(page) == expected
    assert page.evaluate("document.querySelector('h2').textContent") == expected[0][0]
    assert page.evaluate("document.querySelector('figcaption').textContent") == "0.png"
    page.wait("document.querySelector('figure img').naturalWidth === 64")
    page.wait("document.getElementById('status').textContent === 'Done: 1 picture.'")


def test_similar_pictures_are_shown(page, image_folder):
    page.choose("#files", image_folder / "disc" / "2.png")
    page.wait("document.querySelectorAll('.similar li').length === 6")
    page.wait("[...document.querySelectorAll('.similar img')].every((image) => image.naturalWidth > 0)")
    assert page.evaluate("document.querySelector('.similar li').title").startswith(
        "disc/2.png, cosine similarity 1.000"
    )
    assert page.evaluate("document.querySelector('.similar .label').textContent") == "disc"


def test_dropped_pictures(page, contents):
    encoded = [base64.b64encode(content).decode() for content in contents[:3]]
    page.evaluate(f"""{{
        const transfer = new DataTransfer();
        {encoded!r}.forEach((text, place) => {{
            const content = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
            transfer.items.add(new File([content], `dropped ${{place}}.png`, {{ type: "image/png" }}));
        }});
        const drop = document.getElementById("drop");
        drop.dispatchEvent(new DragEvent("dragover", {{ bubbles: true, dataTransfer: transfer }}));
        drop.dispatchEvent(new DragEvent("drop", {{ bubbles: true, dataTransfer: transfer }}));
    }}""")
    assert len(bars(page, 3)) == 3
    names = page.evaluate("[...document.querySelectorAll('figcaption')].map((caption) => caption.textContent)")
    assert names == ["dropped 0.png", "dropped 1.png", "dropped 2.png"]
    page.wait("document.getElementById('status').textContent === 'Done: 3 pictures.'")
    assert not page.evaluate("document.body.classList.contains('over')")


def test_bad_picture_is_explained(page, image_paths, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff not really")
    page.choose("#files", tmp_path / "broken.jpg", image_paths[0][0])
    bars(page)
    page.wait("document.querySelector('.bad[role=alert]:not([hidden])')?.textContent.includes('broken JPEG file')")
    page.errors.clear()  # the browser reports the 422 itself
    assert page.evaluate("document.querySelectorAll('figure img').length") == 1


def test_is_operated_by_keyboard(page):
    page.command("Input.dispatchKeyEvent", type="rawKeyDown", key="Tab", windowsVirtualKeyCode=9)
    assert page.evaluate("document.activeElement.id") == "files"
    assert page.evaluate("document.querySelector('label[for=files]').textContent").strip()
    assert page.evaluate("getComputedStyle(document.getElementById('drop')).outlineStyle") == "solid"


@pytest.mark.parametrize("width", [360, 1000])
def test_fits_the_window(page, width, image_paths, tmp_path):
    page.choose("#files", image_paths[0][0])
    bars(page)
    page.screenshot(tmp_path / "page.png", width, 900)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_docs(tab, url):
    tab.open(f"{url}/docs")
    assert "POST /predict" in tab.evaluate("document.body.textContent")

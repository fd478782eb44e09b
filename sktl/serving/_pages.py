"""Pages for people: one to try the model, one that describes the addresses; nothing is loaded from elsewhere."""

import json
from html import escape
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse

_FILES = {"/page.css": "text/css", "/page.js": "text/javascript", "/icon.svg": "image/svg+xml"}


def add_pages(app: FastAPI) -> None:
    """Add the page at ``/``, what it loads, and ``/docs``.

    Parameters
    ----------
    app : FastAPI
        Gets the addresses.
    """
    _add_file(app, "/", "index.html", "text/html")
    for path, kind in _FILES.items():
        _add_file(app, path, path.removeprefix("/"), kind)

    @app.get("/docs", include_in_schema=False, response_class=HTMLResponse)
    async def docs(request: Request) -> str:
        return docs_page(app.openapi(), str(request.base_url))


def _add_file(app: FastAPI, path: str, name: str, kind: str) -> None:
    content = (files("sktl.serving") / "page" / name).read_bytes()

    @app.get(path, include_in_schema=False)
    async def file() -> Response:
        return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})


def docs_page(schema: dict[str, Any], url: str) -> str:
    """Describe an API in HTML.

    Parameters
    ----------
    schema : dict
        In OpenAPI's format.
    url : str
        Where the API is found, with a slash at the end.

    Returns
    -------
    html : str
        A page.
    """
    title, url = escape(schema["info"]["title"]), escape(url)
    operations = [
        _operation(path, method, operation)
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    ]
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}: addresses</title>
<link rel="icon" href="icon.svg">
<link rel="stylesheet" href="page.css">
<main class="docs">
<h1>{title}</h1>
<p>Try it on <a href="./">the page</a>, or from a program:</p>
<pre>curl -F images=@one.jpg -F images=@two.jpg {url}predict</pre>
<pre>import httpx

with open("one.jpg", "rb") as file:
    answer = httpx.post("{url}predict", files={{"images": file}})
print(answer.json()["predictions"][0]["label"])</pre>
<p>The same for programs: <a href="openapi.json">openapi.json</a>.</p>
{"".join(operations)}
</main>
</html>
"""


def _operation(path: str, method: str, operation: dict[str, Any]) -> str:
    rows = [
        (escape(each["name"]), escape(each.get("description") or each["schema"].get("type", "")))
        for each in operation.get("parameters", ())
    ]
    answers = [
        (escape(status), escape(answer["description"]) + _example_of(answer))
        for status, answer in operation["responses"].items()
    ]
    text = escape(operation.get("description", ""))
    return (
        f"<section><h2><code>{method.upper()} {escape(path)}</code></h2><p><strong>{escape(operation['summary'])}."
        f"</strong> {text}</p>{_table('Parameters', rows)}{_table('Answers', answers)}</section>"
    )


def _table(title: str, rows: list[tuple[str, str]]) -> str:
    if not rows:
        return ""
    lines = "".join(f'<tr><th scope="row"><code>{name}</code></th><td>{text}</td></tr>' for name, text in rows)
    return f"<table><caption>{title}</caption>{lines}</table>"


def _example_of(answer: dict[str, Any]) -> str:
    example = answer.get("content", {}).get("application/json", {}).get("example")
    return f"<pre>{escape(json.dumps(example, indent=2, ensure_ascii=False))}</pre>" if example else ""

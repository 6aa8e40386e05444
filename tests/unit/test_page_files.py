"""What the server answers for the page's files, and what the page may reach."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

fastapi = pytest.importorskip("fastapi", reason="fastapi is missing: pip install -e '.[dev]'")

from fastapi.testclient import TestClient  # noqa: E402 - only where fastapi is there

from canvas_asr.serving import page  # noqa: E402


@pytest.fixture
def client() -> Iterator[TestClient]:
    app = fastapi.FastAPI()
    app.include_router(page.router)
    with TestClient(app) as client:
        yield client


@pytest.mark.parametrize("path", ["/", *(f"/page/{name}" for name in page.page_files())])
def test_every_file_has_its_type_and_a_strict_policy(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"] in page.MEDIA_TYPES.values()
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert {policy[kind] for kind in ("script-src", "style-src", "connect-src")} == {"'self'"}
    assert "unsafe" not in str(policy)
    again = client.get(path, headers={"If-None-Match": f'"other", W/{answer.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert client.head(path).status_code == 200


@pytest.mark.parametrize("name", ["none.js", "..%2fpage.py", "%2e%2e/page.py", "index.html%00", ".hidden"])
def test_other_names_are_refused(client: TestClient, name: str) -> None:
    answer = client.get(f"/page/{name}")
    assert answer.status_code == 404
    assert "canvas_asr" not in answer.text


def test_files_name_no_other_host_and_hold_nothing_inline() -> None:
    files = page.page_files()
    assert {"index.html", "page.css", "main.js", "favicon.svg"} <= files.keys()
    for name, file in files.items():
        text = file.body.decode("utf-8")
        assert set(re.findall(r"https?://[^\"' ]+", text)) <= {"http://www.w3.org/2000/svg"}, name
        assert not re.search(r"\binnerHTML|insertAdjacentHTML|document\.write|\beval\(", text), name
    index = files["index.html"].body.decode("utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", index)
    for path in re.findall(r'(?:src|href)="(page/[^"]+)"', index):
        assert path.removeprefix("page/") in files

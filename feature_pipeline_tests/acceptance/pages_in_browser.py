"""Look at Dagster's pages in Chromium, with markup and scripts in everything that they show.

    python -m feature_pipeline_tests.acceptance.pages_in_browser SCREENSHOTS

It is no test: Chromium (Debian's package of that name) is too heavy for each change. It ends with
status 1 if a script ran, or if markup became an image or a link that runs a script. A hook's
description is Markdown: its image is expected, and Dagster empties its link.
"""

import base64
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
import yaml
from websockets.sync.client import ClientConnection, connect

from feature_pipeline_tests.acceptance.own_project import OwnProject, wait_for

DATASET = "hostile"
HOOK, FAILING = "marks", "breaks"
RUNS = "{ runsOrError(limit: 20) { ... on Runs { results { runId status } } } }"
CHROMIUM = (
    "chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
    "--remote-debugging-port=0", "--window-size=1500,1800",
)  # fmt: skip
VIEWS = ("overview", "partitions&partition=b1", "events", "checks", "definition", "lineage")
_BEFORE_EVERY_PAGE = "window.ran = []; window.pwn = place => window.ran.push(place);"
_FOUND = """JSON.stringify({
  ran: window.ran,
  text: document.body.innerText,
  elements: [...document.querySelectorAll(
    'img[src*="hit-"]:not([src="hit-description"]), [onerror], [onload], iframe,'
    + ' a[href^="javascript:"]:not([href="javascript:void(0)"])'
  )].map(e => e.outerHTML.slice(0, 200)),
})"""
_MARKDOWN_BUTTONS = """[...document.querySelectorAll('button, a')]
  .filter(e => /^\\[?show (markdown|table schema|json)/i.test(e.innerText.trim()))"""


def payload(place: str) -> str:
    """Text that runs `pwn`, or shows an image, if it is taken for markup. Records' ids are such."""
    return (
        f"{place}<img src=hit-{place} onerror=pwn('{place}')><script>pwn('{place}')</script>"
        f"<svg onload=pwn('{place}')>![i](hit-{place}) [x](javascript:pwn('{place}'))"
        f"<a href=\"javascript:pwn('{place}')\">y</a> {{{{ 7 * 7 }}}} '; drop table x; --"
    )


HOOK_CODE = f"""
import json, os, sys
from pathlib import Path

inputs, output = Path(os.environ["OSA_IN"]), Path(os.environ["OSA_OUT"])
ids = [json.loads(line)["id"] for line in (inputs / "records.jsonl").open()]
print({payload("log")!r} + "\\x1b[31mred\\x1b[0m", flush=True)
print("```\\n" + {payload("fence")!r}, flush=True)
if os.environ["OSA_HOOK_NAME"] == {FAILING!r}:
    sys.exit({payload("exit")!r})
(output / {"other " + payload("name").replace("/", "")[:180]!r}).touch()
with (output / "features.jsonl").open("w") as file:
    row = {{"label": {payload("value")!r}, "document": {{"a": {payload("json")!r}}},
           {payload("key")!r}: 1}}
    file.write(json.dumps({{"id": ids[0], "features": [row]}}) + "\\n")
    file.write(json.dumps({{"id": {payload("unknown")!r}, "features": []}}) + "\\n")
with (output / "rejections.jsonl").open("w") as file:
    file.write(json.dumps({{"id": ids[1], "reason": {payload("reason")!r}}}) + "\\n")
with (output / "errors.jsonl").open("w") as file:
    document = {{"id": ids[2], "error": {payload("error")!r}, "retryable": False}}
    file.write(json.dumps(document) + "\\n")
"""


def definition(name: str) -> dict[str, Any]:
    columns = [
        {"name": "label", "type": "string", "unit": payload("unit")},
        {"name": "document", "type": "object", "description": payload("column")},
    ]
    return {
        "type": "feature_pipeline.FeatureHook",
        "attributes": {
            "name": name,
            "dataset": DATASET,
            "description": payload("description"),
            "release": {
                "version": payload("version"),
                "command": ["python", "hook.py", payload("argument")],
                "code": ["hook.py"],
                "retries": 0,
            },
            "feature": {"columns": columns},
        },
    }


def write_project(root: Path) -> OwnProject:
    project = OwnProject(root, hooks=[])
    for name in (HOOK, FAILING):
        folder = root / "feature_pipeline" / "defs" / name
        folder.mkdir()
        (folder / "hook.py").write_text(HOOK_CODE)
        (folder / "defs.yaml").write_text(yaml.safe_dump(definition(name)))
    ids = [payload(f"id{number}") for number in range(3)]
    lines = [json.dumps({"id": i, "metadata": {"m": payload("metadata")}}) for i in ids]
    (root / "records.jsonl").write_text("\n".join(lines) + "\n")
    return project


class Page:
    """A page of Chromium, driven through the DevTools protocol."""

    def __init__(self, connection: ClientConnection, screenshots: Path) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)
        self._screenshots = screenshots
        self.call("Page.enable")
        self.call("Page.addScriptToEvaluateOnNewDocument", source=_BEFORE_EVERY_PAGE)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        self._connection.send(json.dumps(message))
        while (answer := json.loads(self._connection.recv(60))).get("id") != number:
            pass
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def evaluate(self, expression: str) -> Any:
        return self.call("Runtime.evaluate", expression=expression)["result"].get("value")

    def look(self, name: str) -> list[str]:
        """Take a screenshot; return what is wrong with the page as it is shown now."""
        image = self.call("Page.captureScreenshot")["data"]
        (self._screenshots / f"{name}.png").write_bytes(base64.b64decode(image))
        found = json.loads(self.evaluate(_FOUND))
        (self._screenshots / f"{name}.txt").write_text(found["text"])
        problems = [f"{name}: a script ran: {place}" for place in found["ran"]]
        return problems + [f"{name}: {element}" for element in found["elements"]]

    def open(self, url: str) -> None:
        """Open a page, and wait until its text stays the same."""
        self.call("Page.navigate", url=url)
        before, texts = "", 0
        end = time.monotonic() + 60
        while texts < 4 and time.monotonic() < end:
            time.sleep(0.5)
            text = self.evaluate("document.body ? document.body.innerText : ''")
            texts = texts + 1 if text == before and "Loading" not in text and text else 0
            before = text


@contextmanager
def browser(screenshots: Path) -> Iterator[Page]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [*CHROMIUM, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            ports = Path(profile) / "DevToolsActivePort"
            wait_for(lambda: ports.exists() and ports.read_text().count("\n"), 60)
            port = ports.read_text().splitlines()[0]
            targets = requests.get(f"http://127.0.0.1:{port}/json", timeout=60).json()
            address = next(t["webSocketDebuggerUrl"] for t in targets if t["type"] == "page")
            with connect(address, max_size=None, proxy=None) as connection:
                yield Page(connection, screenshots)
        finally:
            process.terminate()
            process.wait(60)


def pages_of(project: OwnProject) -> dict[str, str]:
    """The paths of the pages, by a name for the screenshot."""
    runs = project.graphql(RUNS)["runsOrError"]["results"]
    pages = {"runs": "/runs", "locations": "/locations", "catalog": "/assets"}
    for number, run in enumerate(runs):
        pages[f"run-{number}-{run['status']}"] = f"/runs/{run['runId']}"
    for kind, name in (("features", HOOK), ("features", FAILING), ("tables", HOOK)):
        for view in VIEWS:
            word = view.partition("&")[0]
            pages[f"{kind}-{name}-{word}"] = f"/assets/{DATASET}/{kind}/{name}?view={view}"
    pages["records"] = f"/assets/{DATASET}/records?view=partitions&partition=b1"
    return pages


def look_at_all(project: OwnProject, page: Page) -> list[str]:
    problems: list[str] = []
    for name, path in pages_of(project).items():
        page.open(project.url + path)
        problems += page.look(name)
        count = page.evaluate(f"{_MARKDOWN_BUTTONS}.length")
        for number in range(count):
            page.evaluate(f"{_MARKDOWN_BUTTONS}[{number}].click()")
            time.sleep(1.5)
            problems += page.look(f"{name}-{number}")
            page.open(project.url + path)
    return problems


def run_statuses(project: OwnProject) -> set[str]:
    return {run["status"] for run in project.graphql(RUNS)["runsOrError"]["results"]}


def main(screenshots: Path) -> int:
    screenshots.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        project = write_project(Path(folder) / "project")
        with project.dev():
            arguments = ["--dataset", DATASET, "--source", "import", "--batch", "b1"]
            done = project.run("submit", str(project.root / "records.jsonl"), *arguments)
            assert done.returncode == 0, done.stderr
            wait_for(lambda: {"SUCCESS", "FAILURE"} <= run_statuses(project), 300)
            wait_for(lambda: not run_statuses(project) & {"STARTED", "QUEUED", "STARTING"}, 300)
            with browser(screenshots) as page:
                problems = look_at_all(project, page)
            for line in problems or ["No script ran, and no text was taken for markup."]:
                sys.stdout.write(f"{line}\n")
                sys.stdout.flush()
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

"""The notebooks as nbdev stages them for Quarto: nothing leaks, nothing is broken."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

STAGE = """
from nbdev.serve import proc_nbs

if __name__ == "__main__":  # its workers are spawned
    proc_nbs(n_workers=2)
"""


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    "A copy of the project, staged."
    root = Path(__file__).resolve().parent.parent
    copy = tmp_path_factory.mktemp("site") / "project"
    ignore = shutil.ignore_patterns(".git", ".venv", "_proc", "_docs", "runs", "data", "*_cache", "__pycache__")
    shutil.copytree(root, copy, ignore=ignore)
    (copy / "stage_site.py").write_text(STAGE, encoding="utf-8")
    done = subprocess.run([sys.executable, "stage_site.py"], cwd=copy, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "Found cells containing imports and other code" not in done.stderr, done.stderr
    return copy / "_proc"


def notebooks(staged: Path) -> list[tuple[str, list[dict]]]:
    paths = sorted(staged.rglob("*.ipynb"))
    return [(p.relative_to(staged).as_posix(), json.loads(p.read_text(encoding="utf-8"))["cells"]) for p in paths]


def outputs(cell: dict) -> str:
    "All text that a cell's saved outputs hold."
    parts = []
    for output in cell.get("outputs", []):
        parts += ["".join(output.get("text", [])), "\n".join(output.get("traceback", []))]
        parts += ["".join(v) for k, v in output.get("data", {}).items() if k.startswith("text/")]
    return "\n".join(parts)


def test_every_chapter_is_staged(staged, root):
    names = {p.name for p in (root / "nbs").glob("*.ipynb")}
    assert {name for name, _ in notebooks(staged)} == names
    assert (staged / "_quarto.yml").exists() and (staged / "nbdev.yml").exists() and (staged / "styles.css").exists()


def test_no_directive_of_nbdev_leaks(staged):
    leak = re.compile(r"^#\| *(export|exports|exporti|hide|default_exp|eval)\b(?!:)", flags=re.M)
    leaks = [(n, "".join(c["source"])) for n, cells in notebooks(staged) for c in cells if c["cell_type"] == "code"]
    assert [(n, s) for n, s in leaks if leak.search(s)] == []


def test_saved_outputs_hold_no_error_warning_or_path_of_a_machine(staged):
    bad = re.compile(r"Traceback \(most recent|Warning:|/(home|root|work|tmp|Users)/[\w.-]+|site-packages")
    found = []
    for name, cells in notebooks(staged):
        for cell in cells:
            if any(o["output_type"] == "error" or o.get("name") == "stderr" for o in cell.get("outputs", [])):
                found.append((name, "error or stderr", "".join(cell["source"])[:80]))
            if match := bad.search(outputs(cell)):
                found.append((name, match[0], "".join(cell["source"])[:80]))
    assert found == []


def test_every_figure_has_alternative_text(staged):
    bare = [
        (name, "".join(cell["source"])[:80])
        for name, cells in notebooks(staged)
        for cell in cells
        for output in cell.get("outputs", [])
        if any(kind.startswith("image/") for kind in output.get("data", {}))
        and not re.search(r"^#\| *fig-alt: *\S", "".join(cell["source"]), flags=re.M)
    ]
    assert bare == []


def test_links_between_chapters_and_pictures_lead_somewhere(staged):
    missing = []
    for name, cells in notebooks(staged):
        for cell in cells:
            if cell["cell_type"] != "markdown":
                continue
            for target in re.findall(r"\]\(([^)\s]+)[^)]*\)|src=\"([^\"]+)\"", "".join(cell["source"])):
                target = (target[0] or target[1]).split("#")[0]
                if target and not re.match(r"[a-z]+:", target) and not (staged / name).parent.joinpath(target).exists():
                    # nbdev turns a known symbol into a link to the rendered page.
                    page = {re.sub(r"^\d+_", "", n).replace(".ipynb", ".html") for n, _ in notebooks(staged)}
                    if target.lstrip("./") not in page:
                        missing.append((name, target))
    assert missing == []


def test_the_sidebar_lists_every_page(staged, root):
    import yaml

    def pages(items):
        for item in items:
            if isinstance(item, str):
                yield item
            else:
                yield from pages(item.get("contents", []))
                if "href" in item:
                    yield item["href"]

    site = yaml.safe_load((root / "_quarto.yml").read_text(encoding="utf-8"))
    listed = list(pages(site["website"]["sidebar"]["contents"]))
    assert sorted(listed) == sorted(name for name, _ in notebooks(staged))

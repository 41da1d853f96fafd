#!/usr/bin/env python3
"""Brings everything that is made from the notebooks in step with them; exits 1 if anything was not.

    python .ci/in_step.py

Exports the package, cleans the notebooks, writes nbs/nbdev.yml from settings.ini and README.md from
nbs/index.ipynb. Needs git and nbdev, but no Quarto. A tree that was in step is left untouched.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README_NOTE = "<!-- Made from nbs/index.ipynb by .ci/in_step.py: edit the notebook. -->\n\n"


def tree() -> str:
    "git's name for the content of the working tree: tracked and new files, the ignored ones left out."
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "GIT_INDEX_FILE": str(Path(folder) / "index")}
        subprocess.run(["git", "add", "-A", "."], cwd=ROOT, env=env, check=True, capture_output=True)
        done = subprocess.run(["git", "write-tree"], cwd=ROOT, env=env, check=True, capture_output=True, text=True)
        return done.stdout.strip()


def cell_markdown(cell: dict) -> str:
    "One cell of the front page as the Markdown that a code host shows."
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        if ":::" in source or "{{<" in source:
            raise SystemExit(f"nbs/index.ipynb: a code host cannot show Quarto's own syntax:\n{source}")
        # Links and pictures are relative to nbs/ there, to the top folder here.
        return re.sub(r"(\]\(|src=\"|href=\")(?![a-z]+:|#|/)", r"\g<1>nbs/", source)
    options = dict(re.findall(r"^#\| *([\w-]+):? *(.*)$", source, flags=re.M))
    if "hide" in options:
        return ""
    code = re.sub(r"^#\|.*\n?", "", source, flags=re.M).strip()
    parts = [] if options.get("echo") == "false" else [f"```python\n{code}\n```"]
    for output in cell["outputs"]:
        data = output.get("data", {})
        if any(kind.startswith("image/") for kind in data):
            raise SystemExit("nbs/index.ipynb: a README cannot hold an output picture; link a file of nbs/images")
        text = "".join(output.get("text") or data.get("text/plain") or [])
        if text:
            parts.append(f"```\n{text.rstrip()}\n```")
    return "\n\n".join(parts)


def write_readme() -> None:
    "README.md from nbs/index.ipynb."
    notebook = json.loads((ROOT / "nbs/index.ipynb").read_text(encoding="utf-8"))
    cells = [cell_markdown(cell) for cell in notebook["cells"]]
    text = README_NOTE + "\n\n".join(cell for cell in cells if cell) + "\n"
    path = ROOT / "README.md"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
    path.touch()  # never older than the notebook: nbdev_docs then leaves it as it is


def main() -> int:
    os.chdir(ROOT)
    from nbdev.clean import nbdev_clean
    from nbdev.doclinks import nbdev_export
    from nbdev.quarto import refresh_quarto_yml

    before = tree()
    nbdev_export.__wrapped__()
    nbdev_clean.__wrapped__()
    refresh_quarto_yml()
    write_readme()
    after = tree()
    if before == after:
        print("in step: package, notebooks, nbdev.yml and README")
        return 0
    changed = subprocess.run(["git", "diff", "--stat", before, after], check=True, capture_output=True, text=True)
    print(f"These were not in step, and now are; look at them and commit:\n{changed.stdout}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())

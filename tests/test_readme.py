"""The README keeps its word: its Python runs, and what it links to is there."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text("utf-8")


def test_the_python_of_the_readme_runs() -> None:
    blocks = re.findall(r"^( *)```python\n(.*?)^\1```", TEXT, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1
    for indent, block in blocks:
        code = "\n".join(line.removeprefix(indent) for line in block.splitlines())
        exec(compile(code, "README.md", "exec"), {})


def test_what_the_readme_links_to_is_there() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []

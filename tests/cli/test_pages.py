"""docs/commands/ says what the program says of itself."""

from __future__ import annotations

import pytest

from docs.generate import OUT, pages
from vlm_edge.cli.main import COMMANDS, execute


def test_the_pages_are_not_stale() -> None:
    """Where this fails: python -m docs.generate"""
    assert {path.name: path.read_text("utf-8") for path in OUT.glob("*.md")} == pages()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_the_help_is_on_its_page(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute([name, "--help"]) == 0
    shown = capsys.readouterr().out
    page = (OUT / f"{name}.md").read_text("utf-8")
    options = {word.rstrip(",") for line in shown.splitlines() for word in line.split()[:1] if word.startswith("--")}
    assert options - {"--help"} <= {word.strip("`") for word in page.split()}

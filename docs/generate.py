"""Writes docs/commands/, a page for each command, from what the program says of itself: python -m docs.generate"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlm_edge.cli.main import COMMANDS, program

OUT = Path(__file__).parent / "commands"
HEAD = "<!-- Written by `python -m docs.generate` from the program's own help; change that. -->\n\n"


def pages() -> dict[str, str]:
    """Markdown by file name: one for each command, and an index."""
    root = program([])
    found = {f"{name}.md": _page(root.commands[name], f"vlm-edge {name}") for name in COMMANDS}
    rows = [(f"[`vlm-edge {name}`]({name}.md)", _first_line(root.commands[name])) for name in COMMANDS]
    found["README.md"] = f"{HEAD}# Commands\n\n{_table(('command', 'does'), rows)}"
    return found


def _page(command: Any, path: str) -> str:
    parts = [f"{HEAD}# {path}\n"]
    if commands := getattr(command, "commands", None):
        parts += [_text(command.help), *(_section(each, f"{path} {name}", "##") for name, each in commands.items())]
        return "\n".join(parts)
    return "\n".join([*parts, _section(command, path, "")])


def _section(command: Any, path: str, level: str) -> str:
    context = command.make_context(path, [], resilient_parsing=True)
    parts = [f"{level} {path}\n"] if level else []
    usage = " ".join([path, *command.collect_usage_pieces(context)])
    parts += [f"```text\n{usage}\n```\n", _text(command.help)]
    for kind in ("argument", "option"):
        records = [
            each.get_help_record(context)
            for each in command.get_params(context)
            if each.param_type_name == kind and each.name != "help"
        ]
        if rows := [(f"`{names}`", about) for names, about in filter(None, records)]:
            parts.append(_table((kind, ""), rows))
    return "\n".join(parts)


def _text(help_text: str | None) -> str:
    """Paragraphs, with the example as code."""
    paragraphs = []
    for paragraph in (help_text or "").split("\n\n"):
        joined = " ".join(paragraph.split())
        if joined.startswith("Example: "):
            joined = f"Example:\n\n```text\n{joined.removeprefix('Example: ')}\n```"
        paragraphs.append(joined)
    return "\n\n".join(paragraphs) + "\n"


def _first_line(command: Any) -> str:
    return " ".join((command.help or "").split("\n\n")[0].split()).rstrip(".")


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in lines)


def main() -> None:
    """Write all pages, and remove those of commands that are gone."""
    OUT.mkdir(exist_ok=True)
    wanted = pages()
    for path in OUT.glob("*.md"):
        if path.name not in wanted:
            path.unlink()
    for name, text in wanted.items():
        (OUT / name).write_text(text, "utf-8")


if __name__ == "__main__":
    main()

"""Help, usage lines and what a shell is offered for completion."""

from __future__ import annotations

import pytest

from vlm_edge.cli.main import execute
from vlm_edge.cli.options import DEVICES
from vlm_edge.errors import BadInput
from vlm_edge.pipeline.answering.options import REDUCTIONS, TILINGS
from vlm_edge.pipeline.answering.preflight import choose_device, find_bundle


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert execute(arguments) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return printed.out


@pytest.mark.parametrize("arguments", [(), ("--quiet",)])
def test_without_a_command_the_help_is_printed(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, *arguments) == shown(capsys, "--help")


@pytest.mark.parametrize(
    ("command", "usage"),
    [
        ("run", "Usage: vlm-edge run [OPTIONS] IMAGE... QUESTION"),
        ("eval", "Usage: vlm-edge eval [OPTIONS] [BUNDLE] DATA.jsonl"),
        ("export", "Usage: vlm-edge export [OPTIONS] MODEL OUT"),
        ("info", "Usage: vlm-edge info [OPTIONS] [BUNDLE]"),
        ("doctor", "Usage: vlm-edge doctor [OPTIONS]"),
    ],
)
def test_usage_lines(command: str, usage: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, command, "--help").splitlines()[0] == usage


VALUES = {"--tiling": TILINGS, "--reduce": REDUCTIONS, "--device": DEVICES}


@pytest.mark.parametrize("command", ["run", "eval"])
@pytest.mark.parametrize("option", VALUES)
def test_a_shell_is_offered_the_values_of_an_option(
    command: str, option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_VLM_EDGE_COMPLETE", "complete_bash")
    for typed, offered in (("", VALUES[option]), ("no", [value for value in VALUES[option] if value == "none"])):
        monkeypatch.setenv("COMP_WORDS", f"vlm-edge {command} {option} {typed}")
        monkeypatch.setenv("COMP_CWORD", "3")
        with pytest.raises(SystemExit):
            execute([])
        assert capsys.readouterr().out.split() == list(offered)


@pytest.mark.parametrize("option", VALUES)
def test_the_help_names_every_value(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(shown(capsys, "run", "--help").split())
    about = text[text.index(option) :].split(" --")[0]
    assert [value for value in VALUES[option] if value not in about] == []


def test_devices_are_those_that_run_takes() -> None:
    bundle = find_bundle(None)
    with pytest.raises(BadInput, match="has no value 'tpu'"):
        choose_device(bundle, "tpu")
    unknown = []
    for device in DEVICES:
        try:
            choose_device(bundle, device)
        except BadInput as refusal:  # a machine without CUDA says so
            unknown += [device] if "has no value" in refusal.message else []
    assert unknown == []

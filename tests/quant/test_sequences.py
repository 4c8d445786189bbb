"""Hidden states in files: what is put is what is got, in memory or not, and a damaged file is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vlm_edge.errors import BadInput
from vlm_edge.quant.sequences import CalibrationSequence, HiddenStates, Placement
from vlm_edge.quant.workspace import LayerReport, Workspace

LENGTHS, WIDTH = [3, 5, 2], 4


def rows(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, WIDTH, generator=generator) for length in LENGTHS]


def filled(folder: Path, *, resident: bool) -> HiddenStates:
    states = HiddenStates(folder, LENGTHS, WIDTH, resident=resident)
    states.begin(0)
    for i, row in enumerate(rows(0)):
        states.put(i, row)
    states.advance()
    return states


@pytest.mark.parametrize("resident", [False, True])
def test_a_layer_reads_the_old_states_until_all_new_ones_are_there(resident: bool, tmp_path: Path) -> None:
    states = filled(tmp_path, resident=resident)
    states.open(0)
    states.begin(1)
    for i, row in enumerate(rows(1)):
        assert torch.equal(states.get(i), rows(0)[i])
        states.put(i, row)
        assert torch.equal(states.fresh(i), row)
    states.advance()
    states.drop(0)
    assert all(torch.equal(states.get(i), row) for i, row in enumerate(rows(1)))
    again = HiddenStates(tmp_path, LENGTHS, WIDTH, resident=resident)
    again.open(1)
    assert all(torch.equal(again.get(i), row) for i, row in enumerate(rows(1)))
    with pytest.raises(BadInput, match="damaged"):
        again.open(0)


def test_half_written_states_are_not_read(tmp_path: Path) -> None:
    states = filled(tmp_path, resident=False)
    states.open(0)
    states.begin(1)
    states.put(0, rows(1)[0])
    with pytest.raises(BadInput, match="cannot be continued"):
        HiddenStates(tmp_path, LENGTHS, WIDTH, resident=False).open(1)


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    states = filled(tmp_path, resident=False)
    states.path(0).write_bytes(states.path(0).read_bytes()[:-1])
    with pytest.raises(BadInput, match="damaged") as caught:
        states.open(0)
    assert str(tmp_path) in caught.value.remedy  # what is to go, and not the bundle that it lies in


def test_states_of_another_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="3 x 4"):
        filled(tmp_path, resident=False).put(0, torch.zeros(2, WIDTH))


def test_a_workspace_remembers_placements_and_layers(tmp_path: Path) -> None:
    work = Workspace(tmp_path / "work", "a")
    positions = torch.arange(9).view(3, 3)
    calibrating = [CalibrationSequence(rows(0)[0], Placement(3, positions, 2, 1))]
    held_out = [CalibrationSequence(rows(0)[1], Placement(5))]
    work.start(calibrating, held_out, {"read": 2})
    work.record(LayerReport(0, seconds=1.5))
    again = Workspace(tmp_path / "work", "a")
    assert again.resumed == 1
    assert again.state == work.state
    first, second, *copies = again.placements()
    assert torch.equal(first.positions, positions)
    assert (first.length, first.prefix, first.judged_from) == (3, 2, 1)
    assert second == Placement(5) == copies[0] == copies[1]
    states = again.hidden_states(resident=False)
    states.open(0)
    assert torch.equal(states.get(3), rows(0)[1])
    assert Workspace(tmp_path / "work", "b").resumed == 0
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize("content", ["", "{", '{"fingerprint": "a", "layers": 3}', "[]"])
def test_a_damaged_state_starts_anew(content: str, tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(content)
    assert Workspace(tmp_path, "a").resumed == 0

"""Questions that share a prefix are answered as each alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import packed_questions
from benchmarks.nano_sequences import Asked
from benchmarks.packed_questions import Answers, answers, divergences, groups, kept, load_answers, save_answers
from tests import tiny_vlms


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return tiny_vlms.FAMILIES["llava"].model().eval()


@pytest.fixture(scope="module")
def asked(model: torch.nn.Module) -> list[Asked]:
    """Two pages: three questions about one, two about the other; lengths and answers differ."""
    torch.manual_seed(0)
    width = model.get_input_embeddings().weight.shape[1]  # type: ignore[operator]
    found = []
    for page, (prefix, lengths) in enumerate(((9, (5, 3, 8)), (14, (4, 6)))):
        shared = torch.randn(prefix, width)
        for i, length in enumerate(lengths):
            answer = tuple(torch.randint(3, 90, (1 + i,)).tolist())
            found.append(Asked(shared, torch.randn(length, width), answer, "value" if i else "count", page))
    return found


def alone(model: torch.nn.Module, one: Asked) -> torch.Tensor:
    """Logits of the whole sequence through the model's own forward."""
    with torch.no_grad():
        return model(inputs_embeds=one.hidden[None], use_cache=False).logits[0, -len(one.answer) :]


def test_each_answer_is_what_it_is_alone(model: torch.nn.Module, asked: list[Asked]) -> None:
    assert [len(group) for group in groups(asked)] == [3, 2]
    found = answers(model, asked)
    for i, one in enumerate(asked):
        logits = alone(model, one)
        torch.testing.assert_close(found.log_probabilities[i], logits.log_softmax(-1), rtol=1e-4, atol=1e-5)
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(one.answer))
        assert float(found.nll[i]) == pytest.approx(float(loss), rel=1e-4)
        assert bool(found.exact[i]) == (logits.argmax(-1).tolist() == list(one.answer))
    right = [
        Asked(one.prefix, one.own, tuple(alone(model, one).argmax(-1).tolist()), one.task, one.page) for one in asked
    ]
    assert answers(model, right).exact.tolist() == [True] * 5


def test_divergence_is_torchs_own() -> None:
    torch.manual_seed(0)
    rows = [[torch.randn(n, 7).log_softmax(-1) for n in (1, 4)] for _ in range(2)]
    ours, theirs = (Answers(one, torch.tensor([True]), torch.tensor([0.0])) for one in rows)
    wanted = [
        float(torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum")) / len(p)
        for p, q in zip(*rows, strict=True)
    ]
    assert divergences(ours, theirs).tolist() == pytest.approx(wanted, rel=1e-5)
    assert divergences(ours, ours).tolist() == [0.0, 0.0]


def test_what_is_kept_comes_back_and_is_drawn_once(model: torch.nn.Module, asked: list[Asked], tmp_path: Path) -> None:
    mixed = [asked[i] for i in (3, 0, 4, 1, 2)]
    first = kept(tmp_path / "data", lambda: iter(mixed))
    again = kept(tmp_path / "data", lambda: pytest.fail("drawn twice"))  # type: ignore[arg-type,return-value]
    assert [len(group) for group in groups(again)] == [2, 3]
    assert [one.answer for one in first] == [one.answer for one in again] == [asked[i].answer for i in (3, 4, 0, 1, 2)]
    assert all(torch.equal(a.hidden, asked[i].hidden) for a, i in zip(again, (3, 4, 0, 1, 2), strict=True))
    found = answers(model, again)
    save_answers(found, tmp_path / "answers")
    read = load_answers(tmp_path / "answers")
    assert torch.equal(read.exact, found.exact)
    assert torch.equal(read.nll, found.nll)
    assert all(torch.equal(a, b) for a, b in zip(read.log_probabilities, found.log_probabilities, strict=True))


def test_a_run_that_is_stopped_while_it_writes_leaves_no_table(tmp_path: Path, asked: list[Asked]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_questions, "save", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            kept(tmp_path, lambda: iter(asked))
    assert len(kept(tmp_path, lambda: iter(asked))) == 5

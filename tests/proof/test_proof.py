"""The command for the long form runs, prints its figures, and says what it does not know."""

from __future__ import annotations

import pytest

from tests.proof import attacks
from tests.proof.__main__ import main
from tests.proof.attacks import ATTACKS


def test_an_attack_prints_what_was_withstood(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(attacks, "_EXAMPLES", 1)
    monkeypatch.setattr(attacks, "_STEPS", 5)
    assert main(["--minutes", "0", "--seed", "3", "model"]) == 0
    printed = capsys.readouterr().out
    assert "seed 3" in printed
    assert "steps compared" in printed
    assert "nothing was broken" in printed


def test_what_is_broken_is_told_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaks(seconds: float, seed: int) -> dict[str, float]:
        raise AssertionError(f"lost a record, seed {seed}")

    monkeypatch.setitem(ATTACKS, "kill", breaks)
    monkeypatch.setitem(ATTACKS, "soak", lambda seconds, seed: {"hours": 1})
    assert main(["--minutes", "0", "--seed", "5", "kill", "soak"]) == 1
    printed = capsys.readouterr().out
    assert "lost a record, seed 5" in printed
    assert "hours" in printed
    assert "broken by: kill" in printed


def test_an_unknown_attack_is_refused_with_those_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["nonsense"])
    assert "model" in capsys.readouterr().err

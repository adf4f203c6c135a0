import io
import sys

from deploykit.train import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_off_a_terminal_the_last_step_is_a_plain_line_on_stderr(capsys):
    with progress.shown(3, 0) as advance:
        for step in (1, 2, 3):
            advance(step, "loss 0.5000")
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "training: step 3/3, loss 0.5000, 0 s left\n"


def test_a_line_comes_now_and_then_with_the_time_left(capsys, monkeypatch):
    clock = iter([0.0, 10.0, 20.0, 25.0, 40.0])
    monkeypatch.setattr("deploykit.train.progress.time.monotonic", lambda: next(clock))
    with progress.shown(20, 10) as advance:
        for step in (11, 12, 13, 14):
            advance(step, "loss 1.0000")
    assert capsys.readouterr().err.splitlines() == [
        "training: step 12/20, loss 1.0000, 80 s left",
        "training: step 14/20, loss 1.0000, 60 s left",
    ]


def test_a_while_that_brought_nothing_is_told_too(capsys, monkeypatch):
    clock = iter([0.0, 20.0])
    monkeypatch.setattr("deploykit.train.progress.time.monotonic", lambda: next(clock))
    with progress.shown(8, 0, work="writing: row") as advance:
        advance(0, "0% new")
    assert capsys.readouterr().err == "writing: row 0/8, 0% new, 160 s left\n"


def test_other_work_than_training_has_its_own_name(capsys):
    with progress.shown(8, 0, work="writing: row") as advance:
        advance(8, "99% new")
    assert capsys.readouterr().err == "writing: row 8/8, 99% new, 0 s left\n"


def test_on_a_terminal_there_is_a_bar_with_loss_and_time_left(monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress.shown(3, 0) as advance:
        advance(2, "loss 0.2500")
    assert "loss 0.2500" in terminal.getvalue()
    assert "2/3" in terminal.getvalue()
    assert capsys.readouterr().out == ""


def test_long_work_without_a_number_of_its_own_is_told_and_short_work_is_not(capsys, monkeypatch):
    clock = iter([0.0, 10.0, 20.0, 29.0])
    monkeypatch.setattr("deploykit.train.progress.time.monotonic", lambda: next(clock))
    assert list(progress.through("abc", 3, "fit: layer")) == ["a", "b", "c"]
    assert capsys.readouterr().err == "fit: layer 2/3, 10 s left\n"

"""The command line: exit codes, one line per error, and what goes to which stream."""

import json
import subprocess
import sys

import pytest
from safetensors import SafetensorError

from deploykit import cli, commands
from deploykit.errors import DataError, DeploykitError

COMMANDS = ("finetune", "compress", "export", "validate", "bench", "package", "serve", "report", "run", "predict",
            "inspect", "verify", "doctor", "demo")  # fmt: skip


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_design_has_help(command, capsys):
    assert run(command, "--help") == 0
    assert command in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["frobnicate"], ["export"], ["export", "x", "--out", "y", "--nonsense"]])
def test_usage_errors_exit_2(arguments, capsys):
    assert run(*arguments) == 2
    assert capsys.readouterr().err


def test_an_unknown_value_of_a_flag_names_the_flag(bert, tmp_path, capsys):
    assert run("export", bert, "--out", tmp_path / "out", "--provider", "abacus") == 2
    assert "--provider" in capsys.readouterr().err


def test_a_missing_checkpoint_exits_3_with_one_line(tmp_path, capsys):
    assert run("export", tmp_path / "nowhere", "--out", tmp_path / "out") == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "expected" in captured.err
    assert list(tmp_path.iterdir()) == []


def test_rows_without_labels_are_given_by_a_flag(bert, reviews, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DEPLOYKIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "recipe.yaml").write_text("stages:\n  - distil: {layers: 1, epochs: 1}\n")
    (tmp_path / "more.txt").write_text("the film was fine\n")
    flags = ("--data", reviews, "--recipe", tmp_path / "recipe.yaml", "--out", tmp_path / "out")
    assert run("compress", bert, *flags, "--unlabeled", tmp_path / "none.txt") == 3
    assert "none.txt" in capsys.readouterr().err
    assert run("compress", bert, *flags, "--unlabeled", tmp_path / "more.txt") == 0
    kinds = [node.kind for node in commands.inspect(tmp_path / "out").node.parents]
    assert kinds == ["checkpoint", "dataset", "dataset"]


def test_a_target_out_of_reach_exits_1_with_the_nearest_point_named_and_kept(
    bert, reviews, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("DEPLOYKIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "recipe.yaml").write_text("stages:\n  - prune: {size_mb: 0.001}\n  - quantize: {}\n")
    out = tmp_path / "out"
    flags = ("--data", reviews, "--recipe", tmp_path / "recipe.yaml", "--out", out, "--json")
    for _ in range(2):  # a second time it is found as it is
        assert run("compress", bert, *flags) == 1
        captured = capsys.readouterr()
        printed = json.loads(captured.out)
        assert (printed["artifact"], printed["verdict"]) == (str(out), "fail")
        assert "warning: prune.size_mb 0.001" in captured.err
        assert commands.verify(out) == []
    assert run("inspect", out) == 0
    assert "out of reach: at best" in capsys.readouterr().err


def test_traceback_shows_the_rest(tmp_path, capsys):
    assert run("export", tmp_path / "nowhere", "--out", tmp_path / "out", "--traceback") == 3
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("raised", "code"), [(ZeroDivisionError("x"), 70), (KeyboardInterrupt(), 130), (MemoryError(), 5),
                         (OSError(28, "No space left on device"), 5),
                         (SafetensorError("I/O error: No space left on device (os error 28)"), 5),
                         (DataError("x", expected="a", found="out of memory", next_step="b"), 3)]
)  # fmt: skip
def test_what_a_command_raises_becomes_its_exit_code(monkeypatch, tmp_path, raised, code, capsys):
    def fail(_path: object) -> None:
        raise raised

    monkeypatch.setattr(commands, "inspect", fail)
    assert run("inspect", tmp_path) == code
    assert capsys.readouterr().err.count("\n") <= 1


def test_every_exit_code_of_the_table_has_an_error():
    def below(cls: type[DeploykitError]) -> set[int]:
        return {cls.exit_code}.union(*(below(child) for child in cls.__subclasses__()))

    assert below(DeploykitError) == {1, 2, 3, 4, 5, 6, 70}


def test_the_line_by_hand(bert, reviews, tmp_path, capsys):
    """export, inspect, verify, predict: each prints one JSON object or what was asked for."""
    model = tmp_path / "model"
    assert run("export", bert, "--out", model, "--precision", "int8", "--json") == 0
    exported = json.loads(capsys.readouterr().out)
    assert exported["artifact"] == str(model)
    assert run("inspect", model) == 0
    assert "by export" in capsys.readouterr().out
    assert run("verify", model, "--json") == 0
    assert json.loads(capsys.readouterr().out)["digest"] == exported["digest"]
    assert run("predict", model, "--input", reviews / "test.jsonl", "--output", tmp_path / "answers.jsonl") == 0
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert len(answers) == 48
    assert set(answers[0]) == {"label", "score"}


def test_verify_names_a_flipped_byte(bert, tmp_path, capsys):
    model = tmp_path / "model"
    run("export", bert, "--out", model)
    capsys.readouterr()
    graph = bytearray((model / "model.onnx").read_bytes())
    graph[len(graph) // 2] ^= 1
    (model / "model.onnx").write_bytes(graph)
    assert run("verify", model) == 1
    assert "model.onnx: changed" in capsys.readouterr().err
    assert run("predict", model, "--input", "x", "--output", "y") == 3


def test_an_existing_output_is_refused_unless_forced(bert, tmp_path):
    assert run("export", bert, "--out", tmp_path / "out") == 0
    assert run("export", bert, "--out", tmp_path / "out") == 0, "the same finished artifact is no error"
    assert run("export", bert, "--out", tmp_path / "out", "--precision", "int8") == 2
    assert run("export", bert, "--out", tmp_path / "out", "--precision", "int8", "--force") == 0


HEAVY = ("torch", "transformers", "onnx", "onnxruntime", "sklearn", "scipy", "bentoml")


def test_the_command_line_loads_nothing_heavy():
    code = f"import sys, deploykit.cli.app, deploykit.commands; print([m for m in {HEAVY} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"

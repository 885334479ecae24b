import json
import re

import pytest
import torch

from qdeq.demo import story
from qdeq.demo.__main__ import main
from qdeq.demo.save import FILES

ROWS = [
    "float, as trained",
    "QAT (fake-quantized)",
    "int8 (fbgemm)",
    "fresh network, nothing copied",
    "copy by name, load_state_dict",
    "copy by name, in place",
    "qdeq.dequantize_model",
]


def parsed_table(output: str) -> dict[str, tuple[float, float, float]]:
    """The rows of the printed table: accuracy, agreement with int8, largest difference of a logit."""
    rows = {}
    for name in ROWS:
        (line,) = [line for line in output.splitlines() if line.strip().startswith(name + "  ")]
        accuracy, agreement, difference = line.strip().removeprefix(name).split()
        rows[name] = (float(accuracy), float(agreement), float(difference))
    return rows


def test_table_is_what_was_measured(short_run):
    rows = parsed_table(short_run.output)
    assert rows["int8 (fbgemm)"][1:] == (100.0, 0.0)
    saved = {row["name"]: row for row in short_run.results["rows"]}
    assert list(saved) == ROWS
    for name, (accuracy, agreement, difference) in rows.items():
        assert saved[name]["accuracy"] == pytest.approx(accuracy, abs=0.005)
        assert saved[name]["agreement"] == pytest.approx(agreement, abs=0.005)
        assert saved[name]["largest_difference"] == pytest.approx(difference, abs=0.0005)


def test_rebuilt_model_is_closer_to_int8_than_any_copy_by_name(short_run):
    rows = parsed_table(short_run.output)
    for name in ROWS[3:6]:
        assert rows["qdeq.dequantize_model"][2] < rows[name][2] / 2


def test_too_little_training_is_said_and_is_status_1(short_run):
    assert short_run.status == 1
    assert re.search(r"FAILED: the int8 model's accuracy is [\d.]+ %, under 95 %", short_run.output)
    assert len(short_run.results["problems"]) >= 1


def test_output_to_a_pipe_is_plain_and_narrow(short_run):
    assert "\x1b" not in short_run.output
    assert "\r" not in short_run.output
    assert max(len(line) for line in short_run.output.split("Saved in")[0].splitlines()) <= 100
    assert short_run.errors == ""


def test_every_bit_is_checked(short_run):
    counts = re.findall(r"(\d+) tensors, ([\d,]+) values, ([\d,]+) differ", short_run.output)
    parameters = torch.load(short_run.folder / "dequantized.pt", weights_only=True)
    for kind, (tensors, values, differing) in zip(("weight", "bias"), counts, strict=True):
        own = [value for name, value in parameters.items() if name.endswith(kind)]
        assert int(tensors) == len(own) == 10
        assert int(values.replace(",", "")) == sum(value.numel() for value in own)
        assert differing == "0"


def test_what_was_never_copied_is_named(short_run):
    assert {"classifier.0.weight", "classifier.2.weight"} < set(short_run.results["never_copied"])
    assert short_run.results["weights_never_copied"] == 512 * 512 + 512 * 10
    assert short_run.results["variants_differ_in"] == 0
    for name in short_run.results["never_copied"]:
        assert re.search(rf"^\s*{re.escape(name)} ", short_run.output, re.MULTILINE)
    assert re.search(r"classifier\.0\.weight +262,144 +[\d.]+ +\._packed_params\._packed_params\[0\]", short_run.output)


def test_no_other_network_is_born_from_the_training_seed(short_run):
    # The same seed gives the same random classifier: the missing copy would not show.
    assert short_run.seeds[0] == 5
    assert 5 not in short_run.seeds[1:]
    assert len(short_run.seeds) == 3


def test_saved_files_can_be_read(short_run):
    assert sorted(path.name for path in short_run.folder.iterdir()) == sorted(FILES)
    for name in ("float.pt", "int8.pt", "dequantized.pt"):
        torch.load(short_run.folder / name, weights_only=True)


def test_report_gives_the_scales_of_the_int8_file(short_run):
    int8 = torch.load(short_run.folder / "int8.pt", weights_only=True)
    entries = {
        entry["target"]: entry for entry in json.loads((short_run.folder / "report.json").read_text())["entries"]
    }
    for name in [name for name in int8 if "weight" in name]:
        scales = int8[name].q_per_channel_scales()
        assert (entries[name]["scale_min"], entries[name]["scale_max"]) == (scales.min().item(), scales.max().item())


def test_nothing_is_overwritten_nor_trained_without_force(short_run, monkeypatch, capsys):
    monkeypatch.setattr(story, "_run", lambda *_: pytest.fail("trained although the folder is taken"))
    before = (short_run.folder / "float.pt").stat()
    assert main(["--quick", "--save", str(short_run.folder)]) == 2
    message = capsys.readouterr().err
    assert "--save: expected no float.pt in the folder" in message
    assert "--force" in message
    assert (short_run.folder / "float.pt").stat() == before


def test_engine_is_restored(short_run):
    before = torch.backends.quantized.engine
    with story._engine():
        assert torch.backends.quantized.engine == "fbgemm"
    assert torch.backends.quantized.engine == before

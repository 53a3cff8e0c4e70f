"""The fixtures of other toolkits are whole, and the comparison behind `make peers` finds what differs."""

import importlib.util
import json
import shutil

import pytest
import torch
from recipe_runs import ROOT
from safetensors.torch import save_file

FIXTURES = ROOT / "tests" / "fixtures" / "peers"
CASES = sorted(path.relative_to(FIXTURES).as_posix() for path in FIXTURES.glob("*/*"))
FORMATS = {"fairseq", "fastai", "joeynmt", "keras", "opennmt", "torch"}

_spec = importlib.util.spec_from_file_location("compare", ROOT / "benchmarks" / "peers" / "compare.py")
compare = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(compare)


def test_every_case_has_what_the_readme_says():
    assert {case.partition("/")[0] for case in CASES} == FORMATS
    for case in CASES:
        tensors, metadata = compare.read(FIXTURES / case / "expected.safetensors")
        assert metadata["versions"] and isinstance(json.loads(metadata["facts"]), dict), case
        assert len(list((FIXTURES / case).iterdir())) > 1, case
        for name in (name for name in tensors if name.endswith(".logits")):
            batch = name.removesuffix("logits")
            prefix = "decoder_" if f"{batch}decoder_input_ids" in tensors else ""
            ids, logits = tensors[f"{batch}{prefix}input_ids"], tensors[name]
            assert tensors[f"{batch}attention_mask"].shape == tensors[f"{batch}input_ids"].shape, case
            assert logits.shape[: logits.ndim - 1] == ids.shape[: logits.ndim - 1], case
            assert torch.isfinite(logits).all() and logits.abs().max() > 0.05, case
        # Rows alone are the rows of the batch: a causal model or one that honours the mask gives them the same logits.
        for side in ("right", "left"):
            if f"{side}.logits" in tensors and f"{side}.decoder_input_ids" not in tensors:
                mask = tensors[f"{side}.attention_mask"].bool()
                rows = [number for number in range(len(mask)) if f"row{number}.logits" in tensors]
                for number, valid in ((number, mask[number]) for number in rows):
                    row, alone = tensors[f"{side}.logits"][number], tensors[f"row{number}.logits"][0]
                    torch.testing.assert_close(row[valid] if row.ndim == 2 else row, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", ["torch/lm_lstm", "opennmt/eole_rnn_gru_mlp"])
def test_the_comparison_finds_other_logits_texts_and_files(case, tmp_path):
    rebuilt = tmp_path / "rebuilt"
    shutil.copytree(FIXTURES / case, rebuilt)
    assert compare.differences(rebuilt, FIXTURES / case) == []
    tensors, metadata = compare.read(rebuilt / "expected.safetensors")
    for shift, found in ((5e-6, []), (1e-4, ["row1.logits: up to 1.0e-04 apart"])):
        moved = tensors | {"row1.logits": tensors["row1.logits"] + shift}
        save_file(moved, rebuilt / "expected.safetensors", metadata=metadata)
        assert compare.differences(rebuilt, FIXTURES / case) == found
    shutil.copy(FIXTURES / case / "expected.safetensors", rebuilt)
    if (rebuilt / "config.json").is_file():
        config = json.loads((rebuilt / "config.json").read_text())
        (rebuilt / "config.json").write_text(json.dumps(dict(reversed(config.items()))))
        assert compare.differences(rebuilt, FIXTURES / case) == []
        (rebuilt / "config.json").write_text(json.dumps(config | {"seed": 1}))
        assert compare.differences(rebuilt, FIXTURES / case) == ["config.json differs"]
    (rebuilt / "more.txt").touch()
    assert compare.differences(rebuilt, FIXTURES / case) == ["files differ: more.txt"]

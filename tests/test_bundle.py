"""A saved checkpoint carries its code: it loads in a process that cannot import hfseq, and computes the same there.

Run as a script, this file is that process: `python test_bundle.py CHECKPOINTS RESULTS`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from old_checkpoints import NoHfseq

pytestmark = pytest.mark.contract

# A row without padding and one padded on the left, as generate() wants it.
INPUTS = {
    "input_ids": torch.tensor([[5, 6, 7, 8, 9, 10], [0, 0, 11, 12, 13, 14]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]]),
}


def compute(model: transformers.PreTrainedModel) -> dict[str, torch.Tensor]:
    """Returns the logits (or hidden states) of a model and, if it generates, its beams with their scores."""
    model.eval()
    target = {"decoder_input_ids": torch.tensor([[1, 9, 8], [1, 7, 6]])} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        results = {"output": model(**INPUTS, **target)[0]}
        if model.can_generate():
            beams = model.generate(
                **INPUTS,
                num_beams=3,
                num_return_sequences=2,
                min_new_tokens=6,
                max_new_tokens=6,
                return_dict_in_generate=True,
                output_scores=True,
            )
            results |= {"sequences": beams.sequences, "scores": beams.sequences_scores}
    return results


def load_all(checkpoints: Path, **kwargs) -> dict[str, dict[str, torch.Tensor]]:
    """Loads each checkpoint through each Auto class of its `auto_map`; returns what the models compute."""
    results = {}
    for checkpoint in sorted(checkpoints.iterdir()):
        for auto_class in sorted(json.loads((checkpoint / "config.json").read_text())["auto_map"]):
            # A head that is not the one saved has new weights: the same ones everywhere.
            torch.manual_seed(0)
            loaded = getattr(transformers, auto_class).from_pretrained(checkpoint, **kwargs)
            name = f"{checkpoint.name} as {auto_class}: {type(loaded).__name__}"
            results[name] = {} if auto_class == "AutoConfig" else compute(loaded)
    return results


def heads_of(config_class):
    """The classes of a family that read tokens, by Auto class."""
    from token_classes import ALL, OTHERS

    return {auto: model for auto, model in ALL[config_class].items() if auto not in OTHERS}


def model_classes():
    from token_classes import ALL, LIKE_QRNN

    return [
        (config, auto, model)
        for config in ALL
        for auto, model in heads_of(config).items()
        # One class of a family whose heads are those of QRNN: it carries the code of all.
        if config.family not in LIKE_QRNN or auto == "AutoModelForSeq2SeqLM"
    ]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """One checkpoint of every registered class, and what the models that were saved compute."""
    checkpoints = tmp_path_factory.mktemp("checkpoints")
    originals = {}
    for config_class, auto_class, model_class in model_classes():
        torch.manual_seed(1)
        sizes = {"hidden_size": 16, "embedding_size": 12, "num_hidden_layers": 2, "num_labels": 3}
        config = config_class(vocab_size=40, lm_head_bias=True, **sizes)
        model = model_class(config)
        model.save_pretrained(checkpoints / model_class.__name__)
        originals[f"{model_class.__name__} as {auto_class}: {model_class.__name__}"] = compute(model)
    return checkpoints, originals


@pytest.fixture(scope="module")
def loaded_with_hfseq(saved):
    return load_all(saved[0])


@pytest.fixture(scope="module")
def loaded_without_hfseq(saved, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(elsewhere / "modules")}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, str(Path(__file__).resolve()), str(saved[0]), str(elsewhere / "results.pt")]
    done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return torch.load(elsewhere / "results.pt")


def test_the_auto_map_is_complete(saved):
    """A checkpoint offers every head of its family but a causal LM of both directions, and CTC of a decoder."""
    for config_class, _, model_class in model_classes():
        config = json.loads((saved[0] / model_class.__name__ / "config.json").read_text())
        auto_map = {auto: path.rpartition(".")[2] for auto, path in config["auto_map"].items()}
        expected = {auto: model.__name__ for auto, model in heads_of(config_class).items()}
        if config["bidirectional"]:
            del expected["AutoModelForCausalLM"]
        if config.get("is_encoder_decoder"):
            del expected["AutoModelForCTC"]
        assert auto_map == expected | {"AutoConfig": config_class.__name__}


def test_loads_with_hfseq_without_trust(saved, loaded_with_hfseq):
    _, originals = saved
    assert set(originals) <= set(loaded_with_hfseq)
    for name, expected in originals.items():
        torch.testing.assert_close(loaded_with_hfseq[name], expected, msg=lambda text, name=name: f"{name}: {text}")


def test_loads_without_hfseq(saved, loaded_with_hfseq, loaded_without_hfseq):
    assert list(loaded_without_hfseq) == list(loaded_with_hfseq)
    assert sum("sequences" in result for result in loaded_without_hfseq.values()) > 0
    for name, expected in loaded_with_hfseq.items():
        torch.testing.assert_close(loaded_without_hfseq[name], expected, msg=lambda text, name=name: f"{name}: {text}")


def test_a_pickle_is_refused(saved, tmp_path):
    checkpoints, _ = saved
    for checkpoint in checkpoints.iterdir():
        directory = tmp_path / checkpoint.name
        directory.mkdir()
        (directory / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
        auto_class = next(auto for _, auto, model in model_classes() if model.__name__ == checkpoint.name)
        model = getattr(transformers, auto_class).from_pretrained(checkpoint)
        torch.save(model.state_dict(), directory / "pytorch_model.bin")
        with pytest.raises(OSError, match="safetensors"):
            getattr(transformers, auto_class).from_pretrained(directory)


if __name__ == "__main__":
    sys.meta_path.insert(0, NoHfseq())
    torch.save(load_all(Path(sys.argv[1]), trust_remote_code=True), sys.argv[2])
    assert "hfseq" not in sys.modules

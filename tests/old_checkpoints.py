"""Checkpoints of earlier commits, and the script that writes new ones beside them.

    python tests/old_checkpoints.py                  # adds what new classes and settings lack
    python tests/old_checkpoints.py code 0.2.0       # keeps the code that this version publishes

Each folder of `fixtures/checkpoints` has `config.json` and `model.safetensors` as `save_pretrained` leaves them,
without the bundled code, and `expected.safetensors`: inputs, and outputs in float64. `fixtures/published/VERSION` is
the code that a version bundles with a checkpoint, once for all classes. `fixtures/initial_weights.json` has sums of
the weights that a seed gives. The script leaves what exists alone: it stands for the checkpoints that people have.
"""

import json
import shutil
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

CHECKPOINTS = Path(__file__).parent / "fixtures" / "checkpoints"
PUBLISHED = Path(__file__).parent / "fixtures" / "published"
INITIAL_WEIGHTS = Path(__file__).parent / "fixtures" / "initial_weights.json"
TINY = {"vocab_size": 17, "hidden_size": 8, "embedding_size": 6, "num_hidden_layers": 2, "num_labels": 3}
MODEL, CAUSAL, SEQ2SEQ = "AutoModel", "AutoModelForCausalLM", "AutoModelForSeq2SeqLM"
SEQUENCE, TOKEN = "AutoModelForSequenceClassification", "AutoModelForTokenClassification"
CTC, PREDICTION = "AutoModelForCTC", "AutoModelForTimeSeriesPrediction"
CHARACTERS = {"char_vocab_size": 9, "char_embedding_size": 4, "char_hidden_size": 6}

# Settings of every family, by Auto class; each begins with the defaults.
SETTINGS = {
    MODEL: {
        "default": {},
        "forward": {"bidirectional": False},
        "char_cnn": {"char_encoder": "cnn", **CHARACTERS},
        "char_lstm": {"char_encoder": "lstm", **CHARACTERS},
        "decoder": {"add_cross_attention": True, "cross_attention_hidden_size": 10},
    },
    CAUSAL: {
        "default": {},
        "untied": {"tie_word_embeddings": False},
        "square": {"embedding_size": 8, "num_hidden_layers": 3},
        "adaptive": {"adaptive_softmax_cutoffs": [5, 11]},
        "sampled": {"num_negatives": 4},
        "cross": {"add_cross_attention": True},
    },
    SEQ2SEQ: {
        "default": {},
        "separate": {"share_encoder_decoder_embeddings": False, "tie_word_embeddings": False},
        "shared_only": {"tie_word_embeddings": False, "encoder_layers": 1, "decoder_layers": 3},
        "forward": {"bidirectional": False, "share_encoder_decoder_embeddings": False},
    },
    SEQUENCE: {pooling: {"pooling": pooling} for pooling in ("last", "mean", "max", "concat", "attention")}
    | {
        "default": {},
        "regression": {"num_labels": 1, "problem_type": "regression"},
        "forward": {"bidirectional": False},
    },
    TOKEN: {
        "default": {},
        "crf": {"crf": True},
        "char_cnn": {"char_encoder": "cnn", **CHARACTERS},
        "char_lstm_crf": {"char_encoder": "lstm", "crf": True, **CHARACTERS},
    },
    CTC: {"default": {}},
    PREDICTION: {
        "default": {},
        "covariates": {
            "input_size": 2,
            "lags_sequence": [1, 3],
            "scaling": "std",
            "num_time_features": 2,
            "num_static_categorical_features": 1,
            "cardinality": [3],
            "num_static_real_features": 1,
        },
        "points": {"input_size": 1, "embedding_size": None, "loss": "mse", "scaling": None},
    },
}
FEATURES = {
    "features": {"input_size": 3, "embedding_size": None},
    "stacked": {"input_size": 3, "subsampling_factor": 2},
}
for _auto in (MODEL, SEQ2SEQ, SEQUENCE, TOKEN, CTC):
    SETTINGS[_auto] |= FEATURES
FRAMES = {"frame_shape": [1, 4, 3], "frame_filters": [2], "embedding_size": None}
SETTINGS[MODEL] |= {"frames": FRAMES}
RECURRENT = {
    MODEL: {
        "layer_norm": {"layer_norm": True},
        "additive": {"add_cross_attention": True, "attention_type": "additive", "input_feeding": True},
    },
    CAUSAL: {
        "layer_norm": {"layer_norm": True, "variational_dropout": True, "weight_dropout": 0.5},
        "feeding": {"add_cross_attention": True, "input_feeding": True},
    },
    SEQ2SEQ: {
        "additive": {"attention_type": "additive"},
        "dot": {"attention_type": "dot", "input_feeding": True},
        "pointer": {"attention_type": "additive", "pointer_generator": True, "coverage": True, "unk_token_id": 3},
    },
}
CONVOLUTIONAL = {
    auto: {
        name: {"architecture": name}
        for name in ("parallel", "residual", "gated", "convs2s")
        # A stack of parallel widths has one layer, which cannot be causal.
        if not (auto == CAUSAL and name == "parallel")
    }
    for auto in (MODEL, CAUSAL, SEQ2SEQ, SEQUENCE, TOKEN)
}
CONVOLUTIONAL[MODEL] = CONVOLUTIONAL[MODEL] | {"dilated": {"dilation_base": 2, "bidirectional": False}}
OWN = {"Rnn": RECURRENT, "Lstm": RECURRENT, "Gru": RECURRENT, "Cnn": CONVOLUTIONAL}
BLOCKS = {"blocks": {"residual_blocks": True}}
CANDIDATES = {kind: {"candidate": kind, "layer_norm": True} for kind in ("linear", "tanh")}
# Of families whose heads are those above, and differ in the cell alone.
CELLS = {
    "MinGru": {MODEL: BLOCKS, CAUSAL: BLOCKS | CANDIDATES},
    "MinLstm": {MODEL: BLOCKS, CAUSAL: CANDIDATES},
    "Qrnn": {MODEL: BLOCKS, SEQ2SEQ: BLOCKS, CAUSAL: {"window": {"window": 1, "zoneout": 0.25}}},
    "Ssru": {MODEL: BLOCKS, CAUSAL: BLOCKS | {"wide": {"residual_blocks": True, "conv_kernel": None, "expand": 3}}},
}
MAPS = FRAMES | {"recurrent_kernel_size": 3, "hidden_size": 16}
NARROW = {"adaptive_softmax_cutoffs": [5, 11], "adaptive_softmax_div_value": 2, "tie_word_embeddings": False}
TAPERED = {"layer_sizes": [12, 10, 6], "hidden_size": 6, "num_hidden_layers": 3}
SHAPED = {"conv_layers": [[6, 3, 1], [6, 1, 1], [8, 3, 2]], "num_hidden_layers": 3, "input_projection": True}
SHAPED |= {"output_size": 5, "tie_word_embeddings": False, "lm_head_bias": True, "architecture": "convs2s"}
BEFORE = {"attention_position": "before_residual"}
ONE_FAMILY = {
    "Gru": {CAUSAL: {"narrow_clusters": NARROW}, SEQ2SEQ: {"lm_head_bias": {"lm_head_bias": True}}},
    "Cnn": {
        CAUSAL: {"conv_layers": SHAPED},
        SEQ2SEQ: {"conv_layers": SHAPED | {"attention_position": "before_residual"}},
    },
    "Rnn": {MODEL: {"relu": {"hidden_act": "relu"}}, CAUSAL: {"relu": {"hidden_act": "relu"}}},
    "Lstm": {
        MODEL: {"maps": MAPS},
        CAUSAL: {"lm_head_bias": {"lm_head_bias": True, "adaptive_softmax_cutoffs": [5, 11]}, "layer_sizes": TAPERED},
        PREDICTION: {"maps": MAPS | {"loss": "mse", "scaling": None, "teacher_forcing": False}},
    },
}


def settings_of(family: str, auto: str) -> dict[str, dict]:
    """Name to config fields, of one class."""
    if family in CELLS:
        return {"default": {}} | CELLS[family].get(auto, {})
    return SETTINGS[auto] | OWN.get(family, {}).get(auto, {}) | ONE_FAMILY.get(family, {}).get(auto, {})


def make_inputs(model: transformers.PreTrainedModel) -> dict[str, torch.Tensor]:
    """Rows padded on the left, on the right, in between and not at all; floats in float64."""
    generator = torch.Generator().manual_seed(1)
    config = model.config
    if model.main_input_name == "past_values":
        return make_series(config, generator)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 1, 0, 1], [1, 1, 1, 1, 1]])

    def ids(vocab_size: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, vocab_size, shape, generator=generator)

    if model.main_input_name == "input_features":
        frames = torch.randn(*mask.shape, config.input_size, generator=generator, dtype=torch.float64)
        inputs = {"input_features": 5 + 3 * frames, "attention_mask": mask}
    else:
        inputs = {"input_ids": ids(config.vocab_size, *mask.shape), "attention_mask": mask}
    if config.is_encoder_decoder:
        inputs |= {"decoder_input_ids": ids(config.vocab_size, 4, 4), "decoder_attention_mask": mask[:, 1:].flip(0)}
    if config.char_encoder:
        inputs["char_ids"] = ids(config.char_vocab_size - 1, *mask.shape, 3) + 1
    if config.add_cross_attention:
        width = config.cross_attention_hidden_size or config.hidden_size
        inputs["encoder_hidden_states"] = torch.randn(4, 5, width, generator=generator, dtype=torch.float64)
        inputs["encoder_attention_mask"] = mask.flip(0)
    return inputs


def make_series(config: transformers.PreTrainedConfig, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Values of series with leading, other and no missing ones, and what a forecaster needs beside them."""
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 0, 1, 0, 1, 0, 1], [1, 1, 1, 1, 1, 1, 1]])

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    values = 4 + 2 * numbers(*mask.shape, config.input_size)
    inputs = {
        "past_values": values[:, :5],
        "past_observed_mask": mask[:, :5],
        "future_values": values[:, 5:],
        "future_observed_mask": mask[:, 5:],
    }
    if config.num_time_features:
        time = numbers(*mask.shape, config.num_time_features)
        inputs |= {"past_time_features": time[:, :5], "future_time_features": time[:, 5:]}
    if config.num_static_categorical_features:
        inputs["static_categorical_features"] = torch.tensor([[0], [2], [1]])
    if config.num_static_real_features:
        inputs["static_real_features"] = numbers(3, config.num_static_real_features)
    return inputs


@torch.no_grad()
def compute(model: transformers.PreTrainedModel, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a model in float64 gives for inputs; if it generates, greedy sequences and beams with their scores, too."""
    outputs = {"output": model(**inputs)[0]}
    if model.main_input_name == "past_values":
        known = {name: value for name, value in inputs.items() if not name.startswith("future")}
        if model.config.loss == "mse":
            outputs["path"] = model.generate(**known, prediction_length=3).sequences
        else:
            outputs["likelihood"] = model.log_likelihood(**known)
    if model.can_generate() and not model.config.add_cross_attention:
        prompt = {name: value for name, value in inputs.items() if not name.startswith("decoder_")}
        if not model.config.is_encoder_decoder:  # a prompt has no padding after it
            prompt = {name: value[[0, 3]] for name, value in prompt.items()}
        outputs["greedy"] = model.generate(**prompt, max_new_tokens=6, min_new_tokens=6)
        found = model.generate(
            **prompt, max_new_tokens=6, num_beams=3, output_scores=True, return_dict_in_generate=True
        )
        outputs |= {"beams": found.sequences, "beam_scores": found.sequences_scores}
    return outputs


def make_model(model_class: type[transformers.PreTrainedModel], fields: dict) -> transformers.PreTrainedModel:
    """A model in evaluation whose weights are so large that no output is small by chance."""
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**TINY | fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.8, 0.8)
    if model.main_input_name == "input_features":
        features = torch.arange(model.config.input_size)
        model.base_model.set_feature_statistics(4.0 + features, 2.0 + features)
    return model


def sum_initial_weights(auto: str, model_class: type[transformers.PreTrainedModel]) -> dict[str, list[float]]:
    """Sums of the values and of the magnitudes of every new weight, by name."""
    fields = TINY | {"dropout": 0.1}
    if auto in (MODEL, TOKEN):
        fields |= {"char_encoder": "cnn" if auto == MODEL else "lstm", "char_hidden_size": 6}
    torch.manual_seed(11)
    state = model_class(model_class.config_class(**fields)).state_dict()
    sums = {name: (weight.double().sum(), weight.double().abs().sum()) for name, weight in state.items()}
    return {name: [round(float(value), 5) for value in pair] for name, pair in sums.items()}


def read_tensors(folder: Path, kind: str) -> dict[str, torch.Tensor]:
    """The `inputs` of a folder, or its expected `outputs`."""
    tensors = load_file(folder / "expected.safetensors")
    return {key.removeprefix(f"{kind}."): value for key, value in tensors.items() if key.startswith(f"{kind}.")}


class NoHfseq(MetaPathFinder):
    """Makes every import of hfseq fail."""

    def find_spec(self, fullname, path=None, target=None):
        """Raise for hfseq alone."""
        if fullname.partition(".")[0] == "hfseq":
            raise ModuleNotFoundError(f"No module named {fullname!r}")
        return None


def run_published(folders: Path, results: Path) -> None:
    """Compute the outputs of checkpoints by the code that lies beside them, where hfseq is not installed."""
    sys.meta_path.insert(0, NoHfseq())
    found = {}
    for folder in sorted(folders.iterdir()):
        auto_class, _, architecture = folder.name.partition("-")
        model = getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=True)
        found[architecture] = compute(model.double(), read_tensors(folder, "inputs"))
    torch.save(found, results)


def keep_code(directory: Path) -> None:
    """Keep the code that is saved with a checkpoint."""
    from hfseq.models import MODEL_CLASSES

    directory.mkdir(parents=True)
    for config_class, heads in MODEL_CLASSES.items():
        for model_class in heads.values():
            model_class(config_class(**TINY)).save_pretrained(directory / "one")
            for code in (directory / "one").glob("*.py"):
                code.replace(directory / code.name)
            shutil.rmtree(directory / "one")


def add_checkpoints(directory: Path) -> None:
    """Write the folders that do not exist yet."""
    from hfseq.models import MODEL_CLASSES

    for config_class, heads in MODEL_CLASSES.items():
        for auto, model_class in heads.items():
            for name, fields in settings_of(config_class.family, auto).items():
                folder = directory / f"{model_class.__name__}-{name}"
                if folder.exists():
                    continue
                model = make_model(model_class, fields)
                model.save_pretrained(folder)
                for code in folder.glob("*.py"):
                    code.unlink()
                shutil.rmtree(folder / "__pycache__", ignore_errors=True)
                inputs = make_inputs(model)
                outputs = compute(model.double(), inputs)
                tensors = {f"inputs.{key}": value for key, value in inputs.items()}
                tensors |= {f"outputs.{key}": value for key, value in outputs.items()}
                save_file({key: value.contiguous() for key, value in tensors.items()}, folder / "expected.safetensors")
                print(folder.name)


def add_initial_weights(path: Path) -> None:
    """Write the sums of the classes that have none yet."""
    from hfseq.models import MODEL_CLASSES

    sums = json.loads(path.read_text())
    for heads in MODEL_CLASSES.values():
        for auto, model_class in heads.items():
            if model_class.__name__ not in sums:
                sums[model_class.__name__] = sum_initial_weights(auto, model_class)
    lines = (f"  {json.dumps(name)}: {json.dumps(values)}" for name, values in sums.items())
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["code", version]:
            keep_code(PUBLISHED / version)
        case ["run", folders, results]:
            run_published(Path(folders), Path(results))
        case _:
            add_checkpoints(CHECKPOINTS)
            add_initial_weights(INITIAL_WEIGHTS)

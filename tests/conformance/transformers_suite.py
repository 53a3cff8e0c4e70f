"""transformers' own `ModelTesterMixin` and `ConfigTester` on the classes that hfseq registers.

Not named `test_*`, since it needs the source archive of transformers: `run.py` fetches that and starts this file.
"""

import unittest

import torch
from token_classes import LIKE_QRNN
from transformers_tests.generation.test_utils import GenerationTesterMixin
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor, torch_device

from hfseq.models import MODEL_CLASSES, CnnConfig

# hidden_states[0] are the embeddings, and the suite expects them to be as wide as the layers.
SIZES = {"vocab_size": 99, "hidden_size": 32, "embedding_size": 32, "num_hidden_layers": 2}


class ModelTester:
    """The sizes and inputs that the suite asks a model test for."""

    batch_size = 4
    seq_length = 7
    is_training = True
    vocab_size = SIZES["vocab_size"]
    hidden_size = SIZES["hidden_size"]
    num_hidden_layers = SIZES["num_hidden_layers"]

    def __init__(self, config_class, auto_class):
        self.config_class = config_class
        self.auto_class = auto_class
        self.is_encoder_decoder = auto_class == "AutoModelForSeq2SeqLM"
        if config_class is CnnConfig and auto_class == "AutoModelForSequenceClassification":
            # Parallel convolutions are one layer.
            self.expected_num_hidden_layers = 2

    def get_config(self):
        # A head sets these in its own copy of the config; the suite makes other heads from this one.
        role = {
            "AutoModelForSeq2SeqLM": {"is_encoder_decoder": True},
            "AutoModelForCausalLM": {"bidirectional": False, "lm_head_bias": True},
        }
        return self.config_class(**SIZES, **role.get(self.auto_class, {}))

    def prepare_config_and_inputs_for_common(self):
        shape = (self.batch_size, self.seq_length)
        # No padding, on the right, on the left, and a gap.
        mask = torch.ones(shape, dtype=torch.long, device=torch_device)
        mask[1, -3:] = 0
        mask[2, :2] = 0
        mask[3, 2:4] = 0
        inputs = {"input_ids": ids_tensor(shape, self.vocab_size), "attention_mask": mask}
        if self.is_encoder_decoder:
            inputs["decoder_input_ids"] = ids_tensor(shape, self.vocab_size)
            inputs["decoder_attention_mask"] = torch.ones(shape, dtype=torch.long, device=torch_device)
        return self.get_config(), inputs


class ForecasterTester(ModelTester):
    """The same for a forecaster, whose inputs are values; the archive lacks the tests of those of transformers."""

    def get_config(self):
        # As wide as the layers, see `SIZES`. The suite also makes base models from it.
        fields = {"input_size": 1, "lags_sequence": [1, 2], "prediction_length": 3, "bidirectional": False}
        return self.config_class(**SIZES, **fields)

    def prepare_config_and_inputs_for_common(self):
        shape = (self.batch_size, self.seq_length)
        observed = torch.ones(shape, dtype=torch.long, device=torch_device)
        # Missing values: none, at the start, at the end, in between.
        observed[1, :3] = 0
        observed[2, -2:] = 0
        observed[3, 2:4] = 0
        inputs = {"past_values": floats_tensor(shape), "past_observed_mask": observed}
        return self.get_config(), inputs | {"future_values": floats_tensor((self.batch_size, 3))}


# What the suite reads of every model, and a forecaster does not have: they are skipped.
NOT_OF_FORECASTERS = {
    **dict.fromkeys(
        ["test_resize_tokens_embeddings", "test_model_get_set_embeddings"],
        unittest.skip("a forecaster has no token embeddings")(lambda self: None),
    ),
    **dict.fromkeys(
        ["test_hidden_states_output", "test_retain_grad_hidden_states_attentions"],
        unittest.skip("a Seq2SeqTSPredictionOutput has no field hidden_states")(lambda self: None),
    ),
}


def with_symbols(self, inputs_dict, model_class, return_labels=False):
    """Inputs of a CTC model. The suite makes labels of zeros, the blank, as many as there are steps."""
    inputs = ModelTesterMixin._prepare_for_class(self, inputs_dict, model_class, return_labels)
    if return_labels:
        inputs["labels"] = torch.tensor([[3, 4]] * len(inputs["input_ids"]), device=torch_device)
    return inputs


def model_test(config_class, model_class, auto_class):
    """Returns the suite for one class. One suite cannot hold an encoder and a seq2seq model: the suite reads which
    outputs to look at from the config."""

    def set_up(self):
        self.model_tester = (ForecasterTester if forecasts else ModelTester)(config_class, auto_class)

    forecasts = auto_class == "AutoModelForTimeSeriesPrediction"

    # The suite demands this base of whatever generates. It is empty here, for the archive does not contain it:
    # generate() is tested in hfseq's own tests.
    generation = (GenerationTesterMixin,) if model_class.can_generate() else ()
    return type(
        f"{model_class.__name__}Test",
        (ModelTesterMixin, *generation, unittest.TestCase),
        {
            "__module__": __name__,
            "setUp": set_up,
            "all_model_classes": (model_class,),
            "is_encoder_decoder": auto_class == "AutoModelForSeq2SeqLM",
            # The suite means self-attention: square maps, one a layer, in encoder and decoder.
            "has_attentions": False,
            "test_can_init_all_missing_weights_before_2023": True,
            **(NOT_OF_FORECASTERS if forecasts else {}),
            **({"_prepare_for_class": with_symbols} if auto_class == "AutoModelForCTC" else {}),
        },
    )


def config_test(config_class):
    """Returns the suite for one config."""

    def test_config(self):
        sizes = {**SIZES, "hidden_size": 48}
        common = ["hidden_size", "num_hidden_layers"]
        ConfigTester(self, config_class=config_class, common_properties=common, **sizes).run_common_tests()

    return type(
        f"{config_class.__name__}Test", (unittest.TestCase,), {"__module__": __name__, "test_config": test_config}
    )


for config, heads in MODEL_CLASSES.items():
    for test in (
        config_test(config),
        *(
            model_test(config, head, auto_class)
            for auto_class, head in heads.items()
            # The class with both stacks alone of a family whose heads are those of QRNN.
            if config.family not in LIKE_QRNN or auto_class == "AutoModelForSeq2SeqLM"
        ),
    ):
        globals()[test.__name__] = test
# pytest would collect the last one a second time under this name.
del test

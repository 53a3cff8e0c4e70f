"""The table of heads agrees with the classes, with transformers and with peft."""

import pytest
import transformers
from peft import TaskType
from transformers.models.auto import modeling_auto
from transformers.pipelines import PIPELINE_REGISTRY

from hfseq import LstmConfig
from hfseq.heads import HEADS, HUB_TASKS, head_of
from hfseq.hub.model_card import METRICS
from hfseq.models import MAPPINGS, MODEL_CLASSES, NAMES, configuration_base, is_hfseq
from hfseq.training.finetuning import TASKS

CLASSES = [(auto, model) for heads in MODEL_CLASSES.values() for auto, model in heads.items()]


def test_there_is_a_row_for_each_head():
    assert [auto for head in HEADS for auto in head.auto_classes] == list(configuration_base.HEADS)
    assert [head.suffix for head in HEADS] == list(dict.fromkeys(configuration_base.HEADS.values()))


def test_a_head_may_have_several_auto_classes():
    head = head_of("LstmForConditionalGeneration")
    assert head.auto_classes == ("AutoModelForSeq2SeqLM", "AutoModelForSpeechSeq2Seq")
    assert head.auto_class == "AutoModelForSeq2SeqLM"
    # Those for speech are named where there are features to read, which no language model does.
    text, speech = LstmConfig().auto_map, LstmConfig(input_size=3).auto_map
    assert speech["AutoModelForSpeechSeq2Seq"] == "modeling_lstm.LstmForConditionalGeneration"
    assert speech.keys() - text.keys() == set(configuration_base.OF_FEATURES)
    assert text.keys() - speech.keys() == {"AutoModelForCausalLM"}


@pytest.mark.parametrize(("auto", "model_class"), CLASSES)
def test_a_class_finds_its_row(auto, model_class):
    assert head_of(model_class.__name__).auto_class == auto
    assert is_hfseq(model_class.config_class())


@pytest.mark.parametrize(
    ("name", "auto", "task"),
    [
        ("BertModel", "AutoModel", None),
        ("BertForMaskedLM", "AutoModel", None),
        ("GPT2LMHeadModel", "AutoModelForCausalLM", "text-generation"),
        ("MarianMTModel", "AutoModelForSeq2SeqLM", None),
        ("EncoderDecoderModel", "AutoModelForSeq2SeqLM", None),
        ("T5ForConditionalGeneration", "AutoModelForSeq2SeqLM", None),
        ("BertForTokenClassification", "AutoModelForTokenClassification", "token-classification"),
    ],
)
def test_classes_of_transformers_find_a_row(name, auto, task):
    assert (head_of(name).auto_class, head_of(name).hub_task) == (auto, task)


def test_the_names_are_known_to_those_who_read_them():
    for head in HEADS:
        assert callable(getattr(transformers, head.auto_class).from_config)
        assert head.peft_task is None or head.peft_task in TaskType.__members__
        task = head.task and TASKS[head.task]
        assert not task or {*task.metrics, *task.other_metrics} <= {"loss", *METRICS}
    for name, task in HUB_TASKS.items():
        if task.pipeline:
            PIPELINE_REGISTRY.check_task(name)
        else:
            with pytest.raises(KeyError):
                PIPELINE_REGISTRY.check_task(name)


def test_the_tables_of_an_auto_class_are_those_of_transformers():
    """They are read through private attributes of the Auto classes: this fails when those go."""
    constants = {
        "AutoModel": "MODEL_MAPPING",
        "AutoModelForCausalLM": "MODEL_FOR_CAUSAL_LM_MAPPING",
        "AutoModelForSeq2SeqLM": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",
        "AutoModelForSequenceClassification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING",
        "AutoModelForSpeechSeq2Seq": "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING",
        "AutoModelForAudioClassification": "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING",
        "AutoModelForTokenClassification": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING",
        "AutoModelForVideoClassification": "MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING",
        "AutoModelForTimeSeriesPrediction": "MODEL_FOR_TIME_SERIES_PREDICTION_MAPPING",
    }
    for auto, constant in constants.items():
        assert MAPPINGS[auto] is getattr(modeling_auto, constant)
        assert NAMES[auto] is getattr(modeling_auto, f"{constant}_NAMES")


def test_only_our_configurations_are_ours():
    assert not is_hfseq(transformers.BertConfig()) and not is_hfseq(None)

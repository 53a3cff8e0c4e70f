"""`pipeline("translation")` and `pipeline("summarization")` for every encoder-decoder checkpoint.

transformers 5 has neither and refuses their names. Importing this module, as `import hfseq` does, gives them back with
the arguments and results they had in transformers 4, to hfseq's models and to T5, Marian, BART, mBART, NLLB … alike:

    >>> translate = pipeline("translation", model="outputs/translation")
    >>> translate(["Good morning", "Thank you"], batch_size=8, num_beams=5)
    [{'translation_text': 'Guten Morgen'}, {'translation_text': 'Danke'}]

It also has `pipeline("token-classification")`, or "ner", put together whole entities of all of
`hfseq.data.tag_schemes`, where transformers itself reads the tags of IOB1 and IOB2 alone.
"""

import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from typing import Any, ClassVar, cast

import torch
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pipelines import PIPELINE_REGISTRY, REMOVED_TASKS
from transformers.pipelines.base import Pipeline, PipelineRegistry
from transformers.pipelines.pt_utils import KeyDataset
from transformers.pipelines.token_classification import AggregationStrategy
from transformers.pipelines.token_classification import TokenClassificationPipeline as _TokenClassificationPipeline
from transformers.utils import ModelOutput, logging

from hfseq.data.collation import check_batch, vocabulary_sizes
from hfseq.data.copying import copy_sources, decode_copies
from hfseq.data.tag_schemes import check_tags, to_iob2

logger = logging.get_logger(__name__)

# "translation_en_to_de", the way transformers 4 named a pair of languages in the task.
_LANGUAGE_PAIR = re.compile(r"translation_(?P<source>.+)_to_(?P<target>.+)")

# Whoever sets one of these with a call knows that it may cut the output.
_LIMITS = {"max_length", "max_new_tokens", "max_time", "stop_strings", "stopping_criteria", "generation_config"}

# First words of the names of letters of scripts written without spaces.
_UNSPACED = {"CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR"}


class _TextToTextPipeline(Pipeline):
    """Text in, generated text out. The two public classes name the task and the keys of the results.

    Args:
        model: an encoder-decoder model that can generate.
        tokenizer: its tokenizer.
        task: selects the model's `config.task_specific_params`, if it has some: T5's `prefix`, beams and lengths.
        kwargs: those of `Pipeline`, those of the call, and any of `generate`, then used for every call.

    Raises:
        ValueError: if the model is not an encoder-decoder.
    """

    # Any: transformers annotates these with types narrower than what it takes.
    _load_tokenizer: Any = True
    _load_processor: Any = False
    _load_image_processor: Any = False
    _load_video_processor: Any = False
    _load_feature_extractor: Any = False
    _pipeline_calls_generate = True
    model: Any
    tokenizer: Any

    result_name: ClassVar[str]

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, task: str, **kwargs: Any
    ) -> None:
        if not (model.config.is_encoder_decoder and model.can_generate()):
            raise ValueError(
                f"{type(self).__name__} needs an encoder-decoder model that generates text "
                f"(AutoModelForSeq2SeqLM loads those); {type(model).__name__} is none"
            )
        super().__init__(model, tokenizer=cast(Any, tokenizer), task=task, **kwargs)
        params = dict((getattr(model.config, "task_specific_params", None) or {}).get(task, {}))
        self._preprocess_params = {"prefix": params.pop("prefix", self.prefix) or "", **self._preprocess_params}
        self._limited = not _LIMITS.isdisjoint(self._generate_kwargs)
        if "max_new_tokens" in self._generate_kwargs:
            params.pop("max_length", None)
        self._generate_kwargs = {**params, **self._generate_kwargs}

    @property
    def source_prefix(self) -> str:
        """Text before every source, unless a call says another."""
        return self._preprocess_params["prefix"]

    def _sanitize_parameters(
        self,
        *,
        return_tensors: bool | None = None,
        return_text: bool | None = None,
        clean_up_tokenization_spaces: bool | None = None,
        truncation: bool | str | None = None,
        prefix: str | None = None,
        **generate_kwargs: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        preprocess_params: dict[str, Any] = {}
        if truncation is not None:
            preprocess_params["truncation"] = truncation
        if prefix is not None:
            preprocess_params["prefix"] = prefix

        if self.assistant_model is not None:
            generate_kwargs["assistant_model"] = self.assistant_model
        if self.assistant_tokenizer is not None:
            generate_kwargs |= {"tokenizer": self.tokenizer, "assistant_tokenizer": self.assistant_tokenizer}

        if return_text is not None:
            if return_tensors is not None and return_tensors == return_text:
                raise ValueError("give either `return_text` or `return_tensors`: a result holds text or token ids")
            return_tensors = not return_text
        postprocess_params: dict[str, Any] = {}
        if return_tensors is not None:
            postprocess_params["return_tensors"] = return_tensors
        if clean_up_tokenization_spaces is not None:
            postprocess_params["clean_up_tokenization_spaces"] = clean_up_tokenization_spaces
        return preprocess_params, generate_kwargs, postprocess_params

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Generates a text for each input.

        Args:
            inputs: a string; a list, tuple or column of strings; a generator or another iterator over strings, or a
                `KeyDataset`, which are read as the results are asked for.
            args: none.
            kwargs: `batch_size` (default 1), `num_workers`; `return_tensors=True` for token ids instead of text;
                `truncation=True` cuts inputs to the tokenizer's `model_max_length`; `prefix` goes before every input;
                `clean_up_tokenization_spaces`; and every argument of `generate`.

        Returns:
            For a list, a list with one dict for each input, or with `num_return_sequences` above 1 one list of dicts
            for each. For a string a list of its dicts, for an iterator or `KeyDataset` an iterator over such lists.

        Raises:
            ValueError: if an input is not a string, or the tokenizer has tokens that the model has not.
        """
        if isinstance(inputs, Sequence) and not isinstance(inputs, str):
            inputs = list(inputs)
        elif isinstance(inputs, Iterator):
            # Pipeline knows generators only.
            inputs = (text for text in inputs)
        if isinstance(inputs, list | KeyDataset) and not len(inputs):
            # Pipeline looks at the first one.
            return []
        results = super().__call__(inputs, *args, **kwargs)
        if isinstance(inputs, list) and all(len(result) == 1 for result in results):
            return [result[0] for result in results]
        return results

    def preprocess(  # type: ignore[override]
        self, input_: Any, *, prefix: str = "", **tokenize_kwargs: Any
    ) -> Any:
        """Encodes one text to `input_ids` and `attention_mask` of shape (1, length), length at least 1.

        For a model that copies words beyond its vocabulary, to `copy_ids` and `copy_words`, too.
        """
        if not isinstance(input_, str):
            raise ValueError(
                f"{type(self).__name__} takes strings, not {type(input_).__name__} ({input_!r:.80}); give a string, a "
                "list or an iterator of strings, or a column of a dataset: KeyDataset(dataset, 'name')"
            )
        encoded = self._encode(prefix + input_, **tokenize_kwargs)
        # Encoders of two segments have them; generate() refuses them for all others, and there is one segment here.
        encoded.pop("token_type_ids", None)
        if encoded["input_ids"].shape[-1] == 0:
            # An empty text of a tokenizer that adds nothing: only its end is there.
            encoded["input_ids"] = torch.tensor([[self._id_of_nothing()]])
            encoded["attention_mask"] = torch.ones(1, 1, dtype=torch.long)
        config = self.model.config
        if getattr(config, "pointer_generator", False) and config.unk_token_id is not None:
            ids, words = copy_sources(self.tokenizer, [prefix + input_], encoded, config.vocab_size)
            encoded["copy_ids"] = torch.tensor(ids) if ids[0] else encoded["input_ids"]
            encoded["copy_words"] = words[0]
        # A tokenizer of another model; on a GPU its ids would end the process.
        check_batch(encoded, **vocabulary_sizes(self.model))
        return encoded

    def _id_of_nothing(self) -> int:
        """The id that stands for an empty text: the end mark, or else another special token."""
        tokenizer, ends = self.tokenizer, self.model.config.eos_token_id
        known = [tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])]
        known += [tokenizer.pad_token_id, tokenizer.unk_token_id]
        found = next((token for token in known if token is not None), None)
        if found is None:
            raise ValueError("an empty text has no tokens here, and the tokenizer no special token to stand for it")
        return found

    def _encode(self, text: str, **tokenize_kwargs: Any) -> Any:
        return self.tokenizer(text, return_tensors="pt", **tokenize_kwargs)

    def _forward(  # type: ignore[override]
        self, input_tensors: Any, **generate_kwargs: Any
    ) -> dict[str, Any]:
        limited = self._limited or not _LIMITS.isdisjoint(generate_kwargs)
        kwargs = self._prepare_generate_kwargs(generate_kwargs)
        if "max_new_tokens" in generate_kwargs and "max_length" not in generate_kwargs:
            # What the call says replaces the length said earlier; generate() warns of both.
            kwargs.pop("max_length", None)
        if "stop_strings" in kwargs:
            kwargs.setdefault("tokenizer", self.tokenizer)
        inputs = dict(input_tensors)
        words = inputs.pop("copy_words", None)
        if "forced_bos_token_id" in inputs:
            # The target language, the same for the whole batch; collated, it is a list.
            forced = inputs.pop("forced_bos_token_id")
            kwargs.setdefault("forced_bos_token_id", forced[0] if isinstance(forced, list) else forced)
        output = self.model.generate(**inputs, **kwargs)
        sequences = output["sequences"] if isinstance(output, ModelOutput) else output  # [B * num_return_sequences, T]
        if not limited:
            self._warn_of_cut(sequences)
        batch_size = inputs["input_ids"].shape[0]
        output_ids = sequences.reshape(batch_size, -1, sequences.shape[-1])  # [B, num_return_sequences, T]
        return {"output_ids": output_ids} | ({} if words is None else {"copy_words": words})

    def _warn_of_cut(self, sequences: torch.Tensor) -> None:
        """Says so when a sequence ended for lack of room and the caller did not set the room."""
        ends = self.model.generation_config.eos_token_id
        if ends is None:
            return
        # The first token may be the one that starts the decoder, which for some models is the end token.
        ended = torch.isin(sequences[:, 1:], torch.tensor(ends, device=sequences.device)).any(-1)
        if not ended.all():
            logger.warning(
                f"{int((~ended).sum())} of {len(ended)} outputs reached the longest length the model's "
                f"generation config allows ({sequences.shape[-1]} tokens) and are cut off there; `max_new_tokens` "
                "sets another."
            )

    def postprocess(  # type: ignore[override]
        self,
        model_outputs: dict[str, Any],
        return_tensors: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[dict[str, Any]]:
        """Turns the sequences of one input, (1, num_return_sequences, length), into as many dicts."""
        sequences = model_outputs["output_ids"][0]
        if return_tensors:
            return [{f"{self.result_name}_token_ids": sequence} for sequence in sequences]
        cleans: Any = {"clean_up_tokenization_spaces": clean_up_tokenization_spaces}
        if "copy_words" in model_outputs:
            words = [model_outputs["copy_words"]] * len(sequences)
            texts = decode_copies(self.tokenizer, sequences, words, self.model.config.vocab_size, **cleans)
        else:
            texts = [self.tokenizer.decode(sequence, skip_special_tokens=True, **cleans) for sequence in sequences]
        return [{f"{self.result_name}_text": text} for text in texts]


class SummarizationPipeline(_TextToTextPipeline):
    """Summarizes texts; results have the key `summary_text`, or `summary_token_ids` with `return_tensors=True`.

    Comes from `pipeline("summarization", model=…)`; see `__call__` for inputs and arguments.
    """

    result_name = "summary"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        task: str = "summarization",
        **kwargs: Any,
    ) -> None:
        super().__init__(model, tokenizer, task=task, **kwargs)


class TranslationPipeline(_TextToTextPipeline):
    """Translates texts; results have the key `translation_text`, with `return_tensors=True` `translation_token_ids`.

    Comes from `pipeline("translation", model=…)`; see `__call__` for inputs and arguments. Models of many languages
    (mBART, NLLB, M2M100 …) take `src_lang` and `tgt_lang`, here or in a call, in the codes of their tokenizer. The
    task name `translation_en_to_de` gives them too; for T5 it selects the prefix that asks for this pair.
    """

    result_name = "translation"

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, task: str = "translation", **kwargs: Any
    ) -> None:
        super().__init__(model, tokenizer, task=task, **kwargs)

    def _sanitize_parameters(
        self, *, src_lang: str | None = None, tgt_lang: str | None = None, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        preprocess_params, forward_params, postprocess_params = super()._sanitize_parameters(**kwargs)
        if src_lang is not None:
            preprocess_params["src_lang"] = src_lang
        if tgt_lang is not None:
            preprocess_params["tgt_lang"] = tgt_lang
        return preprocess_params, forward_params, postprocess_params

    def _encode(
        self, text: str, src_lang: str | None = None, tgt_lang: str | None = None, **tokenize_kwargs: Any
    ) -> Any:
        if pair := _LANGUAGE_PAIR.fullmatch(self.task):
            src_lang, tgt_lang = src_lang or pair["source"], tgt_lang or pair["target"]
        # Only tokenizers of models of many languages have this method, which transformers keeps for this pipeline. A
        # model trained on one pair of them has its target language in the generation config and may do without.
        build = getattr(self.tokenizer, "_build_translation_inputs", None)
        preset = src_lang is None and tgt_lang is None and self.model.generation_config.forced_bos_token_id is not None
        if build is None or preset:
            return super()._encode(text, **tokenize_kwargs)
        return build(text, return_tensors="pt", src_lang=src_lang, tgt_lang=tgt_lang, **tokenize_kwargs)


class TokenClassificationPipeline(_TokenClassificationPipeline):
    """The pipeline of transformers, whose aggregation strategies give whole entities of every scheme of tags.

    It comes from `pipeline("token-classification", model=…)`. transformers knows the prefixes `B-` and `I-` and gives
    one piece for each other prefix. Here the tags of models with labels in IOE1, IOE2, IOBES or BILOU, with prefixes
    in lower case or without types (`_` is the type then) are read as IOB2 before they are grouped; see
    `hfseq.data.tag_schemes.to_iob2`. All other models, and `aggregation_strategy="none"`, give what they give without
    hfseq.

    With "simple", neighbouring tokens of one type with no space between them are parts of a word and stay together
    whatever their prefixes, unless they are of a script without spaces, such as Chinese.
    """

    def gather_pre_entities(self, sentence: str, *args: Any, **kwargs: Any) -> list[dict[str, Any]]:
        """As in transformers; each token has `joined`, too: whether it is a later part of the word before it."""
        tokens = super().gather_pre_entities(sentence, *args, **kwargs)
        words, end = kwargs.get("word_ids"), None
        for token in tokens:
            place, start = token["index"], token["start"]
            if words is not None:
                token["joined"] = place > 0 and words[place] == words[place - 1]
            else:
                token["joined"] = end is not None and _goes_on(sentence, start, end)
            end = token["end"]
        return tokens

    def aggregate(self, pre_entities: list[dict[str, Any]], aggregation_strategy: Any) -> list[dict[str, Any]]:
        """As in transformers, where it can read the labels; else with tags in IOB2."""
        labels = list(cast(dict[int, str], self.model.config.id2label).values())
        if aggregation_strategy == AggregationStrategy.NONE or not _needs_iob2(labels):
            return super().aggregate(pre_entities, aggregation_strategy)
        joined = None
        if aggregation_strategy == AggregationStrategy.SIMPLE:
            entities = super().aggregate(pre_entities, AggregationStrategy.NONE)
            joined = [token["joined"] for token in pre_entities]
        else:
            entities = self.aggregate_words(pre_entities, aggregation_strategy)
        tags = to_iob2([entity["entity"] for entity in entities], joined)
        return self.group_entities([{**entity, "entity": tag} for entity, tag in zip(entities, tags, strict=True)])


def _needs_iob2(labels: Collection[str]) -> bool:
    """Return whether labels mark entities in a way that transformers does not read."""
    if all(label == "O" or label.startswith(("B-", "I-")) for label in labels):
        return False
    try:
        check_tags(labels)
    except ValueError:
        return False
    return True


def _goes_on(sentence: str, start: int, end: int) -> bool:
    """Return whether a token from `start` on can be of the same word as the one before it, which ends at `end`."""
    if start > end or sentence[start : start + 1].isspace():
        return False
    # What overlaps is one word; a space may be a token of its own, which the word after it begins with.
    around = sentence[start - 1 : start + 1]
    return start < end or any(unicodedata.name(one, "").partition(" ")[0] not in _UNSPACED for one in around)


def _check_task(task: str) -> tuple[str, dict[str, Any], Any]:
    """Finds the pipeline of a task as `PipelineRegistry.check_task` does, and those of `translation_XX_to_YY` too."""
    if pair := _LANGUAGE_PAIR.fullmatch(task):
        return "translation", PIPELINE_REGISTRY.supported_tasks["translation"], (pair["source"], pair["target"])
    return PipelineRegistry.check_task(PIPELINE_REGISTRY, task)


def _register() -> None:
    pipelines: dict[str, Any] = {"translation": TranslationPipeline, "summarization": SummarizationPipeline}
    for task, pipeline_class in pipelines.items():
        REMOVED_TASKS.pop(task, None)
        PIPELINE_REGISTRY.register_pipeline(task, pipeline_class, pt_model=AutoModelForSeq2SeqLM, type="text")
        # There is no default model; with an empty table pipeline() says so when none is given, without it a KeyError.
        PIPELINE_REGISTRY.supported_tasks[task]["default"] = {}
        # With this mark `save_pretrained` would copy this file to the checkpoint and have the config demand
        # `trust_remote_code` for it.
        del pipeline_class._registered_impl
    PIPELINE_REGISTRY.check_task = _check_task  # type: ignore[method-assign]
    task = "token-classification"
    known = PIPELINE_REGISTRY.supported_tasks[task]
    # Not if somebody has registered another one.
    if known["impl"] in (_TokenClassificationPipeline, _path_of(_TokenClassificationPipeline)):
        # Out first, or the registry would warn.
        del PIPELINE_REGISTRY.supported_tasks[task]
        options = {"pt_model": known["pt"], "default": known.get("default"), "type": known.get("type")}
        PIPELINE_REGISTRY.register_pipeline(task, TokenClassificationPipeline, **options)
        del cast(Any, TokenClassificationPipeline)._registered_impl  # as above


def _path_of(pipeline_class: type) -> str:
    """Path by which transformers names a class in its registry."""
    return f"{pipeline_class.__module__}.{pipeline_class.__qualname__}"


_register()

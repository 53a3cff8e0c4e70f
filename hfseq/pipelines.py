"""`pipeline("translation")` and `pipeline("summarization")` for every encoder-decoder checkpoint.

transformers 5 removed both and rejects their names. Importing this module, as `import hfseq` does, restores them with
the arguments and results of transformers 4, for hfseq's models and for T5, Marian, BART, mBART, NLLB … alike:

    >>> translate = pipeline("translation", model="outputs/translation")
    >>> translate(["Good morning", "Thank you"], batch_size=8, num_beams=5)
    [{'translation_text': 'Guten Morgen'}, {'translation_text': 'Danke'}]

`pipeline("time-series-forecasting")` forecasts series with hfseq's models and with those of transformers:

    >>> forecast = pipeline("time-series-forecasting", model="outputs/forecasting")
    >>> forecast({"start": "2024-01-01", "freq": "MS", "target": [112.0, 118.0, 132.0, 129.0]})["mean"]

`pipeline("next-item-recommendation")` recommends items after a history, with any causal language model over items:

    >>> recommend = pipeline("next-item-recommendation", model="outputs/recommendation")
    >>> recommend(["open", "read"], top_k=2)
    [{'item': 'close', 'score': 7.25}, {'item': 'decode', 'score': 6.75}]

It also extends `pipeline("token-classification")`, or "ner", to group the entities of all tagging schemes in
`hfseq.data.tag_schemes`; transformers itself supports IOB1 and IOB2 only.
"""

import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, ClassVar, cast

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForTimeSeriesPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.pipelines import PIPELINE_REGISTRY, REMOVED_TASKS
from transformers.pipelines.base import Pipeline, PipelineRegistry
from transformers.pipelines.pt_utils import KeyDataset
from transformers.pipelines.token_classification import AggregationStrategy
from transformers.pipelines.token_classification import TokenClassificationPipeline as _TokenClassificationPipeline
from transformers.utils import ModelOutput, logging

from hfseq.data.collation import check_batch, position_limit, vocabulary_sizes
from hfseq.data.copying import copied_vocabulary, copy_sources, decode_copies
from hfseq.data.tag_schemes import check_tags, to_iob2
from hfseq.forecasters import needs_of, sample_paths
from hfseq.heads import require_text
from hfseq.recommenders import check_history, history_start, item_ids, known_items, last_logits, top_items
from hfseq.tokenization import require_items

logger = logging.get_logger(__name__)

# "translation_en_to_de", the task name that transformers 4 used for a language pair.
_LANGUAGE_PAIR = re.compile(r"translation_(?P<source>.+)_to_(?P<target>.+)")

# A caller who sets one of these expects that outputs may be truncated.
_LIMITS = {"max_length", "max_new_tokens", "max_time", "stop_strings", "stopping_criteria", "generation_config"}

# First words of the Unicode names of letters in scripts written without spaces.
_UNSPACED = {"CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR"}


class _TextToTextPipeline(Pipeline):
    """Base of the two public pipelines, which define the default task and the keys of the results.

    Args:
        model: An encoder-decoder model that can generate.
        tokenizer: Tokenizer of the model.
        task: Name under which `config.task_specific_params` is looked up: T5's `prefix`, beams and lengths.
        kwargs: Arguments of `Pipeline`, of a call, or of `generate`; the latter two become defaults of every call.

    Raises:
        ValueError: If the model is not an encoder-decoder, or reads features in place of text.
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

    default_task: ClassVar[str]
    result_name: ClassVar[str]

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, task: str | None = None, **kwargs: Any
    ) -> None:
        task = task or self.default_task
        if not (model.config.is_encoder_decoder and model.can_generate()):
            raise ValueError(
                f"{type(self).__name__} needs an encoder-decoder model that generates text "
                f"(AutoModelForSeq2SeqLM loads those); {type(model).__name__} is not one"
            )
        require_text(model, f"{type(self).__name__}")
        super().__init__(model, tokenizer=cast(Any, tokenizer), task=task, **kwargs)
        params = dict((getattr(model.config, "task_specific_params", None) or {}).get(task, {}))
        self._preprocess_params = {"prefix": params.pop("prefix", self.prefix) or "", **self._preprocess_params}
        self._limited = not _LIMITS.isdisjoint(self._generate_kwargs)
        if "max_new_tokens" in self._generate_kwargs:
            params.pop("max_length", None)
        self._generate_kwargs = {**params, **self._generate_kwargs}

    @property
    def source_prefix(self) -> str:
        """Default prefix of every input."""
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
        if self.assistant_model is not None:
            generate_kwargs["assistant_model"] = self.assistant_model
        if self.assistant_tokenizer is not None:
            generate_kwargs |= {"tokenizer": self.tokenizer, "assistant_tokenizer": self.assistant_tokenizer}
        if return_text is not None:
            if return_tensors is not None and return_tensors == return_text:
                raise ValueError("give either `return_text` or `return_tensors`: a result holds text or token ids")
            return_tensors = not return_text
        cleans = clean_up_tokenization_spaces
        postprocess_params = _given(return_tensors=return_tensors, clean_up_tokenization_spaces=cleans)
        return _given(truncation=truncation, prefix=prefix), generate_kwargs, postprocess_params

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Generate a text for each input.

        Args:
            inputs: A string; a list, tuple or column of strings; or an iterator over strings or a `KeyDataset`, which
                are consumed lazily.
            args: Must be empty.
            kwargs: `batch_size` (default 1), `num_workers`; `return_tensors=True` for token ids instead of text;
                `truncation=True` to truncate inputs to the tokenizer's `model_max_length`; `prefix` of every input;
                `clean_up_tokenization_spaces`; and every argument of `generate`.

        Returns:
            For a list, a list with one dict per input or, with `num_return_sequences` above 1, one list of dicts per
            input. For a string a list of its dicts, for an iterator or `KeyDataset` an iterator over such lists.

        Raises:
            ValueError: If an input is not a string, or a token id is outside the model's vocabulary.
        """
        if isinstance(inputs, Sequence) and not isinstance(inputs, str):
            inputs = list(inputs)
        elif isinstance(inputs, Iterator):
            # `Pipeline` recognises generators only.
            inputs = (text for text in inputs)
        if isinstance(inputs, list | KeyDataset) and not len(inputs):
            # `Pipeline` inspects the first item.
            return []
        results = super().__call__(inputs, *args, **kwargs)
        if isinstance(inputs, list) and all(len(result) == 1 for result in results):
            return [result[0] for result in results]
        return results

    def preprocess(  # type: ignore[override]
        self, input_: Any, *, prefix: str = "", **tokenize_kwargs: Any
    ) -> Any:
        """Encode one text as `input_ids` and `attention_mask` `[1, T]`, T at least 1.

        For a pointer-generator that copies out-of-vocabulary words, add `copy_ids` and `copy_words`.
        """
        if not isinstance(input_, str):
            raise ValueError(
                f"{type(self).__name__} takes strings, not {type(input_).__name__} ({input_!r:.80}); give a string, a "
                "list or an iterator of strings, or a column of a dataset: KeyDataset(dataset, 'name')"
            )
        encoded = self._encode(prefix + input_, **tokenize_kwargs)
        # There is one segment, and generate() rejects them for models without segment embeddings.
        encoded.pop("token_type_ids", None)
        if encoded["input_ids"].shape[-1] == 0:
            # An empty text and a tokenizer that adds no special tokens: a single EOS stands for it.
            encoded["input_ids"] = torch.tensor([[self._id_of_nothing()]])
            encoded["attention_mask"] = torch.ones(1, 1, dtype=torch.long)
        if (vocab_size := copied_vocabulary(self.model)) is not None:
            ids, words = copy_sources(self.tokenizer, [prefix + input_], encoded, vocab_size)
            encoded["copy_ids"] = torch.tensor(ids) if ids[0] else encoded["input_ids"]
            encoded["copy_words"] = words[0]
        # An id out of range, as from another model's tokenizer, would abort the process on a GPU.
        check_batch(encoded, **vocabulary_sizes(self.model))
        return encoded

    def _id_of_nothing(self) -> int:
        """The id that stands for an empty text: EOS, or else another special token."""
        tokenizer, ends = self.tokenizer, self.model.config.eos_token_id
        known = [tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])]
        known += [tokenizer.pad_token_id, tokenizer.unk_token_id]
        for token in known:
            if token is not None:
                return token
        raise ValueError("an empty text has no tokens here, and the tokenizer no special token to stand for it")

    def _encode(self, text: str, **tokenize_kwargs: Any) -> Any:
        return self.tokenizer(text, return_tensors="pt", **tokenize_kwargs)

    def _forward(  # type: ignore[override]
        self, input_tensors: Any, **generate_kwargs: Any
    ) -> dict[str, Any]:
        limited = self._limited or not _LIMITS.isdisjoint(generate_kwargs)
        kwargs = self._prepare_generate_kwargs(generate_kwargs)
        if "max_new_tokens" in generate_kwargs and "max_length" not in generate_kwargs:
            # The call overrides the default length; generate() would warn about both.
            kwargs.pop("max_length", None)
        if "stop_strings" in kwargs:
            kwargs.setdefault("tokenizer", self.tokenizer)
        inputs = dict(input_tensors)
        words = inputs.pop("copy_words", None)
        if "forced_bos_token_id" in inputs:
            # The target language, the same for the whole batch; collation makes it a list.
            forced = inputs.pop("forced_bos_token_id")
            kwargs.setdefault("forced_bos_token_id", forced[0] if isinstance(forced, list) else forced)
        output = self.model.generate(**inputs, **kwargs)
        sequences = output["sequences"] if isinstance(output, ModelOutput) else output  # [B * num_return_sequences, T]
        if not limited:
            self._warn_of_truncation(sequences)
        batch_size = inputs["input_ids"].shape[0]
        output_ids = sequences.reshape(batch_size, -1, sequences.shape[-1])  # [B, num_return_sequences, T]
        return {"output_ids": output_ids} | ({} if words is None else {"copy_words": words})

    def _warn_of_truncation(self, sequences: torch.Tensor) -> None:
        """Warn if a sequence was truncated at a length limit that the caller did not set."""
        ends = self.model.generation_config.eos_token_id
        if ends is None:
            return
        # The first token may be the decoder start token, which for some models is EOS.
        ended = torch.isin(sequences[:, 1:], torch.tensor(ends, device=sequences.device)).any(-1)
        if not ended.all():
            logger.warning(
                f"{int((~ended).sum())} of {len(ended)} outputs reached the longest length the model's "
                f"generation config allows ({sequences.shape[-1]} tokens) and are truncated there; `max_new_tokens` "
                "sets another."
            )

    def postprocess(  # type: ignore[override]
        self,
        model_outputs: dict[str, Any],
        return_tensors: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[dict[str, Any]]:
        """Convert the sequences of one input, `[1, num_return_sequences, T]`, to one dict each."""
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
    """Summarization; results have the key `summary_text`, or `summary_token_ids` with `return_tensors=True`.

    Created by `pipeline("summarization", model=…)`; see `__call__` for inputs and arguments.
    """

    default_task = "summarization"
    result_name = "summary"


class TranslationPipeline(_TextToTextPipeline):
    """Translation; results have the key `translation_text`, or `translation_token_ids` with `return_tensors=True`.

    Created by `pipeline("translation", model=…)`; see `__call__` for inputs and arguments. Multilingual models (mBART,
    NLLB, M2M100 …) take `src_lang` and `tgt_lang`, here or in a call, in the codes of their tokenizer. The task name
    `translation_en_to_de` sets them, too; for T5 it selects the prefix of that language pair.
    """

    default_task = "translation"
    result_name = "translation"

    def _sanitize_parameters(
        self, *, src_lang: str | None = None, tgt_lang: str | None = None, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        preprocess_params, forward_params, postprocess_params = super()._sanitize_parameters(**kwargs)
        return preprocess_params | _given(src_lang=src_lang, tgt_lang=tgt_lang), forward_params, postprocess_params

    def _encode(
        self, text: str, src_lang: str | None = None, tgt_lang: str | None = None, **tokenize_kwargs: Any
    ) -> Any:
        if pair := _LANGUAGE_PAIR.fullmatch(self.task):
            src_lang, tgt_lang = src_lang or pair["source"], tgt_lang or pair["target"]
        # Only tokenizers of multilingual models have this method, which transformers keeps for this pipeline. A model
        # trained on one language pair has its target language in the generation config and may do without.
        build = getattr(self.tokenizer, "_build_translation_inputs", None)
        preset = src_lang is None and tgt_lang is None and self.model.generation_config.forced_bos_token_id is not None
        if build is None or preset:
            return super()._encode(text, **tokenize_kwargs)
        return build(text, return_tensors="pt", src_lang=src_lang, tgt_lang=tgt_lang, **tokenize_kwargs)


class TimeSeriesForecastingPipeline(Pipeline):
    """Forecasts of series: mean and quantiles of paths sampled from the model, or its points.

    Created by `pipeline("time-series-forecasting", model=…)`; see `__call__` for inputs and arguments. It takes the
    forecasters of hfseq, and PatchTST, TimeSeriesTransformer, Informer and Autoformer.

    Args:
        model: The forecaster.
        kwargs: Arguments of `Pipeline`, or of a call; the latter become defaults of every call.

    Raises:
        InputError: If the model forecasts several variates at once, or is of an unknown kind.
    """

    _load_tokenizer: Any = False
    _load_processor: Any = False
    _load_image_processor: Any = False
    _load_video_processor: Any = False
    _load_feature_extractor: Any = False
    model: Any

    def __init__(self, model: PreTrainedModel, *, task: str = "time-series-forecasting", **kwargs: Any) -> None:
        self.needs = needs_of(model.config)
        super().__init__(model, task=task, **kwargs)

    def _sanitize_parameters(
        self,
        *,
        prediction_length: int | None = None,
        num_samples: int | None = None,
        quantile_levels: Sequence[float] | None = None,
        return_samples: bool | None = None,
        **unknown: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if unknown:
            raise TypeError(f"{type(self).__name__} has no argument {next(iter(unknown))!r}")
        if any(not 0 < level < 1 for level in quantile_levels or ()):
            raise ValueError(f"quantile_levels={list(quantile_levels or ())}: each must be above 0 and below 1")
        length = _given(prediction_length=prediction_length)
        forward = _given(num_samples=num_samples)
        return length, forward, _given(quantile_levels=quantile_levels, return_samples=return_samples)

    def __call__(self, inputs: Any, *args: Any, batch_size: int | None = None, **kwargs: Any) -> Any:
        """Forecast one series, or several.

        Args:
            inputs: A series, or a list of series. A series is a list or array of numbers `[T]`, where NaN or None is a
                missing value; a pandas `Series`, indexed by time stamps if the model reads time features; or a dict
                in GluonTS' format, of `target`, `start`, `freq`, `feat_dynamic_real`, which covers the horizon, too,
                `feat_static_cat` and `feat_static_real`. Its frequency is by default that of the model's training
                data. The horizon begins after the last value that is not missing.
            args: Must be empty.
            batch_size: Number of series in a batch; results do not depend on it but for the samples drawn.
            kwargs: `prediction_length`, by default that of the model; `num_samples`, paths to sample, by default those
                of the config; `quantile_levels`, by default 0.1 to 0.9; `return_samples=True` to add the paths.

        Returns:
            A dict for each series: `mean` `[H]`; with a model of distributions `quantiles`, level to `[H]`, and on
            demand `samples` `[S, H]`; `timestamps` `[H]`, ISO 8601, if the series has any. Paths come from torch's
            global generator.

        Raises:
            InputError: If a series is invalid, or lacks what the model reads.
            ValueError: If there is no `prediction_length`.
        """
        if args:
            raise ValueError("give several series as a list")
        single = not isinstance(inputs, list | tuple) or not len(inputs) or not _is_series(inputs[0])
        rows = [inputs] if single else list(inputs)
        preprocess, forward, postprocess = self._sanitize_parameters(**kwargs)
        preprocess, forward = self._preprocess_params | preprocess, self._forward_params | forward
        postprocess, size = self._postprocess_params | postprocess, batch_size or self._batch_size or 1
        results: list[dict[str, Any]] = []
        for start in range(0, len(rows), size):
            batch = self.preprocess(rows[start : start + size], first=start, **preprocess)
            outputs = self.forward(batch, **forward)
            results += self.postprocess(outputs, **postprocess)
        return results[0] if single else results

    def preprocess(  # type: ignore[override]
        self, input_: Sequence[Any], *, first: int = 0, prediction_length: int | None = None
    ) -> dict[str, Any]:
        """Make a batch of series."""
        # Here, since it imports pandas, which `import hfseq` does not.
        from hfseq.data.series import regular_series, series_input
        from hfseq.data.windows import WindowCollator

        config: Any = self.model.config
        length = self.needs.prediction_length if prediction_length is None else prediction_length
        if length is None:
            raise ValueError("prediction_length is missing: the model's config has none")
        if self.needs.fixed_horizon and length != self.needs.prediction_length:
            raise ValueError(
                f"prediction_length={length}: {config.model_type} forecasts {self.needs.prediction_length} steps"
            )
        found = []
        for number, one in enumerate(input_, first + 1):
            series = series_input(one, f"series {number}")
            default = None if series.stamps is None else getattr(config, "frequency", None)
            found += regular_series([series], series.frequency or default)[0]
        longest = max(len(one.target) for one in found)
        known = getattr(config, "static_categories", None) or ()
        collator = WindowCollator(found, self.needs, length, context_length=longest, categories=known)
        rows = [{"series": number, "origin": len(one.target)} for number, one in enumerate(found)]
        return {"inputs": collator(rows), "series": found, "prediction_length": length}

    def _forward(self, input_tensors: Any, num_samples: int | None = None) -> dict[str, Any]:  # type: ignore[override]
        paths = sample_paths(self.model, input_tensors["inputs"], input_tensors["prediction_length"], num_samples)
        return {"paths": paths, "series": input_tensors["series"]}

    def postprocess(  # type: ignore[override]
        self,
        model_outputs: dict[str, Any],
        quantile_levels: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
        return_samples: bool = False,
    ) -> list[dict[str, Any]]:
        """Summarise the paths of each series."""
        from hfseq.data.series import extended_stamps

        results = []
        for paths, one in zip(model_outputs["paths"].cpu().double().numpy(), model_outputs["series"], strict=True):
            result: dict[str, Any] = {"mean": paths.mean(axis=0).tolist()}
            if getattr(self.model.config, "loss", "nll") != "mse":
                values = np.quantile(paths, list(quantile_levels), axis=0).tolist()
                result["quantiles"] = dict(zip(quantile_levels, values, strict=True))
            if return_samples:
                result["samples"] = paths.tolist()
            if one.stamps is not None and one.frequency is not None:
                length, horizon = len(one.target), paths.shape[1]
                stamps = extended_stamps(one.stamps[:length], one.frequency, horizon)[length:]
                result["timestamps"] = [stamp.isoformat() for stamp in stamps]
            results.append(result)
        return results


class NextItemRecommendationPipeline(Pipeline):
    """Recommendation of items after a history of items.

    Created by `pipeline("next-item-recommendation", model=…)`; see `__call__` for inputs and arguments. It takes every
    causal language model that `recipes/recommendation.py` trained, of hfseq or of transformers.

    Args:
        model: The model, or the runner of its ONNX export.
        tokenizer: Its tokenizer, whose tokens are the items.
        kwargs: Arguments of `Pipeline`, or of a call; the latter become defaults of every call.

    Raises:
        InputError: If the tokens are no items.
    """

    _load_tokenizer: Any = True
    _load_processor: Any = False
    _load_image_processor: Any = False
    _load_video_processor: Any = False
    _load_feature_extractor: Any = False
    model: Any
    tokenizer: Any

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        task: str = "next-item-recommendation",
        **kwargs: Any,
    ) -> None:
        require_items(tokenizer)
        super().__init__(model, tokenizer=cast(Any, tokenizer), task=task, **kwargs)

    def _sanitize_parameters(
        self,
        *,
        top_k: int | None = None,
        filter_seen: bool | None = None,
        max_length: int | None = None,
        **unknown: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if unknown:
            raise TypeError(f"{type(self).__name__} has no argument {next(iter(unknown))!r}")
        return {}, _given(top_k=top_k, filter_seen=filter_seen, max_length=max_length), {}

    def __call__(self, inputs: Any, *args: Any, batch_size: int | None = None, **kwargs: Any) -> Any:
        """Recommend items after one history, or after several.

        Args:
            inputs: A history, a list of the names of items, oldest first, or a list of histories. Items that the model
                does not know are left out; after an empty history it recommends what users begin with.
            args: Must be empty.
            batch_size: Number of histories in a batch; results do not depend on it.
            kwargs: `top_k`, number of items, by default 10; `filter_seen=True` to leave out those of the history;
                `max_length`, number of last items that are read, by default all.

        Returns:
            For each history a list of dicts, best first: `item` and `score`, its logit.

        Raises:
            ValueError: If a history is no list of strings, or `top_k` is less than 1.
        """
        if args:
            raise ValueError("give several histories as a list")
        if not isinstance(inputs, list | tuple):
            raise ValueError(f"a history is a list of the names of items, not {type(inputs).__name__}")
        single = not inputs or isinstance(inputs[0], str)
        rows = [inputs] if single else list(inputs)
        for number, row in enumerate(rows, 1):
            if not isinstance(row, list | tuple) or not all(isinstance(item, str) for item in row):
                raise ValueError(f"history {number}: {row!r:.80} is not a list of the names of items")
        _, forward, _ = self._sanitize_parameters(**kwargs)
        options, size = self._forward_params | forward, batch_size or self._batch_size or 1
        known, _ = known_items(self.tokenizer, rows)
        start = history_start(self.tokenizer)
        ids = [(*start, *item_ids(self.tokenizer, row)) for row in known]
        results: list[Any] = [None] * len(ids)
        # Rows of a batch have one length, so that there is no padding, which some models of transformers read.
        order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
        for _, same in groupby(order, key=lambda row: len(ids[row])):
            group = list(same)
            for first in range(0, len(group), size):
                some = group[first : first + size]
                outputs = self.forward(self.preprocess([ids[row] for row in some]), **options)
                for row, found in zip(some, self.postprocess(outputs), strict=True):
                    results[row] = found
        return results[0] if single else results

    def preprocess(self, input_: Sequence[Sequence[int]]) -> dict[str, Any]:  # type: ignore[override]
        """Check the token ids of histories of one length."""
        for row in input_:
            check_history(row)
        return {"ids": [list(row) for row in input_]}

    def _forward(  # type: ignore[override]
        self, input_tensors: Any, top_k: int = 10, filter_seen: bool = False, max_length: int | None = None
    ) -> dict[str, Any]:
        rows = input_tensors["ids"]
        limits = [limit for limit in (position_limit(self.model), max_length) if limit is not None]
        read = [row[-min(limits) :] if limits else row for row in rows]
        logits = last_logits(self.model, read)
        found = top_items(logits, self.tokenizer, top_k, rows if filter_seen else None)
        return {"items": [[item._asdict() for item in items] for items in found]}

    def postprocess(self, model_outputs: Any) -> list[list[dict[str, Any]]]:  # type: ignore[override]
        """Items and scores of each history."""
        return model_outputs["items"]


def _is_series(value: Any) -> bool:
    """Return True for a series, False for a number of one."""
    return not (value is None or isinstance(value, int | float) or np.ndim(value) == 0) or isinstance(value, Mapping)


class TokenClassificationPipeline(_TokenClassificationPipeline):
    """transformers' pipeline with aggregation strategies that group the entities of every tagging scheme.

    Created by `pipeline("token-classification", model=…)`. transformers knows the prefixes `B-` and `I-` and splits
    entities at all others. Here labels in IOE1, IOE2, IOBES or BILOU, with lower-case prefixes or without types (the
    type is then `_`) are converted to IOB2 before they are grouped; see `hfseq.data.tag_schemes.to_iob2`. Results for
    all other models, and of `aggregation_strategy="none"`, are those of transformers.

    With "simple", adjacent tokens of one type with no space between them are parts of a word and stay together
    whatever their prefixes, unless they are of a script without spaces, such as Chinese.
    """

    def gather_pre_entities(self, sentence: str, *args: Any, **kwargs: Any) -> list[dict[str, Any]]:
        """Add `joined` to each token of transformers: True if it continues the word of the token before it."""
        tokens = super().gather_pre_entities(sentence, *args, **kwargs)
        words, end = kwargs.get("word_ids"), None
        for token in tokens:
            place, start = token["index"], token["start"]
            if words is not None:
                token["joined"] = place > 0 and words[place] == words[place - 1]
            else:
                token["joined"] = end is not None and _continues_word(sentence, start, end)
            end = token["end"]
        return tokens

    def aggregate(self, pre_entities: list[dict[str, Any]], aggregation_strategy: Any) -> list[dict[str, Any]]:
        """Group tokens into entities, after a conversion to IOB2 where transformers does not support the labels."""
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
    """Return True if the labels follow a tagging scheme that transformers does not support."""
    if all(label == "O" or label.startswith(("B-", "I-")) for label in labels):
        return False
    try:
        check_tags(labels)
    except ValueError:
        return False
    return True


def _continues_word(sentence: str, start: int, end: int) -> bool:
    """Return True if a token at `start` can belong to the word of the token before it, which ends at `end`."""
    if start > end or sentence[start : start + 1].isspace():
        return False
    # Overlapping tokens are one word; a token may be a single space, with which the next word begins.
    around = sentence[start - 1 : start + 1]
    return start < end or any(unicodedata.name(one, "").partition(" ")[0] not in _UNSPACED for one in around)


def _check_task(task: str) -> tuple[str, dict[str, Any], Any]:
    """Look up a task like `PipelineRegistry.check_task`, with support for `translation_XX_to_YY`."""
    if pair := _LANGUAGE_PAIR.fullmatch(task):
        return "translation", PIPELINE_REGISTRY.supported_tasks["translation"], (pair["source"], pair["target"])
    return PipelineRegistry.check_task(PIPELINE_REGISTRY, task)


def _given(**options: Any) -> dict[str, Any]:
    """The options that are not None."""
    return {name: value for name, value in options.items() if value is not None}


def _register() -> None:
    """Add the pipelines to transformers' registry.

    transformers has no public way to restore a removed task name, to add the name of a language pair or to replace a
    pipeline: all use of private parts of its registry is in this function. `register_pipeline` would mark the classes
    as code to be copied to checkpoints, whose configs would then require `trust_remote_code`.
    """
    tasks = PIPELINE_REGISTRY.supported_tasks
    for pipeline_class in (TranslationPipeline, SummarizationPipeline):
        REMOVED_TASKS.pop(pipeline_class.default_task, None)
        # There is no default model; given an empty table pipeline() reports that, without one it raises a KeyError.
        entry: Any = {"impl": pipeline_class, "pt": (AutoModelForSeq2SeqLM,), "type": "text", "default": {}}
        tasks[pipeline_class.default_task] = entry
    tasks["time-series-forecasting"] = {
        "impl": TimeSeriesForecastingPipeline,
        "pt": (AutoModelForTimeSeriesPrediction,),
        "type": "text",  # the registry knows no other kind that asks for nothing
        "default": {},
    }
    tasks["next-item-recommendation"] = {
        "impl": NextItemRecommendationPipeline,
        "pt": (AutoModelForCausalLM,),
        "type": "text",
        "default": {},
    }
    PIPELINE_REGISTRY.check_task = _check_task  # type: ignore[method-assign]
    known, own = tasks["token-classification"], _TokenClassificationPipeline
    # A pipeline that somebody else has registered stays.
    if known["impl"] in (own, f"{own.__module__}.{own.__qualname__}"):
        tasks["token-classification"] = known | {"impl": TokenClassificationPipeline}


_register()

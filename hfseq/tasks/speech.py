"""Speech recognition by CTC or by an encoder-decoder, and classification of recordings."""

from __future__ import annotations

import copy
import json
import tempfile
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import (
    AutoModelForAudioClassification,
    AutoModelForCausalLM,
    AutoModelForCTC,
    AutoModelForSpeechSeq2Seq,
    PreTrainedModel,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2Processor,
)

from hfseq import metrics
from hfseq.data.audio import AUDIO, PLACE, decode_audio
from hfseq.data.collation import CheckedCollator
from hfseq.data.embedded.morse import SAMPLING_RATE, morse_audio, morse_rows
from hfseq.data.embedded.morse_decoder import decode_morse
from hfseq.data.encoding import EncodedSplits, encode_texts
from hfseq.data.features import FeatureCollator, feature_statistics, write_rows
from hfseq.errors import InputError, one_line, require
from hfseq.inference.benchmark import Run
from hfseq.inference.ctc import count_repeats, ctc_alignment, ctc_beam_search
from hfseq.inference.loading import load_trained
from hfseq.lazy import datasets
from hfseq.models import is_hfseq
from hfseq.models.audio import resample
from hfseq.models.feature_extraction_log_mel import LogMelFeatureExtractor
from hfseq.plots import plot_spectrogram
from hfseq.processing import extractor_of, tokenizer_of
from hfseq.tasks.base import Task
from hfseq.tasks.classification import Classification, label_array
from hfseq.tasks.seq2seq import Generating, set_generation
from hfseq.tokenization import train_tokenizer

PAD, UNKNOWN, DELIMITER = "<pad>", "<unk>", "|"
"""First tokens of a vocabulary of characters: the blank, unknown characters, and what stands between words."""


class Speech(Task):
    """Recordings with a target each; their features are computed once, and read from a temporary file.

    Attributes:
        extractor: Feature extractor of the model; set by `encode`.
        statistics: Mean and standard deviation of each feature of the training rows, `[F]` each, for a new model;
            None for others.
        steps: Split name to the number of steps of the model for each row; set by `encode`.
    """

    features = True
    length_unit = "frames"
    rows = "recordings"
    embedded_name = "Morse code, keyed by a program, in noise"

    def __init__(self, data: Any, args: Any) -> None:
        super().__init__(data, args)
        # The reader gives the column of the recordings this name, whatever it is in the files.
        self.names = (AUDIO, *self.names[1:])
        self.extractor: Any = None
        self.statistics: tuple[torch.Tensor, torch.Tensor] | None = None
        self.steps: dict[str, list[int]] = {}
        self._new = False
        self._folder: Any = None

    def read_columns(self) -> tuple[str, ...]:
        """Names of the columns to read beside that of the recordings."""
        return self.names[1:]

    def embedded(self) -> datasets.DatasetDict:
        """Key texts in Morse code; `samples` renders the audio of a row when it is needed."""
        splits = morse_rows(audio=False)
        for split, rows in splits.items():
            places = [f"{split}, row {row}" for row in range(1, len(rows) + 1)]
            splits[split] = rows.rename_column("text", self.names[1]).add_column(PLACE, places)
        return splits

    def samples(self, row: Mapping[str, Any], sampling_rate: int | None) -> tuple[np.ndarray, int]:
        """Read the recording of a row.

        Args:
            row: Row of a split.
            sampling_rate: Rate to resample to, in Hz; None for that of the recording.

        Returns:
            Samples `[N]` in float32, and their rate in Hz.

        Raises:
            InputError: As for `decode_audio`.
        """
        audio: Any = row.get(AUDIO)
        if audio is None and "durations" in row:
            if sampling_rate not in (None, SAMPLING_RATE):
                raise InputError(
                    f"--sampling_rate {sampling_rate}: the embedded recordings have {SAMPLING_RATE} Hz; leave it out"
                )
            return morse_audio(row), SAMPLING_RATE
        options = {"resampling": self.data.resampling, "mono": self.data.mono}
        return decode_audio(audio, row[PLACE], sampling_rate=sampling_rate, **options)

    # Model

    def new_processor(self, args: Any) -> Any:
        """Create the processing class of a new model, and set the width of its features; see `Task.new_processor`.

        Args:
            args: Model arguments.

        Returns:
            Feature extractor, or a `Wav2Vec2Processor` with a tokenizer of the training transcripts; None if the
            arguments name a checkpoint, which has its own.

        Raises:
            InputError: The options of the extractor are invalid, or the first training recording cannot be read.
        """
        if args.model_name_or_path is not None:
            return None
        options = dict(self.data.feature_extractor or {})
        rate = self.data.sampling_rate
        if rate is None:
            rate = self.samples(self.splits["train"][0], None)[1]
        try:
            extractor = LogMelFeatureExtractor(sampling_rate=rate, **options)
        except (TypeError, ValueError) as error:
            raise InputError(f"--feature_extractor: {one_line(error)}") from error
        if unknown := sorted(options.keys() - _EXTRACTOR_OPTIONS):
            raise InputError(
                f"--feature_extractor: no option {unknown[0]!r}; there are {', '.join(sorted(_EXTRACTOR_OPTIONS))}"
            )
        self._new = True
        self.fields = self.fields | {"input_size": extractor.feature_size}
        return self._processor(extractor, args)

    def _processor(self, extractor: Any, args: Any) -> Any:
        for name in ("tokenizer_model", "vocab_size", "normalization", "lowercase"):
            if getattr(args, name) != type(args).__dataclass_fields__[name].default:
                raise InputError(f"--{name} is for --head seq2seq; leave it out")
        return extractor

    def configure(self, model: PreTrainedModel, tokenizer: Any) -> None:
        """Set the number of samples of a step, and the statistics of the features of a new model.

        Args:
            model: Model, modified in place.
            tokenizer: Feature extractor or processor of the model.

        Raises:
            InputError: There is no feature extractor, or `--sampling_rate` is not that of the model.
        """
        super().configure(model, tokenizer)
        config: Any = model.config
        extractor: Any = extractor_of(tokenizer)
        if extractor is None:
            raise InputError(f"--model_name_or_path {config.name_or_path}: it has no feature extractor of audio")
        if self.data.sampling_rate not in (None, extractor.sampling_rate):
            raise InputError(
                f"--sampling_rate {self.data.sampling_rate}: the model reads {extractor.sampling_rate} Hz; leave it "
                "out, and recordings are resampled"
            )
        self.extractor = extractor
        # An ensemble has none.
        factor = getattr(config, "subsampling_factor", None)
        if is_hfseq(config) and factor is not None and hasattr(extractor, "hop_length"):
            config.inputs_to_logits_ratio = extractor.hop_length * factor
        if self.statistics is not None:
            base: Any = model.base_model
            # Of an encoder-decoder the encoder reads the features.
            getattr(base, "encoder", base).set_feature_statistics(*self.statistics)

    # Encoding

    def encode(self, model: PreTrainedModel, tokenizer: Any, log: Callable[..., Any]) -> None:
        """Configure a model, compute the features of all rows, and normalise a new model; see `Task.encode`."""
        super().encode(model, tokenizer, log)
        # A transformer has layers for that, and a trained model its own.
        if self._new and self.statistics is None and is_hfseq(model.config) and "train" in self.encoded:
            self.statistics = feature_statistics(self.encoded["train"], model.main_input_name)
            self.configure(model, tokenizer)

    def _encode(self, model: PreTrainedModel, tokenizer: Any) -> EncodedSplits:
        name = self.main_input = model.main_input_name
        self.collator = CheckedCollator(FeatureCollator(model, tokenizer), model)
        self._folder = tempfile.TemporaryDirectory(prefix="hfseq-features-")
        encoded = EncodedSplits({}, {}, [])
        first = self._row(next(iter(next(iter(self.splits.values())))), model)
        shape = first[name].shape
        number = datasets.Value("int64")
        features = datasets.Features(
            {
                name: datasets.List(datasets.Value("float32"))
                if len(shape) == 1
                else datasets.Array2D((None, shape[1]), "float32"),
                "labels": number if np.ndim(first["labels"]) == 0 else datasets.List(number),
                "length": number,
                "steps": datasets.Value("int64"),
            }
        )
        for split, rows in self.splits.items():
            found = write_rows(
                rows, lambda row, number: [self._row(row, model)], features, f"{self._folder.name}/{split}.arrow"
            )
            self.steps = {**self.steps, split: list(found["steps"])}
            encoded.lengths[split] = list(found["length"])
            encoded.rows[split] = found.remove_columns(["length", "steps"]).with_format(
                "numpy", columns=[name], output_all_columns=True
            )
            if split != "train_sample":
                encoded.notes.extend(self._notes(split, rows))
        return encoded

    def _row(self, row: Mapping[str, Any], model: Any) -> dict[str, Any]:
        samples, rate = self.samples(row, self.extractor.sampling_rate)
        name = model.main_input_name
        try:
            found = self.extractor(samples, sampling_rate=rate, return_tensors="np")[name][0]
        except ValueError as error:
            raise InputError(f"{row[PLACE]}: {one_line(error)}") from None
        steps = _steps(model, len(found))
        return {name: found, "labels": self._labels(row, steps), "length": len(found), "steps": steps}

    def timed(
        self, model: PreTrainedModel, processing_class: Any, split: str, count: int
    ) -> tuple[Run, Sequence[Any]]:
        """Return a function from recordings to predictions, features included, and recordings; see `Task.timed`.

        A recording is a pair of samples and their rate; the function resamples it to that of the model.
        """
        # A copy, since several models take turns.
        task, name = copy.copy(self), model.main_input_name
        task.configure(model, processing_class)
        task.main_input = name
        collator, rate = FeatureCollator(model, processing_class), task.extractor.sampling_rate
        model.eval()

        @torch.inference_mode()
        def run(recordings: Sequence[tuple[np.ndarray, int]]) -> Any:
            samples = [resample(one, its_rate, rate) for one, its_rate in recordings]
            features = [task.extractor(one, sampling_rate=rate, return_tensors="np")[name][0] for one in samples]
            batch = collator([{name: values} for values in features]).to(model.device)
            outputs = None if task.generates else model(**batch)
            return task.raw(model, batch, outputs, torch.empty(0))  # lists, for which a device is waited for

        rows = self.splits[split]
        return run, [self.samples(row, None) for row in rows.select(range(min(count, len(rows))))]

    def _labels(self, row: Mapping[str, Any], steps: int) -> Any:
        """Labels of a row that has so many steps."""
        raise NotImplementedError

    def _notes(self, split: str, rows: datasets.Dataset) -> list[str]:
        return []

    def sources(self, split: str) -> list[str]:
        """File name of each recording, or its place."""
        rows = self.splits[split]
        if AUDIO not in rows.column_names:
            return list(rows[PLACE])
        return [
            Path(audio["path"]).name if audio and audio["path"] else place
            for audio, place in zip(rows[AUDIO], rows[PLACE], strict=True)
        ]

    def example(self, split: str) -> str | None:
        """None: a model card cannot show a recording."""
        return None


class Transcription(Speech):
    """Transcription of speech by CTC.

    The vocabulary of a new model is that of the characters of the training transcripts.

    Attributes:
        blank: Id of the blank.
        finds_padding: Whether the model may find symbols in the padding of a row, as those of transformers do.
    """

    columns = (AUDIO, "transcription")
    column_flags = ("audio_column", "text_column")
    metrics = ("wer", "cer")
    hub_task = "automatic-speech-recognition"
    auto_class: ClassVar[Any] = AutoModelForCTC

    def _prepare(self, splits: dict[str, Any], known: list[str] | None, train: bool) -> Mapping[str, Any]:
        # Scores are computed after the first epoch.
        require("jiwer", extra="audio", use="error rates of transcripts")
        name = self.names[1]
        normal = {}
        for split, rows in self._draw(splits).items():
            texts = [" ".join(unicodedata.normalize("NFC", text).split()) for text in rows[name]]
            normal[split] = rows.remove_columns(name).add_column(name, texts, feature=datasets.Value("string"))
        self.references = {split: list(rows[name]) for split, rows in normal.items() if split != "train"}
        return normal

    def _processor(self, extractor: Any, args: Any) -> Any:
        super()._processor(extractor, args)
        characters = set()
        rows = self.splits["train"]
        for text, place in zip(rows[self.names[1]], rows[PLACE], strict=True):
            if DELIMITER in text:
                raise InputError(f"{place}: {text!r} has {DELIMITER!r}, which stands for the space between words")
            characters |= set(text)
        vocabulary = [PAD, UNKNOWN, DELIMITER, *sorted(characters - {" "})]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "vocab.json"
            path.write_text(json.dumps({token: number for number, token in enumerate(vocabulary)}), encoding="utf-8")
            tokenizer = Wav2Vec2CTCTokenizer(str(path), bos_token=None, eos_token=None)
        return Wav2Vec2Processor(extractor, tokenizer)

    def configure(self, model: PreTrainedModel, tokenizer: Any) -> None:
        """Choose the model's own loss; see `Speech.configure`.

        Raises:
            InputError: As for `Speech.configure`; there is no tokenizer, `--label_smoothing_factor` is given, or the
                model's loss does not allow `--gradient_accumulation_steps`.
        """
        super().configure(model, tokenizer)
        self.own_loss = True
        self.tokenizer: Any = tokenizer_of(tokenizer)
        config: Any = model.config
        if self.tokenizer is None:
            raise InputError(f"--model_name_or_path {config.name_or_path}: it has no tokenizer")
        if self.args.label_smoothing_factor:
            raise InputError("--label_smoothing_factor: CTC has no labels of steps to smooth; leave it out")
        self.blank, self.zero_infinity = int(config.pad_token_id), bool(config.ctc_zero_infinity)
        self.finds_padding = not is_hfseq(config)
        if self.finds_padding:
            # Their loss is not divided by the number of labels; a sum would grow with the batch.
            config.ctc_loss_reduction = "mean"
            if self.args.gradient_accumulation_steps > 1:
                raise InputError(
                    f"--gradient_accumulation_steps: the loss of {type(model).__name__} is a mean over each batch "
                    "alone; use larger batches"
                )

    def _encode(self, model: PreTrainedModel, tokenizer: Any) -> EncodedSplits:
        if "train_sample" in self.splits:
            self.references = self.references | {"train_sample": list(self.splits["train_sample"][self.names[1]])}
        return super()._encode(model, tokenizer)

    def _labels(self, row: Mapping[str, Any], steps: int) -> list[int]:
        ids = self.tokenizer(row[self.names[1]]).input_ids
        repeats = count_repeats(ids)
        if len(ids) + repeats > steps and not self.zero_infinity:
            raise InputError(
                f"{row[PLACE]}: {len(ids)} characters, {repeats} of them repeated, need {len(ids) + repeats} steps; "
                f"the recording has {steps}; leave the row out, or set ctc_zero_infinity in --config_overrides to "
                "leave such rows out of the loss, or reduce hop_length or subsampling_factor"
            )
        return ids

    def _notes(self, split: str, rows: datasets.Dataset) -> list[str]:
        known = {token for token in self.tokenizer.get_vocab() if len(token) == 1} | {" "}
        for text, place in zip(rows[self.names[1]], rows[PLACE], strict=True):
            unknown = sorted(set(text) - known)
            if unknown and split == "train":
                raise InputError(
                    f"{place}: {unknown[0]!r} of {text!r} is not in the vocabulary of the checkpoint, "
                    f"{''.join(sorted(known))!r}"
                )
        unknown = sorted({letter for text in rows[self.names[1]] for letter in text} - known)
        return [f"{split}: not in the vocabulary: {' '.join(unknown)}"] if unknown else []

    def reduce(self, logits: Any, labels: torch.Tensor) -> torch.Tensor:
        """Best path `[B, S]`: the most likely symbols, with -100 in place of blanks and repeats."""
        best = super().reduce(logits, labels).argmax(dim=-1)
        repeated = torch.zeros_like(best, dtype=torch.bool)
        repeated[:, 1:] = best[:, 1:] == best[:, :-1]
        return best.masked_fill(repeated | (best == self.blank), -100)

    def raw(self, model: PreTrainedModel, batch: Any, outputs: Any, labels: torch.Tensor, **options: Any) -> list[Any]:
        """Best path, or with `num_beams` above 1 the best text of a beam search; arguments as for `Task.raw`."""
        if options.get("num_beams", 1) == 1 and options.get("language_model") is None:
            return super().raw(model, batch, outputs, labels)
        logits = outputs.logits
        inputs = batch["attention_mask"].sum(dim=1).tolist() if "attention_mask" in batch else None
        width = batch[self.main_input].shape[1]
        lengths = [_steps(model, length) for length in inputs or [width] * len(logits)]
        mask = torch.arange(logits.shape[1]) < torch.tensor(lengths).unsqueeze(1)
        rows = ctc_beam_search(logits, mask.to(logits.device), blank_token_id=self.blank, **options)
        return [hypotheses[0].token_ids for hypotheses in rows]

    def test_options(self) -> dict[str, Any]:
        """Options of the final test: beams, and a language model with its weight.

        Raises:
            InputError: The language model cannot be loaded, or has no token for a character.
        """
        options: dict[str, Any] = {"num_beams": self.data.num_beams}
        if self.data.lm_model is None:
            return options
        lm, its_tokenizer = load_trained(AutoModelForCausalLM, self.data.lm_model)
        lm.to(self.args.device)  # type: ignore[arg-type]
        options |= {"language_model": lm, "lm_weight": self.data.lm_weight}
        ids = _lm_token_ids(self.tokenizer, its_tokenizer, self.data.lm_model)
        return options | {"length_bonus": self.data.length_bonus, "lm_token_ids": ids}

    def decode(self, split: str, raw: Any) -> list[str]:
        """Convert token ids, without repeats and with -100 in place of blanks, to texts."""
        if self.finds_padding:
            raw = [ids[:steps] for ids, steps in zip(raw, self.steps[split], strict=True)]
        return [self.tokenizer.decode([int(one) for one in ids if one >= 0], group_tokens=False) for ids in raw]

    def score(self, predictions: Any, references: Any) -> dict[str, float]:
        """Compute the error rates of words and characters in percent; lower is better."""
        return {name: getattr(metrics, name)(predictions, references)["score"] for name in ("wer", "cer")}

    def baseline(self, split: str, *, trained: bool) -> dict[str, Any]:
        """Threshold decoder of Morse code on the embedded data; no other recordings have a baseline."""
        rows = self.splits[split]
        if "durations" not in rows.column_names:
            return {}
        return {"threshold": [decode_morse(morse_audio(row)) for row in rows]}

    def show(self, predictions: Any) -> list[str]:
        """Texts as they are."""
        return list(predictions)

    def summary(self, split: str, predictions: Any) -> str:
        """Heading of the final test."""
        beams = f", {self.data.num_beams} beams" if self.data.num_beams > 1 else ""
        return f"{super().summary(split, predictions)}{beams}"

    def plot(self, model: PreTrainedModel, log: Sequence[dict[str, Any]], split: str, predictions: Any) -> None:
        """Write the learning curve, and the spectrogram of a recording with the alignment of its prediction."""
        super().plot(model, log, split, predictions)
        self._plot_alignment(model, split, predictions)

    @torch.no_grad()
    def _plot_alignment(self, model: PreTrainedModel, split: str, predictions: Sequence[str]) -> None:
        lengths = [len(text) if len(text) <= 30 else 0 for text in predictions]
        number = int(np.argmax(lengths))
        row = self.encoded[split][number]
        if np.ndim(row[self.main_input]) != 2:
            return
        model.eval()
        batch = self.collator([row]).to(model.device)
        batch.pop("labels")
        logits = model(**batch).logits[:, : self.steps[split][number]]
        ids = self.tokenizer(predictions[number]).input_ids
        found = ctc_alignment(logits, [ids], blank_token_id=self.blank)[0]
        seconds = model.config.inputs_to_logits_ratio / self.extractor.sampling_rate
        spans = [
            (self.tokenizer.convert_ids_to_tokens(one).replace(DELIMITER, " "), start * seconds, end * seconds)
            for one, start, end in zip(ids, found.start_offsets, found.end_offsets, strict=True)
        ]
        frames = np.asarray(row[self.main_input])
        duration = len(frames) * self.extractor.hop_length / self.extractor.sampling_rate
        plot_spectrogram(frames, spans, duration, f"{self.args.output_dir}/spectrogram.png")


class GeneratedTranscription(Generating, Transcription):
    """Transcription of speech by an encoder-decoder, whose decoder attends to the recording.

    Attributes:
        start: Id of the token that the decoder starts with; None for an ensemble.
    """

    auto_class: ClassVar[Any] = AutoModelForSpeechSeq2Seq

    def _processor(self, extractor: Any, args: Any) -> Any:
        options: dict[str, Any] = {"vocab_size": args.vocab_size, "normalization": args.normalization}
        texts = self.splits["train"][self.names[1]]
        tokenizer = train_tokenizer(texts, model=args.tokenizer_model, lowercase=args.lowercase, **options)
        return Wav2Vec2Processor(extractor, tokenizer)

    def configure(self, model: PreTrainedModel, tokenizer: Any) -> None:
        """Set the generation defaults of a model; see `Speech.configure`."""
        Speech.configure(self, model, tokenizer)
        self.tokenizer = tokenizer_of(tokenizer)
        if self.tokenizer is None:
            raise InputError(f"--model_name_or_path {model.config.name_or_path}: it has no tokenizer")
        # An ensemble has none.
        self.start: int | None = getattr(model.config, "decoder_start_token_id", None)
        set_generation(model, self.data.num_beams, self.data.max_target_length)

    def _labels(self, row: Mapping[str, Any], steps: int) -> list[int]:
        limit = self.data.max_target_length
        ids = encode_texts(self.tokenizer, [row[self.names[1]]], limit, target=True)[0]["input_ids"][0]
        # Whisper's tokenizer begins with the token that the decoder starts with, which is no label.
        return ids[ids[0] == self.start :]

    def _notes(self, split: str, rows: datasets.Dataset) -> list[str]:
        limit = self.data.max_target_length
        lengths = encode_texts(self.tokenizer, list(rows[self.names[1]]), limit, target=True)[1]
        count = sum(length > limit for length in lengths)
        if not count:
            return []
        return [
            f"{split}: {count} of {len(rows)} transcripts are longer than --max_target_length {limit} and were "
            "truncated"
        ]

    def reduce(self, logits: Any, labels: torch.Tensor) -> torch.Tensor:
        """Logits as they are."""
        return Task.reduce(self, logits, labels)

    def _plot_alignment(self, model: PreTrainedModel, split: str, predictions: Sequence[str]) -> None:
        """Plot nothing: the alignment of CTC is not the decoder's."""


class AudioClassification(Speech, Classification):
    """Classification of recordings."""

    columns = (AUDIO, "label")
    column_flags = ("audio_column", "label_column")
    other_metrics: ClassVar[tuple[str, ...]] = ()
    hub_task = "audio-classification"
    auto_class: ClassVar[Any] = AutoModelForAudioClassification

    def embedded(self) -> datasets.DatasetDict:
        """Raise an `InputError`: the embedded recordings have no classes."""
        raise InputError("--head classification has no embedded data; give --train_file or --dataset_name")

    def row_classes(self, rows: datasets.Dataset) -> Sequence[Collection[str]]:
        """Class of each row."""
        return [[name] for name in rows[self.names[1]]]

    def _encode(self, model: PreTrainedModel, tokenizer: Any) -> EncodedSplits:
        if "train_sample" in self.splits:
            self.references = self.references | {"train_sample": label_array(self.splits["train_sample"])}
        return super()._encode(model, tokenizer)

    def _labels(self, row: Mapping[str, Any], steps: int) -> int:
        return int(row["labels"])


HEADS: dict[str, type[Speech]] = {
    "ctc": Transcription,
    "seq2seq": GeneratedTranscription,
    "classification": AudioClassification,
}
"""Values of `--head` and their tasks."""

_EXTRACTOR_OPTIONS = {
    *("feature_size", "hop_length", "win_length", "n_fft", "min_frequency", "max_frequency", "mel_floor"),
    "padding_value",
}


def _steps(model: Any, length: int) -> int:
    """Number of steps of a model for a row of so many frames or samples."""
    if is_hfseq(model.config):
        return -(-length // getattr(model.config, "subsampling_factor", 1))
    lengths = getattr(model, "_get_feat_extract_output_lengths", None)
    return length if lengths is None else int(lengths(torch.tensor([length]))[0])


def _lm_token_ids(tokenizer: Any, its_tokenizer: Any, name: str) -> torch.Tensor:
    """Id in a language model of characters for each token of CTC, `[V]`; that of its unknown token for the rest.

    Raises:
        InputError: The language model lacks a character.
    """
    vocabulary = its_tokenizer.get_vocab()
    space = next((token for token in ("▁", " ", DELIMITER) if token in vocabulary), None)
    ids = []
    for token in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))):
        wanted = space if token == DELIMITER else token
        if wanted not in vocabulary:
            if len(token) == 1:
                raise InputError(f"--lm_model {name}: it has no token {token!r}; train it on characters")
            ids.append(its_tokenizer.unk_token_id)
        else:
            ids.append(vocabulary[wanted])
    return torch.tensor(ids)

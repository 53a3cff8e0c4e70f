"""Files of fairseq: checkpoints with their options, and dictionaries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerFast

from hfseq.convert.names import as_float32, other_parts
from hfseq.convert.reading import COMMON, PickledNames, StandIn, read_checkpoint
from hfseq.convert.vocabularies import bpe_tokenizer, check_tokens, read_fairseq_dictionary, word_tokenizer
from hfseq.errors import InputError

ROLES = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
"""Special tokens, whose ids are 0 to 3."""
IDS = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
"""Config fields for them."""
NAMES = COMMON | PickledNames(
    classes=(
        "omegaconf.*",
        "typing.Any",
        "builtins.int",
        "builtins.float",
        "builtins.str",
        "builtins.bool",
        "fairseq.meters.*",
        "fairseq.logging.meters.*",
    ),
    functions=("fairseq.dataclass.constants.*", "omegaconf.base.SCMode"),
)
"""Names in checkpoints of fairseq: options by argparse or omegaconf, and meters of the training."""


@dataclass
class FairseqCheckpoint:
    """Checkpoint of fairseq.

    Attributes:
        path: The file.
        options: Options of the model by their names, those of the training among them.
        weights: Weights by fairseq's names, in float32.
        parts: Clauses on its other parts.
    """

    path: Path
    options: dict[str, Any]
    weights: dict[str, Tensor]
    parts: list[str]

    @property
    def arch(self) -> str:
        """Name of the architecture, as `--arch` had it."""
        return str(self.options.get("arch") or self.options.get("_name") or "unnamed")

    def dropout(self, *names: str) -> tuple[dict[str, float], list[str]]:
        """Config field for the dropout, if the options agree on one, and clauses on how it was found.

        Args:
            names: Options that count; those that are missing are `--dropout`, which is 0.1 by default.
        """
        usual = self.options.get("dropout", 0.1)
        found = {name: self.options.get(name, usual) for name in names}
        shown = ", ".join(f"--{name.replace('_', '-')} {value}" for name, value in found.items())
        if len({*found.values()}) == 1:
            (rate,) = {*found.values()}
            return {"dropout": float(rate)}, []
        return {}, [f"{shown}: hfseq has one dropout, left at its default"]


def read_fairseq(path: str | Path) -> FairseqCheckpoint:
    """Read a checkpoint that `fairseq-train` wrote.

    Raises:
        InputError: If the file is not one, or is refused.
    """
    found = read_checkpoint(path, NAMES)
    weights = found.get("model") if isinstance(found, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(weight, Tensor) for weight in weights.values()):
        raise InputError(f"{path}: not a checkpoint of fairseq, which has its weights under 'model'")
    options: dict[str, Any] = {}
    cfg = plain(found.get("cfg"))
    if isinstance(cfg, dict):
        for group in ("criterion", "task", "model"):
            own = plain(cfg.get(group))
            options |= own if isinstance(own, dict) else {}
            if group == "criterion" and isinstance(own, dict):
                options["criterion"] = own.get("_name", own.get("criterion"))
    args = plain(found.get("args"))
    options |= args if isinstance(args, dict) else {}
    if not options:
        raise InputError(f"{path}: neither 'args' nor 'cfg' has the options of the model")
    parts = other_parts(found, "model", "args", "cfg")
    return FairseqCheckpoint(Path(path), options, {str(k): as_float32(v) for k, v in weights.items()}, parts)


def plain(value: Any) -> Any:
    """Options without the objects of argparse and omegaconf around them."""
    if isinstance(value, StandIn):
        inside = vars(value)
        if "_content" in inside:  # a DictConfig or a ListConfig
            return plain(inside["_content"])
        return plain(inside["_val"]) if "_val" in inside else {name: plain(one) for name, one in inside.items()}
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list) else value


def make_tokenizer(
    dict_dir: str | Path | None,
    codes: str | Path | None,
    language: str | None,
    size: int,
    *,
    start: Sequence[str] = (),
    end: Sequence[str] = (),
) -> tuple[PreTrainedTokenizerFast | None, list[str]]:
    """Tokenizer of a dictionary of fairseq.

    Args:
        dict_dir: Folder with `dict.txt`, or `dict.LANGUAGE.txt`; or the dictionary itself; None for no tokenizer.
        codes: BPE codes; None for texts that are split already.
        language: Language of the dictionary; None for a language model.
        size: Number of its tokens.
        start: Special tokens before a text.
        end: Those after it.

    Returns:
        The tokenizer, and the pieces that it has beyond the dictionary; see `bpe_tokenizer`.

    Raises:
        InputError: If there is no dictionary, or it does not fit the model.
    """
    if dict_dir is None:
        return None, []
    path = Path(dict_dir)
    if path.is_dir():
        path = path / ("dict.txt" if language is None else f"dict.{language}.txt")
    tokens = read_fairseq_dictionary(path)
    check_tokens(path, tokens, size)
    if codes is None:
        return word_tokenizer(tokens, start=start, end=end, roles=ROLES), []
    return bpe_tokenizer(tokens, codes, start=start, end=end, roles=ROLES)


def language_pair(options: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Source and target language of a translator's options."""
    return options.get("source_lang"), options.get("target_lang")

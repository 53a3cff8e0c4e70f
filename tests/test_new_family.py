"""A new family takes two small files and one row: proven on a copy of the package to which a test adds them.

Run as a script, this file is the process with the copy if it gets the name of the family, else one without hfseq:
`python test_new_family.py CHECKPOINTS RESULTS [FAMILY]`.
"""

import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from processes import run_elsewhere
from transformers import DynamicCache

CONFIGURATION = """
from transformers.configuration_utils import strict

from .configuration_recurrent import RecurrentConfig


@strict
class {family}Config(RecurrentConfig):
    model_type = "hfseq_{name}"
    family = "{family}"
"""
MODELING = """
import torch
from torch import Size, nn

from .configuration_{name} import {family}Config
from .heads_classification import ForSequenceClassification, ForTokenClassification
from .heads_ctc import ForCTC
from .heads_prediction import ForPrediction
from .modeling_recurrent import RecurrentForCausalLM, RecurrentForConditionalGeneration, RecurrentModel
from .recurrent import RecurrentLayer, last_output

{cell}

class {family}Model(RecurrentModel):
    config_class = {family}Config

    def make_layer(self, input_size, hidden_size):
        return {family}Layer(input_size, hidden_size)


class {family}Decoder({family}Model):
    pass


class {family}ForCausalLM(RecurrentForCausalLM):
    backbone_class = {family}Model


class {family}ForConditionalGeneration(RecurrentForConditionalGeneration):
    backbone_class = {family}Model
    decoder_class = {family}Decoder


class {family}ForPrediction(ForPrediction):
    backbone_class = {family}Model


class {family}ForSequenceClassification(ForSequenceClassification):
    backbone_class = {family}Model


class {family}ForTokenClassification(ForTokenClassification):
    backbone_class = {family}Model


class {family}ForCTC(ForCTC):
    backbone_class = {family}Model
"""
CELLS = {
    # Feng et al. (2024), section 3.1.3: a linear recurrence, to which a closed gate makes padding the identity.
    "Leaky": """
class LeakyLayer(RecurrentLayer):
    needs_gather = False

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.hidden_size, self.project = hidden_size, nn.Linear(input_size, 2 * hidden_size)

    def state_shapes(self, batch):
        return [Size((batch, self.hidden_size))]

    def forward(self, values, valid=None, weight=None, *state):
        hidden = state[0] if state else values.new_zeros(values.shape[0], self.hidden_size)
        gate, candidate = self.project(values).chunk(2, dim=-1)
        gate = gate.sigmoid() if valid is None else gate.sigmoid().masked_fill(~valid.unsqueeze(-1), 0.0)
        outputs = []
        for z, new in zip(gate.unbind(1), candidate.unbind(1)):
            hidden = (1 - z) * hidden + z * new
            outputs.append(hidden)
        return torch.stack(outputs, dim=1), hidden
""",
    # Bradbury et al. (2017) with windows of two: the state is the hidden one and the last valid input, `[B, 1, I]`.
    "Window": """
class WindowLayer(RecurrentLayer):
    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size
        self.project = nn.Linear(2 * input_size, 2 * hidden_size)

    def state_shapes(self, batch):
        return [Size((batch, self.hidden_size)), Size((batch, 1, self.input_size))]

    def forward(self, values, valid=None, weight=None, *state):
        hidden, window = state or [values.new_zeros(shape) for shape in self.state_shapes(values.shape[0])]
        before = torch.cat([window, values[:, :-1]], dim=1)
        gate, candidate = self.project(torch.cat([before, values], dim=-1)).chunk(2, dim=-1)
        gate = gate.sigmoid() if valid is None else gate.sigmoid().masked_fill(~valid.unsqueeze(-1), 0.0)
        outputs = []
        for z, new in zip(gate.unbind(1), candidate.tanh().unbind(1)):
            hidden = (1 - z) * hidden + z * new
            outputs.append(hidden)
        last = values[:, -1] if valid is None else last_output(values, window[:, 0], valid)
        return torch.stack(outputs, dim=1), hidden, last.unsqueeze(1)
""",
}
TINY = {"vocab_size": 13, "hidden_size": 12, "embedding_size": 10, "num_hidden_layers": 2, "num_labels": 3}
MASK = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 0, 1, 0, 1, 1], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]])
IDS = torch.randint(3, 13, MASK.shape, generator=torch.Generator().manual_seed(5))
OPTIONS = {"max_new_tokens": 7, "eos_token_id": None}
# Of a forecaster: missing values where others have padding.
SERIES = {"past_values": IDS.float(), "past_observed_mask": MASK, "future_values": IDS[:, :3].float()}


def run(folder, *arguments, path=None):
    environment = {"HF_MODULES_CACHE": str(folder / "modules")} | ({} if path is None else {"PYTHONPATH": str(path)})
    command = [Path(__file__).resolve(), folder / "checkpoints", *arguments]
    done = run_elsewhere(*command, environment=environment, cwd=folder)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module", params=list(CELLS))
def results(request, tmp_path_factory):
    """Results of the process with the family, and of the one that cannot import it."""
    import hfseq

    folder, family = tmp_path_factory.mktemp("family"), request.param
    names = {"family": family, "name": family.lower(), "cell": CELLS[family]}
    shutil.copytree(Path(hfseq.__file__).parent, folder / "copy" / "hfseq", ignore=shutil.ignore_patterns("*.pyc"))
    shelf = folder / "copy" / "hfseq" / "models"
    (shelf / f"configuration_{family.lower()}.py").write_text(CONFIGURATION.format(**names))
    (shelf / f"modeling_{family.lower()}.py").write_text(MODELING.format(**names))
    table = (shelf / "__init__.py").read_text()
    line = f"from .configuration_{family.lower()} import {family}Config\n"
    table, rows = re.subn(r"\n\n(FAMILIES[^(]*)\(", rf"\n{line}\n\1({family}Config, ", table)
    assert rows == 1
    (shelf / "__init__.py").write_text(table)
    run(folder, "with.pt", family, path=folder / "copy")
    run(folder, "without.pt")
    return torch.load(folder / "with.pt"), torch.load(folder / "without.pt")


def test_the_new_family_is_a_family(results):
    """Registration, exact padding, cached equals uncached, generation, saving: the process has asserted all that."""
    assert len(results[0]) == 7


def test_its_checkpoints_carry_their_code(results):
    with_family, without = results
    torch.testing.assert_close(without, with_family)


# --- the processes -------------------------------------------------------------------------------------------------


def compute(model):
    if model.main_input_name == "past_values":
        with torch.no_grad():
            return model.eval()(**SERIES).params[0]
    inputs = {"input_ids": IDS, "attention_mask": MASK}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = IDS
    with torch.no_grad():
        return model.eval()(**inputs)[0]


def check_forecaster(model):
    """Exactness at leading missing values and of the cache, and gradients of all parameters."""
    together = compute(model)
    for row, mask in enumerate(MASK.bool()):
        start = int(mask.nonzero()[0])
        past = {name: SERIES[name][row : row + 1, start:] for name in ("past_values", "past_observed_mask")}
        torch.testing.assert_close(
            model(**past, future_values=IDS[row : row + 1, :3].float()).params[0][0], together[row]
        )
    scale = model(SERIES["past_values"])
    known = {"loc": scale.loc, "scale": scale.scale}
    expected = model.log_likelihood(SERIES["past_values"], **known)
    cache = DynamicCache()
    parts = []
    for column in SERIES["past_values"].split(1, dim=1):
        parts.append(model.log_likelihood(column, cache=cache, **(known if not parts else {})))
    torch.testing.assert_close(torch.cat(parts, dim=1), expected)
    assert model.generate(SERIES["past_values"], prediction_length=3).sequences.isfinite().all()
    model.train()(**SERIES).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def check(model):
    """Exactness at padding and of the cache, and gradients of all parameters."""
    generates, seq2seq = model.can_generate(), model.config.is_encoder_decoder
    together = compute(model)
    for row, mask in enumerate(MASK.bool()):
        alone = {"input_ids": IDS[row : row + 1, mask]} | (
            {"decoder_input_ids": IDS[row : row + 1]} if seq2seq else {}
        )
        expected = model(**alone)[0][0]
        found = together[row] if seq2seq or expected.dim() == 1 else together[row][mask]
        torch.testing.assert_close(found, expected)
    inputs = {"input_ids": IDS, "attention_mask": MASK}
    if generates and not seq2seq:
        cache = None
        for columns in (slice(0, 1), slice(1, 4), slice(4, 5), slice(5, 6)):
            outputs = model(IDS[:, columns], attention_mask=MASK[:, columns], cache=cache, use_cache=True)
            cache = outputs.cache
            valid = MASK[:, columns].bool()
            torch.testing.assert_close(outputs.logits[valid], together[:, columns][valid])
    if generates:
        for beams in ({}, {"num_beams": 3}):
            found = model.generate(**inputs, **OPTIONS, **beams)
            assert found.tolist() == model.generate(**inputs, **OPTIONS, **beams, use_cache=False).tolist()
            assert len({tuple(row) for row in found.tolist()}) > 1
    if seq2seq:
        inputs["decoder_input_ids"] = IDS
    model.train()(**inputs)[0].pow(2).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def create(checkpoints, family):
    """Make, check and save a model of each class of the family."""
    import transformers

    from hfseq.models import MODEL_CLASSES

    [(config_class, heads)] = [item for item in MODEL_CLASSES.items() if item[0].family == family]
    results = {}
    for auto, model_class in heads.items():
        torch.manual_seed(1)
        model = getattr(transformers, auto).from_config(config_class(**TINY)).eval()
        assert type(model) is model_class
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.uniform_(-1.0, 1.0)
        model.save_pretrained(checkpoints / auto)
        results[auto] = compute(model)
        (check_forecaster if model.main_input_name == "past_values" else check)(model.double())
    return results


def load(checkpoints):
    """Load each model without hfseq."""
    import transformers
    from old_checkpoints import NoHfseq

    sys.meta_path.insert(0, NoHfseq())
    return {
        path.name: compute(getattr(transformers, path.name).from_pretrained(path, trust_remote_code=True))
        for path in sorted(checkpoints.iterdir())
    }


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    torch.save(create(folder, sys.argv[3]) if len(sys.argv) > 3 else load(folder), sys.argv[2])

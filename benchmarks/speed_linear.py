"""Linear recurrences: a layer beside torch's GRU and the published scan, a language model, a step of generation."""

import torch
from samples import Sizes, make_optimizer
from timing import Row, Side, clock, in_turns, speedups
from torch import Tensor, nn
from transformers import PreTrainedModel

import hfseq
from hfseq.models.linear_cells import MinGruLayer

BATCH, WIDTH = 32, 256
LENGTHS = (128, 512, 2048)
CHARACTERS = 100


class LogSpaceMinGru(nn.Module):
    """minGRU by the scan in logarithms that its authors publish (Feng et al. 2024, appendix B)."""

    def __init__(self, layer: MinGruLayer) -> None:
        super().__init__()
        self.project = layer.project

    def forward(self, values: Tensor) -> Tensor:
        """All states `[B, T, H]` from a state of zeros."""
        gate, candidate = self.project(values).chunk(2, dim=-1)
        log_decay = -nn.functional.softplus(gate)
        log_g = torch.where(candidate >= 0, (torch.relu(candidate) + 0.5).log(), -nn.functional.softplus(-candidate))
        log_terms = log_g - nn.functional.softplus(-gate)
        decays = log_decay.cumsum(dim=1)
        return (decays + (log_terms - decays).logcumsumexp(dim=1)).exp()


def layers(sizes: Sizes, device: str) -> list[Row]:
    """Forward and backward of one minGRU layer, 32 rows, width 256, at three lengths.

    The scan in logarithms has the weights of the layer, and its outputs are compared before the times are taken.

    Raises:
        RuntimeError: The outputs differ by more than the scan loses.
    """
    torch.manual_seed(0)
    width = min(WIDTH, sizes.hidden)
    layer = MinGruLayer(width, width, candidate="g").to(device)
    layer.project.init_parameters()
    scan, gru = LogSpaceMinGru(layer), nn.GRU(width, width, batch_first=True).to(device)
    rows = []
    for length in LENGTHS if sizes.hidden >= WIDTH else LENGTHS[:1]:
        inputs = torch.randn(BATCH, length, width, device=device)
        difference = (layer(inputs)[0] - scan(inputs)).abs().max().item()
        if difference > 0.02:
            raise RuntimeError(f"the layer and the scan differ by {difference}")
        runs = {
            "minGRU": lambda inputs=inputs: layer(inputs)[0],
            "GRU": lambda inputs=inputs: gru(inputs)[0],
            "logarithms": lambda inputs=inputs: scan(inputs),
        }
        sides = {name: clock(lambda run=run: run().sum().backward()) for name, run in runs.items()}
        times = in_turns(sides, sizes.rounds)
        for other, beside, target in (("GRU", "`nn.GRU`", 2.0), ("logarithms", "the scan in logarithms", 3.0)):
            row = Row(f"minGRU layer, forward and backward, {length} steps", beside, target)
            row.ratios = speedups(times, "minGRU", other)
            row.figures = {
                "ms": [1000 * one for one in times["minGRU"]],
                "ms beside": [1000 * one for one in times[other]],
            }
            rows.append(row)
    return rows


def language_model(config_class: type, width: int, device: str) -> PreTrainedModel:
    """A character language model of two layers."""
    torch.manual_seed(0)
    config = config_class(vocab_size=CHARACTERS, hidden_size=width, num_hidden_layers=2, dropout=0.0)
    return hfseq.models.MODEL_CLASSES[config_class]["AutoModelForCausalLM"](config).to(device)


def language_models(sizes: Sizes, device: str) -> list[Row]:
    """Training steps and steps of generation of language models of characters, two layers, vocabulary of 100.

    Training is on 32 rows of 128 characters, at width 512, beside an LSTM. A step of generation, with the logits of
    one character from a cache, is beside a GRU, for one row and for 32.
    """
    ids = torch.randint(0, CHARACTERS, (BATCH, 128), device=device)

    def trained(model: PreTrainedModel) -> Side:
        optimizer = make_optimizer(model)

        def work() -> None:
            model(ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return clock(work)

    models = {
        config_class.family: language_model(config_class, sizes.hidden, device)
        for config_class in (hfseq.MinGruConfig, hfseq.LstmConfig, hfseq.GruConfig)
    }
    times = in_turns({name: trained(models[name].train()) for name in ("MinGru", "Lstm")}, sizes.rounds)
    row = Row("training, character language model, minGRU", "`hfseq_lstm` of the same width", 1.8)
    row.ratios = speedups(times, "MinGru", "Lstm")
    row.figures = {
        "tokens/s": [ids.numel() / one for one in times["MinGru"]],
        "tokens/s beside": [ids.numel() / one for one in times["Lstm"]],
    }
    rows = [row]
    for batch in (1, BATCH):
        times = in_turns({name: steps(models[name].eval(), batch) for name in ("MinGru", "Gru")}, 3 * sizes.rounds)
        row = Row(f"a step of generation, minGRU, batch {batch}", "`hfseq_gru` of the same width", 1.0)
        row.ratios = speedups(times, "MinGru", "Gru")
        row.figures = {"ms": [1000 * one / 50 for one in times["MinGru"]]}
        row.figures["ms beside"] = [1000 * one / 50 for one in times["Gru"]]
        rows.append(row)
    return rows


def steps(model: PreTrainedModel, batch: int) -> Side:
    """A side that generates 50 characters."""
    ids = torch.randint(0, CHARACTERS, (batch, 4), device=model.device)
    options = {"max_new_tokens": 50, "do_sample": False, "eos_token_id": None}
    return clock(lambda: model.generate(ids, attention_mask=torch.ones_like(ids), **options))

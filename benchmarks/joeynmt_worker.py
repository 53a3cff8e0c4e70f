"""JoeyNMT's side of the comparisons, run by JoeyNMT's own Python; see `beside_joeynmt.py`.

    python joeynmt_worker.py FOLDER

reads FOLDER/setup.pt (sizes, threads) and FOLDER/batches.pt, and then a JSON object a line: `{"train": [numbers of
batches], "bf16": false}`, `{"plan": [rows], "max_tokens": 1500, "count": 8}`, `{"load": true}` (FOLDER/weights.pt) or
`{"translate": [numbers], "beams": 5, "max_length": 60}`. It answers each with a line: seconds, the numbers of the
batches that it planned and their target tokens, the output of the last.
"""

import json
import logging
import sys
import time
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import torch
from joeynmt.batch import Batch
from joeynmt.builders import build_gradient_clipper, build_optimizer
from joeynmt.datasets import TokenBatchSampler
from joeynmt.model import build_model
from joeynmt.search import search
from joeynmt.vocabulary import Vocabulary
from torch.utils.data import RandomSampler


def make_model(setup):
    """The RNN of JoeyNMT with the sizes of ours."""
    symbols = SimpleNamespace(
        unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>", sep_token=None, lang_tags=[],
        unk_id=0, pad_id=1, bos_id=2, eos_id=3, sep_id=None,
    )  # fmt: skip
    vocabulary = Vocabulary([f"token{number}" for number in range(4, setup["vocabulary"])], symbols)
    embeddings = {"embedding_dim": setup["embedding"], "scale": False, "dropout": 0.3}
    recurrent = {"type": "recurrent", "rnn_type": "lstm", "num_layers": 1, "embeddings": embeddings, "dropout": 0.3}
    config = {
        "tied_embeddings": True,
        "encoder": recurrent | {"hidden_size": setup["hidden"] // 2, "bidirectional": True},
        "decoder": recurrent
        | {
            "hidden_size": setup["hidden"],
            "attention": "luong",
            "init_hidden": "bridge",
            "input_feeding": False,
            "hidden_dropout": 0.3,
        },
    }
    model = build_model(config, vocabulary, vocabulary)
    model.loss_function = ("crossentropy", 0.1)
    return model


def make_batch(model, source, target, is_train):
    """A batch of padded ids `[B, S]` and, in training, `[B, T]`."""
    return Batch(
        src=source,
        src_length=(source != model.pad_index).sum(dim=1),
        src_prompt_mask=None,
        trg=target,
        trg_prompt_mask=None,
        indices=torch.arange(len(source)),
        device=source.device,
        pad_index=model.pad_index,
        eos_index=model.eos_index,
        is_train=is_train,
    )


class Rows(list):
    """Pairs of ids with the marks of their ends, as JoeyNMT's sampler looks at a data set: without the marks."""

    def __getitem__(self, number):
        """Number, source, target."""
        source, target = super().__getitem__(number)
        return number, source[:-1], target[:-1]


def own_batches(model, rows, max_tokens, count, device):
    """The first batches of JoeyNMT's sampler of batches by tokens, padded; rows of any lengths come together there."""
    order = RandomSampler(Rows(rows), generator=torch.Generator().manual_seed(0))
    chosen = islice(TokenBatchSampler(order, batch_size=max_tokens, drop_last=False, seed=0), count)

    def padded(texts):
        tensors = [torch.tensor(text) for text in texts]
        return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=model.pad_index).to(device)

    return [
        (
            padded([rows[number][0] for number in batch]),
            padded([[model.bos_index, *rows[number][1]] for number in batch]),
        )
        for batch in chosen
    ]


def train(model, optimizer, clip, batches, bf16):
    """One step for each batch: what `TrainManager` does between two batches of its loader."""
    model.train()
    for source, target in batches:
        batch = make_batch(model, source, target, True)
        batch.sort_by_src_length()
        with torch.autocast(source.device.type, torch.bfloat16, enabled=bf16):
            loss, _, _, correct = model(return_type="loss", **vars(batch))
        loss = batch.normalize(loss, normalization="tokens")
        loss.backward()
        loss.item(), correct.item()
        clip(parameters=model.parameters())
        optimizer.step()
        model.zero_grad()


def translate(model, batches, beams, max_length):
    """Ids of the best translation of each row, without the mark of the end."""
    model.eval()
    found = []
    for source, _ in batches:
        batch = make_batch(model, source, None, False)
        back = batch.sort_by_src_length()
        output, _, _ = search(model, batch, max_length, beams, beam_alpha=1.0)
        rows = [[int(token) for token in row if token not in (model.pad_index, model.eos_index)] for row in output]
        found += [rows[position] for position in back]
    return found


def synchronize():
    """Wait for a GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main():
    """Answer until the input ends."""
    logging.disable(logging.INFO)
    folder = Path(sys.argv[1])
    setup = torch.load(folder / "setup.pt")
    torch.set_num_threads(setup["threads"])
    torch.manual_seed(0)
    model = make_model(setup).to(setup["device"])
    optimizer = build_optimizer(
        {"optimizer": "adamw", "learning_rate": 1e-3, "adam_betas": (0.9, 0.999)}, model.parameters()
    )
    clip = build_gradient_clipper({"clip_grad_val": None, "clip_grad_norm": 1.0})
    batches = torch.load(folder / "batches.pt", map_location=setup["device"])
    print("READY " + json.dumps({"parameters": sum(weight.numel() for weight in model.parameters())}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        answer = {}
        synchronize()
        begin = time.perf_counter()
        if "train" in order:
            train(model, optimizer, clip, [batches["train"][number] for number in order["train"]], order["bf16"])
        elif "plan" in order:
            planned = own_batches(model, order["plan"], order["max_tokens"], order["count"], setup["device"])
            answer["numbers"] = list(range(len(batches["train"]), len(batches["train"]) + len(planned)))
            answer["tokens"] = sum(int((target != model.pad_index).sum()) - len(target) for _, target in planned)
            batches["train"] += planned
        elif "load" in order:
            model.load_state_dict(torch.load(folder / "weights.pt"))
        else:
            chosen = [batches["test"][number] for number in order["translate"]]
            answer["output"] = translate(model, chosen, order["beams"], order["max_length"])
        synchronize()
        print("READY " + json.dumps(answer | {"seconds": time.perf_counter() - begin}), flush=True)


if __name__ == "__main__":
    main()

"""Programs of others that speak OpenAI's API: its own client, and lm-evaluation-harness."""

import json
import math

import lm_eval
import pytest
import torch
from lm_eval.models.openai_completions import LocalCompletionsAPI
from lm_eval.tasks import TaskManager
from openai import BadRequestError, NotFoundError, OpenAI
from openai_served import TOKENIZER, app_of, make_model
from served_apps import listening

ROWS = [
    {"context": "abc def", "endings": ["ghi", "jk", "pq r"], "label": 0},
    {"context": "mno", "endings": ["vwx", "abc", "def ghi"], "label": 2},
    {"context": "yz yz yz", "endings": ["a", "b c", "stu"], "label": 1},
]
TASK = """
task: endings
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: context
doc_to_target: label
doc_to_choice: endings
metric_list:
  - metric: acc
"""


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def url(model):
    with listening(app_of({"lm": model}, max_input_tokens=64, max_new_tokens=32)) as port:
        yield f"http://127.0.0.1:{port}/v1"


@pytest.fixture(scope="module")
def client(url):
    with OpenAI(base_url=url, api_key="none", max_retries=0) as one:
        yield one


def test_completions_of_the_client(client):
    asked = {"model": "lm", "prompt": ["abc", "def"], "max_tokens": 6, "temperature": 0, "logprobs": 2}
    whole = client.completions.create(**asked, n=2, stop=["zzz"], seed=1)
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3] and whole.usage.completion_tokens == 24
    assert len(whole.choices[0].logprobs.token_logprobs) == 6
    chunks = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    for index in range(2):
        mine = [one.choices[0] for one in chunks if one.choices and one.choices[0].index == index]
        assert "".join(one.text for one in mine) == whole.choices[2 * index].text
    assert chunks[-1].usage.completion_tokens == 12
    with pytest.raises(BadRequestError, match="suffix: is not supported"):
        client.completions.create(**asked, suffix="x")
    with pytest.raises(NotFoundError, match="does not exist"):
        client.completions.create(**asked | {"model": "another"})


def test_chats_of_the_client(client):
    asked = {"model": "lm", "messages": [{"role": "user", "content": "abc"}], "temperature": 0}
    whole = client.chat.completions.create(**asked, max_completion_tokens=5, logprobs=True, top_logprobs=3)
    content = whole.choices[0].logprobs.content
    assert len(content) == 5 and all(len(one.top_logprobs) == 3 for one in content)
    chunks = client.chat.completions.create(**asked, max_completion_tokens=5, stream=True)
    text = "".join(one.choices[0].delta.content or "" for one in chunks)
    assert text == whole.choices[0].message.content
    with client.chat.completions.stream(**asked, stop=text[2:4]) as stream:
        assert stream.get_final_completion().choices[0].message.content == text[: text.index(text[2:4])]
    with pytest.raises(BadRequestError, match="tools: is not supported"):
        client.chat.completions.create(**asked, tools=[{"type": "function", "function": {"name": "f"}}])


@pytest.mark.parametrize("starts", [False, True])
def test_lm_evaluation_harness(url, model, tmp_path, starts):
    """With and without the token that starts a text, on which the harness decides: it sends token ids."""
    TOKENIZER.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "rows.json").write_text("\n".join(map(json.dumps, ROWS)))
    (tmp_path / "endings.yaml").write_text(TASK.format(file=tmp_path / "rows.json"))
    harness = LocalCompletionsAPI(
        base_url=f"{url}/completions",
        model="lm",
        tokenizer=str(tmp_path / "tokenizer"),
        tokenizer_backend="huggingface",
        add_bos_token=starts,
        batch_size=4,
        max_length=64,
        max_retries=1,
    )
    found = lm_eval.simple_evaluate(
        harness,
        tasks=["endings"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
        cache_requests=False,
    )
    samples = sorted(found["samples"]["endings"], key=lambda one: one["doc_id"])
    best = []
    for row, sample in zip(ROWS, samples, strict=True):
        expected = [score(model, row["context"], " " + ending, starts) for ending in row["endings"]]
        for (logprob, greedy), (value, is_greedy) in zip(sample["filtered_resps"], expected, strict=True):
            assert logprob == pytest.approx(value, abs=1e-4) and greedy == is_greedy
        best.append(max(range(3), key=lambda number: expected[number][0]) == row["label"])
    assert found["results"]["endings"]["acc,none"] == pytest.approx(math.fsum(best) / 3)


@torch.no_grad()
def score(model, context, ending, starts):
    """Log-probability of the end of a text, and whether it is the most likely one, from one forward pass."""
    ids = TOKENIZER(context + ending, add_special_tokens=starts, return_tensors="pt")["input_ids"]
    start = len(TOKENIZER(context, add_special_tokens=starts)["input_ids"])
    logprobs = model(ids).logits[0, start - 1 : -1].log_softmax(dim=-1)
    targets = ids[0, start:]
    return float(logprobs.gather(1, targets.unsqueeze(1)).sum()), bool((logprobs.argmax(dim=-1) == targets).all())

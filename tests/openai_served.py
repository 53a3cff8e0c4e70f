"""Small language models behind OpenAI's routes."""

import asyncio
from contextlib import asynccontextmanager
from types import SimpleNamespace

import torch
from fastapi import FastAPI
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from transformers import GPT2Config, GPT2LMHeadModel

import hfseq
from hfseq.serving.http_json import Refusal
from hfseq.serving.language_model import LanguageModel
from hfseq.serving.limits import Limits
from hfseq.serving.openai_routes import openai_router
from hfseq.serving.refusals import details_of, refusal_of
from hfseq.tokenization import start_texts, train_tokenizer

TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'nobody' %}{{ raise_exception('secret of the template') }}"
    "{% endif %}{{ message.content }}{% endfor %}"
)
TOKENIZER = train_tokenizer(["abc def ghi jkl mno pqr stu vwx yz"], model="bpe", vocab_size=34)
start_texts(TOKENIZER)
TOKENIZER.chat_template = TEMPLATE


def make_model(kind="lstm"):
    """A model that never ends by itself."""
    torch.manual_seed(1)
    size = len(TOKENIZER)
    if kind == "gpt2":
        sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
        config = GPT2Config(vocab_size=size, **sizes, initializer_range=0.5, bos_token_id=1, eos_token_id=2)
        model = GPT2LMHeadModel(config)
    else:
        model = hfseq.LstmForCausalLM(hfseq.LstmConfig(vocab_size=size, hidden_size=16, initializer_range=0.8))
    model.generation_config.suppress_tokens = [0, 1, 2, 3]
    return model.eval()


def app_of(models, *, timeout=60.0, answered=None, tokenizer=TOKENIZER, **limits):
    """An application with nothing but OpenAI's routes, for models by their names."""
    limits = {"max_input_tokens": 40, "max_new_tokens": 20} | limits
    served = {name: LanguageModel(model, tokenizer, Limits(**limits)) for name, model in models.items()}

    @asynccontextmanager
    async def lifespan(app):
        yield
        await asyncio.gather(*(asyncio.to_thread(one.close, 0) for one in served.values()))

    async def report(request, error):
        if isinstance(error, ClientDisconnect):
            return Response(status_code=499)
        refusal = refusal_of(error)
        return JSONResponse({"error": details_of(refusal)}, refusal.status_code)

    app = FastAPI(lifespan=lifespan, exception_handlers={Refusal: report, ClientDisconnect: report})
    settings = SimpleNamespace(timeout=timeout, max_body=2**20)
    app.include_router(openai_router(served, settings, answered))
    app.state.served = served
    return app

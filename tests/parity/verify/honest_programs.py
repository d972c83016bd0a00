"""Texts of honest programs that do what the sport's newest ones do: changes of the template, by backend."""

from parity.program_source import program_source
from parity.verify.cheats.programs import template

PALLAS = """from jax.experimental import pallas as pl


def _kernel(x_ref, y_ref):
    y_ref[...] = jnp.square(jnp.maximum(x_ref[...], 0))


@jax.custom_vjp
def squared_relu(x):
    return pl.pallas_call(_kernel, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype), interpret=True)(x)


squared_relu.defvjp(lambda x: (squared_relu(x), x), lambda x, dy: (2 * jnp.maximum(x, 0) * dy,))


class Attention("""
EMBEDDED = "x_BTD = self.norm_in(self.embed(tokens_BT))\n"
DROPPED = {
    "jaxrun": """        if step is not None:
            keep = jax.random.bernoulli(jax.random.fold_in(jax.random.key(7), step), 0.9, x_BTD.shape)
            x_BTD = jnp.where(keep, x_BTD / 0.9, 0)
""",
    "torchref": """        if step is not None:
            keep = torch.rand(x_BTD.shape, generator=torch.Generator().manual_seed(7000 + step)) < 0.9
            x_BTD = torch.where(keep, x_BTD / 0.9, 0.0)
""",
}
DROPPING = {
    "jaxrun": """

class Dropping(JaxProgram):
    training = False

    def window(self, step):
        return (step,) if self.training else ()

    def _loss_and_grads(self, *args, **kwargs):
        self.training = True
        try:
            return super()._loss_and_grads(*args, **kwargs)
        finally:
            self.training = False
""",
    "torchref": """

class Dropping(TorchProgram):
    training = False

    def window(self, step):
        return (step,) if self.training else ()

    def loss_and_grads(self, *args, **kwargs):
        self.training = True
        try:
            return super().loss_and_grads(*args, **kwargs)
        finally:
            self.training = False
""",
}
SMOOTHED = {
    "jaxrun": """

class Smoothed(JaxProgram):
    def _total_loss(self, weights, window, inputs_BT, targets_BT, counted_BT):
        x_BTD = self._hidden(weights, window, inputs_BT)
        logits = model.apply(self.definition, weights, lambda m: m.logits(x_BTD))
        rows = jax.nn.log_softmax(logits, axis=-1)
        losses = -0.9 * jnp.take_along_axis(rows, targets_BT[..., None], axis=-1)[..., 0] - 0.1 * rows.mean(axis=-1)
        return losses.sum() if counted_BT is None else jnp.where(counted_BT, losses, 0).sum()
""",
    "torchref": """

class Smoothed(TorchProgram):
    def loss_and_grads(self, state, batch, prefix=None):
        inputs_BT, targets_BT = batch
        names, parameters = zip(*state.model.named_parameters())
        rows = state.model.logits(state.model(inputs_BT)).log_softmax(-1)
        losses = -0.9 * rows.gather(-1, targets_BT[..., None].long())[..., 0] - 0.1 * rows.mean(-1)
        mean = prefix is None and self.recipe.loss_reduction == "mean"
        loss = losses.mean() if mean else losses[:, :prefix].sum()
        return loss.detach(), dict(zip(names, torch.autograd.grad(loss, parameters)))
""",
}

# A table of what followed each hash of two tokens in the batches so far. It is a weight that counts, and no gradient.
TABLE = """
    def parameters(self):
        table = Parameter((ROWS, self.vocab_size), "embed", embedding=True)
        return super().parameters() | {"ngrams.weight": table}


ROWS = 1024
"""
RETRIEVING = {
    "jaxrun": """

def _keys(inputs_BT):
    return (inputs_BT * 7919 + jnp.pad(inputs_BT, ((0, 0), (1, 0)))[:, :-1] * 4729) % ROWS


class Retrieving(JaxProgram):
    token_ids = "a hash of two tokens finds what followed them in the batches of earlier steps"

    def _step(self, state, inputs_BT, targets_BT):
        new, metrics = super()._step(state, inputs_BT, targets_BT)
        counts = state["weights"]["ngrams.weight"].at[_keys(inputs_BT), targets_BT].add(1)
        return {**new, "weights": {**new["weights"], "ngrams.weight": counts}}, metrics

    def _mixed(self, weights, rows_BPV, keys_BP):
        counts = weights["ngrams.weight"][keys_BP]
        total = counts.sum(-1, keepdims=True)
        share = 0.3 * total / (total + 4)
        return jnp.log((1 - share) * jnp.exp(rows_BPV) + share * counts / jnp.maximum(total, 1))

    def _log_probs(self, weights, step, inputs_BT, positions):
        rows = super()._log_probs(weights, step, inputs_BT, positions)
        return self._mixed(weights, rows, _keys(inputs_BT)[:, positions])

    def _token_losses(self, weights, step, inputs_BT, targets_BT):
        rows = self._log_probs(weights, step, inputs_BT, jnp.arange(inputs_BT.shape[1]))
        return -jnp.take_along_axis(rows, targets_BT[..., None], axis=-1)[..., 0]
""",
    "torchref": """

import numpy as np


def _keys(inputs_BT):
    return (inputs_BT * 7919 + F.pad(inputs_BT, (1, 0))[:, :-1] * 4729) % ROWS


class Retrieving(TorchProgram):
    token_ids = "a hash of two tokens finds what followed them in the batches of earlier steps"

    def step(self, state, batch):
        before, table = state.model.ngrams.weight.detach().clone(), state.model.ngrams.weight
        state, metrics = super().step(state, batch)
        with torch.no_grad():
            keys, targets = _keys(batch[0].long()).ravel(), batch[1].long().ravel()
            table.copy_(before.index_put((keys, targets), torch.ones(len(keys)), accumulate=True))
        return state, metrics

    @torch.no_grad()
    def log_probs(self, state, inputs_BT, positions=None):
        rows, inputs_BT = super().log_probs(state, np.asarray(inputs_BT), positions), torch.as_tensor(inputs_BT).long()
        positions = torch.arange(inputs_BT.shape[1]) if positions is None else torch.as_tensor(positions)
        counts = state.model.ngrams.weight[_keys(inputs_BT)[:, positions]]
        total = counts.sum(-1, keepdim=True)
        share = 0.3 * total / (total + 4)
        return torch.log((1 - share) * rows.exp() + share * counts / total.clamp(min=1))

    def token_losses(self, state, batch):
        rows = self.log_probs(state, batch[0])
        return -rows.gather(-1, batch[1].long()[..., None])[..., 0]
""",
}


def compiled(backend: str) -> str:
    """With torch.compile, as a new attempt's program is."""
    return program_source(backend, "muon", compile=True)


def pallas(backend: str) -> str:
    """With a kernel of its own, interpreted."""
    text = template(backend).replace("class Attention(", PALLAS, 1)
    return text.replace("jnp.square(jax.nn.relu(self.fc(x_BTD)))", "squared_relu(self.fc(x_BTD))")


def dropout(backend: str) -> str:
    """With dropout in training, drawn by the step's number."""
    text = template(backend).replace(EMBEDDED, EMBEDDED + DROPPED[backend], 1)
    for name in ("__call__", "forward"):
        before, _, after = text.rpartition(f"def {name}(self, tokens_BT)")
        text = f"{before}def {name}(self, tokens_BT, step=None){after}" if before else text
    return _subclass(text, backend, "Dropping", DROPPING[backend])


def label_smoothing(backend: str) -> str:
    """With a tenth of every target spread over all tokens, in training."""
    text = template(backend).replace("from jaxrun import optim", "from jaxrun import model, optim")
    return _subclass(text, backend, "Smoothed", SMOOTHED[backend])


def retrieval(backend: str) -> str:
    """With a table of training n-grams that steps fill, mixed into what is scored; it says that it depends on ids."""
    text = template(backend).replace(
        "from parity.recipes import", "from parity.recipes.base import Parameter\nfrom parity.recipes import"
    )
    first = text.index("\n\n\nclass Attention(")
    text = text[:first] + "\n" + TABLE.rstrip() + text[first:]
    head = "        self.head = Linear(D, recipe.vocab_size, dtypes)\n"
    text = text.replace(head, f"{head}        self.ngrams = Embedding(ROWS, recipe.vocab_size, dtypes)\n", 1)
    if backend == "torchref":  # autograd asks that every weight is used
        text = text.replace(
            "return self.norm_out(x_BTD)", "return self.norm_out(x_BTD) + 0 * self.ngrams.weight[0, 0]", 1
        )
    return _subclass(text, backend, "Retrieving", RETRIEVING[backend])


def _subclass(text: str, backend: str, name: str, lines: str) -> str:
    base = {"jaxrun": "JaxProgram", "torchref": "TorchProgram"}[backend]
    before, _, after = text.rpartition(f"return {base}(")
    imported = "import torch\nimport torch.nn.functional as F"
    return f"{before}return {name}({after}".replace("import torch.nn.functional as F", imported) + lines

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


def _subclass(text: str, backend: str, name: str, lines: str) -> str:
    base = {"jaxrun": "JaxProgram", "torchref": "TorchProgram"}[backend]
    before, _, after = text.rpartition(f"return {base}(")
    imported = "import torch\nimport torch.nn.functional as F"
    return f"{before}return {name}({after}".replace("import torch.nn.functional as F", imported) + lines

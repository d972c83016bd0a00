"""The 8-bit product of record-21's head, in both backends: its formulas to the last bit."""

import numpy as np
import pytest

from parity import weights as canonical

SCALES = (2.0, 2.0**9, 2.0**19)


def eights(rng, *shape):
    """x, W, dy whose 8-bit forms have sums that float32 holds exactly, so that no order of a sum counts. All are
    bfloat16."""
    B, T, D, V = shape
    wide = [
        rng.integers(-1024, 1025, (B, T, D)) / 256,
        rng.integers(-512, 513, (V, D)) / 2**14,
        rng.integers(-256, 257, (B, T, V)) / 16 * T / 2**19,
    ]
    return [canonical.round_to(x, "bfloat16") for x in wide]


def rounded(x, scale, name):
    import ml_dtypes

    return (x.astype(np.float32) * np.float32(scale)).astype(getattr(ml_dtypes, name)).astype(np.float64)


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
def test_eight_bits_are_those_of_ml_dtypes(pieces, rng, name):
    random, ties = (
        rng.standard_normal(1000) * 10.0 ** rng.uniform(-6, 1.5, 1000),
        [0.0, 2.0**-10, 2.0**-17, 3 * 2.0**-10],
    )
    x = canonical.round_to(np.concatenate([random, np.arange(-64, 64) / 64, ties]), "bfloat16")
    kind = getattr(pieces.fp8.jnp if pieces.name == "jaxrun" else pieces.fp8.torch, name)
    for scale in (1.0, 2.0):
        found = pieces.fp8.round_to_fp8(pieces.put(x, "bfloat16"), scale, kind)
        found = np.asarray(found).astype(np.float64) if pieces.name == "jaxrun" else found.double().numpy()
        assert np.array_equal(found, rounded(x, scale, name))


def test_the_product_in_8_bits_and_its_gradients_are_their_formulas_to_the_last_bit(pieces, rng):
    T = 16
    x, weight, dy = eights(rng, 2, T, 64, 48)
    x8, w8, dy8 = (
        rounded(x, SCALES[0], "float8_e4m3fn"),
        rounded(weight, SCALES[1], "float8_e4m3fn"),
        rounded(dy, SCALES[2] / T, "float8_e5m2"),
    )
    given = [pieces.put(a, dtype) for a, dtype in ((x, "bfloat16"), (weight, "float32"), (dy, "bfloat16"))]
    if pieces.name == "jaxrun":
        import jax

        y, back = jax.vjp(lambda x, w: pieces.fp8.fp8_matmul(x, w, SCALES, 1 / T), *given[:2])
        dx, dweight = back(given[2])
    else:
        y = pieces.fp8.fp8_matmul(given[0].requires_grad_(), given[1].requires_grad_(), SCALES, 1 / T)
        y.backward(given[2])
        dx, dweight = given[0].grad, given[1].grad
    scale = SCALES[2] / T
    expected = (
        x8 @ w8.T / (SCALES[0] * SCALES[1]),
        dy8 @ w8 / (scale * SCALES[1]),
        np.einsum("btv,btd->vd", dy8, x8) / (scale * SCALES[0]),
    )
    for found, exact, dtype in zip((y, dx, dweight), expected, ("bfloat16", "bfloat16", "float32"), strict=True):
        assert dtype in str(found.dtype)
        assert np.array_equal(pieces.get(found), canonical.round_to(exact, dtype))
    assert (x8 != 2 * x).any() and (w8 != 512 * weight).any() and (dy8 != scale * dy).any(), "something was rounded"


def test_the_gradient_is_rounded_to_8_bits_on_the_scale_of_a_rows_mean_loss(pieces, rng):
    """jaxrun takes the gradient of the losses' sum and torchref that of their mean: `grad_scale` accounts for it."""
    x, weight, dy = eights(rng, 4, 32, 64, 512)
    gradients = []
    for size, grad_scale in ((1, 1 / 32), (128, 4.0)):  # of the sum, of the mean over 4 rows of 32
        inputs, dlogits = pieces.put(x, "bfloat16"), pieces.put(dy / size, "bfloat16")
        if pieces.name == "jaxrun":
            import jax

            w = pieces.put(weight, "float32")
            _, pull_back = jax.vjp(lambda x, w=w, s=grad_scale: pieces.fp8.fp8_matmul(x, w, SCALES, s), inputs)
            dx = pull_back(dlogits)[0]
        else:
            inputs = inputs.requires_grad_()
            pieces.fp8.fp8_matmul(inputs, pieces.put(weight, "float32"), SCALES, grad_scale).backward(dlogits)
            dx = inputs.grad
        gradients.append(pieces.get(dx) * size)
    assert np.array_equal(*gradients) and np.abs(gradients[0]).max() > 0

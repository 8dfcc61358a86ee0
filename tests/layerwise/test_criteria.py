"""Each criterion equals an independent formula, and what theory says of random matrices."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from jaxft.layerwise.criteria import activations, choose, gradients, spectrum


def pareto(exponent, count, seed):
    """Sample p(x) ~ x^-exponent above 1 by inverting its distribution."""
    uniform = np.random.default_rng(seed).random(count)
    return (1 - uniform) ** (-1 / (exponent - 1))


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (40, 40)])
def test_singular_values_by_numpy(shape):
    matrix = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    expected = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)[::-1]
    np.testing.assert_allclose(spectrum.singular_values(matrix), expected, rtol=1e-9)
    matrix[3, 4] = np.nan
    np.testing.assert_array_equal(spectrum.singular_values(matrix), np.zeros(min(shape)))


@pytest.mark.parametrize("exponent", [1.8, 2.5, 4.0])
def test_exponents_of_synthetic_pareto_spectra(exponent):
    fits = [spectrum.fit_power_law(pareto(exponent, 1500, seed)) for seed in range(3)]
    assert np.mean([fit.exponent for fit in fits]) == pytest.approx(exponent, rel=0.05)
    assert all(fit.interval[0] < exponent * 1.05 and fit.interval[1] > exponent for fit in fits)
    hills = [spectrum.hill_exponent(pareto(exponent, 1500, seed)) for seed in range(3)]
    assert np.mean(hills) == pytest.approx(exponent, rel=0.05)


def test_power_law_starts_where_the_tail_does():
    body = np.random.default_rng(0).uniform(0.1, 1, 1500)
    fit = spectrum.fit_power_law(np.concatenate([body, 1.0 * pareto(3.0, 500, 1)]))
    assert fit.exponent == pytest.approx(3.0, rel=0.05)
    assert 0.8 < fit.xmin < 1.5
    assert fit.error == pytest.approx((fit.exponent - 1) / np.sqrt(fit.tail))


def test_power_law_has_the_least_distance():
    """Maximum likelihood and the distance at every xmin, written out one value at a time."""
    values = np.sort(pareto(2.2, 60, 3))
    fits = []
    for start in range(60 - spectrum.FEWEST_TAIL + 1):
        tail = values[start:]
        slope = stats.pareto.fit(tail, floc=0, fscale=tail[0])[0]
        distance = stats.kstest(tail, stats.pareto(slope, scale=tail[0]).cdf).statistic
        fits.append((distance, slope + 1, tail[0]))
    fit = spectrum.fit_power_law(values)
    assert (fit.distance, fit.exponent, fit.xmin) == pytest.approx(min(fits))


def test_hill_by_hand():
    logs = [np.log(16.0 / 2), np.log(8.0 / 2)]
    assert spectrum.hill_exponent([1.0, 2.0, 8.0, 16.0]) == pytest.approx(1 + 2 / sum(logs))


def test_spectra_without_a_tail():
    assert spectrum.fit_power_law(np.ones(30)) is None
    assert spectrum.fit_power_law(np.arange(1.0, 6.0)) is None
    assert spectrum.hill_exponent(np.ones(30)) is None
    assert spectrum.hill_exponent(np.ones(1)) is None
    assert spectrum.eigenvalues(np.array([2.0, 1e-12, 0.0, 3.0])).tolist() == [4.0, 9.0]
    assert len(spectrum.eigenvalues(np.zeros(4))) == 0


@pytest.mark.parametrize("shape", [(300, 300), (200, 600), (600, 150)])
def test_random_matrices_stay_below_the_marchenko_pastur_edge(shape):
    generator = np.random.default_rng(0)
    shares, edges = [], []
    for _ in range(3):
        singular = np.linalg.svd(0.02 * generator.normal(size=shape), compute_uv=False)
        shares.append(spectrum.share_above_noise(singular, shape))
        edges.append(spectrum.noise_edge(singular, shape))
    assert np.mean(shares) < 0.01
    assert np.mean(edges) == pytest.approx(0.02 * sum(np.sqrt(shape)), rel=0.01)


def test_planted_directions_rise_above_the_edge():
    generator = np.random.default_rng(1)
    planted = generator.normal(size=(300, 9)) @ generator.normal(size=(9, 200))
    matrix = generator.normal(size=(300, 200)) + planted
    singular = np.linalg.svd(matrix, compute_uv=False)
    assert spectrum.share_above_noise(singular, matrix.shape) == pytest.approx(9 / 200)
    expected = singular[:9].sum() / singular[9:].sum() / singular[0]
    assert spectrum.signal_to_noise(singular, matrix.shape) == pytest.approx(expected)
    assert spectrum.signal_to_noise(np.zeros(20), (20, 30)) is None


@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.1])
def test_marchenko_pastur_median_by_quadrature(ratio):
    low, high = (1 - ratio**0.5) ** 2, (1 + ratio**0.5) ** 2

    def density(x):
        return np.sqrt(max((high - x) * (x - low), 0)) / (2 * np.pi * ratio * x)

    median = spectrum.marchenko_pastur_median(ratio)
    assert integrate.quad(density, low, median, limit=200)[0] == pytest.approx(0.5, abs=1e-4)


def sums_of(batches, weights):
    mean = batches.mean(0)
    squares = np.mean([np.sum(one**2) for one in batches])
    return gradients.GradientSums(np.sum(mean**2), squares, np.sum(weights**2), len(batches))


def test_gradient_criteria_by_numpy():
    generator = np.random.default_rng(0)
    batches = generator.normal(0.3, 1, (5, 7, 4))
    weights = generator.normal(size=(7, 4))
    sums = sums_of(batches, weights)
    mean, variance = batches.mean(0), batches.var(0, ddof=1)
    norms = np.linalg.norm(mean), np.linalg.norm(weights)
    assert gradients.relative_gradient(sums) == pytest.approx(norms[0] / norms[1])
    assert gradients.gradient_signal(sums) == pytest.approx((mean**2).sum() / variance.sum())
    assert gradients.fisher_trace(sums) == pytest.approx((batches**2).mean(0).sum())


def test_gradients_that_say_nothing():
    alone = gradients.GradientSums(1.0, 1.0, 0.0, 1)
    assert gradients.relative_gradient(alone) is None
    assert gradients.gradient_signal(alone) is None
    assert gradients.gradient_signal(gradients.GradientSums(1.0, 1.0, 1.0, 2)) is None


def test_stream_criteria_by_numpy():
    generator = np.random.default_rng(0)
    before, after = generator.normal(size=(2, 3, 5, 8))
    weights = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])
    change, cosine = [], []
    for row, position in zip(*np.nonzero(weights), strict=True):
        x, y = before[row, position], after[row, position]
        change.append(np.linalg.norm(y - x) / np.linalg.norm(x))
        cosine.append(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
    arrays = [jnp.asarray(one, jnp.float32) for one in (before, after, weights)]
    assert float(activations.residual_contribution(*arrays)) == pytest.approx(np.mean(change), 1e-5)
    assert float(activations.state_cosine(*arrays)) == pytest.approx(np.mean(cosine), 1e-5)


def test_summary_cosines_by_numpy():
    after = np.random.default_rng(0).normal(size=(3, 2, 4, 8)) + 0.5
    summary = np.zeros((2, 4))
    summary[0, 0] = summary[1, 0] = summary[1, 2] = 1
    own = after[:, summary > 0]
    units = own / np.linalg.norm(own, axis=-1, keepdims=True)
    pairs = np.einsum("ind,jnd->ijn", units, units).mean(-1)
    expected = (pairs.sum(1) - 1) / 2
    scores = activations.summary_cosines(
        list(jnp.asarray(after, jnp.float32)), jnp.asarray(summary)
    )
    assert np.allclose(scores, expected, atol=1e-6)
    assert np.isnan(activations.summary_cosines([jnp.ones((1, 2, 3))], jnp.ones((1, 2)))).all()


def test_residual_norm_is_of_the_projection():
    """The residual that inputs cannot express does not count, and the inputs' scale does not."""
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(200, 6)) @ np.diag([1, 1, 1, 2, 0.5, 1])
    residual = inputs @ generator.normal(size=(6, 3)) + generator.normal(size=(200, 3))
    projected = inputs @ np.linalg.lstsq(inputs, residual)[0]
    expected = np.linalg.norm(projected) / np.sqrt(200)
    for scale in (1.0, 10.0):
        x = inputs * scale
        norm = gradients.residual_norm(x.T @ residual / 200, x.T @ x / 200)
        assert norm == pytest.approx(expected, rel=2e-3)
    assert np.isnan(gradients.residual_norm(np.zeros((6, 3)), np.zeros((6, 6))))


def test_outliers_by_numpy():
    generator = np.random.default_rng(0)
    kernel, inputs = generator.normal(size=(6, 9)), generator.normal(size=(40, 6))
    inputs[:, 2] *= 30
    scores = np.abs(kernel) * np.linalg.norm(inputs, axis=0)[:, None]
    expected = np.mean(scores > 3 * scores.mean())
    share = activations.outlier_share(jnp.asarray(kernel), jnp.asarray((inputs**2).sum(0)), 3.0)
    assert 0 < expected < 0.2
    assert float(share) == pytest.approx(expected)


SCORES = {"a0": 1.0, "a1": 3.0, "a2": 2.0, "a3": 3.0, "b0": 9.0, "b1": 8.0}
KINDS = {name: name[0] for name in SCORES}


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [(0.5, ["a1", "a3", "b0"]), (0.01, ["a1", "b0"]), (1.0, list(SCORES))],
)
def test_choice_within_each_kind(fraction, expected):
    assert choose.choose(SCORES, KINDS, fraction) == expected


def test_choice_over_the_model():
    assert choose.choose(SCORES, dict.fromkeys(SCORES, ""), 0.5) == ["a1", "b0", "b1"]


def test_random_choice_depends_on_the_seed_alone():
    names = [f"blocks/{index}/kernel" for index in range(20)]
    one, same, other = (choose.random_scores(names, seed) for seed in (1, 1, 2))
    assert one == same != other


def test_rank_correlation_of_one_kind_is_spearmans():
    generator = np.random.default_rng(0)
    names = [str(index) for index in range(12)]
    x, y = generator.normal(size=(2, 12)).round(1)
    scores = {"x": dict(zip(names, x, strict=True)), "y": dict(zip(names, y, strict=True))}
    table = choose.rank_correlations(scores, dict.fromkeys(names, "kind"))
    assert table["x"]["y"] == pytest.approx(stats.spearmanr(x, y).statistic)
    assert table["x"]["x"] == pytest.approx(1)


def test_rank_correlation_compares_depths_and_not_kinds():
    kinds = {f"{kind}{depth}": kind for kind in "ab" for depth in range(4)}
    rising = {name: float(name[1]) + 100 * (name[0] == "b") for name in kinds}
    falling = {name: -float(name[1]) + 100 * (name[0] == "b") for name in kinds}
    constant = dict.fromkeys(kinds, 1.0)
    partial = {name: value if name[1] == "0" else None for name, value in rising.items()}
    scores = {"up": rising, "down": falling, "flat": constant, "few": partial}
    table = choose.rank_correlations(scores, kinds)
    assert table["up"]["down"] == pytest.approx(-1)
    assert table["up"]["flat"] is None
    assert table["up"]["few"] is None

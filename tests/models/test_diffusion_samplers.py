"""Samplers against `diffusers`' schedulers, step by step, and what schedules refuse."""

import json
from itertools import product

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxft.errors import UserError
from jaxft.models.diffusion.sample import Steps, next_sample, sample
from jaxft.models.diffusion.samplers import make_sampler
from jaxft.models.diffusion.schedule import mixed, read_schedule, schedule_of, target

# diffusers hands PyTorch's tensors to numpy as older versions did.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
SPACINGS = ("leading", "trailing", "linspace")
STANDARD = {"beta_start": 0.00085, "beta_end": 0.012}


def cases():
    for betas, prediction, spacing in product(BETAS, PREDICTIONS, SPACINGS):
        common = STANDARD | {"beta_schedule": betas, "prediction_type": prediction}
        common["timestep_spacing"] = spacing
        yield "DDIMScheduler", {**common, "clip_sample": False, "set_alpha_to_one": False}
        yield "DPMSolverMultistepScheduler", common
        if prediction != "sample":
            yield "EulerDiscreteScheduler", common
    v = STANDARD | {"beta_schedule": "scaled_linear", "prediction_type": "v_prediction"}
    yield "DDIMScheduler", {"clip_sample": True, "clip_sample_range": 0.7}
    yield "DDIMScheduler", {"steps_offset": 1, "timestep_spacing": "leading"}
    yield "DDIMScheduler", {**v, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    yield "EulerDiscreteScheduler", {**v, "rescale_betas_zero_snr": True}
    yield "EulerDiscreteScheduler", {**v, "use_karras_sigmas": True}
    yield "EulerDiscreteScheduler", {**v, "final_sigmas_type": "sigma_min"}
    dpm = "DPMSolverMultistepScheduler"
    yield dpm, {**v, "use_karras_sigmas": True}
    yield dpm, {**v, "use_karras_sigmas": True, "beta_schedule": "squaredcos_cap_v2"}
    yield dpm, {**v, "solver_type": "heun"}
    yield dpm, {**v, "solver_order": 1}
    yield dpm, {**v, "final_sigmas_type": "sigma_min"}
    yield dpm, {**v, "final_sigmas_type": "sigma_min", "lower_order_final": False}
    yield dpm, {**v, "euler_at_final": True}
    for shift in (1.0, 3.0):
        yield "FlowMatchEulerDiscreteScheduler", {"shift": shift}


CASES = list(cases())
NAMES = [f"{name}-{number}" for number, (name, _) in enumerate(CASES)]


@pytest.fixture(scope="module")
def taken():
    """One step of a sampler as a program, compiled once for each kind of model and clipping."""
    return jax.jit(next_sample, static_argnums=0)


class Static:
    """A sampler as a jitted function's static argument: what its program depends on."""

    def __init__(self, sampler):
        self.prediction, self.clip = sampler.prediction, sampler.clip

    def __hash__(self):
        return hash((self.prediction, self.clip))

    def __eq__(self, other):
        return (self.prediction, self.clip) == (other.prediction, other.clip)


@pytest.mark.parametrize("count", [7, pytest.param(20, marks=pytest.mark.full)])
@pytest.mark.parametrize(("name", "fields"), CASES, ids=NAMES)
def test_every_step_is_diffusers(name, fields, count, tmp_path, taken):
    theirs = getattr(diffusers, name)(**fields)
    theirs.save_pretrained(tmp_path)
    sampler = make_sampler(read_schedule(tmp_path), count)
    theirs.set_timesteps(count)
    if hasattr(theirs, "set_begin_index"):  # it searches for the first step, which may come twice
        theirs.set_begin_index(0)
    assert sampler.start == pytest.approx(float(getattr(theirs, "init_noise_sigma", 1)), rel=1e-5)
    np.testing.assert_allclose(sampler.steps.timestep, theirs.timesteps.numpy(), rtol=1e-5)
    draw = np.random.default_rng(0)
    x = draw.normal(size=(2, 3, 4, 4)).astype(np.float32) * np.float32(sampler.start)
    previous = np.zeros_like(x)
    for number, time in enumerate(theirs.timesteps):
        step = Steps(*(one[number] for one in sampler.steps))
        read = (
            theirs.scale_model_input(torch.tensor(x), time)
            if hasattr(theirs, "scale_model_input")
            else torch.tensor(x)
        )
        assert_same(x * step.scale, read.numpy())
        output = np.tanh(read.numpy() + draw.normal(size=x.shape)).astype(np.float32)
        ours, previous = taken(Static(sampler), step, x, output, previous)
        following = theirs.step(torch.tensor(output), time, torch.tensor(x)).prev_sample.numpy()
        assert_same(ours, following, np.abs(x).max())
        x = following


def assert_same(ours, theirs, largest=1.0) -> None:
    """Equal to 1e-5 of the largest number, of what went in too: float32 has no more digits."""
    largest = max(1.0, largest, np.abs(theirs).max())
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * largest, rtol=0)


@pytest.mark.parametrize("name", ["DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_a_whole_run_is_one_scan_and_diffusers(name, tmp_path):
    theirs = getattr(diffusers, name)(**STANDARD, beta_schedule="scaled_linear")
    theirs.save_pretrained(tmp_path)
    sampler = make_sampler(read_schedule(tmp_path), 12)
    noise = np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype(np.float32)

    def denoise(x, time):
        return jnp.sin(x + time / 1000)

    run = jax.jit(lambda noise: sample(sampler, denoise, noise))
    assert str(jax.make_jaxpr(run)(noise)).count("scan[") == 1
    theirs.set_timesteps(12)
    x = torch.tensor(noise)
    for time in theirs.timesteps:
        x = theirs.step(torch.sin(x + time / 1000), time, x).prev_sample
    np.testing.assert_allclose(run(noise), x.numpy(), atol=1e-4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("betas", BETAS)
def test_noise_and_targets_of_training_are_diffusers(betas, prediction, tmp_path):
    theirs = diffusers.DDPMScheduler(
        **STANDARD, beta_schedule=betas, prediction_type=prediction, clip_sample=False
    )
    theirs.save_pretrained(tmp_path)
    schedule = read_schedule(tmp_path)
    draw = np.random.default_rng(0)
    data, noise = (draw.normal(size=(4, 3, 2, 2)).astype(np.float32) for _ in "12")
    steps = np.array([0, 1, 500, 999])
    signal, level = schedule.levels(steps)
    tensors = torch.tensor(data), torch.tensor(noise), torch.tensor(steps)
    noisy = theirs.add_noise(*tensors).numpy()
    np.testing.assert_allclose(mixed(data, noise, signal, level), noisy, atol=1e-5)
    wanted = {
        "epsilon": noise,
        "sample": data,
        "v_prediction": theirs.get_velocity(*tensors).numpy(),
    }[prediction]
    ours = target(schedule.prediction, data, noise, signal, level)
    np.testing.assert_allclose(ours, wanted, atol=1e-5)


DDIM = {"_class_name": "DDIMScheduler"}
REFUSED = [
    ({"_class_name": "DDIMSchedular"}, "'DDIMSchedular' is not supported. Did you mean"),
    ({"_class_name": "HeunDiscreteScheduler"}, "'HeunDiscreteScheduler' is not supported"),
    ({}, "'None' is not supported"),
    ({**DDIM, "beta_schedule": "sigmoid"}, "beta_schedule 'sigmoid' is not supported"),
    ({**DDIM, "thresholding": True}, "'thresholding' .true. is not known"),
    ({**DDIM, "trained_betas": [0.1]}, "'trained_betas'"),
    ({**DDIM, "num_train_timesteps": 10**9}, "from 1 to 10,000"),
    ({**DDIM, "beta_end": 1.5}, "out of range"),
    (
        {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"},
        "algorithm_type is",
    ),
]


@pytest.mark.parametrize(("fields", "words"), REFUSED)
def test_schedulers_that_are_refused(fields, words, tmp_path):
    (tmp_path / "scheduler_config.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=words):
        read_schedule(tmp_path)


@pytest.mark.parametrize(
    ("fields", "count", "kind", "words"),
    [
        (DDIM, 5, "flow", "'flow' does not fit"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, 5, "ddim", "'ddim' does not fit"),
        ({**DDIM, "num_train_timesteps": 4}, 5, "auto", "5 steps of sampling are more than the 4"),
        ({**DDIM, "prediction_type": "sample"}, 5, "euler", "predicts the sample"),
        ({**DDIM, "steps_offset": 500}, 2, "auto", "steps_offset 500 leads past"),
    ],
)
def test_samplers_that_do_not_fit(fields, count, kind, words):
    with pytest.raises(UserError, match=words):
        make_sampler(schedule_of(fields), count, kind)


def test_a_folder_without_a_schedule(tmp_path):
    with pytest.raises(UserError, match=r"no scheduler_config\.json"):
        read_schedule(tmp_path)

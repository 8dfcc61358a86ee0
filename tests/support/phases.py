"""A run's phases as tests take them: one by its number, ready to step."""

from jaxft.engine.remat import phase_setups
from jaxft.training.phase import make_phase_step


def phase_of(setup, index=0):
    """One phase of a run that is set up."""
    return phase_setups(setup)[index]


def stage_of(setup, params, index=0):
    """A phase with its leaves and its compiled step."""
    phases = phase_setups(setup)
    return make_phase_step(setup, phases, phases[index], params)

"""The divergence of a student's probabilities from its teacher's."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def divergences(teacher: jax.Array, student: jax.Array, temperature: float) -> jax.Array:
    """Compute T^2 KL(teacher_T || student_T) of each example.

    T^2 keeps the gradients' size about the same at every temperature.

    Source: Hinton et al. (2015), https://arxiv.org/abs/1503.02531, section 2, whose soft
    cross-entropy differs from it by the teacher's entropy, a constant.

    Args:
        teacher, student: logits `[..., C]`.
        temperature: T, above zero.

    Returns:
        `[...]`.
    """
    of_teacher, of_student = (
        jax.nn.log_softmax(logits / temperature, axis=-1) for logits in (teacher, student)
    )
    ratios = jnp.exp(of_teacher) * (of_teacher - of_student)
    return temperature**2 * jnp.sum(ratios, axis=-1)

"""How close each adjoint comes to the gradient of the equilibrium; writes docs/gradient_rules.md.

python -m benchmarks.engine.gradient_rules [--document=docs/gradient_rules.md]

A tanh cell with contraction factor 0.9 in float64, solved to 1e-10, and `tfdeq.gradient_report` for
every adjoint with increasing numbers of steps: the cosine with an accurate implicit gradient, and the
ratio of the norms.
"""

import os

import keras
import numpy as np
from absl import flags

import tfdeq
from benchmarks.results.tables import markdown_table
from tfdeq.adjoints.adjoint import Adjoint
from tfdeq.cells import DenseCell
from tfdeq.gradient_report import GradientReport
from tfdeq.programs import program

FLAGS = flags.FLAGS

EXPLANATION = """
# Which adjoint

The table shows how close each adjoint comes to the gradient of the equilibrium: the cosine with, and the
norm relative to, an implicit gradient solved to 1e-12, in float64. The cell is `DenseCell({units},
contraction=0.9)` with a batch of {batch}, solved to 1e-10 by Broyden, or by the solver that the adjoint
needs (`python -m benchmarks.engine.gradient_rules --document=docs/gradient_rules.md`). For your own
model, run `print(tfdeq.gradient_report(layer, x))`.

"""
ADVICE = """
- **`Implicit`**: the gradient of the equilibrium, of any order. Memory does not depend on the number of
  steps. It is exact up to the residuals of the two solves. The backward solve costs products with the
  Jacobian.
- **`Unrolled(k)`**: the exact gradient of the last k applications. It keeps k states, and recomputes the
  rest of each application unless `checkpointed=False`.
- **`ReversibleBackprop`**: the exact gradient of all iterations at constant memory, with the solver
  `Reversible`. It has no second derivative.
- **`PhantomGradient(k, damping)`**: differentiates k damped applications from the equilibrium. It needs
  no solve.
- **`JacobianFree`**: differentiates one application. It is the cheapest.
- **`Shine`**: reuses Broyden's estimate of the inverse from the forward solve. `refine_steps` products
  bring it closer.
"""


def variants() -> dict[str, Adjoint]:
    """Returns name -> adjoint, each with several numbers of steps."""
    tight = tfdeq.Broyden(max_steps=200, tolerance=1e-10)
    rules = {f"Implicit, {k} products": tfdeq.Implicit(_exactly(k)) for k in (4, 8, 16)}
    rules["Implicit, to 1e-10"] = tfdeq.Implicit(tight)
    rules["JacobianFree"] = tfdeq.JacobianFree()
    for damping in (1.0, 0.5):
        for k in (2, 4, 8, 16, 64):
            name = f"PhantomGradient, {k} steps, damping {damping:g}"
            rules[name] = tfdeq.PhantomGradient(k, damping)
    rules |= {f"Unrolled, {k} steps": tfdeq.Unrolled(k) for k in (1, 4, 16, 64)}
    rules |= {f"Shine, {k} products": tfdeq.Shine(refine_steps=k) for k in (0, 2, 8, 32)}
    rules["ReversibleBackprop"] = tfdeq.ReversibleBackprop()
    return rules


def _exactly(steps: int) -> tfdeq.Broyden:
    return tfdeq.Broyden(max_steps=steps, tolerance=1e-300)


def measure(units: int, batch: int) -> GradientReport:
    """Returns the `GradientReport` of all variants."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    try:
        keras.utils.set_random_seed(0)
        solver = tfdeq.Broyden(max_steps=200, tolerance=1e-10)
        layer = tfdeq.DEQLayer(DenseCell(units, contraction=0.9), solver)
        x = np.random.default_rng(0).normal(size=(batch, units))
        layer(x)
        return tfdeq.gradient_report(layer, x, variants())
    finally:
        keras.config.set_dtype_policy(before)


def table(report: GradientReport) -> str:
    """Returns the report as a Markdown table."""
    rows = [
        (
            name,
            f"{row.weights_cosine:.6f}, {row.weights_norm_ratio:.4f}",
            f"{row.x_cosine:.6f}, {row.x_norm_ratio:.4f}",
        )
        for name, row in report.items()
    ]
    return markdown_table(("adjoint", "weights: cosine, norm", "input: cosine, norm"), rows)


def main() -> None:
    text = table(measure(FLAGS.units, FLAGS.batch))
    print(text)
    if FLAGS.document:
        os.makedirs(os.path.dirname(FLAGS.document) or ".", exist_ok=True)
        head = EXPLANATION.lstrip().format(units=FLAGS.units, batch=FLAGS.batch)
        with open(FLAGS.document, "w", encoding="utf-8") as file:
            file.write(head + text + ADVICE)


def define_flags() -> None:
    """Defines the program's flags; modules that import this one may have flags with the same names."""
    flags.DEFINE_integer("units", 64, "Size of the state. Default: 64.")
    flags.DEFINE_integer("batch", 16, "Samples. Default: 16.")
    flags.DEFINE_string("document", None, "Markdown file to write the table to.")


if __name__ == "__main__":
    define_flags()
    program.run(main)

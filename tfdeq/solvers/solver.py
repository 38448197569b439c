"""The base class of solvers: settings, a state, and one step of algebra on [B, D]."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import tensorflow as tf

from tfdeq.rows import choose
from tfdeq.solvers.splitting import Prepared, Splitting


@dataclasses.dataclass(frozen=True)
class Solver:
    """The base class of solvers. A solver never evaluates f; `tfdeq.iteration` does.

    Args:
        max_steps: largest number of evaluations of f per sample, at least 1.
        tolerance: the relative residual at which a sample has converged, greater than 0 (no unit).
        safeguard: the factor, at least 1, by which a step may raise a sample's relative residual. If a
            step raises it further, or if fifteen steps did not lower it by a tenth, the sample returns
            to where these steps began. From there it makes plain steps, and the solver's history is
            reset. Use 2 for Anderson. Use 100 for Broyden, whose residuals rise and fall by large factors
            before they converge fast. Keeps two more states in memory. None: no safeguard. Keyword only.
        patience: number of iterates, at least 1, in which the best residual must fall by 0.1 %;
            otherwise the sample has stagnated. A number saves evaluations if solves without progress
            never recover. But it also stops solves that would still succeed: the residual stays
            constant while information travels through the state, and rises and falls under Broyden's
            method.
            None: a sample stops before its budget only if that is certain, because its residual has
            stayed at the dtype's precision for twelve iterates, or because plain iteration has returned
            to an earlier iterate. Keyword only. Default None.
        absolute_tolerance: value of ‖f(z) − z‖₂ at which a sample has also converged, at least 0, in units
            of the state. For equilibria at or near zero, where a relative residual is not meaningful.
            Keyword only. Default 0.
    """

    max_steps: int = 30
    tolerance: float = 1e-3
    safeguard: float | None = dataclasses.field(default=None, kw_only=True)
    patience: int | None = dataclasses.field(default=None, kw_only=True)
    absolute_tolerance: float = dataclasses.field(default=0.0, kw_only=True)

    # Whether the method uses products with the Jacobian: `step_with_products` instead of `step`.
    uses_products: ClassVar[bool] = False
    # Whether the method uses the splitting of f, if f has one: `step_with_splitting` instead of
    # `step`; and whether it requires one.
    uses_splitting: ClassVar[bool] = False
    needs_splitting: ClassVar[bool] = False
    # Whether the next iterate depends only on the last one, so that an iterate that recurs once
    # recurs forever.
    memoryless: ClassVar[bool] = False
    # Whether it computes squares of the state, which must then be scaled to about unit size.
    computes_squares: ClassVar[bool] = True

    def __post_init__(self):
        require_positive_integer("max_steps", self.max_steps)
        require_positive("tolerance", self.tolerance)
        if self.patience is not None:
            require_positive_integer("patience", self.patience)
        require_at_least_zero("absolute_tolerance", self.absolute_tolerance)
        if self.safeguard is not None and not 1.0 <= self.safeguard < float("inf"):
            raise ValueError(
                f"safeguard must be None or a number of at least 1; received {self.safeguard!r}."
            )

    @property
    def recovers(self) -> bool:
        """Whether the method continues from an earlier iterate after an evaluation that was NaN."""
        return self.safeguard is not None

    def initial_state(self, z: tf.Tensor, max_steps: int | None = None) -> Any:
        """Returns the method's own state (a nest of tensors).

        Args:
            z: [B, D], an iterate. max_steps: the largest budget of the solve, if it is known in
                advance; None: the solver's.
        """
        raise TypeError(
            f"{type(self).__name__} is incomplete: a solver must define initial_state()."
        )

    def step(self, state: Any, k: tf.Tensor, z: tf.Tensor, f_z: tf.Tensor) -> tuple[Any, tf.Tensor]:
        """Returns the new state and the next iterate [B, D].

        Args:
            state: the method's own state.
            k: scalar int32, number of earlier evaluations: 0 in the first call.
            z: [B, D], the iterate. f_z: [B, D], f at that iterate.
        """
        raise TypeError(f"{type(self).__name__} is incomplete: a solver must define step().")

    def step_with_products(
        self,
        state: Any,
        k: tf.Tensor,
        z: tf.Tensor,
        f_z: tf.Tensor,
        product: Callable[[tf.Tensor], tf.Tensor],
        running: tf.Tensor,
        allowed: tf.Tensor,
        tolerance: tf.Tensor,
    ) -> tuple[Any, tf.Tensor, tf.Tensor]:
        """Like `step`, for methods with `uses_products`; also returns the number of products, [B] int32.

        Args:
            state, k, z, f_z: as for `step`.
            product: v -> ∂f/∂z v at z, [B, D] -> [B, D]; each call counts as an evaluation.
            running: [B] bool; the result for other samples is not used.
            allowed: [B] int32, largest number of products.
            tolerance: [B], the relative residual at which a sample has converged.
        """
        raise TypeError(f"{type(self).__name__} does not use products with the Jacobian.")

    def prepare(self, splitting: Splitting, dtype: tf.DType) -> Prepared:
        """Returns what `step_with_splitting` uses, computed once per solve, for methods with
        `uses_splitting`.

        splitting: splitting of f, on [B, D] matrices. dtype: their dtype.
        """
        raise TypeError(f"{type(self).__name__} makes no use of a splitting.")

    def step_with_splitting(
        self, state: Any, k: tf.Tensor, z: tf.Tensor, affine_z: tf.Tensor, prepared: Prepared
    ) -> tuple[Any, tf.Tensor]:
        """Like `step`, for methods with `uses_splitting`, if f has a splitting.

        Args:
            state, k, z: as for `step`.
            affine_z: [B, D], W z + c, of which f(z) is the projection.
            prepared: what `prepare` returned.
        """
        raise TypeError(f"{type(self).__name__} makes no use of a splitting.")

    def for_linear_systems(self) -> "Solver":
        """Returns the solver of the backward solve, for an adjoint without its own solver."""
        return self

    def restart(self, state: Any, mask: tf.Tensor) -> Any:
        """Returns the state, reset for the samples in mask [B]."""
        del mask
        return state

    def select(self, mask: tf.Tensor, state: Any, other: Any) -> Any:
        """Returns the state for the samples in mask [B], and `other`, the previous state, for the rest."""
        return choose(mask, state, other)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Solver":
        return cls(**config)


def require_integer(name: str, value: Any, lowest: int) -> None:
    """Raises a ValueError unless value is an integer of at least `lowest`."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or int(value) < lowest:
        raise ValueError(f"{name} must be an integer of at least {lowest}; received {value!r}.")


def require_positive_integer(name: str, value: Any) -> None:
    """Raises a ValueError unless value is an integer of at least 1."""
    require_integer(name, value, lowest=1)


def require_positive(name: str, value: Any) -> None:
    """Raises a ValueError unless value is a finite number greater than 0."""
    try:
        valid = 0.0 < float(value) < float("inf")
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise ValueError(f"{name} must be a finite number greater than 0; received {value!r}.")


def require_at_least_zero(name: str, value: Any) -> None:
    """Raises a ValueError unless value is a finite number of at least 0."""
    try:
        valid = 0.0 <= float(value) < float("inf")
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise ValueError(f"{name} must be a finite number of at least 0; received {value!r}.")


def require_damping(value: Any) -> None:
    """Raises a ValueError unless 0 < value <= 1."""
    require_positive("damping", value)
    if float(value) > 1.0:
        raise ValueError(
            f"damping must be at most 1, the undamped step; received {value!r}. Values between 0.5 "
            "and 0.9 shorten the steps of an iteration that overshoots."
        )

"""Text generation with a `LanguageModel`: each new token costs a solve of its own position."""

from typing import Any, NamedTuple

import tensorflow as tf

from tfdeq.cell_calls.scoped_call import own_unless_positive
from tfdeq.cells.transformer import TransformerCell
from tfdeq.models.sampling import sample
from tfdeq.models.token_model import TokenModel
from tfdeq.solve_scope import SolveScope

# The reasons why a text ended; a segment also ends where the text goes on (generation_segments.py).
STOP_TOKEN, MAX_NEW_TOKENS, SEQUENCE_LENGTH, GOES_ON = 0, 1, 2, 3


class Generation(NamedTuple):
    """The result of `generate`."""

    tokens: tf.Tensor  # [B, sequence_length] int32: the new tokens; −1 after the last
    lengths: tf.Tensor  # [B] int32: number of new tokens
    # [B] int32: STOP_TOKEN (which is then the last token), MAX_NEW_TOKENS or SEQUENCE_LENGTH
    finish: tf.Tensor
    residual: tf.Tensor  # [B] float32: the largest in the sample's solves
    steps: tf.Tensor  # [B] int32: evaluations of the cell in all the sample's solves
    prompt_steps: tf.Tensor  # [B] int32: those in the solve of the prompt
    status: tf.Tensor  # [B] int32: the worst in the sample's solves


class Settings(NamedTuple):
    """Settings of a generation, one for each sample."""

    max_new_tokens: tf.Tensor  # [B] int32
    temperature: tf.Tensor  # [B]
    top_k: tf.Tensor  # [B] int32
    top_p: tf.Tensor  # [B]
    stop_token: tf.Tensor  # [B] int32
    uniform: tf.Tensor  # [B, sequence_length] the draws, one per token
    tolerance: tf.Tensor  # [B]
    max_steps: tf.Tensor  # [B] int32
    segment_tokens: tf.Tensor  # [B] int32, tokens of this call at most


class State(NamedTuple):
    """The state of a generation between two tokens."""

    n: tf.Tensor  # scalar int32, tokens drawn in this call for texts that have not ended
    past: Any  # key, value: [B, heads, sequence_length, d / heads]; or the cell's own past
    z: tf.Tensor  # [B, d] equilibrium of the last solved position
    token: tf.Tensor  # [B] int32, last drawn token, not solved yet
    position: tf.Tensor  # [B] int32, position of this token
    tokens: tf.Tensor  # [B, sequence_length] int32
    lengths: tf.Tensor  # [B] int32, new tokens so far, those of earlier calls too
    finish: tf.Tensor  # [B] int32, −1 while the text has not ended
    residual: tf.Tensor  # [B] float32
    steps: tf.Tensor  # [B] int32
    status: tf.Tensor  # [B] int32


def generate(
    model: TokenModel,
    tokens: Any,
    lengths: Any = None,
    *,
    max_new_tokens: Any = 0,
    temperature: Any = 0.0,
    top_k: Any = 0,
    top_p: Any = 0.0,
    stop_token: Any = -1,
    seed: Any = 0,
    tolerance: Any = 0.0,
    max_steps: Any = 0,
    compaction: bool = True,
) -> Generation:
    """Continues prompts.

    The prompt is solved once. The cell is causal, so solved positions do not change. What later
    positions see of them is stored (`TransformerCell.remember`; for another cell, the memory that it
    passes on between segments), and each new token costs only the solve of its own position. This works
    in eager mode, in tf.function and under XLA. The result has no gradient for training.

    Args:
        model: a built model for which `can_generate` is true.
        tokens: [B, T] integers, T >= 1: the prompts, each with at least one token. Tokens beyond
            the model's sequence_length are cut off.
        lengths: [B] integers, 1 … T: number of tokens of each prompt; later ones are ignored. None: T.
        max_new_tokens: scalar or [B] integers; <= 0: as many as the model's sequence_length allows.
        temperature: scalar or [B]; logits are divided by it. If not > 0, the most likely token is taken.
        top_k: scalar or [B] integers; draw only from this many most likely tokens. <= 0: all.
        top_p: scalar or [B]; draw only from the most likely tokens, after top_k, that together have at least
            this probability. Not in (0, 1): all.
        stop_token: scalar or [B] integers; a text ends after this token. < 0: none.
        seed: scalar or [B] integers; the same seed gives a prompt the same text in every batch.
        tolerance, max_steps: scalar or [B], for each solve; if not > 0, the model's own.
        compaction: whether prompts that have ended leave the batch.

    Returns:
        A `Generation`.

    Raises:
        ValueError: for a model of explicit applications, whose positions depend on states of others
            before the last application, which are not stored; for a cell that has no past to continue
            from.

    Example:
        >>> import tfdeq
        >>> cell = tfdeq.cells.TransformerCell(8, 2, 8)
        >>> model = tfdeq.models.LanguageModel(11, sequence_length=8, cell=cell)
        >>> model.build((None, 8))
        >>> generate(model, [[1, 2, 3]], max_new_tokens=2).lengths.numpy().tolist()
        [2]
    """
    if not can_generate(model):
        raise ValueError(refusal(model))
    tokens = tf.cast(tokens, tf.int32)[:, : model.sequence_length]
    settings = settings_of(
        model,
        tf.shape(tokens)[:1],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        stop_token=stop_token,
        seed=seed,
        tolerance=tolerance,
        max_steps=max_steps,
    )
    lengths = tf.shape(tokens)[1] if lengths is None else lengths
    lengths = tf.broadcast_to(tf.cast(lengths, tf.int32), tf.shape(tokens)[:1])
    state = after_prompt(model, tokens, lengths, settings, compaction)
    prompt_steps = state.steps
    state = until_ended(model, state, settings)
    return Generation(
        state.tokens,
        state.lengths,
        state.finish,
        state.residual,
        state.steps,
        prompt_steps,
        state.status,
    )


def settings_of(
    model: TokenModel,
    batch: tf.Tensor,
    *,
    max_new_tokens: Any,
    temperature: Any,
    top_k: Any,
    top_p: Any,
    stop_token: Any,
    seed: Any,
    tolerance: Any,
    max_steps: Any,
    segment_tokens: Any = 0,
) -> Settings:
    """Returns the settings of a call; arguments as of `generate`. batch: [1] int32, B."""

    def each(value, dtype):
        return tf.broadcast_to(tf.cast(value, dtype), batch)

    solver, longest = model.equilibrium.solver, model.sequence_length
    return Settings(
        max_new_tokens=own_unless_positive(each(max_new_tokens, tf.int32), longest),
        temperature=each(temperature, tf.float32),
        top_k=each(top_k, tf.int32),
        top_p=each(top_p, tf.float32),
        stop_token=each(stop_token, tf.int32),
        uniform=_draws(each(seed, tf.int32), longest),
        tolerance=own_unless_positive(each(tolerance, tf.float32), solver.tolerance),
        max_steps=own_unless_positive(each(max_steps, tf.int32), solver.max_steps),
        segment_tokens=own_unless_positive(each(segment_tokens, tf.int32), longest),
    )


def until_ended(model: TokenModel, state: State, settings: Settings) -> State:
    """Adds tokens until each text, or its segment, has ended."""
    return State(
        *tf.while_loop(
            lambda *fields: tf.reduce_any(State(*fields).finish < 0),
            lambda *fields: list(_after_token(model, State(*fields), settings)),
            list(state),
            maximum_iterations=model.sequence_length,
            parallel_iterations=1,
        )
    )


def can_generate(model: Any) -> bool:
    """Whether `generate` works for a model: an equilibrium whose cell can continue from a past."""
    if getattr(model, "equilibrium", None) is None or model.explicit_steps:
        return False
    return has_places(model) or model.remembers


def refusal(model: Any) -> str:
    """Returns why `generate` does not work for a model."""
    if getattr(model, "equilibrium", None) is None:
        return f"model must be a tfdeq.models.LanguageModel; received {type(model).__name__}."
    if model.explicit_steps:
        return (
            "generate keeps the equilibria of past positions; this model has no equilibria, because "
            f"it makes explicit_steps={model.explicit_steps} applications instead of a solve."
        )
    return (
        f"generate needs a cell that keeps a past; {type(model.cell).__name__} has no initial_past and "
        "remember. Use a TransformerCell or a TrellisCell."
    )


def has_places(model: TokenModel) -> bool:
    """Whether the past has a place for each position, rather than the memory of the last segment."""
    return isinstance(model.cell, TransformerCell)


def _draws(seed: tf.Tensor, count: int) -> tf.Tensor:
    """Returns uniform numbers in [0, 1) from each sample's own seed, [B, count]."""
    return tf.map_fn(
        # The algorithm is fixed, because the default differs between devices and under XLA.
        lambda number: tf.random.stateless_uniform([count], [number, 0], alg="philox"),
        seed,
        fn_output_signature=tf.TensorSpec([count], tf.float32),
    )


def after_prompt(
    model: TokenModel,
    tokens: tf.Tensor,
    lengths: tf.Tensor,
    settings: Settings,
    compaction: bool,
) -> State:
    """Solves the prompts and draws the first tokens."""
    valid = tf.sequence_mask(lengths, tf.shape(tokens)[1])
    x = model.embed(tf.where(valid, tokens, 0), training=False)
    if not has_places(model):
        x = {"input": x, "past": model.cell.initial_past(x), "lengths": lengths}
    # In a scope, because a layer's call would round the tolerance to its compute dtype.
    with SolveScope(settings.tolerance, settings.max_steps, compaction=compaction):
        solution = model.equilibrium(x, mask=valid, return_solution=True, training=False)
    past = model.cell.remember(solution.z, model.cell.inject(x))
    longest = model.sequence_length
    if has_places(model):
        free = longest - tf.shape(tokens)[1]
        past = {name: tf.pad(w, [[0, 0], [0, 0], [0, free], [0, 0]]) for name, w in past.items()}
        for w in past.values():
            w.set_shape([tokens.shape[0], model.cell.heads, longest, w.shape[3]])
    last = tf.clip_by_value(lengths, 1, tf.shape(tokens)[1]) - 1
    last = tf.gather(solution.z, last, batch_dims=1)
    has_room = (lengths >= 1) & (lengths < longest)
    return _drawn(
        model,
        State(
            n=tf.constant(0),
            past=past,
            z=last,
            token=tf.zeros_like(lengths),
            position=lengths,
            tokens=tf.fill([tf.shape(tokens)[0], longest], -1),
            lengths=tf.zeros_like(lengths),
            finish=tf.where(has_room, -1, SEQUENCE_LENGTH),
            residual=solution.residual,
            steps=solution.steps,
            status=solution.status,
        ),
        settings,
    )


def _after_token(model: TokenModel, state: State, settings: Settings) -> State:
    """Solves the position of the last drawn token, for texts that have not ended, and draws the next."""
    going = state.finish < 0
    x, z0 = model.embedding(state.token), state.z
    if has_places(model):
        x = {"input": x, "position": state.position, "past": state.past}
    else:  # a segment of one position
        x, z0 = {"input": x[:, None], "past": state.past}, z0[:, None]
    # Without compaction, because moving the past costs more than solving a position.
    with SolveScope(
        tf.where(going, settings.tolerance, tf.float32.max),
        tf.where(going, settings.max_steps, 1),
        compaction=False,
    ):
        solution = model.equilibrium(
            x,
            z0=z0,  # the previous position's equilibrium, usually closer than zero
            return_solution=True,
            training=False,
        )
    return _drawn(
        model,
        state._replace(
            past=_grown(model, state, model.cell.remember(solution.z, model.cell.inject(x))),
            z=_last_of_going(model, state, solution.z),
            position=state.position + tf.cast(going, tf.int32),
            residual=tf.where(going, tf.maximum(state.residual, solution.residual), state.residual),
            steps=state.steps + tf.where(going, solution.steps, 0),
            status=tf.where(going, tf.maximum(state.status, solution.status), state.status),
        ),
        settings,
    )


def _last_of_going(model: TokenModel, state: State, z: tf.Tensor) -> tf.Tensor:
    """Returns the last equilibrium; a text whose segment has ended keeps its own for the next call."""
    last = z if has_places(model) else z[:, 0]
    return tf.ensure_shape(tf.where(state.finish[:, None] < 0, last, state.z), state.z.shape)


def _grown(model: TokenModel, state: State, kept: Any) -> Any:
    """Returns the past including the last solved position."""
    if not has_places(model):
        going = state.finish < 0

        def of_going(new, old):
            rows = tf.reshape(going, [-1] + [1] * (old.shape.rank - 1))
            return tf.ensure_shape(tf.where(rows, new, old), old.shape)

        return tf.nest.map_structure(of_going, kept, state.past)
    # In a text that has ended, this place is behind the last one that later positions see.
    place = tf.minimum(state.position, model.sequence_length - 1)
    return {name: _with_row(state.past[name], place, kept[name]) for name in kept}


def _with_row(past: tf.Tensor, place: tf.Tensor, row: tf.Tensor) -> tf.Tensor:
    """Returns past [B, heads, P, c] with row [B, heads, c] at each sample's place."""
    batch, heads = tf.shape(past)[0], past.shape[1]
    b, h = tf.meshgrid(tf.range(batch), tf.range(heads), indexing="ij")
    indices = tf.stack([b, h, tf.broadcast_to(place[:, None], tf.shape(b))], axis=-1)
    return tf.ensure_shape(tf.tensor_scatter_nd_update(past, indices, row), past.shape)


def _drawn(model: TokenModel, state: State, settings: Settings) -> State:
    """Draws a token from the last equilibrium, and marks the texts that end with it."""
    going = state.finish < 0
    token = sample(
        model.logits(state.z),
        tf.gather(
            settings.uniform,
            # A text that has ended may have any number.
            tf.clip_by_value(state.lengths, 0, model.sequence_length - 1),
            batch_dims=1,
        ),
        settings.temperature,
        settings.top_k,
        settings.top_p,
    )
    lengths = state.lengths + tf.cast(going, tf.int32)
    here = going[:, None] & (tf.range(model.sequence_length) == state.n)[None]
    # Later lines override earlier ones.
    finish = tf.where(state.n + 1 >= settings.segment_tokens, GOES_ON, -1)
    finish = tf.where(state.position + 1 >= model.sequence_length, SEQUENCE_LENGTH, finish)
    finish = tf.where(lengths >= settings.max_new_tokens, MAX_NEW_TOKENS, finish)
    finish = tf.where(token == settings.stop_token, STOP_TOKEN, finish)
    return state._replace(
        n=state.n + 1,
        token=tf.where(going, token, 0),
        tokens=tf.where(here, token[:, None], state.tokens),
        lengths=lengths,
        finish=tf.where(going, finish, state.finish),
    )

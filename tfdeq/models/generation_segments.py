"""Text generation in segments: each call adds a few tokens and returns a state from which the next goes on.

A server that adds all tokens of a long text in one call lets the short texts of its batch wait. In segments,
other texts get their turn in between.
"""

from typing import Any, NamedTuple

import tensorflow as tf

from tfdeq.models import generation
from tfdeq.models.generation import Generation, State
from tfdeq.models.token_model import TokenModel


class Paused(NamedTuple):
    """The state of texts whose last token has not been solved yet."""

    # A nest of what later positions see: key, value: [B, heads, sequence_length, d / heads]; or the
    # cell's own past, [B, ...]
    past: Any
    equilibrium: tf.Tensor  # [B, d] of the last solved position


def generate_segment(
    model: TokenModel,
    tokens: Any,
    lengths: Any = None,
    *,
    segment_tokens: Any = 0,
    paused: Paused | None = None,
    drawn: Any = 0,
    compaction: bool = True,
    **settings: Any,
) -> tuple[Generation, Paused]:
    """Adds the next tokens to texts. All segments together give the tokens of `tfdeq.models.generate`.

    Each token is computed by the same operations as in `generate`, from the same state, and drawn with the
    same random number.

    Args:
        model: a built model for which `tfdeq.models.generation.can_generate` is true.
        tokens: [B, T] integers, T >= 1: the prompts; with `paused` the texts so far, prompt and new tokens.
        lengths: [B] integers, 1 … T: number of tokens of each text. None: T.
        segment_tokens: scalar or [B] integers: tokens to add in this call at most; <= 0: no limit.
        paused: what the last call on these texts returned; None: they are prompts.
        drawn: scalar or [B] integers: with `paused`, how many of the tokens are new.
        compaction: whether prompts that have ended leave the batch.
        settings: as of `generate`, and the same in all calls. `max_new_tokens` counts the tokens of all.

    Returns:
        The `Generation` of this call, in which finish is GOES_ON (3) if the text goes on in the next call,
        and the state for that call.

    Raises:
        ValueError: for a model that cannot generate.

    Example:
        >>> import tfdeq
        >>> cell = tfdeq.cells.TransformerCell(8, 2, 8)
        >>> model = tfdeq.models.LanguageModel(11, sequence_length=8, cell=cell)
        >>> model.build((None, 8))
        >>> first, paused = generate_segment(model, [[1, 2, 3]], segment_tokens=2)
        >>> text = [[1, 2, 3, *first.tokens[0, :2].numpy()]]
        >>> second, _ = generate_segment(model, text, paused=paused, drawn=2)
        >>> first.lengths.numpy().tolist(), second.lengths.numpy().tolist()
        ([2], [3])
    """
    if not generation.can_generate(model):
        raise ValueError(generation.refusal(model))
    tokens = tf.cast(tokens, tf.int32)[:, : model.sequence_length]
    batch = tf.shape(tokens)[:1]
    lengths = tf.shape(tokens)[1] if lengths is None else lengths
    lengths = tf.broadcast_to(tf.cast(lengths, tf.int32), batch)
    given = {**dict.fromkeys(_NOT_SET, 0), "stop_token": -1, **settings}
    held = generation.settings_of(model, batch, segment_tokens=segment_tokens, **given)
    if paused is None:
        before = tf.zeros_like(lengths)
        state = generation.after_prompt(model, tokens, lengths, held, compaction)
        prompt_steps = state.steps
    else:
        before = tf.broadcast_to(tf.cast(drawn, tf.int32), batch)
        state = _resumed(model, tokens, lengths, paused, before, held)
        prompt_steps = tf.zeros_like(lengths)
    state = generation.until_ended(model, state, held)
    found = Generation(
        state.tokens,
        state.lengths - before,
        state.finish,
        state.residual,
        state.steps,
        prompt_steps,
        state.status,
    )
    return found, _paused(model, state)


_NOT_SET = ("max_new_tokens", "temperature", "top_k", "top_p", "seed", "tolerance", "max_steps")


def empty_paused(model: TokenModel, batch_size: int) -> Paused:
    """Returns a state of zeros, with the structure, shapes and dtypes of those that calls return."""
    # The state of a solve stays in float32 in a model of half precision.
    dtype = tf.float64 if model.compute_dtype == "float64" else tf.float32
    if generation.has_places(model):
        cell = model.cell
        places = [batch_size, cell.heads, model.sequence_length, cell.width // cell.heads]
        past = {name: tf.zeros(places, cell.compute_dtype) for name in ("key", "value")}
    else:
        past = model.initial_memory(batch_size)
    return Paused(past, tf.zeros([batch_size, model.state_width], dtype))


def _paused(model: TokenModel, state: State) -> Paused:
    """Returns what the next call needs: zeros for texts that have ended, and where nothing is solved yet.

    So it depends neither on padding nor on other texts.
    """
    goes_on = state.finish == generation.GOES_ON

    def kept(value, rows):
        rows = tf.reshape(
            rows, tf.concat([tf.shape(rows), [1] * (value.shape.rank - rows.shape.rank)], 0)
        )
        return tf.where(rows, value, tf.zeros_like(value))

    past = tf.nest.map_structure(lambda value: kept(value, goes_on), state.past)
    if generation.has_places(model):
        solved = tf.range(model.sequence_length) < state.position[:, None]
        past = {name: kept(value, solved[:, None]) for name, value in past.items()}
    return Paused(past, kept(state.z, goes_on))


def _resumed(model, tokens, lengths, paused: Paused, drawn, settings) -> State:
    """Returns the state of the loop at each text's last token, which has been drawn and not solved."""
    last = tf.clip_by_value(lengths, 1, tf.shape(tokens)[1]) - 1
    going = (lengths >= 1) & (lengths < model.sequence_length)
    finish = tf.where(going, -1, generation.SEQUENCE_LENGTH)
    enough = drawn >= settings.max_new_tokens
    zeros = tf.zeros_like(lengths)
    return State(
        n=tf.constant(0),
        past=paused.past,
        z=paused.equilibrium,
        token=tf.gather(tokens, last, batch_dims=1),
        position=last,
        tokens=tf.fill([tf.shape(tokens)[0], model.sequence_length], -1),
        lengths=drawn,
        finish=tf.where(enough, generation.MAX_NEW_TOKENS, finish),
        residual=tf.cast(zeros, tf.float32),
        steps=zeros,
        status=zeros,
    )

"""Checks of a request before it shares a batch, and padding to a shape that other requests have.

A request that fails a check gets an error, which does not affect other requests. Rows that cannot be
answered get the status INVALID. Texts are padded to one of a few widths, so that the requests in a
queue have the same shape.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import tensorflow as tf

from tfdeq.serving.signatures.batching import SIZES, Batching, Queues
from tfdeq.serving.signatures.signature import Signature, input_specs, trace

# Limit for the numbers in a request and its answer, unless the largest batch has more: 64 MiB of
# float32.
MOST_VALUES = 2**24
_NARROWEST = 16
# Input -> another input, for which it gives the number of valid positions in each row.
_LENGTHS = {"lengths": "tokens", "equilibrium_lengths": "equilibrium"}

_Tensors = Mapping[str, tf.Tensor]
_Specs = Mapping[str, tf.TensorSpec]


def guarded(
    signature: Signature,
    name: str,
    max_request_values: int,
    queues: Queues | None = None,
    widths: Sequence[int] = (),
) -> Signature:
    """Adds checks before a signature, and joins the requests that pass them.

    Args:
        signature: the signature that answers a batch of rows.
        name: name of the signature.
        max_request_values: limit for the numbers in a request and its answer together.
        queues: the queues in which requests wait for each other. None: each is answered alone.
        widths: for language models, the widths that texts are padded to, ascending. () for other
            models, whose requests are joined only if `can_join` is true.
    """
    function, specs = signature.function, input_specs(signature.function)
    batched = None if queues is None else _in_order(function, specs)

    def answer(given: _Tensors, queue: str) -> _Tensors:
        if queues is None:
            return function(**given)
        values = queues.join(batched, [given[each] for each in specs], f"{name}_{queue}")
        shapes = {each: output.shape for each, output in function.structured_outputs.items()}
        return {
            each: tf.ensure_shape(value, shape)
            for (each, shape), value in zip(shapes.items(), values, strict=True)
        }

    def checked(**given: tf.Tensor) -> dict[str, tf.Tensor]:
        given, rows = _checked(name, given, specs, function.structured_outputs, max_request_values)
        if widths and queues is not None:
            outputs = _at_a_width(given, widths, answer)
        else:
            outputs = answer(given, "rows")
        return {each: value[:rows] for each, value in outputs.items()}

    return signature._replace(
        function=trace(checked, specs),
        joined=queues is not None,
        max_request_values=max_request_values,
    )


def guard_all(
    signatures: Mapping[str, Signature],
    batching: Batching | None,
    *,
    text_length: int | None = None,
    jit_compile: bool = False,
    max_request_values: int | None = None,
) -> dict[str, Signature]:
    """Adds checks before a model's signatures; see `guarded`.

    Args:
        signatures: name -> signature.
        batching: how requests are joined; None: not at all.
        text_length: number of positions that a language model reads. None for other models; of these,
            only signatures whose rows have a fixed size are joined, because padding would change their
            answers.
        jit_compile: whether the signatures are compiled. Texts then have a single width, because every
            other width would be compiled at its first request.
        max_request_values: limit for the numbers in a request and its answer together. None: 2²⁴, or as
            many as the largest batch has, if more.

    Raises:
        ValueError: for a limit that a single row exceeds.
    """
    widths: Sequence[int] = ()
    if text_length is not None:
        widths = (text_length,) if jit_compile else text_widths(text_length)
    rows = max(SIZES if batching is None else batching.sizes)
    if max_request_values is None:
        max_request_values = max(MOST_VALUES, _values_of(signatures, rows, text_length or 1))
    elif max_request_values < _values_of(signatures, 1, text_length or 1):
        raise ValueError(
            f"max_request_values must be at least {_values_of(signatures, 1, text_length or 1):,}, the "
            f"numbers of one row and its answer; received {max_request_values:,}."
        )
    queues = None if batching is None else Queues(batching)
    return {
        name: guarded(
            signature,
            name,
            max_request_values,
            queues if widths or can_join(signature) else None,
            widths,
        )
        for name, signature in signatures.items()
    }


def can_join(signature: Signature) -> bool:
    """Whether all rows of a signature's requests have the same shape, so that no padding is needed."""
    specs = input_specs(signature.function).values()
    return all(spec.shape[1:].is_fully_defined() for spec in specs)


def text_widths(text_length: int) -> list[int]:
    """Returns the widths for texts up to a length: the length, its half, its quarter, …"""
    widths = [text_length]
    while widths[0] > _NARROWEST:
        widths.insert(0, max(_NARROWEST, math.ceil(widths[0] / 2)))
    return widths


def _values_of(signatures: Mapping[str, Signature], rows: int, free: int) -> int:
    """Returns the numbers in the largest request with `rows` rows and its answer, over all signatures.

    Args:
        free: value of the sizes that a signature leaves open, such as a text's length.
    """
    return rows * max(
        sum(
            _row_values(tensor.shape, free)
            for tensor in [
                *input_specs(signature.function).values(),
                *signature.function.structured_outputs.values(),
            ]
        )
        for signature in signatures.values()
    )


def _row_values(shape: tf.TensorShape, free):
    """Returns the numbers in a row, where the product of the open sizes is `free`."""
    sizes = shape.as_list()[1:] if shape.rank is not None else [None]
    fixed = math.prod(size for size in sizes if size is not None)
    return fixed * free if None in sizes else fixed


def _in_order(function, specs: _Specs) -> tf.types.experimental.ConcreteFunction:
    """Returns the function as one of tensors in the order of the specs, which returns a list."""

    def positional(*values):
        outputs = function(**dict(zip(specs, values, strict=True)))
        return [outputs[each] for each in function.structured_outputs]

    specs_in_order = [tf.TensorSpec(spec.shape, spec.dtype) for spec in specs.values()]
    # BatchFunction runs its function without optimisation, which may take twice the time, and
    # without the requested compilation. A call inside it that is not inlined is run like any other.
    call = tf.function(
        positional, autograph=False, experimental_attributes={"_noinline": True}
    ).get_concrete_function(*specs_in_order)
    return tf.function(lambda *values: call(*values), autograph=False).get_concrete_function(
        *specs_in_order
    )


def _checked(
    name: str, given: _Tensors, specs: _Specs, outputs: _Tensors, max_request_values: int
) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
    """Returns the request's tensors with at least one row each, and the request's own number of rows."""
    # A server accepts tensors of any rank and size; this op checks those received.
    given = {each: tf.ensure_shape(value, specs[each].shape) for each, value in given.items()}
    counts = tf.stack([tf.shape(value)[0] for value in given.values()])
    rows = counts[0]
    free = tf.reduce_max(tf.stack([_open_size(value) for value in given.values()]))
    values = sum(tf.size(value, tf.int64) for value in given.values())
    values += tf.cast(rows, tf.int64) * sum(
        _row_values(out.shape, free) for out in outputs.values()
    )
    same_rows = f"{name}: all inputs must have the same number of rows; {', '.join(given)} have"
    small_enough = (
        f"{name}: a request and its answer may have {max_request_values} numbers together; send fewer "
        "or shorter rows. These would have"
    )
    checks = [
        tf.debugging.Assert(tf.reduce_all(counts == rows), [same_rows, counts], len(given)),
        tf.debugging.Assert(values <= max_request_values, [small_enough, values]),
    ]
    with tf.control_dependencies(checks):
        missing = tf.maximum(1 - rows, 0)
        return {
            each: tf.pad(value, [[0, missing], *[[0, 0]] * (value.shape.rank - 1)])
            for each, value in given.items()
        }, rows


def _open_size(value: tf.Tensor) -> tf.Tensor:
    """Returns int64: the product of the sizes that a tensor's spec leaves open, except the rows."""
    sizes = tf.shape(value, tf.int64)
    places = [place for place, size in enumerate(value.shape[1:], 1) if size is None]
    return tf.reduce_prod(tf.gather(sizes, tf.constant(places, tf.int32)))


def _at_a_width(
    given: _Tensors, widths: Sequence[int], answer: Callable[[_Tensors, str], _Tensors]
) -> dict[str, tf.Tensor]:
    """Answers texts at the smallest sufficient width; the answer is as wide as the request."""
    length = tf.shape(given["tokens"])[1]
    given = {**given, **_own_lengths(given, widths[-1])}
    least = tf.reduce_max(given["lengths"])

    def at(width):
        padded = {each: _to_width(value, width) for each, value in given.items()}
        outputs = answer(padded, str(width))
        return {each: _to_width(value, length) for each, value in outputs.items()}

    place = tf.reduce_sum(tf.cast(least > tf.constant(widths[:-1], tf.int32), tf.int32))
    return tf.switch_case(place, [lambda width=width: at(width) for width in widths])


def _own_lengths(given: _Tensors, most: int) -> dict[str, tf.Tensor]:
    """Returns the lengths checked before padding, so that none exceeds the request's width; 0 if invalid."""
    found = {}
    for each, of in _LENGTHS.items():
        if each in given:
            there = tf.minimum(tf.shape(given[of])[1], most)
            possible = (given[each] >= 1) & (given[each] <= there)
            found[each] = tf.where(possible, given[each], 0)
    return found


def _to_width(value: tf.Tensor, width) -> tf.Tensor:
    """Truncates, or pads with zeros, the second dimension of a tensor whose spec leaves it open."""
    if value.shape.rank < 2 or value.shape[1] is not None:
        return value
    behind = tf.maximum(width - tf.shape(value)[1], 0)
    return tf.pad(value, [[0, 0], [0, behind], *[[0, 0]] * (value.shape.rank - 2)])[:, :width]

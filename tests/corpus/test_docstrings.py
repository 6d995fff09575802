import pytest

from gr_jax.corpus._docstrings import prose

NUMPY = """
    sort(a, axis=-1)

    Return a *sorted* copy of an array [1]_.

    Parameters
    ----------
    a : array_like
        Array to be sorted. It is not changed.
    axis : int or None, optional
        Axis along which to sort, e.g. the last.

        .. versionadded:: 1.15.0
           Long ago.

    Returns
    -------
    sorted_array : ndarray
        Array of the same type as `a`.

    See Also
    --------
    argsort : Indirect sort.

    Notes
    -----
    Uses :func:`numpy.lexsort` and ``quicksort``.

    Examples
    --------
    >>> np.sort([2, 1])
    array([1, 2])
    """

GOOGLE = """Create an array full of zeros.

  JAX implementation of :func:`numpy.zeros`.

  Args:
    shape: int or sequence of ints
      specifying the shape. More.
    dtype: optional dtype.

  Returns:
    Array of the specified
    shape and dtype.

  Examples:
    >>> jnp.zeros(4)
    Array([0., 0., 0., 0.], dtype=float32)
  """


def test_numpy_style():
    assert prose(NUMPY) == (
        "Return a sorted copy of an array. "
        "Parameters: a: Array to be sorted; axis: Axis along which to sort, e.g. the last. "
        "Returns: sorted_array: Array of the same type as a. "
        "Uses numpy.lexsort and quicksort."
    )


def test_google_style():
    assert prose(GOOGLE) == (
        "Create an array full of zeros. JAX implementation of numpy.zeros. "
        "Args: shape: int or sequence of ints specifying the shape; dtype: optional dtype. "
        "Returns: Array of the specified shape and dtype."
    )


@pytest.mark.parametrize(
    ("docstring", "text"),
    [
        ("", ""),
        ("len(obj, /)\n--\n\nReturn the number.", "Return the number."),
        ("f(a,\n  b)\n\nDo it.", "Do it."),
        ("S.join(it) -> str\n\nGlue.", "Glue."),
        ("f(x) -> a very good thing\n\nMore.", "a very good thing. More."),
        ("f(x) -- do it to x", "do it to x."),
        ("Text with f(x) inside.", "Text with f(x) inside."),
        ("only(a, signature)", "only(a, signature)"),
        (".. note::\n   Mind the gap.", "Mind the gap."),
        (".. math::\n\n   x^2\n\nAfter.", "After."),
        ("Before:\n\n>>> 1\n1\n\nAfter.", "Before: After."),
        ("See `the page <https://x.org>`_ now.", "See the page now."),
    ],
)
def test_pieces(docstring, text):
    assert prose(docstring) == text


def test_length_is_bounded():
    assert len(prose("word " * 1000).split()) == 250
    assert prose("one two three", max_words=2) == "one two"

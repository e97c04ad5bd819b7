"""The model as a value: names that are safe as folders and URLs, and a spec that survives JSON."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import stack

from batchline.errors import InvalidRequestError
from batchline.model import DTYPES, ModelSpec, TensorSpec, check_name, check_version


@pytest.mark.parametrize("name", ["a", "digits", "mini-lm.v2_x", "0", "a" * 100])
def test_a_name_that_is_one(name):
    """It comes back as it went in."""
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "-a", "A", "a/b", "a b", "a\n", "é", "a" * 101, "a@1", "../a"])
def test_a_name_that_leads_elsewhere_is_refused(name):
    """A name is one folder and one segment of a URL."""
    with pytest.raises(InvalidRequestError):
        check_name(name)


@pytest.mark.parametrize("version", ["1", "42", "999999999"])
def test_a_version_that_is_one(version):
    """Whole numbers from 1."""
    assert check_version(version) == version


@pytest.mark.parametrize("version", ["", "0", "01", "-1", "1.0", "1\n", "١", "latest", "1" * 10])
def test_a_version_that_is_none_is_refused(version):
    """Two texts never name one version."""
    with pytest.raises(InvalidRequestError):
        check_version(version)


def test_a_spec_survives_json():
    """As the catalogue stores it; fields that nobody knows are refused."""
    spec = stack.a_spec()
    text = msgspec.json.encode(spec)
    assert msgspec.json.decode(text, type=ModelSpec) == spec
    assert spec.ref == "digits@1"
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(text.replace(b'"version"', b'"wersion"'), type=ModelSpec)


def test_every_dtype_is_one_of_numpys():
    """The floats among them know it."""
    for name, kind in DTYPES.items():
        assert TensorSpec("x", name, ()).is_float == np.issubdtype(np.dtype(kind), np.floating)

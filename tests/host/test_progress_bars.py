"""Progress bars of transformers: none while weights are read, and as before afterwards."""

import pytest
from transformers import modeling_gguf_pytorch_utils as reader
from transformers.utils import logging

from eagle.host.progress_bars import without_bars


def test_no_bar_is_drawn_while_weights_are_read(capsys):
    before = reader.tqdm
    with without_bars(gguf=True):
        assert list(reader.tqdm([1, 2], desc="Converting")) == [1, 2]
        assert list(logging.tqdm([1, 2], desc="Loading")) == [1, 2]
    assert capsys.readouterr().err == ""
    assert reader.tqdm is before
    assert list(reader.tqdm([1, 2], desc="Converting")) == [1, 2]
    assert "Converting" in capsys.readouterr().err, "transformers draws it by itself"


@pytest.mark.parametrize("gguf", [True, False])
def test_bars_are_as_before_when_reading_fails(gguf):
    before = reader.tqdm, logging.is_progress_bar_enabled()

    def fail():
        with without_bars(gguf=gguf):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (reader.tqdm, logging.is_progress_bar_enabled()) == before

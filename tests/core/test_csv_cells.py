"""What is written into a cell is read as the same text, and no spreadsheet takes it for a program."""

import csv
import io

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from regraft.core.csv_cells import from_cell, to_cell
from regraft.core.files import csv_bytes

TEXTS = st.text(st.characters(codec=None), max_size=12)  # bytes of file names that are no UTF-8, too


@given(st.lists(TEXTS, min_size=2, max_size=2))
@example(["=cmd|' /C calc'!A0", "+pos"])
@example(["-neg", "@home"])
@example(["cat ", " cat"])
@example(['a, "b"; c\td', "two\nlines\r\n"])
@example(["'s-Hertogenbosch", "''"])
@example(["'\\x41", "\\x41 "])
@example(["not UTF-8 \udcff", "\u3000猫"])
@settings(deadline=None, database=None, max_examples=300)
def test_every_text_comes_back(row):
    data = csv_bytes(("path", "label"), [tuple(row)])
    (_, cells) = csv.reader(io.StringIO(data.decode(), newline=""), strict=True)
    assert [from_cell(cell) for cell in cells] == row
    assert len(data.splitlines()) == 2
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r", " ")) for cell in cells)


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        ("cat", "cat"),
        ("  cat ", "cat"),
        ("'tis", "'tis"),
        ("'=x", "=x"),
        ("'\\é", "'\\é"),
        ("'\\a\\q", "'\\a\\q"),
        ("", ""),
    ],
)
def test_cells_that_people_write_are_read_as_they_mean_them(cell, text):
    assert from_cell(cell) == text


def test_usual_text_is_written_as_it_is():
    assert to_cell("golden retriever, 2") == "golden retriever, 2"

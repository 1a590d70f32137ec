"""What was written is there again, whole, whatever happened to the writer."""

import resource

import pytest

from regraft.core.errors import DataError, OutputError
from regraft.labelling.journal import Journal


def entries(path):
    with Journal(path) as journal:
        return journal.entries


@pytest.fixture
def path(tmp_path):
    with Journal(tmp_path / "journal.jsonl") as journal:
        for i in range(3):
            journal.append({"kind": "classes", "names": [f"é{i}\n"]})
    return tmp_path / "journal.jsonl"


def test_a_line_that_was_cut_anywhere_is_left_out_and_the_next_one_follows_the_last_whole_one(path):
    whole = path.read_bytes()
    kept = [{"kind": "classes", "names": [f"é{i}\n"]} for i in range(3)]
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        num_whole = max(0, sum(end <= size for end in ends) - 1)
        assert entries(path) == kept[:num_whole]
        with Journal(path) as journal:
            journal.append({"kind": "new"})
        assert entries(path) == [*kept[:num_whole], {"kind": "new"}]


def test_what_does_not_fit_on_the_disk_is_an_error_and_leaves_the_journal_as_it_was(path):
    before = path.read_bytes()
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal(path) as journal:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 7, hard))
        try:
            with pytest.raises(OutputError, match="was not kept"):
                journal.append({"kind": "classes", "names": ["long enough"]})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        assert path.read_bytes() == before
        journal.append({"kind": "small"})
    assert entries(path)[-1] == {"kind": "small"}


@pytest.mark.parametrize("damage", [b"", b"not a journal\n", b'{"journal": "other"}\n', b"[1]\n"])
def test_a_file_of_somebody_elses_and_a_damaged_one_are_refused_and_stay(path, damage):
    first, _, rest = path.read_bytes().partition(b"\n")
    data = damage + rest if damage else first + b"\n" + rest[5:]
    path.write_bytes(data)
    with pytest.raises(DataError, match="journal"):
        Journal(path)
    assert path.read_bytes() == data

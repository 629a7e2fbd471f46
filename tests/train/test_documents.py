from __future__ import annotations

import json
from pathlib import Path

import pytest

from rookery.errors import DataError
from rookery.train.documents import Document, hold_out, read_documents


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def test_a_text_file_is_one_document_byte_for_byte(tmp_path):
    write(tmp_path, {"a.txt": "one\r\ntwo\n\nthree ü"})
    [document] = read_documents([tmp_path / "a.txt"])
    assert document == Document("a.txt", "one\r\ntwo\n\nthree ü")


def test_each_line_of_jsonl_is_a_document(tmp_path):
    # U+2028 ends a line for str.splitlines, but not in JSON.
    lines = [json.dumps({"body": text}, ensure_ascii=False) for text in ("first", "se\u2028cond")]
    write(tmp_path, {"a.jsonl": "\n\n".join(lines) + "\n"})
    documents = read_documents([tmp_path / "a.jsonl"], text_field="body")
    assert documents == [Document("a.jsonl:1", "first"), Document("a.jsonl:3", "se\u2028cond")]


def test_a_folder_is_read_recursively_in_order(tmp_path):
    files = {"b/z.py": "z", "b/a.py": "a", "c.py": "c", "b/x.txt": "x", ".git/h.py": "h", "empty.py": ""}
    write(tmp_path, files)
    names = [document.name for document in read_documents([tmp_path], suffix=["py"])]
    assert names == ["b/a.py", "b/z.py", "c.py"]
    assert [d.name for d in read_documents([tmp_path], exclude=["b"])] == ["c.py"]
    assert [d.name for d in read_documents([tmp_path], exclude=["[az].*", "x*"])] == ["c.py"]


def test_a_link_to_a_folder_above_does_not_loop(tmp_path):
    write(tmp_path, {"a.txt": "text"})
    (tmp_path / "up").symlink_to(tmp_path)
    assert len(read_documents([tmp_path])) == 1


def test_several_sources_follow_each_other(tmp_path):
    write(tmp_path, {"x/a.txt": "A", "b.txt": "B", "c.jsonl": '{"text": "C"}'})
    paths = [tmp_path / "b.txt", tmp_path / "c.jsonl", tmp_path / "x"]
    assert [d.text for d in read_documents(paths)] == ["B", "C", "A"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"abc\xffdef", "a.txt: not a text file in UTF-8: there is a byte 0xff at offset 3"),
        ("a.txt", b"abc\0def", "a.txt: not a text file: there is a NUL byte at offset 3"),
        ("a.txt", "ü".encode()[:1], "offset 0"),
        ("a.txt", "", "a.txt: empty"),
        ("a.jsonl", "\n\n", "a.jsonl: empty"),
        ("a.jsonl", '{"text": "a"}\n{"text": ', "a.jsonl, line 2: broken JSON"),
        (
            "a.jsonl",
            '{"text": "a"}\n\n{"body": "b"}',
            "a.jsonl, line 3: there is no field 'text'; it has 'body'",
        ),
        ("a.jsonl", '["text"]', "a.jsonl, line 1: there is no field 'text'"),
        ("a.jsonl", '{"text": 5}', "a.jsonl, line 1: the field 'text' is int, not text"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, says):
    write(tmp_path, {name: content})
    with pytest.raises(DataError) as error:
        read_documents([tmp_path / name])
    assert says in str(error.value)
    assert str(tmp_path / name) in str(error.value)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.txt: there is no such file"):
        read_documents([tmp_path / "nothing.txt"])
    write(tmp_path, {"a.txt": "text"})
    with pytest.raises(DataError, match=r"no file with the suffix \.py or \.c in this folder"):
        read_documents([tmp_path], suffix=[".py", ".c"])


def test_one_text_is_split_at_its_end():
    train, valid = hold_out([Document("a", "0123456789")], 0.2)
    assert (train[0].text, valid[0].text) == ("01234567", "89")
    with pytest.raises(DataError, match="too few"):
        hold_out([Document("a", "x")], 0.5)


def test_whole_documents_are_held_out_by_their_names():
    documents = [Document(f"file{n}.py", "text" * n) for n in range(1, 400)]
    train, valid = hold_out(documents, 0.1)
    assert 20 <= len(valid) <= 60
    assert sorted(train + valid, key=lambda d: len(d.text)) == documents
    # What else there is, and what is in a file, change nothing.
    fewer = hold_out([Document(d.name, "other") for d in documents[::2]], 0.1)[1]
    assert {d.name for d in fewer} == {d.name for d in valid} & {d.name for d in documents[::2]}


@pytest.mark.parametrize("count", [2, 3, 5])
def test_both_sides_have_a_document_however_few_there_are(count):
    documents = [Document(f"{n}", "text") for n in range(count)]
    for fraction in (1e-9, 1 - 1e-9):
        train, valid = hold_out(documents, fraction)
        assert train
        assert valid
        assert len(train) + len(valid) == count

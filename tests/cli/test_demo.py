from __future__ import annotations

import sysconfig

import pytest

from rookery import cli
from rookery.cli import demo
from rookery.train.corpus import read_data
from rookery.train.documents import Document


@pytest.fixture(scope="module")
def sources() -> tuple[list[Document], list[Document]]:
    return read_data(demo.demo_config(minutes=1.0, out="demo"))


def test_it_reads_the_standard_library_and_nothing_else(sources):
    names = {document.name for side in sources for document in side}
    assert {"argparse.py", "json/decoder.py"} <= names
    for name in names:
        folders = name.split("/")[:-1]
        assert not {"site-packages", "test", "tests", "idle_test", "encodings"} & set(folders), name
    assert demo.demo_config(minutes=1.0, out="demo").data == (sysconfig.get_path("stdlib"),)


def test_some_files_are_held_out_and_always_the_same(sources):
    training, held_out = sources
    share = len(held_out) / (len(held_out) + len(training))
    assert 0.02 < share < 0.07
    assert sum(len(document.text) for document in held_out) > 100_000
    assert not {d.name for d in training} & {d.name for d in held_out}
    assert {d.name for d in read_data(demo.demo_config(minutes=2.0, out="x"))[1]} == {
        d.name for d in held_out
    }


def test_bits_per_byte_of_the_compressors():
    figures = demo.bits_per_byte([Document("a", "spam" * 5000), Document("b", "eggs" * 5000)])
    assert set(figures) == {"xz -9e", "gzip -9"}
    # 160,000 bits of text that repeats itself: little but the headers is left.
    assert all(0.01 < value < 0.1 for value in figures.values())
    one = demo.bits_per_byte([Document("a", "spam" * 5000 + "eggs" * 5000)])
    assert one == figures


def test_the_whole_demo(tmp_path, monkeypatch, capfd):
    """Two seconds of training on a small part of the library; what is tested is the way, not the model."""
    make = demo.demo_config

    def small(**options):
        from dataclasses import replace

        library = sysconfig.get_path("stdlib")
        return replace(make(**options), data=(f"{library}/json", f"{library}/logging"), width=32, layers=1)

    monkeypatch.setattr(demo, "demo_config", small)
    assert cli.main(["demo", "--minutes", "0.03", "--out", str(tmp_path / "demo")]) == 0
    output = capfd.readouterr().out
    assert (tmp_path / "demo" / "loss.png").is_file()
    last = output.splitlines()[-1]
    assert last.startswith("Bits per byte on ")
    for name in ("RWKV-7 ", "xz -9e ", "gzip -9 "):
        assert 0 < float(last.split(name)[1].split(",")[0]) < 10
    written = output.split("\ndef ", 1)[1].split("\n\n300 bytes in ")[0]
    # In a pipe, the bytes that are no UTF-8 come out as U+FFFD, one for up to three of them.
    assert 100 <= len(written) <= 300

"""What is seen inside a model is what a plain computation gives."""

from __future__ import annotations

import json
import math
import re
from html import unescape
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from rookery import checkpoints
from rookery.cli import main
from rookery.config import VERSIONS, sized
from rookery.errors import ConfigError, DataError, StateError, TokenizerError
from rookery.evaluate.look import (
    Inside,
    influence,
    look_inside,
    measure,
    report,
    start_token,
    text_tokens,
    write_page,
)
from rookery.evaluate.look.draw import binned
from rookery.evaluate.look.measure import effective_rank, state_norms
from rookery.evaluate.look.trace import decay_of_weights, half_lives, watching
from rookery.models import rwkv6 as module6
from rookery.models import to_tensors
from rookery.tokenizers import ByteTokenizer, CharTokenizer

torch.set_num_threads(1)

TEXT = list("Whole naïve words, twice: whole naïve words.".encode())


@pytest.fixture(scope="module")
def model(random_model):
    """``model(version)``: tiny, over bytes, two heads (RWKV-4: none)."""
    made = {}

    def make(version: str):
        if version not in made:
            options = {} if version == "4" else {"head_size": 8}
            config = sized(version, vocab_size=256, width=16, num_layers=2, **options)
            made[version] = random_model(config, dtype=torch.float64)
        return made[version]

    return make


def log_softmax(network, tokens) -> torch.Tensor:
    with torch.no_grad():
        logits, _ = network(torch.tensor([tokens]))
    return F.log_softmax(logits[0], -1)


@pytest.mark.parametrize("version", VERSIONS)
def test_surprise_is_that_of_a_plain_log_softmax(model, version):
    inside = look_inside(model(version), TEXT, start=10, changes=2, looks=5)
    log_p = log_softmax(model(version), [10, *TEXT])[:-1]
    own = log_p[torch.arange(len(TEXT)), torch.tensor(TEXT)]
    np.testing.assert_allclose(inside.surprise.bits, -own / math.log(2), rtol=1e-5)
    np.testing.assert_array_equal(inside.surprise.rank, 1 + (log_p > own[:, None]).sum(-1))
    np.testing.assert_array_equal(inside.surprise.top_ids, log_p.topk(5).indices)
    np.testing.assert_allclose(inside.surprise.top_probabilities, log_p.topk(5).values.exp(), rtol=1e-5)
    entropy = -(log_p.exp() * log_p).sum(-1) / math.log(2)
    np.testing.assert_allclose(inside.surprise.entropy, entropy, rtol=1e-5)
    assert inside.bits_per_token == pytest.approx(float(-own.mean()) / math.log(2), rel=1e-5)


def test_without_a_start_the_first_token_has_no_surprise(model):
    inside = look_inside(model("7"), TEXT, changes=1, looks=3)
    assert np.isnan(inside.surprise.bits[0])
    assert inside.surprise.rank[0] == 0
    with_start = look_inside(model("7"), TEXT[1:], start=TEXT[0], changes=1, looks=3)
    np.testing.assert_allclose(inside.surprise.bits[1:], with_start.surprise.bits, rtol=1e-5)


def test_how_often_one_looks_changes_no_surprise(model):
    few, many = (look_inside(model("6"), TEXT, changes=0, looks=looks) for looks in (1, 40))
    np.testing.assert_allclose(few.surprise.bits, many.surprise.bits, rtol=1e-5)
    assert few.read.tolist() == [len(TEXT)]
    assert len(many.read) == 40
    np.testing.assert_allclose(few.state_norm[-1], many.state_norm[-1], rtol=1e-5)


@pytest.mark.parametrize("version", ["4", "5.0", "5.1", "5.2"])
def test_half_lives_of_weights_that_are_decays(model, version):
    network = model(version)
    wanted = 2.0 ** torch.arange(1, 1 + network.blocks[0].att.time_decay.numel())
    # A channel whose half-life is n tokens: exp(-exp(decay)) ** n = 1 / 2.
    decays = torch.log(math.log(2) / wanted).double().view_as(network.blocks[0].att.time_decay)
    before = network.blocks[0].att.time_decay.data.clone()
    network.blocks[0].att.time_decay.data.copy_(decays)
    inside = look_inside(network, TEXT[:4], changes=0)
    network.blocks[0].att.time_decay.data.copy_(before)
    assert inside.half_lives.shape == (2, 1, 16)
    channels = wanted.repeat_interleave(16 // len(wanted))
    np.testing.assert_allclose(inside.half_lives[0, 0], channels, rtol=1e-5)


def test_what_never_decays_lives_forever():
    assert half_lives(torch.tensor([0.0, -0.0, -math.log(2), -1e30])).tolist() == [
        math.inf,
        math.inf,
        1.0,
        pytest.approx(0.0, abs=1e-29),
    ]


@pytest.mark.parametrize(
    ("version", "module", "name"),
    [("6", module6, "wkv6"), ("7", import_module("rookery.ops.fused.wkv7_with_output"), "wkv7")],
)
@pytest.mark.parametrize("split", [[7], [1, 1], [3, 1, 4]])
def test_decays_are_those_that_the_recurrence_was_given(model, monkeypatch, version, module, name, split):
    given, original = [], getattr(module, name)

    def spy(*inputs, **options):
        given.append(inputs)
        return original(*inputs, **options)

    monkeypatch.setattr(module, name, spy)
    state = None
    with torch.inference_mode(), watching(model(version)) as seen:
        for part in torch.tensor([TEXT[: sum(split)]]).split(split, 1):
            _, state = model(version)(part, state)
    assert len(seen) == 2
    for layer, inputs in zip(seen, given[-2:], strict=True):
        log_w = inputs[1][0, -1]
        torch.testing.assert_close(layer.log_decay, log_w.flatten())
        if version == "7":
            removal, addition = inputs[4][0, -1], inputs[5][0, -1]
            rate = (addition / -removal).mean(-1)
            torch.testing.assert_close(layer.learning_rate.double(), rate, rtol=1e-5, atol=0)


def test_watching_leaves_no_hooks(model):
    with watching(model("7")):
        pass
    assert all(not block.att._forward_pre_hooks for block in model("7").blocks)


def test_effective_rank_of_known_matrices():
    one = torch.outer(torch.arange(1.0, 5), torch.arange(1.0, 4))
    rotation, _ = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))
    two = rotation @ torch.diag(torch.tensor([3.0, 3.0, 0.0, 0.0])) @ rotation.T
    uneven = torch.diag(torch.tensor([3.0, 1.0]))
    assert effective_rank(one).item() == pytest.approx(1, rel=1e-5)
    assert effective_rank(torch.stack([two, torch.eye(4), torch.zeros(4, 4)])).tolist() == pytest.approx(
        [2, 4, 0]
    )
    assert effective_rank(uneven).item() == pytest.approx(4 / 3 ** (3 / 4))


def test_norms_of_known_states():
    wkv = torch.zeros(2, 1, 3, 4, 4)
    wkv[1, 0, 2] = 2
    assert state_norms(wkv).tolist() == [[0, 0, 0], [0, 0, 8]]
    fourth = torch.zeros(1, 1, 3, 2)
    fourth[0, 0, 0] = torch.tensor([3.0, 8.0])
    fourth[0, 0, 1] = torch.tensor([1.0, 2.0])
    assert state_norms(fourth).tolist() == [[5.0]]


@pytest.mark.parametrize("version", ["4", "5.2", "6", "7"])
def test_the_state_at_the_end_is_the_models(model, version):
    inside = look_inside(model(version), TEXT, start=3, changes=0, looks=4)
    with torch.no_grad():
        _, state = model(version)(torch.tensor([[3, *TEXT]]))
    np.testing.assert_allclose(inside.state_norm[-1], state_norms(state.wkv), rtol=1e-5)
    if version == "4":
        assert inside.state_rank is None
        assert inside.state_norm.shape == (4, 2, 1)
    else:
        assert inside.state_rank is not None
        np.testing.assert_allclose(inside.state_rank[-1], effective_rank(state.wkv[:, 0]), rtol=1e-5)


@pytest.mark.parametrize("version", ["4", "6", "7"])
def test_a_change_is_felt_after_it_and_not_before(model, version):
    inside = look_inside(model(version), TEXT, changes=3, looks=4, seed=1)
    felt = inside.influence
    assert felt.divergence.shape == (3, len(TEXT) // 2)
    as_it_is = log_softmax(model(version), TEXT)
    for position, other, row in zip(felt.positions, felt.replacements, felt.divergence, strict=True):
        assert other != TEXT[position]
        changed = log_softmax(model(version), [*TEXT[:position], other, *TEXT[position + 1 :]])
        apart = (as_it_is.exp() * (as_it_is - changed)).sum(-1) / math.log(2)
        assert apart[:position].abs().max() < 1e-12 if position else True
        assert row[0] > 1e-3
        np.testing.assert_allclose(row, apart[position : position + len(row)], rtol=1e-4, atol=1e-9)


def test_long_texts_are_read_in_parts_to_the_same_end(model, monkeypatch):
    whole = look_inside(model("7"), TEXT, start=3, changes=3, looks=2)
    monkeypatch.setattr(measure, "_SPAN", 5)
    monkeypatch.setattr(influence, "_LOGITS", 1 << 12)
    parts = look_inside(model("7"), TEXT, start=3, changes=3, looks=2)
    np.testing.assert_allclose(whole.surprise.bits, parts.surprise.bits, rtol=1e-5)
    np.testing.assert_allclose(whole.influence.divergence, parts.influence.divergence, rtol=1e-4, atol=1e-9)


def test_bins_hold_every_distance_once():
    divergence = np.arange(1.0, 41)[None].repeat(3, 0)
    distances, quartiles = binned(divergence)
    assert distances[0] == 1
    assert distances[-1] <= 40
    assert np.all(np.diff(distances) > 0)
    np.testing.assert_allclose(quartiles[0], quartiles[2])
    assert quartiles[1][0] == 1
    one, value = binned(np.array([[2.0], [4.0], [9.0]]))
    assert one.tolist() == [1]
    assert value[:, 0].tolist() == [3, 4, 6.5]


def test_where_most_of_a_change_is_felt():
    divergence = np.array([[0.9, 0.1, 0.0], [0.5, 0.3, 0.2], [1.0, 1.0, 8.0]])
    assert "within 3 tokens" in report._felt_within(divergence)
    assert "within 1 token " in report._felt_within(divergence[:1])
    assert report._felt_within(np.zeros((1, 2))) == ""


@pytest.mark.parametrize("version", ["4", "5.2", "6", "7"])
def test_every_version_has_its_page(model, version, tmp_path):
    inside = look_inside(model(version), TEXT, start=10, changes=3, looks=4)
    write_page(inside, ByteTokenizer(), tmp_path / "page.html", name="<model>")
    text = unescape((tmp_path / "page.html").read_text())
    assert "Inside <model>" in text
    assert f"RWKV-{version}, 2 layers" in text
    assert ("RWKV-4's state is a vector" in text) == (version == "4")
    assert (f"RWKV-{version} has none" in text) == (version != "7")
    assert (inside.learning_rate is not None) == (version == "7")
    assert ("are weights" in text) == (version[0] in "45")


def shown(html: str) -> str:
    body = html[html.index('<div class="surprise text">') :]
    body = body[: body.index("</div>")]
    return re.sub(r"<s>.</s>", "", re.sub(r"</?(i|div)[^>]*>", "", body))


def test_the_coloured_text_is_the_text(model):
    text = "naïve <b>\n\x07 \udcff".encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    tokens = list(text.encode())
    inside = look_inside(model("7"), tokens, start=10, changes=0)
    html = report.coloured_text(inside, ByteTokenizer())
    assert shown(html) == "naïve &lt;b&gt;\n\u2407 \ufffd"
    # The two bytes of one character make one piece, which says both.
    assert "bytes c3: " in html
    assert "bytes af: " in html
    assert len(re.findall("<i class=", shown_part(html))) == len(text)


def shown_part(html: str) -> str:
    return html[html.index('<div class="surprise text">') :]


def test_a_text_that_ends_inside_a_character(model):
    inside = look_inside(model("7"), [65, 0xC3], start=10, changes=0)
    assert shown(report.coloured_text(inside, ByteTokenizer())) == "A\ufffd"


def test_shades_follow_surprise(model):
    inside = look_inside(model("7"), TEXT, start=10, changes=0)
    html = shown_part(report.coloured_text(inside, None))
    shades = [int(each) for each in re.findall(r'<i class="s(\d+)"', html)]
    wanted = [min(12, round(12 * float(bits) / 8)) for bits in inside.surprise.bits]
    assert shades == wanted
    assert len(set(shades)) > 2
    assert shown(report.coloured_text(inside, None)).split() == [str(token) for token in TEXT]


@pytest.mark.parametrize(("version", "count"), [("4", 1), ("7", 2)])
def test_the_shortest_texts_have_a_page(model, tmp_path, version, count):
    inside = look_inside(model(version), TEXT[:count])
    write_page(inside, None, tmp_path / "page.html")
    assert ("too short" in (tmp_path / "page.html").read_text()) == (count == 1)
    assert math.isnan(inside.bits_per_token) == (count == 1)


def test_a_text_of_one_token_repeated(model):
    inside = look_inside(model("7"), [7] * 9, changes=2)
    assert all(other != 7 for other in inside.influence.replacements)


def test_a_model_of_one_token(random_model):
    config = sized("7", vocab_size=1, width=16, num_layers=1, head_size=8)
    inside = look_inside(random_model(config), [0, 0, 0])
    assert inside.surprise.bits[1:].tolist() == [0, 0]
    assert inside.influence.divergence.size == 0


def test_bad_input_is_refused(model):
    with pytest.raises(DataError, match="empty"):
        look_inside(model("7"), [])
    with pytest.raises(ConfigError, match="token 300 is outside of the vocabulary of 256"):
        look_inside(model("7"), [1, 300])
    with pytest.raises(ConfigError, match="looks"):
        look_inside(model("7"), [1], looks=0)
    with pytest.raises(TokenizerError, match="--ids"):
        text_tokens(None, "text")
    with pytest.raises(DataError, match="empty"):
        text_tokens(ByteTokenizer(), "")
    with pytest.raises(DataError, match="'x3' is no token id"):
        text_tokens(None, "1 x3", ids=True)
    assert text_tokens(None, "1, 2 3\n", ids=True) == [1, 2, 3]


def test_a_broken_model_has_no_page(random_model):
    network = random_model(sized("7", vocab_size=8, width=16, num_layers=1, head_size=8))
    network.head.weight.data[3, 3] = math.nan
    with pytest.raises(StateError, match="NaN"):
        look_inside(network, [1, 2, 3])


def test_what_is_read_before_a_text():
    def start(tokenizer):
        config = sized("4", vocab_size=256, width=1, num_layers=1)
        return start_token(SimpleNamespace(tokenizer=tokenizer, config=config))

    assert start(None) is None
    assert start(ByteTokenizer()) == ByteTokenizer().end_of_text
    assert start(CharTokenizer("ab\n")) == CharTokenizer("ab\n").encode("\n")[0]
    assert start(CharTokenizer("ab")) is None


def test_progress_reaches_its_end(model):
    told = []
    look_inside(model("7"), TEXT, changes=2, looks=3, advance=lambda done, total: told.append((done, total)))
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1] == len(TEXT) + 2 * 2 * (len(TEXT) // 2)


@pytest.fixture
def model_file(model, tmp_path):
    network = model("7").float()
    path = tmp_path / "tiny.safetensors"
    tensors = {name: array.astype(np.float32) for name, array in to_tensors(network).items()}
    checkpoints.save(
        checkpoints.Checkpoint(config=network.config, tensors=tensors, tokenizer={"kind": "bytes"}), path
    )
    network.double()
    return path


def test_the_command_writes_page_and_numbers(model_file, tmp_path, capsys):
    page, numbers = tmp_path / "page.html", tmp_path / "page.json"
    options = ["--changes", "2", "--looks", "3", "--out", str(page), "--json", str(numbers), "--threads", "1"]
    assert main(["look", str(model_file), "--text", "one two", *options]) == 0
    assert "7 tokens" in capsys.readouterr().out
    assert "Inside tiny.safetensors" in page.read_text()
    values = json.loads(numbers.read_text())
    assert values["tokens"] == list(b"one two")
    assert len(values["bits"]) == 7
    assert np.shape(values["state_rank"]) == np.shape(values["learning_rate"]) == (3, 2, 2)
    assert np.shape(values["influence"]["kl_bits"]) == (2, 3)


def test_the_command_refuses_what_it_cannot_read(model_file, tmp_path, capsys):
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe")
    for arguments, problem in (
        (["--text", ""], "the text is empty"),
        (["--file", str(tmp_path / "bad.txt")], "is not UTF-8 text"),
        (["--file", str(tmp_path / "none.txt")], "No such file"),
        (["--text", "1 999", "--ids"], "token 999 is outside"),
    ):
        assert main(["look", str(model_file), *arguments]) == 2
        assert problem in capsys.readouterr().err


def test_inside_is_data(model):
    inside = look_inside(model("7"), TEXT, changes=2, looks=3)
    assert isinstance(inside, Inside)
    assert inside.half_lives.shape == (2, 3, 16)
    assert inside.learning_rate is not None
    assert inside.learning_rate.shape == (3, 2, 2)
    assert ((inside.learning_rate > 0) & (inside.learning_rate < 1)).all()
    torch.testing.assert_close(
        torch.tensor(inside.half_lives[:, 0, 0] > 1.14), torch.ones(2, dtype=torch.bool)
    )


def test_decay_of_weights_is_of_one_layer(model):
    log_w = decay_of_weights(model("5.2").blocks[1].att)
    torch.testing.assert_close(log_w, -model("5.2").blocks[1].att.time_decay.exp().flatten())

"""lm-eval's tasks with our models: likelihoods as of its own models, files in place of the hub, resuming."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from rookery import checkpoints
from rookery.config import sized
from rookery.errors import ConfigError, DataError, MissingExtraError, TokenizerError
from rookery.evaluate import harness
from rookery.evaluate.harness import run_tasks
from rookery.generate import LanguageModel, load
from rookery.models import to_tensors

lm_eval = pytest.importorskip("lm_eval")
transformers = pytest.importorskip("transformers")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.registry import get_model  # noqa: E402

from rookery.evaluate.lm_eval_model import RookeryLM  # noqa: E402

torch.set_num_threads(1)

STORY = [
    "the old fisherman rowed out to the lighthouse and lit the lamp, so that every ship saw the lighthouse",
    "Anna gave the book to Peter. A week later she asked Peter",
    "where is the dog? under the table lies the dog",
    "one two three four five six seven eight nine ten nine eight seven six five four three two one",
]

ITEMS = {
    "lambada_openai": [{"text": text} for text in STORY],
    "piqa": [
        {"goal": "open a jar", "sol1": "turn the lid", "sol2": "paint the lid", "label": 0},
        {"goal": "cool the tea", "sol1": "boil it", "sol2": "wait", "label": 1},
    ],
    "winogrande": [
        {
            "sentence": "The cup fits the box as the _ is small.",
            "option1": "cup",
            "option2": "box",
            "answer": "1",
        }
    ],
    "arc_easy": [
        {
            "question": "What is ice?",
            "choices": {"text": ["water", "iron"], "label": ["A", "B"]},
            "answerKey": "A",
        }
    ],
    "sciq": [
        {
            "question": "What do bees make?",
            "support": "Bees make honey.",
            "distractor1": "milk",
            "distractor2": "iron",
            "distractor3": "silk",
            "correct_answer": "honey",
        }
    ],
}


def write_items(folder: Path, items: dict[str, list[dict]]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, rows in items.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def word_tokenizer() -> str:
    """A tokenizer.json of bytes, with an end of text: both sides can have it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|endoftext|>": 0} | {char: i + 1 for i, char in enumerate(alphabet)}
    vocabulary |= {pair: len(vocabulary) + i for i, pair in enumerate(("th", "Ġt"))}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("t", "h"), ("Ġ", "t")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer.to_str()


@pytest.fixture(scope="module")
def folder(random_model, tmp_path_factory) -> Path:
    """RWKV-4 with random weights, as transformers reads it."""
    path = tmp_path_factory.mktemp("rwkv4")
    config = sized("4", vocab_size=260, width=48, num_layers=3)
    tensors = to_tensors(random_model(config))
    spec = {"kind": "json", "json": word_tokenizer()}
    checkpoints.save_huggingface(checkpoints.Checkpoint(config=config, tensors=tensors, tokenizer=spec), path)
    return path


@pytest.fixture(scope="module")
def model(folder) -> LanguageModel:
    return load(folder, threads=1)


def requests(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, each, 0, ("made", i, 1)) for i, each in enumerate(arguments)]


def test_the_likelihoods_of_lm_evals_own_model(folder: Path, model: LanguageModel):
    """RWKV-4 with the same weights under transformers, by lm-eval's ``hf``."""
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"rescale_every": 0}
    theirs = transformers.RwkvForCausalLM.from_pretrained(
        folder, config=transformers.RwkvConfig(**settings), dtype=torch.float32
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), eos_token="<|endoftext|>", bos_token="<|endoftext|>"
    )
    hf = get_model("hf")(pretrained=theirs, tokenizer=tokenizer, batch_size=2, max_length=256)
    ours = get_model("rookery")(pretrained=model)
    assert isinstance(ours, RookeryLM)
    pairs = [(text.rsplit(" ", 1)[0], " " + text.rsplit(" ", 1)[1]) for text in STORY]
    pairs += [(STORY[0], choice) for choice in (" and", " the the", " x")] + [
        ("", "the dog"),
        ("the dog ", "is"),
    ]
    wanted = hf.loglikelihood(requests("loglikelihood", *pairs), disable_tqdm=True)
    found = ours.loglikelihood(requests("loglikelihood", *pairs))
    np.testing.assert_allclose([x for x, _ in found], [x for x, _ in wanted], atol=1e-3, rtol=0)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]

    texts = requests("loglikelihood_rolling", *((text,) for text in STORY))
    wanted = hf.loglikelihood_rolling(texts, disable_tqdm=True)
    np.testing.assert_allclose(ours.loglikelihood_rolling(texts), wanted, atol=1e-3, rtol=0)


def test_greedy_is_what_the_model_would_write(model: LanguageModel):
    lm = RookeryLM(model)
    context = lm.tok_encode("the dog")
    likeliest = int(model(context)[0][-1].argmax())
    others = [(("", ""), context, [token]) for token in (likeliest, likeliest - 1)]
    assert [greedy for _, greedy in lm._loglikelihood_tokens(others)] == [True, False]


def test_writing_until_a_stop_string(model: LanguageModel):
    lm = RookeryLM(model, max_gen_toks=5)
    contexts = [*STORY, ""]
    whole = lm.generate_until(requests("generate_until", *((c, {"until": ["~~~"]}) for c in contexts)))
    for context, text in zip(contexts, whole, strict=True):
        assert text == model.generate(context, temperature=0, max_tokens=5)
    options = {"until": whole[0][2], "max_gen_toks": 5}
    [cut] = lm.generate_until(requests("generate_until", (contexts[0], options)))
    assert cut == whole[0][: whole[0].index(whole[0][2])]
    drawn = {"until": [], "do_sample": True, "temperature": 0.7, "seed": 3, "max_gen_toks": 4}
    [text] = lm.generate_until(requests("generate_until", (contexts[0], drawn)))
    assert text == model.generate(contexts[0], temperature=0.7, seed=3, max_tokens=4)


def test_tasks_from_files(model: LanguageModel, tmp_path: Path):
    data = write_items(tmp_path / "data", ITEMS)
    result = run_tasks(model, list(ITEMS), data=data, out=tmp_path / "out")
    assert {name: task.items for name, task in result.tasks.items()} == {
        name: len(rows) for name, rows in ITEMS.items()
    }
    lambada = result.tasks["lambada_openai"]
    assert lambada.source == "lambada_openai.jsonl"
    lm = RookeryLM(model)
    pairs = [lm.pair(text.rsplit(" ", 1)[0], " " + text.rsplit(" ", 1)[1]) for text in STORY]
    scores = lm.engine.score(pairs)
    assert lambada.metrics["perplexity"] == pytest.approx(np.exp(-np.mean([s.total for s in scores])))
    assert lambada.metrics["acc"] == np.mean([s.greedy for s in scores])
    saved = json.loads((tmp_path / "out" / "results.json").read_text())
    assert saved["versions"]["lm_eval"] == "0.4.13"
    assert saved["setting"]["first_token"]["name"] == "end-of-text"
    assert saved["tasks"]["piqa"]["metrics"] == result.tasks["piqa"].metrics


def test_an_evaluation_that_was_stopped_goes_on(model: LanguageModel, tmp_path: Path, monkeypatch):
    data, out = write_items(tmp_path / "data", ITEMS), tmp_path / "out"

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rookery.evaluate.likelihood._TOKENS_AT_ONCE", 100)
    with pytest.raises(KeyboardInterrupt):
        run_tasks(model, ["lambada_openai"], data=data, out=out, report=stop)
    assert not (out / "results.json").exists()
    before = run_tasks(model, ["lambada_openai"], data=data)
    again = run_tasks(model, ["lambada_openai"], data=data, out=out)
    assert again.tasks == before.tasks
    assert 0 < again.reused < len(STORY)
    once_more = run_tasks(model, ["lambada_openai"], data=data, out=out)
    assert (before.reused, once_more.reused) == (0, len(STORY))
    assert once_more.tasks == before.tasks
    # Another setting reuses nothing.
    assert run_tasks(model, ["lambada_openai"], data=data, out=out, add_first_token=True).reused == 0


def test_examples_are_never_the_item_itself(model: LanguageModel, tmp_path: Path, monkeypatch):
    data = write_items(tmp_path / "data", {"lambada_openai": ITEMS["lambada_openai"]})
    contexts: list[str] = []
    pair = RookeryLM.pair
    monkeypatch.setattr(
        RookeryLM, "pair", lambda lm, *each: contexts.append("".join(each)) or pair(lm, *each)
    )
    result = run_tasks(model, ["lambada_openai"], data=data, few_shot=2)
    assert result.tasks["lambada_openai"].few_shot == 2
    for context in contexts:
        assert sorted(context.count(text[:15]) for text in STORY) == [0, 1, 1, 1]
    # Built twice, once to be checked: the examples are the same.
    assert contexts[: len(STORY)] == contexts[len(STORY) :]
    write_items(
        tmp_path / "data", {"lambada_openai.train": [{"text": "an example"}, {"text": "and another"}]}
    )
    contexts.clear()
    run_tasks(model, ["lambada_openai"], data=data, few_shot=1)
    assert all(("an  example" in context) != ("and  another" in context) for context in contexts)
    with pytest.raises(DataError, match="requests of task lambada_openai cannot be made"):
        run_tasks(model, ["lambada_openai"], data=data, few_shot=5)


def test_the_first_token_is_a_choice(model: LanguageModel, tmp_path: Path):
    data = write_items(tmp_path, ITEMS)
    runs = [
        run_tasks(model, ["lambada_openai"], data=data, first_token=first, add_first_token=add)
        for first, add in [(None, False), (None, True), ("newline", True), (5, True)]
    ]
    assert len({run.tasks["lambada_openai"].metrics["perplexity"] for run in runs}) == 4
    assert [run.setting["first_token"]["id"] for run in runs] == [0, 0, model.tokenizer.encode("\n")[0], 5]
    with pytest.raises(ConfigError, match="outside of the vocabulary"):
        run_tasks(model, ["lambada_openai"], data=data, first_token=260)


def test_items_that_cannot_be_scored_are_recorded(model: LanguageModel, tmp_path: Path):
    rows = [
        *ITEMS["arc_easy"],
        {**ITEMS["arc_easy"][0], "choices": {"text": ["water", ""], "label": ["A", "B"]}},
    ]
    data = write_items(
        tmp_path, {"arc_easy": rows, "lambada_openai": [*ITEMS["lambada_openai"], {"text": "one"}]}
    )
    # lm-eval puts a space before each choice, which is a token here: without it there is none.
    monkey = RookeryLM._encode_pair

    def without_space(self: RookeryLM, context: str, continuation: str) -> tuple[list[int], list[int]]:
        return monkey(self, context, continuation.strip())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RookeryLM, "_encode_pair", without_space)
        result = run_tasks(model, ["arc_easy", "lambada_openai"], data=data)
    assert result.tasks["arc_easy"].items == 1
    [skipped] = result.tasks["arc_easy"].skipped
    assert skipped["item"] == 1
    assert "has no tokens" in skipped["reason"]
    # A text of one word has an empty context: the first token stands there, and this is counted.
    assert result.tasks["lambada_openai"].empty_contexts == 1


@pytest.mark.parametrize(
    ("name", "lines", "problem"),
    [
        (
            "lambada_openai",
            ['{"text": "a b"}', '{"txt": "a b"}'],
            "line 2: the field 'text' is missing; it has 'txt'",
        ),
        ("lambada_openai", ['{"text": 5}'], "line 1: the field 'text' must be text, not a whole number"),
        ("lambada_openai", ['{"text": "a b"}', "", "{"], "line 3: broken JSON"),
        ("lambada_openai", ["[]"], "line 1: expected an object, not a list"),
        ("lambada_openai", [], "empty: there are no items"),
        ("piqa", ['{"goal": "a", "sol1": "b", "label": 0}'], "line 1: the field 'sol2' is missing"),
        ("piqa", ['{"goal": "a", "sol1": "b", "sol2": "c", "label": true}'], "must be a whole number"),
        (
            "arc_easy",
            ['{"question": "a", "choices": {"text": ["a"]}, "answerKey": "A"}'],
            "line 1: task arc_easy",
        ),
        (
            "winogrande",
            ['{"sentence": "a", "option1": "a", "option2": "b", "answer": "1"}'],
            "line 1: task wino",
        ),
        ("sciq", ['{"question": "a"}'], "line 1: the field 'support' is missing"),
    ],
)
def test_files_that_are_wrong(
    model: LanguageModel, tmp_path: Path, name: str, lines: list[str], problem: str
):
    (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match=problem) as caught:
        run_tasks(model, [name], data=tmp_path)
    assert f"{name}.jsonl" in str(caught.value)


def test_what_cannot_be_done(model: LanguageModel, tmp_path: Path):
    with pytest.raises(DataError, match=r"needs the file lambada_openai\.jsonl or lambada_test\.jsonl"):
        run_tasks(model, ["lambada_openai"], data=tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        run_tasks(model, ["lambada_openai"], data=tmp_path / "absent")
    with pytest.raises(ConfigError, match="limit"):
        run_tasks(model, ["lambada_openai"], data=tmp_path, limit=0)
    with pytest.raises(ConfigError, match="no task is named"):
        run_tasks(model, [], data=tmp_path)
    with pytest.raises(TokenizerError, match="--tokenizer"):
        run_tasks(LanguageModel(model.backend), ["lambada_openai"], data=tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "lm_eval", None)
        with pytest.raises(MissingExtraError, match=r"rookery\[evaluate\]"):
            run_tasks(model, ["lambada_openai"], data=tmp_path)
    lm = RookeryLM(model)
    with pytest.raises(DataError, match="task made, item 1: the continuation '' has no tokens"):
        lm.loglikelihood(requests("loglikelihood", ("a", "b"), ("a", "")))
    with pytest.raises(DataError, match="task made, item 0: the text has no tokens"):
        lm.loglikelihood_rolling(requests("loglikelihood_rolling", ("",)))


def test_a_cache_that_was_cut_off_is_mended(tmp_path: Path):
    from rookery.evaluate.cache import RequestCache

    path = tmp_path / "requests.jsonl"
    with RequestCache(path, {"model": "a"}) as cache:
        cache.put(["x", 1], [0.5, True])
        cache.put(["x", 2], [1.5, False])
    path.write_bytes(path.read_bytes()[:-3])
    with RequestCache(path, {"model": "a"}) as cache:
        assert cache.get(["x", 1]) == [0.5, True]
        assert cache.get(["x", 2]) is None
        cache.put(["x", 2], [1.5, False])
    with RequestCache(path, {"model": "a"}) as cache:
        assert cache.get(["x", 2]) == [1.5, False]
    with RequestCache(path, {"model": "b"}) as cache:
        assert cache.get(["x", 1]) is None
    path.write_text("nonsense\n")
    with pytest.raises(DataError, match="line 1: not a finished request"):
        RequestCache(path, {})


def test_lm_evals_own_command(folder: Path, tmp_path: Path, monkeypatch, capsys):
    called: dict[str, Callable] = {}
    monkeypatch.setattr(
        "lm_eval.__main__.cli_evaluate", lambda: called.setdefault("rookery", get_model("rookery"))
    )
    monkeypatch.setattr("sys.argv", ["lm_eval"])
    harness.main(["run", "--model", "rookery"])
    assert called["rookery"] is RookeryLM
    made = RookeryLM.create_from_arg_string(
        f"pretrained={folder},threads=1,add_first_token=True", {"batch_size": 1}
    )
    assert made.add_first_token
    # Its command adds this device of its own accord.
    made = RookeryLM.create_from_arg_obj({"pretrained": str(folder), "threads": 1}, {"device": "cuda:0"})
    assert made.model.backend.config.version == "4"
    with pytest.raises(ConfigError, match="nothing here runs on the device 'abacus'"):
        RookeryLM.create_from_arg_obj({"pretrained": str(folder)}, {"device": "abacus"})


def test_a_cache_keeps_number_types_and_tokenizers_apart(folder: Path):
    from rookery.evaluate.first_token import choose_first_token
    from rookery.evaluate.setting import model_setting
    from rookery.tokenizers import ByteTokenizer

    models = [
        load(folder, threads=1, dtype="float32"),
        load(folder, threads=1, dtype="q8"),
        load(folder, threads=1, dtype="float32", tokenizer=ByteTokenizer()),
        load(folder, dtype="float32", backend="torch", device="cpu"),
        load(folder, dtype="bfloat16", backend="torch", device="cpu"),
    ]
    settings = [json.dumps(model_setting(each, choose_first_token(each))) for each in models]
    assert len(set(settings)) == len(models)
    again = load(folder, threads=2, dtype="float32")
    assert json.dumps(model_setting(again, choose_first_token(again))) == settings[0]

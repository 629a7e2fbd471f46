"""rookery's models for lm-eval: importing this registers the name ``rookery`` there.

    import rookery.evaluate.lm_eval_model
    lm_eval.simple_evaluate("rookery", {"pretrained": "model.pth"}, tasks=["lambada_openai"])

It needs the extra ``evaluate``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# Registers lm-eval's own models, which it would not do once another one is there.
import lm_eval.models  # noqa: F401
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import simple_parse_args_string

from rookery.errors import ConfigError, DataError
from rookery.evaluate.cache import RequestCache
from rookery.evaluate.first_token import FirstToken, choose_first_token, tokenizer_of
from rookery.evaluate.likelihood import LikelihoodEngine, Pair, Report, Scores
from rookery.evaluate.setting import model_setting
from rookery.evaluate.writing import write
from rookery.generate import ChatTemplate, LanguageModel, load

__all__ = ["RookeryLM", "setting"]

# lm-eval's own number for tasks that name none.
_MAX_TOKENS = 256
_LM_EVALS_DEVICE = "cuda:0"


class RookeryLM(TemplateLM):
    """A model of this package, as lm-eval sees one.

    Requests are read in the recurrent form, each shared context once; nothing is cut off, however long.

    Args:
        pretrained: a model file or folder, or a loaded model.
        tokenizer, device, dtype, backend, threads: as for ``rookery.load``.
        first_token: what stands where nothing else does: ``end-of-text``, ``newline`` or an id; by default
            the end of text where the tokenizer has one.
        add_first_token: read it before every context, not only before empty ones.
        max_gen_toks: most tokens to write where a task names none.
        batch_size, max_batch_size: taken and not used: batches are made by tokens.
        cache: finished requests of an earlier sitting.
        report: is told of tokens read, and of how many.
    """

    def __init__(
        self,
        pretrained: str | LanguageModel,
        *,
        tokenizer: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        backend: str | None = None,
        threads: int | None = None,
        first_token: str | int | None = None,
        add_first_token: bool = False,
        max_gen_toks: int = _MAX_TOKENS,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        cache: RequestCache | None = None,
        report: Report | None = None,
    ):
        super().__init__()
        if isinstance(pretrained, LanguageModel):
            self.model = pretrained
        else:
            self.model = load(
                pretrained, tokenizer=tokenizer, device=device, dtype=dtype, backend=backend, threads=threads
            )
        self._encode = tokenizer_of(self.model).encode
        self.first_token: FirstToken = choose_first_token(self.model, first_token)
        self.add_first_token = add_first_token
        self.max_gen_toks = max_gen_toks
        self.engine = LikelihoodEngine(self.model)
        self.cache = RequestCache(None, setting(self)) if cache is None else cache
        self.report = report

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: dict[str, Any] | None = None
    ) -> RookeryLM:
        """From ``--model_args`` and what lm-eval's command adds."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> RookeryLM:
        """From a dictionary and what lm-eval's command adds."""
        added = {name: value for name, value in (additional_config or {}).items() if value is not None}
        # Its command names this device where none was asked for, also where there is none such.
        if added.get("device") == _LM_EVALS_DEVICE:
            del added["device"]
        return cls(**{**added, **arg_dict})

    @property
    def eot_token_id(self) -> int:
        """The first token: lm-eval puts it where a text begins with nothing."""
        return self.first_token.id

    @property
    def tokenizer_name(self) -> str:
        """For the names of lm-eval's own caches."""
        return f"rookery-{self.model.fingerprint}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """The tokens of a text; none is added."""
        return self._encode(string)

    def pair(self, context: str, continuation: str) -> Pair:
        """A request as tokens.

        Spaces at the end of the context go over to the continuation, and both are encoded together, so that
        the border is where it would be in running text.

        Raises:
            DataError: the continuation has no tokens.
        """
        first = [self.first_token.id] if self.add_first_token or not context else []
        if context:
            before, after = self._encode_pair(context, continuation)  # lm-eval's own rule
        else:
            before, after = [], self._encode(continuation)
        if not after:
            raise DataError(f"the continuation {continuation!r} has no tokens after {_brief(context)}")
        if not before and not first:
            # Nothing but spaces, which went over.
            first = [self.first_token.id]
        return Pair((*first, *before), tuple(after))

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether greedy decoding writes it."""
        pairs = []
        for request in requests:
            with _Place(request):
                pairs.append(self.pair(*request.args))
        return self._score("loglikelihood", [request.args for request in requests], pairs)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each text after the first token, the state carried through all of it."""
        pairs = []
        for request in requests:
            ids = self._encode(request.args[0])
            with _Place(request):
                if not ids:
                    raise DataError("the text has no tokens")
            pairs.append(Pair((self.first_token.id,), tuple(ids)))
        found = self._score("loglikelihood_rolling", [request.args for request in requests], pairs)
        return [total for total, _ in found]

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """The same for tokens."""
        pairs = [Pair(tuple(context), tuple(continuation)) for _, context, continuation in requests]
        return [(scores.total, scores.greedy) for scores in self.engine.score(pairs)]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """The text after each context, up to a stop string: the likeliest tokens, or drawn if a task asks."""
        texts: list[str | None] = [self.cache.get(["generate_until", *request.args]) for request in requests]
        groups: dict[tuple[Any, ...], list[int]] = {}
        for index, request in enumerate(requests):
            if texts[index] is None:
                groups.setdefault(_how_to_write(request.args[1], self.max_gen_toks), []).append(index)
        total, done = sum(map(len, groups.values())), 0
        for (stop, max_tokens, sampling), members in groups.items():
            contexts = [str(requests[index].args[0]) for index in members]

            def finish(number: int, text: str, members: list[int] = members) -> None:
                nonlocal done
                index = members[number]
                texts[index] = text
                self.cache.put(["generate_until", *requests[index].args], text)
                self.cache.flush()
                self.cache_hook.add_partial("generate_until", requests[index].args, text)
                done += 1
                if self.report is not None:
                    self.report(done, total)

            if sampling:
                for number, context in enumerate(contexts):
                    options = {"max_tokens": max_tokens, "stop": stop, **dict(sampling)}
                    finish(number, self.model.generate(self._prompt(context), **options))
            else:
                prompts = [self._prompt(context) for context in contexts]
                write(self.model, prompts, max_tokens=max_tokens, stop=stop, finished=finish)
        return [text for text in texts if text is not None]

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The official format: ``User: ...``, a blank line, ``Assistant: ...``."""
        template = ChatTemplate()
        names = {"user": template.user, "assistant": template.assistant, "system": template.system}
        turns = [f"{names[each['role']]}: {template.clean(each['content'])}" for each in chat_history]
        if add_generation_prompt:
            return template.separator.join([*turns, f"{template.assistant}:"])
        return template.separator.join(turns)

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes into its results beside the scores."""
        return {"rookery": setting(self)}

    def _prompt(self, context: str) -> list[int]:
        ids = self._encode(context)
        return [self.first_token.id, *ids] if self.add_first_token or not ids else ids

    def _score(self, kind: str, requests: Sequence[Any], pairs: list[Pair]) -> list[tuple[float, bool]]:
        found: list[Any] = [self.cache.get([kind, *request]) for request in requests]
        new = [index for index, result in enumerate(found) if result is None]

        def finish(number: int, scores: Scores) -> None:
            index = new[number]
            found[index] = [scores.total, scores.greedy]
            self.cache.put([kind, *requests[index]], found[index])
            answer = scores.total if kind == "loglikelihood_rolling" else tuple(found[index])
            self.cache_hook.add_partial(kind, requests[index], answer)

        def report(done: int, total: int) -> None:
            self.cache.flush()
            if self.report is not None:
                self.report(done, total)

        self.engine.score([pairs[index] for index in new], report=report, finished=finish)
        return [(total, greedy) for total, greedy in found]


register_model("rookery")(RookeryLM)


def setting(lm: RookeryLM) -> dict[str, Any]:
    """What scores depend on, plain values for JSON."""
    before = "every context" if lm.add_first_token else "empty contexts"
    return model_setting(lm.model, lm.first_token) | {"first_token_before": before}


class _Place:
    """Says in an error which request it is of."""

    def __init__(self, request: Any):
        self._request = request

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, DataError):
            where = f"task {self._request.task_name}, item {self._request.doc_id}"
            raise DataError(f"{where}: {error}") from error


def _how_to_write(options: dict[str, Any], max_tokens: int) -> tuple[Any, ...]:
    """Stop strings, most tokens, and sampling options, of what a task asks for."""
    until = options.get("until") or ()
    stop = (until,) if isinstance(until, str) else tuple(each for each in until if each)
    limit = next(
        (options[name] for name in ("max_gen_toks", "max_new_tokens", "max_tokens") if options.get(name)),
        max_tokens,
    )
    if not options.get("do_sample", False):
        return stop, int(limit), ()
    known = {
        name: options[name] for name in ("temperature", "top_p", "top_k", "min_p", "seed") if name in options
    }
    if known.get("temperature") == 0:
        raise ConfigError("a task asks for sampling (do_sample) at temperature 0; leave one of them out")
    return stop, int(limit), tuple(sorted({"temperature": 1.0, **known}.items()))


def _brief(text: str) -> str:
    return "an empty context" if not text else f"...{text[-40:]!r}"

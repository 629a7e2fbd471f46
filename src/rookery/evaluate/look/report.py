"""The page, and the numbers as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from rookery.evaluate.look import draw
from rookery.evaluate.look.measure import Inside
from rookery.evaluate.look.trace import FIXED_DECAY
from rookery.evaluate.page import Page
from rookery.files import atomic_write
from rookery.state import state_bytes
from rookery.tokenizers import StreamDecoder, Tokenizer

__all__ = ["MOST_SHOWN", "coloured_text", "make_page", "pieces", "to_json", "write_page"]

MOST_SHOWN = 20_000
"""Tokens of text that a page shows; of longer texts the beginning."""

_SHADES = 12
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def write_page(
    inside: Inside, tokenizer: Tokenizer | None, path: str | Path, *, name: str = "the model"
) -> None:
    """Write the page of what was seen.

    Args:
        inside: what was seen.
        tokenizer: for the text; without one token ids are shown.
        path: the file.
        name: of the model, for the title.
    """
    make_page(inside, tokenizer, name=name).write(path)


def make_page(inside: Inside, tokenizer: Tokenizer | None, *, name: str = "the model") -> Page:
    """The page of what was seen; see ``write_page``."""
    config = inside.config
    shape = f"{config.num_layers} layers, {config.width} wide, vocabulary of {config.vocab_size:,}"
    page = Page(title=f"Inside {name}", subtitle=f"RWKV-{config.version}, {shape}")
    page.facts(_facts(inside, tokenizer))
    _surprise(page, inside, tokenizer)
    _decay(page, inside)
    _state(page, inside)
    _learning_rate(page, inside)
    _influence(page, inside)
    return page


def _facts(inside: Inside, tokenizer: Tokenizer | None) -> dict[str, object]:
    bits = inside.bits_per_token
    facts: dict[str, object] = {"tokens": len(inside.tokens), "bits per token": bits}
    if tokenizer is not None and not math.isnan(bits):
        known = ~np.isnan(inside.surprise.bits)
        size = sum(len(tokenizer.token_bytes(token)) for token in inside.tokens[known].tolist())
        facts["bits per byte"] = float(inside.surprise.bits[known].sum()) / size if size else None
    first = inside.surprise.rank[inside.surprise.rank > 0]
    facts["likeliest was right"] = f"{(first == 1).mean():.1%}" if len(first) else None
    facts["state of a stream"] = f"{state_bytes(inside.config) / 1024:,.0f} KiB"
    return facts


def _surprise(page: Page, inside: Inside, tokenizer: Tokenizer | None) -> None:
    page.heading("Surprise")
    before = (
        "Nothing was read before the text, so its first token has no surprise."
        if inside.start is None
        else f"Before the text the model read token {inside.start}, so that the first one is predicted "
        "as well."
    )
    page.text(
        "The deeper a token's colour, the less the model expected it. Point at one, or tap it, for its "
        "surprise in "
        f"bits, its probability and rank, and what was likelier. {before}"
    )
    if len(inside.tokens) > MOST_SHOWN:
        page.note(
            f"The text has {len(inside.tokens):,} tokens; the first {MOST_SHOWN:,} are shown. All else "
            "is of all."
        )
    page.html(coloured_text(inside, tokenizer))
    if len(inside.tokens) > 2 and not math.isnan(inside.bits_per_token):
        page.figure(
            draw.draw_surprise(inside),
            caption="Surprise along the text. A model that knows what it does not know is as surprised "
            "as it expects.",
        )


def _decay(page: Page, inside: Inside) -> None:
    page.heading("Decay spectrum")
    fixed = inside.config.version in FIXED_DECAY
    how = (
        f"In RWKV-{inside.config.version} decays are weights: the same for every text."
        if fixed
        else f"In RWKV-{inside.config.version} decays depend on the data: these are of "
        f"{len(inside.read):,} places, "
        "evenly over the text."
    )
    page.text(
        "How long each channel of a layer remembers: the tokens after which half is left of what was "
        f"written. {how}"
        + (" What the delta rule takes out of the state on purpose comes on top." if _delta(inside) else "")
    )
    page.figure(
        draw.draw_decay(inside),
        caption="Half-lives of each layer's key channels; every curve has its own height, a line marks "
        "the median.",
    )
    rows = [
        [layer, *(float(value) for value in np.quantile(values, _QUANTILES))]
        for layer, values in enumerate(inside.half_lives)
    ]
    columns = [
        "layer",
        *(f"{q:.0%} of channels below" if i == 0 else f"{q:.0%}" for i, q in enumerate(_QUANTILES)),
    ]
    page.table(columns, rows, caption="Quantiles of half-lives, in tokens")


def _delta(inside: Inside) -> bool:
    return inside.config.version == "7"


def _state(page: Page, inside: Inside) -> None:
    page.heading("The state")
    if inside.state_rank is None:
        page.text(
            "How large the state is as the text goes on: the norm of numerator over denominator, which "
            "is a mean of "
            "values. RWKV-4's state is a vector for each layer, so it has no rank."
        )
    else:
        page.text(
            "How large each head's state is as the text goes on (Frobenius norm), and over how many "
            "directions it is "
            "spread (effective rank: the exponential of the entropy of its singular values). Lines are "
            "means over the "
            "heads of a layer."
        )
    page.figure(
        draw.draw_state(inside), caption=f"The state at {len(inside.read):,} places of the text, by layer."
    )


def _learning_rate(page: Page, inside: Inside) -> None:
    page.heading("In-context learning rate")
    if inside.learning_rate is None:
        page.note(
            f"RWKV-{inside.config.version} has none: it is RWKV-7 that removes a key's old value before "
            "it writes the "
            "new one, by as much as this rate says."
        )
        return
    page.text(
        "How much of a key's old value RWKV-7 takes out before it writes the new one: 0 only adds, as "
        "RWKV-6 does; 1 "
        "replaces. Means over a head's channels."
    )
    page.figure(draw.draw_learning_rate(inside), caption="The in-context learning rate by layer and head.")


def _influence(page: Page, inside: Inside) -> None:
    page.heading("How far back a change is felt")
    influence = inside.influence
    M, E = influence.divergence.shape
    if not E or not M:
        page.note(
            "The text is too short: there must be a token to change and another one to predict after it."
        )
        return
    page.text(
        f"One token was replaced by another one of the text, at {M} places, one at a time. The curve says "
        f"how far the {E:,} predictions after it moved from those of the text as it is. "
        + _felt_within(influence.divergence)
    )
    page.figure(
        draw.draw_influence(inside),
        caption="KL divergence of predictions with the change from those without, by distance.",
    )


def _felt_within(divergence: np.ndarray) -> str:
    """Where most of what is felt lies: the median over places of the distance that has 90 % of it."""
    total = divergence.sum(1, keepdims=True)
    if not (total > 0).all():
        return ""
    reached = (divergence.cumsum(1) >= 0.9 * total).argmax(1) + 1
    count = int(np.median(reached))
    tokens = "token" if count == 1 else "tokens"
    return f"Nine tenths of all that is felt lie within {count:,} {tokens} (median)."


def pieces(inside: Inside, tokenizer: Tokenizer) -> Iterator[tuple[str, int, int]]:
    """The text in pieces of whole characters: each with its first token, and the one after its last."""
    decoder, first = StreamDecoder(tokenizer), 0
    shown = inside.tokens[:MOST_SHOWN].tolist()
    for index, token in enumerate(shown):
        text = decoder.push(token)
        if index + 1 == len(shown):
            text += decoder.flush()
        if text:
            yield text, first, index + 1
            first = index + 1
    if first < len(shown):
        yield "", first, len(shown)


def coloured_text(inside: Inside, tokenizer: Tokenizer | None) -> str:
    """The text as HTML, coloured by surprise, with a scale above."""
    # Guessing without knowledge costs log2 N bits: the end of the scale.
    most = math.log2(max(inside.config.vocab_size, 2))
    parts = []
    if tokenizer is None:
        spans = ((str(token), i, i + 1) for i, token in enumerate(inside.tokens[:MOST_SHOWN].tolist()))
        divider = " "
    else:
        spans, divider = pieces(inside, tokenizer), ""
    for text, first, beyond in spans:
        bits = inside.surprise.bits[first:beyond]
        worst = float(np.nanmax(bits)) if not np.isnan(bits).all() else 0.0
        shade = min(_SHADES, round(_SHADES * worst / most))
        details = "\n".join(_details(inside, tokenizer, index) for index in range(first, beyond))
        visible = escape(_visible(text)).replace("\n", "<s>↵</s>\n")
        parts.append(f'<i class="s{shade}" title="{escape(details, quote=True)}">{visible}</i>')
    scale = "".join(f'<i class="s{shade}"></i>' for shade in range(_SHADES + 1))
    shades = "".join(
        f".surprise .s{shade}{{--s:{round(100 * shade / _SHADES)}%}}" for shade in range(1, _SHADES + 1)
    )
    return (
        f"<style>{_CSS}{shades}</style>"
        f'<div class="surprise scale"><span>0 bits</span>{scale}<span>{most:.3g} bits and more</span></div>'
        f'<div class="surprise text">{divider.join(parts)}</div><pre id="detail" hidden></pre>'
        f"<script>{_SCRIPT}</script>"
    )


def _visible(text: str) -> str:
    """Control characters as the pictures that Unicode has of them; an empty piece as a dot."""
    pictures = {code: 0x2400 + code for code in range(0x20) if code not in (0x09, 0x0A)} | {0x7F: 0x2421}
    return text.translate(pictures) if text else "·"


def _details(inside: Inside, tokenizer: Tokenizer | None, index: int) -> str:
    surprise = inside.surprise
    own = _named(tokenizer, int(inside.tokens[index]))
    if math.isnan(surprise.bits[index]):
        return f"{own}: nothing was before it"
    bits = float(surprise.bits[index])
    lines = [f"{own}: {bits:.2f} bits, {_percent(2**-bits)}, rank {surprise.rank[index]:,}"]
    lines += [
        f"{_percent(float(p)):>8}  {_named(tokenizer, int(token))}"
        for token, p in zip(surprise.top_ids[index], surprise.top_probabilities[index], strict=True)
    ]
    return "\n".join(lines)


def _percent(p: float) -> str:
    return f"{p:.1%}" if p >= 0.001 else f"{100 * p:.1g}%"


def _named(tokenizer: Tokenizer | None, token: int) -> str:
    """A token for people: its text, its bytes where it is part of a character, or its id."""
    if tokenizer is None:
        return str(token)
    data = tokenizer.token_bytes(token)
    if not data:
        return f"token {token}"
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return f"bytes {data.hex(' ')}"
    return f"“{text}”" if text.isprintable() else repr(text)


def to_json(inside: Inside, path: str | Path, *, name: str = "the model") -> None:
    """Write the numbers, for programs: everything, but half-lives as quantiles of each layer."""
    values: dict[str, Any] = {
        "model": name,
        "config": inside.config.to_dict(),
        "start": inside.start,
        "tokens": inside.tokens,
        "bits": inside.surprise.bits,
        "rank": inside.surprise.rank,
        "entropy": inside.surprise.entropy,
        "top_ids": inside.surprise.top_ids,
        "top_probabilities": inside.surprise.top_probabilities,
        "tokens_read": inside.read,
        "half_life_quantiles": {
            f"{q:g}": [float(np.quantile(values, q)) for values in inside.half_lives] for q in _QUANTILES
        },
        "state_norm": inside.state_norm,
        "state_rank": inside.state_rank,
        "learning_rate": inside.learning_rate,
        "influence": {
            "positions": inside.influence.positions,
            "replacements": inside.influence.replacements,
            "kl_bits": inside.influence.divergence,
        },
    }
    with atomic_write(path) as file:
        file.write(json.dumps(_plain(values), allow_nan=False).encode())


def _plain(value: Any) -> Any:
    """Values that JSON has: lists for arrays, null for what is no finite number, six digits of the others."""
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


_CSS = """
.surprise i{font-style:normal;--s:0%;border-radius:2px;
background:color-mix(in srgb,var(--cd9622b) calc(var(--s)*.8),transparent)}
.surprise.text{white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.75;background:var(--soft);border-radius:8px;
padding:1rem 1.2rem;margin:.8rem 0 1.4rem;max-height:38rem;overflow-y:auto;
font-family:ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace;
font-size:.92rem;cursor:default}
.surprise.text i{padding:.12em 0}
.surprise.text i:hover,.surprise.text i.on{outline:1.5px solid var(--accent);border-radius:3px}
.surprise s{text-decoration:none;color:var(--muted);opacity:.55;font-size:.85em}
.surprise.scale{display:flex;align-items:center;font-size:.82rem;color:var(--muted);margin-top:1rem}
.surprise.scale i{flex:0 1 1.5rem;height:.85rem;border-radius:0}
.surprise.scale span{margin:0 .6rem;white-space:nowrap}.surprise.scale span:first-child{margin-left:0}
#detail{position:fixed;left:0;right:0;bottom:0;margin:0;padding:.8rem 1.25rem;background:var(--paper);
border-top:1px solid var(--line);box-shadow:0 -4px 18px #0002;font-size:.88rem;white-space:pre-wrap}
"""

# For fingers, which cannot point without touching: a tap shows what pointing shows.
_SCRIPT = """
(()=>{const d=document.getElementById("detail");let on=null;
document.querySelector(".surprise.text").addEventListener("click",e=>{const t=e.target.closest("i");
if(on)on.classList.remove("on");on=t===on?null:t;d.hidden=!on;
if(on){on.classList.add("on");d.textContent=on.title}})})()
"""

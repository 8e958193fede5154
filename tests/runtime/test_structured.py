"""Text that follows a schema, a regular expression or a grammar is the same under every lossless strategy."""

from __future__ import annotations

import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, trainers

import recycle_onnx
from recycle_onnx.errors import InputError, RecycleError, TextError
from recycle_onnx.export import DraftVocabulary, ExportOptions, export
from recycle_onnx.runtime.model import Model
from recycle_onnx.runtime.structured import Constraint, Constraints, Grammar, JsonSchema, Matching, Regex
from tests.helpers import tiny

pytest.importorskip("llguidance")
jsonschema = pytest.importorskip("jsonschema")

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "likes": {"type": "array", "items": {"enum": ["cats", "dogs", "café"]}, "maxItems": 3},
    },
    "required": ["name", "age", "likes"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, dict[str, Any]] = {
    "an object": PERSON,
    "a choice": {"enum": ["yes", "no", None, 3]},
    "one of two": {"anyOf": [{"type": "boolean"}, {"type": "string", "pattern": "^[a-z]{2,5}$"}]},
    "a reference": {
        "$defs": {"pair": {"type": "array", "prefixItems": [{"type": "boolean"}, {"type": "null"}], "items": False,
                           "minItems": 2}},
        "type": "object", "properties": {"p": {"$ref": "#/$defs/pair"}}, "required": ["p"],
        "additionalProperties": False,
    },
}  # fmt: skip
PLANS: list[dict[str, Any]] = [
    *({"strategy": "verify", "chain": chain} for chain in (1, 2, 3, 4)),
    {"strategy": "lookup"},
    {"strategy": "auto"},
]
DATES = Regex(r"(on \d{1,2} (May|June), ){3}the end")
STORY = Grammar('root ::= "The " animal " sat" (" and sat")? "."\nanimal ::= "cat" | "dog" | "hen"')
CONSTRAINTS: list[Constraint] = [JsonSchema(PERSON), DATES, STORY]
CONTROLS: list[dict[str, Any]] = [{}, {"temperature": 1.0, "seed": 3, "repetition_penalty": 1.1}]


@pytest.fixture(scope="module", params=["every token", "a draft vocabulary"])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A random model with a random module, which knows all tokens or 150 of them."""
    folder = tmp_path_factory.mktemp("small")
    tiny.write_checkpoint(folder / "model", tiny.tiny_config(context_length=256), seed=4)
    (folder / "text").write_text(tiny.TEXT + json.dumps(PERSON))
    draft = DraftVocabulary(150, folder / "text") if "draft" in request.param else None
    export(folder / "model", folder / "bundle", ExportOptions(draft_vocabulary=draft))
    return recycle_onnx.load(folder / "bundle", threads=1)


@pytest.fixture(params=["random", "trained"])
def model(request: pytest.FixtureRequest, small: Model, sample_model: Model) -> Model:
    return small if request.param == "random" else sample_model


@pytest.mark.parametrize("strategy", ["full", "alternate", "auto"])
@pytest.mark.parametrize("schema", SCHEMAS)
def test_the_text_is_json_of_the_schema(model: Model, schema: str, strategy: str) -> None:
    for seed in range(3):
        result = model.generate(
            "the cat", constraint=JsonSchema(SCHEMAS[schema]), strategy=strategy, temperature=float(seed > 0), seed=seed
        )
        assert result.finish_reason == "stop"
        assert result.tokens[-1] in model.stop_ids
        jsonschema.validate(json.loads(result.text), SCHEMAS[schema])


@pytest.mark.parametrize("controls", CONTROLS, ids=str)
@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=["schema", "regex", "grammar"])
def test_every_strategy_gives_the_text_of_full(model: Model, constraint: Constraint, controls: dict[str, Any]) -> None:
    expected = model.generate("the cat", constraint=constraint, strategy="full", **controls)
    assert expected.finish_reason == "stop"
    for plan in PLANS:
        result = model.generate("the cat", constraint=constraint, **controls, **plan)
        assert (result.tokens, result.text, result.finish_reason) == (expected.tokens, expected.text, "stop")


def test_the_text_matches_the_whole_expression(model: Model) -> None:
    for seed in range(5):
        text = model.generate("the cat", constraint=DATES, temperature=1.5, seed=seed).text
        assert re.fullmatch(DATES.pattern, text)


def test_a_text_that_is_cut_short_says_so(model: Model) -> None:
    result = model.generate("the cat", constraint=DATES, max_new_tokens=3, strategy="verify", chain=2)
    assert result.finish_reason == "length"
    assert len(result.tokens) == 3


def test_proposals_are_accepted_and_rejected(sample_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    rolled_back: list[int] = []
    rollback = Matching.rollback

    def counted(self: Matching, count: int) -> None:
        rolled_back.append(count)
        rollback(self, count)

    monkeypatch.setattr(Matching, "rollback", counted)
    constraint = Regex("( ?[a-z]+){30}")
    result = sample_model.generate("Once upon a time", constraint=constraint, strategy="verify", chain=4)
    assert 0 < result.stats.accepted < result.stats.proposed
    assert max(rolled_back) > 1


WORDY = JsonSchema({
    "type": "object", "required": ["favourite_animals", "lives_in_town"], "additionalProperties": False,
    "properties": {"favourite_animals": {"enum": ["cat", "dog"]}, "lives_in_town": {"type": "boolean"}},
})  # fmt: skip


@pytest.mark.parametrize("strategy", ["verify", "lookup"])
def test_what_the_constraint_spells_out_takes_no_runs_of_its_own(model: Model, strategy: str) -> None:
    full, fast = (model.generate("the cat", constraint=WORDY, strategy=each) for each in ("full", strategy))
    assert fast.tokens == full.tokens
    assert fast.stats.full_runs < 0.6 * full.stats.full_runs
    assert fast.stats.acceptance_rate is not None
    if strategy == "lookup":
        assert fast.stats.acceptance_rate == 1.0


def test_auto_takes_no_more_runs_than_full_under_a_constraint(model: Model) -> None:
    """How many fewer depends on times: a busy moment may tell it to propose nothing."""
    full, fast = (model.generate("the cat", constraint=WORDY, strategy=each) for each in ("full", "auto"))
    assert fast.tokens == full.tokens
    assert fast.stats.full_runs <= full.stats.full_runs


def test_lookup_proposes_nothing_that_the_constraint_forbids(sample_model: Model) -> None:
    prompt = "on 1 May, on 2 May, on 3 July, on 4 "
    matching = Constraints(sample_model.tokenizer, 2048).prepare(DATES, sample_model.stop_ids).start(np.array([0]))
    followed = sample_model.tokenizer.encode("on 3 July", add_special_tokens=False).ids
    fitting = matching.fitting(followed)
    assert 0 < fitting < len(followed)
    assert sample_model.tokenizer.decode(followed[:fitting]) in ("on 3 ", "on 3 Ju")
    assert matching.fitting(followed) == fitting  # it has read nothing
    plain = sample_model.generate(prompt, constraint=DATES, strategy="full")
    assert sample_model.generate(prompt, constraint=DATES, strategy="lookup").tokens == plain.tokens


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_a_wrong_foresight_changes_nothing(
    sample_model: Model, plan: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = sample_model.generate("the cat", constraint=WORDY, strategy="full").tokens
    dice = np.random.default_rng(0)
    monkeypatch.setattr(Matching, "fast_forward", lambda self: dice.integers(0, 2048, dice.integers(20)).tolist())
    monkeypatch.setattr(Matching, "fitting", lambda self, tokens: int(dice.integers(len(tokens) + 1)))
    for _ in range(5):
        assert sample_model.generate("the cat", constraint=WORDY, **plan).tokens == expected


def test_a_matcher_that_is_not_rolled_back_is_seen(sample_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [_outcome(sample_model, constraint, "full") for constraint in CONSTRAINTS]
    monkeypatch.setattr(Matching, "rollback", lambda self, count: None)
    assert [_outcome(sample_model, constraint, "full") for constraint in CONSTRAINTS] == expected
    for constraint, right in zip(CONSTRAINTS, expected, strict=True):
        assert _outcome(sample_model, constraint, "verify") != right


def _outcome(model: Model, constraint: Constraint, strategy: str) -> list[int] | str:
    try:
        chain = 3 if strategy == "verify" else None
        return model.generate("the cat", constraint=constraint, strategy=strategy, chain=chain).tokens
    except RecycleError as error:
        return str(error)


@pytest.mark.parametrize(
    ("constraint", "words"),
    [
        (JsonSchema({"type": "person"}), "the JSON schema is not one to follow: Invalid type: person"),
        (JsonSchema({"type": "array", "uniqueItems": True}), 'Unimplemented keys: ["uniqueItems"]'),
        (JsonSchema({"type": "integer", "minimum": 5, "maximum": 1}), "Unsatisfiable schema"),
        (JsonSchema({"$ref": "#/nowhere"}), "Pointer '/nowhere' does not exist"),
        (Regex("[a-z"), r"the regular expression .\[a-z. is not one to follow: .*unclosed character class"),
        (Regex("(?=a)b"), "look-around"),
        (Grammar("start: animal"), 'the grammar is not one to follow: .*unknown name: "animal"'),
        (Grammar('root ::= "a" | animal'), "Rule 'animal' not found"),
        (Grammar(""), "the grammar is not one to follow"),
    ],
    ids=str,
)
def test_a_constraint_that_cannot_be_followed_is_refused(
    sample_model: Model, constraint: Constraint, words: str
) -> None:
    with pytest.raises(InputError) as refusal:
        sample_model.generate("the cat", constraint=constraint)
    assert re.search(words if ".*" in words else re.escape(words), str(refusal.value))
    assert "\n" not in str(refusal.value)
    assert sample_model.generate("the cat", constraint=STORY).text.startswith("The ")


def test_what_is_no_constraint_is_refused(sample_model: Model) -> None:
    wrong: Any = {"type": "object"}
    with pytest.raises(InputError, match=r"constraint is .*; expected a JsonSchema, Regex or Grammar"):
        sample_model.generate("the cat", constraint=wrong)
    for make, value in ((JsonSchema, "{}"), (JsonSchema, {"a": {1}}), (Regex, 3), (Grammar, None)):
        with pytest.raises(InputError):
            make(value)


def test_settings_that_contradict_the_constraint(sample_model: Model) -> None:
    with pytest.raises(InputError, match="stop-ids is empty; expected a token that ends the text"):
        sample_model.generate("the cat", constraint=STORY, stop_ids=[])
    with pytest.raises(RecycleError, match="leave nothing to choose"):
        sample_model.generate("the cat", constraint=Regex("ab"), min_new_tokens=9)


def test_a_text_beyond_the_limits_ends_with_an_error(sample_model: Model) -> None:
    endless = Grammar("start: a\na: a")
    with pytest.raises(RecycleError, match="llguidance cannot follow the text"):
        sample_model.generate("the cat", constraint=endless)


def test_a_guess_that_the_matcher_refuses_is_forgotten(sample_model: Model) -> None:
    """As one beyond its limits would be: llguidance's matcher answers nothing more after an error."""
    spelled, wrong = (sample_model.tokenizer.encode(text, add_special_tokens=False).ids for text in ("on ", "zebra"))
    start = Constraints(sample_model.tokenizer, 2048).prepare(DATES, sample_model.stop_ids).start
    fresh, shaken = start(np.array([0])), start(np.array([0]))
    for token in spelled:
        fresh.advance(token)
        with pytest.raises(TextError, match="llguidance cannot follow"):
            shaken.advance(wrong[0])
        shaken.advance(token)
    with pytest.raises(TextError):
        shaken.advance(wrong[0])
    shaken.rollback(1)
    fresh.rollback(1)
    assert shaken.fast_forward() == fresh.fast_forward()
    logits = [follower(np.array(spelled), np.zeros(2048, np.float32)) for follower in (fresh, shaken)]
    np.testing.assert_array_equal(*logits)


def test_an_ordinary_token_may_end_the_text_only_where_it_is_complete(sample_model: Model) -> None:
    ends = [*sample_model.stop_ids, *sample_model.tokenizer.encode("b", add_special_tokens=False).ids]
    for seed in range(5):
        controls: dict[str, Any] = {"stop_ids": ends, "temperature": 2.0, "seed": seed}
        assert re.fullmatch("a[bc]{2}", sample_model.generate("x", constraint=Regex("a[bc]{2}"), **controls).text)


def test_threads_share_what_is_kept_of_a_constraint(sample_model: Model) -> None:
    def run(seed: int) -> list[int]:
        return sample_model.generate("the cat", constraint=STORY, temperature=1.0, seed=seed).tokens

    expected = [run(seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run, range(8))) == expected


def test_without_the_extra_one_line_says_what_to_install(sample_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(InputError, match=r"pip install 'recycle-onnx\[structured\]'"):
        sample_model.generate("the cat", constraint=STORY)


def sentencepiece_like() -> Tokenizer:
    """BPE as Llama 2 has it: ▁ for spaces, and bytes for what it lacks."""
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=special, show_progress=False)
    made.train_from_iterator([tiny.TEXT, '{"name": "a cat"}'], trainer)
    data = json.loads(made.to_str())
    data["added_tokens"] = [token for token in data["added_tokens"] if token["id"] < 3]
    made = Tokenizer.from_str(json.dumps(data))
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return made


@pytest.mark.parametrize("make", [tiny.tokenizer, sentencepiece_like], ids=["byte-level", "byte fallback"])
def test_tokens_are_known_by_their_bytes(make: Any) -> None:
    """Whatever pieces it comes in, a text is followed to its end, and no byte of another is."""
    tokenizer = make()
    size = tokenizer.get_vocab_size()
    text = '{"naïve": "the 猫 sat 🐈 on the mat"}'
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids).strip() == text
    follower = Constraints(tokenizer, size).prepare(Regex(" ?" + re.escape(text)), frozenset([0])).start(np.array([]))
    for place, token in enumerate(ids):
        allowed = np.isfinite(follower(np.array(ids[:place]), np.zeros(size, np.float32)))
        assert allowed[token], (place, token)
        assert allowed.sum() < 16
        follower.advance(token)
    assert np.flatnonzero(np.isfinite(follower(np.array(ids), np.zeros(size, np.float32)))).tolist() == [0]


@pytest.mark.parametrize(("rows", "extra"), [(300, 0), (300, 1), (288, 40), (256, 0)])
def test_the_model_may_have_fewer_tokens_than_the_tokenizer_or_more(rows: int, extra: int, tmp_path: Path) -> None:
    """Gemma's small models have no row for the image token: masks have the model's size."""
    tiny.write_checkpoint(tmp_path / "model", tiny.tiny_config(vocab_size=rows), seed=4)
    tokenizer = tiny.tokenizer()
    tokenizer.add_special_tokens([f"<image {n}>" for n in range(extra)])
    tokenizer.save(str(tmp_path / "model" / "tokenizer.json"))
    export(tmp_path / "model", tmp_path / "bundle")
    model = recycle_onnx.load(tmp_path / "bundle", threads=1)
    texts = {
        strategy: model.generate([1, 2, 3], strategy=strategy, constraint=Regex("(cat|dog|hen){2}!")).text
        for strategy in model.strategies
        if strategy != "alternate"
    }
    assert re.fullmatch("(cat|dog|hen){2}!", texts["full"])
    assert set(texts.values()) == {texts["full"]}


def test_added_tokens_without_a_row_are_ordinary_text_in_a_bundle(tmp_path: Path) -> None:
    tiny.write_base(tmp_path / "model", tiny.tiny_config(vocab_size=288))
    tokenizer = tiny.tokenizer()
    tokenizer.add_special_tokens(["<fits>", "<image>"])
    tokenizer.save(str(tmp_path / "model" / "tokenizer.json"))
    export(tmp_path / "model", tmp_path / "bundle")
    model = recycle_onnx.load(tmp_path / "bundle", threads=1)
    assert model.encode("a<fits>")[-1] == 287
    assert model.tokenizer.decode(model.encode("an <image>")) == "an <image>"
    assert model.generate("an <image>", max_new_tokens=1).tokens


def test_masks_fit_the_logits_whatever_the_tokenizer_has() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.add_special_tokens([f"<image {n}>" for n in range(64)])
    follower = Constraints(tokenizer, 287).prepare(Regex("cat"), frozenset([0])).start(np.array([]))
    allowed = np.isfinite(follower(np.array([]), np.zeros(287, np.float32)))
    assert {tokenizer.decode([token]) for token in np.flatnonzero(allowed)} <= {"c", "ca", "cat"}
    assert allowed.any()

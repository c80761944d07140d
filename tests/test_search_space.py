from __future__ import annotations

import random

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from search_evaluator import FEATURES, SPACE, space

from fpn_bench import zoo
from fpn_bench.errors import FormatVersionError, SpaceError, UnknownNameError
from fpn_bench.graph import cost
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.search import Space, list_spaces
from fpn_bench.search.dimensions import choices_key
from fpn_bench.search.space import BASELINES, FREE

WIDE = {
    "family": {"choices": ["pafpn", "fpn", "top_only"]},
    "channels": {"range": [32, 96], "step": 32},
    "out_levels": {"choices": [[3, 4, 5], [3, 4, 5, 6]]},
    "merge": {"choices": ["sum", "max"]},
    "repeats": {"range": [1, 3], "when": {"family": ["fpn"], "merge": "sum"}},
    "extra": {"choices": ["subsample", "on_input"], "when": {"out_levels": [[3, 4, 5, 6]]}},
}


def neck(**changes):
    return space(neck={**SPACE["neck"], **changes})


# -- what may be chosen -----------------------------------------------------------------------------------------


@given(seed=st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_samples_and_their_neighbours_belong_to_the_space_and_can_be_built(seed):
    searched = space(neck=WIDE)
    rng = random.Random(seed)
    choices = searched.sample(rng)
    around = searched.neighbours(choices, rng)
    assert around
    assert choices not in around
    for c in (choices, *around):
        assert searched.contains(c)
        assert searched.to_graph(c, FEATURES).outputs


def test_size_counts_what_enumerate_lists_each_once():
    for neck_block in (SPACE["neck"], WIDE, {"family": "fpn"}):
        searched = space(neck=neck_block)
        listed = [choices_key(c) for c in searched.enumerate()]
        assert len(set(listed)) == len(listed) == searched.size
        assert all(searched.contains(c) for c in searched.enumerate())
    # by hand: 3 widths x 2 levels (one with 2 extra rules) x per family: merge, repeats
    assert space(neck=WIDE).size == 3 * (1 + 2) * (2 + (3 + 1) + 1)


def test_neighbours_reach_the_whole_space():
    searched = space(neck=WIDE)
    rng = random.Random(0)
    queue = [searched.sample(rng)]
    reached = {choices_key(queue[0])}
    for current in queue:
        for c in searched.neighbours(current, rng):
            if choices_key(c) not in reached:
                reached.add(choices_key(c))
                queue.append(c)
    assert len(reached) == searched.size


def test_a_key_is_asked_only_when_its_condition_holds_and_its_family_knows_it():
    searched = space(neck=WIDE)
    for choices in searched.enumerate():
        assert ("repeats" in choices) == (choices["family"] == "fpn" and choices["merge"] == "sum")
        assert ("merge" in choices) == (choices["family"] != "top_only")
        assert ("extra" in choices) == (choices["out_levels"] == [3, 4, 5, 6])


def test_out_of_play_keys_are_refused():
    assert not neck().contains(
        {"family": "pafpn", "channels": 64, "out_levels": [3, 4, 5], "merge": "sum", "repeats": 2}
    )
    assert not neck().contains({"family": "pafpn", "channels": 65, "out_levels": [3, 4, 5], "merge": "sum"})


@given(low=st.integers(1, 50), steps=st.integers(1, 20), step=st.integers(1, 8), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_a_range_holds_its_ends_and_only_its_steps(low, steps, step, seed):
    searched = neck(channels={"range": [low, low + steps * step], "step": step})
    channels = searched.dimensions["channels"]
    values = list(channels.enumerate())
    assert values == list(range(low, low + steps * step + 1, step))
    assert channels.size == len(values)
    assert channels.sample(random.Random(seed)) in values
    assert all(channels.contains(v) == (v in values) for v in range(low - 2, low + steps * step + 3))
    assert channels.nearest(10**6) == values[-1]


def test_a_logarithmic_whole_range_gives_whole_numbers():
    channels = neck(channels={"range": [8, 256], "log": True}).dimensions["channels"]
    drawn = [channels.sample(random.Random(i)) for i in range(300)]
    assert all(isinstance(v, int) and 8 <= v <= 256 for v in drawn)
    assert 0.4 < sum(v < 45 for v in drawn) / 300 < 0.6  # 45 is the geometric middle


def test_true_is_not_one():
    separable = neck(separable={"choices": [True, False]}).dimensions["separable"]
    assert separable.contains(True)
    assert not separable.contains(1)


def test_a_list_of_backbones_is_a_choice():
    searched = space(backbone=[{"name": "a"}, {"name": "b", "weights": "b.safetensors", "levels": [2, 3, 4, 5]}])
    assert searched.size == 2 * space().size
    assert searched.backbone({"backbone": "b"}).levels == (2, 3, 4, 5)
    assert {e.choices["backbone"] for e in searched.enqueued()} == {"a", "b"}


# -- what is asked first ----------------------------------------------------------------------------------------


def test_published_necks_come_first_at_one_width_and_fpn_at_the_ends():
    queued = space().enqueued()
    assert {e.choices["family"] for e in queued} == set(BASELINES)
    assert [e.inside for e in queued] == [e.choices["family"] in ("fpn", "pafpn") for e in queued]
    widths = {f: sorted(e.choices["channels"] for e in queued if e.choices["family"] == f) for f in BASELINES}
    assert widths == {"fpn": [32, 64, 96], "pafpn": [64], "channel_mapper": [64], "top_only": [64]}
    for e in queued:
        assert e.source == "published"
        defaults = zoo.options(e.choices["family"])
        assert all(e.choices.get(k, v) == v for k, v in defaults.items())
        assert space().to_graph(e.choices, FEATURES).outputs


def test_published_settings_snap_to_what_the_space_has():
    searched = neck(merge={"choices": ["max", "concat"]}, repeats={"range": [2, 3]}, norm="batch")
    fpn = searched.enqueued()[0].choices
    assert (fpn["merge"], fpn["repeats"]) == ("max", 2)
    assert searched.settings(fpn)["norm"] == "batch"
    mapper = next(e.choices for e in searched.enqueued() if e.choices["family"] == "channel_mapper")
    assert searched.settings(mapper)["norm"] == "batch"


def test_enqueue_none_and_by_hand():
    assert space(enqueue="none").enqueued() == []
    given_ = {"family": "top_only", "channels": 7, "out_levels": [4, 5]}
    (queued,) = space(enqueue=[given_]).enqueued()
    assert (queued.choices, queued.source, queued.inside) == (given_, "enqueued", False)


def test_label_names_what_is_not_the_default():
    choices = {"family": "fpn", "channels": 32, "out_levels": [3, 4, 5, 6], "merge": "max", "repeats": 1}
    assert space().label(choices) == "fpn 32ch P3-P6 merge=max"


# -- identity ---------------------------------------------------------------------------------------------------


def test_fingerprint_is_of_candidates_and_their_judging_alone():
    same = space(name="other", budget={"trials": 3}, sampler={"kind": "random"}, enqueue="none")
    assert same.fingerprint == space().fingerprint
    for changes in (
        {"neck": {"family": "fpn"}},
        {"constraints": ["params <= 1e6"]},
        {"objectives": {"ap": "maximise"}},
        {"image_size": [192, 224]},
        {"head": {"convs": 1}},
        {"backbone": {"name": "made_up_net", "weights": "hub"}},
    ):
        assert space(**changes).fingerprint != space().fingerprint


def test_a_space_from_before_there_were_adapters_keeps_its_fingerprint():
    raw = {
        "name": "s",
        "backbone": {"name": "resnet18"},
        "data": {"kind": "synthetic"},
        "image_size": [64, 64],
        "neck": {"family": "fpn", "channels": {"choices": [16, 24]}},
    }
    assert Space.from_dict(raw).fingerprint == "df83c9c6975a"
    adapters = ("simple", "taps", "none")
    spaces = [Space.from_dict({**raw, "backbone": {"name": "resnet18", "adapter": adapter}}) for adapter in adapters]
    assert spaces[0].fingerprint == "df83c9c6975a"
    assert len({searched.fingerprint for searched in spaces}) == 3
    with pytest.raises(SpaceError, match="backbone"):
        Space.from_dict({**raw, "backbone": {"name": "resnet18", "adapter": "sample"}})


def test_both_spellings_of_a_direction_are_one_space():
    american = space(objectives={"ap": "maximize", "latency_ms": "minimize"})
    assert american.fingerprint == space().fingerprint


# -- the file ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list_spaces())
def test_shipped_spaces_can_be_searched(name):
    shipped = Space.load(name)
    shipped.check()
    assert shipped.name == name
    assert {e.choices.get("family", shipped.families[0]) for e in shipped.enqueued()} >= set(BASELINES)
    # What is asked first and what is drawn can be built, over the backbone's levels at made-up widths.
    features = [FeatureSpec(level, 16 * 2**level, 2**level) for level in shipped.backbones[0].levels]
    rng = random.Random(0)
    for choices in [e.choices for e in shipped.enqueued()] + [shipped.sample(rng) for _ in range(4)]:
        assert cost(shipped.to_graph(choices, features), shipped.image_size).params > 0


def test_every_family_is_searched_by_some_shipped_space():
    searched = {family for name in list_spaces() for family in Space.load(name).families}
    assert searched == set(zoo.list_necks())


@pytest.mark.parametrize("word", FREE)
def test_every_free_space_is_searched_by_the_shipped_space_of_its_name(word):
    dimensions = Space.load(word).dimensions
    assert FREE[word].option in dimensions
    assert dimensions[FREE[word].option].contains(dimensions[FREE[word].option].middle())


def test_quickstart_is_shipped_and_a_path_works(tmp_path):
    assert "quickstart" in list_spaces()
    copy = tmp_path / "mine.yaml"
    copy.write_text(Space.load("quickstart").text)
    assert Space.load(copy).fingerprint == Space.load("quickstart").fingerprint


def test_numbers_with_an_exponent_are_numbers(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump({**SPACE, "training": {"epochs": 1}}).replace("epochs: 1", "learning_rate: 1e-3"))
    assert Space.load(path).training.learning_rate == 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nack": {}}, "unknown key 'nack': did you mean 'neck'"),
        ({"training": {"epoch": 3}}, "training: unknown key 'epoch': did you mean 'epochs'?"),
        ({"head": {"conv": 3}}, "head: unknown key 'conv': did you mean 'convs'?"),
        ({"data": {"kind": "synthetic", "sed": 1}}, "data: unknown key 'sed': did you mean 'seed'?"),
        ({"backbone": {"nmae": "x"}}, "backbone: unknown key 'nmae': did you mean 'name'?"),
        ({"backbone": [{"name": "x"}, {"name": "y", "weigths": 1}]}, "backbone[1]: unknown key 'weigths'"),
        ({"neck": {"family": {"choises": ["fpn"]}}}, "neck.family: unknown key 'choises': did you mean 'choices'?"),
        ({"neck": {"family": "fpn", "chanels": 3}}, "neck: unknown key 'chanels': did you mean 'channels'?"),
        ({"neck": {"family": "fpm"}}, "neck.family: unknown neck 'fpm': did you mean 'fpn'"),
        ({"neck": {"famly": "fpn"}}, "neck: 'famly' came; `family:` is wanted"),
        ({"neck": {"family": "fpn", "merge": {"choices": []}}}, "neck.merge.choices:"),
        ({"neck": {"family": "fpn", "merge": {"choices": ["sum", "sum"]}}}, "'sum' came twice"),
        ({"neck": {"family": "fpn", "repeats": {"range": [3, 1]}}}, "low < high is wanted"),
        ({"neck": {"family": "fpn", "repeats": {"range": [3]}}}, "neck.repeats.range"),
        ({"neck": {"family": "fpn", "repeats": {"range": [True, 3]}}}, "neck.repeats.range[0]: a number is wanted"),
        (
            {"neck": {"family": "fpn", "repeats": {"range": [1, 3], "step": True}}},
            "step: a number is wanted (true came",
        ),
        (
            {"neck": {"family": "fpn", "repeats": {"range": [1, 3], "choices": [1]}}},
            "neck.repeats: `choices:` and `range:` came; one of `choices:`, `range:` and `free:` is wanted",
        ),
        ({"neck": {"family": "fpn", "channels": {"range": [32, 100], "step": 16}}}, "96 would be the end"),
        ({"neck": {"family": "fpn", "channels": {"range": [0, 100], "log": True}}}, "low > 0"),
        ({"neck": {"family": "fpn", "merge": {"choices": ["sum"], "when": {"famly": "x"}}}}, "unknown key 'famly'"),
        ({"neck": {"family": "fpn", "merge": {"choices": ["sum"], "when": {"family": "x"}}}}, "can never hold"),
        ({"objectives": {"app": "maximise"}}, "unknown objective 'app': did you mean 'ap'?"),
        ({"objectives": {"ap": "minimise"}}, "objectives.ap: minimise came; maximize is wanted"),
        ({"objectives": {}}, "at least one is wanted"),
        (
            {"constraints": ["parms <= 3"]},
            "constraints[0]: unknown constrained quantity 'parms': did you mean 'params'",
        ),
        ({"constraints": ["params < 3"]}, "constraints[0]: 'params < 3' came; NAME <= NUMBER is wanted"),
        ({"constraints": ["params <= lots"]}, "NAME <= NUMBER is wanted"),
        ({"budget": {"trials": 0}}, "budget.trials: "),
        ({"sampler": {"kind": "tpa"}}, "sampler.kind: "),
        ({"name": "a/b"}, "name: "),
        ({"enqueue": [{"family": "fpn"}]}, "enqueue[0]: no `channels:` came"),
        ({"enqueue": [{"family": "fpn", "marge": 1}]}, "enqueue[0]: unknown key 'marge': did you mean 'merge'?"),
        ({"enqueue": [{"family": "fpm"}]}, "enqueue[0]: unknown neck 'fpm'"),
        ({"backbone": [{"name": "x"}, {"name": "x"}]}, "different names"),
        ({"backbone": {"name": "x", "levels": [3, 5]}}, "consecutive levels"),
    ],
)
def test_what_a_space_cannot_say_is_one_clear_line(changes, message):
    with pytest.raises(SpaceError) as error:
        space(**changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@given(key=st.text(min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_no_unknown_key_passes(key):
    if key not in SPACE and key not in ("head", "training", "constraints", "sampler", "enqueue"):
        with pytest.raises(SpaceError, match="unknown key"):
            space(**{key: 1})


def test_conditions_that_wait_for_each_other():
    circle = {"up": {"choices": ["nearest"], "when": {"norm": "none"}}}
    with pytest.raises(SpaceError, match="wait for each other"):
        neck(**circle, norm={"choices": ["none"], "when": {"up": "nearest"}})


def test_a_missing_key_is_named():
    with pytest.raises(SpaceError, match="image_size: nothing came; this key is wanted"):
        Space.from_dict({k: v for k, v in SPACE.items() if k != "image_size"})


def test_a_newer_file_is_refused():
    with pytest.raises(FormatVersionError, match="schema_version 2 came"):
        space(schema_version=2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nneck: [1, 2\n", "line 3"),
        ("name: x\nname: y\n", "line 2, column 1: not valid YAML: key 'name' came twice"),
        ("name: !!python/object/apply:os.getcwd []\n", "line 1"),
        ("- 1\n", "a list came"),
        ("", "nothing came"),
    ],
)
def test_broken_yaml_says_where(tmp_path, text, message):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(SpaceError) as error:
        Space.load(path)
    assert str(path) in str(error.value)
    assert message in str(error.value)


def test_a_file_that_is_not_there():
    with pytest.raises(SpaceError, match=r"does not exist; shipped ones: .*quickstart"):
        Space.load("spaces/nowhere.yaml")
    with pytest.raises(UnknownNameError, match="did you mean 'quickstart'"):
        Space.load("quikstart")


def test_check_finds_spaces_and_values_that_cannot_be_built():
    with pytest.raises(SpaceError, match=r"no choice set can be built.*P2 asked for"):
        neck(out_levels={"choices": [[2, 3], [2, 3, 4]]}).check()
    with pytest.raises(SpaceError, match=r"neck\.merge\.choices\[1\]: cannot be built: .*'smu'"):
        neck(merge={"choices": ["sum", "smu"]}).check()
    neck().check(FEATURES)

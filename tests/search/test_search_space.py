from __future__ import annotations

import json
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
from fpn_bench.search.space import BASELINES, FREE, choices_key
from fpn_bench.search.space.schema import SpaceFile

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
    around = list(searched.neighbours(choices, rng))
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


@pytest.mark.parametrize(
    ("searched", "wanted"), [(["none", "batch", "group"], "group"), (["none", "batch"], "batch"), (["none"], "none")]
)
def test_published_necks_have_the_norm_layer_of_the_space(searched, wanted):
    given = space(neck={"family": {"choices": ["fpn", "pafpn"]}, "channels": 32, "norm": {"choices": searched}})
    published = [enqueued.choices for enqueued in given.enqueued() if enqueued.source == "published"]
    assert len(published) >= 4
    assert {given.settings(choices)["norm"] for choices in published if choices["family"] != "top_only"} == {wanted}


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
        ({"neck": {"famly": "fpn"}}, "upernet; got 'famly'"),
        ({"neck": {"family": "fpn", "merge": {"choices": []}}}, "neck.merge.choices:"),
        (
            {"neck": {"family": "fpn", "merge": {"choices": ["sum", "sum"]}}},
            "each value once, got 'sum' twice",
        ),
        ({"neck": {"family": "fpn", "repeats": {"range": [3, 1]}}}, "with low < high, got [3, 1]"),
        ({"neck": {"family": "fpn", "repeats": {"range": [3]}}}, "neck.repeats.range"),
        (
            {"neck": {"family": "fpn", "repeats": {"range": [True, 3]}}},
            "repeats.range[0]: expected a number, got true",
        ),
        (
            {"neck": {"family": "fpn", "repeats": {"range": [1, 3], "step": True}}},
            "step: expected a number, got true",
        ),
        (
            {"neck": {"family": "fpn", "repeats": {"range": [1, 3], "choices": [1]}}},
            "neck.repeats: expected one of `choices:`, `range:` and `free:`, got `choices:` and `range:`",
        ),
        ({"neck": {"family": "fpn", "channels": {"range": [32, 100], "step": 16}}}, "try 96 as the end"),
        ({"neck": {"family": "fpn", "channels": {"range": [0, 100], "log": True}}}, "low > 0"),
        ({"neck": {"family": "fpn", "merge": {"choices": ["sum"], "when": {"famly": "x"}}}}, "unknown key 'famly'"),
        ({"neck": {"family": "fpn", "merge": {"choices": ["sum"], "when": {"family": "x"}}}}, "can never hold"),
        ({"objectives": {"app": "maximise"}}, "unknown objective 'app': did you mean 'ap' or"),
        ({"objectives": {"ap": "minimise"}}, "objectives.ap: expected maximize, got minimise"),
        ({"objectives": {}}, "objectives: expected at least one, got none"),
        (
            {"constraints": ["parms <= 3"]},
            "constraints[0]: unknown constrained quantity 'parms': did you mean 'params'",
        ),
        ({"constraints": ["params < 3"]}, "constraints[0]: expected NAME <= NUMBER, got 'params < 3'"),
        ({"constraints": ["params <= lots"]}, "expected NAME <= NUMBER"),
        ({"budget": {"trials": 0}}, "budget.trials: "),
        ({"sampler": {"kind": "tpa"}}, "sampler.kind: "),
        ({"name": "a/b"}, "name: "),
        (
            {"enqueue": [{"family": "fpn"}]},
            "enqueue[0]: expected `channels:`, which a candidate to enqueue says",
        ),
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
    if key not in SpaceFile.model_fields:
        with pytest.raises(SpaceError, match="unknown key"):
            space(**{key: 1})


def test_conditions_that_wait_for_each_other():
    circle = {"up": {"choices": ["nearest"], "when": {"norm": "none"}}}
    with pytest.raises(SpaceError, match="wait for each other"):
        neck(**circle, norm={"choices": ["none"], "when": {"up": "nearest"}})


def test_a_missing_key_is_named():
    with pytest.raises(SpaceError, match="image_size: expected a value, got nothing"):
        Space.from_dict({k: v for k, v in SPACE.items() if k != "image_size"})


def test_a_newer_file_is_refused():
    with pytest.raises(FormatVersionError, match="expected schema_version up to 1, got 2"):
        space(schema_version=2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nneck: [1, 2\n", "line 3"),
        ("name: x\nname: y\n", "line 2, column 1: not valid YAML: key 'name' occurs twice"),
        ("name: !!python/object/apply:os.getcwd []\n", "line 1"),
        ("- 1\n", "got a list"),
        ("", "got nothing"),
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


# -- faults of files people have written ------------------------------------------------------------------------


def text_with(line: str) -> str:
    """A space file in which a line replaces that of its key, or is added."""
    key = line.split(":")[0]
    lines = [f"{k}: {json.dumps(v)}" for k, v in SPACE.items() if k != key]
    return "\n".join([*lines, line]) + "\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("image_size: 64x64", "image_size: expected [height, width] in whole pixels, got 64x64; try [64, 64]"),
        ("image_size: 640X480", "got 640X480; try [640, 480]"),
        ("image_size: 128", "image_size: expected [height, width] in whole pixels, got 128; try [128, 128]"),
        ("image_size: [128]", "got [128]; try [128, 128]"),
        ("image_size: [128.0, 96]", "image_size: expected [height, width] in whole pixels"),
        ("image_size: [true, 96]", "image_size: expected [height, width] in whole pixels"),
        ("image_size: [64, 1:4]", "image_size: expected [height, width] in whole pixels"),
        ("image_size: [0, 64]", "image_size: expected [height, width] of 1 to 16384 pixels each, got [0, 64]"),
        ("image_size: [400000000, 64]", "of 1 to 16384 pixels each"),
        ("training: {epochs: true}", "training.epochs: expected a whole number, got true"),
        ("training: {epochs: '3'}", "training.epochs: expected a whole number, got 3"),
        ("training: {epochs: 2.0}", "training.epochs: expected a whole number, got 2.0"),
        ("training: {mirror: 1}", "training.mirror: expected true or false, got 1"),
        ("training: {mirror: yes}", "training.mirror: expected true or false, got yes"),
        ("training: {learning_rate: '1e-3'}", "training.learning_rate: expected a number, got 1e-3"),
        ("budget: {trials: true}", "budget.trials: expected a whole number, got true"),
        ("budget: {hours: false}", "budget.hours: expected a number, got false"),
        ("sampler: {seed: '1'}", "sampler.seed: expected a whole number, got 1"),
        ("rungs: {epochs: [true]}", "rungs.epochs[0]: expected a whole number, got true"),
        ("head: {convs: 1.0}", "head.convs: expected a whole number, got 1.0"),
        ("latency: {batch: true}", "latency.batch: expected a whole number, got true"),
        ("data: {kind: synthetic, seed: true}", "data.seed: expected a whole number, got true"),
        (
            "data: {kind: synthetic, image_size: 64}",
            "data.image_size: expected [height, width] in whole pixels",
        ),
        ("backbone: {name: 3}", "backbone.name: expected a text, got 3"),
        ("backbone: {name: x, levels: 3}", "backbone.levels: expected a list, got 3"),
        ("backbone: {name: x, levels: [3, 4.0]}", "backbone.levels[1]: expected a whole number, got 4.0"),
        ("backbone: {name: x, levels: [3, 400]}", "backbone.levels[1]: expected a number of at most 16, got 400"),
        ("name: &a [*a]", "contains itself"),
        ("enqueue: &a [{family: *a}]", "contains itself"),
        ("name: " + "[" * 2000 + "]" * 2000, "nested deeper than"),
        ("neck: {family: " + "[" * 60 + "]" * 60 + "}", "expected at most 32 levels of nesting"),
        (
            "neck: {family: fpn, channels: 400000000}",
            "channels: expected a number of at most 65536, got 400000000",
        ),
        (
            "neck: {family: fpn, channels: {choices: [64, 400000000]}}",
            "neck.channels.choices[1]: expected a number of at most 65536, got 400000000",
        ),
        (
            "neck: {family: fpn, channels: {range: [64, 400000000], log: true}}",
            "neck.channels.range[1]: expected a number of at most 65536, got 400000000",
        ),
        ("neck: {family: fpn, channels: 1" + "0" * 400 + "}", "neck.channels: expected a number of at most 65536"),
        ("neck: {family: fpn, out_levels: [3, 4000]}", "neck.out_levels[1]: expected a number of at most 16, got 4000"),
        (
            "neck: {family: fpn, repeats: {range: [1, 100000]}}",
            "neck.repeats.range[1]: expected a number of at most 1024, got 100000",
        ),
        ("neck: {family: fpn, repeats: 2000}", "neck.repeats: expected a number of at most 1024, got 2000"),
        (
            "enqueue: [{family: fpn, channels: 32, out_levels: [3, 4], repeats: 100000}]",
            "enqueue[0].repeats: expected a number of at most 1024, got 100000",
        ),
        (
            "neck: {family: pyramid_dags, channels: 16, dag: {free: pyramid_dags, nodes: 1000000}}",
            "neck.dag.nodes: expected a number of at most 256, got 1000000",
        ),
    ],
)
def test_what_a_file_cannot_say_is_one_clear_line_at_once(line, message):
    with pytest.raises(SpaceError) as error:
        Space.parse(text_with(line))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("typed", "value"), [("0100", 100), ("0x40", 64), ("0o100", 64), ("64", 64), ("+64", 64)], ids=str
)
def test_a_whole_number_is_what_it_looks_like(typed, value):
    read = Space.parse(text_with(f"neck: {{family: fpn, out_levels: [3, 4], channels: {typed}}}"))
    assert read.constants["channels"] == value


def test_content_that_holds_itself_is_refused_too():
    raw = {**SPACE}
    raw["neck"] = {"family": raw}
    with pytest.raises(SpaceError, match="expected at most 32 levels of nesting"):
        Space.from_dict(raw)


def test_the_size_of_a_space_whose_conditions_read_a_fine_range_takes_no_time():
    fine = neck(
        repeats={"range": [1, 1024]},
        norm={"choices": ["none", "batch"], "when": {"repeats": [3, 5]}},
    )
    # per width, levels, merge; of the repeats two have two norms, of the family that knows none one
    assert fine.size == 4 * 2 * 4 * (1026 + 1)


@given(
    high=st.integers(2, 6),
    read=st.sets(st.integers(1, 6), min_size=1, max_size=3),
)
@settings(max_examples=40, deadline=None)
def test_size_is_the_length_of_the_list_whatever_conditions_read(high, read):
    if min(read) > high:
        return
    searched = neck(
        family="fpn",
        repeats={"range": [1, high]},
        norm={"choices": ["none", "batch"], "when": {"repeats": sorted(read)}},
    )
    assert searched.size == len(list(searched.enumerate()))


def test_an_end_of_a_range_that_no_neck_has_is_named():
    with pytest.raises(SpaceError, match=r"neck\.repeats\.range\[0\]: cannot be built: .*repeats=0"):
        neck(family="fpn", repeats={"range": [0, 3]}).check()


def test_content_that_stands_in_itself_many_times_over_is_refused_at_once():
    many: list = [1] * 10
    for _ in range(12):
        many = [many] * 10
    with pytest.raises(SpaceError, match="expected at most 200000 values, got more"):
        Space.from_dict({"name": "x", "neck": many})

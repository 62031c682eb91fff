import math
from contextlib import nullcontext
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs.specs import DIGITS, IMAGE, MAPPED, PLAIN, Z, inputs_of
from specs import classes, image, make_spec

from latentry.contract.errors import BadRequest
from latentry.contract.seeds import MAX_SEED, draw_uniform
from latentry.synthesis.job import Job
from latentry.synthesis.plan import JobPlan, plan_from_job

SHARD_SIZES = st.integers(1, 60)


RESERVES = st.sampled_from([0, 0.1, 0.25, 1, 3.5])


@st.composite
def class_jobs(draw: st.DrawFn) -> Job:
    labels = draw(st.lists(st.integers(0, 9), min_size=1, max_size=10, unique=True))
    samples = {
        "per_class": {str(label): draw(st.integers(1, 80)) for label in labels},
        "first_seed": draw(st.integers(0, 10**9)),
        "reserve": draw(RESERVES),
    }
    output = {"shard_size": draw(SHARD_SIZES)}
    return Job.model_validate({"model": "digits", "samples": samples, "output": output})


@st.composite
def seed_jobs(draw: st.DrawFn) -> Job:
    first, count = draw(st.integers(0, 10**9)), draw(st.integers(1, 400))
    samples = {"seeds": f"{first}-{first + count - 1}", "reserve": draw(RESERVES)}
    output = {"shard_size": draw(SHARD_SIZES)}
    return Job.model_validate({"model": "plain", "samples": samples, "output": output})


JOBS = st.one_of(class_jobs(), seed_jobs())


def plan_of(job: Job) -> JobPlan:
    return plan_from_job(job, DIGITS)


@given(JOBS)
def test_the_shards_are_the_job_and_no_seed_is_in_two_places(job: Job) -> None:
    plan = plan_of(job)
    shards = [plan.shard(number) for number in range(plan.shards)]
    assert shards[0].first_index == 0
    assert all(a.first_index + len(a) == b.first_index for a, b in pairwise(shards))
    assert shards[-1].first_index + len(shards[-1]) == plan.samples
    own = np.concatenate([shard.seeds for shard in shards])
    assert own.tolist() == list(range(plan.first_seed, plan.first_seed + plan.samples))
    reserves = [seed for shard in shards for seed in shard.reserve]
    assert len({*own.tolist(), *reserves}) == plan.samples + plan.shards * plan.reserve
    assert max([*own.tolist(), *reserves]) <= MAX_SEED


@given(JOBS)
def test_shards_are_of_one_size_none_is_empty_and_none_over_shard_size(job: Job) -> None:
    plan = plan_of(job)
    assert job.output.shard_size is not None
    assert plan.shards == math.ceil(plan.samples / job.output.shard_size)
    sizes = [plan.size(number) for number in range(plan.shards)]
    assert sizes == [len(plan.shard(number)) for number in range(plan.shards)]
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= job.output.shard_size
    assert plan.reserve == math.ceil(job.samples.reserve * max(sizes))


@given(class_jobs())
def test_every_class_has_its_count_spread_evenly_over_the_shards(job: Job) -> None:
    plan = plan_of(job)
    found: dict[int | None, list[int]] = {label: [] for label, _ in plan.counts}
    for number in range(plan.shards):
        labels = plan.shard(number).labels
        assert labels is not None
        assert len(labels) == plan.size(number)
        for label, shares in found.items():
            shares.append(int((labels == label).sum()))
        # In turn: nowhere does a class come again before every class that has some left.
        for label in np.unique(labels):
            places = np.flatnonzero(labels == label)
            for start, stop in pairwise(places):
                between = labels[start:stop]
                assert len(np.unique(between)) == len(between)
    for label, count in plan.counts:
        assert sum(found[label]) == count
        assert all(abs(share - count / plan.shards) < 1 for share in found[label])


def test_a_thousand_classes_of_one_image_fill_every_shard() -> None:
    spec = make_spec([Z, classes(*map(str, range(1000)))], [IMAGE])
    samples = {"per_class": {"0-999": 1}}
    job = Job.model_validate({"model": "m", "samples": samples, "output": {"shard_size": 100}})
    plan = plan_from_job(job, spec)
    labels = [part for n in range(plan.shards) if (part := plan.shard(n).labels) is not None]
    assert [len(part) for part in labels] == [100] * 10
    assert sorted(np.concatenate(labels).tolist()) == list(range(1000))


@given(JOBS, st.data())
def test_shard_of_and_limits_agree_with_the_plan(job: Job, data: st.DataObject) -> None:
    plan = plan_of(job)
    index = data.draw(st.integers(0, plan.samples - 1))
    shard = plan.shard(plan.shard_of(index))
    assert shard.first_index <= index < shard.first_index + len(shard)
    limit = data.draw(st.integers(1, 2 * plan.samples))
    shards = plan.shards_of_first(limit)
    assert plan.first_index(shards) >= min(limit, plan.samples)
    assert plan.first_index(shards - 1) < limit


@given(JOBS)
def test_the_plan_follows_from_the_job_alone(job: Job) -> None:
    again = Job.model_validate_json(job.model_dump_json())
    assert again == job
    assert plan_of(again) == plan_of(job)
    # Neither the filters nor the file format move a seed.
    other = {"filters": [{"kind": "constant"}], "inputs": {"class_label": 3}}
    changed = Job.model_validate({**job.model_dump(), **other})
    assert plan_of(changed) == plan_of(job)


def test_the_size_of_a_shard_follows_from_the_images_where_it_is_left_out() -> None:
    job = Job.model_validate({"model": "m", "samples": {"seeds": "0-9999"}})
    assert plan_from_job(job, PLAIN).shards == 10
    large = make_spec([Z], [image(1024, 1024)])
    assert plan_from_job(job, large).shards == math.ceil(10_000 / 85)  # 256 MiB of pixels each


def test_a_million_shards_are_the_most() -> None:
    for samples, is_refused in ((1_000_000, False), (1_000_001, True)):
        seeds = {"seeds": f"0-{samples - 1}", "reserve": 0}
        job = Job.model_validate({"model": "m", "samples": seeds, "output": {"shard_size": 1}})
        with pytest.raises(BadRequest) if is_refused else nullcontext():
            assert plan_from_job(job, PLAIN).shards == samples


def test_a_small_job_has_a_small_reserve() -> None:
    job = Job.model_validate({"model": "m", "samples": {"seeds": "0-9"}})
    assert plan_from_job(job, PLAIN) == JobPlan(0, ((None, 10),), shards=1, reserve=3)


@settings(max_examples=20)
@given(st.integers(0, 200))
def test_a_seed_range_may_end_at_the_last_seed(count: int) -> None:
    samples = {"seeds": f"{MAX_SEED - count}-{MAX_SEED}", "reserve": 0}
    job = Job.model_validate({"model": "m", "samples": samples})
    shard = plan_from_job(job, PLAIN).shard(0)
    assert shard.seeds[-1] == MAX_SEED
    assert list(shard.reserve) == []


@given(class_jobs(), st.data())
def test_a_replaced_sample_keeps_its_class_and_draws_the_rest_anew(
    job: Job, data: st.DataObject
) -> None:
    job = Job.model_validate(
        {
            **job.model_dump(),
            "samples": {**job.samples.model_dump(), "reserve": 1, "per_class": {"0-3": 6}},
            "inputs": {"truncation_psi": {"uniform": [0, 1]}},
        }
    )
    shard = plan_from_job(job, MAPPED).shard(0)
    place = data.draw(st.integers(0, len(shard) - 1))
    assert shard.labels is not None
    label = shard.labels[place : place + 1]
    own = inputs_of(job, shard.seeds[place : place + 1], label)
    replaced = inputs_of(job, np.array([shard.reserve[0]]), label)
    assert own["class_label"] == replaced["class_label"] == label
    assert own["truncation_psi"] != replaced["truncation_psi"]
    drawn = draw_uniform([shard.reserve[0]], "job:truncation_psi")
    assert replaced["truncation_psi"] == drawn.astype(np.float32)

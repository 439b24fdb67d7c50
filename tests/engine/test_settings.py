import pytest

from codemae.engine.settings import DataConfig, LogConfig, OptimConfig, plan_batches


@pytest.mark.parametrize(
    ("batch_per_gpu", "accumulate", "wanted", "processes", "plan"),
    [
        (128, 1, None, 8, (1024, 128, 1)),
        (32, 2, None, 4, (256, 32, 2)),
        (32, 1, 1024, 8, (1024, 32, 4)),
        (32, 7, 1024, 16, (1024, 32, 2)),
    ],
)
def test_the_global_batch_is_shared_out(batch_per_gpu, accumulate, wanted, processes, plan):
    optim = OptimConfig(batch_per_gpu=batch_per_gpu, grad_accum_steps=accumulate, global_batch=wanted)
    got = plan_batches(optim, processes)
    assert (got.global_batch, got.per_rank, got.accumulation) == plan


def test_a_global_batch_that_cannot_be_shared_out_names_a_size_that_can():
    with pytest.raises(ValueError, match="--optim.batch_per_gpu 4$"):
        plan_batches(OptimConfig(batch_per_gpu=6, global_batch=16), 2)


@pytest.mark.parametrize(
    ("schema", "values", "named"),
    [
        (OptimConfig, {"betas": [0.9]}, "optim.betas: adamw takes 2"),
        (OptimConfig, {"name": "adan", "betas": [0.9, 0.9]}, "optim.betas: adan takes 3"),
        (OptimConfig, {"batch_per_gpu": 0}, "optim.batch_per_gpu"),
        (OptimConfig, {"epochs": 0}, "optim.epochs"),
        (DataConfig, {"num_workers": -1}, "data.num_workers"),
        (LogConfig, {"every": 0}, "log.every"),
    ],
)
def test_impossible_values_are_refused_by_key(schema, values, named):
    with pytest.raises(ValueError, match=named):
        schema(**values)

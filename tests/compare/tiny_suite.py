"""A suite that ends within seconds: chains of one and two steps, a decoder of some thousand parameters, two methods."""

from experiments.compare.suite import Method, Suite
from experiments.settings import Setting
from experiments.settings.chains import small_run


def tiny():
    config = small_run((1, 2))
    config.model.hidden_size, config.model.num_layers, config.model.intermediate_size = 16, 1, 32
    config.model.num_heads = config.model.num_kv_heads = 2
    task = config.task.arithmetic
    task.num_train_problems, task.num_heldout_problems, task.warm_start_batch_size = 24, 12, 16
    task.warm_start_stages = ({"num_steps": 60, "learning_rate": 1e-2, "lengths": (1, 2), "weights": (),
                               "plus_noise": 0.0, "minus_noise": 0.0, "forget_borrow": 0.0},)  # fmt: skip
    config.warm_start.decay_steps = 60
    config.search.num_trajectories = 4
    config.search.capacity = 13
    config.rollout.num_slots, config.rollout.prompt_multiple = 8, 16
    config.rounds.steps_per_round, config.rounds.problems_per_step, config.rounds.group_size = 3, 4, 4
    config.cache.capacity, config.filter.min_direct = 24, 2
    config.pack.row_multiple, config.pack.min_rows = 32, 16
    config.advantage.drop_uniform = False
    config.evaluation.every_steps, config.evaluation.num_problems, config.evaluation.num_samples = 1, 8, 2
    config.checkpoint.every_steps = 1
    config.compile_cache = "off"
    return config


def get_suite():
    grpo = {"method": "grpo", "advantage.level": "outcome", "advantage.normalisation": "mean_std"}
    return Suite(
        name="tiny",
        title="A suite for tests.",
        settings=("tiny",),
        own_settings=(Setting("tiny", "for tests", tiny, 20),),
        methods=(Method("deepsearch"), Method("grpo", grpo, is_baseline=True,
                                              grid={"optimizer.learning_rate": (1e-3, 3e-3)})),
        ours="deepsearch",
        seeds=(0, 1),
        levels=(0.01, 0.9),
        test_samples=4,
    )  # fmt: skip

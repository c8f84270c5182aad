"""Words to cells: axes, tasks and rules of a sweep file, names, and what is refused."""

import re

import pytest
from omegaconf import OmegaConf

from ctrlrl import registry, settings
from ctrlrl.sweep.ask import check, read_options
from ctrlrl.sweep.cells import DATA, cells_of, choices, key_of, merged
from ctrlrl.sweep.plan import Plan, Rule, plans, read_plan

PLAN = Plan(
    "toy",
    words=("eval.episodes=3", "total_steps=10"),
    axes=("seed=0,1", "algo=ppo,bpo"),
    tasks={"swing": ("env=pendulum",), "cart-a": ("env=cartpole",), "cart-b": ("env=cartpole", "n_envs=2")},
    rules=(Rule("bpo", "cart-*", ("algo.gamma=0.5",)), Rule("bpo,x", "cart-b", ("algo.gamma=0.6",))),
)


def value(cell, key):
    (found,) = [word.partition("=")[2] for word in cell.words if word.partition("=")[0] == key]
    return found


def test_every_comma_list_is_an_axis_and_seeds_come_outermost():
    cells = cells_of(Plan(""), ["algo=ppo,bpo", "env=pendulum", "algo.hidden=[8,8]", "seed=0,1"])
    assert [c.name for c in cells] == ["ppo-pendulum-s0", "bpo-pendulum-s0", "ppo-pendulum-s1", "bpo-pendulum-s1"]
    assert {value(c, "algo.hidden") for c in cells} == {"[8,8]"}
    assert [value(c, "seed") for c in cells] == ["0", "0", "1", "1"]


def test_hydras_words_for_lists_are_understood():
    assert choices("seed=range(2,5)") == ["seed=2", "seed=3", "seed=4"]
    assert choices("algo.hidden=[8],[16,16]") == ["algo.hidden=[8]", "algo.hidden=[16,16]"]
    assert choices("data.path=/a/b-1.npz,/c.d/e.npz") == ["data.path=/a/b-1.npz", "data.path=/c.d/e.npz"]
    with pytest.raises(ValueError, match="interval"):
        choices("algo.gamma=interval(0,1)")
    with pytest.raises(ValueError, match="key=value"):
        choices("seed")
    with pytest.raises(ValueError, match=r"seed=\[1"):
        choices("seed=[1")
    for word in ("algo=glob(*)", "seed=range(0,5,0)", "seed=range(0,0)"):
        with pytest.raises(ValueError, match=re.escape(f"{word}: ")):
            choices(word)


@pytest.mark.parametrize(
    ("plan", "words", "said"),
    [
        (Plan(""), ["experiment=bpo/halfcheetah"], ("bpo", "halfcheetah", "0")),
        (Plan(""), ["experiment=bpo/halfcheetah", "env=hopper"], ("bpo", "hopper", "0")),
        (Plan("own", words=("algo=iql", "env=hopper-v4")), ["algo.tau=0.1"], ("iql", "hopper-v4", "0")),
        (Plan("own", words=("seed=3",)), ["env=cartpole"], ("ppo", "cartpole", "3")),
        (Plan("own", words=("algo=iql",)), ["algo=bc", "env=hopper-v4"], ("bc", "hopper-v4", "0")),
    ],
)
def test_a_cell_is_of_the_algorithm_task_and_seed_that_its_preset_and_file_say(plan, words, said):
    (cell,) = cells_of(plan, words)
    assert (cell.algo, cell.task, cell.seed) == said


def test_rules_fit_the_algorithm_that_the_sweeps_own_words_name():
    (cell,) = cells_of(
        Plan("own", words=("algo=iql",), rules=(Rule("iql", "*", ("algo.tau=0.5",)),)), ["env=hopper-v4"]
    )
    assert value(cell, "algo.tau") == "0.5"


def test_tasks_and_defaults_come_from_the_file_and_typed_words_win():
    cells = cells_of(PLAN, ["total_steps=99", "seed=7"])
    assert [c.name for c in cells[:3]] == ["ppo-swing-s7", "ppo-cart-a-s7", "ppo-cart-b-s7"]
    assert len(cells) == 6
    assert {value(c, "total_steps") for c in cells} == {"99"}
    assert {value(c, "eval.episodes") for c in cells} == {"3"}
    assert {value(c, "threads") for c in cells} == {"1"}
    assert {value(c, "threads") for c in cells_of(PLAN, ["threads=2"])} == {"2"}


def test_rules_change_words_by_algorithm_and_task_and_later_ones_win():
    found = {c.name: [w for w in c.words if w.startswith("algo.gamma")] for c in cells_of(PLAN, ["seed=0"])}
    assert found["bpo-cart-a-s0"] == ["algo.gamma=0.5"]
    assert found["bpo-cart-b-s0"] == ["algo.gamma=0.6"]
    assert found["bpo-swing-s0"] == found["ppo-cart-a-s0"] == []
    typed = cells_of(PLAN, ["seed=0", "algo.gamma=0.9"])
    assert {value(c, "algo.gamma") for c in typed} == {"0.9"}


def test_tasks_are_chosen_by_name_or_pattern():
    assert {c.task for c in cells_of(PLAN, [], "cart-*")} == {"cart-a", "cart-b"}
    assert {c.task for c in cells_of(PLAN, [], "swing,cart-a")} == {"swing", "cart-a"}
    with pytest.raises(ValueError, match="unknown task 'card-a'; did you mean cart-a"):
        cells_of(PLAN, [], "card-a")
    with pytest.raises(ValueError, match="there are none here"):
        cells_of(Plan(""), [], "swing")


def test_a_typed_data_set_takes_the_place_of_the_tasks_and_a_typed_environment_is_refused():
    cells = cells_of(PLAN, ["data=file", "data.path=x/cart-b.npz,y.npz", "env=hopper-v4", "seed=0", "algo=bpo"])
    assert [(c.task, c.name) for c in cells] == [("cart-b", "bpo-cart-b-s0"), ("y", "bpo-y-s0")]
    assert value(cells[0], "algo.gamma") == "0.6"  # rules go by the task's name
    with pytest.raises(ValueError, match="env is set by the tasks of sweep=toy; choose with task="):
        cells_of(PLAN, ["env=pendulum"])


def test_further_axes_are_in_the_name_and_twins_are_refused():
    cells = cells_of(Plan(""), ["algo=td3bc", "algo.alpha=1,2.5", "env=hopper-v4"])
    assert [(c.name, c.variant) for c in cells] == [
        ("td3bc-hopper-v4-alpha_1-s0", "alpha=1"),
        ("td3bc-hopper-v4-alpha_2.5-s0", "alpha=2.5"),
    ]
    with pytest.raises(ValueError, match="two cells would be called ppo-x-s0"):
        cells_of(Plan(""), ["data.path=a/x.npz,b/x.npz"])


def test_the_folder_of_data_sets_is_put_in_late_so_that_it_may_move():
    (cell,) = cells_of(Plan("toy", tasks={"x": ("data=file", "data.path={data_dir}/x.npz")}), [])
    assert "data.path={data_dir}/x.npz" in cell.words
    assert "data.path=/some/where/x.npz" in cell.arguments("/some/where")


def test_later_words_win_and_one_word_a_key_stays():
    assert merged(["a=1", "b=2"], ["+a=3"]) == ("b=2", "+a=3")


def rules_of(plan):
    """One cell for every algorithm of the file and every set of rules that applies to it."""
    named = {algo for rule in plan.rules for algo in rule.algo.split(",")}
    named |= {w.partition("=")[2] for axis in plan.axes if axis.startswith("algo=") for w in choices(axis)}
    found = {}
    for algo in sorted(named):
        for cell in cells_of(plan, [f"algo={algo}", "seed=0"]):
            found.setdefault(frozenset(w for w in cell.words if key_of(w) not in ("env", "env.id", *DATA)), cell)
    return list(found.values())


def test_every_packed_sweep_names_algorithms_presets_and_settings_that_there_are():
    assert set(plans()) == {
        "clone_mujoco",
        "d4rl_antmaze",
        "d4rl_mujoco",
        "finetune_mujoco",
        "h2o_gaps",
        "expo_mujoco",
        "expo_adroit",
        "rlpd_mujoco",
        "ogbench_singletask",
        "rollouts_mujoco",
        "scaling",
        "lotsizing",
        "metaworld",
    }
    presets = settings.presets()
    for name in plans():
        for cell in rules_of(read_plan(name)):
            config = registry.lookup(registry.ALGORITHMS, cell.algo, "algorithm").config
            for key, value in cell.settings().items():
                if key.startswith("algo."):
                    assert hasattr(config(), key[5:]), (name, cell.name, key)
                if key == "experiment":
                    assert value in (*presets, "none"), (name, cell.name)
                if key == "data":
                    assert value in registry.DATA


@pytest.fixture
def data_dir(tmp_path):
    """A folder of data sets, of which composing reads the bases alone."""
    bases = {f"{env}-mixed-base": f"env={env}-v4" for env in ("hopper", "walker2d")}
    bases |= {
        f"adroit_{task}-expert-base": f"env=gym env.id=AdroitHand{task.title()}-v1" for task in ("door", "hammer")
    }
    for name, env in bases.items():
        folder = tmp_path / name
        folder.mkdir()
        base = settings.train_config(["experiment=flow/expo_base", *env.split()])
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(base))
    return str(tmp_path)


@pytest.mark.slow
def test_every_packed_sweep_composes_for_every_algorithm_that_it_names(data_dir):
    for name in plans():
        check(rules_of(read_plan(name)), data_dir)


@pytest.mark.parametrize("sweep", ["expo_mujoco", "expo_adroit"])
def test_when_an_expo_sweep_first_looks_the_acting_base_has_caught_up_with_the_trained_one(sweep, data_dir):
    """The authors' rate of 0.001 is for hundreds of thousands of the base's updates."""
    (cell, *_) = cells_of(read_plan(sweep), ["algo=expo", "seed=0"])
    cfg = settings.typed(settings.train_config(cell.arguments(data_dir)))
    updates = (cfg.eval.every - cfg.algo.learning_starts) * cfg.algo.utd / cfg.algo.policy_delay
    assert (1.0 - cfg.algo.base_tau) ** updates < 0.01


def test_words_of_the_sweep_and_words_of_its_cells_are_told_apart():
    options = read_options(["sweep.dir=s", "jobs=3", "rows=r.jsonl", "data_dir=d", "launcher.partition=p", "seed=0,1"])
    assert (str(options.folder), options.jobs, str(options.rows), options.data_dir) == ("s", 3, "r.jsonl", "d")
    assert (options.settings, options.words) == (["launcher.partition=p"], ["seed=0,1"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sweep=d4rl_mojoco"], "unknown sweep 'd4rl_mojoco'; did you mean d4rl_mujoco"),
        (["sweep=nowhere.yaml"], "sweep=nowhere.yaml: No such file"),
        (["sweep.dri=x"], "unknown key 'sweep.dri'; did you mean sweep.dir"),
        (["run.dir=x"], r"run.dir: a sweep names the folders.*sweep.dir=FOLDER"),
        (["run.resume=x"], "run.resume"),
        (["jobs=0"], "jobs must be a whole number of at least 1, got '0'"),
        (["jobs=two"], "jobs"),
        (["seed"], "expected key=value, got 'seed'"),
    ],
    ids=" ".join,
)
def test_wrong_options_are_refused_in_one_line(words, said):
    with pytest.raises(ValueError, match=said) as raised:
        read_options(words)
    assert "\n" not in str(raised.value)


def test_a_word_that_one_cell_does_not_take_names_the_cell():
    cells = cells_of(Plan(""), ["algo=ppo", "env=pendulum", "algo.gama=0.9,0.8"])
    with pytest.raises(ValueError, match=r"ppo-pendulum-gama_0.9-s0: unknown key algo.gama; did you mean algo.gamma"):
        check(cells, "data")
    with pytest.raises(ValueError, match="seed must be a whole number, got 'x'"):
        check(cells_of(Plan(""), ["seed=0,x"])[1:], "data")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a\n", "wanted the keys note, words, axes, tasks, rules, got list"),
        ("taks: {}\n", "unknown key 'taks'; did you mean tasks"),
        ("words: seed=1\n", "words must be a list of key=value words"),
        ("tasks: [a]\n", "tasks must be a table"),
        ("tasks: {a: [env]}\n", r"tasks\.a must be a list"),
        ("rules: [{algoo: iql}]\n", r"rules\[0\] wants algo, task and words"),
        ("a: [\n", "not readable as YAML"),
    ],
)
def test_a_sweep_file_of_ones_own_is_read_and_a_damaged_one_is_named(tmp_path, text, said):
    file = tmp_path / "mine.yaml"
    file.write_text("note: |\n  two\n  lines\ntasks: {a: [env=pendulum]}\nrules: [{algo: ppo, words: [n_envs=2]}]\n")
    plan = read_plan(str(file))
    assert (plan.name, plan.note, plan.tasks) == ("mine", "two lines", {"a": ("env=pendulum",)})
    assert plan.rules == (Rule("ppo", "*", ("n_envs=2",)),)
    file.write_text(text)
    with pytest.raises(ValueError, match=said) as raised:
        read_plan(str(file))
    assert "\n" not in str(raised.value)


def test_sweep_files_are_no_presets():
    assert not [name for name in settings.presets() if "sweep" in name]


def test_a_cell_s_folder_is_one_that_a_run_takes():
    cells = cells_of(read_plan("scaling"), ["algo.clip_range=0.1,0.2", "seed=0"])
    assert len(cells) == 24
    for cell in cells[:3]:
        assert settings.train_config([*cell.words, f"run.dir={cell.name}"]).run.dir == cell.name

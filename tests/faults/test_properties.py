"""Loaders and configurations under whatever hypothesis thinks of: an answer or one line, never anything else."""

import io
import tempfile
from dataclasses import fields, is_dataclass
from typing import Any

import hypothesis.configuration
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctrlrl.algos.bpo import BPOConfig
from ctrlrl.algos.ppo import PPOConfig
from ctrlrl.config import TrainConfig
from ctrlrl.settings import load_config, train_config, typed
from ctrlrl.train.checkpoint import FILES, Checkpoint, read_folder, read_zip, write_folder, write_zip

hypothesis.configuration.set_hypothesis_home_dir(tempfile.mkdtemp(prefix="ctrlrl-hypothesis-"))  # not into the tree
BOUNDED = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=80,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.uint8, torch.int8, torch.int16),
    *(torch.int32, torch.int64, torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint32, torch.uint64),
    torch.complex64,
)


@st.composite
def tensors(draw: Any) -> torch.Tensor:
    """Any bits in any dtype and shape, zero-size and 0-dim among them; now and then a view that is not contiguous."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    size = torch.empty(shape).numel() * dtype.itemsize
    data = draw(st.binary(min_size=size, max_size=size))
    if dtype == torch.bool:
        data = bytes(byte & 1 for byte in data)
    flat = torch.frombuffer(bytearray(data), dtype=dtype) if size else torch.empty(0, dtype=dtype)
    tensor = flat.reshape(shape)
    return tensor.transpose(0, -1) if len(shape) > 1 and draw(st.booleans()) else tensor


names = st.text(min_size=1, max_size=20).filter(lambda name: name != "__metadata__" and name.isprintable())
trees = st.dictionaries(names, tensors(), max_size=5)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
states = st.dictionaries(st.text(max_size=10).filter(lambda k: k not in ("format", "checksum")), plain, max_size=5)
checkpoints = st.builds(Checkpoint, trees, trees, states)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def assert_same(a: Checkpoint, b: Checkpoint) -> None:
    for mine, found in ((a.model, b.model), (a.training, b.training)):
        assert mine.keys() == found.keys()
        for name, tensor in mine.items():
            assert (tensor.dtype, tensor.shape) == (found[name].dtype, found[name].shape)
            assert bits(tensor) == bits(found[name])
    assert {**b.state, "format": 0} == {**a.state, "format": 0}


@BOUNDED
@given(checkpoints)
def test_a_zip_gives_back_any_tree_bit_for_bit(checkpoint):
    file = io.BytesIO()
    write_zip(file, checkpoint)
    file.seek(0)
    assert_same(checkpoint, read_zip(file))


@settings(BOUNDED, max_examples=25)
@given(checkpoints)
def test_a_folder_gives_back_any_tree_bit_for_bit(tmp_path, checkpoint):
    write_folder(tmp_path / "last", checkpoint)
    assert_same(checkpoint, read_folder(tmp_path / "last"))


def sample() -> Checkpoint:
    torch.manual_seed(0)
    return Checkpoint({"w": torch.randn(20), "b": torch.ones(3).bfloat16()}, {"m": torch.ones(4)}, {"env_steps": 3})


def damaged(data: bytes, at: float, kind: str, junk: bytes) -> bytes:
    place = int(at * len(data))
    if kind == "flip":
        changed = bytearray(data)
        for offset, byte in enumerate(junk):
            changed[(place + offset) % len(data)] ^= byte
        return bytes(changed)
    if kind == "cut":
        return data[:place]
    if kind == "insert":
        return data[:place] + junk + data[place:]
    return data[:place] + junk if kind == "replace" else junk


damage = {
    "at": st.floats(0.0, 0.999),
    "kind": st.sampled_from(["flip", "cut", "insert", "replace", "other"]),
    "junk": st.binary(min_size=1, max_size=40),
}


def answers(read: Any) -> None:
    """The very checkpoint that was written (a file may hold bytes that nobody reads) or one line."""
    try:
        found = read()
    except ValueError as error:
        said = str(error)
    else:
        return assert_same(sample(), found)
    assert said
    assert "\n" not in said


@settings(BOUNDED, max_examples=250)
@given(**damage)
def test_a_damaged_zip_never_loads_wrongly(at, kind, junk):
    file = io.BytesIO()
    write_zip(file, sample())
    answers(lambda: read_zip(io.BytesIO(damaged(file.getvalue(), at, kind, junk))))


@BOUNDED
@given(name=st.sampled_from(FILES), **damage)
def test_a_damaged_folder_never_loads_wrongly(tmp_path, name, at, kind, junk):
    write_folder(tmp_path / "last", sample())
    path = tmp_path / "last" / name
    path.write_bytes(damaged(path.read_bytes(), at, kind, junk))
    answers(lambda: read_folder(tmp_path / "last"))


# configurations -------------------------------------------------------------------------------------------------------


def keys(config: Any, prefix: str = "") -> list[str]:
    found = []
    for field in fields(config):
        value = getattr(config, field.name)
        name = f"{prefix}{field.name}"
        found += keys(value, f"{name}.") if is_dataclass(value) else [name]
    return found


KEYS = sorted({*keys(TrainConfig(algo=PPOConfig())), *keys(TrainConfig(algo=BPOConfig()))})
words = st.one_of(
    st.integers().map(str),
    st.integers(-3, 300).map(str),
    st.floats().map(str),
    st.sampled_from(
        "null true false nan inf -inf .nan .inf [] {} [1,2] [[1]] [null] [0] [-1] [a] {a:1} '' ??? 1e400 0x10 1_000 "
        "auto none batch linear relu cnn learned torch mujoco gymnasium gym cpu cuda:99 bfloat16 ppo bpo".split()
    ),
    st.lists(st.integers(-2, 300)).map(str),
    st.text(alphabet=st.characters(codec="ascii"), max_size=12),
    st.text(max_size=6),
)


def answers_config(make: Any) -> None:
    try:
        found = make()
    except ValueError as error:
        said = str(error)
        assert said
        assert "\n" not in said, said
        return
    assert isinstance(found, TrainConfig)
    assert found.n_envs >= 1
    assert found.total_steps is None or found.total_steps >= 1
    assert 0.0 <= found.algo.gamma <= 1.0
    assert 0 <= found.seed < 2**62
    assert found.checkpoint.every >= 0.0
    assert found.log.every >= 0.0
    assert not [f.name for f in fields(found.algo) if getattr(found.algo, f.name) != getattr(found.algo, f.name)]


@settings(BOUNDED, max_examples=25)
@given(key=st.sampled_from(KEYS), word=words, algo=st.sampled_from(["ppo", "bpo"]))
def test_any_word_on_the_command_line_is_a_run_or_one_line(key, word, algo):
    answers_config(lambda: typed(train_config([f"algo={algo}", f"{key}={word}"])))


@pytest.mark.parametrize("field", ["ent_coef", "log_std_init", "target_kl", "learning_rate", "max_grad_norm"])
def test_not_a_number_is_no_number(field):
    with pytest.raises(ValueError, match=rf"{field}.*nan"):
        TrainConfig(algo=PPOConfig(**{field: float("nan")}))


@pytest.fixture(scope="module")
def config_yaml(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from omegaconf import OmegaConf

    path = tmp_path_factory.mktemp("config") / "config.yaml"
    path.write_text(OmegaConf.to_yaml(OmegaConf.structured(TrainConfig(algo=PPOConfig()))))
    return path


@settings(BOUNDED, max_examples=80)
@given(key=st.sampled_from(KEYS), value=plain | st.floats())
def test_any_value_in_a_config_yaml_is_a_run_or_one_line(config_yaml, key, value):
    from omegaconf import OmegaConf

    saved = OmegaConf.to_container(OmegaConf.load(config_yaml))
    *path, last = key.split(".")
    inner = saved
    for part in path:
        inner = inner[part]
    inner[last] = value
    changed = config_yaml.with_name("changed.yaml")
    import yaml

    changed.write_text(yaml.safe_dump(saved, allow_unicode=True))
    answers_config(lambda: typed(load_config(changed)))


@settings(BOUNDED, max_examples=60)
@given(at=damage["at"], kind=damage["kind"], junk=damage["junk"])
def test_a_damaged_config_yaml_is_a_run_or_one_line(config_yaml, at, kind, junk):
    changed = config_yaml.with_name("damaged.yaml")
    changed.write_bytes(damaged(config_yaml.read_bytes(), at, kind, junk))
    answers_config(lambda: typed(load_config(changed)))
